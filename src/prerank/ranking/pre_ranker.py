"""PreRanker: a trained pre-ranker that scores any user-item pair.

On disk: ``weights.safetensors`` and ``pre_ranker.json``, no pickle. The dataset and the item
embeddings are not copied into it; `PreRanker.load` takes them again and checks that they fit.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from prerank.artifacts import (
    Dataset,
    Features,
    FloatArray,
    IntArray,
    ItemEmbeddings,
    Pools,
    TimeArray,
    require,
)
from prerank.devices import resolve_device
from prerank.errors import ArtifactError, ConfigError
from prerank.ranking import hub
from prerank.ranking.config import TrainConfig
from prerank.ranking.context import POPULARITY, Histories, ScoringContext, as_read
from prerank.ranking.model import Parts, PreRankerModel, build_model
from prerank.store import readable

WEIGHTS, ABOUT = "weights.safetensors", "pre_ranker.json"
TRAIN_AGAIN = "it was saved by another version of prerank, or changed since: train it again"
ITEM_BLOCK = 8192
STATE_BLOCK = 4096
BLOCK_FLOATS = 1 << 22  # numbers gathered at once while scoring: 16 MB


def schema_of(dataset: Dataset, embeddings: ItemEmbeddings) -> dict[str, Any]:
    """Return what a pre-ranker needs of its inputs: sizes, features, ids, kind of time."""

    def features(table: Features) -> dict[str, Any]:
        size = {name: len(values) for name, values in table.categories.items()}
        return {
            "n_rows": table.n_rows,
            "categorical": {name: size[name] for name in sorted(table.categorical)},
            "numeric": sorted(table.numeric),
            "lists": {name: size[name] for name in sorted(table.lists)},
            "vectors": {name: table.vectors[name].shape[1] for name in sorted(table.vectors)},
        }

    found = {
        "users": features(dataset.user_features),
        "items": features(dataset.catalog.features),
        "content_dim": embeddings.vectors.shape[1],
        "time_unit": dataset.time_unit,
        "vocabularies": _digest(dataset),
    }
    counted = dataset.catalog.features.numeric.get(POPULARITY)
    if counted is not None:
        # Counted in the log, not given with the items: another log would move every score.
        found[POPULARITY] = hashlib.sha256(counted.tobytes()).hexdigest()[:16]
    return found


def _digest(dataset: Dataset) -> str:
    """Return a hash of all ids and category names in order: weights are rows of these tables."""
    found = hashlib.sha256()
    for vocabulary in (dataset.users, dataset.items):
        found.update(vocabulary.ids.tobytes())
    for table in (dataset.user_features, dataset.catalog.features):
        found.update(json.dumps(dict(table.categories), sort_keys=True).encode())
    return found.hexdigest()[:16]


@dataclass(frozen=True, eq=False)
class PairPlan:
    """Pairs grouped by what is computed once: S distinct (user, history), N pairs.

    Attributes:
        state_user: (S,) int32, -1 = unknown.
        state_end: (S,) int64 where the history ends.
        state_left_out: (S,) int32 item to leave out of the history, -1 for none.
        state: (N,) int64 of each pair.
        item: (N,) its item; I = unknown.
    """

    state_user: IntArray
    state_end: TimeArray
    state_left_out: IntArray
    state: NDArray[np.int64]
    item: NDArray[Any]


def _indices(name: str, values: ArrayLike, size: int) -> IntArray:
    """Return indices as int32, of the shape given; raise DataError if one is not in -1..size-1."""
    index = np.asarray(values)
    if index.size:
        whole = index.dtype.kind in "iu"
        require(whole, f"{name} indices are no whole numbers", must="integers", got=index.dtype)
        low, high = int(index.min()), int(index.max())
        inside = low >= -1 and high < size
        got = low if low < -1 else high
        require(inside, f"{name} index out of range", must=f"-1..{size - 1}", got=got)
    return index.astype(np.int32)


def _moments(time: ArrayLike | None, n: int) -> TimeArray | None:
    """Return ``n`` moments as int64, None for now; raise DataError for another number of them."""
    if time is None:
        return None
    moments = np.asarray(time, dtype=np.int64)
    require(moments.shape == (n,), "one moment a row", must=f"({n},)", got=f"{moments.shape}")
    return moments


class PreRanker:
    """Weights, config, feature schema and the data to score with.

    Scores are logits of a click. They do not depend on the order or the company of the
    candidates (up to the last bits of float32 sums). A user or an item of index -1 is unknown
    and scored by its absence: unknown id, no content, no history.

    Attributes:
        config: the settings it was made with.
        schema: see `schema_of`.
        history: one record an epoch: losses, validation, speed.
        importance: field -> mean gate in (0, 1), of a model that weighs its fields; else empty.
    """

    def __init__(
        self,
        model: PreRankerModel,
        context: ScoringContext,
        config: TrainConfig,
        schema: Mapping[str, Any],
        history: Sequence[Mapping[str, Any]] = (),
        importance: Mapping[str, float] | None = None,
    ) -> None:
        self.model = model.eval()
        self.context = context
        self.config = config
        self.schema = schema
        self.history = tuple(history)
        self.importance = dict(importance or {})
        self.device = model.inputs.content.device
        self._histories = Histories(context, config.max_history, self.device)
        self._items: Parts | None = None

    def score(self, user: ArrayLike, items: ArrayLike, time: ArrayLike | None = None) -> FloatArray:
        """Return the logits of each user's candidates, (B, C) float32.

        Args:
            user: (B,) int user indices, -1 = unknown.
            items: (B, C) int item indices, -1 = unknown.
            time: (B,) int64 moments of the requests; None = now, after all interactions.
        """
        user_B, items_BC = np.asarray(user), np.asarray(items)
        require(
            user_B.ndim == 1 and items_BC.ndim == 2 and len(user_B) == len(items_BC),
            "score needs one row of candidates a user",
            must="user (B,), items (B, C)",
            got=f"{user_B.shape}, {items_BC.shape}",
        )
        width = items_BC.shape[1]
        time_B = _moments(time, len(user_B))
        moments = None if time_B is None else np.repeat(time_B, width)
        flat = self.score_pairs(np.repeat(user_B, width), items_BC.ravel(), moments)
        return flat.reshape(items_BC.shape)

    def score_pools(self, pools: Pools) -> FloatArray:
        """Return the logit of each row of ``pools``, (N,) float32."""
        return self.score_pairs(pools.user, pools.item, pools.time)

    def score_pairs(self, user: IntArray, item: IntArray, time: TimeArray | None) -> FloatArray:
        """Return the logits of pairs, (N,) float32.

        Each distinct (user, history) is put through the model once, each item once.

        Args:
            user, item: (N,) int32, -1 = unknown.
            time: (N,) int64, or None = now.
        """
        return self.score_plan(self.plan(user, item, time))

    @torch.inference_mode()
    def score_few(self, user: IntArray, item: IntArray, time: TimeArray | None) -> FloatArray:
        """Return the logits of pairs, (N,) float32, of a large catalogue's few items.

        As `score_pairs`, but only the items asked for are put through the model, every time.
        """
        plan = self.plan(user, item, time)
        if not len(item):
            return np.zeros(0, dtype=np.float32)
        distinct, place = np.unique(plan.item, return_inverse=True)
        index = torch.from_numpy(distinct.astype(np.int64)).to(self.device)
        blocks = [self.model.item_parts(block) for block in torch.split(index, ITEM_BLOCK)]
        parts = tuple(torch.cat(of) for of in zip(*blocks, strict=True))
        return self._score(plan, parts, place.reshape(-1))

    def plan(self, user: IntArray, item: IntArray, time: TimeArray | None) -> PairPlan:
        """Return what scoring pairs needs to know; arguments as in `score_pairs`."""
        user = _indices("user", user, len(self.context.users))
        item = _indices("item", item, len(self.context.items))
        require(
            user.ndim == 1 and user.shape == item.shape,
            "a pair is one user and one item",
            must="user (N,), item (N,)",
            got=f"{user.shape}, {item.shape}",
        )
        time = _moments(time, len(user))
        end, left_out = self.context.history_ends(user, time), self.context.left_out(user, item)
        order = np.lexsort((left_out, end, user))
        new = np.ones(len(user), dtype=np.bool_)
        new[1:] = (
            (np.diff(user[order]) != 0)
            | (np.diff(end[order]) != 0)
            | (np.diff(left_out[order]) != 0)
        )
        state = np.empty(len(user), dtype=np.int64)
        state[order] = np.cumsum(new) - 1
        first = order[new]
        known = np.where(item < 0, len(self.context.items), item)
        return PairPlan(user[first], end[first], left_out[first], state, known)

    @torch.inference_mode()
    def score_plan(self, plan: PairPlan) -> FloatArray:
        """Return the logits of planned pairs, (N,) float32.

        States of alike many candidates are scored together, as one padded block.
        """
        if not len(plan.item):
            return np.zeros(0, dtype=np.float32)
        return self._score(plan, self.item_parts(), plan.item)

    def _score(self, plan: PairPlan, items: Parts, place: NDArray[Any]) -> FloatArray:
        """Return the logits of planned pairs; ``place`` (N,) says where their items' parts are."""
        count_S = np.bincount(plan.state, minlength=len(plan.state_user))
        by_state = np.argsort(plan.state, kind="stable")
        start_S = np.cumsum(count_S) - count_S
        logits = np.empty(len(place), dtype=np.float32)
        by_count = np.argsort(count_S, kind="stable")
        for states in _state_blocks(by_count, count_S[by_count], self._floats(plan, items)):
            counts = count_S[states]
            users = self._user_parts(
                plan.state_user[states], plan.state_end[states], plan.state_left_out[states]
            )
            column = np.arange(counts.max())
            inside = column < counts[:, None]
            rows = by_state[(start_S[states][:, None] + column)[inside]]
            padded = np.full(inside.shape, len(items[-1]) - 1, dtype=np.int64)
            padded[inside] = place[rows]
            index = torch.from_numpy(padded).to(self.device)
            found = self.model.combine(users, tuple(part[index] for part in items))
            logits[rows] = found.cpu().numpy()[inside]
        return logits

    def _floats(self, plan: PairPlan, items: Parts) -> tuple[int, int]:
        """Return how many numbers the parts of one user state hold at most, and of one candidate.

        A model that attends to every step of a history holds more of a longer one.
        """
        start_S = self.context.starts[plan.state_user]  # of -1, the unknown: its end
        longest = int(np.argmax(np.where(plan.state_user < 0, 0, plan.state_end - start_S)))
        state = slice(longest, longest + 1)
        one = self._user_parts(
            plan.state_user[state], plan.state_end[state], plan.state_left_out[state]
        )
        return sum(part[0].numel() for part in one), sum(part[0].numel() for part in items)

    def _user_parts(
        self, user_B: NDArray[Any], end_B: NDArray[Any], left_out_B: NDArray[Any]
    ) -> Parts:
        known = np.where(user_B < 0, len(self.context.users), user_B)
        user, end, left_out = (
            torch.from_numpy(values).to(self.device)
            for values in (
                known.astype(np.int64),
                end_B.astype(np.int64),
                left_out_B.astype(np.int32),
            )
        )
        return self.model.user_parts(user, *self._histories.ragged(user, end, left_out))

    @torch.inference_mode()
    def user_parts(self, user: ArrayLike, time: ArrayLike | None = None) -> Parts:
        """Return what is computed once a request, each part (B, ...), over whole histories.

        Args:
            user: (B,) int user indices, -1 = unknown.
            time: (B,) int64 moments; None = now.
        """
        user_B = _indices("user", user, len(self.context.users))
        end_B = self.context.history_ends(user_B, _moments(time, len(user_B)))
        return self._user_parts(user_B, end_B, np.full(len(user_B), -1))

    @torch.inference_mode()
    def item_parts(self) -> Parts:
        """Return what is cached of all items, each part (I + 1, ...); the last is the unknown.

        Computed on first use, then kept.
        """
        if self._items is None:
            index = torch.arange(len(self.context.items) + 1, device=self.device)
            blocks = [self.model.item_parts(block) for block in torch.split(index, ITEM_BLOCK)]
            self._items = tuple(torch.cat(parts) for parts in zip(*blocks, strict=True))
        return self._items

    def with_item_parts(self, parts: Parts) -> PreRanker:
        """Return a pre-ranker that scores with other item parts: rounded ones, say.

        Args:
            parts: as `item_parts` returns them.
        """
        other = PreRanker(self.model, self.context, self.config, self.schema, self.history)
        other._items = parts
        return other

    def forget_items(self) -> None:
        """Drop what `item_parts` keeps: the weights have changed."""
        self._items = None

    def save(self, path: Path) -> None:
        """Write the weights and all else that is not the data into the folder ``path``."""
        path.mkdir(parents=True, exist_ok=True)
        weights = {
            name: value.detach().cpu().contiguous()
            for name, value in self.model.state_dict().items()
        }
        save_file(weights, path / WEIGHTS)
        readable(path / WEIGHTS)
        about = {
            "config": self.config.model_dump(mode="json"),
            "schema": self.schema,
            "history": list(self.history),
            "importance": self.importance,
        }
        (path / ABOUT).write_text(json.dumps(about, indent=1))

    @classmethod
    def load(
        cls, path: str | Path, dataset: Dataset, embeddings: ItemEmbeddings, device: str = "cpu"
    ) -> PreRanker:
        """Read a pre-ranker from ``path``, to score with ``dataset`` and ``embeddings``.

        Raises:
            ArtifactError: files are missing or damaged, the data has other users, items, features
                or another width of embeddings than that of the training (their values are not
                compared), or the weights are of another model than this prerank builds from its
                settings.
        """
        path = Path(path)
        about, weights = _read(path)
        config = TrainConfig.parse(about["config"], where=str(path / ABOUT))
        dataset = as_read(dataset, config)
        schema = schema_of(dataset, embeddings)
        if schema != about["schema"]:
            raise ArtifactError(
                "the pre-ranker was trained on other data",
                where=str(path / ABOUT),
                must=json.dumps(about["schema"]),
                got=json.dumps(schema),
                hint="load it with the dataset and the item embeddings it was trained on",
            )
        context = ScoringContext.of(dataset, embeddings, config)
        # Placeholders: the stored weights say which ids have an embedding, and the bias.
        rows = (torch.zeros(len(dataset.users)), torch.zeros(len(dataset.items)))
        model = build_model(config, context, *rows, click_rate=0.5)
        _require_same_weights(weights, model.state_dict(), path / WEIGHTS)
        model.load_state_dict(weights)
        model.to(resolve_device(device))
        more = about["history"], about.get("importance", {})
        return cls(model, context, config, schema, *more)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write what `save` writes and a model card, ``README.md``, into ``folder``."""
        path = Path(folder)
        self.save(path)
        text = hub.card(self.config, self.schema, self.history, self.importance)
        (path / hub.CARD).write_text(text)

    @classmethod
    def from_pretrained(
        cls,
        path_or_hub_id: str | Path,
        dataset: Dataset,
        embeddings: ItemEmbeddings,
        *,
        device: str = "cpu",
        revision: str | None = None,
        trust_plugins: bool = False,
    ) -> PreRanker:
        """Read a pre-ranker from a local folder or from the Hugging Face hub.

        Args:
            path_or_hub_id: a folder, or ``owner/name`` where no such folder is there; a `Path`
                never means the hub.
            dataset, embeddings: what it was trained on; see `load`.
            device: ``cpu``, ``cuda`` or ``auto``.
            revision: branch, tag or commit on the hub; None = its main branch.
            trust_plugins: whether a function of an installed package, named by the files that are
                read, may be imported and run to build the model.

        Raises:
            ArtifactError: neither is there, or as `load`.
            ConfigError: the model is a plug-in's, and plug-ins are not trusted.
        """
        folder = Path(path_or_hub_id)
        if isinstance(path_or_hub_id, str) and not folder.exists():
            folder = hub.download(path_or_hub_id, (WEIGHTS, ABOUT), revision)
        plugin = _read(folder)[0]["config"].get("plugin") or ""
        if plugin and not trust_plugins:
            raise ConfigError(
                "the pre-ranker was built by a plug-in, which is code that would run here",
                where=str(folder / ABOUT),
                got=plugin,
                hint="read the package first, then trust_plugins=True",
            )
        return cls.load(folder, dataset, embeddings, device)

    def push_to_hub(
        self, repo_id: str, *, private: bool = True, message: str = "Add a pre-ranker"
    ) -> str:
        """Commit what `save_pretrained` writes to the Hugging Face hub.

        Neither ids nor data go up, but the weights were learned from what users did: a new
        repository is private unless asked otherwise. One that is there keeps its visibility.

        Args:
            repo_id: ``owner/name``; made if it is not there.
            private: who may see a new repository.
            message: of the commit.

        Returns:
            The address of the commit.

        Raises:
            ArtifactError: the hub does not take it.
        """
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            return hub.upload(Path(folder), repo_id, private=private, message=message)


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return what `PreRanker.save` wrote, without the checks against the data."""
    try:
        about = json.loads((path / ABOUT).read_text())
        weights = load_file(path / WEIGHTS)
    except (OSError, ValueError, SafetensorError) as error:
        raise ArtifactError(
            "the pre-ranker cannot be read",
            where=str(path),
            must=f"a folder with {ABOUT} and {WEIGHTS}",
            got=error,
            hint=TRAIN_AGAIN,
        ) from None
    needed = {"config", "schema", "history"}
    if not isinstance(about, dict) or not needed <= about.keys():
        raise ArtifactError(
            "the pre-ranker cannot be read",
            where=str(path / ABOUT),
            must=f"an object with {', '.join(sorted(needed))}",
            got=", ".join(about) if isinstance(about, dict) else type(about).__name__,
            hint=TRAIN_AGAIN,
        )
    return about, weights


