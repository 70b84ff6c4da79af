"""What each anchor set could add to what others know: a blend fitted on the truth.

    python benchmarks/blend_pools.py recipes/NAME.toml [--set key=value ...] [--json]

A finished run, its validation rows, never its test. A logistic regression of the true click on the
scores named and their squares, fitted on one half of the users and read on the other, gives GAUC
over all items and over the tail. No method may fit the truth, and this regression is a plain one:
boosted trees find up to .005 more. Where a match adds nothing here, do not expect a label made of
it to add much. docs/log.md holds what it found.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from match_pools import rows_of
from prerank import artifacts as a
from prerank.data.auc import grouped_auc
from prerank.data.unexposed import exposure_counts
from prerank.pipeline import Run, label_scores
from prerank.progress import log
from prerank.recipe import load_recipe

POPULARITY = "match popularity"
Found = dict[str, dict[str, dict[str, tuple[float, float]]]]


def scores_of(run: Run, pools: a.Pools) -> dict[str, a.FloatArray]:
    """Return what is blended, name -> (N,): matches, popularity, exposed-only and the ranker."""
    found = {name: score[0] for name, score in label_scores(run, pools).items()}
    found[POPULARITY] = np.log1p(found[POPULARITY])
    models = {"exposed-only": run.rankers("exposed-only")[0]}
    models |= {step.name: step for step in run.steps.values() if step.stage == "teach"}
    for name, step in models.items():
        if run.done(step):
            found[name] = run.ranker(step).score_pools(pools)
        else:
            log(f"left out, not trained by this recipe and this prerank: {step.key}")
    return found


def gauc_of_blend(
    pools: a.Pools, tail: NDArray[np.bool_], scores: Iterable[a.FloatArray]
) -> tuple[float, float]:
    """Return GAUC over all and over tail rows of a cross-fitted regression on ``scores``."""
    columns = [(score - score.mean()) / (score.std() or 1.0) for score in scores]
    # Squares bend a score, so that a cosine and a logit may meet.
    table = np.stack([*columns, *(column**2 for column in columns)], axis=1)
    half = np.random.default_rng(0).random(int(pools.user.max()) + 1)[pools.user] < 0.5
    blend = np.zeros(len(table))
    for fitted in (half, ~half):
        model = LogisticRegression(max_iter=300).fit(table[fitted], pools.click[fitted])
        blend[~fitted] = model.decision_function(table[~fitted])
    parts = (np.ones(len(tail), dtype=bool), tail)
    every, rare = (
        np.nanmean(grouped_auc(pools.user[rows], pools.click[rows], blend[rows])[0])
        for rows in parts
    )
    return round(float(every), 4), round(float(rare), 4)


def blends(run: Run) -> Found:
    """Return pool -> base -> what is added -> (GAUC, tail GAUC)."""
    found: Found = {}
    every, shown = run.dataset.pools, exposure_counts(run.dataset)
    for code, name in enumerate(every.pools):
        rows = rows_of(every, code)
        if not len(rows):
            continue
        pools = every.take(rows)
        tail = shown[pools.item] < run.recipe.evaluate.tail_below
        found[name] = _blends(pools, tail, scores_of(run, pools))
    return found


def _blends(
    pools: a.Pools, tail: NDArray[np.bool_], scores: Mapping[str, a.FloatArray]
) -> dict[str, dict[str, tuple[float, float]]]:
    matches = [name for name in scores if name.startswith("match ") and name != POPULARITY]
    models = [name for name in scores if not name.startswith("match ")]
    history = [name for name in matches if name.startswith("match history")][:1]
    pairs = [[own, other] for own in history for other in matches if other != own]
    found: dict[str, dict[str, tuple[float, float]]] = {}
    for base in ([POPULARITY], *([model, POPULARITY] for model in models)):
        of = found.setdefault(" + ".join(base), {})
        for more in ([], *([match] for match in matches), *pairs):
            of[" + ".join(more)] = gauc_of_blend(pools, tail, [scores[n] for n in (*base, *more)])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("recipe", type=Path, help="the recipe of a finished run")
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    found = blends(Run(load_recipe(options.recipe, options.set)))
    if options.json:
        print(json.dumps(found))
        return
    for pool, bases in found.items():
        for base, of in bases.items():
            for more, (every, rare) in of.items():
                print(f"{pool:12s} {base:32s} {'+ ' + more if more else '':60s} {every} / {rare}")


if __name__ == "__main__":
    main()
