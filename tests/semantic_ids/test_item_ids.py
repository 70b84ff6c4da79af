import numpy as np

from prerank.artifacts import ItemEmbeddings
from prerank.semantic_ids.config import TokenizeConfig
from prerank.semantic_ids.tokenize import tokenize


def test_every_item_is_its_own_code_on_one_level() -> None:
    vectors = np.array([[1, 0], [1, 0], [0, 0], [0, 1]], np.float32)
    ids = tokenize(ItemEmbeddings(vectors), TokenizeConfig(trainer="item-id", capacity=1), 0)
    assert ids.codes.tolist() == [[0], [1], [2], [3]]
    assert ids.codebook_sizes.tolist() == [4]
    assert np.array_equal(ids.codebooks, vectors)
    assert ids.quality["trainer"] == "item-id"
    assert ids.quality["residual_norm"] == [0.0] and ids.quality["shared_share"] == 0.0