def _require_same_weights(
    found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], where: Path
) -> None:
    """Raise ArtifactError unless both hold tensors of the same names and shapes."""
    shapes = [
        {name: tuple(tensor.shape) for name, tensor in weights.items()}
        for weights in (found, wanted)
    ]
    if shapes[0] == shapes[1]:
        return
    got, must = (
        {n: s for n, s in mine.items() if other.get(n) != s}
        for mine, other in (shapes, shapes[::-1])
    )
    raise ArtifactError(
        "the weights do not fit the model of this prerank",
        where=str(where),
        must=_some(must),
        got=_some(got),
        hint=TRAIN_AGAIN,
    )


def _some(shapes: Mapping[str, tuple[int, ...]], most: int = 5) -> str:
    """Return the first names with their shapes, as text."""
    shown = [f"{name} {shapes[name]}" for name in sorted(shapes)[:most]]
    more = [f"{len(shapes) - most} more"] if len(shapes) > most else []
    return ", ".join(shown + more) or "none of these"


def _state_blocks(
    by_count: NDArray[np.int64], counts: NDArray[np.int64], floats: tuple[int, int]
) -> Iterator[NDArray[np.int64]]:
    """Cut states, in rising order of their candidates, into padded blocks of bounded size."""
    a_state, a_candidate = floats
    start = 0
    while start < len(by_count):
        # The last state of a block has most candidates: all rows are padded to it.
        ahead = counts[start : start + STATE_BLOCK]
        size = (np.arange(len(ahead)) + 1) * (a_state + ahead * a_candidate)
        close = ahead <= 2 * ahead[0]
        stop = start + max(1, int(((size <= BLOCK_FLOATS) & close).sum()))
        yield by_count[start:stop]
        start = stop
