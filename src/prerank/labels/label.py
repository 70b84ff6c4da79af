"""The label stage: which unexposed pairs, from which source, and the shuffled controls."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from scipy.special import expit

from prerank.artifacts import UNLABELED, Dataset, InterestAnchors, ItemEmbeddings, PseudoLabels
from prerank.data.unexposed import (
    Beside,
    UnexposedPairs,
    beside_logged,
    interaction_counts,
    pair_keys,
    propose_pairs,
    unexposed_pairs,
)
from prerank.errors import ConfigError, DataError
from prerank.labels.calibration import PriorCounts, stated_prior
from prerank.labels.chosen import Chosen
from prerank.labels.config import LabelConfig
from prerank.labels.gpl import gpl_labels
from prerank.labels.mix import mixed
from prerank.labels.plain import plain_labels
from prerank.labels.plugin import plugin_labels
from prerank.labels.teacher import ScorePairs, teacher_labels
from prerank.seeds import rng
from prerank.spread import Spread, here

HISTOGRAM_BINS = 20


def label(
    dataset: Dataset,
    embeddings: ItemEmbeddings,
    anchors: InterestAnchors | None,
    config: LabelConfig,
    seed: int,
    teacher: ScorePairs | None = None,
    spread: Spread = here,
) -> PseudoLabels:
    """Give the unexposed pairs their pseudo-labels and confidences (method.md stages 5 and 6).

    Args:
        dataset: logs, candidates and histories.
        embeddings: the frozen semantic space, one row an item of the dataset.
        anchors: of all users of the dataset; needed by the source ``gpl`` only, and handed to a
            plug-in where the method has some.
        config: of the stage.
        seed: of the proposal, the sample of pairs, the folds and the shuffles.
        teacher: scores pairs; needed by the source ``teacher``, by ``joint_teacher`` and to mix a
            teacher in.
        spread: where pairs are matched.

    Returns:
        PseudoLabels of pairs that were neither exposed nor interacted with in training (held-out
        exposures may be among them, `unexposed.known_in_training`), each once, sorted by user then
        item. ``fit`` holds what was fitted, and
        ``pseudo_weight_factor`` in [0, 1], by which the training stage multiplies the weight of all
        pseudo-labels.

    Raises:
        ConfigError: for the source ``none``, ``gpl`` without anchors, a teacher's labels without
            a teacher, or logged pairs wanted where none are.
        DataError: if artifacts do not belong together, or a source has nothing to learn from.
    """
    chosen = choose_pairs(dataset, config, seed)
    pairs = chosen.pairs
    if config.source == "gpl":
        if anchors is None:
            raise ConfigError(
                "labels from anchors need anchors",
                where="label.source",
                must="`negatives` or `truth` where no anchors are made",
                got="gpl",
            )
        sizes = len(dataset.users), len(dataset.items)
        require_fit(*sizes, embeddings, anchors.n_users, anchors.points.shape[1])
        asked = _needed(teacher) if config.joint_teacher else None
        labels = gpl_labels(dataset, embeddings, anchors, chosen, config, seed, asked, spread)
    elif config.source == "plugin":
        labels = plugin_labels(dataset, embeddings, anchors, pairs, config, seed)
    elif config.source == "teacher":
        labels = teacher_labels(dataset, chosen, _needed(teacher), config)
    else:
        labels = _without_model(dataset, pairs, config)
    labels = _mixed(_shuffled(labels, config, seed), teacher, config)
    summary = Summary(config, chosen.n_unexposed, chosen.beside)
    summary.add(labels)
    return replace(labels, fit={**labels.fit, **summary.values()})


def choose_pairs(dataset: Dataset, config: LabelConfig, seed: int) -> Chosen:
    """Return the pairs to label, sorted by user then item.

    With ``both``, a pair that was logged and proposed is the logged one.
    """
    logged = unexposed_pairs(dataset)
    wanted = config.pairs
    if wanted == "auto":
        wanted = "logged" if len(logged) else "proposed"
    if wanted == "logged" and not len(logged):
        raise ConfigError(
            "there are no logged unexposed candidates",
            where="label.pairs",
            must="auto or proposed",
            got=config.pairs,
        )
    pairs = logged
    if wanted != "logged":
        stream = rng(seed, "labels", "proposal")
        drawn = propose_pairs(dataset, config.proposed_per_user, config.proposal_power, stream)
        pairs = drawn if wanted == "proposed" else union(logged, drawn)
    n_unexposed = len(pairs)
    if config.max_pairs is not None and n_unexposed > config.max_pairs:
        sample = rng(seed, "labels", "sample")
        keep = np.sort(sample.choice(n_unexposed, size=config.max_pairs, replace=False))
        pairs = pairs.take(keep)
    beside = beside_logged([dataset]) if wanted == "logged" else "training"
    return Chosen(pairs, n_unexposed, beside)


def own_prior(dataset: Dataset, config: LabelConfig, seed: int) -> float:
    """Return the prior that `label` takes where the settings read one (`reads_prior`)."""
    chosen = choose_pairs(dataset, config, seed)
    counts = PriorCounts.of(dataset, chosen.beside)
    return stated_prior(counts, chosen.n_unexposed, config.prior)[0]


def union(first: UnexposedPairs, second: UnexposedPairs) -> UnexposedPairs:
    """Return the pairs of both, each once; of equal ones the first."""
    names = first.columns()
    joined = UnexposedPairs(
        **{n: np.concatenate([getattr(first, n), getattr(second, n)]) for n in names}
    )
    # np.unique keeps the first of equals: the logged one.
    return joined.take(np.unique(pair_keys(joined.user, joined.item), return_index=True)[1])


def require_fit(
    n_users: int, n_items: int, embeddings: ItemEmbeddings, n_anchored: int, dim: int
) -> None:
    """Raise DataError unless embeddings and anchors are of so many users and items.

    ``n_anchored`` and ``dim``: users and dimensions of the anchors.
    """
    for what, got, must in (
        ("items of the embeddings", len(embeddings.vectors), n_items),
        ("users of the anchors", n_anchored, n_users),
        ("dimensions of the anchors", dim, embeddings.vectors.shape[1]),
    ):
        if got != must:
            raise DataError(
                f"number of {what} differs from the data set's or the space's",
                must=str(must),
                got=got,
                hint="all artifacts must come from the same data set",
            )


def _needed(teacher: ScorePairs | None) -> ScorePairs:
    if teacher is None:
        raise ConfigError(
            "labels from a teacher need a teacher",
            where="methods.*.teacher",
            must="ranker or adapted",
            got="none",
        )
    return teacher


def _without_model(dataset: Dataset, pairs: UnexposedPairs, config: LabelConfig) -> PseudoLabels:
    """Labels that need no anchors and no teacher: none, all zero, or the truth where known."""
    if config.source == "none":
        raise ConfigError(
            "the source `none` makes no pseudo-labels",
            where="label.source",
            must="gpl, negatives, teacher, truth or unlabeled",
            got="none",
        )
    nothing = np.zeros(len(pairs))
    if config.source == "unlabeled":
        return plain_labels(pairs, nothing, nothing, UNLABELED)
    if config.source == "negatives":
        popularity = interaction_counts(dataset)[pairs.item] + 1.0
        return plain_labels(pairs, nothing, popularity**config.negative_power, "negatives")
    known = ~np.isnan(pairs.truth)
    if not known.any():
        raise DataError(
            "no unexposed pair has a known truth",
            where="candidates.truth",
            must="values in [0, 1] for some candidates",
            got="all unknown",
            hint="the true-label ceiling exists for simulated or fully labelled logs only",
        )
    return plain_labels(pairs, np.nan_to_num(pairs.truth), known.astype(np.float64), "truth")


def _mixed(labels: PseudoLabels, teacher: ScorePairs | None, config: LabelConfig) -> PseudoLabels:
    """Return the labels with the second opinion of ``config.mix``."""
    if config.mix == "none":
        return labels
    other = np.zeros(len(labels))
    if config.mix == "teacher":
        logit = _needed(teacher)(labels.user, labels.item, labels.time)
        other = expit(logit.astype(np.float64))
    return mixed(labels, other, config.mix_share, config.mix)


def _shuffled(labels: PseudoLabels, config: LabelConfig, seed: int) -> PseudoLabels:
    """Return the control: labels or confidences permuted across the labelled pairs."""
    if config.shuffle == "none":
        return labels
    column = "label" if config.shuffle == "labels" else "confidence"
    labelled = np.flatnonzero(labels.confidence > 0)
    values = getattr(labels, column).copy()
    values[labelled] = rng(seed, "labels", "shuffle").permutation(values[labelled])
    return replace(labels, **{column: values})


class Summary:
    """What a report says of the labels; parts of them are added one after the other."""

    def __init__(self, config: LabelConfig, n_unexposed: int, beside: Beside) -> None:
        self._config, self._n_unexposed, self._beside = config, n_unexposed, beside
        self._n = self._n_labelled = 0
        self._sum = 0.0
        self._labels = np.zeros(HISTOGRAM_BINS, np.int64)
        self._relevance = np.zeros(HISTOGRAM_BINS, np.int64)

    def add(self, labels: PseudoLabels) -> None:
        """Count labels."""
        labelled = labels.confidence > 0
        kept = labels.label[labelled].astype(np.float64)
        relevance = labels.relevance[~np.isnan(labels.relevance)]
        self._n += len(labels)
        self._n_labelled += len(kept)
        self._sum += float(kept.sum())
        self._labels += np.histogram(kept, HISTOGRAM_BINS, (0, 1))[0]
        self._relevance += np.histogram(relevance, HISTOGRAM_BINS, (-1, 1))[0]

    def values(self) -> dict[str, object]:
        """Return plain JSON values."""
        return {
            "source": self._config.source,
            "pairs": self._config.pairs,
            "beside": self._beside,
            "shuffle": self._config.shuffle,
            "n_unexposed": self._n_unexposed,
            "n_pairs": self._n,
            "n_labelled": self._n_labelled,
            "mean_label": self._sum / self._n_labelled if self._n_labelled else None,
            "label_histogram": self._labels.tolist(),
            "relevance_histogram": self._relevance.tolist(),
        }
