"""The split: where history ends, where validation and test begin, and the checks against leaks."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from prerank.artifacts import (
    GIVEN,
    TEST,
    TRAIN,
    VALIDATION,
    ByteArray,
    Cuts,
    Dataset,
    Exposures,
    IntArray,
    TimeArray,
    TimeUnit,
)
from prerank.data.config import SplitConfig
from prerank.data.unexposed import contains, pair_keys, sorted_unique
from prerank.errors import ConfigError, DataError

NO_CUTS = Cuts()
NEVER = np.iinfo(np.int64).max


def moment_ms(text: str, key: str) -> int | None:
    """Return an ISO moment as UTC milliseconds, None for an empty text; no zone means UTC."""
    if not text:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ConfigError(
            "a moment cannot be read",
            where=key,
            must="ISO 8601, such as 2024-05-01 or 2024-05-01T12:00:00+00:00",
            got=text,
        ) from None
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return int(moment.timestamp() * 1000)


def temporal_cuts(time: TimeArray, config: SplitConfig, given: Cuts = NO_CUTS) -> Cuts:
    """Return the cuts of a log with time.

    The test cut is the ``1 - test_fraction`` quantile of exposure time, the validation cut the
    quantile before it, the anchor cut the ``anchor_fraction`` quantile of the training exposures.
    Rows at a cut belong to the later side, so equal times are never torn apart. Moments of the
    config win over ``given`` (what the source dictates), which wins over the fractions.

    Args:
        time: (N,) int64 exposure times, any order.
        config: fractions and moments.
        given: moments that the source dictates.

    Raises:
        DataError: the cuts do not follow each other with events in between.
    """
    return cuts_of(Ordered(np.sort(time)), config, given)


class Times(Protocol):
    """A multiset of moments that can be asked for order statistics."""

    def __len__(self) -> int:
        """Return how many there are."""

    def at(self, rank: int) -> int:
        """Return the moment of this rank, from 0."""

    def below(self, moment: int) -> int:
        """Return how many lie strictly before ``moment``."""


@dataclass(frozen=True, eq=False)
class Ordered:
    """Moments in memory, ascending."""

    time: TimeArray

    def __len__(self) -> int:
        return len(self.time)

    def at(self, rank: int) -> int:
        """Return the moment of this rank."""
        return int(self.time[rank])

    def below(self, moment: int) -> int:
        """Return how many lie before ``moment``."""
        return int(np.searchsorted(self.time, moment))


def cuts_of(times: Times, config: SplitConfig, given: Cuts = NO_CUTS) -> Cuts:
    """Return the cuts of a log with these exposure times; see `temporal_cuts`."""
    n = len(times)
    test = _first(moment_ms(config.test_from, "split.test_from"), given.test)
    if test is None:
        test = quantile(times, n, 1 - config.test_fraction)
    n_before = times.below(test)
    validation = _first(
        moment_ms(config.validation_from, "split.validation_from"), given.validation
    )
    if validation is None:
        share = config.validation_fraction / (1 - config.test_fraction)
        validation = quantile(times, n_before, 1 - share) if n_before else test
    n_train = times.below(validation)
    anchors = _first(moment_ms(config.anchors_from, "split.anchors_from"), given.anchors)
    if anchors is None:
        anchors = quantile(times, n_train, config.anchor_fraction) if n_train else validation
    counts = (n_train, n_before - n_train, n - n_before)
    if anchors > validation or validation >= test or 0 in counts:
        raise DataError(
            "the log cannot be cut into training, validation and test",
            where="exposures -> time",
            must="exposures in every period and anchors <= validation < test",
            got=f"cuts {anchors}, {validation}, {test} ms; "
            f"{counts[0]} / {counts[1]} / {counts[2]} exposures",
            hint="a longer log, other fractions, or split.*_from moments inside the log",
        )
    return Cuts(anchors=anchors, validation=validation, test=test)


def _first(*moments: int | None) -> int | None:
    return next((moment for moment in moments if moment is not None), None)


def quantile(times: Times, n: int, share: float) -> int:
    """Return the ``share`` quantile of the first ``n`` moments."""
    return times.at(min(int(n * share), n - 1))


def split_at(time: TimeArray, cuts: Cuts) -> ByteArray:
    """Return (N,) int8: TRAIN before the validation cut, TEST from the test cut on."""
    assert cuts.validation is not None and cuts.test is not None
    late = (time >= cuts.validation).astype(np.int8) + (time >= cuts.test).astype(np.int8)
    return late.astype(np.int8)


def random_split(
    group: NDArray[np.int64], config: SplitConfig, rng: np.random.Generator
) -> ByteArray:
    """Return (N,) int8: a random split that keeps the rows of one ``group`` (N,) together."""
    groups, inverse = np.unique(group, return_inverse=True)
    order = rng.permutation(len(groups))
    n_test = round(len(groups) * config.test_fraction)
    n_validation = round(len(groups) * config.validation_fraction)
    split = np.full(len(groups), TRAIN, dtype=np.int8)
    split[order[:n_test]] = TEST
    split[order[n_test : n_test + n_validation]] = VALIDATION
    return split[inverse]


def given_cuts(time: TimeArray, split: ByteArray, anchor_fraction: float) -> Cuts:
    """Return the cuts that a given split implies: the first moments of validation and test."""
    first = [int(time[split == s].min()) if (split == s).any() else None for s in (1, 2)]
    train = np.sort(time[split == TRAIN])
    anchors = quantile(Ordered(train), len(train), anchor_fraction) if len(train) else None
    return Cuts(anchors=anchors, validation=_first(*first), test=first[1])


def training_ends(
    exposures: Exposures, n_users: int, cuts: Cuts, time_unit: TimeUnit
) -> TimeArray | None:
    """Return the moment at which each user's training ends, (U,) int64; None without time.

    With ``ms`` the same for all; with ``order`` the user's first held-out exposure.
    """
    if time_unit == "none":
        return None
    if time_unit == "ms":
        return np.full(n_users, NEVER if cuts.validation is None else cuts.validation)
    held = exposures.split != TRAIN
    return _first_of_each(n_users, exposures.user[held], exposures.time[held])


def _first_of_each(n_users: int, user: IntArray, time: TimeArray) -> TimeArray:
    """Return the first moment of each user (U,), `NEVER` for those without one."""
    first = np.full(n_users, NEVER)
    np.minimum.at(first, user, time)
    return first


def check_leaks(dataset: Dataset) -> None:
    """Raise DataError if training holds a fact from the period it is judged on.

    With ``ms``: pool rows and test exposures lie inside their period; that nothing of training or
    validation is too late, `Dataset` checks itself. With ``order``: no user has an interaction or
    a candidate at or after the first held-out moment of that user. With ``none``: no held-out
    clicked pair is an interaction.
    """
    if dataset.time_unit == "ms":
        _check_cuts(dataset)
    elif dataset.time_unit == "order":
        _check_order(dataset)
    else:
        _check_sets(dataset)


def _check_cuts(dataset: Dataset) -> None:
    cuts, pools, rows = dataset.cuts, dataset.pools, dataset.exposures
    _must((rows.split != TEST) | (rows.time >= (cuts.test or 0)), "a test exposure is too early")
    if cuts.validation is not None:
        _must(pools.time >= cuts.validation, "a pool row lies in training time")
        _must(np.array((cuts.anchors or 0) <= cuts.validation), "the anchor cut lies in validation")
    if cuts.test is not None:
        late = pools.time >= cuts.test
        _must(late == (pools.split == TEST), "a pool row lies outside its period")


def _check_order(dataset: Dataset) -> None:
    held = dataset.exposures.split != TRAIN
    user = np.concatenate([dataset.exposures.user[held], dataset.pools.user])
    time = np.concatenate([dataset.exposures.time[held], dataset.pools.time])
    first = _first_of_each(len(dataset.users), user, time)
    liked, offered = dataset.interactions, dataset.candidates
    for what, row_user, row_time in (
        ("an interaction", liked.user, liked.time),
        ("a candidate", offered.user, offered.time),
    ):
        _must(row_time < first[row_user], f"{what} is not before the user's held-out rows")


def _check_sets(dataset: Dataset) -> None:
    shown, pools = dataset.exposures, dataset.pools
    held = (shown.split != TRAIN) & (shown.click == 1)
    clicked = pools.click == 1
    key = np.concatenate(
        [
            pair_keys(shown.user[held], shown.item[held]),
            pair_keys(pools.user[clicked], pools.item[clicked]),
        ]
    )
    kept = pair_keys(dataset.interactions.user, dataset.interactions.item)
    _must(~contains(sorted_unique(key), kept), "a held-out clicked pair is an interaction")


def _must(ok: NDArray[np.bool_], what: str) -> None:
    if not ok.all():
        raise DataError(
            f"leak: {what}",
            where="the split",
            got=f"{int((~ok).sum())} rows",
            hint=GIVEN,
        )
