"""How fast interest anchors are decoded: our tree mask, Hugging Face's generate, and the prefill.

    python benchmarks/bench_generate.py [--quick] [--json] [--threads N] [--dtype bfloat16]

All three use the same random Qwen2 model (4 layers, hidden size 256), histories (90 tokens,
64 users) and trie (3 levels of 256 codes, 20,000 items), 20 beams a user. Hugging Face decodes with
`prefix_allowed_tokens_fn`, on fewer users with --quick; all figures are users a second. The prefill
alone (the history through the model, no beam) is what no decoder with this model can beat.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from transformers import GenerationConfig, Qwen2Config, Qwen2ForCausalLM

from prerank.anchors.beam import reader_of, tree_beam_search
from prerank.anchors.tokens import SidTokens
from prerank.anchors.trie import Trie, level_tables

SIZES, N_ITEMS, WIDTH, N_USERS, HISTORY_ITEMS = (256, 256, 256), 20_000, 20, 64, 30


def make_model(tokens: SidTokens, dtype: torch.dtype) -> Any:
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=tokens.size,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=tokens.pad,
    )
    return Qwen2ForCausalLM(config).to(dtype).eval()


def best_seconds(work: Callable[[], object], repeats: int) -> float:
    """Return the least wall-clock seconds of ``repeats`` runs, after one to warm up if several."""
    if repeats > 1:
        work()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return min(times)


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


def measure(quick: bool, dtype: torch.dtype) -> dict[str, float]:
    rng = np.random.default_rng(0)
    codes = rng.integers(256, size=(N_ITEMS, len(SIZES))).astype(np.int32)
    tokens, trie = SidTokens(0, SIZES), Trie.of(codes, SIZES)
    tables = level_tables(trie, torch.device("cpu"))
    items = rng.integers(N_ITEMS, size=(N_USERS, HISTORY_ITEMS))
    begin = np.full((N_USERS, 1), tokens.begin)
    history_UT = torch.from_numpy(
        np.concatenate([begin, tokens.encode(codes[items]).reshape(N_USERS, -1)], axis=1)
    )
    length_U = torch.full((N_USERS,), history_UT.shape[1])
    lm, n_theirs, repeats = make_model(tokens, dtype), 4 if quick else N_USERS, 3 if quick else 7
    reader = reader_of(lm)

    @torch.inference_mode()
    def prefill() -> None:
        lm.model(input_ids=history_UT, use_cache=True)

    def ours() -> None:
        widths = (WIDTH,) * len(SIZES)
        tree_beam_search(reader, tables, tokens.level_starts, history_UT, length_U, widths)

    ours_s, prefill_s = best_seconds(ours, repeats), best_seconds(prefill, repeats)
    theirs_s = best_seconds(lambda: hugging_face(lm, tokens, trie, history_UT[:n_theirs]), 1)
    rates = {
        "ours": N_USERS / ours_s,
        "prefill": N_USERS / prefill_s,
        "hugging_face": n_theirs / theirs_s,
    }
    return {
        **{f"{name}_users_per_second": rate for name, rate in rates.items()},
        "ours_over_hugging_face": rates["ours"] / rates["hugging_face"],
        "ours_over_prefill": rates["ours"] / rates["prefill"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--quick", action="store_true", help="fewer Hugging Face users and runs")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    found = measure(options.quick, getattr(torch, options.dtype))
    found = {"threads": options.threads, **found}
    if options.json:
        print(json.dumps({"dtype": options.dtype, **found}))
        return
    for name, value in found.items():
        print(f"{name:34s} {value:10.2f}")


if __name__ == "__main__":
    main()
