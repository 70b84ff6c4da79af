"""A real Ray cluster of two nodes on this machine: the same bytes as in this process, whoever dies.

One cluster serves all tests but the first; a node that a test kills is replaced. Every test has a
time limit, so that a cluster that hangs is a failure and no wait.
"""

import os
import shutil
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
import torch
from safetensors.numpy import load_file

pytest.importorskip("ray", reason="needs Ray: pip install 'prerank[ray]'")

import ray
from ray.cluster_utils import Cluster
from transformers import BertConfig, BertModel, BertTokenizer

from prerank import cli
from prerank.engines import on_ray
from prerank.errors import ConfigError, DataError
from prerank.labels import matching
from prerank.pipeline import Engine, Run, run_recipe
from prerank.recipe import STAGES, Recipe, parse_recipe
from prerank.semantic_ids import tokenize
from prerank.spread import Arrays, Ready, here
from prerank.store import Store

pytestmark = pytest.mark.timeout(1200)
SMALL = 80 << 20
PATIENT = {  # A busy machine is no dead one; a node that is killed is seen by its closed socket.
    "RAY_raylet_start_wait_time_s": "300",
    "RAY_worker_register_timeout_seconds": "300",
    "RAY_health_check_timeout_ms": "60000",
    "RAY_health_check_period_ms": "1000",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "240",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_worker_niceness": "0",  # 15 by default: on a busy machine they would hardly run
    "RAY_USAGE_STATS_ENABLED": "0",
    "OMP_NUM_THREADS": "1",
}
VALUES: dict[str, Any] = {
    "seeds": [0],
    "prepare": {"world": {"n_users": 60, "n_items": 120}},
    "encode": {"encoder": "text-model", "shard_items": 60},
    "tokenize": {"codebook_size": 8},
    "finetune": {"hidden_size": 8, "n_layers": 1, "n_heads": 1, "epochs": 2},
    "generate": {"n_anchors": 4, "beam_width": 4, "shard_users": 10},
    "train": {"epochs": 2, "threads": 1},
    "methods": {"gpl": {"anchors": "llm"}},
}
SPREAD = ("embeddings", "semantic_ids", "anchors/llm", "labels/gpl")
RANKER = "rankers/gpl/seed0"
BEFORE_TRAIN = ("dataset", "embeddings", "semantic_ids", "anchor_model", "anchors", "labels")


@pytest.fixture(autouse=True, scope="module")
def _patient() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        # Workers import the functions that these tests spread.
        paths = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
        for name, value in {**PATIENT, "PYTHONPATH": os.pathsep.join(paths)}.items():
            patch.setenv(name, value)
        yield


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    made = Cluster()
    try:
        made.add_node(num_cpus=1, object_store_memory=SMALL, include_dashboard=False)
        made.add_node(num_cpus=1, object_store_memory=SMALL)
        ray.init(made.address, log_to_driver=False, logging_level="error")
        yield made
    finally:
        ray.shutdown()
        made.shutdown()


@pytest.fixture
def engine(cluster: Cluster) -> Iterator[Engine]:
    """Yield the engine on a cluster whose nodes are all there."""
    if len(cluster.list_all_nodes()) < 2:
        cluster.add_node(num_cpus=1, object_store_memory=SMALL)
    with on_ray.cluster() as found:
        yield found


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """Return a recipe that was run in this process, up to train."""
    model = tmp_path_factory.mktemp("bert")
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]  # and pieces: any word
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{c}" for c in letters)]
    (model / "vocab.txt").write_text("\n".join(words))
    BertTokenizer(str(model / "vocab.txt"), model_max_length=32).save_pretrained(model)
    shape = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    torch.manual_seed(0)
    bert = BertConfig(vocab_size=len(words), intermediate_size=8, **shape)
    BertModel(bert).save_pretrained(model)
    encode = {**VALUES["encode"], "model": str(model)}
    recipe = parse_recipe({**VALUES, "encode": encode, "out": str(model.parent / "local")})
    run_recipe(recipe, STAGES[: STAGES.index("train") + 1])
    return recipe


def hashes(recipe: Recipe, keys: tuple[str, ...]) -> dict[str, Any]:
    found = {key: Store(recipe.folder).manifest(key) for key in keys}
    assert all(found.values())
    return {key: dict(one.files) for key, one in found.items() if one is not None}


