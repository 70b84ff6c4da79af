"""`prerank show`: sizes and metrics first, whole notes and names, and only settings that matter."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, get_args

import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner

from prerank import cli
from prerank import store as stores
from prerank.artifacts import TRAIN, Dataset, Exposures
from prerank.data.config import PrepareConfig, Source
from prerank.errors import ArtifactError
from prerank.show import describe_folder
from prerank.store import Manifest, Store
from serving.small_run import N_ITEMS, N_USERS, make_world

NOTE = "every word of this note must be there: " + " ".join(f"word{k}" for k in range(90))


def dataset_folder(root: Path, dataset: Dataset, config: dict[str, Any] | None = None) -> Path:
    values = PrepareConfig.parse(config or {}).model_dump(mode="json")
    with Store(root).publish("dataset", Manifest("prepare", "d1", values, 0, {})) as out:
        stores.save(out, dataset)
    return root / "dataset"


def printed(folder: Path, *words: str) -> str:
    done = CliRunner().invoke(cli.app, ["show", str(folder), *words], catch_exceptions=False)
    assert done.exit_code == 0
    return done.stdout


def as_json(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(printed(folder, "--json"))
    return found


def line(text: str, name: str) -> list[str]:
    """Return the words of the line that begins with ``name``."""
    found = [words for row in text.splitlines() if (words := row.split()) and words[0] == name]
    assert len(found) == 1, text
    return found[0][1:]


# ---- a dataset -----------------------------------------------------------------------------------


def test_sizes_of_a_dataset_are_counted(tmp_path: Path) -> None:
    world = make_world()
    folder = dataset_folder(tmp_path, world)
    sizes, log = as_json(folder)["sizes"], world.exposures
    assert (sizes["users"], sizes["items"]) == (N_USERS, N_ITEMS)
    assert sizes["candidates"] == len(world.candidates) == N_USERS * N_ITEMS
    assert sizes["interactions"] == len(world.interactions)
    assert sizes["pools"] == {"unexposed": {"test": len(world.pools)}}
    shown = sizes["exposures"]
    assert (shown["rows"], shown["clicks"]) == (len(log), int((log.click == 1).sum()))
    assert shown["click_rate"] == pytest.approx((log.click == 1).mean())
    train = log.split == TRAIN
    assert shown["splits"]["train"] == {
        "rows": int(train.sum()),
        "users": len(np.unique(log.user[train])),
        "items": 40,  # the first forty items train
        "clicks": int((log.click[train] == 1).sum()),
        "unknown_clicks": 0,
        "first": "1970-01-01 00:00",
        "last": "1970-01-01 00:00",
        "click_rate": pytest.approx((log.click[train] == 1).mean()),
    }
    assert sum(split["rows"] for split in shown["splits"].values()) == len(log)


def test_sizes_come_first_and_readers_not_in_use_are_left_out(tmp_path: Path) -> None:
    config = {"source": "logs", "path": "mine", "logs": {"exposures": {"columns": {"user": "uid"}}}}
    folder = dataset_folder(tmp_path, make_world(), config)
    said = printed(folder)
    assert line(said, "users") == [str(N_USERS)] and line(said, "items") == [str(N_ITEMS)]
    assert line(said, "candidates") == ["2,400", "rows"]
    n, train = as_json(folder)["sizes"]["exposures"], line(said, "train")
    assert line(said, "all")[:4] == [f"{n[key]:,}" for key in ("rows", "users", "items", "clicks")]
    assert train[4] == f"{n['splits']['train']['click_rate']:.2%}"
    assert line(said, "config.logs.exposures.columns.user") == ["uid"]
    assert "config.world" not in said and "config.anime" not in said and "packages" not in said
    assert len(said.splitlines()) < 45


def test_all_prints_every_setting(tmp_path: Path) -> None:
    said = printed(dataset_folder(tmp_path, make_world(), {"source": "anime"}), "--all")
    assert line(said, "config.world.n_users") == ["2000"]
    assert line(said, "packages.numpy") == [np.__version__]
    assert "files.exposures.parquet" in said


@pytest.mark.parametrize("source", get_args(Source))
def test_the_section_of_every_source_is_kept(tmp_path: Path, source: str) -> None:
    """Each section has one setting changed; that of the source in use is the only one shown."""
    defaults = PrepareConfig().model_dump(mode="json")
    del defaults["split"], defaults["pools"]
    config: dict[str, Any] = {"source": source}
    for name, section in defaults.items():
        if isinstance(section, dict):
            config[name] = {k: v + 1 for k, v in section.items() if type(v) is int}
            config[name] |= {"log_end": "2025-01-01"} if name == "logs" else {}
    config["ratings"]["threshold"] = 3.5
    config["recflow"]["label"], config["anime"]["funnel"] = "like", "rating"
    said = printed(dataset_folder(tmp_path, make_world(), config))
    sections = {row.split(".")[1] for row in said.splitlines() if row.startswith("config.")}
    named = {"movielens": "ratings", "recbole": "ratings"}.get(source, source.replace("-", "_"))
    own = {named} & defaults.keys()  # mind has no settings
    assert {name.split()[0] for name in sections} - {"source"} == own


def test_notes_are_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = dataclasses.replace(make_world(), notes=("a short one", NOTE))
    folder = dataset_folder(tmp_path, dataset)
    for columns in ("80", "120"):
        monkeypatch.setenv("COLUMNS", columns)
        said = printed(folder)
        assert max(map(len, said.splitlines())) <= int(columns)
        assert NOTE in " ".join(said.split()) and "- a short one" in said
    assert as_json(folder)["dataset.json"]["notes"] == ["a short one", NOTE]


@pytest.mark.parametrize(
    ("time_unit", "time"), [("none", "none"), ("order", "none, but each user's rows have an order")]
)
def test_a_dataset_without_time_and_with_unknown_clicks(
    tmp_path: Path, time_unit: str, time: str
) -> None:
    world = make_world(time_unit)  # type: ignore[arg-type]
    columns = world.exposures.columns()
    columns["click"] = np.where(columns["split"] == TRAIN, -1, columns["click"]).astype(np.int8)
    folder = dataset_folder(tmp_path, dataclasses.replace(world, exposures=Exposures(**columns)))
    said, log = printed(folder), as_json(folder)["sizes"]["exposures"]
    assert " ".join(line(said, "time")) == time and "cuts" not in said
    assert log["first"] is None and log["splits"]["train"]["click_rate"] is None
    n = f"{log['unknown_clicks']:,}"
    assert line(said, "train")[3:] == ["0", "unknown", n]
    assert line(said, "all")[-1] == n and line(said, "test")[-1] == "0"


def test_a_dataset_in_parts_has_the_same_sizes(tmp_path: Path) -> None:
    whole, folder = make_world(), tmp_path / "parts"
    want = as_json(dataset_folder(tmp_path / "whole", whole))["sizes"]
    with Store(folder).publish("dataset", Manifest("prepare", "d1", {}, 0, {})) as out:
        stores.save_but_tables(out, whole, np.array([0, 7, N_USERS]))
        for name in stores.TABLES:
            table = pl.DataFrame(getattr(whole, name).columns())
            for part, rows in enumerate([table[:11], table[11:]]):
                rows.write_parquet(stores.part_file(out, name, part))
    assert as_json(folder / "dataset")["sizes"] == want


def test_a_dataset_with_a_table_of_another_kind_is_told(tmp_path: Path) -> None:
    with Store(tmp_path).publish("dataset", Manifest("prepare", "d1", {}, 0, {})) as out:
        stores.save(out, make_world())
        pl.DataFrame({"user": [1]}).write_parquet(out / "exposures.parquet")
    with pytest.raises(ArtifactError, match="dataset cannot be read"):
        describe_folder(tmp_path / "dataset")


# ---- a report ------------------------------------------------------------------------------------


def test_a_report_has_its_metrics(run_folder: Path) -> None:
    said = printed(run_folder / "report")
    assert "pool unexposed" in said and ".750 ±.050" in said
    assert f"report: {run_folder / 'report' / 'report.html'}" in said.replace("\n", "")
    assert line(said, "parents") == ["2", "artifacts"]
    assert "parents.rankers/gpl/seed0" in printed(run_folder / "report", "--all")
    written = json.loads((run_folder / "report" / "report.json").read_text())
    assert as_json(run_folder / "report")["records"] == written["records"]


# ---- a run, and names that are long --------------------------------------------------------------


@pytest.fixture
def seeds(tmp_path: Path) -> Path:
    """A run of one method with five seeds."""
    for seed in range(5):
        key = f"rankers/gpl-shuffled-uniform-weight+kd/seed{seed}"
        with Store(tmp_path).publish(key, Manifest("train", f"{seed:016d}", {}, seed, {})) as out:
            (out / "pre_ranker.json").write_text(json.dumps({"a" * 90 + str(seed): "b" * 400}))
    return tmp_path


def test_a_piped_run_has_one_whole_line_an_artifact(
    seeds: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    rows = printed(seeds).splitlines()
    assert [row.split()[0] for row in rows[1:]] == [
        f"rankers/gpl-shuffled-uniform-weight+kd/seed{seed}" for seed in range(5)
    ]
    assert [row.split()[2] for row in rows[1:]] == [f"{seed:016d}" for seed in range(5)]


@pytest.mark.parametrize("columns", ["60", "80"])
def test_a_narrow_terminal_folds_names_and_cuts_nothing(
    seeds: Path, columns: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    said = printed(seeds)
    assert "…" not in said and max(map(len, said.splitlines())) <= int(columns)
    end = said.splitlines()[0].index("stage")
    first = "".join(row[:end].strip() for row in said.splitlines()[1:])
    assert all(f"gpl-shuffled-uniform-weight+kd/seed{seed}" in first for seed in range(5))
    one = printed(seeds / "rankers" / "gpl-shuffled-uniform-weight+kd" / "seed3")
    assert "…" not in one and "b" * 400 not in one and one.count("b") >= 400


def test_a_long_list_says_how_many_and_all_prints_it(tmp_path: Path) -> None:
    with Store(tmp_path).publish("sids", Manifest("tokenize", "s1", {}, 0, {})) as out:
        (out / "quality.json").write_text(json.dumps({"used": [12345] * 1000}))
    assert "... (1,000 in all)" in printed(tmp_path / "sids")
    assert printed(tmp_path / "sids", "--all").count("12345") == 1000
    assert as_json(tmp_path / "sids")["quality.json"]["used"] == [12345] * 1000
