"""The decoder's forward pass with fewer and larger operations (Qwen2 and Llama architectures).

The same numbers as Hugging Face's modules to rounding, in fewer passes over memory: queries, keys
and values come from one product (when decoding, gate and up too), a norm's weight is folded into
the matrix behind it, and the rotary embedding is one multiplication of complex numbers. Any other
architecture, or one with adapters inside, is run by its own forward pass; `is_plain` decides.

The module needs torch and transformers only.

Letters: U users, T tokens, D hidden size, E head size, F feed-forward size, Q query heads,
G key heads.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear, scaled_dot_product_attention, silu
from torch.utils.checkpoint import checkpoint
from transformers import LlamaModel, Qwen2Model

FIXED_ROPE = ("default", "linear", "llama3", "yarn")
"""Rotary embeddings whose frequencies do not change with the length of the input."""


@dataclass(frozen=True, eq=False)
class Block:
    """One layer's weights in the form that decoding wants.

    Attributes:
        qkv: ((Q + 2G) * E, D); the rows of queries and keys are in pairs for the rotation.
        qkv_bias: ((Q + 2G) * E,) or None.
        out, down: (D, Q * E) and (D, F).
        out_bias, down_bias: (D,) or None.
        gate_up: (2F, D).
        gate_up_bias: (2F,) or None.
    """

    qkv: torch.Tensor
    qkv_bias: torch.Tensor | None
    out: torch.Tensor
    out_bias: torch.Tensor | None
    gate_up: torch.Tensor
    gate_up_bias: torch.Tensor | None
    down: torch.Tensor
    down_bias: torch.Tensor | None


@dataclass(frozen=True)
class Heads:
    """Q, G and E of a decoder, and the epsilon of its norms."""

    n_query: int
    n_key: int
    size: int
    eps: float

    @property
    def n_rotated(self) -> int:
        """Heads that carry a position: queries and keys."""
        return self.n_query + self.n_key


def is_plain(decoder: Any) -> bool:
    """Say whether this module can run ``decoder``: a Hugging Face model without its head."""
    config = decoder.config
    if type(decoder) not in (LlamaModel, Qwen2Model):
        return False
    fixed = decoder.rotary_emb.rope_type in FIXED_ROPE and config.hidden_act == "silu"
    slides = "sliding_attention" in (getattr(config, "layer_types", None) or ())
    known = all(type(module) is nn.Linear for module in _projections(decoder))
    return fixed and known and not slides and not config.attention_dropout


def _projections(decoder: Any) -> Iterator[nn.Module]:
    for layer in decoder.layers:
        attention, mlp = layer.self_attn, layer.mlp
        yield from (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj)
        yield from (mlp.gate_proj, mlp.up_proj, mlp.down_proj)


def heads_of(decoder: Any) -> Heads:
    """Return the head counts and the epsilon of a plain decoder."""
    config, attention = decoder.config, decoder.layers[0].self_attn
    return Heads(
        config.num_attention_heads,
        config.num_key_value_heads,
        attention.head_dim,
        decoder.norm.variance_epsilon,
    )


def block_of(layer: Any, heads: Heads) -> Block:
    """Return one layer's weights, joined."""
    attention, mlp = layer.self_attn, layer.mlp
    between = layer.post_attention_layernorm.weight
    qkv, qkv_bias = _qkv_of(layer, heads)
    up_biases = (mlp.gate_proj.bias, mlp.up_proj.bias)
    return Block(
        qkv=qkv,
        qkv_bias=qkv_bias,
        out=attention.o_proj.weight,
        out_bias=attention.o_proj.bias,
        gate_up=torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight]) * between,
        gate_up_bias=None if up_biases[0] is None else torch.cat(up_biases),
        down=mlp.down_proj.weight,
        down_bias=mlp.down_proj.bias,
    )


