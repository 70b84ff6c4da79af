"""Data sets that have nothing but content."""

import numpy as np

from prerank import artifacts as a
from prerank.vocabulary import Vocabulary

TEXTS = [
    "red running shoe",
    "blue running shoe",
    "green wool hat",
    "grey wool hat",
    "tag_39 tag_4",
    "tag_39 tag_5",
    "",
    "red running shoe",
]


def dataset(texts=TEXTS, vectors=None, images=None) -> a.Dataset:
    n = len(texts)
    text = np.array(texts, dtype=object)
    i32, i64, i8, f32 = (np.zeros(0, kind) for kind in (np.int32, np.int64, np.int8, np.float32))
    return a.Dataset(
        name="content only",
        time_unit="none",
        users=Vocabulary.of([]),
        items=Vocabulary.of(f"{i:06d}" for i in range(n)),
        user_features=a.Features(0),
        catalog=a.Catalog(
            text, text, a.Features(n), vectors, None if images is None else np.array(images, object)
        ),
        exposures=a.Exposures(i64, i32, i32, i64, i8, i32, f32, i8),
        candidates=a.Candidates(i64, i32, i32, i64, i8, f32, f32),
        interactions=a.Interactions(i32, i32, i64),
        pools=a.Pools(np.zeros(0, np.int16), i8, i64, i32, i32, i64, i8),
    )
