"""The binary form of a rank request and its answer, for large candidate lists.

All numbers little-endian. Request, ``application/octet-stream``:

    offset  size  what
    0       4     magic ``PRK1``
    4       2     flags: bit 0 = candidates are item ids (int64) rather than item rows (int32)
    6       2     n, bytes of the user id; 0 = unknown user
    8       4     top_k; 0 = all
    12      4     C, number of candidates
    16      8     item mark of the bundle (/v1/bundle); 0 with item ids
    24      n     user id, UTF-8
    ..      p     zero bytes up to a multiple of 8
    ..            candidates: C x 4 bytes of rows or C x 8 bytes of ids

Answer:

    0       4     magic ``PRK1``
    4       4     flags: bit 0 = unknown user, bit 1 = user store down or its record unreadable
    8       4     K, number of items returned
    12      4     unknown items among the candidates
    16      4 K   int32 positions in the request's list, best first
    ..      4 K   float32 logits
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prerank.artifacts import FloatArray
from prerank.errors import DataError

MAGIC = b"PRK1"
BY_ID = 1
UNKNOWN_USER, STORE_DOWN = 1, 2
_REQUEST = struct.Struct("<4sHHIIQ")
_ANSWER = struct.Struct("<4sIII")


@dataclass(frozen=True, eq=False)
class BinaryRequest:
    """A decoded binary request.

    Attributes:
        user: user id, None = unknown.
        top_k: None = all.
        candidates: (C,) int32 item rows, or int64 item ids.
        by_id: which of both.
        item_mark: the vocabulary that rows refer to.
    """

    user: str | None
    top_k: int | None
    candidates: NDArray[Any]
    by_id: bool
    item_mark: int


def encode_request(
    user: str | None, candidates: NDArray[Any], top_k: int = 0, *, item_mark: int = 0
) -> bytes:
    """Return the bytes of a request; int64 candidates are item ids, int32 ones item rows."""
    name = (user or "").encode()
    by_id = candidates.dtype == np.int64
    head = _REQUEST.pack(MAGIC, BY_ID * by_id, len(name), top_k, len(candidates), item_mark)
    pad = -(len(head) + len(name)) % 8
    return head + name + bytes(pad) + candidates.astype(f"<i{8 if by_id else 4}").tobytes()


def decode_request(body: bytes) -> BinaryRequest:
    """Read a request.

    Raises:
        DataError: no such body, or one cut short or too long.
    """
    if len(body) < _REQUEST.size:
        raise DataError(
            "the binary body is too short", where="body", must="at least 24 bytes", got=len(body)
        )
    magic, flags, n_name, top_k, count, mark = _REQUEST.unpack_from(body)
    if magic != MAGIC:
        raise DataError(
            "this is no binary rank request", where="body", must="magic PRK1", got=repr(magic)
        )
    if flags & ~BY_ID:
        raise DataError("unknown flags", where="body", must="0 or 1", got=flags)
    by_id = bool(flags & BY_ID)
    start = _REQUEST.size + n_name
    start += -start % 8
    wanted = start + count * (8 if by_id else 4)
    if len(body) != wanted:
        raise DataError(
            "the binary body is cut short or too long",
            where="body",
            must=f"{wanted} bytes",
            got=len(body),
        )
    try:
        user = body[_REQUEST.size : _REQUEST.size + n_name].decode()
    except UnicodeDecodeError:
        raise DataError("the user id is not UTF-8", where="body", must="text in UTF-8") from None
    candidates = np.frombuffer(body, dtype="<i8" if by_id else "<i4", offset=start)
    return BinaryRequest(user or None, top_k or None, candidates, by_id, mark)


def encode_answer(
    position: NDArray[Any], logit: FloatArray, *, unknown_items: int, flags: int
) -> bytes:
    """Return the bytes of an answer."""
    head = _ANSWER.pack(MAGIC, flags, len(position), unknown_items)
    return head + position.astype("<i4").tobytes() + logit.astype("<f4").tobytes()


def decode_answer(body: bytes) -> tuple[NDArray[Any], FloatArray, int, int]:
    """Return positions, logits, unknown items and flags of an answer.

    Raises:
        DataError: no such body.
    """
    if len(body) < _ANSWER.size or body[:4] != MAGIC:
        raise DataError(
            "this is no binary answer", where="answer", must="magic PRK1", got=repr(body[:4])
        )
    _, flags, count, unknown = _ANSWER.unpack_from(body)
    if len(body) != _ANSWER.size + 8 * count:
        raise DataError(
            "the binary answer is cut short",
            where="answer",
            must=f"{_ANSWER.size + 8 * count} bytes",
            got=len(body),
        )
    position = np.frombuffer(body, dtype="<i4", count=count, offset=_ANSWER.size)
    logit = np.frombuffer(body, dtype="<f4", count=count, offset=_ANSWER.size + 4 * count)
    return position, logit, unknown, flags
