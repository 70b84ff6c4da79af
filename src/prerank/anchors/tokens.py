"""The tokens of semantic IDs: one for each (level, code), one that begins a history, one to pad.

Layout, from the id ``first`` on: pad, begin, then all codes of level 0, of level 1, and so on. A
sequence is ``begin c0 c1 c2 c0 c1 c2 ...``. A token's level is known from its id, so marks around
each item would carry no information and cost two tokens in five (C: the paper's form is unknown).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from prerank.artifacts import IntArray
from prerank.errors import ArtifactError, ConfigError

TOKENS_FILE = "sid_tokens.json"
N_SPECIAL = 2


@dataclass(frozen=True)
class SidTokens:
    """Which token id stands for which code.

    Attributes:
        first: id of our first token (0 from scratch, the old vocabulary's size otherwise).
        codebook_sizes: K of each level.
    """

    first: int
    codebook_sizes: tuple[int, ...]

    @property
    def pad(self) -> int:
        """Id of the padding token; nothing ever attends to it."""
        return self.first

    @property
    def begin(self) -> int:
        """Id of the token that begins every sequence."""
        return self.first + 1

    @property
    def n_levels(self) -> int:
        """Number of levels, L."""
        return len(self.codebook_sizes)

    @property
    def size(self) -> int:
        """Number of our tokens."""
        return N_SPECIAL + sum(self.codebook_sizes)

    @property
    def end(self) -> int:
        """One past our last id: the least vocabulary size of a model that knows these tokens."""
        return self.first + self.size

    @property
    def level_starts(self) -> tuple[int, ...]:
        """Id of code 0 of each level, (L,)."""
        before = np.concatenate([[0], np.cumsum(self.codebook_sizes)])[:-1]
        return tuple(int(start) for start in before + self.first + N_SPECIAL)

    def encode(self, codes: IntArray) -> NDArray[np.int64]:
        """Return the token ids of codes (..., L), same shape, int64."""
        return codes.astype(np.int64) + np.array(self.level_starts, dtype=np.int64)

    def names(self) -> list[str]:
        """Return the tokens' names in order of id, as a tokenizer shows them."""
        codes = (
            f"<|sid_{level}_{code}|>"
            for level, size in enumerate(self.codebook_sizes)
            for code in range(size)
        )
        return ["<|sid_pad|>", "<|sid_begin|>", *codes]

    def save(self, folder: Path) -> None:
        """Write the token map beside a model, as JSON that needs no prerank to be read."""
        values = {
            "first": self.first,
            "codebook_sizes": self.codebook_sizes,
            "pad": self.pad,
            "begin": self.begin,
            "level_starts": self.level_starts,
            "form": "begin, then the codes of each item from level 0 on; no marks between items",
        }
        (folder / TOKENS_FILE).write_text(json.dumps(values, indent=1))

    @classmethod
    def load(cls, folder: Path) -> SidTokens:
        """Read the token map of a model folder; raise ArtifactError if there is none."""
        file = folder / TOKENS_FILE
        try:
            values = json.loads(file.read_text())
            return cls(int(values["first"]), tuple(int(k) for k in values["codebook_sizes"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ArtifactError(
                "the folder holds no anchor model",
                where=str(file),
                got=error,
                hint="`prerank finetune` makes one",
            ) from None

    def check_vocabulary(self, vocab_size: int, codebook_sizes: IntArray, *, where: str) -> None:
        """Raise ConfigError unless a model of ``vocab_size`` rows speaks these semantic IDs."""
        wanted = tuple(int(size) for size in codebook_sizes)
        if wanted != self.codebook_sizes:
            raise ConfigError(
                "the model was trained on other semantic IDs",
                where=where,
                must=f"codebook sizes {wanted}",
                got=self.codebook_sizes,
                hint="run `prerank finetune` again",
            )
        if vocab_size < self.end:
            raise ConfigError(
                "the model's vocabulary is too small for the semantic IDs",
                where=where,
                must=f"at least {self.end} tokens",
                got=vocab_size,
                hint="the token map and the weights do not belong together",
            )
