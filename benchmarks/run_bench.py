"""Run one benchmark and keep its figures in benchmarks/results/.

    python benchmarks/run_bench.py NAME bench_tokenize.py --items 1000000 --codebook-size 1024

Writes ``benchmarks/results/bench-NAME.json``: what the benchmark printed with ``--json``, its
command, hardware, versions and what the environment says of threads. ``docs/generate.py`` makes
docs/benchmarks.md from these files.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

from prerank.store import versions
from run_recipe import RESULTS, hardware


def main() -> None:
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    name, script, *options = sys.argv[1:]
    command = [sys.executable, str(Path(__file__).parent / script), *options, "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    kept = {
        "name": name,
        "command": " ".join(["python", f"benchmarks/{script}", *map(_named, options)]),
        "hardware": hardware(),
        "python": platform.python_version(),
        "packages": versions(),
        "environment": {k: v for k, v in os.environ.items() if k.startswith(("OMP_", "MKL_"))},
        "found": json.loads(done.stdout),
    }
    path = RESULTS / f"bench-{name}.json"
    path.write_text(json.dumps(kept, indent=1) + "\n")
    print(path)


def _named(option: str) -> str:
    """Return an option without where things lie on this machine."""
    return "PATH" if Path(option).is_absolute() else option


if __name__ == "__main__":
    main()
