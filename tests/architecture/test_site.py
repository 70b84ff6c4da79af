"""The site builds strictly, holds every page, and fetches nothing; README and guide stay short."""

import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LOADING = {"link": "href", "script": "src", "img": "src", "iframe": "src", "source": "src"}


class Loads(HTMLParser):
    """Collects what a browser would fetch with a page."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag == "link" and given.get("rel") in ("canonical", "next", "prev"):
            return  # never fetched
        self.found += [value for name, value in attrs if LOADING.get(tag) == name and value]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("mkdocs", reason="the site needs pip install 'prerank[docs]'")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


def test_every_document_is_a_page(site: Path) -> None:
    documents = [path.relative_to(ROOT / "docs") for path in (ROOT / "docs").rglob("*.md")]
    wanted = {path.with_suffix(".html") for path in documents if not path.stem.endswith("-intro")}
    wanted = {path.with_name("index.html") if path.stem == "README" else path for path in wanted}
    wanted |= {Path("changelog.html"), Path("contributing.html")}
    built = {path.relative_to(site) for path in site.rglob("*.html")}
    assert wanted == built - {Path("404.html")}


def test_no_page_fetches_from_the_network(site: Path) -> None:
    for page in site.rglob("*.html"):
        loads = Loads()
        loads.feed(page.read_text())
        assert not [url for url in loads.found if re.match(r"(https?:)?//", url)], page.name
    styles = "".join(path.read_text() for path in site.rglob("*.css"))
    assert not re.search(r"(@import|url\()\s*[\"']?(https?:)?//", styles)


def test_the_python_reference_is_made_from_the_code(site: Path) -> None:
    page = (site / "reference" / "python.html").read_text()
    for name in ("prerank.testing.check_encoder", "prerank.artifacts.PseudoLabels"):
        assert f'id="{name}"' in page


@pytest.mark.parametrize(("name", "lines"), [("README.md", 200), ("CONTRIBUTING.md", 150)])
def test_first_pages_stay_short(name: str, lines: int) -> None:
    assert len((ROOT / name).read_text().splitlines()) <= lines


def test_readme_has_what_a_reader_looks_for() -> None:
    text = (ROOT / "README.md").read_text()
    assert len(re.findall(r"^!\[", text, re.MULTILINE)) == 1 and "docs/method.svg" in text
    assert "make quickstart" in text and "make test" in text
    assert "made by docs/generate.py" in text and "CITATION.cff" in text