def _qkv_of(layer: Any, heads: Heads) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return `Block.qkv` and its bias; differentiable."""
    attention = layer.self_attn
    query, key, value = attention.q_proj, attention.k_proj, attention.v_proj
    weight = torch.cat([_paired(query.weight, heads), _paired(key.weight, heads), value.weight])
    bias = None
    if query.bias is not None:
        bias = torch.cat([_paired(query.bias, heads), _paired(key.bias, heads), value.bias])
    return weight * layer.input_layernorm.weight, bias


def _paired(rows: torch.Tensor, heads: Heads) -> torch.Tensor:
    """Return the rows of each head in the order 0, E/2, 1, E/2 + 1, ...: what rotates together."""
    halves = torch.unflatten(rows, 0, (-1, 2, heads.size // 2))
    return halves.transpose(1, 2).flatten(0, 2)


def rotations(decoder: Any, position: torch.Tensor) -> torch.Tensor:
    """Return (..., 1, E/2) complex64: the rotation of each position (...)."""
    rope = decoder.rotary_emb
    angle = position.unsqueeze(-1).float() * rope.inv_freq.float()
    radius = torch.full_like(angle, float(rope.attention_scaling))
    return torch.polar(radius, angle).unsqueeze(-2)


def rms(x: torch.Tensor, eps: float) -> torch.Tensor:
    """Return ``x`` over its root mean square along the last axis, float32."""
    return x * _rms_scale(x, eps)


def _rms_scale(x: torch.Tensor, eps: float) -> torch.Tensor:
    norm: torch.Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()


class _Rms(torch.autograd.Function):
    """`rms` with a backward pass of three operations."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, eps: float) -> torch.Tensor:
        scale = _rms_scale(x, eps)
        y: torch.Tensor = x * scale
        ctx.save_for_backward(y, scale)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        y, scale = ctx.saved_tensors
        along = (torch.linalg.vecdot(grad, y) / y.shape[-1]).unsqueeze(-1)
        return torch.addcmul(grad, y, along, value=-1).mul_(scale), None


