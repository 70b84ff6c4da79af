"""Text and image models on tiny checkpoints; shards, kills, full disks."""

import errno
import resource
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from prerank import artifacts as a
from prerank.embeddings.config import EncodeConfig
from prerank.embeddings.encode import encode
from prerank.embeddings.image_model import read_image
from prerank.embeddings.shards import encode_in_shards
from prerank.embeddings.text_model import pool
from prerank.errors import ArtifactError, ConfigError, DataError, MissingExtraError

from .content import dataset


def catalog(texts: list[str], images: list[str] | None = None) -> a.Dataset:
    return dataset(texts, images=images)


def config(**values: object) -> EncodeConfig:
    return EncodeConfig.parse({"device": "cpu", "batch_size": 2, **values})


# ---- text -----------------------------------------------------------------------------------

TEXTS = ["red shoe", "blue", "", "red red red hat", "red shoe"]


@pytest.mark.parametrize("pooling", ["mean", "cls", "last-token"])
def test_a_bare_encoder_is_the_models_states_pooled(bert, pooling):
    """Against one text at a time through transformers, without padding."""
    from transformers import AutoModel, AutoTokenizer

    found = encode(catalog(TEXTS), config(encoder="text-model", model=bert, pooling=pooling), 0)
    tokenizer, model = AutoTokenizer.from_pretrained(bert), AutoModel.from_pretrained(bert).eval()
    for text, vector in zip(TEXTS, found.vectors, strict=True):
        if not text:
            assert not vector.any()
            continue
        with torch.inference_mode():
            states = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        golden = {"mean": states.mean(dim=0), "cls": states[0], "last-token": states[-1]}[pooling]
        np.testing.assert_allclose(vector, golden / golden.norm(), atol=1e-5)
    assert found.quality["n_without_content"] == 1


def test_pooling_by_hand():
    states = torch.arange(12.0).reshape(2, 3, 2)
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    assert pool(states, mask, "mean").tolist() == [[1, 2], [8, 9]]
    assert pool(states, mask, "cls").tolist() == [[0, 1], [6, 7]]
    assert pool(states, mask, "last-token").tolist() == [[2, 3], [10, 11]]


def test_prefix_and_cut(bert):
    def vectors(texts: list[str], **more: object) -> np.ndarray:
        chosen = config(encoder="text-model", model=bert, **more)
        return encode(catalog(texts), chosen, 0).vectors

    plain = vectors(["passage: red", "red"])
    prefixed = vectors(["red"], prefix="passage: ")
    np.testing.assert_allclose(prefixed[0], plain[0], atol=1e-6)
    long = vectors(["red shoe hat", "red"], max_tokens=3)  # [CLS] red [SEP] is all that fits
    np.testing.assert_allclose(long[0], long[1], atol=1e-6)
    many = vectors([" ".join(["red"] * 50)], max_tokens=1000)  # the model has 12 positions
    assert np.isfinite(many).all()


def test_a_model_that_cannot_be_loaded_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for encoder in ("text-model", "image"):
        with pytest.raises(ConfigError, match="cannot be loaded"):
            encode(catalog(["red"], ["x.png"]), config(encoder=encoder, model=str(tmp_path)), 0)


def test_a_text_model_has_no_image_features(bert, tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    from transformers import CLIPImageProcessor

    CLIPImageProcessor().save_pretrained(bert)
    with pytest.raises(ConfigError, match="no image features"):
        encode(catalog(["red"], [str(tmp_path / "a.png")]), config(encoder="image", model=bert), 0)


# ---- images ---------------------------------------------------------------------------------


@pytest.fixture
def pictures(tmp_path: Path) -> list[str]:
    """Return a PNG, a grey JPEG by URI, a palette GIF, a transparent PNG and no image."""
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(255, size=(40, 50, 3), dtype=np.uint8))
    noise.save(tmp_path / "a.png")
    noise.convert("L").save(tmp_path / "grey scale.jpg")
    Image.new("RGB", (33, 70), (255, 0, 0)).convert("P").save(tmp_path / "c.gif")
    Image.new("RGBA", (32, 32), (0, 255, 0, 128)).save(tmp_path / "d.png")
    uri = (tmp_path / "grey scale.jpg").as_uri()
    return [str(tmp_path / "a.png"), uri, str(tmp_path / "c.gif"), str(tmp_path / "d.png"), ""]


