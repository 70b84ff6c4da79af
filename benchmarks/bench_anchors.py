"""How good the anchors of a recipe are on validation clicks, for several settings of finetune.

    python benchmarks/bench_anchors.py [--recipe recipes/quickstart.toml] [--quick] [--json]
        [--set finetune.epochs=4] [--variant finetune.alpha=0 --variant finetune.alpha=1 ...]

Each variant (by default popularity down-sampling with alpha 0, .5 and 1) trains the anchor model,
decodes all users and prints the anchor quality report: the popularity of the anchors against that
of the log, the cosine of the nearest anchor to the item clicked next, and history, random and
popular anchors beside. Validation only; no pre-ranker is trained. A variant may set several keys,
separated by commas.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from prerank.anchors.finetune import finetune
from prerank.anchors.generate import generate
from prerank.anchors.quality import anchor_quality
from prerank.data.prepare import prepare
from prerank.embeddings.encode import encode
from prerank.progress import log, silence
from prerank.recipe import load_recipe
from prerank.semantic_ids.tokenize import tokenize

ALPHAS = ("finetune.alpha=0.0", "finetune.alpha=0.5", "finetune.alpha=1.0")
QUICK = ("prepare.world.n_users=500", "prepare.world.n_items=600", "finetune.epochs=2")
SHOWN = ("popularity", "long_tail", "cosine", "auc", "hit_rate", "first_codes_per_user")


def measure(path: Path, settings: list[str], variants: list[str]) -> dict[str, Any]:
    recipe = load_recipe(path, settings)
    dataset = prepare(recipe.prepare, recipe.seed)
    embeddings = encode(dataset, recipe.encode, recipe.seed)
    semantic_ids = tokenize(embeddings, recipe.tokenize, recipe.seed)
    runs = []
    for variant in variants:
        changed = load_recipe(path, [*settings, *variant.split(",")])
        with tempfile.TemporaryDirectory() as name:
            out, work, parts = (Path(name) / part for part in ("out", "work", "parts"))
            for folder in (out, work, parts):
                folder.mkdir()
            started = time.monotonic()
            report = finetune(dataset, semantic_ids, changed.finetune, changed.seed, out, work)
            trained_s = time.monotonic() - started
            anchors = generate(
                dataset, semantic_ids, embeddings, out, changed.generate, changed.seed, parts
            )
        quality = anchor_quality(anchors, dataset, semantic_ids, embeddings, changed.seed)
        kept = report.kept_epoch - 1
        held_out = report.held_out_loss[kept] if report.held_out_loss else None
        runs.append(
            {
                "variant": variant,
                "held_out_loss": held_out,
                "finetune_seconds": round(trained_s, 1),
                **quality,
            }
        )
        log(f"{variant}: held-out {held_out}, " + ", ".join(f"{k} {quality[k]}" for k in SHOWN))
    return {"recipe": str(path), "settings": settings, "runs": runs}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--recipe", type=Path, default=Path("recipes/quickstart.toml"))
    parser.add_argument("--set", action="append", default=[], dest="settings", metavar="KEY=VALUE")
    parser.add_argument("--variant", action="append", default=[], metavar="KEY=VALUE[,...]")
    parser.add_argument("--quick", action="store_true", help="a small world, two epochs")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    silence()
    settings = [*(QUICK if options.quick else ()), *options.settings]
    found = measure(options.recipe, settings, options.variant or list(ALPHAS))
    if options.json:
        print(json.dumps(found))
        return
    for run in found["runs"]:
        print(f"{run['variant']}: held-out loss {run['held_out_loss']:.4f}")
        for name, values in {run["source"]: run, **run["beside"]}.items():
            print(f"  {name:9s} " + "  ".join(f"{key} {values[key]:.3f}" for key in SHOWN))
    print(f"the log: popularity {run['log_popularity']:.3f} long_tail {run['log_long_tail']:.3f}")


if __name__ == "__main__":
    main()
