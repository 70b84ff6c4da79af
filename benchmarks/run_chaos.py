"""Kill a small run fifty times, let it go on each time, and write down what came of it.

    python benchmarks/run_chaos.py --kills 50 > benchmarks/results/chaos.json

Ten kills a run: moments on disk (half a manifest, a shard, between two renames ...) drawn by a
seed. After the last one of each run: are fingerprints and bytes those of an undisturbed run?
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from chaos.harness import Zygote, campaign, choose, kind_of, moments_of

AT_ONCE = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=100)
    parser.add_argument("--json", action="store_true", help="the only form there is")
    parser.add_argument("--quick", action="store_true", help="ten kills")
    options = parser.parse_args()
    n_runs = 1 if options.quick else -(-options.kills // AT_ONCE)
    started, kills = time.monotonic(), []
    runs = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        zygote = Zygote(folder)
        try:
            moments = moments_of(zygote, folder / "truth", folder / "moments")
            for number in range(n_runs):
                chosen = choose(moments, AT_ONCE, options.seed + number)
                out = folder / f"run-{number}"
                found = campaign(zygote, out, chosen, folder / "truth" / "small")
                kills += found.kills
                runs.append(found)
        finally:
            zygote.close()
    result = {
        "command": "python benchmarks/run_chaos.py",
        "kills": len(kills),
        "not_reached": sum(len(run.not_reached) for run in runs),
        "runs": len(runs),
        "moments_of_an_undisturbed_run": len(moments),
        "kinds_of_moments_killed": sorted({kind_of(kill) for kill in kills}),
        "runs_of_same_fingerprints": sum(run.same_fingerprints for run in runs),
        "runs_of_same_bytes": sum(run.same_bytes for run in runs),
        "left_over": [name for run in runs for name in run.left_over],
        "seconds": round(time.monotonic() - started, 1),
        "killed_at": kills,
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
