"""Hand-sized artifacts that tests of several packages use: 3 users, 4 items."""

import numpy as np

from prerank import artifacts as a
from prerank.vocabulary import Vocabulary


def i32(*values: int) -> a.IntArray:
    return np.array(values, np.int32)


def i64(*values: int) -> a.TimeArray:
    return np.array(values, np.int64)


def f32(*values: float) -> a.FloatArray:
    return np.array(values, np.float32)


def i8(*values: int) -> a.ByteArray:
    return np.array(values, np.int8)


def dataset() -> a.Dataset:
    """Return users u0-u2, items i0-i3, five exposures at times 10..50, cuts at 0, 40 and 50."""
    exposures = a.Exposures(
        request=i64(1, 1, 2, 3, 4),
        user=i32(0, 0, 1, 0, 1),
        item=i32(0, 1, 2, 3, 0),
        time=i64(10, 20, 30, 40, 50),
        click=i8(1, 0, 1, 0, -1),
        position=i32(0, 1, 0, 0, -1),
        propensity=f32(0.5, 1, np.nan, np.nan, np.nan),
        split=i8(0, 0, 0, 1, 2),
    )
    candidates = a.Candidates(
        request=i64(1, 1, 1, 2, 2, 2),
        user=i32(0, 0, 0, 1, 1, 1),
        item=i32(0, 1, 2, 2, 3, 0),
        time=i64(10, 10, 10, 30, 30, 30),
        stage=i8(1, 1, 0, 1, 0, 0),
        score=f32(*[np.nan] * 6),
        truth=f32(1, 0, 1, 1, 0, 0),
        stages=("recalled", "exposed"),
    )
    interactions = a.Interactions(user=i32(0, 1, 1), item=i32(0, 2, 3), time=i64(10, 5, 30))
    pools = a.Pools(
        pool=np.array([0, 0, 0], np.int16),
        split=i8(2, 2, 2),
        request=i64(4, 4, 4),
        user=i32(1, 1, 1),
        item=i32(0, 1, 3),
        time=i64(50, 50, 50),
        click=i8(1, 0, 0),
        pools=("unexposed",),
    )
    titles = np.array(["red shoe", "blue shoe", "green hat", "<b>hat</b>"], object)
    item_features = a.Features(
        4, {"kind": i32(0, 0, 1, -1)}, {"kind": ("shoe", "hat")}, {"price": f32(1, 2, 3, np.nan)}
    )
    return a.Dataset(
        name="tiny",
        time_unit="ms",
        users=Vocabulary.of(["u0", "u1", "u2"]),
        items=Vocabulary.of(["i0", "i1", "i2", "i3"]),
        user_features=a.Features(3),
        catalog=a.Catalog(titles, titles, item_features),
        exposures=exposures,
        candidates=candidates,
        interactions=interactions,
        pools=pools,
        cuts=a.Cuts(0, 40, 50),
        notes=("made by hand",),
    )


def anchors() -> a.InterestAnchors:
    """Return two anchors of user 0, none of user 1, one of user 2."""
    return a.InterestAnchors(
        offsets=i64(0, 2, 2, 3),
        codes=np.array([[0, 1], [1, 0], [1, 1]], np.int32),
        point=i32(0, 1, 2),
        points=np.array([[1, 0], [0, 1], [0.6, 0.8]], np.float32),
        logprob=f32(-0.1, -0.2, -0.3),
        logprob_legal=f32(0, -0.1, 0),
        source="llm",
    )


def labels() -> a.PseudoLabels:
    """Return two pseudo-labels of user 0."""
    return a.PseudoLabels(
        user=i32(0, 0),
        item=i32(2, 3),
        time=i64(10, 10),
        label=f32(0.25, 0.5),
        confidence=f32(0.5, 1.5),
        relevance=f32(0.1, 0.2),
        anchor=i64(0, 1),
        dispersion=f32(0.1, 0.1),
        history=f32(0.3, 0.4),
        llm=f32(0.5, 0.6),
        source="gpl",
        fit={"prior": 0.1},
    )
