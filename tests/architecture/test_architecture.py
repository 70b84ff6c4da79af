"""What the house promises: documents that name real things, no pickle, light start-up."""

import importlib
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted((ROOT / "src").rglob("*.py"))
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.name)
def test_no_pickle(path: Path) -> None:
    text = path.read_text()
    banned = r"\b(import pickle|cloudpickle|joblib\.(dump|load)|torch\.(save|load)\(|allow_pickle)"
    assert not re.search(banned, text)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: p.name)
def test_names_in_documents_exist(path: Path) -> None:
    """Every `prerank.module.name` in backticks can be imported."""
    for name in set(re.findall(r"`(prerank(?:\.\w+)+)(?:\(\))?`", path.read_text())):
        _resolve(name)


def _resolve(name: str) -> None:
    parts = name.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            found: object = importlib.import_module(".".join(parts[:cut]))
        except ModuleNotFoundError:
            continue
        for part in parts[cut:]:
            found = getattr(found, part)
        return
    raise AssertionError(f"{name} does not exist")


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: p.name)
def test_links_between_documents_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", path.read_text()):
        if "://" not in target:
            assert (path.parent / target).exists(), f"{path.name} -> {target}"


def test_generated_pages_are_current() -> None:
    pages = runpy.run_path(str(ROOT / "docs" / "generate.py"))["pages"]()
    stale = [p.name for p, text in pages.items() if not p.exists() or p.read_text() != text]
    assert not stale, f"run `python docs/generate.py`: {stale}"


def test_help_starts_without_torch() -> None:
    code = "import sys, prerank.cli, prerank.recipe; print('torch' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "False"


def test_evaluation_runs_without_torch() -> None:
    modules = "prerank.evaluation.evaluate, prerank.data.prepare"
    code = f"import sys, {modules}; print('torch' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "False"


def test_every_recipe_reads() -> None:
    from prerank.recipe import load_recipe

    for path in sorted((ROOT / "recipes").glob("*.toml")):
        assert load_recipe(path).name == path.stem
