"""Each tracker reads back, by its own library, what it was given; MLflow from a real server."""

import json
import os
import socket
import struct
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from prerank.errors import PrerankWarning
from prerank.tracking.config import TrackingConfig
from prerank.tracking.open import open_tracking
from prerank.tracking.tracker import End, Tracking

SETTINGS = {"name": "r", "train": {"epochs": 3}, "methods": {"gpl+neg": {"anchors": "llm"}}}
NAMES = ("test/hr@10/unexposed/tail", "train/gpl+neg/seed0/loss_al")


def opened(folder: Path, **config: object) -> Tracking:
    return open_tracking(TrackingConfig.parse(config), "r", folder, SETTINGS)


def write(tracking: Tracking) -> None:
    for step in (0, 1):
        tracking.log(dict.fromkeys(NAMES, 0.5 + step), step)
    tracking.close()


def test_tensorboard(tmp_path: Path) -> None:
    loading = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    write(opened(tmp_path, to=["tensorboard"]))
    read = loading.EventAccumulator(str(tmp_path / "tracking" / "tensorboard")).Reload()
    for name in NAMES:
        assert [(e.step, e.value) for e in read.Scalars(name)] == [(0, 0.5), (1, 1.5)]
    (text,) = read.Tensors("recipe/text_summary")
    assert b"methods.gpl+neg.anchors = llm" in text.tensor_proto.string_val[0]


