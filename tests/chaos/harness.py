"""Kill a small run at chosen moments, let it go on, and look at what is left each time."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chaos.small import SMALL, fingerprints, hashes
from prerank.store import read_manifest, verify


class Zygote:
    """Talks to `chaos.zygote`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        tests = Path(__file__).resolve().parents[1]
        path = os.pathsep.join([str(tests), os.environ.get("PYTHONPATH", "")])
        self.process = subprocess.Popen(
            [sys.executable, "-m", "chaos.zygote"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        )
        self._answer("ready")
        self.recipe = folder / "small.toml"
        self.recipe.write_text(SMALL)

    def _answer(self, wanted: str = "") -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline().strip()
        assert line and (not wanted or line == wanted), f"the zygote said {line!r}"
        return line

    def run(self, out: Path, **ask: Any) -> int:
        """Run the small recipe below ``out``; see `chaos.zygote` for what may be asked."""
        argv = ["run", str(self.recipe), "--set", f"out={json.dumps(str(out))}", "--json"]
        return self.call(argv, **ask)

    def call(self, argv: list[str], **ask: Any) -> int:
        assert self.process.stdin is not None
        line = json.dumps({"argv": argv, "log": str(self.folder / "log"), **ask})
        print(line, file=self.process.stdin, flush=True)
        return int(self._answer())

    @property
    def log(self) -> str:
        """What the last run printed."""
        return (self.folder / "log").read_text()

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


@dataclass
class Outcome:
    """What a campaign of kills came to."""

    kills: list[str] = field(default_factory=list)
    not_reached: list[str] = field(default_factory=list)
    same_fingerprints: bool = False
    same_bytes: bool = False
    left_over: list[str] = field(default_factory=list)


def check_whole(folder: Path) -> None:
    """What has a manifest is whole, at whatever moment the run died."""
    for key in fingerprints(folder):
        manifest = read_manifest(folder / key)
        assert manifest is not None
        verify(folder / key, manifest)


def make_stale(folder: Path) -> None:
    """Make every artifact of a finished run one of another recipe: each must be replaced."""
    for key in fingerprints(folder):
        file = folder / key / "manifest.json"
        values = json.loads(file.read_text())
        file.write_text(json.dumps({**values, "fingerprint": "of another recipe"}))


def campaign(
    zygote: Zygote, out: Path, kills: Sequence[str | float], truth: Path, **ask: Any
) -> Outcome:
    """Kill a run at each of ``kills``, in their order, then let it end; compare with ``truth``.

    A kill is the name of a moment, or the seconds after which the run dies. ``ask``: of every run.
    """
    found, folder = Outcome(), out / "small"
    for kill in kills:
        when = {"kill_at": kill} if isinstance(kill, str) else {"kill_after": kill}
        status = zygote.run(out, **when, **ask)
        assert status in (0, -9), zygote.log
        (found.kills if status == -9 else found.not_reached).append(str(kill))
        if folder.exists():
            check_whole(folder)
    status = zygote.run(out, **ask)
    assert status == 0, zygote.log
    check_whole(folder)
    found.same_fingerprints = fingerprints(folder) == fingerprints(truth)
    found.same_bytes = hashes(folder) == hashes(truth)
    work = (path.name for path in (folder / ".work").iterdir())
    found.left_over = sorted(name for name in work if name != "lock")
    return found


def moments_of(zygote: Zygote, out: Path, log: Path) -> list[str]:
    """Run undisturbed; return the names of all moments in their order."""
    status = zygote.run(out, moments=str(log))
    assert status == 0, zygote.log
    return log.read_text().splitlines()


def kind_of(moment: str) -> str:
    """Return what sort of moment it is: all shards are one, all manifests are one."""
    return moment.partition(" [")[0].partition("-")[0]


def choose(moments: list[str], count: int, seed: int) -> list[str]:
    """Draw ``count`` moments, of every kind at least one if they suffice, in their order."""
    stream = random.Random(seed)
    kinds: dict[str, list[int]] = {}
    for place, name in enumerate(moments):
        kinds.setdefault(kind_of(name), []).append(place)
    one_each = [stream.choice(places) for places in kinds.values()]
    stream.shuffle(one_each)
    rest = [place for place in range(len(moments)) if place not in one_each]
    stream.shuffle(rest)
    return [moments[place] for place in sorted((one_each + rest)[:count])]
