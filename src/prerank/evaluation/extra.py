"""What a report page shows besides the records: the keys of ``Report.extra``, plain JSON values.

`evaluate` fills ``evaluation``; the pipeline adds the other keys with `with_extra`. Every key may
be absent: the page then leaves its section out.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, TypedDict

from prerank.artifacts import Report


class Bin(TypedDict):
    """One bin of a reliability curve."""

    predicted: float
    clicked: float
    n: int


class PoolExtra(TypedDict):
    """One pool: its size and make-up. Who gets the places of the lists is metric share@k."""

    rows: int
    users: int
    requests: int
    items: int
    clicks: int
    segments: dict[str, int]
    """Rows by segment: head, mid, tail."""
    shares: dict[str, dict[str, float]]
    """``candidates`` or ``clicks`` -> segment -> share of the rows, of the clicked rows."""
    reliability: dict[str, list[Bin]]
    """Method -> bins of sigmoid(score) against the click rate, first training seed."""


class UsersExtra(TypedDict):
    """Users by the sign of their difference."""

    better: int | None
    """Users whose value, averaged over the seeds, is higher than with the reference; None for AUC,
    which no user has a value of."""
    tied: int | None
    worse: int | None


class TestExtra(UsersExtra):
    """One paired comparison: is ``method`` better than ``reference`` here?"""

    method: str
    reference: str
    pool: str
    segment: str
    metric: str
    p: float | None
    """Two-sided, from the paired bootstrap over users and training seeds; None where fewer than
    `artifacts.LEAST_USERS` users have a value."""
    p_holm: float | None
    """Corrected over all methods that compete with the reference; None out of competition and where
    p is."""


class EvaluationExtra(TypedDict):
    """Filled by `evaluate`."""

    config: dict[str, Any]
    """The EvaluateConfig."""
    seed: int
    methods: list[str]
    """In the order given."""
    label_scores: list[str]
    """Those of the methods that are a label score alone, no trained pre-ranker."""
    segment_items: dict[str, int]
    """Items of the catalog by segment."""
    pools: dict[str, PoolExtra]
    tests: list[TestExtra]
    """In the order of the report's differences."""


class Histogram(TypedDict):
    """Counts between edges; ``edges`` has one value more than ``counts``."""

    edges: list[float]
    counts: list[int]


class LabelPart(TypedDict):
    """Some of the pseudo-labels that do not abstain."""

    n: int
    low: float
    """Least popularity or confidence of the part; ``high``: the largest."""
    high: float
    mean_label: float
    mean_confidence: float


class LabelExtra(TypedDict, total=False):
    """Pseudo-labels of one method; see `explain.describe_labels`."""

    histogram: Histogram
    n: int
    abstained: int
    mean: float
    """Mean label, weighted by confidence."""
    reliability: list[Bin]
    """Label against click."""
    reliability_on: str
    """Where the clicks come from: unexposed pairs whose truth an experiment knows, else held-out
    exposures (labels before the shift to the prior)."""
    knots: list[list[float]]
    """(relevance, label) points of the fitted map."""
    by_popularity: list[LabelPart]
    """Tenths of the labelled pairs by training exposures of the item; equal counts share one."""
    by_confidence: list[LabelPart]
    """Fifths of the labelled pairs."""
    fit: dict[str, Any]
    """What the label stage says of its fit: prior, map, skill."""


class SkillExtra(TypedDict):
    """How well a method's relevance orders held-out clicks, 0: no better than chance."""

    skill: float | None
    """None where too few users tell."""
    skill_low: float | None
    """The lower bound, by which the labels' weight is set."""


class AuditPart(TypedDict, total=False):
    """Pseudo-labels held against the truth, over some pairs; None where undefined."""

    n: int
    users: int
    mean_label: float | None
    mean_truth: float | None
    auc: float | None
    auc_interval: list[float] | None
    gauc: float | None
    gauc_interval: list[float] | None
    ece: float | None
    low: float
    """Least popularity or confidence of the part; ``high``: the largest."""
    high: float
    coverage: float
    """Share of the part's pairs that have a label; popularity parts only."""


class AuditExtra(TypedDict):
    """See `audit.audit`."""

    n: int
    """Pairs with a known truth."""
    labelled: int
    coverage: float
    all: AuditPart
    reliability: list[Bin]
    by_popularity: list[AuditPart]
    by_confidence: list[AuditPart]
    confidence_gain: dict[str, float] | None
    """AUC in the most confident part minus that in the least: value, low, high."""
    sentence: str
    """Does confidence predict correctness?"""