def test_tensorboard_goes_on_where_it_was(tmp_path: Path) -> None:
    loading = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    opened(tmp_path).log({"x": 1.0})  # before there was any
    for _ in range(2):
        tracking = opened(tmp_path, to=["tensorboard"])
        tracking.log({"x": 1.0})
        tracking.close()
    read = loading.EventAccumulator(str(tmp_path / "tracking" / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in read.Scalars("x")] == [(0, 1.0)]


def level_records(log: bytes) -> Iterator[bytes]:
    """Yield the records of a file in LevelDB's log format, which W&B's offline files are."""
    place, whole, block = 7, b"", 32768  # W&B puts a header of 7 bytes before the first record
    while place + 7 <= len(log):
        size, kind = struct.unpack_from("<HB", log, place + 4)
        whole += log[place + 7 : place + 7 + size]
        place += 7 + size
        if block - place % block < 7:  # no record begins in a block's last bytes
            place += block - place % block
        if kind in (1, 4):  # whole, or the last part
            yield whole
            whole = b""


def test_wandb_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_API_KEY", "")
    write(opened(tmp_path, to=["wandb"]))
    rows, config = [], {}
    for record in wandb_records(tmp_path):
        if record.HasField("exit"):
            assert record.exit.exit_code == 0
        if record.HasField("history"):
            rows.append(
                {
                    "/".join(i.nested_key) or i.key: json.loads(i.value_json)
                    for i in record.history.item
                }
            )
        if record.HasField("run"):
            config |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
    assert [[row[key] for key in ("step", *NAMES)] for row in rows] == [
        [0, 0.5, 0.5],
        [1, 1.5, 1.5],
    ]
    assert config["train.epochs"] == "3"


def wandb_records(folder: Path) -> list[Any]:
    """Return the records of the newest W&B run in a run's folder, the last one its exit."""
    from wandb.proto import wandb_internal_pb2

    file = max((folder / "tracking" / "wandb").glob("offline-run-*/run-*.wandb"))
    # W&B's own process answers `finish` and flushes the file in no fixed order.
    until, records = time.monotonic() + 30, list[Any]()
    while not any(one.HasField("exit") for one in records) and time.monotonic() < until:
        time.sleep(0.05)
        log = level_records(file.read_bytes())
        records = [wandb_internal_pb2.Record.FromString(data) for data in log]
    return records


def test_a_failed_run_is_a_failed_one_of_wandb(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_API_KEY", "")
    opened(tmp_path).log({"x": 1.0})  # an earlier start's: each start is a W&B run of its own
    tracking = opened(tmp_path, to=["wandb"])
    tracking.log({"x": 1.0})
    tracking.close("failed")
    records = wandb_records(tmp_path)
    assert [one.exit.exit_code for one in records if one.HasField("exit")] == [1]
    assert any(one.HasField("history") for one in records)


# ---- MLflow ------------------------------------------------------------------------------------


def mlflow_command() -> str:
    """Return the executable of a whole MLflow; the extra brings its client only."""
    given = os.environ.get("PRERANK_TEST_MLFLOW", "")
    if given:
        return given
    try:
        metadata.version("mlflow")
    except metadata.PackageNotFoundError:
        pytest.skip("no MLflow server: pip install mlflow, or PRERANK_TEST_MLFLOW=/its/executable")
    return str(Path(sys.executable).with_name("mlflow"))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("mlflow")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [mlflow_command(), "server", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--backend-store-uri", f"sqlite:///{folder / 'store.db'}", "--workers", "1"]
    command += ["--artifacts-destination", str(folder / "artifacts")]
    quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | quiet
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True
        )
    try:
        wait_for(f"http://127.0.0.1:{port}/health", process, folder / "log")
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, 15)
        process.wait(30)


def wait_for(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(600):
        if process.poll() is not None:
            raise AssertionError(log.read_text()[-2000:])
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            time.sleep(0.2)
    raise AssertionError(f"the server does not answer: {log.read_text()[-2000:]}")


def test_mlflow_server(server: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tracking = pytest.importorskip("mlflow.tracking")
    client = tracking.MlflowClient(tracking_uri=server)
    given = {"to": ["mlflow"], "mlflow_uri": server, "experiment": "one"}
    write(opened(tmp_path, **given))
    many = {f"test/m{k}": float(k) for k in range(1001)}  # more than a request takes
    again = opened(tmp_path, **given)  # goes on in the same MLflow run
    again.log(many, 0)
    again.close()

    number = client.get_experiment_by_name("one").experiment_id
    (run,) = client.search_runs([number])
    assert run.info.status == "FINISHED" and run.info.run_name == "r"
    assert run.data.params["methods.gpl_neg.anchors"] == "llm"
    history = client.get_metric_history(run.info.run_id, "test/hr_10/unexposed/tail")
    assert [(m.step, m.value) for m in history] == [(0, 0.5), (1, 1.5)]
    assert run.data.metrics.items() >= many.items()

    other = open_tracking(TrackingConfig.parse(given), "r", tmp_path, {"name": "other"})
    other.log({"x": 1.0})  # another recipe in the same folder: a run of its own
    other.close()
    assert len(client.search_runs([number])) == 2
    assert capsys.readouterr().out == ""  # a command's stdout may be read as JSON


def test_a_new_mlflow_run_lacks_no_figure_and_says_how_it_ended(
    server: str, tmp_path: Path
) -> None:
    tracking = pytest.importorskip("mlflow.tracking")
    client = tracking.MlflowClient(tracking_uri=server)
    given = TrackingConfig.parse({"to": ["mlflow"], "mlflow_uri": server, "experiment": "two"})
    ends: list[End] = ["failed", "killed", "finished"]
    for epochs, end in enumerate(ends):
        for _ in range(2):  # the second goes on with the run of the first
            one = open_tracking(given, "r", tmp_path, {"epochs": epochs})
            one.log({"same": 0.5, "other": float(epochs)})
            one.close(end)
    number = client.get_experiment_by_name("two").experiment_id
    runs = {run.data.params["epochs"]: run for run in client.search_runs([number])}
    for epochs, end in enumerate(ends):
        run = runs[str(epochs)]
        assert run.info.status == end.upper()
        assert run.data.metrics == {"same": 0.5, "other": float(epochs)}
        assert len(client.get_metric_history(run.info.run_id, "same")) == 1
    assert len(runs) == 3


def test_a_dead_server_costs_one_warning(tmp_path: Path) -> None:
    pytest.importorskip("mlflow")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, never listening: every connection is refused
        uri = f"http://127.0.0.1:{taken.getsockname()[1]}"
        tracking = opened(tmp_path, to=["mlflow"], mlflow_uri=uri)
        with pytest.warns(PrerankWarning, match="mlflow failed") as warned:
            write(tracking)
    assert len(warned) == 1
    lines = (tmp_path / "tracking" / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == 4
