"""Recipes that cannot be: the file and the key are named."""

from __future__ import annotations

from pathlib import Path

import pytest

from malformed.told import told
from prerank.errors import ConfigError
from prerank.pipeline import Run, run_recipe
from prerank.recipe import load_recipe, parse_recipe

VALUES = """
seed=-1
seed=1.5
seed="zero"
seed=[1]
seed=nan
seeds=[]
seeds=[0, 0]
seeds=3
seeds=["a"]
workers=0
workers=-2
workers="all"
name=3
name=["a"]
out=1
out={a = 1}
prepare=3
prepare.source="nowhere"
prepare.source=1
prepare.path=7
prepare.world.n_users=0
prepare.world.n_users=-5
prepare.world.n_items="many"
prepare.world.n_items=1.5
prepare.split.validation_fraction=0
prepare.split.validation_fraction=1.0
prepare.split.test_fraction=-0.1
prepare.split.method="random"
prepare.logs.time_unit="minutes"
prepare.logs.stages="exposed"
prepare.logs.items.text=3
prepare.logs.items.separator=""
encode.encoder="word2vec"
encode.embedding_dim=0
encode.embedding_dim=-3
encode.embedding_dim="wide"
encode.batch_size=0
encode.device=3
tokenize.codebook_size=0
tokenize.codebook_size=-1
tokenize.n_levels=0
tokenize.n_levels=1.5
tokenize.method="vae"
finetune.epochs=-1
finetune.learning_rate=0
finetune.learning_rate=inf
finetune.learning_rate=nan
finetune.hidden_size=0
finetune.n_heads=0
finetune.held_out=1.5
finetune.held_out=-0.1
finetune.init="magic"
finetune.alpha=-1
finetune.lora="yes please"
generate.n_anchors=0
generate.beam_width=0
generate.batch_size=-1
generate.dtype="float8"
generate.max_history=0
label.source="oracle"
label.prior=2.0
label.prior=-0.5
label.map="spline"
label.confidence="sure"
label.n_folds=1
label.match="min"
train.model="transformer"
train.epochs=0
train.learning_rate=-1
train.pseudo_weight=-1
train.embedding_dim=0
train.batch_size=0
train.hidden=[0]
train.hidden=[64, -1]
train.objective="guess"
evaluate.n_resamples=-1
evaluate.interval=2
evaluate.ks=[0]
evaluate.ks=[]
tune.trials=-1
methods=3
methods={}
methods.x.anchors=3
methods.x.teacher="parrot"
methods.x.label.source="gpl"
methods.x.label.colour="red"
methods.x.train.objective="kd"
variants.v.methods=["nobody"]
variants.v.train.colour=1
variants.v.colour=1
""".strip().splitlines()

KEYS = """
sed=1
Seed=1
prepare.sorce="world"
prepare.world.users=3
encode.dim=3
tokenize.levels=3
finetune.lr=1
generate.beams=3
label.lambda=1
train.lr=0.1
evaluate.metric="auc"
methods.gpl.anchor="llm"
""".strip().splitlines()

TEXTS: dict[str, bytes] = {
    "no TOML": b"name = ",
    "a list at the top": b"[1, 2]",
    "YAML": b"train:\n  epochs: 3\n",
    "JSON": b'{"train": {"epochs": 3}}',
    "a key twice": b"seed = 1\nseed = 2\n",
    "a section twice": b"[train]\n[train]\n",
    "a section over a value": b"train = 1\n[train]\nepochs = 1\n",
    "not UTF-8": b"name = '\xff\xfe'\n",
    "UTF-16": 'name = "x"'.encode("utf-16"),
    "zero bytes": b"\0" * 64,
    "a Parquet file": b"PAR1\x15\x04\x15" + bytes(range(128, 200)),
    "an open string": b'name = "x',
    "an open array": b"seeds = [0, 1",
    "a control character": b'name = "a\x01b"\n',
}
"""Contents of a recipe file that no reader can make sense of."""

OVERRIDES = ["train", "=3", ".=3", "train.=3", ".epochs=3", "train..epochs=1"]

NAMES = ["../up", "a/b", "/abs", ".hidden", "a b", "a\nb", "x@y", "<b>", "", "a\\b", "..", "ä\0"]
"""Names of methods that would be folders outside the run, or break a page."""


def base(folder: Path) -> Path:
    file = folder / "recipe.toml"
    file.write_text(f'out = "{folder}/runs"\n')
    return file


@pytest.mark.parametrize("text", VALUES)
def test_a_bad_value_names_file_and_key(tmp_path: Path, text: str) -> None:
    file, key = base(tmp_path), text.partition("=")[0]
    with told(str(file), about=key.rpartition(".")[2], folder=tmp_path):
        Run(load_recipe(file, [text]))


