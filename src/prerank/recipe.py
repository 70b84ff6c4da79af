"""A recipe: one TOML file that says a whole run. Every key has a default."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from datetime import date, time
from pathlib import Path
from typing import Any, Literal, Self

import tomli_w
from pydantic import Field, ValidationError, model_validator

from prerank.anchors.config import DECODED, FinetuneConfig, GenerateConfig
from prerank.config import Config, closest, from_validation
from prerank.data.config import PrepareConfig
from prerank.data.simulate_config import SimulateConfig
from prerank.embeddings.config import EncodeConfig
from prerank.errors import ConfigError
from prerank.evaluation.config import EvaluateConfig
from prerank.labels.config import LabelConfig
from prerank.ranking.config import Pairs, TrainConfig
from prerank.remote import is_uri, local_name
from prerank.semantic_ids.config import TokenizeConfig
from prerank.store import is_inside
from prerank.tracking.config import TrackingConfig

STAGES = (
    "prepare",
    "encode",
    "tokenize",
    "finetune",
    "generate",
    "teach",
    "label",
    "train",
    "evaluate",
)
VARIED = ("encode", "tokenize", "finetune", "generate", "label", "train")
"""Stages whose keys a variant may change; the data and the way of judging are the same for all."""
TEACHER: dict[str, Any] = {"model": "din", "hidden": [128, 64]}
"""What makes a ranker of a pre-ranker: target attention over the history, and larger layers."""
AT = "@"
"""Joins a method and a variant to the name of an arm: ``gpl@fewer-anchors``."""


class MethodConfig(Config):
    """One line of the comparison: which anchors, and what differs from the recipe's stages."""

    anchors: str = Field(
        "",
        description="llm, llm-debiased, history, random, popular, shuffled, or two joined by `+`; "
        "empty for label sources that need no anchors",
    )
    n_anchors: int = Field(
        0,
        ge=0,
        description="anchors of a user that this method reads, of each source where two are "
        "joined; 0: as many as [generate] says. Those of a language model are decoded once, as "
        "many as the method with most reads; all others read the first of them",
    )
    teacher: Literal["", "ranker", "adapted"] = Field(
        "",
        description="who scores unexposed pairs for the baselines that distil: the ranker, or the "
        "ranker adapted to unexposed pairs by an adversary; empty for methods without a teacher",
    )
    as_ranker: bool = Field(
        False, description="trained as [teacher] says: a row to compare with, not to be served"
    )
    label: dict[str, Any] = Field(
        default_factory=dict, description="keys of [label] that differ for this method"
    )
    train: dict[str, Any] = Field(
        default_factory=dict, description="keys of [train] that differ for this method"
    )
    teach: dict[str, Any] = Field(
        default_factory=dict,
        description="keys of [teacher] that differ for this method: it gets a teacher of its own",
    )

    @property
    def adapts_teacher(self) -> bool:
        """Say whether the teacher learns from unexposed pairs as well."""
        return self.teacher == "adapted"

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.teach and not self.teacher:
            raise ValueError("teach: keys of a teacher, but the method has none")
        try:
            LabelConfig.parse(self.label, where="label")
            TrainConfig.parse(self.train, where="train")
            TrainConfig.parse(self.teach, where="teach")
        except ConfigError as error:  # pydantic adds the method's name to what is a ValueError
            said = f"{error.where}: {error.what}, must be {error.must}, got {error.got}"
            raise ValueError(said) from None
        return self


def default_methods() -> dict[str, MethodConfig]:
    """Return what every honest comparison holds: GPL, two baselines and the anchor controls."""
    return {
        "exposed-only": MethodConfig(label={"source": "none"}),
        "negative-sampling": MethodConfig(label={"source": "negatives"}),
        "gpl": MethodConfig(anchors="llm"),
        "gpl-history": MethodConfig(anchors="history"),
        # The skill gate would silence these controls: at full weight they say more.
        "gpl-random": MethodConfig(anchors="random", label={"skill_weight": False}),
        "gpl-popular": MethodConfig(anchors="popular", label={"skill_weight": False}),
        "gpl-shuffled": MethodConfig(anchors="shuffled", label={"skill_weight": False}),
    }


