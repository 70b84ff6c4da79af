"""The small run, made once."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from chaos.small import small_recipe
from prerank.pipeline import run_recipe


@pytest.fixture(scope="session")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The finished small run; tests must leave it as it is."""
    torch.set_num_threads(1)
    recipe = small_recipe(tmp_path_factory.mktemp("small"))
    run_recipe(recipe)
    return recipe.folder


@pytest.fixture
def run_copy(small_run: Path, tmp_path: Path) -> Path:
    """A copy of the small run, to be damaged."""
    return shutil.copytree(small_run, tmp_path / "runs" / "small")
