"""Pages of the site that no one lists by hand: what lies at the root, and the decisions."""

from __future__ import annotations

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
DECISIONS = "decisions"


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put every decision into the navigation."""
    numbered = sorted((ROOT / "docs" / DECISIONS).glob("0*.md"))
    pages = [f"{DECISIONS}/{path.name}" for path in numbered]
    for section in config.nav or []:
        if DECISIONS.capitalize() in section:
            section[DECISIONS.capitalize()] = [f"{DECISIONS}/README.md", *pages]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the changelog and the contributor guide, their links made links within the site."""
    for name in ("CHANGELOG.md", "CONTRIBUTING.md"):
        text = (ROOT / name).read_text().replace("](docs/", "](")
        files.append(File.generated(config, name.lower(), content=text))
    return files
