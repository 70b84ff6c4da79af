"""Stages on a Ray cluster: shards as Ray Data pipelines, training as Ray Train.

The plan, the fingerprints and the artifacts are those of `prerank.pipeline`, and so is the driver:
it cuts work into tasks, writes each finished shard to the folder of work, and assembles. Workers
see neither its files nor its memory; what they need travels through the object store, which spills
to disk.

A lost worker or node costs the tasks it was at: the driver asks for those again, on what is left
of the cluster. Training goes on from the checkpoint of the last epoch, with as many processes as
there is room for.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import socket
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load, save

from prerank import errors, pipeline, progress, store
from prerank.artifacts import Dataset, ItemEmbeddings, PseudoLabels, SemanticIds
from prerank.errors import ArtifactError, ConfigError, MissingExtraError, PrerankError, first_line
from prerank.pipeline import Engine, Run
from prerank.plan import Step
from prerank.progress import log
from prerank.spread import Arrays, Ready

MOST_FAILURES = 5
"""Passes in a row that finish no task, and restarts of one training, before we give up."""
PROBLEM = "problem"
"""Name of an error among the figures that a training reports."""
PORT = 6379
"""Of a cluster's head, where the address names none: Ray's own default."""
ANSWER_S = 10.0
"""How long the head may take to answer at all."""


@contextmanager
def cluster(address: str = "") -> Iterator[Engine]:
    """Connect to a Ray cluster, or start one on this machine, and yield the engine on it.

    Args:
        address: empty: a cluster of this machine's cores and GPUs; ``auto``: the one that this
            machine belongs to; else HOST or HOST:PORT of its head.

    Raises:
        MissingExtraError: Ray is not installed.
        ConfigError: no cluster there.
    """
    try:
        import ray
        import ray.data
        import ray.train
    except ImportError as error:
        raise MissingExtraError(
            "Ray is not installed", got=str(error), hint='pip install "prerank[ray]"'
        ) from None
    ours = not ray.is_initialized()
    if ours:
        own: dict[str, Any] = {} if address else {"include_dashboard": False}
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a cluster of ours tells nobody
        try:
            place = _reached(address)
            ray.init(place, log_to_driver=False, logging_level="error", **own)
        except (OSError, RuntimeError, ValueError) as error:
            raise ConfigError(
                "there is no Ray cluster",
                where=f"--ray-address {address}".strip(),
                must="auto on a node of a running cluster, HOST or HOST:PORT of its head, or empty",
                got=first_line(error),
            ) from None
    # A lost worker is one line of ours, and no traceback a task of Ray's.
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    settings = ray.data.DataContext.get_current()
    settings.enable_progress_bars = False
    settings.max_errored_blocks = -1  # what a lost worker had in hand is asked for again
    try:
        yield Engine(spread, {"finetune": finetune, "train": train})
    finally:
        if ours:
            ray.shutdown()


def _reached(address: str) -> str:
    """Return the address as Ray reads it; raise OSError where nobody listens.

    Ray itself would knock there for minutes.
    """
    if address in ("", "auto"):
        return address or "local"
    host, _, port = address.rpartition(":") if ":" in address else (address, "", PORT)
    with socket.create_connection((host, int(port)), ANSWER_S):
        return f"{host}:{port}"


# ---- shards ----------------------------------------------------------------------------------


class Worker:
    """An actor: gets ready at its first task, then answers the number of a task with bytes."""

    def __init__(self, shared: Sequence[Any]) -> None:
        progress.silence()
        self._shared = shared
        self._work: Callable[[Arrays], Arrays] | None = None

    def __call__(self, rows: Mapping[str, Any]) -> dict[str, list[Any]]:
        """Do the tasks of a batch; an error is an answer too, so that it is not tried again."""
        numbers = [int(number) for number in rows["task"]]
        answers = [self._answer(number) for number in numbers]
        content, problems = zip(*answers, strict=True)
        return {"task": numbers, "content": list(content), "problem": list(problems)}

    def _answer(self, number: int) -> tuple[bytes, str]:
        import ray

        ready, *tasks = self._shared
        try:
            if self._work is None:
                self._work = ray.get(ready)()
            return _packed(self._work(ray.get(tasks[number]))), ""
        except ray.exceptions.RayError:
            raise  # something was lost on the way: no fault of the task
        except Exception as error:
            return b"", _told(error)


def _packed(arrays: Arrays) -> bytes:
    content: bytes = save({name: np.ascontiguousarray(values) for name, values in arrays.items()})
    return content


def spread(ready: Ready, tasks: Sequence[Arrays]) -> Iterator[tuple[int, Arrays]]:
    """Compute tasks in a pool of actors; see `prerank.spread`.

    Raises:
        ArtifactError: workers die again and again, or a task fails.
    """
    import ray

    left, idle = set(range(len(tasks))), 0
    shared = [ray.put(what) for what in (ready, *map(dict, tasks))] if tasks else []
    while left:
        before = len(left)
        try:
            for number, found in _one_pass(shared, sorted(left)):
                left.discard(number)
                yield number, found
        except ray.exceptions.RayError as error:
            log(f"ray: {type(error).__name__}; {len(left)} of {len(tasks)} tasks are left")
        idle = idle + 1 if len(left) == before else 0
        if idle >= MOST_FAILURES:
            raise ArtifactError(
                "workers of the cluster die again and again",
                got=f"{len(left)} of {len(tasks)} tasks left after {idle} tries without one done",
                hint="look at `ray status` and the memory of the nodes; finished shards are kept",
            )


def _one_pass(shared: Sequence[Any], numbers: Sequence[int]) -> Iterator[tuple[int, Arrays]]:
    """Yield the results of the tasks that end well; a worker that dies leaves some out."""
    import ray.data
    from ray.util.annotations import RayDeprecationWarning

    size, gpus = _pool(len(numbers))
    rows = [{"task": number} for number in numbers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RayDeprecationWarning)  # of max_restarts, see below
        done = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
            Worker,
            fn_constructor_kwargs={"shared": shared},
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=size, initial_size=size),
            num_cpus=1,
            num_gpus=gpus,
            # Ray would wait for room for ever to raise an actor whose node is gone; `spread` asks
            # for what is missing on what is left.
            max_restarts=0,
        )
    for row in done.iter_rows():
        if row["problem"]:
            raise _heard(row["problem"])
        yield int(row["task"]), load(row["content"])


def _told(error: Exception) -> str:
    """Return an error as text; one of ours can be raised again as it was."""
    if isinstance(error, PrerankError):
        return json.dumps({"kind": type(error).__name__, **vars(error)})
    got = f"{type(error).__name__}: {first_line(error)}"
    return json.dumps({"kind": "ArtifactError", "what": "work failed on the cluster", "got": got})


def _heard(told: str) -> PrerankError:
    fields = json.loads(told)
    kind: type[PrerankError] = getattr(errors, fields.pop("kind"))
    return kind(fields.pop("what"), **fields)


def _pool(n_tasks: int) -> tuple[int, float]:
    """Return how many actors, and the GPUs of each: one a GPU if the cluster has any."""
    import ray

    there = ray.cluster_resources()
    gpus = int(there.get("GPU", 0))
    most = gpus or max(1, int(there.get("CPU", 1)))
    return max(1, min(n_tasks, most)), 1.0 if gpus else 0.0


# ---- training --------------------------------------------------------------------------------


def finetune(run: Run, step: Step, out: Path) -> None:
    """Histories -> AnchorModel, by as many processes as the recipe has workers."""
    if step.config["reuse"]:
        pipeline.finetune(run, step, out)
        return
    store.require_whole(step.config["checkpoint"])
    parents = {"dataset": "dataset", "semantic_ids": run.parents(step, "tokenize")[0]}
    _fit(run, step, out, _finetune_loop, parents, dict(step.config))


def train(run: Run, step: Step, out: Path) -> None:
    """Clicks and pseudo-labels -> PreRanker, by as many processes as the recipe has workers."""
    from prerank.ranking.config import TrainConfig, earned_weight
    from prerank.ranking.pre_ranker import PreRanker

    parents = {"dataset": "dataset", "embeddings": run.parents(step, "encode")[0]}
    for name, stage in (("labels", "label"), ("teacher", "teach")):
        found = run.parents(step, stage)
        if found:
            parents[name] = found[0]
    config = earned_weight(TrainConfig.parse(step.config), run.labels(step))
    _fit(run, step, out, _train_loop, parents, config.model_dump(mode="json"))
    ranker = PreRanker.load(out, run.dataset, run.embeddings(step))
    pipeline.save_scores(run, ranker, out)


def _fit(
    run: Run,
    step: Step,
    out: Path,
    loop: Callable[[dict[str, Any]], None],
    parents: Mapping[str, str],
    config: dict[str, Any],
) -> None:
    """Train on the cluster; the last checkpoint holds what ``loop`` made, copied to ``out``.

    Checkpoints lie in the step's folder of work, or at the run's URI: all nodes must reach it.
    """
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    shipped = {name: _files(run.path(key)) for name, key in parents.items()}
    size, gpus = _pool(run.recipe.workers)
    place, files = _checkpoints(run, step)
    trainer = TorchTrainer(
        partial(_loop, loop),
        train_loop_config={"shipped": shipped, "config": config, "seed": step.seed},
        scaling_config=ScalingConfig(
            num_workers=(1, size) if size > 1 else 1,  # fewer, where a node is gone
            use_gpu=bool(gpus),
        ),
        run_config=RunConfig(
            name="ray",
            storage_path=place,
            storage_filesystem=files,
            failure_config=FailureConfig(max_failures=MOST_FAILURES),
            checkpoint_config=CheckpointConfig(num_to_keep=1),
        ),
    )
    try:
        result = trainer.fit()
    except Exception as error:  # Ray Train has no one class for what its workers raise
        raise ArtifactError(
            "training failed on the cluster", where=step.key, got=str(error)[-500:]
        ) from error
    if PROBLEM in (result.metrics or {}):
        raise _heard(result.metrics[PROBLEM])
    if result.checkpoint is None:
        raise ArtifactError("training left no checkpoint on the cluster", where=step.key)
    with result.checkpoint.as_directory() as folder:
        shutil.copytree(Path(folder) / "made", out, dirs_exist_ok=True)


def _checkpoints(run: Run, step: Step) -> tuple[str, Any]:
    """Return where Ray Train keeps checkpoints: a path, and its file system if not this one."""
    work = run.store.work(step.key, step.fingerprint)
    if not run.recipe.uri:
        return str(work.resolve()), None
    from fsspec.core import url_to_fs
    from pyarrow.fs import FSSpecHandler, PyFileSystem

    files, path = url_to_fs(f"{run.recipe.uri}/.work/{work.name}")
    return path, PyFileSystem(FSSpecHandler(files))


def _files(folder: Path) -> dict[str, Any]:
    """Return name -> reference to the bytes of each file below a folder: so artifacts travel."""
    import ray

    found = sorted(p for p in folder.rglob("*") if p.is_file())
    return {p.relative_to(folder).as_posix(): ray.put(p.read_bytes()) for p in found}


@contextmanager
def _unpacked(config: Mapping[str, Any]) -> Iterator[tuple[Path, Path]]:
    """Yield a folder with the artifacts that were shipped, and one with the last checkpoint."""
    import ray
    from ray import train as ray_train

    if ray_train.get_context().get_world_rank():
        progress.silence()
    with tempfile.TemporaryDirectory() as temporary:
        shipped, state = Path(temporary) / "shipped", Path(temporary) / "state"
        (state / "work").mkdir(parents=True)
        for key, files in config["shipped"].items():
            for name, content in files.items():
                file = shipped / key / name
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(ray.get(content))
        last = ray_train.get_checkpoint()
        if last is not None:
            with last.as_directory() as folder:
                shutil.copytree(folder, state, dirs_exist_ok=True)
        yield shipped, state


def _loop(loop: Callable[[dict[str, Any]], None], config: dict[str, Any]) -> None:
    """Run ``loop``; an error of ours is reported, so that it is not tried again."""
    from ray import train as ray_train

    try:
        loop(config)
    except PrerankError as error:
        ray_train.report({PROBLEM: _told(error)})


def _report(state: Path, record: Mapping[str, float | None]) -> None:
    """Tell Ray that an epoch is over; the first process hands in the checkpoint."""
    from ray import train as ray_train

    first = ray_train.get_context().get_world_rank() == 0
    checkpoint = ray_train.Checkpoint.from_directory(str(state)) if first else None
    ray_train.report(dict(record), checkpoint=checkpoint)


def _finetune_loop(config: dict[str, Any]) -> None:
    from prerank.anchors.config import FinetuneConfig
    from prerank.anchors.finetune import finetune as make

    with _unpacked(config) as (shipped, state):
        dataset = store.load(shipped / "dataset", Dataset)
        ids = store.load(shipped / "semantic_ids", SemanticIds)
        settings, made = FinetuneConfig.parse(config["config"]), state / "made"
        made.mkdir(exist_ok=True)

        def on_epoch(epoch: int, figures: Mapping[str, float]) -> None:
            _report(state, {"epoch": epoch, **figures})

        report = make(dataset, ids, settings, config["seed"], made, state / "work", on_epoch)
        _report(state, {"epoch": len(report.train_loss)})


def _train_loop(config: dict[str, Any]) -> None:
    from prerank.ranking.config import TrainConfig
    from prerank.ranking.pre_ranker import PreRanker
    from prerank.ranking.train import train as make

    with _unpacked(config) as (shipped, state):
        dataset = store.load(shipped / "dataset", Dataset)
        space = store.load(shipped / "embeddings", ItemEmbeddings)
        labels, teacher = None, None
        if (shipped / "labels").is_dir():
            labels = store.load(shipped / "labels", PseudoLabels)
        if (shipped / "teacher").is_dir():
            teacher = PreRanker.load(shipped / "teacher", dataset, space)
        settings, work = TrainConfig.parse(config["config"]), state / "work"

        def on_epoch(record: Mapping[str, float | None]) -> None:
            _report(state, record)

        ranker = make(dataset, space, labels, settings, config["seed"], teacher, on_epoch, work)
        made = state / "made"
        made.mkdir(exist_ok=True)
        ranker.save(made)
        _report(state, {"epoch": settings.epochs})
