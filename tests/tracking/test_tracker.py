"""Figures reach every tracker; one that fails is dropped and fails nothing."""

import json
import math
from collections.abc import Mapping
from pathlib import Path

import pytest

from prerank import pipeline
from prerank.errors import ConfigError, DivergedError, MissingExtraError, PrerankWarning
from prerank.recipe import parse_recipe
from prerank.tracking import open as opening
from prerank.tracking.config import TrackingConfig
from prerank.tracking.measures import measures, prefix
from prerank.tracking.open import flat, open_tracking
from prerank.tracking.tracker import End, Forward, JsonLines, Measures, Tracking, sent_before


class Notes:
    """A tracker that notes, and fails from the figure on that it is told."""

    def __init__(self, fails_at: float = math.inf, *, goes_on: bool = True) -> None:
        self.seen: list[tuple[dict[str, float], int]] = []
        self.fails_at, self.closed, self.goes_on = fails_at, False, goes_on
        self.end: End | None = None

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        if self.fails_at in metrics.values():
            raise ConnectionError("the server is gone\nand more")
        self.seen.append((dict(metrics), step))

    def close(self, end: End = "finished") -> None:
        self.closed, self.end = True, end


def read(file: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_lines_have_four_keys_and_are_appended(tmp_path: Path) -> None:
    for step in (0, 1):
        JsonLines(tmp_path / "a" / "m.jsonl").log({"x/y": 0.5, "z": math.nan}, step)
    lines = read(tmp_path / "a" / "m.jsonl")
    assert [(one["step"], one["metric"], one["value"]) for one in lines] == [
        (0, "x/y", 0.5),
        (0, "z", None),
        (1, "x/y", 0.5),
        (1, "z", None),
    ]
    assert all(one.keys() == {"time", "step", "metric", "value"} for one in lines)


def test_a_line_that_a_kill_cut_off_spoils_no_other(tmp_path: Path) -> None:
    file = tmp_path / "m.jsonl"
    file.write_text('{"step": 0}\n{"st')
    JsonLines(file).log({"x": 1.0}, 2)
    whole = [line for line in file.read_text().splitlines() if line.endswith("}")]
    assert [json.loads(line)["step"] for line in whole] == [0, 2]


def test_a_tracker_that_fails_is_dropped_with_one_warning() -> None:
    good, bad = Notes(), Notes(fails_at=2)
    both = Tracking({"bad": lambda: bad, "good": lambda: good})
    both.log({"x": 1})
    with pytest.warns(PrerankWarning, match="bad failed.*ConnectionError: the server is gone") as w:
        both.log({"x": 2}, 1)
        both.log({"x": 3}, 7)
    assert len(w) == 1 and "and more" not in str(w[0].message)
    both.close()
    assert bad.seen == [({"x": 1}, 0)] and bad.closed
    assert good.seen == [({"x": 1}, 0), ({"x": 2}, 1), ({"x": 3}, 7)] and good.closed


def test_a_figure_of_a_step_is_sent_once() -> None:
    notes = Notes()
    tracking = Tracking({"notes": lambda: notes})
    tracking.log({"loss": 1.0}, 0)
    tracking.log({"loss": 1.0, "gauc": 0.5}, 0)  # once more, from the finished artifact
    tracking.log({"loss": 0.5}, 1)
    assert notes.seen == [({"loss": 1.0}, 0), ({"gauc": 0.5}, 0), ({"loss": 0.5}, 1)]


def test_what_an_earlier_start_sent_is_not_sent_again(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    first = JsonLines(file)
    first.log({"loss": 0.25, "gauc": float("nan")}, 0)
    with file.open("a") as cut:
        cut.write('{"step": 1, "met')
    notes = Notes()
    tracking = Tracking({"notes": lambda: notes}, sent_before(file))
    tracking.log({"loss": 0.25, "gauc": float("nan")}, 0)
    tracking.log({"loss": 0.125}, 1)
    tracking.log({"loss": 0.5, "auc": 0.75}, 0)  # made anew by another recipe
    assert notes.seen == [({"loss": 0.125}, 1), ({"loss": 0.5, "auc": 0.75}, 0)]
    assert sent_before(tmp_path / "none") == {}


def test_a_tracker_that_begins_anew_gets_every_figure() -> None:
    """Made once more under another recipe, an equal figure is one of the new run, too."""
    old, new = Notes(), Notes(goes_on=False)
    before = {("auc", 0): 0.5, ("gauc", 0): 0.25}
    tracking = Tracking({"old": lambda: old, "new": lambda: new}, before)
    tracking.log({"auc": 0.5, "gauc": 0.75}, 0)
    tracking.log({"auc": 0.5}, 0)  # once more, from the finished artifact
    assert old.seen == [({"gauc": 0.75}, 0)]
    assert new.seen == [({"auc": 0.5, "gauc": 0.75}, 0)]


@pytest.mark.parametrize(
    ("error", "end"),
    [
        (None, "finished"),
        (DivergedError("training diverged"), "failed"),
        (SystemExit(143), "killed"),
        (KeyboardInterrupt(), "killed"),
    ],
)
def test_trackers_are_told_how_a_run_ended(
    error: BaseException | None, end: End, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes = Notes()
    tracking = Tracking({"notes": lambda: notes})
    monkeypatch.setattr(pipeline, "open_tracking", lambda *_: tracking)
    run = pipeline.Run(parse_recipe({"name": "r", "out": str(tmp_path)}))

    def work() -> None:
        with pipeline.tracked(run):
            run.tracking.log({"x": 1.0})
            if error is not None:
                raise error

    if error is None:
        work()
    else:
        with pytest.raises(type(error)):
            work()
    assert notes.end == end


def test_figures_are_handed_to_another_process() -> None:
    sent: list[Measures] = []
    tracking = Tracking({"first process": lambda: Forward(sent.append)})
    tracking.log({"loss": 1.0}, 3)
    tracking.close()
    assert sent == [(3, {"loss": 1.0})]


def test_a_tracker_that_cannot_be_opened_is_dropped_too() -> None:
    def refuse() -> Notes:
        raise OSError("no room")

    tracking = Tracking({"x": refuse})
    with pytest.warns(PrerankWarning, match="no room"):
        tracking.log({"x": 1})
    tracking.log({"x": 2})
    tracking.close()


def test_nothing_is_opened_before_the_first_figure(tmp_path: Path) -> None:
    config = TrackingConfig(to=("tensorboard", "wandb"))
    tracking = open_tracking(config, "r", tmp_path / "run", {})
    tracking.log({})
    tracking.close()
    assert not (tmp_path / "run").exists()


def test_an_absent_package_is_told_before_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"prerank\[wandb\]"):
        open_tracking(TrackingConfig(to=("wandb",)), "r", tmp_path, {})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"to": ["comet"]}, "`to.0`"),
        ({"to": ["wandb", "wandb"]}, "twice"),
        ({"to": ["mlflow"]}, "needs `mlflow_uri`"),
        # pragma: allowlist nextline secret
        ({"mlflow_uri": "http://me:secret@host"}, "MLFLOW_TRACKING_PASSWORD"),
    ],
)
def test_bad_settings_are_told(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TrackingConfig.parse(values, where="tracking")


def test_settings_are_flat_text() -> None:
    assert flat({"a": 1, "b": {"c": [1, 2], "d": {"e": "x"}}, "f": {}}) == {
        "a": "1",
        "b.c": "[1, 2]",
        "b.d.e": "x",
    }


@pytest.mark.parametrize(
    ("stage", "key", "start"),
    [
        ("train", "rankers/gpl/seed0", "train/gpl/seed0"),
        ("train", "rankers/gpl@small/seed1", "train/gpl@small/seed1"),
        ("finetune", "anchor_model", "finetune"),
        ("finetune", "anchor_model@small", "finetune@small"),
        ("generate", "anchors/llm", "generate/llm"),
    ],
)
def test_where_names_begin(stage: str, key: str, start: str) -> None:
    assert prefix(stage, key) == start


def test_figures_of_a_report(tmp_path: Path) -> None:
    records = [
        {"method": m, "metric": "gauc", "pool": "unexposed", "segment": "tail", "value": v}
        for m, v in [("gpl", 0.75), ("exposed-only", 0.5), ("match llm", None)]
    ]
    (tmp_path / "report.json").write_text(json.dumps({"records": records}))
    (tmp_path / "manifest.json").write_text(json.dumps({"seconds": 2.5}))
    found = dict(
        pair for _, one in measures("evaluate", "report", tmp_path, "gpl") for pair in one.items()
    )
    assert found == {
        "test/gauc/unexposed/tail": 0.75,
        "test/gpl/gauc/unexposed/tail": 0.75,
        "test/exposed-only/gauc/unexposed/tail": 0.5,
        "time/evaluate": 2.5,
    }


def test_one_figure_an_epoch_of_a_language_model(tmp_path: Path) -> None:
    about = {"train_loss": [3.0, 2.0], "held_out_loss": [4.0, 2.5], "n_items": 7}
    (tmp_path / "finetune.json").write_text(json.dumps(about))
    assert list(measures("finetune", "anchor_model", tmp_path, "gpl"))[:-1] == [
        (0, {"finetune/loss": 3.0}),
        (1, {"finetune/loss": 2.0}),
        (0, {"finetune/held_out_loss": 4.0}),
        (1, {"finetune/held_out_loss": 2.5}),
    ]


def test_one_figure_an_epoch_of_a_pre_ranker(tmp_path: Path) -> None:
    history = [{"epoch": k, "loss_al": 1.0 - k, "gauc": None, "kept": True} for k in (0, 1)]
    (tmp_path / "pre_ranker.json").write_text(json.dumps({"history": history}))
    found = list(measures("train", "rankers/gpl/seed0", tmp_path, "gpl"))
    assert found[:2] == [
        (0, {"train/gpl/seed0/loss_al": 1.0}),
        (1, {"train/gpl/seed0/loss_al": 0.0}),
    ]