def all_methods(truth: bool = False) -> dict[str, MethodConfig]:
    """Return every baseline, GPL, its combinations and its controls, in the order of tables.

    Args:
        truth: add the ceiling, for data whose candidates hold a known truth.
    """
    methods = default_methods()
    unlabeled = {"source": "unlabeled"}
    weighted, joined = {"match": "probability-weighted"}, "llm-debiased+history"

    def taught(teacher: Literal["ranker", "adapted"], rule: str, objective: str) -> MethodConfig:
        label = {"source": "teacher", "teacher_rule": rule}
        return MethodConfig(teacher=teacher, label=label, train={"objective": objective})

    def with_kd(anchors: str) -> MethodConfig:
        # All of KD: on exposed rows as well.
        train = {"objective": "distillation"}
        return MethodConfig(
            anchors=anchors, teacher="ranker", label={"mix": "teacher"}, train=train
        )

    found = {
        "exposed-only": methods["exposed-only"],
        "negative-sampling": methods["negative-sampling"],
        "negative-sampling-popularity": MethodConfig(
            label={"source": "negatives", "negative_power": 0.75}
        ),
        "in-batch-logq": MethodConfig(label={"source": "none"}, train={"in_batch_weight": 1.0}),
        "ips": MethodConfig(label=unlabeled, train={"objective": "ips"}),
        "snips": MethodConfig(label=unlabeled, train={"objective": "snips"}),
        "dr": MethodConfig(label=unlabeled, train={"objective": "dr"}),
        "ranker": MethodConfig(as_ranker=True, label={"source": "none"}),
        "kd-exposed": MethodConfig(
            teacher="ranker", label={"source": "none"}, train={"objective": "distillation"}
        ),
        "kd-all": taught("ranker", "soft", "distillation"),
        "tl": taught("ranker", "soft", "transfer"),
        "muda": taught("ranker", "two-threshold", "pointwise"),
        "ukd": taught("adapted", "soft", "ukd"),
        "sida": taught("adapted", "surest", "distillation"),
        "damcar": MethodConfig(label=unlabeled, train={"objective": "damcar"}),
        "gpl": methods["gpl"],
        **{name: methods[name] for name in methods if name.startswith("gpl-")},
        # Extensions, ours: GPL with anchors whose popularity is corrected, matched by probability,
        # with the user's history, with fitted popularity (and a ranker's score), or with a second
        # opinion.
        "gpl-debiased": MethodConfig(anchors="llm-debiased"),
        "gpl-weighted": MethodConfig(anchors="llm", label=weighted),
        "gpl-joined": MethodConfig(anchors=joined, label=weighted),
        "gpl-joint": MethodConfig(anchors=joined, label={"map": "joint", **weighted}),
        "gpl-joint+kd": MethodConfig(
            anchors=joined,
            teacher="ranker",
            label={"map": "joint", "joint_teacher": True, **weighted},
        ),
        "gpl+neg": MethodConfig(anchors="llm", label={"mix": "negatives"}),
        "gpl+kd": with_kd("llm"),
        "gpl-debiased+kd": with_kd("llm-debiased"),
    }
    if truth:
        found["true-labels"] = MethodConfig(label={"source": "truth"})
    return found


def contradiction(method: MethodConfig, label: LabelConfig, train: TrainConfig) -> str:
    """Return what is impossible about a method's settings; empty where all is well."""
    if label.source == "gpl" and not method.anchors:
        return "label source gpl needs `anchors`"
    if method.n_anchors and not method.anchors:
        return "`n_anchors` is given, but the method has no `anchors`"
    kinds: dict[str, Pairs] = {"none": "none", "unlabeled": "unlabeled"}
    kind = kinds.get(label.source, "labels")
    if kind not in train.reads:
        wanted = {"none": "`none`", "unlabeled": "`unlabeled`", "labels": "a source of labels"}
        must = " or ".join(wanted[one] for one in train.reads)
        return f"train objective {train.objective} needs label source {must}, not {label.source}"
    needs = label.needs_teacher or train.needs_teacher
    if needs and not method.teacher:
        return "a teacher's scores are read: needs `teacher`"
    if method.teacher and not needs:
        return "`teacher` is given, but nothing reads its scores"
    return ""


Changes = dict[str, Any]


def _changes(stage: str) -> Any:
    return Field(default_factory=dict, description=f"keys of [{stage}] that differ")


