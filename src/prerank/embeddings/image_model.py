"""Image vectors from CLIP or SigLIP: the image half of a Hugging Face vision-language model."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np

from prerank.artifacts import FloatArray, TextArray, require
from prerank.embeddings.config import EncoderConfig
from prerank.embeddings.models import DEFAULT_IMAGE, SAFE, load_model, torch_dtype
from prerank.embeddings.shards import encode_in_shards, forget
from prerank.errors import ConfigError, MissingExtraError
from prerank.progress import log
from prerank.spread import Spread, here

WHERE = "catalog.image"


def encode_images(
    images: TextArray | None,
    config: EncoderConfig,
    *,
    work: Path | None,
    title: str = "image",
    spread: Spread = here,
) -> FloatArray:
    """Return image vectors (N, D) float32 unit rows of ``images`` (N,), paths or URIs.

    An empty entry is a missing image: a row of zeros. So is an unreadable one, as long as their
    share is at most ``config.max_unreadable``. Above it, the next call with the same ``work`` reads
    the shards with unreadable images again, the others not. Each distinct image is read once.

    Raises:
        DataError: no item has an image, or too many are unreadable (the first one is named).
        ConfigError: the model cannot be loaded, or has no image half.
        MissingExtraError: Pillow is not installed, or fsspec for a URI that is no file.
    """
    given = np.array([""], dtype=object) if images is None else images
    distinct, index_N = np.unique(given, return_inverse=True)
    rows = np.flatnonzero([bool(place.strip()) for place in distinct])
    require(
        len(rows) > 0,
        "no item has an image to encode",
        where=WHERE,
        must="a path or URI for at least one item",
    )
    _need_pillow()
    thing_M = np.full(len(distinct), -1, dtype=np.int64)
    thing_M[rows] = np.arange(len(rows))
    places = distinct[rows]
    thing_N = thing_M[index_N]
    shards: dict[str, Any] = {"shard_items": config.shard_items, "title": title, "work": work}
    load = partial(_encoder, places, config)
    vectors_ND = encode_in_shards(load, len(rows), thing_N, spread=spread, **shards)
    there_N = thing_N >= 0
    bad = np.flatnonzero(there_N & ~vectors_ND.any(axis=1))
    if len(bad) > config.max_unreadable * there_N.sum():
        forget(thing_N[bad], **shards)  # they may be mended, or the network may be back
    _complain(places, thing_N, bad, config.max_unreadable)
    return vectors_ND


def read_image(place: str) -> Any:
    """Return the image at a path or URI as a Pillow image in RGB; the error if it is unreadable."""
    from PIL import Image

    try:
        with _opened(place) as file, Image.open(file) as image:
            return image.convert("RGB")
    except (MissingExtraError, MemoryError):
        raise
    except Exception as error:  # decoders and storage clients have errors of their own
        return error


def _opened(place: str) -> Any:
    """Open a path, a ``file:`` URI, or with fsspec any other URI."""
    parts = urlsplit(place)
    if parts.scheme == "file":
        return Path(unquote(parts.path)).open("rb")
    if len(parts.scheme) < 2:  # none, or a drive letter
        return Path(place).open("rb")
    try:
        import fsspec

        return fsspec.open(place, "rb").open()
    except ImportError as error:
        raise MissingExtraError(
            f"images at {parts.scheme}:// need another package",
            where=WHERE,
            got=error,
            hint="pip install 'prerank[image]'",
        ) from None


def _encoder(places: TextArray, config: EncoderConfig) -> Any:
    import torch
    from transformers import AutoImageProcessor, AutoModel

    from prerank.devices import resolve_device

    device = resolve_device(config.device)

    def load(name: str) -> Any:
        processor = AutoImageProcessor.from_pretrained(name, trust_remote_code=False)
        return processor, AutoModel.from_pretrained(name, dtype=torch_dtype(config, device), **SAFE)

    processor, model = load_model(load, config, DEFAULT_IMAGE)
    if not hasattr(model, "get_image_features"):
        raise ConfigError(
            "the model has no image features",
            where="encode.model",
            must="CLIP, SigLIP or another model with get_image_features",
            got=type(model).__name__,
        )
    model = model.to(device).eval()

    def batch_vectors(images: list[Any]) -> FloatArray:
        pixels = processor(images=images, return_tensors="pt")["pixel_values"]
        with torch.inference_mode():
            found = model.get_image_features(pixel_values=pixels.to(device, model.dtype))
        features = getattr(found, "pooler_output", found)
        return np.asarray(features.float().cpu().numpy(), dtype=np.float32)

    def encode(start: int, stop: int) -> FloatArray:
        """Threads read the next batch while the model works on this one."""
        size, out_ND = config.batch_size, None
        with ThreadPoolExecutor(config.image_threads) as pool:
            waiting = [pool.submit(read_image, p) for p in places[start : min(start + size, stop)]]
            for at in range(start, stop, size):
                read = [future.result() for future in waiting]
                ahead = places[at + size : min(at + 2 * size, stop)]
                waiting = [pool.submit(read_image, place) for place in ahead]
                good = [n for n, image in enumerate(read) if not isinstance(image, Exception)]
                if not good:
                    continue
                vectors_BD = batch_vectors([read[n] for n in good])
                if out_ND is None:
                    out_ND = np.zeros((stop - start, vectors_BD.shape[1]), dtype=np.float32)
                out_ND[at - start + np.array(good)] = vectors_BD
        return np.zeros((stop - start, _n_dims(model)), np.float32) if out_ND is None else out_ND

    return encode


def _n_dims(model: Any) -> int:
    config = model.config
    return int(getattr(config, "projection_dim", None) or config.vision_config.hidden_size)


def _complain(
    places: TextArray, thing_N: np.ndarray[Any, Any], bad: np.ndarray[Any, Any], most: float
) -> None:
    """Raise DataError if too many images came out as zeros (items ``bad``); log a few."""
    if not len(bad):
        return
    n_images = int((thing_N >= 0).sum())
    place = str(places[thing_N[bad[0]]])
    error = read_image(place)
    require(
        len(bad) <= most * n_images,
        f"{len(bad)} of {n_images} images cannot be read",
        where=f"{WHERE}, item row {bad[0]}: {place}",
        must=f"readable images, all but {most:.0%} of them (encode.max_unreadable)",
        got=_told(error) if isinstance(error, Exception) else "no features, or it is back now",
    )
    log(f"image: {len(bad)} unreadable images count as missing, the first is {place}")


def _told(error: Exception) -> str:
    """Return what an error says; some say nothing but their name."""
    return str(error) or type(error).__name__


def _need_pillow() -> None:
    try:
        import PIL.Image  # noqa: F401
    except ImportError:
        raise MissingExtraError(
            "the encoder `image` needs Pillow",
            where="encode.encoder",
            hint="pip install 'prerank[image]'",
        ) from None
