"""What a bundle holds, and that it scores as PyTorch does."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from prerank import store as stores
from prerank.artifacts import Dataset, ItemEmbeddings
from prerank.errors import ArtifactError, ConfigError, StaleArtifactError
from prerank.ranking.train import train
from prerank.serving.bundle import GRAPHS, Bundle, graph_file
from prerank.serving.export import check_parity, export, load_trained, quantise
from prerank.serving.graphs import graphs
from prerank.serving.scorer import Scorer
from prerank.serving.users import Users
from serving.small_run import CONFIG, make_bundle, make_content, make_run, make_world


def test_all_files_are_hashed_in_the_manifest(bundle: Bundle) -> None:
    there = {str(p.relative_to(bundle.path)) for p in bundle.path.rglob("*") if p.is_file()}
    assert there == {"manifest.json", *bundle.manifest.files}
    assert {
        "README.md",
        "parity.json",
        "precision.json",
        "latency.json",
        "schema.json",
        "score.py",
        "items/item_part_0.int8.npy",
        "items/item_part_0.float16.npy",
        "vocabulary/users.parquet",
        "vocabulary/users.json",
        "vocabulary/history.npy",
        "models/scorer/config.pbtxt",
    } <= there


def test_the_fingerprint_follows_from_the_manifest(bundle: Bundle) -> None:
    one = bundle.manifest  # as verify holds a bundle in a run's folder against it
    mark = stores.fingerprint(one.kind, one.config, one.seed, one.parents, one.revision)
    assert mark == one.fingerprint


def test_nothing_is_left_beside_the_bundle(bundle: Bundle) -> None:
    assert [p.name for p in bundle.path.parent.iterdir()] == [bundle.path.name]


def test_parity_at_1_7_and_5000_rows(bundle: Bundle) -> None:
    parity = json.loads((bundle.path / "parity.json").read_text())
    assert list(parity["rows"]) == ["1", "7", "5000"]
    assert set(parity["rows"]["7"]) == {"user", "item", "scorer", "logits"}
    worst = max(v for found in parity["rows"].values() for v in found.values())
    assert worst == parity["max_difference"] < 1e-5


def test_parity_fails_for_the_graphs_of_other_weights(run_folder: Path, bundle: Bundle) -> None:
    other = load_trained(run_folder, "exposed-only").ranker
    with pytest.raises(ArtifactError, match="PyTorch and ONNX Runtime differ"):
        check_parity(other, bundle.path)


def test_scores_equal_those_of_the_pre_ranker(run_folder: Path, bundle: Bundle) -> None:
    trained = load_trained(run_folder, "gpl")
    scorer = Scorer(bundle)
    users = Users(bundle, scorer)
    items = np.arange(-1, 60, dtype=np.int32)
    for row, name in enumerate(["100", "121", "139", "nobody"]):
        user = [0, 21, 39, -1][row]
        want = trained.ranker.score([user], items[None])[0]
        got = scorer.logits(users.state(name), scorer.known_rows(items))
        np.testing.assert_allclose(got, want, atol=1e-5)


def test_graphs_take_any_number_of_rows_and_candidates(bundle: Bundle) -> None:
    for name, inputs in bundle.about["graphs"].items():
        assert all(value["shape"][0] == -1 for value in inputs["inputs"]), name


def _shape(graph: onnx.GraphProto) -> dict[str, object]:
    """Return all of a graph but the numbers of its weights."""
    return {
        "nodes": [
            (n.op_type, n.domain, list(n.input), list(n.output), n.attribute) for n in graph.node
        ],
        "weights": {w.name: (tuple(w.dims), w.data_type) for w in graph.initializer},
        "inputs": [value.SerializeToString() for value in graph.input],
        "outputs": [value.SerializeToString() for value in graph.output],
    }


def test_gpl_costs_nothing_at_serving_time(bundle: Bundle, exposed_bundle: Bundle) -> None:
    """A bundle trained with GPL has the graphs, inputs and sizes of an exposed-only one."""
    for name in GRAPHS:
        gpl, exposed = (onnx.load(b.path / graph_file(name)) for b in (bundle, exposed_bundle))
        assert _shape(gpl.graph) == _shape(exposed.graph)
    assert bundle.about["graphs"] == exposed_bundle.about["graphs"]
    weights = [p for p in bundle.manifest.files if p.endswith((".onnx", ".npy", ".parquet"))]
    for file in weights:
        one, other = bundle.path / file, exposed_bundle.path / file
        assert one.stat().st_size == other.stat().st_size, file
    differ = [f for f in weights if bundle.manifest.files[f] != exposed_bundle.manifest.files[f]]
    assert "models/user/1/model.onnx" in differ  # else the two would be one model


def test_graphs_tell_nothing_of_the_machine_that_made_them(bundle: Bundle) -> None:
    for name in GRAPHS:
        text = (bundle.path / graph_file(name)).read_bytes()
        assert b"site-packages" not in text and b".py" not in text


def test_quantise_by_hand() -> None:
    rows, scale = quantise(np.array([[1.27, -0.635, 0.0], [0, 0, 0]], np.float32))
    assert rows.tolist() == [[127, -64, 0], [0, 0, 0]]  # -63.5 rounds to even
    np.testing.assert_allclose(scale, [0.01, 1 / 127], rtol=1e-6)


def test_smaller_precisions_lose_little_and_weigh_less(bundle: Bundle) -> None:
    precision = json.loads((bundle.path / "precision.json").read_text())
    assert precision["rows"] > 0 and precision["float32"]["auc_loss"] == 0
    assert precision["float16"]["bytes"] < precision["float32"]["bytes"]
    assert precision["int8"]["bytes"] < precision["float16"]["bytes"]
    assert abs(precision["float16"]["auc_loss"]) < 0.01
    assert precision["float32"]["auc"] > 0.6  # it learned something that could be lost
    for name in ("float16", "int8"):
        scorer, exact = Scorer(bundle, name), Scorer(bundle)
        state, items = Users(bundle, exact).state("105"), np.arange(61, dtype=np.int32)
        apart = np.abs(scorer.logits(state, items) - exact.logits(state, items)).max()
        assert 0 < apart < 0.1, name


def test_latency_is_measured_at_every_size(bundle: Bundle) -> None:
    latency = json.loads((bundle.path / "latency.json").read_text())
    assert list(latency["candidates"]) == ["100", "1000", "2000", "5000", "10000"]
    assert all(0 < t["p50"] <= t["p95"] <= t["p99"] for t in latency["candidates"].values())


def test_card_has_intervals_notes_and_null_reasons(bundle: Bundle) -> None:
    card = (bundle.path / "README.md").read_text()
    for part in ("0.7500 [0.7000, 0.8000]", "no tail items", "made by hand", "## Limits", "int8"):
        assert part in card
    assert "those of an item by a new export alone" in card


def test_example_scores_with_numpy_and_onnxruntime_alone(bundle: Bundle) -> None:
    script = bundle.path / "score.py"
    assert len(script.read_text().splitlines()) <= 20
    code = (
        "import runpy, sys; sys.modules['polars'] = None\n"  # importing it fails
        "sys.argv[1:] = ['121', '1003', 'absent', '1000']\n"
        f"runpy.run_path({str(script)!r}, run_name='__main__')\n"
        "assert not {'torch', 'prerank', 'onnx', 'pandas', 'pyarrow'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    got = {item: float(logit) for logit, item in map(str.split, done.stdout.splitlines())}
    scorer = Scorer(bundle)
    state = Users(bundle, scorer).state("121")
    want = scorer.logits(state, scorer.item_rows(["1003", "absent", "1000"]))
    np.testing.assert_allclose(list(got.values()), want, atol=1e-5)
    nobody = [sys.executable, str(script), "nobody", "1003"]
    assert subprocess.run(nobody, capture_output=True, check=False).returncode == 0


def test_triton_configs_name_the_inputs_of_their_graphs(bundle: Bundle) -> None:
    for name in GRAPHS:
        text = (bundle.path / "models" / name / "config.pbtxt").read_text()
        graph = onnx.load(bundle.path / graph_file(name)).graph
        named = re.findall(r'\{ name: "(\w+)" data_type: (\w+) dims: \[([^]]*)\]', text)
        assert [n for n, _, _ in named] == [v.name for v in (*graph.input, *graph.output)]
        assert f'name: "{name}"' in text and "TYPE_FP32" in text
        assert all("0" not in dims.split(", ") for _, _, dims in named)


def test_vocabularies_hold_raw_features_and_histories(bundle: Bundle) -> None:
    users = bundle.users
    assert users["id"].to_list()[:2] == ["100", "101"]
    assert users["feature:city"].to_list()[:5] == [None, "Bonn", "Köln", "Ulm", None]
    assert users["feature:age"].to_list()[:3] == [None, 1.0, 2.0]
    history, start = bundle.histories
    assert history.dtype == np.int32
    assert np.diff(start).max() == CONFIG.max_history
    assert len(start) == len(users) + 2
    assert start[-1] == start[-2] == len(history)  # the unknown user has none
    for side, frame in (("users", users), ("items", bundle.items)):
        ids = json.loads((bundle.path / f"vocabulary/{side}.json").read_text())
        assert ids == frame["id"].to_list()


@pytest.mark.parametrize(
    ("time_unit", "change"),
    [
        (
            "none",
            {
                "model": "int-tower",
                "similarity": "cosine",
                "use_content": False,
                "use_popularity": True,
            },
        ),
        ("order", {"model": "three-tower", "use_user_id": False, "numeric": "buckets"}),
        (
            "ms",
            {
                "model": "cold",
                "sequence_pooling": "attention",
                "numeric": "buckets",
                "use_popularity": True,
            },
        ),
    ],
)
def test_every_model_and_kind_of_data_exports(
    time_unit: str, change: dict[str, object], tmp_path: Path
) -> None:
    """Sets as histories, no user features, no ids, no content; buckets, attention."""
    plain = time_unit == "none"
    dataset = make_world(time_unit, user_features=not plain)  # type: ignore[arg-type]
    run = make_run(tmp_path / "run", dataset, CONFIG.model_copy(update=change))
    made = make_bundle(run, tmp_path / "bundle", "gpl")
    scorer, ranker = Scorer(made), load_trained(run, "gpl").ranker
    users = Users(made, scorer)
    items = np.arange(40, 61, dtype=np.int32)  # none of them in a history, one unknown
    asked = np.where(items < 60, items, -1)
    for user, name in ((3, "103"), (4, "104"), (-1, "nobody")):
        want = ranker.score([user], asked[None])[0]
        np.testing.assert_allclose(scorer.logits(users.state(name), items), want, atol=1e-5)
    inputs = {v["name"] for v in made.about["graphs"]["user"]["inputs"]}
    assert ("codes" in inputs) is not plain


@pytest.mark.parametrize(
    "kept", [("cross:content cosine", "item:item id"), ("user:user id", "cross:content cosine")]
)
def test_a_model_without_a_field_of_one_side_exports(kept: tuple[str, ...], tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"model": "cold", "kept_features": kept})
    run = make_run(tmp_path / "run", make_world(), config)
    made = make_bundle(run, tmp_path / "bundle", "gpl")
    scorer, ranker = Scorer(made), load_trained(run, "gpl").ranker
    users, items = Users(made, scorer), np.arange(40, 60, dtype=np.int32)
    want = ranker.score([3], items[None])[0]
    np.testing.assert_allclose(scorer.logits(users.state("103"), items), want, atol=1e-5)


def test_a_variants_own_space_is_the_one_exported(run_folder: Path, tmp_path: Path) -> None:
    run = shutil.copytree(run_folder, tmp_path / "run")
    other = ItemEmbeddings(np.ascontiguousarray(make_content().vectors[:, ::-1]))
    store = stores.Store(run)
    with store.publish("embeddings@other", stores.Manifest("encode", "e2", {}, 0, {})) as out:
        stores.save(out, other)
    parents = {"dataset": "d1", "embeddings@other": "e2"}
    manifest = stores.Manifest("train", "w2", {}, 0, parents)
    with store.publish("rankers/gpl@other/seed0", manifest) as out:
        train(make_world(), other, None, CONFIG, 0).save(out)
    trained = load_trained(run, "gpl@other")
    np.testing.assert_array_equal(trained.embeddings.vectors, other.vectors)
    assert export(trained, tmp_path / "bundle", seconds_per_size=0).about["method"] == "gpl@other"


def test_figures_of_other_weights_are_not_on_the_card(run_folder: Path, tmp_path: Path) -> None:
    assert load_trained(run_folder, "gpl").report is not None
    run = shutil.copytree(run_folder, tmp_path / "run")
    manifest = stores.Manifest("train", "w-again", {}, 0, {"dataset": "d1", "embeddings": "e1"})
    with stores.Store(run).publish("rankers/gpl/seed0", manifest) as out:
        train(make_world(), make_content(), None, CONFIG, 0).save(out)
    assert load_trained(run, "gpl").report is None
    card = (make_bundle(run, tmp_path / "bundle", "gpl").path / "README.md").read_text()
    assert "0.7500" not in card and "were not evaluated" in card


def test_labels_without_weight_are_told(
    run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr("prerank.serving.export.log", said.append)
    assert not load_trained(run_folder, "gpl").weightless
    run = shutil.copytree(run_folder, tmp_path / "run")
    parents = {"dataset": "d1", "embeddings": "e1", "labels/gpl": "l1"}
    with stores.Store(run).publish(
        "rankers/gpl/seed0", stores.Manifest("train", "w-gpl", {}, 0, parents)
    ) as out:
        config = CONFIG.model_copy(update={"pseudo_weight": 0.0})
        train(make_world(), make_content(), None, config, 0).save(out)
    card = (make_bundle(run, tmp_path / "bundle", "gpl").path / "README.md").read_text()
    assert "had no weight in training" in card
    assert any("it learned from clicks alone" in line for line in said)


def test_a_ranker_is_no_pre_ranker(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", make_world(), CONFIG.model_copy(update={"model": "din"}))
    with pytest.raises(ConfigError, match="not exported"):
        load_trained(run, "gpl")


# ---- what must not work ------------------------------------------------------------------------


def test_another_folder_is_never_replaced(run_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(ConfigError, match="something else"):
        export(load_trained(run_folder), tmp_path)
    assert (tmp_path / "mine.txt").read_text() == "precious"


def test_failed_export_leaves_nothing(
    run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prerank.serving.export.MAX_DIFFERENCE", -1.0)
    with pytest.raises(ArtifactError, match="differ"):
        export(load_trained(run_folder), tmp_path / "bundle", seconds_per_size=0)
    assert not list(tmp_path.iterdir())


def test_an_older_bundle_is_replaced_and_a_link_to_one_stays_a_link(
    bundle: Bundle, run_folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(bundle.path, tmp_path / "bundle-1")
    (tmp_path / "current").symlink_to("bundle-1")
    made = export(load_trained(run_folder), tmp_path / "current", seconds_per_size=0)
    assert made.fingerprint == Bundle.read(tmp_path / "bundle-1").fingerprint != bundle.fingerprint
    assert (tmp_path / "current").is_symlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle-1", "current"]


def test_unknown_method_seed_and_run(run_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such method") as told:
        load_trained(run_folder, "kd")
    assert "exposed-only, gpl" in str(told.value)
    with pytest.raises(ConfigError, match="no such seed"):
        load_trained(run_folder, "gpl", 7)
    with pytest.raises(ConfigError, match="no run here"):
        load_trained(tmp_path)


def test_stale_dataset_is_refused(run_folder: Path, tmp_path: Path) -> None:
    run = shutil.copytree(run_folder, tmp_path / "run")
    dataset = stores.load(run / "dataset", Dataset)
    with stores.Store(run).publish("dataset", stores.Manifest("d", "d2", {}, 0, {})) as out:
        stores.save(out, dataset)
    with pytest.raises(StaleArtifactError):
        load_trained(run)


def test_corrupt_truncated_and_foreign_bundles_are_refused(
    bundle: Bundle, run_folder: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(bundle.path, tmp_path / "copy")
    file = copy / graph_file("user")
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(ArtifactError, match="damaged"):
        Bundle.read(copy)
    file.unlink()
    with pytest.raises(ArtifactError, match="missing"):
        Bundle.read(copy)
    with pytest.raises(ArtifactError, match="no bundle"):
        Bundle.read(run_folder / "dataset")
    with pytest.raises(ArtifactError, match="no bundle here"):
        Bundle.read(tmp_path)


def test_axes_that_became_constants_are_refused(run_folder: Path, tmp_path: Path) -> None:
    import dataclasses

    from prerank.serving.graphs import write_graph

    graph = graphs(load_trained(run_folder).ranker)["item"]
    fixed = dataclasses.replace(graph, axes=({}, ({},) * (len(graph.inputs) - 1)))
    with pytest.raises(ArtifactError, match="one number of rows"):
        write_graph(fixed, tmp_path / "item.onnx")


def test_any_number_of_threads_gives_the_same_bytes(bundle: Bundle) -> None:
    one, two = Scorer(bundle), Scorer(bundle, threads=2)
    one._tile = two._tile = 7
    state = Users(bundle, one).state("121")
    items = np.arange(50, dtype=np.int32) % one.n_items
    np.testing.assert_array_equal(one.logits(state, items), two.logits(state, items))
