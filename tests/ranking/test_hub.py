"""Saving for the hub, and the hub up to its network edge."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
from huggingface_hub import HfApi, ModelCard, constants

from prerank.artifacts import Dataset, ItemEmbeddings
from prerank.errors import ArtifactError
from prerank.ranking.pre_ranker import PreRanker
from prerank.ranking.train import train
from ranking.worlds import make_config, make_content, rich_world

COMMIT = "0123456789abcdef0123456789abcdef01234567"  # pragma: allowlist secret
FILES = {"README.md", "pre_ranker.json", "weights.safetensors"}

Trained = tuple[Dataset, ItemEmbeddings, PreRanker]


@pytest.fixture(scope="module")
def trained() -> Trained:
    data, content = rich_world(), make_content()
    config = make_config().model_copy(update={"model": "cold"})
    return data, content, train(data, content, None, config, seed=0)


@pytest.fixture
def unreachable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty cache, and a hub at a port where nobody listens."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    return tmp_path / "cache"


def test_a_folder_scores_alike_and_has_a_card(trained: Trained, tmp_path: Path) -> None:
    data, content, ranker = trained
    ranker.save_pretrained(tmp_path / "mine")
    for place in (tmp_path / "mine", str(tmp_path / "mine")):
        again = PreRanker.from_pretrained(place, data, content)
        np.testing.assert_array_equal(ranker.score_pools(data.pools), again.score_pools(data.pools))
    assert {path.name for path in (tmp_path / "mine").iterdir()} == FILES


def test_the_card(trained: Trained, tmp_path: Path) -> None:
    ranker = trained[2]
    ranker.save_pretrained(tmp_path)
    found = ModelCard.load(tmp_path / "README.md")
    assert found.data.library_name == "prerank"
    assert found.data.tags == ["recommendation", "pre-ranking"]
    lines = found.text.splitlines()
    assert "| users | 60 | - | age | searches | - |" in lines
    assert "| items | 40 | colour | length | genres | look |" in lines
    assert "- Time: positions in each user's order." in lines
    last = ranker.history[-1]
    measures = " | ".join(f"{last[name]:.4f}" for name in ("gauc", "auc", "log_loss"))
    assert f"| 2 | {measures} |" in lines
    field, gate = max(ranker.importance.items(), key=lambda pair: pair[1])
    assert lines[lines.index("| field | mean gate |") + 2] == f"| {field} | {gate:.3f} |"
    assert "- `embedding_dim` = `8`" in lines
    stored = "".join((tmp_path / name).read_bytes().decode("latin-1") for name in FILES)
    assert not any(name in stored for name in ("u07", "i07"))


@pytest.mark.parametrize("name", ["/no/where/at/all", "a b", "owner/name", "missing"])
def test_what_is_not_there(name: str, trained: Trained, unreachable: Path) -> None:
    data, content, _ = trained
    with pytest.raises(ArtifactError, match="there is no such pre-ranker") as error:
        PreRanker.from_pretrained(name, data, content)
    assert error.value.where == name
    assert "`save_pretrained`" in error.value.must and error.value.got


def test_a_path_never_means_the_hub(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, content, _ = trained

    def refuse(*args: Any, **options: Any) -> None:
        raise AssertionError("the hub was asked")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(ArtifactError, match="cannot be read"):
        PreRanker.from_pretrained(tmp_path / "missing", data, content)


def test_a_snapshot_in_the_cache_is_read_by_its_id(
    trained: Trained, unreachable: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cache as the hub client lays it out, and the client itself, without its network."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)  # or it tries again for seconds
    data, content, ranker = trained
    repository = unreachable / "models--owner--name"
    ranker.save_pretrained(repository / "snapshots" / COMMIT)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    for revision in (None, COMMIT):
        again = PreRanker.from_pretrained("owner/name", data, content, revision=revision)
        np.testing.assert_array_equal(ranker.score_pools(data.pools), again.score_pools(data.pools))
    with pytest.raises(ArtifactError, match="there is no such pre-ranker"):
        PreRanker.from_pretrained("owner/name", data, content, revision="v2")


def test_push_uploads_what_can_be_read_again(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, content, ranker = trained
    calls: list[tuple[str, dict[str, Any]]] = []

    def create_repo(self: HfApi, repo_id: str, **options: Any) -> huggingface_hub.RepoUrl:
        calls.append((repo_id, options))
        return huggingface_hub.RepoUrl(f"https://huggingface.co/me/{repo_id}")

    def upload_folder(self: HfApi, **options: Any) -> huggingface_hub.CommitInfo:
        folder = Path(options.pop("folder_path"))
        (tmp_path / "there").mkdir()
        for file in folder.iterdir():
            (tmp_path / "there" / file.name).write_bytes(file.read_bytes())
        calls.append((str(folder), options))
        return huggingface_hub.CommitInfo(
            commit_url=f"https://huggingface.co/me/mine/commit/{COMMIT}",
            commit_message=options["commit_message"],
            commit_description="",
            oid=COMMIT,
        )

    monkeypatch.setattr(HfApi, "create_repo", create_repo)
    monkeypatch.setattr(HfApi, "upload_folder", upload_folder)
    address = ranker.push_to_hub("mine")
    assert address == f"https://huggingface.co/me/mine/commit/{COMMIT}"
    (created, options), (folder, upload) = calls
    assert (created, options) == ("mine", {"private": True, "exist_ok": True})
    assert upload == {"repo_id": "me/mine", "commit_message": "Add a pre-ranker"}
    assert not Path(folder).exists()
    assert {path.name for path in (tmp_path / "there").iterdir()} == FILES
    again = PreRanker.from_pretrained(tmp_path / "there", data, content)
    np.testing.assert_array_equal(ranker.score_pools(data.pools), again.score_pools(data.pools))


@pytest.mark.parametrize("name", ["owner/name", "a b"])
def test_a_push_that_fails(name: str, trained: Trained, unreachable: Path) -> None:
    with pytest.raises(ArtifactError, match="could not be pushed") as error:
        trained[2].push_to_hub(name)
    assert error.value.where == name
    assert "hf auth login" in error.value.hint and error.value.got
