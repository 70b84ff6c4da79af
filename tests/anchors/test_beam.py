"""The beams against brute force, against Hugging Face, and on every edge we know."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GenerationConfig, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

from prerank.anchors.beam import Beams, reader_of, tree_beam_search
from prerank.anchors.tokens import SidTokens
from prerank.anchors.trie import Trie, level_tables

from .sid_world import random_codes, random_lm

SIZES = (5, 4, 6)
CPU = torch.device("cpu")


def histories(lengths: list[int], codes: Any, sizes: tuple[int, ...], seed: int = 3) -> list[Any]:
    """Return one (T,) int64 token history a user: begin, then random items."""
    tokens, rng = SidTokens(0, sizes), np.random.default_rng(seed)
    items = [rng.integers(len(codes), size=n) for n in lengths]
    return [
        np.concatenate([[tokens.begin], tokens.encode(codes[chosen]).ravel()]) for chosen in items
    ]


def search(
    lm: Any,
    trie: Trie,
    rows: list[Any],
    widths: tuple[int, ...],
    quota: int = 0,
    padding: int = 0,
    dense_limit: int = 1 << 20,
    bonus: Any = None,
) -> Beams:
    tokens = SidTokens(0, trie.codebook_sizes)
    length = torch.tensor([len(row) for row in rows])
    history = torch.full((len(rows), int(length.max()) + padding), tokens.pad)
    for user, row in enumerate(rows):
        history[user, : len(row)] = torch.from_numpy(row)
    tables = level_tables(trie, CPU, dense_limit, bonus)
    return tree_beam_search(lm, tables, tokens.level_starts, history, length, widths, quota)


@torch.inference_mode()
def enumerate_all(lm: Any, trie: Trie, row: Any) -> tuple[Any, Any]:
    """Return (S,) log-probabilities of every leaf, over all codes and over legal codes, by hand."""
    tokens = SidTokens(0, trie.codebook_sizes)
    existing = trie.codes.tolist()
    total, legal_total = np.zeros(trie.n_leaves), np.zeros(trie.n_leaves)
    for leaf, codes in enumerate(existing):
        ids = tokens.encode(np.array(codes, np.int32))
        logits = lm(torch.from_numpy(np.concatenate([row, ids]))[None]).logits[0, len(row) - 1 :]
        for level, code in enumerate(codes):
            start = tokens.level_starts[level]
            scores = logits[level, start : start + trie.codebook_sizes[level]].log_softmax(-1)
            siblings = {c[level] for c in existing if c[:level] == codes[:level]}
            total[leaf] += float(scores[code])
            legal_total[leaf] += float(scores[code] - scores[sorted(siblings)].logsumexp(-1))
    return total, legal_total


@pytest.mark.parametrize("kv_heads", [1, 2])
@pytest.mark.parametrize("dense_limit", [1 << 20, 0])
def test_beams_wider_than_the_catalogue_are_an_exhaustive_search(
    kv_heads: int, dense_limit: int
) -> None:
    codes = random_codes(30, SIZES)
    trie, lm = Trie.of(codes, SIZES), random_lm(SIZES, kv_heads=kv_heads)
    rows = histories([1, 4, 2], codes, SIZES)
    found = search(lm, trie, rows, (100, 100, 100), dense_limit=dense_limit)
    assert found.leaf.shape == (3, trie.n_leaves)
    for user, row in enumerate(rows):
        total, legal_total = enumerate_all(lm, trie, row)
        leaf = found.leaf[user].numpy()
        assert leaf.tolist() == np.argsort(-total).tolist()
        np.testing.assert_allclose(found.logprob[user], total[leaf], atol=5e-5)
        np.testing.assert_allclose(found.logprob_legal[user], legal_total[leaf], atol=5e-5)


def test_a_bonus_changes_the_order_and_no_probability() -> None:
    codes = random_codes(30, SIZES)
    trie, lm = Trie.of(codes, SIZES), random_lm(SIZES)
    weight = np.random.default_rng(1).pareto(1, trie.n_leaves) + 0.1
    bonus = [np.float32(-0.75) * share for share in trie.log_shares(weight)]
    row = histories([3], codes, SIZES)[0]
    total, legal_total = enumerate_all(lm, trie, row)
    corrected = total - 0.75 * np.log(weight / weight.sum())
    found = search(lm, trie, [row], (100, 100, 100), bonus=bonus)
    leaf = found.leaf[0].numpy()
    assert leaf.tolist() == np.argsort(-corrected).tolist() != np.argsort(-total).tolist()
    np.testing.assert_allclose(found.logprob[0], total[leaf], atol=5e-5)
    np.testing.assert_allclose(found.logprob_legal[0], legal_total[leaf], atol=5e-5)


class LevelMasked(Qwen2ForCausalLM):  # type: ignore[misc]
    """A model whose logits outside the next level's codes are -inf.

    Hugging Face takes the log-softmax over the whole vocabulary before it looks at what is
    allowed; so masked, its scores are log-probabilities over the level's codebook, as ours are.
    """

    tokens: SidTokens

    def forward(self, input_ids: torch.Tensor, **options: Any) -> Any:
        out = super().forward(input_ids=input_ids, **options)
        tokens, starts = self.tokens, torch.tensor(self.tokens.level_starts)
        last_level = torch.searchsorted(starts, input_ids, right=True) - 1
        last_level[input_ids == tokens.begin] = tokens.n_levels - 1
        next_level = (last_level + 1) % tokens.n_levels
        first = starts[next_level][..., None]
        size = torch.tensor(tokens.codebook_sizes)[next_level][..., None]
        ids = torch.arange(out.logits.shape[-1])
        out.logits = out.logits.masked_fill((ids < first) | (ids >= first + size), -torch.inf)
        return out


@pytest.mark.parametrize("width", [2, 7])
def test_same_beams_and_scores_as_hugging_face(width: int) -> None:
    codes = random_codes(60, SIZES, seed=5)
    tokens, trie, lm = SidTokens(0, SIZES), Trie.of(codes, SIZES), random_lm(SIZES, seed=6)
    masked = LevelMasked(lm.config).eval()
    masked.load_state_dict(lm.state_dict())
    masked.tokens = tokens
    allowed: dict[tuple[int, ...], set[int]] = {}
    for ids in tokens.encode(trie.codes).tolist():
        for depth in range(len(SIZES)):
            allowed.setdefault(tuple(ids[:depth]), set()).add(ids[depth])
    rows = histories([3, 3, 3, 3], codes, SIZES)
    start = len(rows[0])
    decoding = GenerationConfig(
        num_beams=width,
        num_return_sequences=width,
        max_new_tokens=len(SIZES),
        do_sample=False,
        length_penalty=0.0,
        return_dict_in_generate=True,
        output_scores=True,
        pad_token_id=tokens.pad,
    )
    theirs = masked.generate(
        torch.from_numpy(np.stack(rows)),
        generation_config=decoding,
        prefix_allowed_tokens_fn=lambda _, ids: sorted(allowed[tuple(ids[start:].tolist())]),
    )
    ours = search(lm, trie, rows, (width,) * len(SIZES))
    expected = theirs.sequences[:, start:].view(len(rows), width, -1).numpy()
    assert tokens.encode(trie.codes[ours.leaf.numpy()]).tolist() == expected.tolist()
    scores = theirs.sequences_scores.view(len(rows), width)
    np.testing.assert_allclose(ours.logprob, scores, atol=5e-5)


@settings(max_examples=30)
@given(
    sizes=st.lists(st.integers(1, 6), min_size=1, max_size=4),
    n_items=st.integers(1, 30),
    width=st.integers(1, 12),
    growth=st.integers(1, 3),
    quota=st.integers(0, 4),
    seed=st.integers(0, 100),
)
def test_only_existing_semantic_ids_come_out_once_and_in_order(
    sizes: list[int], n_items: int, width: int, growth: int, quota: int, seed: int
) -> None:
    codes = random_codes(n_items, tuple(sizes), seed)
    trie, lm = Trie.of(codes, sizes), random_lm(tuple(sizes), seed)
    widths = tuple(width * growth**level for level in range(len(sizes)))
    found = search(lm, trie, histories([2, 1], codes, tuple(sizes), seed), widths, quota)
    for user in range(2):
        leaf = found.leaf[user]
        real = leaf >= 0
        assert real.any() and not (real[1:] & ~real[:-1]).any()  # the real ones stand first
        assert len(set(leaf[real].tolist())) == int(real.sum())
        assert int(leaf.max()) < trie.n_leaves
        assert (found.logprob[user][real].diff() <= 0).all()
        assert torch.isneginf(found.logprob[user][~real]).all()
        assert torch.isfinite(found.logprob[user][real]).all()
        legal, total = found.logprob_legal[user][real], found.logprob[user][real]
        assert (legal <= 0).all() and (legal >= total - 1e-5).all()
        if quota:
            first = np.bincount(trie.codes[leaf[real].numpy(), 0])
            assert first.max() <= max(quota, 1)


def test_quota_takes_the_best_of_each_first_code() -> None:
    sizes = (5, 40)
    codes = random_codes(60, sizes, seed=8)
    trie, lm = Trie.of(codes, sizes), random_lm(sizes, seed=10)
    (row,) = histories([3], codes, sizes)
    total, _ = enumerate_all(lm, trie, row)
    expected: list[int] = []
    for leaf in np.argsort(-total):
        if sum(trie.codes[other, 0] == trie.codes[leaf, 0] for other in expected) < 2:
            expected.append(int(leaf))
    found = search(lm, trie, [row], (100, 100), quota=2)
    assert [leaf for leaf in found.leaf[0].tolist() if leaf >= 0] == expected


def test_batch_equals_single_whatever_the_padding_and_order() -> None:
    codes = random_codes(50, SIZES, seed=1)
    trie, lm = Trie.of(codes, SIZES), random_lm(SIZES, seed=2)
    rows = histories([1, 7, 3, 5], codes, SIZES)
    together = search(lm, trie, rows, (4, 6, 8), padding=5)
    permuted = search(lm, trie, rows[::-1], (4, 6, 8))
    assert torch.equal(permuted.leaf.flip(0), together.leaf)
    for user, row in enumerate(rows):
        alone = search(lm, trie, [row], (4, 6, 8))
        assert torch.equal(alone.leaf[0], together.leaf[user])
        torch.testing.assert_close(alone.logprob[0], together.logprob[user], atol=1e-5, rtol=0)


def test_one_item_and_all_items_in_one_semantic_id() -> None:
    for n_items in (1, 9):
        codes = np.full((n_items, 3), 2, np.int32)
        trie, lm = Trie.of(codes, SIZES), random_lm(SIZES)
        found = search(lm, trie, histories([2], codes, SIZES), (10, 10, 10))
        assert found.leaf.tolist() == [[0]]
        assert found.logprob_legal.tolist() == [[0.0]]  # one child says nothing
        assert float(found.logprob) < 0


def test_bfloat16_keeps_float32_scores() -> None:
    codes = random_codes(30, SIZES)
    trie, lm = Trie.of(codes, SIZES), random_lm(SIZES)
    rows = histories([4], codes, SIZES)
    exact = search(lm, trie, rows, (100, 100, 100))
    rough = search(lm.to(torch.bfloat16), trie, rows, (100, 100, 100))
    assert rough.logprob.dtype == torch.float32
    by_leaf = rough.logprob[0][rough.leaf[0].argsort()]
    torch.testing.assert_close(by_leaf, exact.logprob[0][exact.leaf[0].argsort()], atol=0.5, rtol=0)


@pytest.mark.parametrize("kv_heads", [1, 2])
def test_joined_weights_and_the_models_own_forward_pass_agree(kv_heads: int) -> None:
    codes = random_codes(40, SIZES, seed=4)
    trie, lm = Trie.of(codes, SIZES), random_lm(SIZES, seed=7, kv_heads=kv_heads)
    rows = histories([1, 6, 3], codes, SIZES)
    own, fused = reader_of(lm, fuse=False), reader_of(lm)
    assert own.fused is None and fused.fused is not None
    one, other = (search(reader, trie, rows, (5, 8, 9)) for reader in (own, fused))
    assert torch.equal(one.leaf, other.leaf)
    torch.testing.assert_close(one.logprob, other.logprob, atol=5e-5, rtol=0)
    torch.testing.assert_close(one.logprob_legal, other.logprob_legal, atol=5e-5, rtol=0)


def test_an_unknown_architecture_is_read_by_its_own_forward_pass() -> None:
    codes = random_codes(20, SIZES, seed=4)
    trie = Trie.of(codes, SIZES)
    about = Qwen3Config(
        vocab_size=SidTokens(0, SIZES).size,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        initializer_range=0.6,
    )
    lm = Qwen3ForCausalLM(about).eval()
    assert reader_of(lm).fused is None
    (row,) = histories([3], codes, SIZES)
    found = search(lm, trie, [row], (50, 50, 50))
    total, _ = enumerate_all(lm, trie, row)
    assert found.leaf[0].tolist() == np.argsort(-total).tolist()