@pytest.mark.parametrize("text", KEYS)
def test_an_unknown_key_is_named(tmp_path: Path, text: str) -> None:
    file, key = base(tmp_path), text.partition("=")[0]
    with told(f"{file} -> {key}", about="unknown key", folder=tmp_path):
        load_recipe(file, [text])


@pytest.mark.parametrize("kind", TEXTS)
def test_a_file_that_is_no_recipe_is_named(tmp_path: Path, kind: str) -> None:
    file = tmp_path / "odd.toml"
    file.write_bytes(TEXTS[kind])
    with told("odd.toml", folder=tmp_path):
        load_recipe(file)


@pytest.mark.parametrize("text", OVERRIDES)
def test_a_bad_override_is_shown(tmp_path: Path, text: str) -> None:
    file = base(tmp_path)
    with told("--set", folder=tmp_path):
        load_recipe(file, [text])


@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_is_no_folder_of_the_run_is_refused(tmp_path: Path, name: str) -> None:
    methods = {name: {"label": {"source": "none"}}}
    with told("recipe", folder=tmp_path):
        parse_recipe({"methods": methods}, where="recipe")


@pytest.mark.parametrize("name", ["../up", "a/../../b", "/etc", "..", "a\0b"])
def test_a_run_cannot_be_named_out_of_its_folder(tmp_path: Path, name: str) -> None:
    with told("recipe", about="name", folder=tmp_path):
        parse_recipe({"name": name, "out": str(tmp_path)}, where="recipe")


@pytest.mark.parametrize("path", ["/nowhere", "runs/none", "."])
def test_another_runs_artifact_must_be_there(tmp_path: Path, path: str) -> None:
    file = base(tmp_path)
    for key in ("tokenize.append_to", "finetune.reuse"):
        with told(key, folder=tmp_path):
            Run(load_recipe(file, [f'{key}="{path}"']))


def prepare_only(run: Run) -> None:
    from prerank.data.prepare import prepare

    prepare(run.recipe.prepare, 0)


@pytest.mark.parametrize("source", ["logs", "games", "anime", "kuairand", "movielens", "mind"])
def test_data_that_is_not_there_is_named(tmp_path: Path, source: str) -> None:
    file = base(tmp_path)
    for path in ("", str(tmp_path / "absent")):
        values = [f'prepare.source="{source}"', f'prepare.path="{path}"']
        with told("prepare.path", folder=tmp_path):
            prepare_only(Run(load_recipe(file, values)))


def test_a_folder_or_nothing_in_place_of_a_recipe(tmp_path: Path) -> None:
    (tmp_path / "folder.toml").mkdir()
    for name in ("folder.toml", "absent.toml"):
        with told(name, folder=tmp_path):
            load_recipe(tmp_path / name)


@pytest.mark.parametrize(
    ("text", "near"),
    [
        ("train.learning_rat=0.1", "learning_rate"),
        ("prepare.world.n_user=5", "n_users"),
        ('methods.gpl.anchor="llm"', "anchors"),
        ("evaluat.method=gpl", "evaluate"),
    ],
)
def test_a_misspelled_key_is_told_what_it_may_have_been(
    tmp_path: Path, text: str, near: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_recipe(base(tmp_path), [text])
    assert caught.value.hint == f"did you mean `{near}`?"


def test_all_wrong_keys_are_named_at_once(tmp_path: Path) -> None:
    file = base(tmp_path)
    with told("encode.embedding_dim", about="`train.epoch`", folder=tmp_path):
        load_recipe(file, ["train.epoch=1", "encode.embedding_dim=0"])


@pytest.mark.parametrize("key", ["method", "baselines"])
def test_evaluate_names_methods_of_the_recipe_only(tmp_path: Path, key: str) -> None:
    file = base(tmp_path)
    name = '"gpl-histroy"' if key == "method" else '["exposed-only", "gpl-histroy"]'
    with told(str(file), about="did you mean `gpl-history`?", folder=tmp_path):
        load_recipe(file, [f"evaluate.{key}={name}"])


def test_a_device_and_a_model_that_are_not_there_are_told_before_any_work(tmp_path: Path) -> None:
    absent = tmp_path / "absent"
    for key, values in {
        "train.device": ["train.device=cuda:77"],
        "finetune.checkpoint": ["finetune.init=checkpoint", f"finetune.checkpoint={absent}"],
        "encode.model": ["encode.encoder=text-model", f"encode.model={absent}"],
    }.items():
        recipe = load_recipe(base(tmp_path), [f"out={tmp_path / 'out'}", *values])
        with told(key):
            run_recipe(recipe)
        assert not list((tmp_path / "out").rglob("manifest.json"))