def test_images_are_the_models_image_features(vision, pictures):
    from transformers import AutoImageProcessor, AutoModel

    found = encode(catalog(["x"] * 5, pictures), config(encoder="image", model=vision), 0)
    processor, model = AutoImageProcessor.from_pretrained(vision), AutoModel.from_pretrained(vision)
    for place, vector in zip(pictures[:4], found.vectors, strict=False):
        with torch.inference_mode():
            fed = processor(images=[read_image(place)], return_tensors="pt")
            golden = model.eval().get_image_features(**fed).pooler_output[0]
        np.testing.assert_allclose(vector, golden / golden.norm(), atol=1e-5)
    assert not found.vectors[4].any()
    assert found.quality["n_without_content"] == 1


def test_other_uris_are_read_through_fsspec(vision, pictures):
    import fsspec

    with fsspec.open("memory://shop/a.png", "wb") as file:
        file.write(Path(pictures[0]).read_bytes())
    data = catalog(["x"] * 2, [pictures[0], "memory://shop/a.png"])
    found = encode(data, config(encoder="image", model=vision), 0).vectors
    np.testing.assert_array_equal(found[0], found[1])


def test_an_unreadable_image_is_an_error_or_missing(vision, pictures, tmp_path):
    (tmp_path / "bad.png").write_bytes(Path(pictures[0]).read_bytes()[:100])
    data = catalog(["x"] * 6, [*pictures, str(tmp_path / "bad.png")])
    with pytest.raises(DataError, match=r"1 of 5 images cannot be read[\s\S]*bad\.png"):
        encode(data, config(encoder="image", model=vision), 0)
    found = encode(data, config(encoder="image", model=vision, max_unreadable=0.2), 0).vectors
    assert not found[5].any()
    assert found[3].any()
    absent = catalog(["x"], [str(tmp_path / "absent.png")])
    with pytest.raises(DataError, match=r"No such file"):
        encode(absent, config(encoder="image", model=vision), 0)


@contextmanager
def shop(pictures: list[str]) -> Iterator[tuple[str, dict[str, int]]]:
    """Serve the first picture at /a.png by HTTP and fail at /500; yield URL and requests a path."""
    content, asked = Path(pictures[0]).read_bytes(), dict.fromkeys(("/a.png", "/500"), 0)

    class Shop(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked[self.path] += 1
            self.send_response(200 if self.path == "/a.png" else 500)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Shop) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", asked
        server.shutdown()


def test_images_by_http_and_a_shop_that_fails(vision, pictures):
    pytest.importorskip("aiohttp")
    with shop(pictures) as (url, asked):
        data = catalog(["x"] * 3, [pictures[0], f"{url}/a.png", f"{url}/500"])
        with pytest.raises(DataError, match=r"1 of 3 images cannot be read[\s\S]*/500"):
            encode(data, config(encoder="image", model=vision), 0)
        found = encode(data, config(encoder="image", model=vision, max_unreadable=0.4), 0).vectors
    np.testing.assert_allclose(found[0], found[1], atol=1e-6)
    assert not found[2].any() and asked["/a.png"]


def test_a_killed_run_over_images_goes_on_and_ends_with_the_same_bytes(
    vision, pictures, tmp_path, monkeypatch
):
    data = catalog(["x"] * 5, pictures)
    chosen = config(encoder="image", model=vision, shard_items=2)
    whole = encode(data, chosen, 0).vectors.tobytes()
    work, read = tmp_path / "work", []
    work.mkdir()

    def dies(place: str) -> object:
        if place == pictures[1]:  # the last one, as they are sorted
            raise KeyboardInterrupt
        return counted(place)

    def counted(place: str) -> object:
        read.append(place)
        return read_image(place)

    monkeypatch.setattr("prerank.embeddings.image_model.read_image", dies)
    with pytest.raises(KeyboardInterrupt):
        encode(data, chosen, 0, work)
    before = set(read)
    read.clear()
    monkeypatch.setattr("prerank.embeddings.image_model.read_image", counted)
    assert encode(data, chosen, 0, work).vectors.tobytes() == whole
    assert len(before) == 3 and len(read) == 2  # the shard that was cut off is read as a whole


@pytest.mark.parametrize(("batch_size", "shard_items"), [(64, 2), (3, 2), (2, 3)])
def test_batches_end_where_shards_do(vision, pictures, batch_size, shard_items):
    data = catalog(["x"] * 5, pictures)
    whole = encode(data, config(encoder="image", model=vision), 0).vectors
    sizes = {"batch_size": batch_size, "shard_items": shard_items}
    found = encode(data, config(encoder="image", model=vision, **sizes), 0).vectors
    np.testing.assert_allclose(found, whole, atol=1e-5)


