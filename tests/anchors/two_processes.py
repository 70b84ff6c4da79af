"""One of two processes that fine-tune together: `python -m torch.distributed.run ... FOLDER`.

The second sees other held-out losses than the first, as another processor would, but much more so.
"""

import itertools
import json
import sys
from dataclasses import asdict
from pathlib import Path

import torch
from torch import distributed

from anchors.test_finetune import REMEMBERS, cyclic_ids, noise
from prerank.anchors import finetune as stage


def main() -> None:
    distributed.init_process_group("gloo")
    rank, calls, exact = distributed.get_rank(), itertools.count(), stage.next_sid_loss

    def blurred(*args: object) -> torch.Tensor:
        loss = exact(*args)  # type: ignore[arg-type]
        evaluates = torch.is_inference_mode_enabled()
        return loss * (1 + 0.1 * (next(calls) % 4)) if rank == 1 and evaluates else loss

    stage.next_sid_loss = blurred
    folder = Path(sys.argv[1]) / f"rank-{rank}"
    for name in ("out", "work"):
        (folder / name).mkdir(parents=True)
    report = stage.finetune(noise(), cyclic_ids(), REMEMBERS, 0, folder / "out", folder / "work")
    (folder / "report.json").write_text(json.dumps(asdict(report)))
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
