"""How fast interest anchors are decoded: our tree mask, Hugging Face's generate, and the prefill.

    python benchmarks/bench_generate.py [--quick] [--json] [--threads N] [--dtype bfloat16]
    python benchmarks/bench_generate.py --shape qwen2.5-0.5b --dtype bfloat16 [--device cuda]
    python benchmarks/bench_generate.py --catalogues [--quick]

By default all three use the same random Qwen2 model (4 layers, hidden size 256), histories (90
tokens, 64 users) and trie (3 levels of 256 codes, 20,000 items), 20 beams a user. Hugging Face
decodes with `prefix_allowed_tokens_fn`, on fewer users with --quick. The
prefill is the same model's own forward pass over the history alone, without any beam; ours does
more, but leaves the last layer of the history out and joins small operations. Parts take turns and
each counts its best time.

--shape qwen2.5-0.5b: 24 layers of 896, 14 heads on 2 key heads, random weights, 50 history items,
without Hugging Face's decoder. On a GPU the share of `--peak-tflops` is printed: the products that
our search needs, over the time it takes.

--catalogues: 10,000, 1 and 10 million semantic IDs (3 levels of 1,024): the trie's memory and the
milliseconds of one search, which should not grow with the catalogue. A tiny model, so that the trie
is what one sees.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from transformers import GenerationConfig, Qwen2Config, Qwen2ForCausalLM

from prerank.anchors.beam import reader_of, tree_beam_search
from prerank.anchors.tokens import SidTokens
from prerank.anchors.trie import Trie, level_tables
from timing import best_seconds_in_turn

SIZES, N_ITEMS, WIDTH, N_USERS = (256, 256, 256), 20_000, 20, 64
CATALOGUES = (10_000, 1_000_000, 10_000_000)


@dataclass(frozen=True)
class Shape:
    """A Qwen2 decoder, and the items of a history."""

    hidden: int
    inner: int
    layers: int
    heads: int
    key_heads: int
    history_items: int


SHAPES = {
    "small": Shape(256, 768, 4, 4, 4, 30),
    "qwen2.5-0.5b": Shape(896, 4864, 24, 14, 2, 50),
    "tiny": Shape(32, 64, 1, 2, 2, 10),
}


def make_model(tokens: SidTokens, shape: Shape, dtype: torch.dtype, device: str) -> Any:
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=tokens.size,
        hidden_size=shape.hidden,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_heads,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=tokens.pad,
    )
    return Qwen2ForCausalLM(config).to(device=device, dtype=dtype).eval()


def hugging_face(lm: Any, tokens: SidTokens, trie: Trie, history_UT: torch.Tensor) -> torch.Tensor:
    allowed: dict[tuple[int, ...], set[int]] = {}
    for ids in tokens.encode(trie.codes).tolist():
        for depth in range(len(SIZES)):
            allowed.setdefault(tuple(ids[:depth]), set()).add(ids[depth])
    listed = {prefix: sorted(ids) for prefix, ids in allowed.items()}
    start = history_UT.shape[1]
    settings = GenerationConfig(
        num_beams=WIDTH,
        num_return_sequences=WIDTH,
        max_new_tokens=len(SIZES),
        do_sample=False,
        length_penalty=0.0,
        pad_token_id=tokens.pad,
    )
    return lm.generate(  # type: ignore[no-any-return]
        history_UT,
        attention_mask=torch.ones_like(history_UT),
        generation_config=settings,
        prefix_allowed_tokens_fn=lambda _, ids: listed[tuple(ids[start:].tolist())],
    )


def histories(
    tokens: SidTokens, codes: np.ndarray, n_users: int, n_items: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (U, T) token ids of random histories and their lengths."""
    items = np.random.default_rng(1).integers(len(codes), size=(n_users, n_items))
    begin = np.full((n_users, 1), tokens.begin)
    ids = np.concatenate([begin, tokens.encode(codes[items]).reshape(n_users, -1)], axis=1)
    return torch.from_numpy(ids), torch.full((n_users,), ids.shape[1])