def test_a_mended_image_is_read_again_and_the_others_are_not(
    vision, pictures, tmp_path, monkeypatch
):
    bad, work = tmp_path / "zz.png", tmp_path / "work"
    bad.write_bytes(b"no image")
    work.mkdir()
    data = catalog(["x"] * 6, [*pictures, str(bad)])
    chosen = config(encoder="image", model=vision, shard_items=2)
    with pytest.raises(DataError, match=r"1 of 5 images cannot be read"):
        encode(data, chosen, 0, work)
    bad.write_bytes(Path(pictures[0]).read_bytes())
    read = []

    def counted(place: str) -> object:
        read.append(place)
        return read_image(place)

    monkeypatch.setattr("prerank.embeddings.image_model.read_image", counted)
    found = encode(data, chosen, 0, work).vectors
    np.testing.assert_allclose(found[5], found[0], atol=1e-6)
    assert sorted(read) == [pictures[3], str(bad)]  # the two of its shard


def test_no_image_at_all_is_an_error(vision):
    for images in (None, ["", ""]):
        with pytest.raises(DataError, match="no item has an image"):
            encode(catalog(["x", "y"], images), config(encoder="image", model=vision), 0)


def test_missing_packages_are_named(vision, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(MissingExtraError, match=r"prerank\[image\]"):
        encode(catalog(["x"], ["s3://b/a.png"]), config(encoder="image", model=vision), 0)
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(MissingExtraError, match="Pillow"):
        encode(catalog(["x"], ["a.png"]), config(encoder="image", model=vision), 0)


# ---- shards ---------------------------------------------------------------------------------


def numbers(start: int, stop: int) -> np.ndarray:
    return np.stack([np.arange(start, stop) + 1, np.ones(stop - start)], axis=1).astype(np.float32)


THING = np.array([3, 0, -1, 6, 3, 1])


def sharded(work: Path | None, encode=numbers, **more: object) -> np.ndarray:
    settings = {"shard_items": 3, "title": "t", "work": work} | more
    return encode_in_shards(lambda: encode, 7, THING, **settings)


def test_shards_are_the_whole_and_each_item_gets_its_thing(tmp_path):
    golden = numbers(0, 7)[THING] / np.linalg.norm(numbers(0, 7)[THING], axis=1, keepdims=True)
    golden[THING < 0] = 0
    np.testing.assert_allclose(sharded(None), golden, rtol=1e-6)
    for size in (1, 3, 100):
        folder = tmp_path / str(size)
        folder.mkdir()
        np.testing.assert_allclose(sharded(folder, shard_items=size), golden, rtol=1e-6)


def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(tmp_path):
    whole = sharded(None).tobytes()
    asked: list[int] = []

    def dies(start: int, stop: int) -> np.ndarray:
        if start == 6:
            raise KeyboardInterrupt
        return counted(start, stop)

    def counted(start: int, stop: int) -> np.ndarray:
        asked.append(start)
        return numbers(start, stop)

    with pytest.raises(KeyboardInterrupt):
        sharded(tmp_path, dies)
    cut = tmp_path / "t-00001.safetensors"
    cut.write_bytes(cut.read_bytes()[:-3])  # a disk that lost the end of a shard
    assert sharded(tmp_path, counted).tobytes() == whole
    assert asked == [0, 3, 3, 6]
    assert sharded(tmp_path, dies).tobytes() == whole


def test_a_full_disk_says_so_and_keeps_what_is_done(tmp_path):
    sharded(tmp_path)
    (tmp_path / "t-00002.safetensors").unlink()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8, hard))  # every shard is larger
    try:
        with pytest.raises(ArtifactError, match="the disk is full") as caught:
            sharded(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "run the same command again" in caught.value.hint
    assert sorted(p.name for p in tmp_path.glob("*.safetensors")) == [
        "t-00000.safetensors",
        "t-00001.safetensors",
    ]


def test_nan_from_a_model_is_an_error():
    def broken(start: int, stop: int) -> np.ndarray:
        return np.where(numbers(start, stop) == 5, np.nan, numbers(start, stop))

    with pytest.raises(DataError, match="NaN or infinity"):
        sharded(None, broken)


def test_other_errors_of_the_system_stay_what_they_are(tmp_path):
    (tmp_path / "t-00000.safetensors").mkdir()
    with pytest.raises(OSError) as caught:
        sharded(tmp_path)
    assert caught.value.errno == errno.EISDIR


def test_the_stage_leaves_shards_in_its_work_folder(bert, tmp_path):
    chosen = config(encoder="text-model", model=bert, shard_items=2)
    found = encode(catalog(TEXTS), chosen, 0, tmp_path)
    assert len(list(tmp_path.glob("text-model-*.safetensors"))) == 2
    np.testing.assert_array_equal(found.vectors, encode(catalog(TEXTS), chosen, 0).vectors)