def weights(recipe: Recipe, key: str) -> dict[str, Any]:
    folder = Run(recipe).path(key)
    found: dict[str, Any] = {}
    for file in sorted(folder.glob("*.safetensors")):
        found |= {f"{file.name}:{n}": v for n, v in load_file(file).items()}
    return found


def again(local: Recipe, out: Path, keep: tuple[str, ...], **changes: Any) -> Recipe:
    """Return the same run elsewhere, with some artifacts of the local one."""
    recipe = parse_recipe({**local.model_dump(mode="json"), **changes, "out": str(out)})
    for key in keep:
        shutil.copytree(local.folder / key, recipe.folder / key)
    return recipe


# ---- who dies --------------------------------------------------------------------------------


def first(place: str) -> bool:
    """Say whether nobody has asked for ``place`` before."""
    try:
        Path(place).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def mortal(ready: Ready, place: str) -> Callable[[Arrays], Arrays]:
    """Work as ``ready`` does, but the process of the second task of all is killed."""
    work = ready()

    def do(task: Arrays) -> Arrays:
        if not first(f"{place}-one") and first(f"{place}-two"):
            die()
        return work(task)

    return do


def dying_loop(name: str, node: str, place: str, config: Any) -> None:
    """Train as the loop ``name`` does; after an epoch ``node`` dies, the last process if empty."""
    from ray import train

    from prerank.engines import on_ray  # the worker's own, which nobody has patched

    report = on_ray._report

    def dying_report(state: Path, record: Any) -> None:
        report(state, record)
        context = train.get_context()
        if node and ray.get_runtime_context().get_node_id() == node and first(place):
            os.kill(os.getppid(), signal.SIGKILL)  # the parent of a worker is its node's raylet
        if not node and context.get_world_rank() == context.get_world_size() - 1 and first(place):
            die()

    on_ray._report = dying_report
    try:
        getattr(on_ray, name)(config)
    finally:
        on_ray._report = report


def away(cluster: Cluster) -> Any:
    """Return the node that is not the head."""
    return next(node for node in cluster.list_all_nodes() if node is not cluster.head_node)


# ---- the same result -------------------------------------------------------------------------


