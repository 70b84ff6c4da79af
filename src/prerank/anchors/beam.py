"""Exact trie-constrained beam search over a tree mask (method.md stage 4).

The history is encoded once per user. Each level feeds all beams of a user as extra query positions
of one sequence: a 4-D mask lets every beam see the history, its own ancestors and itself, and all
beams of a level have the same position id. Keys and values are only ever appended, so nothing is
copied for each beam and nothing is reordered. The beams are those of Hugging Face's
``generate(prefix_allowed_tokens_fn=..., num_beams=...)``.

The module needs torch and transformers only, and reads no generation config: a checkpoint's
sampling settings cannot reach it.

Letters: U users, T history tokens, W beams of a user, P beams of the level before (parents),
C slots of generated tokens, K codes of a level, D hidden size, A anchors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicLayer

from prerank.anchors.fused import Fused, Reading, additive, is_plain
from prerank.anchors.trie import LevelTable


@dataclass(frozen=True, eq=False)
class Beams:
    """The best semantic IDs of each user, best first.

    Attributes:
        leaf: (U, A) int64 leaf of the trie; -1 where there are fewer than A.
        logprob: (U, A) float32, over each level's whole codebook; -inf where leaf is -1.
        logprob_legal: (U, A) float32, over the legal children only; -inf where leaf is -1.
    """

    leaf: torch.Tensor
    logprob: torch.Tensor
    logprob_legal: torch.Tensor


@torch.inference_mode()
def tree_beam_search(
    model: Any,
    tables: Sequence[LevelTable],
    level_starts: Sequence[int],
    history_UT: torch.Tensor,
    length_U: torch.Tensor,
    widths: Sequence[int],
    first_code_quota: int = 0,
) -> Beams:
    """Return the most probable semantic IDs after each history.

    Beams are ranked by the sum over levels of the log-probability over the level's codebook, and
    of the bonuses that the tables hold, if any.

    Args:
        model: a Hugging Face causal language model in evaluation mode, or its `reader_of`.
        tables: the trie, one table a level.
        level_starts: token id of code 0 of each level.
        history_UT: (U, T) int64 token ids, padded on the right with any token.
        length_U: (U,) int64 in [1, T], the true lengths.
        widths: beams kept after each level, (L,); A is the last one, or less in a small trie.
        first_code_quota: most beams that may share a first-level code; 0 = no limit. It holds
            after every level, so it also limits the prefixes that are explored.

    Returns:
        Beams of (U, A).
    """
    n_users, n_tokens = history_UT.shape
    reader = model if isinstance(model, Reader) else reader_of(model)
    reading = reader.begin(n_tokens + sum(widths[:-1]))
    # Right padding needs no mask here: a causal query never looks to its right.
    hidden_UPD = reading.read(history_UT, length_U)
    user = torch.arange(n_users, device=history_UT.device)

    past_UT = torch.arange(n_tokens, device=history_UT.device) < length_U.unsqueeze(1)
    seen_UPC = history_UT.new_zeros((n_users, 1, 0), dtype=torch.bool)
    node_UP = history_UT.new_zeros((n_users, 1))
    first_UP = history_UT.new_zeros((n_users, 1))
    score_UP = torch.zeros((n_users, 1), device=history_UT.device)
    rank_UP, legal_score_UP = score_UP, score_UP

    for level, (table, width) in enumerate(zip(tables, widths, strict=True)):
        rows = slice(level_starts[level], level_starts[level] + table.size)
        # Scores are ranked and stored: they stay float32 whatever the model's arithmetic.
        logprob_UPK = (hidden_UPD.float() @ reader.head[rows].float().T).log_softmax(-1)
        legal_UPK = logprob_UPK.masked_fill(~table.legal(node_UP), -torch.inf)
        legal_total_UP = legal_UPK.logsumexp(-1)

        limit = min(width, len(table.keys))
        quota = first_code_quota if level else 0
        rank_UPK = rank_UP.unsqueeze(-1) + legal_UPK
        if table.bonus is not None:
            rank_UPK = rank_UPK + table.bonuses(node_UP)
        rank_UP, parent_UW, code_UW = _best(rank_UPK, first_UP, limit, quota)
        alive_UW = rank_UP > -torch.inf
        step_UW = legal_UPK[user.unsqueeze(1), parent_UW, code_UW]
        legal_score_UP = (
            legal_score_UP.gather(1, parent_UW) + step_UW - legal_total_UP.gather(1, parent_UW)
        )
        score_UP = score_UP.gather(1, parent_UW) + step_UW
        child_UW = table.child(node_UP.gather(1, parent_UW), code_UW)
        # Dead beams keep score -inf; node 0 only keeps their look-ups in range.
        node_UP = torch.where(alive_UW, child_UW, 0)
        first_UP = first_UP.gather(1, parent_UW) if level else code_UW
        if level == len(tables) - 1:
            break

        own = torch.eye(limit, dtype=torch.bool, device=user.device).expand(n_users, -1, -1)
        ancestors_UWC = seen_UPC[user.unsqueeze(1), parent_UW]
        seen_UPC = torch.cat([ancestors_UWC, own], dim=-1)
        past_UWT = past_UT.unsqueeze(1).expand(-1, limit, -1)
        visible = torch.cat([past_UWT, seen_UPC], dim=-1).unsqueeze(1)
        hidden_UPD = reading.extend(
            code_UW + level_starts[level],
            (length_U + level).unsqueeze(1).expand(-1, limit),
            additive(visible, reader.head.dtype),
        )

    dead = rank_UP == -torch.inf
    return Beams(
        leaf=node_UP.masked_fill(dead, -1),
        logprob=score_UP.clamp(max=0).masked_fill(dead, -torch.inf),
        logprob_legal=legal_score_UP.clamp(max=0).masked_fill(dead, -torch.inf),
    )


def _best(
    total_UPK: torch.Tensor, first_UP: torch.Tensor, width: int, quota: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return score, parent and code, each (U, W), of the best continuations, best first."""
    n_users, _, n_codes = total_UPK.shape
    if not quota:
        score_UW, flat_UW = _top(total_UPK.reshape(n_users, -1), width)
        return score_UW, flat_UW // n_codes, flat_UW % n_codes
    # No beam can place more than `quota` children, so the rest need not be sorted.
    score_UPQ, code_UPQ = total_UPK.topk(min(quota, n_codes))
    score_UM, order_UM = score_UPQ.reshape(n_users, -1).sort(descending=True, stable=True)
    parent_UM = order_UM // score_UPQ.shape[-1]
    over_UM = _rank_within(first_UP.gather(1, parent_UM)) >= quota
    score_UW, place_UW = _top(score_UM.masked_fill(over_UM, -torch.inf), width)
    code_UM = code_UPQ.reshape(n_users, -1).gather(1, order_UM)
    return score_UW, parent_UM.gather(1, place_UW), code_UM.gather(1, place_UW)


