"""Contract checks for encoders, label sources and pre-rankers, built in or of your own.

Each check runs the stage itself on a small simulated world and raises AssertionError with the
promise that was broken. They need no test framework; with pytest:

    from prerank.embeddings.config import EncodeConfig
    from prerank.testing import check_encoder

    def test_contract() -> None:
        check_encoder(EncodeConfig(encoder="plugin", plugin="my_package.encoder:encode"))
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from prerank.artifacts import Dataset, Features, InterestAnchors, ItemEmbeddings
from prerank.data.config import PrepareConfig
from prerank.data.prepare import prepare
from prerank.embeddings.config import EncodeConfig
from prerank.embeddings.encode import encode
from prerank.errors import DataError
from prerank.labels.config import LabelConfig

if TYPE_CHECKING:
    from prerank.ranking.config import TrainConfig
    from prerank.ranking.pre_ranker import PreRanker

WORLD = {"n_users": 60, "n_items": 80, "requests_per_user": 2.0}
CONTENT_DIM = 12
SEED = 0
QUICK = {
    "epochs": 3,
    "batch_size": 64,
    "learning_rate": 0.01,
    "patience": 0,
    "dropout": 0.0,
    "id_dropout": 0.0,
}
"""Keys of [train] while a pre-ranker is checked."""
CLOSE = {"rtol": 1e-4, "atol": 1e-5}
"""Float sums in another order differ by this much."""


def small_dataset(seed: int = SEED) -> Dataset:
    """Return a simulated world of 60 users and 80 items, the same for the same seed."""
    return prepare(PrepareConfig.parse({"source": "world", "world": WORLD}), seed)


def small_embeddings(dataset: Dataset) -> ItemEmbeddings:
    """Return LSA vectors of the items of ``dataset``, 12 dimensions."""
    return encode(dataset, EncodeConfig(embedding_dim=CONTENT_DIM), SEED)


def small_anchors(dataset: Dataset, embeddings: ItemEmbeddings) -> InterestAnchors:
    """Return each user's own last items as anchors, 4 at most."""
    from prerank.anchors.controls import history_anchors
    from prerank.semantic_ids.config import TokenizeConfig
    from prerank.semantic_ids.tokenize import tokenize

    ids = tokenize(embeddings, TokenizeConfig(codebook_size=8), SEED)
    return history_anchors(dataset, ids, embeddings, 4, SEED)


def check_encoder(config: EncodeConfig) -> None:
    """Check the encode stage with ``config``.

    One finite vector an item, of length 1 or 0; the same seed gives the same; from content alone:
    items of equal content have equal vectors, items of other content do not; an item without
    content is no error; the catalog is left as it was.

    Raises:
        AssertionError: a promise is broken; the message says which.
    """
    dataset = _with_twins(small_dataset())
    before = _digest(dataset)
    vectors = encode(dataset, config, SEED).vectors
    again = encode(dataset, config, SEED).vectors
    _must(_digest(dataset) == before, "the encoder changed the catalog that it was given")
    _must(len(vectors) == len(dataset.items), "there must be one vector an item")
    lengths = np.linalg.norm(vectors, axis=1)
    _must(bool(np.isfinite(lengths).all()), "vectors must be finite")
    unit = np.isclose(lengths, 1, atol=1e-3) | (lengths == 0)
    _must(bool(unit.all()), "vectors must have length 1, or 0 without content")
    _must(_close(vectors, again), "the same catalog and seed must give the same vectors")
    _must(_close(vectors[0], vectors[1]), "items of equal content must have equal vectors")
    _must(not _close(vectors[0], vectors[3]), "items of other content must have other vectors")


def check_label_source(config: LabelConfig) -> None:
    """Check the label stage with ``config``, with anchors at hand.

    Every unexposed pair once; labels and confidences in range, not all abstaining; the same seed
    gives the same; no label depends on test rows, pools or truths; inputs are left as they were.

    Raises:
        AssertionError: a promise is broken; the message says which.
    """
    from prerank.labels.label import choose_pairs, label
    from prerank.labels.plugin import without_answers

    dataset = small_dataset()
    embeddings = small_embeddings(dataset)
    anchors = small_anchors(dataset, embeddings)
    before = _digest(dataset, embeddings, anchors)
    labels = label(dataset, embeddings, anchors, config, SEED)
    again = label(dataset, embeddings, anchors, config, SEED)
    _must(
        _digest(dataset, embeddings, anchors) == before,
        "the label source changed what it was given",
    )
    pairs = choose_pairs(dataset, config, SEED).pairs
    same_pairs = np.array_equal(labels.user, pairs.user) and np.array_equal(labels.item, pairs.item)
    _must(same_pairs, "every pair must be labelled once, or abstain by confidence 0")
    _must(bool((labels.confidence > 0).any()), "every pair abstains")
    _must(
        _close(labels.label, again.label) and _close(labels.confidence, again.confidence),
        "the same data and seed must give the same labels",
    )
    promise = "labels must not depend on test rows, pools or the truth of candidates"
    try:
        blind = label(without_answers(dataset), embeddings, anchors, config, SEED)
    except DataError as error:
        raise AssertionError(promise) from error
    same = _close(labels.label, blind.label) and _close(labels.confidence, blind.confidence)
    _must(same, promise)


