"""What this machine has: versions, cores, memory, GPU, extras."""

from __future__ import annotations

import os
import platform
import shutil
from importlib import metadata
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from prerank import __version__

CORE = ("numpy", "polars", "scikit-learn", "torch", "transformers")
EXTRAS = {
    "lora": "peft",
    "text": "sentence-transformers",
    "image": "pillow",
    "faiss": "faiss-cpu",
    "tune": "optuna",
    "export": "onnx",
    "serve": "fastapi",
    "tensorboard": "tensorboard",
    "mlflow": "mlflow-skinny",
    "wandb": "wandb",
    "s3": "s3fs",
    "gcs": "gcsfs",
    "hdfs": "pyarrow",
    "ray": "ray",
}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def examine() -> dict[str, Any]:
    """Return what was found, plain JSON values; imports torch, so it takes seconds."""
    import torch

    capability = torch.backends.cpu.get_cpu_capability()
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "prerank": __version__,
        "python": platform.python_version(),
        "packages": {package: _version(package) for package in CORE},
        "extras": {extra: _version(package) for extra, package in EXTRAS.items()},
        "cores": os.cpu_count(),
        "memory_gib": round(memory / 2**30, 1),
        "cpu_capability": capability,
        "amx_bf16": bool(getattr(torch.cpu, "_is_amx_tile_supported", bool)()),
        "gpus": gpus,
        "free_disk_gib": round(shutil.disk_usage(Path.cwd()).free / 2**30, 1),
        "writable": os.access(Path.cwd(), os.W_OK),
    }


def print_examination(found: dict[str, Any]) -> None:
    """Print `examine`'s findings as a table, with what to install for a missing extra."""
    table = Table("what", "found", box=None)
    for name, value in found.items():
        if isinstance(value, dict):
            for key, version in value.items():
                missing = f'absent: pip install "prerank[{key}]"' if name == "extras" else "absent"
                table.add_row(f"{name}.{key}", Text(version or missing))  # [..] is no markup
        else:
            table.add_row(
                name, ", ".join(value) or "none" if isinstance(value, list) else str(value)
            )
    Console().print(table)
