"""How fast the anchor model trains, against its matrix products alone.

    python benchmarks/bench_finetune.py [--quick] [--json] [--threads N] [--hidden-size D]

Ours is a full step of `prerank.anchors.finetune`: batch, forward, backward, clip, AdamW. The floor
is the same step's matrix products, forward and backward, with the same shapes through `torch.mm`
and nothing else (no attention scores, no norms, no optimiser), measured in the same run.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable

import numpy as np
import torch

from prerank.anchors.config import FinetuneConfig
from prerank.anchors.finetune import _Run
from prerank.anchors.model import build
from prerank.anchors.sequences import Sequences

SIZES, N_ITEMS = (256, 256, 256), 20_000


def best_seconds(work: Callable[[], object], repeats: int) -> float:
    """Return the least wall-clock seconds of ``repeats`` runs, after two to warm up."""
    times = []
    for _ in range(repeats + 2):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return min(times[2:])


def matrix_products(config: FinetuneConfig, n_tokens: int) -> Callable[[], None]:
    """Return a function that does each linear layer's three products (one forward, two back)."""
    D, inner = config.hidden_size, config.intermediate_size
    layer = [(D, D)] * 4 + [(D, inner), (D, inner), (inner, D)]
    shapes = [(n_tokens, *shape) for shape in layer * config.n_layers]
    shapes += [(n_tokens // len(SIZES), D, size) for size in SIZES]
    inputs = {(n, k): torch.randn(n, k) for n, k, _ in shapes}
    outputs = {(n, m): torch.randn(n, m) for n, _, m in shapes}
    weights = {(k, m): torch.randn(m, k) for _, k, m in shapes}

    def work() -> None:
        for n, k, m in shapes:
            x_NK, y_NM, w_MK = inputs[n, k], outputs[n, m], weights[k, m]
            torch.mm(x_NK, w_MK.T)
            torch.mm(y_NM, w_MK)
            torch.mm(y_NM.T, x_NK)

    return work


def measure(config: FinetuneConfig, history: int, repeats: int) -> dict[str, float]:
    rng = np.random.default_rng(0)
    codes_IL = torch.from_numpy(rng.integers(256, size=(N_ITEMS, len(SIZES))).astype(np.int32))
    item = rng.integers(N_ITEMS, size=config.batch_size * history).astype(np.int32)
    windows = Sequences(item, np.arange(0, len(item) + 1, history))
    run = _Run(build(config, SIZES, 0), config, torch.device("cpu"), codes_IL)
    n_tokens = len(item) * len(SIZES)
    # One "epoch" over these windows is one batch: exactly one step.
    step_s = best_seconds(lambda: run.train_epoch(windows, 0, rng), repeats)
    floor_s = best_seconds(matrix_products(config, n_tokens), repeats)
    return {
        "history": history,
        "tokens_per_second": n_tokens / step_s,
        "matrix_products_tokens_per_second": n_tokens / floor_s,
        "share_of_matrix_products": floor_s / step_s,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--quick", action="store_true", help="fewer repeats")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--hidden-size", type=int, default=128)
    parser.add_argument("--layers", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    size = options.hidden_size
    config = FinetuneConfig(
        hidden_size=size, intermediate_size=3 * size, n_layers=options.layers, device="cpu"
    )
    repeats = 5 if options.quick else 20
    found = [measure(config, history, repeats) for history in (10, 50)]
    if options.json:
        about = {"threads": options.threads, "hidden_size": size, "layers": options.layers}
        print(json.dumps({**about, "runs": found}))
        return
    for run in found:
        print("  ".join(f"{name} {value:,.2f}" for name, value in run.items()))


if __name__ == "__main__":
    main()