def check_pre_ranker(config: TrainConfig) -> None:
    """Check the train stage with ``config``, in three epochs of its own.

    It learns; the same seed gives the same bytes; a score depends neither on the order nor on the
    company of candidates; pairs and shared candidates score alike; unknown users and items have
    finite scores; what is saved and loaded scores the same; the state dict holds trained weights
    and nothing that grows with the catalog besides.

    Raises:
        AssertionError: a promise is broken; the message says which.
    """
    from prerank.ranking.train import train

    dataset = small_dataset()
    embeddings = small_embeddings(dataset)
    config = config.model_copy(update=QUICK)
    ranker, twin = (train(dataset, embeddings, None, config, SEED) for _ in range(2))

    first, *later = (record["loss_al"] for record in ranker.history)
    _must(min(later) < first, "the loss on clicks must fall within three epochs")
    _must(_weights(ranker) == _weights(twin), "the same data and seed must give the same bytes")
    trained = {name for name, _ in ranker.model.named_parameters()}
    # The inputs are ours: they also store which ids have an embedding of their own.
    own = {name for name in ranker.model.state_dict() if not name.startswith("inputs.")}
    _must(
        own <= trained,
        "the state dict must hold trained weights only: register tables with persistent=False",
    )
    _check_scores(ranker, dataset)
    with tempfile.TemporaryDirectory() as folder:
        ranker.save(Path(folder))
        loaded = type(ranker).load(Path(folder), dataset, embeddings)
    users, items = np.arange(5), np.tile(np.arange(9), (5, 1))
    _must(
        np.array_equal(ranker.score(users, items), loaded.score(users, items)),
        "a loaded pre-ranker must score as the saved one did",
    )


def _check_scores(ranker: PreRanker, dataset: Dataset) -> None:
    import torch

    from prerank.ranking.pooling import States

    users = np.array([0, 1, 2, -1])
    items = np.tile(np.arange(-1, 12), (4, 1))
    scores = ranker.score(users, items)
    _must(bool(np.isfinite(scores).all()), "unknown users and items must have finite scores")
    order = np.random.default_rng(SEED).permutation(items.shape[1])
    _must(
        _close(ranker.score(users, items[:, order]), scores[:, order]),
        "a score must not depend on the order of the candidates",
    )
    alone = np.concatenate([ranker.score(users, items[:, k : k + 1]) for k in range(13)], axis=1)
    _must(_close(alone, scores), "a score must not depend on the other candidates")
    with torch.inference_mode():
        parts = ranker.user_parts(users), ranker.item_parts()
        shared = ranker.model.combine(*parts).cpu().numpy()
        user = torch.arange(4)
        nothing = torch.zeros(0, dtype=torch.int32), torch.zeros(5, dtype=torch.int32)
        pair = ranker.model(user, user, *nothing).cpu().numpy()
        built = ranker.model.user_parts(user, *nothing), ranker.model.item_parts(user)
        whole = ranker.model.combine(*built).cpu().numpy()
        states = States(torch.tensor([0, 0, 1, 2]), torch.tensor([0, 2, 3, 4]))
        past = torch.tensor([4, 5, 6, 7, 8, 9], dtype=torch.int32)  # 2, 1 and 3 items
        once = ranker.model.outputs(user[:3], user, past, torch.tensor([0, 2, 3, 6]), states=states)
        every = torch.tensor([4, 5, 4, 5, 6, 7, 8, 9], dtype=torch.int32)
        each = ranker.model(states.of_row, user, every, torch.tensor([0, 2, 4, 5, 8]))
    _must(
        _close(once[0].cpu().numpy(), each.cpu().numpy()),
        "rows that share a state must score as those apart",
    )
    _must(shared.shape == (4, len(dataset.items) + 1), "combine must return (B, C) logits")
    _must(_close(pair, whole.diagonal()), "`outputs` and `combine` must give the same logits")


def _with_twins(dataset: Dataset) -> Dataset:
    """Return the dataset with item 1 equal to item 0 in content, and item 2 without any."""
    catalog = dataset.catalog
    rows = np.arange(len(catalog))
    rows[1] = 0
    title, text = catalog.title[rows].copy(), catalog.text[rows].copy()
    title[2] = text[2] = ""
    old = catalog.features
    categorical = {name: codes[rows].copy() for name, codes in old.categorical.items()}
    numeric = {name: values[rows].copy() for name, values in old.numeric.items()}
    for codes in categorical.values():
        codes[2] = -1
    for values in numeric.values():
        values[2] = np.nan
    vectors = np.random.default_rng(SEED).normal(size=(len(rows), 8)).astype(np.float32)[rows]
    vectors[2] = np.nan
    features = Features(len(rows), categorical, old.categories, numeric)
    changed = replace(catalog, title=title, text=text, features=features, vectors=vectors)
    return replace(dataset, catalog=changed)


def _must(kept: bool, promise: str) -> None:
    if not kept:
        raise AssertionError(promise)


def _close(one: NDArray[Any], other: NDArray[Any]) -> bool:
    return one.shape == other.shape and bool(np.allclose(one, other, equal_nan=True, **CLOSE))


def _weights(ranker: PreRanker) -> dict[str, bytes]:
    state = ranker.model.state_dict().items()
    return {name: value.detach().cpu().numpy().tobytes() for name, value in state}


def _digest(*values: Any) -> str:
    """Return a hash of every array inside, to see whether one was written to."""
    digest = hashlib.sha256()
    for array in _arrays(values):
        data = "\0".join(map(str, array)).encode() if array.dtype == object else array.tobytes()
        digest.update(data)
    return digest.hexdigest()


def _arrays(value: Any) -> Iterator[NDArray[Any]]:
    if isinstance(value, np.ndarray):
        yield value
    elif is_dataclass(value):
        for field in fields(value):
            yield from _arrays(getattr(value, field.name))
    elif isinstance(value, Mapping):
        for one in value.values():
            yield from _arrays(one)
    elif isinstance(value, tuple | list):
        for one in value:
            yield from _arrays(one)
