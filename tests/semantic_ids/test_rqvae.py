"""RQ-VAE: each part by hand, the whole against RQ-KMeans."""

import numpy as np
import pytest
import torch

from prerank import store
from prerank.artifacts import ItemEmbeddings, SemanticIds
from prerank.semantic_ids.config import RqVaeConfig, TokenizeConfig
from prerank.semantic_ids.rqkmeans import RqKMeans
from prerank.semantic_ids.rqvae import RqVae, additive_books
from prerank.semantic_ids.rqvae_train import (
    Codebook,
    Network,
    _step,
    principal_axes,
    rotation,
    sinkhorn,
    straight_through,
)
from prerank.semantic_ids.tokenize import restore, tokenize


def items(n: int = 600, d: int = 12, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((20, d))
    points = centres[rng.integers(20, size=n)] + 0.5 * rng.standard_normal((n, d))
    return (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32)


def config(**values: object) -> TokenizeConfig:
    chosen = {"epochs": 12, "batch_size": 100, "hidden_dim": 32, "device": "cpu"} | values
    return TokenizeConfig.parse({"trainer": "rq-vae", "codebook_size": 16, "rqvae": chosen})


def left_over(tokenizer, vectors) -> np.ndarray:
    codes = tokenizer.tokenize(vectors)
    back = [tokenizer.decode(codes[:, :n]) for n in (1, 2, 3)]
    return np.array([np.linalg.norm(vectors - b, axis=1).mean() for b in back])


@pytest.mark.parametrize(
    ("chosen", "worse"),
    [
        ({}, 1.05),
        ({"progressive": False}, 1.05),
        ({"restart_below": 0}, 1.05),
        ({"gradient": "rotation"}, 1.1),
        ({"balance": "all"}, 1.1),
        ({"balance": "last"}, 1.1),
        ({"code_dim": 10}, 1.15),  # of 12 dimensions without structure, 2 are thrown away
    ],
    ids=lambda value: next(iter(value), "default") if isinstance(value, dict) else None,
)
def test_every_code_is_used_and_little_more_is_left_over_than_by_k_means(chosen, worse):
    vectors = items()
    settings = config(**chosen)
    golden = left_over(RqKMeans.fit(vectors, settings, 0), vectors)
    fitted = RqVae.fit(vectors, settings, 0)
    codes = fitted.tokenize(vectors)
    assert [len(np.unique(codes[:, level])) for level in range(3)] == [16] * 3
    assert left_over(fitted, vectors)[-1] <= worse * golden[-1]


def test_training_lowers_what_k_means_leaves_over():
    vectors = items()
    golden = left_over(RqKMeans.fit(vectors, config(), 0), vectors)
    assert left_over(RqVae.fit(vectors, config(epochs=60), 0), vectors)[-1] < golden[-1]


def test_same_seed_same_bytes_other_seed_other_codes():
    vectors = items(200)
    first, again, other = (RqVae.fit(vectors, config(epochs=2), seed) for seed in (1, 1, 2))
    for name, weights in first.network.items():
        assert weights.tobytes() == again.network[name].tobytes()
    assert (
        np.concatenate(first.latent_books).tobytes() == np.concatenate(again.latent_books).tobytes()
    )
    assert not np.array_equal(first.tokenize(vectors), other.tokenize(vectors))


def test_stored_and_restored_it_gives_the_same_codes_and_vectors(tmp_path):
    vectors = items(200)
    ids = tokenize(ItemEmbeddings(vectors), config(epochs=2, code_dim=5), 0)
    assert ids.quality["trainer"] == "rq-vae"
    assert ids.codebooks.shape == (48, 12)
    store.save(tmp_path, ids)
    tokenizer = restore(store.load(tmp_path, SemanticIds))
    assert isinstance(tokenizer, RqVae)
    np.testing.assert_array_equal(tokenizer.tokenize(vectors), ids.codes)
    np.testing.assert_array_equal(tokenizer.tokenize(vectors[3:4]), ids.codes[3:4])
    left = np.linalg.norm(vectors - tokenizer.decode(ids.codes), axis=1).mean()
    assert ids.quality["residual_norm"][-1] == pytest.approx(left, rel=1e-5)


def test_the_stored_weights_are_the_networks():
    torch.manual_seed(0)
    vectors = items(50)
    network = Network(torch.from_numpy(principal_axes(vectors, 4)), 7)
    for weights in network.parameters():  # also the two that start at zero
        torch.nn.init.normal_(weights)
    book = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
    numpy_side = RqVae((book,), network.weights(), ())
    with torch.no_grad():
        latents = network.encode(torch.from_numpy(vectors))
        back = network.decode(torch.from_numpy(book))
    np.testing.assert_allclose(numpy_side.encode(vectors), latents, rtol=1e-4, atol=1e-4)
    codes = np.array([[0], [1], [2]], np.int32)
    np.testing.assert_allclose(numpy_side.decode(codes), back, rtol=1e-4, atol=1e-4)


def test_training_starts_where_k_means_ends():
    vectors = items()
    network = Network(torch.eye(12), 8)
    with torch.no_grad():
        latents = network.encode(torch.from_numpy(vectors))
        np.testing.assert_allclose(network.decode(latents), vectors, atol=1e-6)


def test_codebooks_start_as_k_means_of_the_large_sample():
    vectors = items()
    still = config(epochs=1, learning_rate=1e-12, ema_decay=1 - 1e-9, restart_below=0)
    golden = RqKMeans.fit(vectors, still, 0)
    fitted = RqVae.fit(vectors, still, 0)
    for ours, theirs in zip(fitted.latent_books, golden.codebooks, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize("gradient", ["straight-through", "rotation"])
@pytest.mark.parametrize("progressive", [True, False])
def test_both_losses_are_of_one_scale(progressive, gradient):
    """An identity network leaves over what the codes leave over: both losses count the same."""
    vectors = torch.from_numpy(items(50, 6))
    books = [torch.from_numpy(items(k, 6, seed=k)) for k in (4, 3)]
    chosen = RqVaeConfig(commitment_weight=0.5, progressive=progressive, gradient=gradient)
    levels = [Codebook(book, chosen) for book in books]
    loss = _step(Network(torch.eye(6), 8), levels, vectors, chosen, torch.Generator())
    rest, left = vectors.numpy(), []
    for book in books:
        rest = rest - book.numpy()[((rest[:, None] - book.numpy()) ** 2).sum(-1).argmin(1)]
        left.append((rest**2).sum(axis=1).mean())
    reconstruction = np.mean(left) if progressive else left[-1]
    assert loss.item() == pytest.approx(reconstruction + 0.5 * sum(left), rel=1e-4)


def test_every_option_of_the_training_changes_it():
    vectors = items(200)
    options = [
        {},
        {"gradient": "rotation"},
        {"balance": "last"},
        {"balance": "all"},
        {"balance": "all", "balance_epsilon": 1.0},
        {"progressive": False},
        {"commitment_weight": 1.0},
        {"ema_decay": 0.5},
        {"restart_below": 0.9},
    ]
    brief: dict[str, object] = {"epochs": 2, "batch_size": 50}
    fitted = [RqVae.fit(vectors, config(**brief | chosen), 0) for chosen in options]
    found = {np.concatenate(model.latent_books).tobytes() for model in fitted}
    assert len(found) == len(options)


def test_principal_axes_are_scikit_learns():
    from sklearn.decomposition import TruncatedSVD

    vectors = items()
    golden = TruncatedSVD(4, algorithm="arpack").fit(vectors).components_
    np.testing.assert_allclose(
        np.abs(principal_axes(vectors, 4).T @ golden.T), np.eye(4), atol=1e-3
    )


@pytest.mark.parametrize("estimate", [straight_through, rotation])
def test_estimates_go_forward_as_the_codes(estimate):
    latents = torch.from_numpy(items(20, 5))
    quantised = torch.from_numpy(items(20, 5, seed=1)) * 3
    torch.testing.assert_close(estimate(latents, quantised), quantised)


def test_straight_through_hands_the_gradient_over():
    latents = torch.tensor([[1.0, 2.0]], requires_grad=True)
    (
        straight_through(latents, torch.tensor([[5.0, 5.0]])) * torch.tensor([3.0, 4.0])
    ).sum().backward()
    assert latents.grad.tolist() == [[3, 4]]


def test_rotation_turns_the_gradient_by_hand():
    """Latent along x, code twice as long along y: a quarter turn and a factor of 2."""
    latents = torch.tensor([[1.0, 0.0]], requires_grad=True)
    (rotation(latents, torch.tensor([[0.0, 2.0]])) * torch.tensor([3.0, 4.0])).sum().backward()
    quarter = np.array([[0, -1], [1, 0]])
    np.testing.assert_allclose(latents.grad[0], 2 * quarter.T @ [3, 4], atol=1e-6)


def test_sinkhorn_gives_every_code_its_share():
    torch.manual_seed(0)
    scores = torch.randn(60, 6)
    scores[:, 0] += 10  # all rows want code 0
    plan = sinkhorn(scores, 0.05)
    torch.testing.assert_close(plan.sum(dim=1), torch.ones(60))
    counts = torch.bincount(plan.argmax(dim=1), minlength=6)
    assert counts.max() <= 14
    assert counts.min() >= 6
    assert (scores.argmax(dim=1) == 0).all()


def test_codebook_follows_its_rows_by_exponential_averages():
    chosen = RqVaeConfig(ema_decay=0.5, restart_below=0)
    book = Codebook(torch.tensor([[0.0], [10.0]]), chosen)
    rows = torch.tensor([[1.0], [2.0], [3.0], [11.0]])
    codes = book.assign(rows, balanced=False)
    assert codes.tolist() == [0, 0, 0, 1]
    book.update(rows, codes, torch.Generator())
    # An even share is 2 rows: counts (2 + 3) / 2 and (2 + 1) / 2, sums (0 + 6) / 2, (20 + 11) / 2.
    np.testing.assert_allclose(book.centroids_KC[:, 0], [3 / 2.5, 15.5 / 1.5], rtol=1e-6)


def test_a_dead_code_restarts_on_a_row():
    chosen = RqVaeConfig(ema_decay=0, restart_below=0.1)
    book = Codebook(torch.tensor([[0.0], [1000.0]]), chosen)
    rows = torch.tensor([[1.0], [2.0]])
    book.update(rows, book.assign(rows, balanced=False), torch.Generator())
    assert book.centroids_KC[0].item() == pytest.approx(1.5)
    assert book.centroids_KC[1].item() in (1, 2)


def test_additive_books_are_means_of_what_is_left():
    vectors = np.array([[1, 0], [3, 0], [0, 4]], np.float32)
    codes = np.array([[0, 1], [0, 0], [1, 0]], np.int32)
    books = [np.zeros((2, 1), np.float32), np.zeros((3, 1), np.float32)]
    first, second = additive_books(vectors, codes, books)
    assert first.tolist() == [[2, 0], [0, 4]]
    assert second.tolist() == [[0.5, 0], [-1, 0], [0, 0]]


@pytest.mark.parametrize("epochs", [1, 9, 10, 11])
def test_any_number_of_steps(epochs):
    ids = tokenize(ItemEmbeddings(items(100)), config(epochs=epochs), 0)  # one batch an epoch
    assert len(ids.codes) == 100


@pytest.mark.parametrize("n", [1, 3])
def test_few_items(n):
    vectors = items(n, 4)
    ids = tokenize(ItemEmbeddings(vectors), config(epochs=1), 0)
    assert ids.codebook_sizes.tolist() == [n, 1, 1]
    assert len(np.unique(ids.codes, axis=0)) == n
