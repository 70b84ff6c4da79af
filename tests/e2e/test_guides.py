"""The documents are executed: commands, Python blocks and recipes, on tiny data.

Commands that start with `prerank` run through the command line's own entry, in a folder that has
the recipes under the names that the documents use, at a tiny size. What cannot run here stands in
`ELSEWHERE` (another test does it), `PLANNED` (too long: its plan is made instead) or `NOT_HERE`,
each with a reason that is checked.
"""

import os
import re
import shlex
import shutil
import sys
import textwrap
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from prerank import cli, progress
from prerank.recipe import default_methods, parse_recipe

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^( *)```(\w+)\n(.*?)^\1```", re.DOTALL | re.MULTILINE)
TINY: dict[str, Any] = {
    "workers": 1,
    "seeds": [0, 2],
    "encode": {"embedding_dim": 12},
    "tokenize": {"codebook_size": 8},
    "finetune": {"hidden_size": 16, "n_layers": 1, "n_heads": 2, "epochs": 1},
    "generate": {"n_anchors": 4},
    "train": {"epochs": 1, "hidden": [8]},
    "evaluate": {"n_resamples": 20, "baselines": ["exposed-only"], "controls": []},
    "methods": {"exposed-only": {"label": {"source": "none"}}, "gpl": {"anchors": "llm"}},
}
WORLD = {"prepare": {"world": {"n_users": 60, "n_items": 80, "requests_per_user": 2.0}}}


@dataclass(frozen=True)
class Command:
    """One command of a document, its continued lines joined and its comment left out."""

    page: Path
    words: tuple[str, ...]

    @property
    def text(self) -> str:
        return shlex.join(self.words)


def blocks(page: Path, kind: str) -> list[str]:
    found = BLOCK.findall(page.read_text())
    return [textwrap.dedent(text) for _, language, text in found if language == kind]


def commands() -> Iterator[Command]:
    for page in PAGES:
        for block in blocks(page, "bash"):
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                if words:
                    yield Command(page, tuple(words))


COMMANDS = list(commands())
NETWORK = ("needs a network", re.compile(r"^(pip|uv pip) install|https://|^hf download"))
NOT_HERE: dict[str, tuple[str, re.Pattern[str]]] = {
    "make ": ("runs the tests, or the main job at full size", re.compile("make (test|quickstart)")),
    "pip install": NETWORK,
    "uv pip install": NETWORK,
    "curl -O": NETWORK,
    "hf download": NETWORK,
    "md5sum": ("reads what a network brought", re.compile(r"ml-1m\.zip")),
    "unzip": ("reads what a network brought", re.compile(r"ml-1m\.zip")),
    "python benchmarks/bench_": ("needs a GPU", re.compile("--device cuda")),
    "python benchmarks/run_chaos.py": ("kills for long", re.compile("> benchmarks/results/chaos")),
    "python benchmarks/soak.py": ("serves for long", re.compile("> benchmarks/results/soak")),
    "pytest tests/": ("is itself a part of the tests", re.compile("tests/(chaos|malformed)")),
    "PRERANK_KILLS=50 pytest": ("kills for long", re.compile("PRERANK_KILLS=50")),
    "python -m prerank.anchors.shards": ("needs a second GPU", re.compile("--device cuda:1")),
    "prerank run recipes/taobao-mm.toml": ("reads 139 GB", re.compile("taobao-mm")),
    "prerank simulate recipes/simulate-anime.toml": (
        "reads data that is not ours to ship",
        re.compile("anime"),
    ),
    "ln -sfn": ("swaps the bundle of a running server", re.compile("kill -HUP")),
}
"""First words -> why they are not run, and what must be in the command for that to be true."""
ELSEWHERE = {
    "prerank run recipes/mine.toml --engine ray": ("tests/engines/test_on_ray.py", '"--engine"'),
    "torchrun": ("tests/ranking/test_ddp.py", "prerank.ranking.ddp"),
    "curl -s localhost:8080/v1/rank": ("tests/serving/test_app.py", "/v1/rank"),
    "prerank serve": ("tests/serving/servers.py", '"serve"'),
    "PRERANK_TOKEN=secret prerank serve": ("tests/serving/servers.py", "PRERANK_TOKEN"),
    "prerank inspect": ("tests/inspection/conftest.py", '"inspect"'),
    "prerank fill-users": ("tests/serving/test_app.py", "fill"),
    "prerank skew": ("tests/serving/test_skew.py", "skew"),
}
"""First words -> the test that does it, and what that test must hold."""
PLANNED = {
    "prerank compare recipes/mine.toml --methods all": (
        "over a hundred trainings",
        "--methods all",
    ),
    "prerank simulate": ("days of a closed loop", "simulate"),
}
"""First words -> run with --dry-run, for a reason."""


def matching(command: Command, table: dict[str, Any]) -> str:
    """Return the key of ``table`` that the command begins with, empty if there is none."""
    text = " ".join(command.words)
    return next((key for key in table if text.startswith(key)), "")


def is_run(command: Command) -> bool:
    return not (matching(command, NOT_HERE) or matching(command, ELSEWHERE))