class _SwiGlu(torch.autograd.Function):
    """silu(gate) * up with a backward pass that computes no exponential twice.

    These are the largest arrays of a layer: what is read for the last time is written over.
    """

    @staticmethod
    def forward(ctx: Any, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        opened = silu(gate)
        ctx.save_for_backward(gate, up, opened)
        inner: torch.Tensor = opened * up
        return inner

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        gate, up, opened = ctx.saved_tensors
        to_gate = grad * up
        torch.ops.aten.silu_backward.grad_input(to_gate, gate, grad_input=to_gate)
        return to_gate, opened.mul_(grad)


class _Turned(torch.autograd.Function):
    """Queries, keys and values out of one array, the first two rotated.

    The backward pass gathers the three gradients into one array and rotates them back in place.
    """

    @staticmethod
    def forward(
        ctx: Any, joined: torch.Tensor, turn_T: torch.Tensor, heads: Heads
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        ctx.save_for_backward(turn_T)
        apart = torch.unflatten(joined, -1, (-1, heads.size))
        rotated, value = torch.split(apart, [heads.n_rotated, heads.n_key], dim=2)
        turned = torch.view_as_real(_pairs(rotated.float()) * turn_T).flatten(-2)
        query, key = torch.split(turned.to(joined.dtype), [heads.n_query, heads.n_key], dim=2)
        return query, key, value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (turn_T,) = ctx.saved_tensors
        joined = torch.cat([grad.float() for grad in grads], dim=2)
        n_rotated = grads[0].shape[2] + grads[1].shape[2]
        _pairs(joined[:, :, :n_rotated]).mul_(turn_T.conj().resolve_conj())
        return joined.flatten(2).to(grads[0].dtype), None, None


def _pairs(heads_last: torch.Tensor) -> torch.Tensor:
    """Return (..., heads, E/2) complex64: a view of float32 (..., heads, E)."""
    return torch.view_as_complex(torch.unflatten(heads_last, -1, (-1, 2)))


def train_forward(decoder: Any, x_UTD: torch.Tensor, keep_little: bool = False) -> torch.Tensor:
    """Return the (U, T, D) output of a plain decoder for causal input embeddings, to train on.

    Args:
        keep_little: keep only each layer's input and compute the rest again in the backward pass.
    """
    heads = heads_of(decoder)
    turn_T = rotations(decoder, torch.arange(x_UTD.shape[1], device=x_UTD.device))

    def layer_forward(x: torch.Tensor, layer: Any) -> torch.Tensor:
        return _train_block(x, layer, heads, turn_T)

    for layer in decoder.layers:
        if keep_little:
            x_UTD = checkpoint(layer_forward, x_UTD, layer, use_reentrant=False)
        else:
            x_UTD = layer_forward(x_UTD, layer)
    normed: torch.Tensor = _norm(x_UTD, heads.eps) * decoder.norm.weight
    return normed


def _norm(x: torch.Tensor, eps: float) -> torch.Tensor:
    normed: torch.Tensor = _Rms.apply(x, eps)  # type: ignore[no-untyped-call]
    return normed


def _train_block(
    x_UTD: torch.Tensor, layer: Any, heads: Heads, turn_T: torch.Tensor
) -> torch.Tensor:
    out, mlp = layer.self_attn.o_proj, layer.mlp
    joined = linear(_norm(x_UTD, heads.eps), *_qkv_of(layer, heads))
    query, key, value = _Turned.apply(joined, turn_T, heads)  # type: ignore[no-untyped-call]
    seen = scaled_dot_product_attention(
        query.transpose(1, 2),
        key.transpose(1, 2),
        value.transpose(1, 2),
        is_causal=True,
        enable_gqa=heads.n_query != heads.n_key,
    )
    x_UTD = x_UTD + linear(seen.transpose(1, 2).flatten(2), out.weight, out.bias)
    # Two products here: elementwise work on halves of one result would skip over the other half.
    unit, between = _norm(x_UTD, heads.eps), layer.post_attention_layernorm.weight
    gate, up = (linear(unit, p.weight * between, p.bias) for p in (mlp.gate_proj, mlp.up_proj))
    inner = _SwiGlu.apply(gate, up)  # type: ignore[no-untyped-call]
    return x_UTD + linear(inner, mlp.down_proj.weight, mlp.down_proj.bias)


# ---- reading, for decoding: no gradients, keys and values kept ---------------------------------


@dataclass(frozen=True, eq=False)
class Fused:
    """A plain decoder ready to read: joined weights of all layers, made once."""

    decoder: Any
    heads: Heads
    blocks: tuple[Block, ...]

    @classmethod
    def of(cls, decoder: Any) -> Fused:
        """Join the weights of a plain decoder; costs their memory a second time."""
        heads = heads_of(decoder)
        with torch.inference_mode():
            return cls(decoder, heads, tuple(block_of(layer, heads) for layer in decoder.layers))

    @property
    def dtype(self) -> torch.dtype:
        """Arithmetic of the products; the residual stream is float32."""
        dtype: torch.dtype = self.blocks[0].out.dtype
        return dtype


class Reading:
    """Keys and values of a batch of histories, in one buffer of known size for each layer.

    Args:
        fused: the decoder.
        capacity: history tokens and all beams of all levels.
    """

    def __init__(self, fused: Fused, capacity: int) -> None:
        self.fused, self.capacity, self.length = fused, capacity, 0
        self.keys: list[torch.Tensor] = []
        self.values: list[torch.Tensor] = []

    def read(self, history_UT: torch.Tensor, length_U: torch.Tensor) -> torch.Tensor:
        """Read right-padded histories; return the output at each one's last token, (U, 1, D).

        The last layer is computed for that token alone: nothing looks at the others' output.
        """
        fused, heads = self.fused, self.fused.heads
        n_users, n_tokens = history_UT.shape
        place_T = torch.arange(n_tokens, device=history_UT.device)
        shape = (n_users, heads.n_key, self.capacity, heads.size)
        self.keys = [history_UT.new_empty(shape, dtype=fused.dtype) for _ in fused.blocks]
        self.values = [torch.empty_like(buffer) for buffer in self.keys]
        self.length = n_tokens
        turn_T = rotations(fused.decoder, place_T)
        x_UTD = fused.decoder.embed_tokens(history_UT).float()
        for number, block in enumerate(fused.blocks[:-1]):
            query, keys, values = self._project(_unit(x_UTD, fused), number, turn_T, 0)
            seen = scaled_dot_product_attention(
                query,
                keys,
                values,
                is_causal=True,
                enable_gqa=heads.n_query != heads.n_key,
            )
            x_UTD = _rest(x_UTD, seen.transpose(1, 2).flatten(2), block, fused)

        last, block = len(fused.blocks) - 1, fused.blocks[-1]
        unit_UTD = _unit(x_UTD, fused)
        self._project(unit_UTD, last, turn_T, 0, first_head=heads.n_query)
        user = torch.arange(n_users, device=history_UT.device)
        at_end = length_U - 1
        joined = _part(unit_UTD[user, at_end].unsqueeze(1), block, slice(0, _width(heads)))
        query = _turned(torch.unflatten(joined, -1, (-1, heads.size)), turn_T[at_end].unsqueeze(1))
        mask = additive((place_T <= at_end.unsqueeze(1))[:, None, None], fused.dtype)
        seen = self._attend(query.to(fused.dtype), last, mask)
        x_U1D = _rest(x_UTD[user, at_end].unsqueeze(1), seen, block, fused)
        return self._finish(x_U1D)

    def extend(
        self, token_UW: torch.Tensor, position_UW: torch.Tensor, mask_U1WC: torch.Tensor
    ) -> torch.Tensor:
        """Append beams; return their output (U, W, D).

        Args:
            position_UW: the place of each beam's token in its own sequence.
            mask_U1WC: additive, over all positions so far and the new ones.
        """
        fused = self.fused
        start, self.length = self.length, self.length + token_UW.shape[1]
        turn_UW = rotations(fused.decoder, position_UW)
        x_UWD = fused.decoder.embed_tokens(token_UW).float()
        for number, block in enumerate(fused.blocks):
            query, _, _ = self._project(_unit(x_UWD, fused), number, turn_UW, start)
            seen = self._attend(query.transpose(1, 2), number, mask_U1WC)
            x_UWD = _rest(x_UWD, seen, block, fused)
        return self._finish(x_UWD)

    def _project(
        self,
        unit_UTD: torch.Tensor,
        number: int,
        turn: torch.Tensor,
        start: int,
        first_head: int = 0,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Store keys and values of new positions from ``start`` on.

        Returns queries (U, Q, T, E), and all keys and values so far, (U, G, C, E). Heads before
        ``first_head`` are not computed.
        """
        heads, end = self.fused.heads, start + unit_UTD.shape[1]
        rows = slice(first_head * heads.size, None)
        joined = torch.unflatten(
            _part(unit_UTD, self.fused.blocks[number], rows), -1, (-1, heads.size)
        )
        n_query = heads.n_query - first_head
        turned = _turned(joined[..., : n_query + heads.n_key, :], turn)
        keys, values = self.keys[number][:, :, :end], self.values[number][:, :, :end]
        keys[:, :, start:] = turned[..., n_query:, :].transpose(1, 2)
        values[:, :, start:] = joined[..., n_query + heads.n_key :, :].transpose(1, 2)
        query = turned[..., :n_query, :].transpose(1, 2).to(joined.dtype)
        return query, keys, values

    def _attend(
        self, query_UWQE: torch.Tensor, number: int, mask_U1WC: torch.Tensor
    ) -> torch.Tensor:
        """Return (U, W, Q * E): each query over all positions so far that its mask allows.

        The query heads of one key head stand as rows of one product: keys are not repeated.
        """
        heads, n_beams = self.fused.heads, query_UWQE.shape[1]
        groups = heads.n_query // heads.n_key
        query = (
            torch.unflatten(query_UWQE, 2, (heads.n_key, groups))
            .permute(0, 2, 3, 1, 4)
            .flatten(2, 3)
        )
        seen = scaled_dot_product_attention(
            query,
            self.keys[number][:, :, : self.length],
            self.values[number][:, :, : self.length],
            attn_mask=mask_U1WC.repeat(1, 1, groups, 1) if groups > 1 else mask_U1WC,
        )
        apart = torch.unflatten(seen, 2, (groups, n_beams))
        return apart.permute(0, 3, 1, 2, 4).flatten(2)

    def _finish(self, x: torch.Tensor) -> torch.Tensor:
        normed: torch.Tensor = rms(x, self.fused.heads.eps) * self.fused.decoder.norm.weight
        return normed


def additive(visible: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return the mask as numbers: 0 where ``visible``, the least number elsewhere."""
    mask = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
    return mask.masked_fill_(~visible, torch.finfo(dtype).min)


def _width(heads: Heads) -> int:
    return heads.n_query * heads.size


def _unit(x: torch.Tensor, fused: Fused) -> torch.Tensor:
    return rms(x, fused.heads.eps).to(fused.dtype)


def _part(unit: torch.Tensor, block: Block, rows: slice) -> torch.Tensor:
    bias = None if block.qkv_bias is None else block.qkv_bias[rows]
    return linear(unit, block.qkv[rows], bias)


def _turned(heads_last: torch.Tensor, turn: torch.Tensor) -> torch.Tensor:
    """Return (..., heads, E) float32 rotated; float32 input is changed in place."""
    return torch.view_as_real(_pairs(heads_last.float()).mul_(turn)).flatten(-2)


def _rest(x: torch.Tensor, seen: torch.Tensor, block: Block, fused: Fused) -> torch.Tensor:
    """Return the layer's output from its input and what attention has seen."""
    x = x + linear(seen, block.out, block.out_bias)
    gate, up = linear(_unit(x, fused), block.gate_up, block.gate_up_bias).chunk(2, -1)
    return x.add_(linear(silu(gate).mul_(up), block.down, block.down_bias))