def _top(score_UM: torch.Tensor, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the ``width`` best scores and their columns, (U, W); dead beams fill what lacks."""
    best_UW, column_UW = score_UM.topk(min(width, score_UM.shape[1]))
    lacking = width - best_UW.shape[1]
    pad = torch.nn.functional.pad
    return pad(best_UW, (0, lacking), value=-torch.inf), pad(column_UW, (0, lacking))


def _rank_within(group_UM: torch.Tensor) -> torch.Tensor:
    """Return (U, M): how many earlier columns of the row are of the same group."""
    sorted_UM, order_UM = group_UM.sort(dim=1, stable=True)
    column_M = torch.arange(group_UM.shape[1], device=group_UM.device)
    is_start_UM = torch.ones_like(sorted_UM, dtype=torch.bool)
    is_start_UM[:, 1:] = sorted_UM[:, 1:] != sorted_UM[:, :-1]
    start_UM = torch.where(is_start_UM, column_M, 0).cummax(dim=1).values
    return torch.empty_like(order_UM).scatter_(1, order_UM, column_M - start_UM)


# ---- how histories are read ------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Reader:
    """A causal language model prepared for `tree_beam_search`; see `reader_of`.

    Attributes:
        decoder: the Hugging Face model without its head.
        head: (vocabulary, D) the head's weights.
        fused: the decoder with joined weights, None for architectures that `fused` cannot run.
    """

    decoder: Any
    head: torch.Tensor
    fused: Fused | None

    def begin(self, capacity: int) -> Reading | OwnReading:
        """Return an empty reading with room for ``capacity`` positions."""
        if self.fused is not None:
            return Reading(self.fused, capacity)
        return OwnReading(self.decoder, capacity)


def reader_of(model: Any, fuse: bool = True) -> Reader:
    """Prepare a Hugging Face causal language model once for many calls.

    Args:
        fuse: join weights where the architecture allows it; costs their memory a second time.
    """
    decoder = model.base_model
    joined = Fused.of(decoder) if fuse and is_plain(decoder) else None
    return Reader(decoder, model.get_output_embeddings().weight, joined)


class OwnReading:
    """The decoder's own forward pass, for any architecture with a 4-D mask and a cache."""

    def __init__(self, decoder: Any, capacity: int) -> None:
        self.decoder = decoder
        self.cache = tree_cache(decoder.config.num_hidden_layers, capacity)

    def read(self, history_UT: torch.Tensor, length_U: torch.Tensor) -> torch.Tensor:
        """Read right-padded histories; return the output at each one's last token, (U, 1, D)."""
        hidden_UTD = self.decoder(input_ids=history_UT, past_key_values=self.cache, use_cache=True)[
            0
        ]
        user = torch.arange(len(history_UT), device=history_UT.device)
        last_U1D: torch.Tensor = hidden_UTD[user, length_U - 1].unsqueeze(1)
        return last_U1D

    def extend(
        self, token_UW: torch.Tensor, position_UW: torch.Tensor, mask_U1WC: torch.Tensor
    ) -> torch.Tensor:
        """Append beams at ``position_UW`` under an additive mask; return their output (U, W, D)."""
        hidden_UWD: torch.Tensor = self.decoder(
            input_ids=token_UW,
            position_ids=position_UW,
            attention_mask=mask_U1WC,
            past_key_values=self.cache,
            use_cache=True,
        )[0]
        return hidden_UWD


class TreeLayer(DynamicLayer):  # type: ignore[misc]
    """Keys and values of one layer in one buffer of known size: appending copies only what is new.

    Args:
        capacity: history tokens and all beams of all levels.
    """

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.capacity, self.length = capacity, 0

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Allocate (U, heads, capacity, head size) buffers like the first states."""
        shape = (*key_states.shape[:2], self.capacity, key_states.shape[-1])
        self.keys, self.values = key_states.new_empty(shape), value_states.new_empty(shape)
        self.dtype, self.device = key_states.dtype, key_states.device
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append the states of new positions; return all states so far."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        end = self.length + key_states.shape[2]
        self.keys[:, :, self.length : end] = key_states
        self.values[:, :, self.length : end] = value_states
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def get_seq_length(self) -> int:
        """Return the number of positions stored."""
        return self.length


def tree_cache(n_layers: int, capacity: int) -> Cache:
    """Return an empty cache of ``n_layers`` layers that holds ``capacity`` positions."""
    return Cache(layers=[TreeLayer(capacity) for _ in range(n_layers)])