def measure(
    shape: Shape, n_users: int, repeats: int, n_theirs: int, dtype: torch.dtype, device: str
) -> dict[str, float]:
    """Return users a second of ours, the prefill and (for ``n_theirs`` users) Hugging Face."""
    rng = np.random.default_rng(0)
    codes = rng.integers(256, size=(N_ITEMS, len(SIZES))).astype(np.int32)
    tokens, trie = SidTokens(0, SIZES), Trie.of(codes, SIZES)
    tables = level_tables(trie, torch.device(device))
    history_UT, length_U = histories(tokens, codes, n_users, shape.history_items)
    history_UT, length_U = history_UT.to(device), length_U.to(device)
    lm = make_model(tokens, shape, dtype, device)
    reader = reader_of(lm)

    @torch.inference_mode()
    def prefill() -> None:
        lm.model(input_ids=history_UT, use_cache=True)

    def ours() -> None:
        widths = (WIDTH,) * len(SIZES)
        tree_beam_search(reader, tables, tokens.level_starts, history_UT, length_U, widths)

    ours_s, prefill_s = best_seconds_in_turn([ours, prefill], repeats, device)
    found = {
        "ours_users_per_second": n_users / ours_s,
        "prefill_users_per_second": n_users / prefill_s,
        "ours_over_prefill": prefill_s / ours_s,
        "product_tflops_per_second": n_users * products(shape) / ours_s / 1e12,
    }
    if n_theirs:
        work = [lambda: hugging_face(lm, tokens, trie, history_UT[:n_theirs])]
        started = time.perf_counter()
        work[0]()
        theirs = n_theirs / (time.perf_counter() - started)
        found["hugging_face_users_per_second"] = theirs
        found["ours_over_hugging_face"] = found["ours_users_per_second"] / theirs
    return found


def products(shape: Shape) -> float:
    """Return the floating-point operations of one user's linear products in our search."""
    size = shape.hidden // shape.heads
    keys = 2 * shape.hidden * shape.key_heads * size
    layer = 2 * shape.hidden**2 + keys + 3 * shape.hidden * shape.inner
    history, beams = 1 + shape.history_items * len(SIZES), WIDTH * (len(SIZES) - 1)
    # The last layer of the history makes keys and values for all, the rest for one token.
    read = history * ((shape.layers - 1) * layer + keys) + layer
    return 2.0 * (read + beams * shape.layers * layer)


def catalogues(quick: bool, device: str) -> list[dict[str, float]]:
    """Return the trie's megabytes and a search's milliseconds by number of semantic IDs."""
    sizes, shape = (1024, 1024, 1024), SHAPES["tiny"]
    tokens, rng, found = SidTokens(0, sizes), np.random.default_rng(0), []
    reader = reader_of(make_model(tokens, shape, torch.float32, device))
    for n_sids in CATALOGUES[:2] if quick else CATALOGUES:
        codes = rng.integers(1024, size=(n_sids, len(sizes))).astype(np.int32)
        started = time.perf_counter()
        trie = Trie.of(codes, sizes)
        tables = level_tables(trie, torch.device(device))
        built_s = time.perf_counter() - started
        history_UT, length_U = histories(tokens, codes, N_USERS, shape.history_items)
        history_UT, length_U = history_UT.to(device), length_U.to(device)
        arguments = (tables, tokens.level_starts, history_UT, length_U, (WIDTH,) * 3)
        (seconds,) = best_seconds_in_turn(
            [partial(tree_beam_search, reader, *arguments)], 5, device
        )
        held = sum(
            tensor.nbytes
            for table in tables
            for tensor in (table.keys, table.starts, table.dense)
            if tensor is not None
        )
        found.append(
            {
                "semantic_ids": trie.n_leaves,
                "build_seconds": built_s,
                "table_megabytes": held / 1e6,
                "search_milliseconds": 1e3 * seconds,
                "search_over_smallest": 1.0,
            }
        )
        found[-1]["search_over_smallest"] = 1e3 * seconds / found[0]["search_milliseconds"]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--quick", action="store_true", help="fewer Hugging Face users and runs")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--shape", choices=("small", "qwen2.5-0.5b"), default="small")
    parser.add_argument("--users", type=int, default=0, help="users a batch")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--peak-tflops", type=float, default=0.0, help="the device's, for --dtype")
    parser.add_argument("--catalogues", action="store_true", help="10k, 1M and 10M semantic IDs")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    about = {"threads": options.threads, "device": options.device, "dtype": options.dtype}
    if options.catalogues:
        rows = catalogues(options.quick, options.device)
    else:
        small = options.shape == "small"
        n_users = options.users or (N_USERS if small or options.device != "cpu" else 8)
        repeats = 3 if options.quick or not small else 7
        n_theirs = 0 if not small else 4 if options.quick else N_USERS
        dtype = getattr(torch, options.dtype)
        found = measure(SHAPES[options.shape], n_users, repeats, n_theirs, dtype, options.device)
        if options.peak_tflops:
            share = found["product_tflops_per_second"] / options.peak_tflops
            found["share_of_peak_flops"] = share
        about |= {"shape": options.shape, "users": n_users}
        rows = [found]
    if options.json:
        print(json.dumps({**about, "runs": rows} if options.catalogues else {**about, **rows[0]}))
        return
    print("  ".join(f"{name} {value}" for name, value in about.items()))
    for row in rows:
        for name, value in row.items():
            print(f"{name:34s} {value:14,.2f}")


if __name__ == "__main__":
    main()
