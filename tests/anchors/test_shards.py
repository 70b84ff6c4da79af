"""Many processes on one job, killed at will; full disks; bounded batches; bare catalogues."""

import ast
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from safetensors.torch import save as save_tensors

from prerank import progress
from prerank.anchors import beam, fused, trie
from prerank.anchors.config import FinetuneConfig, GenerateConfig
from prerank.anchors.finetune import finetune
from prerank.anchors.generate import generate, read_histories
from prerank.anchors.model import SidLM, save
from prerank.anchors.shards import Decoder, Job, claimed, main
from prerank.anchors.tokens import SidTokens
from prerank.errors import ArtifactError, ConfigError
from prerank.store import read_part, write_part

from .sid_world import dataset, folder, random_codes, random_lm, semantic_ids, unit_rows

SIZES = (4, 3, 4)
N_ITEMS = 20
IDS = semantic_ids(random_codes(N_ITEMS, SIZES), SIZES)
SPACE = unit_rows(N_ITEMS)
RNG = np.random.default_rng(0)
HISTORIES = [RNG.integers(N_ITEMS, size=n).tolist() for n in RNG.integers(1, 9, size=200)]
DATA = dataset(HISTORIES, N_ITEMS)
CONFIG = GenerateConfig(
    n_anchors=3, beam_width=6, batch_size=5, shard_users=5, max_history=4, device="cpu"
)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """As many threads here as in the processes that are started: then bytes are equal."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    save(SidLM(random_lm(SIZES), SidTokens(0, SIZES)), path)
    return path


def job(model: Path, config: GenerateConfig = CONFIG) -> Job:
    histories = read_histories(DATA, IDS, config, 0)
    users = np.argsort(histories.lengths, kind="stable")
    frequency = np.bincount(np.concatenate(HISTORIES), minlength=N_ITEMS)
    return Job(model, config.of_source("llm"), histories, users, IDS.codes, SIZES, frequency)


def shards(work: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(work.glob("anchors-*.safetensors"))}


def test_processes_killed_at_any_moment_leave_the_same_bytes(model: Path, tmp_path: Path) -> None:
    whole, work = folder(tmp_path / "whole"), folder(tmp_path / "work")
    expected = generate(DATA, IDS, SPACE, model, CONFIG, 0, whole)
    job(model).save(work)
    command = [sys.executable, "-m", "prerank.anchors.shards", str(work), "--threads", "1"]
    victim = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    while not shards(work) and victim.poll() is None:
        time.sleep(0.001)
    victim.kill()
    victim.wait()
    assert 0 < len(shards(work)) < len(shards(whole)) == 40
    found = generate(DATA, IDS, SPACE, model, CONFIG, 0, work, workers=2)
    assert shards(work) == shards(whole)
    for name in ("offsets", "codes", "point", "points", "logprob", "logprob_legal"):
        assert getattr(found, name).tobytes() == getattr(expected, name).tobytes()


def test_a_claimed_shard_is_left_to_its_owner(tmp_path: Path) -> None:
    with claimed(tmp_path / "x.claim") as first, claimed(tmp_path / "x.claim") as second:
        assert first and not second
    with claimed(tmp_path / "x.claim") as again:
        assert again


def test_a_helper_ends_with_the_process_that_started_it(model: Path, tmp_path: Path) -> None:
    job(model, CONFIG.model_copy(update={"shard_users": 200})).save(tmp_path)
    start = (
        "import os, subprocess, sys, time; c = [sys.executable, '-m', 'prerank.anchors.shards',"
        " sys.argv[1], '--quiet', '--parent', str(os.getpid())];"
        "print(subprocess.Popen(c).pid, flush=True); time.sleep(600)"
    )
    with claimed(tmp_path / "anchors-00000.claim"):  # the helper finds no work, and waits
        command = [sys.executable, "-c", start, str(tmp_path)]
        parent = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert parent.stdout
        helper = Path("/proc") / parent.stdout.readline().strip()
        assert b"--parent" in (helper / "cmdline").read_bytes()
        parent.kill()
        parent.communicate()
        deadline = time.monotonic() + 60
        while helper.exists() and "Z" not in (helper / "stat").read_text().split()[2]:
            assert time.monotonic() < deadline, "the helper works on for nobody"
            time.sleep(0.1)
    assert not shards(tmp_path)


def test_another_process_may_finish_the_job(model: Path, tmp_path: Path) -> None:
    small = CONFIG.model_copy(update={"shard_users": 70})
    job(model, small).save(tmp_path)
    main([str(tmp_path), "--device", "cpu"])
    assert len(shards(tmp_path)) == 3
    with pytest.raises(ArtifactError, match="no decoding job"):
        main([str(tmp_path / "nowhere")])


def test_damaged_and_foreign_shards_are_made_anew(model: Path, tmp_path: Path) -> None:
    large = CONFIG.model_copy(update={"shard_users": 70})
    work = folder(tmp_path / "work")
    expected = generate(DATA, IDS, SPACE, model, large, 0, work)
    whole = shards(work)
    file = work / "anchors-00001.safetensors"
    right = read_part(file)
    assert right is not None
    fewer = {n: v[:, :2] if v.ndim == 2 else v for n, v in right.items()}
    for foreign in (
        {n: v for n, v in right.items() if n != "leaf"},
        {n: v for n, v in right.items() if n != "user"},
        right | {"leaf": right["leaf"] + N_ITEMS},  # of a larger catalogue
        right | {"leaf": right["logprob"]},
        right | {"user": right["user"][::-1]},
        fewer,
    ):
        write_part(file, foreign)
        found = generate(DATA, IDS, SPACE, model, large, 0, work)
        assert shards(work) == whole and found.codes.tobytes() == expected.codes.tobytes()
    tensors = {"user": torch.zeros(3, dtype=torch.float8_e4m3fn)}  # no type of NumPy
    for content in (b"", b"\0" * 99, whole[file.name][:-9], save_tensors(tensors)):
        file.write_bytes(content)
        assert read_part(file) is None
        generate(DATA, IDS, SPACE, model, large, 0, work)
        assert shards(work) == whole


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"model": 1}', "5"])
def test_a_folder_of_something_else_is_no_job(model: Path, tmp_path: Path, text: str) -> None:
    job(model).save(tmp_path)
    (tmp_path / "job.json").write_text(text)
    with pytest.raises(ArtifactError, match="no decoding job"):
        Job.load(tmp_path)
    job(model).save(tmp_path)
    write_part(tmp_path / "job.safetensors", {"user": np.zeros(3, np.int64)})
    with pytest.raises(ArtifactError, match="KeyError"):
        Job.load(tmp_path)
    about = json.loads((tmp_path / "job.json").read_text())
    job(model).save(tmp_path)
    (tmp_path / "job.json").write_text(json.dumps(about | {"config": {"n_anchors": -1}}))
    with pytest.raises(ConfigError, match="n_anchors") as told:
        Job.load(tmp_path)
    assert told.value.where == f"{tmp_path / 'job.json'} -> n_anchors"


def test_a_full_disk_is_a_clear_error_and_costs_nothing_finished(
    model: Path, tmp_path: Path
) -> None:
    large = CONFIG.model_copy(update={"shard_users": 200, "batch_size": 64})
    expected = generate(DATA, IDS, SPACE, model, large, 0, folder(tmp_path / "whole"))
    work = folder(tmp_path / "work")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (9_000, hard))  # a shard of 200 users is larger
    try:
        with pytest.raises(ArtifactError, match="the disk is full"):
            generate(DATA, IDS, SPACE, model, large, 0, work)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not [file for file in work.iterdir() if file.suffix == ".part"]
    found = generate(DATA, IDS, SPACE, model, large, 0, work)
    assert found.logprob.tobytes() == expected.logprob.tobytes()


def test_batches_are_bounded_by_tokens(model: Path) -> None:
    bounded = CONFIG.model_copy(update={"tokens_at_once": 60, "batch_size": 64})
    decoder = Decoder.of(job(model, bounded))
    batches = decoder.batches(decoder.job.users)
    lengths = decoder.job.histories.lengths
    # Four items are 13 tokens, and two levels of six beams are 12 more.
    costs = [len(users) * (1 + 3 * lengths[users].max() + 12) for users in batches]
    assert max(costs) <= 60 and len(batches) < len(HISTORIES)
    assert np.array_equal(np.concatenate(batches), decoder.job.users)


def test_histories_by_interest_cluster(model: Path) -> None:
    spread = CONFIG.model_copy(update={"history_sample": "clusters"})
    histories = read_histories(DATA, IDS, spread, 0)
    first = IDS.codes[:, 0]
    for user, history in enumerate(HISTORIES):
        read = histories.item[histories.offsets[user] : histories.offsets[user + 1]]
        assert len(read) == min(4, len(history))
        assert len(set(first[read])) == min(4, len(set(first[history])))


def test_a_history_beyond_the_models_window_is_an_error(model: Path) -> None:
    lm = random_lm(SIZES)
    lm.config.max_position_embeddings = 12
    save(SidLM(lm, SidTokens(0, SIZES)), model / "short")
    with pytest.raises(ConfigError, match="longer than the model's window"):
        Decoder.of(job(model / "short"))


def test_the_estimate_names_hours_and_gigabytes(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    progress.silence(False)
    generate(DATA, IDS, SPACE, model, CONFIG, 0, tmp_path)
    said = capsys.readouterr().err
    assert "200 users in 40 of 40 shards" in said
    assert " users/s, " in said and " h; 0.000 GB of shards, then 0.000 GB of anchors" in said


@pytest.mark.parametrize("n_items", [1, 5])
def test_a_catalogue_of_one_semantic_id_goes_through(tmp_path: Path, n_items: int) -> None:
    ids = semantic_ids(np.zeros((n_items, 2), np.int32), (1, 2))
    data = dataset([[0], [0, n_items - 1, 0], []], n_items)
    small = FinetuneConfig(
        hidden_size=16, intermediate_size=32, n_layers=1, n_heads=2, epochs=1, device="cpu"
    )
    out = folder(tmp_path / "out")
    finetune(data, ids, small, 0, out, folder(tmp_path / "work-1"))
    anchors = generate(data, ids, unit_rows(n_items), out, CONFIG, 0, folder(tmp_path / "work-2"))
    assert np.diff(anchors.offsets).tolist() == [1, 1, 0]
    assert anchors.logprob_legal.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("module", [beam, fused, trie], ids=lambda module: module.__name__)
def test_the_search_names_torch_transformers_and_numpy_only(module: ModuleType) -> None:
    named = set()
    for node in ast.walk(ast.parse(Path(str(module.__file__)).read_text())):
        if isinstance(node, ast.Import):
            named |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            named.add(node.module or "")
    own = {f"prerank.anchors.{name}" for name in ("beam", "fused", "trie")}
    roots = {name.partition(".")[0] for name in named - own}
    assert roots - sys.stdlib_module_names <= {"torch", "transformers", "numpy"}


def test_the_search_imports_torch_transformers_and_numpy_only() -> None:
    script = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        banned = ("polars", "pydantic", "typer", "safetensors.numpy", "prerank.artifacts",
                  "prerank.store", "prerank.data", "prerank.config", "prerank.progress")
        if name in banned:
            raise ImportError(f"{name} is not for the search")
sys.meta_path.insert(0, Refuse())
from prerank.anchors.beam import tree_beam_search
from prerank.anchors.trie import Trie, level_tables
mine = sorted(name for name in sys.modules if name.startswith("prerank"))
print(" ".join(mine))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=os.environ, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [
        "prerank",
        "prerank.anchors",
        "prerank.anchors.beam",
        "prerank.anchors.fused",
        "prerank.anchors.trie",
    ]
