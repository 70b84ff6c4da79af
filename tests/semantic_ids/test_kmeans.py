import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_limits

from prerank.semantic_ids.kmeans import kmeans, nearest, spread, workers


def blobs(n: int, d: int, n_centres: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((n_centres, d))
    points = centres[rng.integers(n_centres, size=n)] + 0.3 * rng.standard_normal((n, d))
    return (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32)


def fit(points, n_codes, *, seed=0, iterations=50, tolerance=0.0):
    with workers() as pool:
        return kmeans(
            pool,
            points,
            n_codes,
            iterations=iterations,
            tolerance=tolerance,
            rng=np.random.default_rng(seed),
        )


def squared_error(points, centroids, codes) -> float:
    return float(((points - centroids[codes]) ** 2).sum())


@pytest.mark.parametrize("n_centroids", [1, 7, 300])
def test_nearest_is_brute_force_nearest(n_centroids):
    points, centroids = blobs(5000, 6, 40, seed=1), blobs(n_centroids, 6, 40, seed=2)
    with workers() as pool:
        codes, distance = nearest(pool, points, centroids)
    squared = ((points[:, None, :].astype(np.float64) - centroids) ** 2).sum(axis=2)
    np.testing.assert_allclose(squared[np.arange(5000), codes], squared.min(axis=1), atol=1e-6)
    np.testing.assert_allclose(distance, squared.min(axis=1), atol=2e-6)
    assert codes.dtype == np.int32
    assert distance.dtype == np.float32


def test_of_equal_centroids_the_first_wins():
    with workers() as pool:
        codes, distance = nearest(
            pool, np.array([[1, 0]], np.float32), np.array([[0, 1], [1, 0], [1, 0]], np.float32)
        )
    assert codes.tolist() == [1]
    assert distance.tolist() == [0]


def test_two_groups_give_their_two_means():
    points = np.array([[1, 0], [0.8, 0], [0, 1], [0, 0.5]], np.float32)
    centroids, codes = fit(points, 2)
    assert codes[0] == codes[1] != codes[2] == codes[3]
    np.testing.assert_allclose(centroids[codes[0]], [0.9, 0], atol=1e-7)
    np.testing.assert_allclose(centroids[codes[2]], [0, 0.75], atol=1e-7)


@pytest.mark.parametrize("n_codes", [8, 32])
def test_as_good_as_scikit_learn(n_codes):
    points = blobs(3000, 12, 60, seed=3)
    ours = [squared_error(points, *fit(points, n_codes, seed=seed)) for seed in range(5)]
    golden = [KMeans(n_codes, random_state=seed).fit(points).inertia_ for seed in range(5)]
    assert np.mean(ours) < 1.03 * np.mean(golden)


def test_lloyd_is_scikit_learns_from_the_same_start():
    points = blobs(300, 8, 20, seed=4)
    start_rng = np.random.default_rng(0)
    sample = points[np.sort(start_rng.choice(np.arange(300), 300, replace=False))]
    start = spread(sample, 16, start_rng)
    golden = KMeans(16, init=start, n_init=1, max_iter=100, tol=0).fit(points)
    centroids, codes = fit(points, 16, seed=0, iterations=100)
    np.testing.assert_array_equal(codes, golden.labels_)
    np.testing.assert_allclose(centroids, golden.cluster_centers_, atol=1e-5)


def test_every_code_has_a_point_though_most_points_are_equal():
    points = np.repeat(blobs(40, 5, 40, seed=6), [5000, *[1] * 39], axis=0)
    centroids, codes = fit(points, 32)
    assert len(centroids) == 32
    assert (np.bincount(codes, minlength=32) > 0).all()


@pytest.mark.parametrize(("distinct", "asked", "got"), [(1, 4, 1), (3, 4, 3), (5, 4, 4)])
def test_no_more_codes_than_distinct_points(distinct, asked, got):
    points = np.repeat(blobs(distinct, 16, distinct, seed=7), 10, axis=0)
    centroids, codes = fit(points, asked)
    assert len(centroids) == got
    if distinct <= asked:
        np.testing.assert_allclose(centroids[codes], points, atol=1e-6)


def test_points_of_zeros_are_one_code():
    centroids, codes = fit(np.zeros((9, 3), np.float32), 4)
    assert centroids.tolist() == [[0, 0, 0]]
    assert codes.tolist() == [0] * 9


def test_spread_takes_far_points_and_never_one_twice():
    points = np.array([[1, 0], [1, 0], [0, 1], [-1, 0]], np.float32)
    chosen = spread(points, 10, np.random.default_rng(0))
    assert sorted(map(tuple, chosen.tolist())) == [(-1, 0), (0, 1), (1, 0)]


def test_same_bytes_with_any_number_of_threads():
    points = blobs(6000, 16, 50, seed=8)
    found = []
    for n_threads in (1, 2, 4):
        with threadpool_limits(n_threads):
            centroids, codes = fit(points, 64, iterations=8)
        found.append(centroids.tobytes() + codes.tobytes())
    assert found[0] == found[1] == found[2]


@settings(max_examples=40)
@given(
    points=hnp.arrays(
        np.float32,
        st.tuples(st.integers(1, 30), st.integers(1, 4)),
        elements=st.floats(-1, 1, width=32),
    ),
    n_codes=st.integers(1, 12),
)
def test_any_points_codes_in_range_and_in_use_and_error_at_most_that_of_the_mean(points, n_codes):
    centroids, codes = fit(points, n_codes)
    assert 1 <= len(centroids) <= min(n_codes, len(points))
    assert set(codes.tolist()) == set(range(len(centroids)))
    mean = points.mean(axis=0, keepdims=True)
    assert squared_error(points, centroids, codes) <= ((points - mean) ** 2).sum() * 1.001 + 1e-5