class AnchorExtra(TypedDict):
    """Interest anchors of all users; see `explain.describe_anchors`."""

    source: str
    users: int
    with_anchors: int
    per_user: float
    first_codes_per_user: float
    """Distinct first-level codes, mean over users with anchors."""
    cosine_within_user: float
    """Mean pairwise cosine of a user's anchors, mean over users with two or more."""


class UserAnchor(TypedDict):
    """An anchor, named by the item nearest to it in the frozen semantic space."""

    title: str
    cosine: float
    prob: float
    first_code: int


class UserLabel(TypedDict):
    """A pseudo-label of one user, with the reason for it."""

    title: str
    label: float
    confidence: float
    because: str
    """Title of the matched anchor, empty if the source has none."""
    truth: float | None


class UserExtra(TypedDict):
    """A sample user; see `explain.sample_users`."""

    user: str
    history: list[str]
    anchors: list[UserAnchor]
    labels: list[UserLabel]


class FunnelStep(TypedDict):
    """What is left after one step of the cascade."""

    step: str
    rows: int
    """User-item pairs of training requests, each request's counted."""
    users: int
    items: int


class Decile(TypedDict):
    """One tenth of the items, by training exposures."""

    decile: int
    """1: the least exposed tenth; 10: the most exposed."""
    items: int
    low: int
    """Least training exposures of an item of the tenth; ``high``: the most."""
    high: int
    candidates: float
    """Share of the recalled candidates, 0 where none are logged."""
    exposures: float
    clicks: float


class CascadeExtra(TypedDict):
    """What the logs say of the cascade; see `overview.describe_cascade`."""

    funnel: list[FunnelStep]
    deciles: list[Decile]
    lorenz: dict[str, list[float]]
    """Who -> cumulative share at evenly spaced shares of the items, least first."""
    gini: dict[str, float]


class MapPoint(TypedDict):
    """One item of the catalogue's map."""

    item: str
    title: str
    sid: str
    first_code: int
    x: float
    y: float


class CatalogMap(TypedDict):
    """Items in the plane of the two principal axes of the frozen semantic space."""

    points: list[MapPoint]
    explained: list[float]
    """Share of the variance along each of the two axes."""
    items: int
    """Items of the catalogue; the points are drawn from them."""


class Card(TypedDict):
    """A data or model card."""

    title: str
    facts: list[list[str]]
    """Name and value."""
    notes: list[str]


class StageExtra(TypedDict, total=False):
    """One artifact of the run."""

    stage: str
    """Its key in the store."""
    seconds: float
    fingerprint: str
    verb: str
    """The stage that made it."""
    parents: list[str]
    """Keys of what it was made from."""
    peak_bytes: int
    """Largest resident memory of the process that made it; 0 unknown."""


class CostExtra(TypedDict):
    """What an arm costs, from the manifests of its artifacts."""

    train_seconds: float
    """Wall time to train one pre-ranker, median over the seeds."""
    before_seconds: float
    """Wall time of all it needs before training besides data and embeddings: semantic IDs,
    language model, anchors, labels, teachers; shared artifacts count for each method."""
    peak_bytes: int
    """Largest resident memory of a process while it trained one; 0 unknown."""


class ArmExtra(TypedDict):
    """A variant's arm."""

    method: str
    """The method it varies."""
    variant: str
    changes: list[str]
    """``stage.key = value`` texts."""


class TrialExtra(TypedDict):
    """How a method's settings were chosen; see `prerank.comparison`."""

    trials: int
    pool: str
    """The pool whose validation rows decided."""
    own: float | None
    """GAUC there with the recipe's own settings."""
    best: float | None
    settings: dict[str, float]
    seconds: float


class ReportExtra(TypedDict, total=False):
    """All keys a page knows."""

    title: str
    evaluation: EvaluationExtra
    labels: dict[str, LabelExtra]
    unearned: dict[str, SkillExtra]
    """Arms whose pseudo-labels got no weight, for they showed no skill (`label.skill_weight`)."""
    audit: dict[str, AuditExtra]
    """Method -> its pseudo-labels against the truth, where an experiment knows it."""
    semantic_ids: dict[str, Any]
    """The quality report of the SemanticIds artifact, as it is."""
    anchors: AnchorExtra
    users: list[UserExtra]
    cascade: CascadeExtra
    map: CatalogMap
    data_card: Card
    model_card: Card
    stages: list[StageExtra]
    costs: dict[str, CostExtra]
    arms: dict[str, ArmExtra]
    """Arm -> what it varies."""
    tuning: dict[str, TrialExtra]
    notes: list[str]
    """Notes of the dataset: what a reader of the numbers must know."""
    recipe: str
    """The resolved recipe, TOML."""
    versions: dict[str, str]


def with_extra(report: Report, more: ReportExtra) -> Report:
    """Return the report with the keys of ``more`` added to its extra."""
    return replace(report, extra={**report.extra, **more})