def merged(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Return nested settings, those of ``other`` winning."""
    found = dict(one)
    for key, value in other.items():
        both = isinstance(value, dict) and isinstance(found.get(key), dict) and key != "methods"
        found[key] = merged(found[key], value) if both else value
    return found


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Yield a folder as a reader of all guides would have it, with one finished run."""
    folder = tmp_path_factory.mktemp("guides")
    (folder / "recipes").mkdir()
    values = tomllib.loads((ROOT / "recipes" / "quickstart.toml").read_text())
    tiny = tomli_w.dumps(merged(merged(values, WORLD), TINY))
    (folder / "recipes" / "quickstart.toml").write_text(tiny)
    shutil.copy(ROOT / "recipes" / "simulate.toml", folder / "recipes")  # its plan is made only
    guide = ROOT / "docs" / "guides" / "own-logs.md"
    (folder / "make_logs.py").write_text(blocks(guide, "python")[0])
    mine = tomli_w.dumps(merged(tomllib.loads(blocks(guide, "toml")[0]), TINY))
    (folder / "recipes" / "mine.toml").write_text(mine)
    before = Path.cwd()
    os.chdir(folder)
    try:
        exec(compile((folder / "make_logs.py").read_text(), "make_logs.py", "exec"), {})
        assert run(["prerank", "run", "recipes/mine.toml"]) == 0
        for name in ("one", "two"):
            shutil.copytree("runs/mine", f"runs/{name}")
        yield folder
    finally:
        os.chdir(before)


def run(words: list[str]) -> int:
    """Run one command of ours by its real entry; return its exit code."""
    before = sys.argv
    sys.argv = words
    try:
        cli.main()
    except SystemExit as end:
        return int(end.code or 0)
    finally:
        sys.argv = before
        progress.silence()
    return 0


@pytest.mark.parametrize(
    "command",
    [command for command in COMMANDS if is_run(command)],
    ids=lambda command: f"{command.page.stem}: {command.text}",
)
def test_command(command: Command, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = list(command.words)
    if words[0] == "python":
        exec(compile((place / words[1]).read_text(), words[1], "exec"), {})
        return
    assert words[0] == "prerank", "run it, or say in NOT_HERE or ELSEWHERE why not"
    if matching(command, PLANNED) and "--dry-run" not in words:
        words.append("--dry-run")
    code = run(words)
    shown = capsys.readouterr()
    assert code == 0, shown.err
    assert shown.out


def test_reports_of_the_guides_are_there(place: Path) -> None:
    assert (place / "runs" / "mine" / "report" / "report.html").stat().st_size > 10_000


@pytest.mark.parametrize("key", [*NOT_HERE])
def test_what_is_not_run_has_a_true_reason(key: str) -> None:
    excepted = [command.text for command in COMMANDS if matching(command, NOT_HERE) == key]
    assert excepted, "no document says this any more: drop the exception"
    reason, sign = NOT_HERE[key]
    block = [" ".join(command.words) for command in COMMANDS if matching(command, NOT_HERE) == key]
    assert all(sign.search(text) for text in block), reason


@pytest.mark.parametrize("key", [*ELSEWHERE])
def test_what_another_test_runs_is_in_it(key: str) -> None:
    assert any(matching(command, ELSEWHERE) == key for command in COMMANDS)
    file, needle = ELSEWHERE[key]
    assert needle in (ROOT / file).read_text()


@pytest.mark.parametrize("key", [*PLANNED])
def test_what_is_only_planned_is_long(key: str) -> None:
    planned = [command for command in COMMANDS if matching(command, PLANNED) == key]
    assert planned and all(PLANNED[key][1] in command.text for command in planned)


TOML = [(page, text) for page in PAGES for text in blocks(page, "toml")]


@pytest.mark.parametrize(("page", "text"), TOML, ids=lambda value: getattr(value, "stem", ""))
def test_recipes_in_documents_are_read(page: Path, text: str) -> None:
    parse_recipe(tomllib.loads(text), where=page.name)


def test_the_methods_to_copy_are_the_default_ones() -> None:
    text = blocks(ROOT / "docs" / "guides" / "own-logs.md", "toml")[1]
    methods = parse_recipe(tomllib.loads(text)).methods
    assert methods.pop("gpl-debiased")
    assert methods == default_methods()


# ---- Python blocks -------------------------------------------------------------------------------

NO_PYTHON = {
    "push_to_hub": ("needs the hub", "tests/ranking/test_hub.py"),
    "PeftModel": ("needs a base model on disk", "tests/anchors/test_checkpoint.py"),
}
"""What a block holds -> why it is not run, and the test that does the same."""
SNIPPETS = [(page, text) for page in PAGES for text in blocks(page, "python")]


@pytest.mark.parametrize(("page", "text"), SNIPPETS, ids=lambda value: getattr(value, "stem", ""))
def test_python_block(page: Path, text: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "examples" / "plugin" / "src"))
    text = re.sub("runs/(NAME|quickstart)", "runs/mine", text)
    if any(word in text for word in NO_PYTHON):
        compile(text, page.name, "exec")
        return
    names: dict[str, Any] = {}
    exec(compile(text, page.name, "exec"), names)


@pytest.mark.parametrize("word", [*NO_PYTHON])
def test_what_python_is_not_run_is_tested_elsewhere(word: str) -> None:
    assert any(word in text for _, text in SNIPPETS)
    assert word in (ROOT / NO_PYTHON[word][1]).read_text()
