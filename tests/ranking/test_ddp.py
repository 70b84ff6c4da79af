"""Two processes by torchrun against one."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from prerank import store
from prerank.ranking import ddp
from prerank.ranking.pre_ranker import PreRanker
from prerank.ranking.train import train
from ranking.worlds import make_config, make_content, make_labels, make_world


def torchrun(*what: str) -> subprocess.CompletedProcess[str]:
    """Run a program with two processes."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    tests = str(Path(__file__).parents[1])
    paths = os.pathsep.join([tests, os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    return subprocess.run(
        [*launch, "--standalone", *what],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def trained(folder: Path) -> subprocess.CompletedProcess[str]:
    """Train with two processes on the artifacts in ``folder``."""
    named = [f"--{name}={folder / name}" for name in ("dataset", "embeddings", "labels")]
    given = [*named, f"--config={folder / 'train.json'}", f"--out={folder / 'out'}"]
    return torchrun("-m", "prerank.ranking.ddp", *given)


@pytest.mark.parametrize("objective", ["ukd", "dr"])
def test_what_is_trained_beside_the_model_stays_the_same_in_all_processes(objective: str) -> None:
    run = torchrun(str(Path(__file__).with_name("drift.py")), objective)
    assert run.returncode == 0, run.stdout + run.stderr[-2000:]


def test_two_processes_follow_the_loss_curve_of_one(tmp_path: Path) -> None:
    """Towers train densely and ids by rows, ids are dropped, the batch of 129 does not divide."""
    more = {"batch_size": 129, "epochs": 3, "id_dropout": 0.3, "row_updates": "always"}
    config = make_config().model_copy(update=more)
    data, content = make_world("none"), make_content()
    earned = {"pseudo_weight_factor": 0.3}  # of lambda, as the label stage found
    labels = replace(make_labels(0.2, np.resize([0.5, 2.0], 600)), fit=earned)
    for name, artifact in (("dataset", data), ("embeddings", content), ("labels", labels)):
        (tmp_path / name).mkdir()
        store.save(tmp_path / name, artifact)
    (tmp_path / "train.json").write_text(config.model_dump_json())
    run = trained(tmp_path)
    assert run.returncode == 0, run.stderr[-2000:]
    two = PreRanker.load(tmp_path / "out", data, content)
    weaker = config.model_copy(update={"pseudo_weight": 0.3 * config.pseudo_weight})
    one = train(data, content, labels, weaker, seed=0)
    for name in ("loss_al", "loss_pl", "auc"):
        curves = [[record[name] for record in ranker.history] for ranker in (one, two)]
        np.testing.assert_allclose(curves[1], curves[0], rtol=2e-4)
    assert len(one.history) == len(two.history) == 3
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == sorted(
        ["dataset", "embeddings", "labels", "out"]
    )
    np.testing.assert_allclose(two.score_pools(data.pools), one.score_pools(data.pools), atol=5e-3)


def test_a_wrong_config_is_named(tmp_path: Path, monkeypatch, capsys) -> None:  # type: ignore[no-untyped-def]
    config = tmp_path / "train.json"
    config.write_text(json.dumps({"learning_rat": 1}))
    given = ["--dataset=d", "--embeddings=e", "--out=o", f"--config={config}"]
    monkeypatch.setattr(sys, "argv", ["ddp", *given])
    with pytest.raises(SystemExit) as stopped:
        ddp.main()
    assert stopped.value.code == 2
    assert "learning_rat" in capsys.readouterr().err


def test_a_folder_that_holds_something_else_is_kept(tmp_path: Path, monkeypatch, capsys) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "train.json").write_text("{}")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    given = ["--dataset=d", "--embeddings=e", f"--config={tmp_path / 'train.json'}"]
    monkeypatch.setattr(sys, "argv", ["ddp", *given, f"--out={tmp_path / 'mine'}"])
    with pytest.raises(SystemExit) as stopped:
        ddp.main()
    assert stopped.value.code == 2
    assert "thesis.txt" in capsys.readouterr().err
    assert (tmp_path / "mine" / "thesis.txt").exists()
