"""What SECURITY.md promises, as far as it can be read off the source."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = sorted((ROOT / "src").rglob("*.py"))
CODE = [*SHIPPED, *sorted((ROOT / "benchmarks").glob("*.py")), ROOT / "docs" / "generate.py"]
IMPORTS = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "shelve", "marshal", "yaml"}
"""Modules that run code, or may, when they read a file."""
CALLS = {
    "eval",
    "exec",
    "compile",
    "os.system",
    "os.popen",
    "torch.load",
    "torch.save",
    "pd.read_pickle",
    "joblib.load",
    "joblib.dump",
    "yaml.load",
    "marshal.loads",
    "numpy.fromfile",
}
KEYWORDS = {"shell": True, "allow_pickle": True, "trust_remote_code": True, "verify": False}
READERS = {"AutoModel", "AutoModelForCausalLM", "AutoTokenizer", "AutoImageProcessor"}


def named(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{named(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def problems(source: str) -> list[str]:
    """Return what in a Python text would run code from data."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [a.name for a in node.names if a.name.partition(".")[0] in IMPORTS]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in IMPORTS:
            found.append(str(node.module))
        elif isinstance(node, ast.Call):
            name = named(node.func)
            found += [name] * (name in CALLS)
            given = {k.arg: k.value for k in node.keywords}
            for key, bad in KEYWORDS.items():
                value = given.get(key)
                if isinstance(value, ast.Constant) and value.value is bad:
                    found.append(f"{key}={bad}")
            if name.endswith(".from_pretrained") and name.partition(".")[0] in READERS:
                safe = "trust_remote_code" in given or None in given  # None: ** of SAFE
                found += [] if safe else [f"{name} without trust_remote_code=False"]
    return found


@pytest.mark.parametrize("path", CODE, ids=lambda p: str(p.relative_to(ROOT)))
def test_nothing_runs_code_from_data(path: Path) -> None:
    assert problems(path.read_text()) == []


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from joblib import load",
        "import yaml",
        "eval(text)",
        "torch.load(file)",
        "np.load(file, allow_pickle=True)",
        "subprocess.run(text, shell=True)",
        "AutoModel.from_pretrained(name)",
        "AutoModel.from_pretrained(name, trust_remote_code=True)",
    ],
)
def test_the_search_finds_what_it_looks_for(line: str) -> None:
    assert problems(line)


def test_safe_means_no_code_and_no_pickle() -> None:
    from prerank.anchors.model import SAFE as ANCHORS
    from prerank.embeddings.models import SAFE as EMBEDDINGS

    assert ANCHORS == EMBEDDINGS == {"trust_remote_code": False, "use_safetensors": True}


def test_pages_escape_what_they_show() -> None:
    """Every page template is rendered with autoescape; `| safe` is for our own parts only."""
    for path in SHIPPED:
        text = path.read_text()
        for made in re.findall(r"Environment\((?:[^()]|\([^()]*\))*\)", text):
            assert "autoescape" in made or "md.jinja" in text or "card" in path.name, path


def test_nothing_unknown_lies_in_the_package() -> None:
    """No file that a reader might unpickle or run is shipped."""
    suffixes = {path.suffix for path in (ROOT / "src").rglob("*") if path.is_file()}
    assert suffixes <= {".py", ".pyc", ".jinja", ".txt", ".typed", ".css", ".js", ".json", ".svg"}
