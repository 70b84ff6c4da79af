"""A small finished run whose ids and titles are hostile, through the whole pipeline; seconds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from prerank.pipeline import run_recipe
from prerank.recipe import parse_recipe
from prerank.simulation.measures import METRICS
from prerank.store import Manifest, Store

SCRIPT = "<script>alert(1)</script><img src=x onerror=alert(2)>"
FORMULA = '=HYPERLINK("http://evil","x")'
TITLES = {0: SCRIPT, 1: FORMULA, 2: "+1+cmd|' /C calc'!A0", 3: '"; DROP TABLE items; --', 4: "@x"}
ITEM_IDS = {0: "../../etc/passwd", 1: "a/b?c=d&e#f%2e", 2: "-1+1", 3: "i<b>3", 4: "ö 4"}
USER_IDS = {0: "<script>u0", 1: "..\\u1", 2: "=u2"}
N_USERS, N_ITEMS = 40, 60
KINDS = ("red shoe", "blue boot", "green hat", "warm coat")


def item_id(k: int) -> str:
    return ITEM_IDS.get(k, f"i{k:03d}")


def user_id(k: int) -> str:
    return USER_IDS.get(k, f"u{k:03d}")


def write_logs(folder: Path) -> None:
    """Users like one kind of item; recalled items have a known truth."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    pl.DataFrame(
        {
            "item": [item_id(k) for k in range(N_ITEMS)],
            "title": [TITLES.get(k, f"{KINDS[k % 4]} {k}") for k in range(N_ITEMS)],
            "kind": [KINDS[k % 4] for k in range(N_ITEMS)],
        }
    ).write_parquet(folder / "items.parquet")
    requests = np.repeat(np.arange(N_USERS * 4), 12)
    user = requests % N_USERS
    item = np.concatenate([rng.permutation(N_ITEMS)[:12] for _ in range(N_USERS * 4)])
    likes = rng.integers(4, size=N_USERS)
    fits = (item % 4 == likes[user]).astype(int)
    shown = np.arange(len(user)) % 12 < 6
    table = pl.DataFrame(
        {
            "request": [f"r{k}" for k in requests],
            "user": [user_id(k) for k in user],
            "item": [item_id(k) for k in item],
            "time": 1_760_000_000 + requests * 1000,
            "truth": np.where(fits, 0.9, 0.1),
            "click": (rng.random(len(user)) < np.where(fits, 0.8, 0.1)).astype(int),
            "stage": np.where(shown, "exposed", "recalled"),
        }
    )
    seen = table.filter(pl.Series(shown))
    seen.select("request", "user", "item", "time", "click").write_parquet(
        folder / "exposures.parquet"
    )
    table.select("request", "user", "item", "time", "truth", "stage").write_parquet(
        folder / "candidates.parquet"
    )


def recipe(folder: Path, name: str, **more: Any) -> Any:
    values = {
        "name": name,
        "out": str(folder / "runs"),
        "seeds": [0],
        "prepare": {
            "source": "logs",
            "path": str(folder / "logs"),
            "logs": {
                "stages": ["recalled", "exposed"],
                "items": {"text": ["title", "kind"], "categorical": ["kind"]},
            },
        },
        "encode": {"embedding_dim": 8},
        "tokenize": {"codebook_size": 4},
        "finetune": {"hidden_size": 16, "n_layers": 1, "n_heads": 2, "epochs": 1},
        "generate": {"n_anchors": 6},
        "train": {"epochs": 2, "embedding_dim": 8, "hidden": [8], "threads": 1, "min_id_rows": 1},
        "evaluate": {"n_resamples": 20, "tail_below": 5},
        "methods": {
            "exposed-only": {"label": {"source": "none"}},
            "gpl": {"anchors": "llm"},
            "gpl-history": {"anchors": "history"},
        },
        **more,
    }
    return parse_recipe(values)


def make_run(folder: Path) -> Path:
    write_logs(folder / "logs")
    made = recipe(folder, "small")
    run_recipe(made)
    add_simulation(made.folder)
    path: Path = made.folder
    return path


def add_simulation(run: Path) -> None:
    """Add the result of a simulated A/B test, made by hand."""

    def estimate(value: float) -> dict[str, Any]:
        return {"value": value, "low": value - 0.01, "high": value + 0.01, "n": 2}

    arms = ["exposed-only", SCRIPT]
    result = {
        "name": "small",
        "arms": arms,
        "references": [],
        "baseline": arms[0],
        "n_days": 2,
        "n_replications": 2,
        "interval": 0.95,
        "metrics": METRICS,
        "lines": [
            {"arm": arm, "metric": m, "level": estimate(0.2), "lift": lift}
            for arm, lift in zip(arms, (None, estimate(3.0)), strict=True)
            for m in METRICS
        ],
        "before": [estimate(0.1)],
        "by_day": {arm: [estimate(0.2), estimate(0.3)] for arm in arms},
        "notes": ["by hand"],
        "versions": {},
    }
    with Store(run).publish("simulation", Manifest("simulate", "s1", {}, 0, {})) as out:
        (out / "simulation.json").write_text(json.dumps(result))
