"""Settings of the label stage (no heavy imports: the command line reads them at start)."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from prerank.plugins import PluginConfig


class LabelConfig(PluginConfig):
    """How unexposed pairs get their pseudo-labels and confidences (method.md stages 5 and 6)."""

    source: Literal["gpl", "negatives", "teacher", "truth", "plugin", "unlabeled", "none"] = Field(
        "gpl",
        description="Where labels come from: interest anchors (`gpl`), all zero (`negatives`), a "
        "ranker's scores (`teacher`), the known truth (`truth`, a ceiling for studies), a function "
        "of another package (`plugin`), nowhere "
        "(`unlabeled`: pairs for objectives that need no labels) or no pairs at all (`none`).",
    )
    negative_power: float = Field(
        0.0,
        ge=0,
        description="`negatives`: a pair counts by (interactions of its item + 1) ** power; "
        "0: all alike, .75: as if drawn by popularity.",
    )
    teacher_rule: Literal["soft", "two-threshold", "surest"] = Field(
        "soft",
        description="`teacher`: its click probability for all pairs, 1 and 0 for the best and the "
        "worst (the others abstain), or its probability for these alone.",
    )
    teacher_share: float = Field(
        0.5,
        gt=0,
        le=1,
        description="Part of the expected clicks, and of the others, that the best and the worst "
        "pairs of `teacher_rule` are.",
    )
    mix: Literal["none", "negatives", "teacher"] = Field(
        "none",
        description="A second opinion on every pair (extension, ours): label 0, or a ranker's.",
    )
    mix_share: float = Field(0.5, gt=0, le=1, description="Weight of the second opinion.")
    pairs: Literal["auto", "logged", "proposed", "both"] = Field(
        "auto",
        description="Which unexposed pairs: logged candidates, drawn from a proposal, or both; "
        "`auto` takes the logged ones where there are any.",
    )
    proposed_per_user: int = Field(
        100, ge=1, description="Items drawn for each user when pairs are proposed."
    )
    proposal_power: float = Field(
        0.75,
        ge=0,
        description="Proposal is proportional to (interactions + 1) ** power; 0 is uniform.",
    )
    max_pairs: int | None = Field(
        None, ge=1, description="Keep at most this many pairs, a seeded sample; none keeps all."
    )
    match: Literal["max", "top-m", "log-sum-exp", "probability-weighted"] = Field(
        "max", description="How the cosines to all anchors of a user become one relevance."
    )
    top_m: int = Field(3, ge=1, description="Anchors averaged by the `top-m` match.")
    temperature: float = Field(
        0.1,
        gt=0,
        description="Temperature of the two soft matches, `log-sum-exp` and "
        "`probability-weighted`, in units of cosine.",
    )
    map: Literal["calibrated", "linear", "two-threshold", "joint"] = Field(
        "calibrated", description="How relevance becomes a label in [0, 1]."
    )
    calibrator: Literal["isotonic", "logistic"] = Field(
        "isotonic", description="Rising curve fitted by the `calibrated` map."
    )
    prior: float | Literal["auto", "exposed", "keep"] = Field(
        "auto",
        description="Mean label over the unexposed pairs after the shift in logit space, and the "
        "expected clicks of `teacher_rule`; `auto` extrapolates by logged propensities, else "
        "takes the observed clicks over all recalled pairs; `exposed` takes the click rate of "
        "exposures; `keep` does not shift (and is `auto` for a teacher's thresholds).",
    )
    low: float = Field(0.3, ge=-1, le=1, description="Relevance of label 0 (`linear`, thresholds).")
    high: float = Field(
        0.7, ge=-1, le=1, description="Relevance of label 1 (`linear`, thresholds)."
    )
    confidence: Literal["pair", "user", "uniform"] = Field(
        "pair",
        description="Confidence by pair (of the matched anchor), by user, or 1 for all.",
    )
    use_dispersion: bool = Field(
        True, description="Use the agreement of a user's anchors in the confidence."
    )
    use_history: bool = Field(
        True, description="Use the closeness of anchors to the user's history in the confidence."
    )
    use_llm: bool = Field(
        True, description="Use the language model's probability in the confidence."
    )
    confidence_floor: float = Field(
        0.1, gt=0, le=1, description="Least confidence of a labelled pair, before rescaling."
    )
    history_length: int = Field(
        100, ge=1, description="Most recent history items that anchors are compared with."
    )
    joint_correction: float = Field(
        0.5,
        ge=0,
        le=1,
        description="Power of the fitted exposure propensity that the `joint` map divides out: "
        "0 counts unexposed pairs as not clicked, 1 corrects fully.",
    )
    joint_teacher: bool = Field(
        False,
        description="The `joint` map also reads a ranker's score of each pair (needs `teacher`).",
    )
    skill_weight: bool = Field(
        True,
        description="Scale the weight of all pseudo-labels by the skill that the relevance shows "
        "on held-out exposed rows (0 when it shows none).",
    )
    full_skill: float = Field(
        0.1,
        gt=0,
        le=1,
        description="Least skill (2 GAUC - 1) that earns full weight; more is asked where the "
        "item click rate alone shows more; the factor falls with the square of the ratio.",
    )
    n_folds: int = Field(5, ge=2, description="User folds of all cross-fitting.")
    shuffle: Literal["none", "labels", "confidence"] = Field(
        "none", description="Controls: permute the labels, or the confidences, across pairs."
    )

    @property
    def needs_teacher(self) -> bool:
        """Say whether a ranker's scores are read."""
        return "teacher" in (self.source, self.mix) or self.joint_teacher

    @property
    def reads_prior(self) -> bool:
        """Say whether ``prior`` decides something: a shift of labels, or where thresholds lie."""
        if self.source == "teacher":
            return self.teacher_rule != "soft"
        return self.source == "gpl" and self.map in ("calibrated", "joint") and self.prior != "keep"

    @model_validator(mode="after")
    def _check(self) -> Self:
        self.require_plugin(self.source, "source")
        if self.low >= self.high:
            raise ValueError("low must be below high")
        if isinstance(self.prior, float) and not 0 < self.prior < 1:
            raise ValueError("prior must lie strictly between 0 and 1, or be auto, exposed or keep")
        if self.joint_teacher and self.map != "joint":
            raise ValueError("joint_teacher needs map = joint")
        if self.mix != "none" and self.source in ("unlabeled", "none", self.mix):
            raise ValueError(f"mix = {self.mix} needs labels of another source to be mixed into")
        return self


def has_parts(config: LabelConfig) -> bool:
    """Say whether labels of these settings can be made part by part; others read the whole."""
    plain = config.mix == config.shuffle == "none"
    return config.source == "gpl" and config.map != "joint" and plain