def test_a_run_on_a_cluster_of_this_machine_writes_the_bytes_of_one_in_this_process(
    local: Recipe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """By the command line, from encode to the report."""
    assert not ray.is_initialized()  # else it would be that cluster
    monkeypatch.setattr(tokenize, "ROWS", 50)
    monkeypatch.setattr(matching, "PAIRS_AT_ONCE", 500)
    counted: list[int] = []
    spread = on_ray.spread

    def counting(ready: Ready, tasks: Any) -> Iterator[tuple[int, Arrays]]:
        counted.append(len(tasks))
        return spread(ready, tasks)

    monkeypatch.setattr(on_ray, "spread", counting)
    recipe = again(local, tmp_path / "runs", ("dataset", "anchor_model"))
    file = tmp_path / "recipe.toml"
    file.write_text(tomli_w.dumps(recipe.model_dump(mode="json", exclude_none=True)))
    monkeypatch.setattr(sys, "argv", ["prerank", "run", str(file), "--engine", "ray"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 0 and "report" in capsys.readouterr().out
    assert not ray.is_initialized()
    assert counted[:3] == [2, 3, 6]  # shards of items to encode, items to tokenize, users
    assert len(counted) > 3 and min(counted) > 1  # pairs to match
    assert hashes(recipe, SPREAD) == hashes(local, SPREAD)
    ours, theirs = weights(recipe, RANKER), weights(local, RANKER)
    assert ours.keys() == theirs.keys() and ours
    for name, value in ours.items():
        np.testing.assert_array_equal(value, theirs[name], err_msg=name)


def test_a_worker_and_a_node_die_in_generation_and_the_bytes_are_the_same(
    cluster: Cluster,
    engine: Engine,
    local: Recipe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    passes: list[int] = []
    one_pass = on_ray._one_pass

    def counting(shared: Any, numbers: Any) -> Iterator[tuple[int, Arrays]]:
        passes.append(len(numbers))
        return one_pass(shared, numbers)

    def dying(ready: Ready, tasks: Any) -> Iterator[tuple[int, Arrays]]:
        for number, found in engine.spread(partial(mortal, ready, str(tmp_path / "died")), tasks):
            yield number, found
            if len(cluster.list_all_nodes()) > 1:
                cluster.remove_node(away(cluster), allow_graceful=False)

    monkeypatch.setattr(on_ray, "_one_pass", counting)
    keep = ("dataset", "embeddings", "semantic_ids", "anchor_model")
    recipe = again(local, tmp_path / "runs", keep)
    run_recipe(recipe, ("generate",), replace(engine, spread=dying))
    assert passes[0] == 6 and len(passes) > 1  # what was lost was asked for again
    assert (tmp_path / "died-two").exists() and len(cluster.list_all_nodes()) == 1
    assert hashes(recipe, ("anchors/llm",)) == hashes(local, ("anchors/llm",))


@pytest.mark.parametrize("stage", ["finetune", "train"])
def test_training_by_two_processes_outlives_one_and_a_node(
    stage: str,
    cluster: Cluster,
    engine: Engine,
    local: Recipe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In finetune a process dies, in train the node of one; each goes on after its epoch."""
    key = {"finetune": "anchor_model", "train": RANKER}[stage]
    recipe = again(local, tmp_path / "runs", BEFORE_TRAIN, workers=2)
    shutil.rmtree(recipe.folder / key, ignore_errors=True)
    name, died = f"_{stage}_loop", tmp_path / "died"
    node = away(cluster)
    of = node.node_id if stage == "train" else ""
    monkeypatch.setattr(on_ray, name, partial(dying_loop, name, of, str(died)))
    run_recipe(recipe, (stage,), engine)
    assert died.exists()
    if of:
        cluster.remove_node(node, allow_graceful=False)
    ours, theirs = weights(recipe, key), weights(local, key)
    assert ours.keys() == theirs.keys() and ours
    for name, value in ours.items():
        np.testing.assert_allclose(value, theirs[name], atol=2e-4, err_msg=name)


# ---- errors ----------------------------------------------------------------------------------


def refuse() -> Callable[[Arrays], Arrays]:
    raise ConfigError("no such model", got="x")


def test_a_task_that_fails_is_the_same_error_and_not_tried_again(engine: Engine) -> None:
    with pytest.raises(ConfigError, match="no such model"):
        list(engine.spread(refuse, [{"x": np.zeros(1)}]))


def test_errors_travel_as_text() -> None:
    error = on_ray._heard(on_ray._told(DataError("bad", where="x", must="y", got="z", hint="h")))
    assert type(error) is DataError
    assert str(error) == "bad\n  where: x\n  must be: y\n  got: z\n  hint: h"
    other = on_ray._heard(on_ray._told(ValueError("many\nlines")))
    assert other.exit_code == 3 and "ValueError: many" in str(other)


def test_here_gets_ready_only_if_there_is_work() -> None:
    assert list(here(refuse, [])) == []


@pytest.mark.parametrize("where", ["127.0.0.1", "127.0.0.1:x", "nobody.invalid", "ray://x"])
def test_an_address_where_nobody_listens_is_told_at_once(
    where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", None)  # it would knock for minutes
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # taken, and nobody listens
        monkeypatch.setattr(on_ray, "PORT", free.getsockname()[1])
        with pytest.raises(ConfigError, match="no Ray cluster"), on_ray.cluster(where):
            pass


def test_an_address_as_ray_reads_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (on_ray._reached(""), on_ray._reached("auto")) == ("local", "auto")
    with socket.create_server(("127.0.0.1", 0)) as head:
        port = head.getsockname()[1]
        assert on_ray._reached(f"127.0.0.1:{port}") == f"127.0.0.1:{port}"
        monkeypatch.setattr(on_ray, "PORT", port)
        assert on_ray._reached("127.0.0.1") == f"127.0.0.1:{port}"


@pytest.mark.parametrize(
    ("words", "named"),
    [(["--engine", "spark"], "spark"), (["--ray-address", "auto"], "--engine ray")],
)
def test_wrong_options_are_named(
    words: list[str],
    named: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["prerank", "run", str(tmp_path / "no.toml"), *words])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 2 and named in capsys.readouterr().err
