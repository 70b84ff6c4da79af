"""How fast the anchor model trains, against its matrix products alone.

    python benchmarks/bench_finetune.py [--quick] [--json] [--threads N] [--hidden-size D]
        [--device cuda] [--dtype bfloat16] [--peak-tflops 989]

Ours is a full step of `prerank.anchors.finetune`: batch, forward, backward, clip, AdamW. Two floors
are measured in the same run, with the step's own shapes, forward and backward: the linear layers'
products alone through `torch.mm`, and these with the attention's products through `torch.bmm`, over
the causal half (no softmax, no norms, no optimiser). Parts take turns and each counts its best
time, so that a busy machine does not favour one. On a GPU the share of `--peak-tflops` is printed.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable

import numpy as np
import torch

from prerank.anchors.config import FinetuneConfig
from prerank.anchors.finetune import _Run
from prerank.anchors.model import build
from prerank.anchors.sequences import Sequences
from prerank.progress import silence
from timing import best_seconds_in_turn

SIZES, N_ITEMS = (256, 256, 256), 20_000


def linear_shapes(config: FinetuneConfig, n_tokens: int) -> list[tuple[int, int, int]]:
    D, inner = config.hidden_size, config.intermediate_size
    layer = [(D, D)] * 4 + [(D, inner), (D, inner), (inner, D)]
    shapes = [(n_tokens, *shape) for shape in layer * config.n_layers]
    return shapes + [(n_tokens // len(SIZES), D, size) for size in SIZES]


def matrix_products(
    config: FinetuneConfig, n_tokens: int, dtype: torch.dtype
) -> Callable[[], None]:
    """Return a function that does each linear layer's three products (one forward, two back)."""
    like = {"device": config.device, "dtype": dtype}
    shapes = linear_shapes(config, n_tokens)
    inputs = {(n, k): torch.randn(n, k, **like) for n, k, _ in shapes}
    outputs = {(n, m): torch.randn(n, m, **like) for n, _, m in shapes}
    weights = {(k, m): torch.randn(m, k, **like) for _, k, m in shapes}

    def work() -> None:
        for n, k, m in shapes:
            x_NK, y_NM, w_MK = inputs[n, k], outputs[n, m], weights[k, m]
            torch.mm(x_NK, w_MK.T)
            torch.mm(y_NM, w_MK)
            torch.mm(y_NM.T, x_NK)

    return work


def attention_products(
    config: FinetuneConfig, n_tokens: int, dtype: torch.dtype
) -> Callable[[], None]:
    """Return a function that does every layer's six attention products over half the keys."""
    like = {"device": config.device, "dtype": dtype}
    length, size = n_tokens // config.batch_size, config.hidden_size // config.n_heads
    rows = config.batch_size * config.n_heads
    query = torch.randn(rows, length, size, **like)
    key = torch.randn(rows, max(1, length // 2), size, **like)
    score = torch.randn(rows, length, max(1, length // 2), **like)

    def work() -> None:
        for _ in range(config.n_layers):
            for _ in range(2):
                torch.bmm(query, key.mT)  # the scores, and the gradient of the weights
                torch.bmm(score, key)  # the values' mean, and the gradient of the queries
                torch.bmm(score.mT, query)  # the gradients of keys and values

    return work


def measure(
    config: FinetuneConfig, history: int, repeats: int, peak_tflops: float = 0.0
) -> dict[str, float]:
    rng = np.random.default_rng(0)
    device = torch.device(config.device)
    codes_IL = torch.from_numpy(rng.integers(256, size=(N_ITEMS, len(SIZES))).astype(np.int32))
    item = rng.integers(N_ITEMS, size=config.batch_size * history).astype(np.int32)
    windows = Sequences(item, np.arange(0, len(item) + 1, history))
    model = build(config, SIZES, 0)
    model.lm.to(device)
    run = _Run(model, config, device, codes_IL.to(device))
    n_tokens = len(item) * len(SIZES)
    # One "epoch" over these windows is one batch: exactly one step.
    works = [
        lambda: run.train_epoch(windows, 0, rng),
        matrix_products(config, n_tokens, run.dtype),
        attention_products(config, n_tokens, run.dtype),
    ]
    step_s, linear_s, attention_s = best_seconds_in_turn(works, repeats, config.device, warm_up=2)
    found = {
        "history": history,
        "tokens_per_second": n_tokens / step_s,
        "linear_products_tokens_per_second": n_tokens / linear_s,
        "share_of_linear_products": linear_s / step_s,
        "share_of_all_products": (linear_s + attention_s) / step_s,
    }
    if peak_tflops:
        flops = 6 * sum(n * k * m for n, k, m in linear_shapes(config, n_tokens))
        found["share_of_peak_flops"] = flops / step_s / (peak_tflops * 1e12)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--quick", action="store_true", help="fewer repeats")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--hidden-size", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--peak-tflops", type=float, default=0.0, help="the device's, for --dtype")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    size = options.hidden_size
    config = FinetuneConfig(
        hidden_size=size,
        intermediate_size=3 * size,
        n_layers=options.layers,
        batch_size=options.batch_size,
        device=options.device,
        dtype=options.dtype,
    )
    silence()
    repeats = 5 if options.quick else 20
    found = [measure(config, history, repeats, options.peak_tflops) for history in (10, 50)]
    if options.json:
        about = {
            "threads": options.threads,
            "device": options.device,
            "dtype": options.dtype,
            "hidden_size": size,
            "layers": options.layers,
        }
        print(json.dumps({**about, "runs": found}))
        return
    for run in found:
        print("  ".join(f"{name} {value:,.2f}" for name, value in run.items()))


if __name__ == "__main__":
    main()
