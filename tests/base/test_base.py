"""The base: errors, config, seeds, vocabulary."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prerank import seeds
from prerank.config import Config
from prerank.errors import ConfigError, DataError, PrerankError
from prerank.vocabulary import Vocabulary


class Knobs(Config):
    epochs: int = 3


def test_error_answers_five_questions() -> None:
    error = PrerankError("w", where="a.csv row 3", must="0 or 1", got=7, hint="look")
    assert str(error) == "w\n  where: a.csv row 3\n  must be: 0 or 1\n  got: 7\n  hint: look"


def test_error_leaves_out_what_is_not_said() -> None:
    assert str(PrerankError("only this")) == "only this"


def test_unknown_key_names_file_and_key() -> None:
    with pytest.raises(ConfigError) as caught:
        Knobs.parse({"epoch": 1}, where="r.toml")
    assert "unknown key `epoch`" in str(caught.value)
    assert "r.toml -> epoch" in str(caught.value)
    assert caught.value.exit_code == 2


def test_wrong_type_names_value() -> None:
    with pytest.raises(ConfigError, match=r"got: 'many'"):
        Knobs.parse({"epochs": "many"})


def test_seed_streams_differ_by_name_and_repeat() -> None:
    assert seeds.derive(0, "a") == seeds.derive(0, "a")
    assert len({seeds.derive(0, "a"), seeds.derive(0, "b"), seeds.derive(1, "a")}) == 3
    assert seeds.rng(0, "a").integers(1 << 30) == seeds.rng(0, "a").integers(1 << 30)


@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=5)))
def test_vocabulary_lookup_inverts_ids(values: list[str]) -> None:
    vocabulary = Vocabulary.of(values)
    index = vocabulary.lookup(values)
    assert [str(vocabulary.ids[i]) for i in index] == values
    assert len(vocabulary) == len(set(values))


def test_vocabulary_unknown_is_minus_one() -> None:
    assert Vocabulary.of(["b", "a"]).lookup(["a", "c", "b", ""]).tolist() == [0, -1, 1, -1]
    assert Vocabulary.of([]).lookup(["x"]).tolist() == [-1]


def test_vocabulary_must_be_sorted() -> None:
    with pytest.raises(DataError, match="sorted"):
        Vocabulary(np.array(["b", "a"]))
