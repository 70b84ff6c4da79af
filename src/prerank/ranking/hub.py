"""A pre-ranker's folder on the Hugging Face hub: its model card, up and down.

`huggingface_hub` comes with transformers; it is imported where it is used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from prerank import __version__
from prerank.errors import ArtifactError, first_line
from prerank.ranking.config import TrainConfig

CARD = "README.md"
SHOWN = {"gauc": "GAUC", "auc": "AUC", "log_loss": "log loss"}


def card(
    config: TrainConfig,
    schema: Mapping[str, Any],
    history: Sequence[Mapping[str, Any]],
    importance: Mapping[str, float],
) -> str:
    """Return the model card of a pre-ranker; arguments as the attributes of `PreRanker`.

    It names features, never ids: user and item ids are in neither the card nor the folder.
    """
    environment = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    text = (resources.files("prerank.ranking") / "card.md.jinja").read_text()
    return environment.from_string(text).render(
        config=config.model_dump(mode="json"),
        users=schema["users"],
        items=schema["items"],
        content_dim=schema["content_dim"],
        time_unit=schema["time_unit"],
        epochs=[
            [record["epoch"] + 1, *(_number(record.get(name)) for name in SHOWN)]
            for record in history
        ],
        measures=list(SHOWN.values()),
        importance=sorted(importance.items(), key=lambda pair: -pair[1]),
        version=__version__,
    )


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def download(repo_id: str, files: Sequence[str], revision: str | None) -> Path:
    """Return the local folder of a snapshot of ``repo_id`` that holds ``files``.

    Raises:
        ArtifactError: it is no hub id, or the hub does not give it.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HTTPError

    try:
        return Path(snapshot_download(repo_id, revision=revision, allow_patterns=list(files)))
    except (OSError, ValueError, HTTPError) as error:
        raise ArtifactError(
            "there is no such pre-ranker",
            where=repo_id,
            must="a folder that `save_pretrained` wrote, or an id `owner/name` on the hub",
            got=first_line(error),
            hint="check the path; for the hub, the network and, if it is private, `hf auth login`",
        ) from None


def upload(folder: Path, repo_id: str, *, private: bool, message: str) -> str:
    """Make the model repository ``repo_id`` if it is not there, and commit ``folder`` to it.

    Returns:
        The address of the commit.

    Raises:
        ArtifactError: the hub does not take it.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError

    api = HfApi()
    try:
        made = api.create_repo(repo_id, private=private, exist_ok=True)
        commit = api.upload_folder(repo_id=made.repo_id, folder_path=folder, commit_message=message)
    except (OSError, ValueError, HTTPError) as error:
        raise ArtifactError(
            "the pre-ranker could not be pushed",
            where=repo_id,
            must="an id `owner/name` that your token may write to",
            got=first_line(error),
            hint="log in with `hf auth login`; check the network",
        ) from None
    return str(commit.commit_url)