class VariantConfig(Config):
    """One ablation: some methods once more, with a few keys of any stage changed."""

    methods: tuple[str, ...] = Field(
        (), description="methods of the recipe to run so; none: the one that evaluate puts first"
    )
    encode: Changes = _changes("encode")
    tokenize: Changes = _changes("tokenize")
    finetune: Changes = _changes("finetune")
    generate: Changes = _changes("generate")
    label: Changes = _changes("label")
    train: Changes = _changes("train")


class TuneConfig(Config):
    """How `compare` chooses settings, the same budget for every method."""

    trials: int = Field(0, ge=0, description="settings tried for each method; 0: none are chosen")
    pool: str = Field(
        "",
        description="pool whose validation rows decide; empty: the first unexposed one that has "
        "validation rows, else the first that has",
    )


class Recipe(Config):
    """A whole run: where it goes, its seeds, one section a stage, and the methods compared."""

    name: str = Field("run", description="name of the run; also its folder under `out`")
    out: str = Field(
        "runs",
        description="folder that holds the run's folder; or a URI (s3://, gs://, hdfs://): then "
        "artifacts and checkpoints are published there and fetched from there",
    )
    cache: str = Field(
        ".prerank", description="local folder to work in where `out` is a URI, or the logs are"
    )
    seed: int = Field(0, ge=0, description="root seed of every stage before train")
    seeds: tuple[int, ...] = Field(
        (0, 1, 2, 3, 4), description="one pre-ranker is trained a method and seed"
    )
    workers: int = Field(
        1, ge=1, description="processes that decode anchors, or train pre-rankers, side by side"
    )
    prepare: PrepareConfig = PrepareConfig()
    encode: EncodeConfig = EncodeConfig()
    tokenize: TokenizeConfig = TokenizeConfig()
    finetune: FinetuneConfig = FinetuneConfig()
    generate: GenerateConfig = GenerateConfig()
    label: LabelConfig = LabelConfig()
    train: TrainConfig = TrainConfig()
    teacher: dict[str, Any] = Field(
        default_factory=lambda: dict(TEACHER),
        description="keys of [train] that differ for the ranker; one ranker, of the root seed, "
        "teaches all training seeds, and all methods that do not change it",
    )
    evaluate: EvaluateConfig = EvaluateConfig()
    simulate: SimulateConfig = SimulateConfig()
    tune: TuneConfig = TuneConfig()
    tracking: TrackingConfig = TrackingConfig()
    methods: dict[str, MethodConfig] = Field(default_factory=default_methods)
    variants: dict[str, VariantConfig] = Field(
        default_factory=dict,
        description="ablations: `[variants.NAME]` changes keys of any stage from encode to train",
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.methods:
            raise ValueError("methods: a recipe needs at least one")
        if not is_inside(self.name):
            raise ValueError(f"name {self.name!r}: a folder below `out`")
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise ValueError("seeds must be distinct, at least one")
        for name in [*self.methods, *self.variants]:
            if name[:1] in ("", ".") or not all(c.isalnum() or c in "-_.+" for c in name):
                raise ValueError(f"name {name!r}: letters, digits and - _ . + only")
        for name, method in self.methods.items():
            problem = contradiction(method, self.label_of(method), self.train_of(method))
            if problem:
                raise ValueError(f"method {name!r}: {problem}")
        self._require_beams()
        for name in self.variants:
            self.variant(name)  # raises if it names no method or changes a key that is not there
        self._require_known_arms()
        return self

    def _require_known_arms(self) -> None:
        """Raise ValueError where `[evaluate]` names an arm, other than by default, that is not."""
        arms, default = self.arms(), EvaluateConfig()
        named = {"method": (self.evaluate.method,), "baselines": self.evaluate.baselines}
        usual = {default.method, *default.baselines}
        for key, names in named.items():
            for name in names:
                if name not in arms and name not in usual:
                    near = closest(name, arms)
                    raise ValueError(
                        f"evaluate.{key} {name!r} is no method of the recipe, which has "
                        f"{', '.join(arms)}{near and f'; {near}'}"
                    )

    def unscored(self) -> tuple[str, ...]:
        """Return the arms that `[evaluate]` names by default and the recipe does not have."""
        named = (self.evaluate.method, *self.evaluate.baselines)
        return tuple(name for name in dict.fromkeys(named) if name not in self.arms())

    @property
    def folder(self) -> Path:
        """The folder of the run; where ``out`` is a URI, its copy on this machine."""
        out = Path(self.cache) / local_name(self.out) if is_uri(self.out) else Path(self.out)
        return out / self.name

    @property
    def uri(self) -> str:
        """Where the run is published; empty if it is a local folder alone."""
        return f"{self.out.rstrip('/')}/{self.name}" if is_uri(self.out) else ""

    def variant(self, name: str) -> Recipe:
        """Return the recipe of one variant: its methods only, with its changes made.

        A change of the variant wins over what a method changes itself.

        Raises:
            ConfigError: the variant names a method that is not there, or a key or value is wrong.
        """
        variant, where = self.variants[name], f"variants.{name}"
        wanted = variant.methods or (self.evaluate.method,)
        absent = [one for one in wanted if one not in self.methods]
        if absent:
            raise ConfigError(
                "a variant of a method that is not there",
                where=f"{where}.methods",
                must=" or ".join(self.methods),
                got=absent[0],
            )
        stages = {
            stage: type(own).parse(
                {**own.model_dump(), **getattr(variant, stage)}, where=f"{where}.{stage}"
            )
            for stage in VARIED
            for own in [getattr(self, stage)]
        }
        methods = {
            one: self.methods[one].model_copy(
                update={
                    "label": {**self.methods[one].label, **variant.label},
                    "train": {**self.methods[one].train, **variant.train},
                    **({"n_anchors": 0} if "n_anchors" in variant.generate else {}),
                }
            )
            for one in wanted
        }
        found = self.model_copy(update={**stages, "methods": methods, "variants": {}})
        for one, method in methods.items():
            problem = contradiction(method, found.label_of(method), found.train_of(method))
            if problem:
                what = "the settings do not fit together"
                raise ConfigError(what, where=where, must=f"method {one!r}: {problem}")
        found._require_beams(f"{where}.generate")
        return found

    def _require_beams(self, where: str = "") -> None:
        """Raise ConfigError where a method reads more anchors than there are beams.

        ``where``: whose beams they are, of a variant.
        """
        for name, method in self.methods.items():
            n_anchors, decoded = self.n_anchors_of(method), any(_reads(method, s) for s in DECODED)
            if decoded and not self.generate.has_beams(n_anchors):
                raise ConfigError(
                    f"method {name!r} reads more anchors than there are beams",
                    where=where or f"methods.{name}.n_anchors",
                    must=f"at most {self.generate.beam_width}, the constant generate.beam_width",
                    got=n_anchors,
                    hint="raise generate.beam_width, or let it grow: generate.beam_growth",
                )

    def arms(self) -> dict[str, str]:
        """Return arm -> method of all that is trained: the methods, then ``method@variant``."""
        found = {name: name for name in self.methods}
        for name in self.variants:
            found |= {f"{method}{AT}{name}": method for method in self.variant(name).methods}
        return found

    def n_anchors_of(self, method: MethodConfig) -> int:
        """Return how many anchors of a user (and source) ``method`` reads at most."""
        return method.n_anchors or self.generate.n_anchors

    def most_anchors(self, source: str) -> int:
        """Return the largest number of anchors ``source`` that a method reads; 0 if none does."""
        read = (self.n_anchors_of(m) for m in self.methods.values() if _reads(m, source))
        return max(read, default=0)

    def label_of(self, method: MethodConfig) -> LabelConfig:
        """Return the label config of ``method``: the recipe's, with the method's differences."""
        return LabelConfig.parse({**self.label.model_dump(), **method.label}, where="methods.label")

    def train_of(self, method: MethodConfig) -> TrainConfig:
        """Return the train config of ``method``: the recipe's, with the method's differences."""
        differs = {**(self.teacher if method.as_ranker else {}), **method.train}
        return TrainConfig.parse({**self.train.model_dump(), **differs}, where="methods.train")

    def teacher_of(self, method: MethodConfig) -> TrainConfig:
        """Return how the teacher of ``method`` (ranker or adapted) is trained."""
        objective = "adapted" if method.adapts_teacher else "pointwise"
        # The softmax beside the loss is a method's own; a ranker has it where [teacher] says so.
        plain = {"objective": objective, "in_batch_weight": 0.0}
        values = {**self.train.model_dump(), **plain, **self.teacher, **method.teach}
        return TrainConfig.parse(values, where="teacher")

    def with_train(self, name: str, settings: Mapping[str, Any]) -> Recipe:
        """Return the recipe with keys of [train] changed for one method."""
        return self._with_method(name, train={**self.methods[name].train, **settings})

    def with_label(self, name: str, settings: Mapping[str, Any]) -> Recipe:
        """Return the recipe with keys of [label] changed for one method."""
        return self._with_method(name, label={**self.methods[name].label, **settings})

    def with_teach(self, name: str, settings: Mapping[str, Any]) -> Recipe:
        """Return the recipe with keys of [teacher] changed for one method."""
        return self._with_method(name, teach={**self.methods[name].teach, **settings})

    def _with_method(self, name: str, **changes: Any) -> Recipe:
        changed = self.methods[name].model_copy(update=changes)
        return self.model_copy(update={"methods": {**self.methods, name: changed}})

    def to_toml(self) -> str:
        """Return the resolved recipe as TOML; reading it back gives an equal recipe."""
        return tomli_w.dumps(self.model_dump(mode="json", exclude_none=True))


def _reads(method: MethodConfig, source: str) -> bool:
    """Say whether a method reads anchors ``source``, alone or among others."""
    sources = {method.anchors, *method.anchors.split("+")}
    # Another user's anchors are the language model's too.
    return source in sources or (source == "llm" and "shuffled" in sources)


def load_recipe(path: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """Read and check a recipe; ``overrides`` are ``stage.key=value`` texts.

    Overrides of ``methods.*`` change or join the default methods where the file has no methods.

    Raises:
        ConfigError: the file is missing or no TOML, or a key or value is wrong; names both.
    """
    path = Path(path)
    try:
        values: dict[str, Any] = _plain(tomllib.loads(path.read_text()))
    except FileNotFoundError:
        raise ConfigError(
            "the recipe is not there",
            where=str(path),
            must="a TOML file",
            hint="the repository's recipes/ hold one for each data set",
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            "the recipe cannot be read", where=str(path), must="a TOML file in UTF-8", got=error
        ) from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(
            "the recipe is not valid TOML",
            where=str(path),
            must="TOML: [section] and key = value",
            got=error,
        ) from None
    changes = list(overrides)
    if "methods" not in values and any(text.startswith("methods.") for text in changes):
        # A change of one of the default methods, or one more beside them.
        known = default_methods().items()
        values["methods"] = {name: one.model_dump(exclude_defaults=True) for name, one in known}
    for text in changes:
        _override(values, text)
    return parse_recipe(values, where=str(path))


def parse_recipe(values: Mapping[str, Any], *, where: str = "") -> Recipe:
    """Check ``values`` and return the recipe; raise ConfigError naming file and key."""
    try:
        return Recipe.model_validate(dict(values))
    except ValidationError as error:
        raise from_validation(error, where=where, model=Recipe) from None
    except ConfigError as error:
        place = " -> ".join(part for part in (where, error.where) if part)
        about = {"must": error.must, "got": error.got, "hint": error.hint}
        raise ConfigError(error.what, where=place, **about) from None


def _override(values: dict[str, Any], text: str) -> None:
    """Apply one ``stage.key=value``; the value is read as TOML, else as text."""
    path, equals, raw = text.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys):
        raise ConfigError("bad override", where="--set", must="stage.key=value", got=text)
    node = values
    for key in keys[:-1]:
        node = node.setdefault(key, {})
        if not isinstance(node, dict):
            raise ConfigError("bad override", where=f"--set {path}", must="a section", got=node)
    node[keys[-1]] = _value(raw.strip())


def _value(raw: str) -> Any:
    try:
        return _plain(tomllib.loads(f"value = {raw}")["value"])
    except tomllib.TOMLDecodeError:
        return raw


def _plain(value: Any) -> Any:
    """Return TOML values with dates and times as the text that they were written as (ISO 8601)."""
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_plain(one) for one in value]
    return value.isoformat() if isinstance(value, date | time) else value
