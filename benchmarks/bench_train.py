"""How fast the pre-ranker trains: against peers, a plain loop over the same model, and a floor.

    python benchmarks/bench_train.py [--quick] [--json] [--threads N] [--peer-python PATH]
    python benchmarks/bench_train.py --rows 10000000          # in bounded memory, from mapped files

Peers are the DSSM of torch-rechub and of RecBole, on ids alone, with equal rows, sizes, batch and
optimiser: on tables of a few thousand and, where dense Adam over whole tables is what they pay, of
1,000,000 users and 200,000 items. `--peer-python` is a Python that has them, if this one has not.
The plain loop is what one writes first: padded histories, `nn.Embedding` and a masked mean, the
default Adam, every row drawn by itself. The floor is what no loop over this model can beat on this
machine at the recipe's `group_rows`: its matrix products at the speed of `torch.mm`, plus the table
rows read and written at copying speed; the user's part of both once for each group of rows.
Peers shuffle rows one by one; that rows of a user are drawn together is one of our means, and the
AUC beside each rate of `against_peers` says what it costs. Rates are of epochs: what is set up
before the first (groups, here; loaders, there) is not in them.
Against peers each runs in a process of its own, on one thread and on all, in turns for several
rounds, as the speed of a virtual machine changes by the minute; the best of each counts. A rate is
that of all epochs of a training. With histories a figure is the best of several epochs or of runs
of 10 steps.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import fields, replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from prerank import artifacts as a
from prerank import progress
from prerank.ranking.config import TrainConfig
from prerank.ranking.pre_ranker import PreRanker
from prerank.ranking.train import train
from prerank.vocabulary import Vocabulary

N_USERS, N_ITEMS, CONTENT_DIM, HISTORY, STEPS = 4_000, 7_000, 96, 50, 10


def make_dataset(n_rows: int, rng: np.random.Generator) -> a.Dataset:
    """Return a random log: every user has 50 interactions before ``n_rows`` random exposures."""
    user = rng.integers(0, N_USERS, n_rows).astype(np.int32)
    item = rng.integers(0, N_ITEMS, n_rows).astype(np.int32)
    click = rng.integers(0, 2, n_rows)
    return log_of(N_USERS, N_ITEMS, user, item, click, np.zeros(n_rows, np.int8), HISTORY)


def log_of(
    n_users: int,
    n_items: int,
    user: a.IntArray,
    item: a.IntArray,
    click: NDArray[Any],
    split: a.ByteArray,
    history: int,
) -> a.Dataset:
    """Return exposures as a Dataset; every user has ``history`` interactions before them."""
    names = np.array([str(i) for i in range(n_items)], dtype=object)
    n_rows, empty, none = len(user), np.zeros(0, np.int32), np.zeros(0, np.int64)
    past = np.repeat(np.arange(n_users, dtype=np.int32), history)
    watched = np.random.default_rng(1).integers(0, n_items, len(past)).astype(np.int32)
    return a.Dataset(
        name="random",
        time_unit="order",
        users=Vocabulary.of(range(n_users)),
        items=Vocabulary.of(range(n_items)),
        user_features=a.Features(n_users),
        catalog=a.Catalog(names, names, a.Features(n_items)),
        exposures=a.Exposures(
            request=user.astype(np.int64),
            user=user,
            item=item,
            time=np.full(n_rows, history, np.int64),
            click=click.astype(np.int8),
            position=np.full(n_rows, -1, np.int32),
            propensity=np.full(n_rows, np.nan, np.float32),
            split=split,
        ),
        candidates=a.Candidates(
            none, empty, empty, none, np.zeros(0, np.int8), empty.astype("f4"), empty.astype("f4")
        ),
        interactions=a.Interactions(past, watched, np.tile(np.arange(history), n_users)),
        pools=a.Pools(
            empty.astype(np.int16),
            np.zeros(0, np.int8),
            none,
            empty,
            empty,
            none,
            np.zeros(0, "i1"),
        ),
    )


def make_labels(n_rows: int, rng: np.random.Generator) -> a.PseudoLabels:
    """Return ``n_rows`` random pseudo-labels."""
    pair = rng.choice(N_USERS * N_ITEMS, n_rows, replace=False)
    nothing = np.full(n_rows, np.nan, np.float32)
    return a.PseudoLabels(
        user=(pair // N_ITEMS).astype(np.int32),
        item=(pair % N_ITEMS).astype(np.int32),
        time=np.full(n_rows, HISTORY, np.int64),
        label=rng.random(n_rows, dtype=np.float32),
        confidence=np.ones(n_rows, np.float32),
        relevance=nothing,
        anchor=np.full(n_rows, -1, np.int64),
        dispersion=nothing,
        history=nothing,
        llm=nothing,
    )


class PlainTwoTower(nn.Module):
    """The same layers as ours, written the obvious way over padded histories."""

    def __init__(self, content_ID: Tensor, dim: int, hidden: int) -> None:
        super().__init__()
        self.content_ID = content_ID
        self.user_id, self.item_id = nn.Embedding(N_USERS, dim), nn.Embedding(N_ITEMS, dim)
        self.history_content = nn.Linear(CONTENT_DIM, dim)
        self.item_content = nn.Linear(CONTENT_DIM, dim)
        self.item_bias = nn.Embedding(N_ITEMS, 1)
        self.user = nn.Sequential(nn.Linear(3 * dim, hidden), nn.ReLU(), nn.Linear(hidden, dim))
        self.item = nn.Sequential(nn.Linear(2 * dim, hidden), nn.ReLU(), nn.Linear(hidden, dim))

    def forward(self, user_B: Tensor, item_B: Tensor, history_BH: Tensor) -> Tensor:
        """Return (B,) logits."""
        ids_BD = self.item_id(history_BH).mean(1)
        content_BD = self.history_content(self.content_ID[history_BH].mean(1))
        user_BD = self.user(torch.cat([self.user_id(user_B), ids_BD, content_BD], 1))
        content_BD = self.item_content(self.content_ID[item_B])
        item_BD = self.item(torch.cat([self.item_id(item_B), content_BD], 1))
        return (user_BD * item_BD).sum(1) + self.item_bias(item_B).squeeze(1)


def ours(data: a.Dataset, content: a.ItemEmbeddings, labels: a.PseudoLabels, runs: int) -> float:
    config = TrainConfig(epochs=runs, patience=0)
    ranker = train(data, content, labels, config, seed=0)
    return max(record["rows_per_second"] for record in ranker.history)


def plain(data: a.Dataset, content: a.ItemEmbeddings, runs: int) -> float:
    config = TrainConfig()
    model = PlainTwoTower(torch.from_numpy(content.vectors), config.embedding_dim, config.hidden[0])
    optimizer = torch.optim.Adam(model.parameters(), lr=config.learning_rate)
    user = torch.from_numpy(data.exposures.user).long()
    item = torch.from_numpy(data.exposures.item).long()
    click = torch.from_numpy(data.exposures.click).float()
    history_UH = torch.from_numpy(data.interactions.item).long().view(N_USERS, HISTORY)
    batch = 2 * config.batch_size

    def step() -> None:
        index = torch.randint(0, len(user), (batch,))
        logit = model(user[index], item[index], history_UH[user[index]])
        loss = nn.functional.binary_cross_entropy_with_logits(logit, click[index])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return batch / _seconds(step, runs)


def floor(runs: int) -> float:
    """Return the rows a second that matrix products and memory alone would allow."""
    config = TrainConfig()
    batch, dim, hidden = 2 * config.batch_size, config.embedding_dim, config.hidden[0]
    states = batch // config.group_rows
    shapes = [(states, CONTENT_DIM, dim), (states, 3 * dim, hidden), (states, hidden, dim)]
    shapes += [(batch, CONTENT_DIM, dim), (batch, 2 * dim, hidden), (batch, hidden, dim)]
    inputs = [(torch.randn(b, m), torch.randn(m, n), torch.randn(b, n)) for b, m, n in shapes]

    def products() -> None:
        for x, w, g in inputs:  # forward, gradient of the weights, gradient of the input
            x @ w
            x.T @ g
            g @ w.T

    # Floats a step: history rows of both tables read, id gradients written; AdamW reads weight,
    # gradient and two moments and writes three of them, over both id tables.
    moved = states * HISTORY * (2 * dim + CONTENT_DIM) + 7 * (N_USERS + N_ITEMS) * dim
    buffer = torch.empty(moved // 2)  # a copy reads and writes each float once
    target = torch.empty_like(buffer)
    return batch / (_seconds(products, runs) + _seconds(lambda: target.copy_(buffer), runs))


def _seconds(step, runs: int) -> float:  # type: ignore[no-untyped-def]
    step()
    best = float("inf")
    for _ in range(runs):
        started = time.perf_counter()
        for _ in range(STEPS):
            step()
        best = min(best, (time.perf_counter() - started) / STEPS)
    return best


def planted(
    n_users: int, n_items: int, n_rows: int, n_valid: int, rng: np.random.Generator
) -> dict[str, NDArray[Any]]:
    """Return rows whose click follows planted vectors; every id stands in the training rows."""
    n = n_rows + n_valid
    user = np.concatenate([rng.permutation(n_users), rng.integers(0, n_users, n)])[:n]
    item = np.concatenate([rng.permutation(n_items), rng.integers(0, n_items, n)])[:n]
    of_user, of_item = (rng.normal(size=(size, 4)).astype("f4") for size in (n_users, n_items))
    bias = rng.normal(size=n_items)
    logit = 1.5 * (of_user[user] * of_item[item]).sum(1) / 2 + bias[item]
    click = (rng.random(n) < 1 / (1 + np.exp(-logit))).astype(np.int64)
    order = rng.permutation(n_rows)
    rows = {"user": user, "item": item, "click": click}
    train = {name: values[:n_rows][order].astype(np.int64) for name, values in rows.items()}
    valid = {f"valid_{name}": values[n_rows:].astype(np.int64) for name, values in rows.items()}
    return {**train, **valid, "n_users": np.int64(n_users), "n_items": np.int64(n_items)}


def dataset_of(rows: dict[str, NDArray[Any]]) -> a.Dataset:
    """Return the rows as a Dataset without histories."""
    n_users, n_items = int(rows["n_users"]), int(rows["n_items"])
    user, item, click = (
        np.concatenate([rows[k], rows[f"valid_{k}"]]) for k in ("user", "item", "click")
    )
    split = np.repeat(
        np.int8([a.TRAIN, a.VALIDATION]), [len(rows["user"]), len(rows["valid_user"])]
    )
    return log_of(n_users, n_items, user.astype("i4"), item.astype("i4"), click, split, 0)


class Clock:
    """Stands for `time` in the training loop: notes processor seconds beside the others."""

    def __init__(self) -> None:
        self.read: list[tuple[float, float]] = []

    def monotonic(self) -> float:
        """Return seconds; the loop asks before and after each epoch."""
        self.read.append((time.monotonic(), time.process_time()))
        return self.read[-1][0]

    def rates(self, ranker: PreRanker) -> dict[str, float]:
        """Return the rows a second over all epochs, by both clocks, as of a peer."""
        pairs = zip(self.read[::2], self.read[1::2], strict=True)
        spent = np.array([np.subtract(after, before) for before, after in pairs])
        of_epochs = np.array([record["rows_per_second"] for record in ranker.history])
        wall, busy = (of_epochs @ spent[:, 0]) / spent.sum(0)
        return {"rows_per_second": float(wall), "rows_per_cpu_second": float(busy)}


def ours_ids(rows: dict[str, NDArray[Any]], steps: int) -> dict[str, float]:
    """Train our two-tower on ids alone, as the peers do, for about ``steps`` steps.

    As with them, a few batches run before the clock starts.
    """
    n_rows = len(rows["click"])
    # Peers stop after some steps of a pass; so do we, with rows enough to time.
    shown = {name: rows[name][: max(steps * 2048, 200_000)] for name in ("user", "item", "click")}
    data = dataset_of({**rows, **shown})
    config = TrainConfig(
        similarity="cosine",
        temperature=1.0,
        embedding_dim=32,
        hidden=(64,),
        learning_rate=0.003,
        min_id_rows=0,
        id_dropout=0,
        use_history=False,
        use_content=False,
        patience=0,
        epochs=max(1, round(steps * 2048 / n_rows)),
    )
    content = a.ItemEmbeddings(np.zeros((len(data.items), 1), np.float32))
    table = data.exposures
    few = {field.name: getattr(table, field.name)[: 3 * 2048] for field in fields(table)}
    train(replace(data, exposures=a.Exposures(**few)), content, None, config, seed=0)
    clock = Clock()
    with mock.patch("prerank.ranking.train.time", clock):
        ranker = train(data, content, None, config, seed=0)
    return {**clock.rates(ranker), "auc": ranker.history[-1]["auc"]}


def against_peers(
    n_users: int, n_items: int, steps: int, python: str, most_threads: int, rounds: int
) -> dict[str, Any]:
    """Train ours and both peers on the same rows, each on one thread and on ``most_threads``.

    Returns the best rates of all rounds, AUC and our ratio: our best rate over that of any peer.
    """
    n_rows = max(steps * 2048 // 3, n_users) if steps > 100 else max(steps * 2048, n_users)
    rows = planted(n_users, n_items, n_rows, 20_000, np.random.default_rng(0))
    threads, found = sorted({1, most_threads}), dict[str, dict[str, Any]]()
    script = str(Path(__file__).resolve().with_name("bench_train_peer.py"))
    with tempfile.TemporaryDirectory() as folder:
        np.savez(Path(folder) / "rows.npz", **rows)
        for _ in range(rounds):
            for name in ("prerank", "rechub", "recbole"):
                where = sys.executable if name == "prerank" else python
                command = [where, script, name, folder, str(steps), *map(str, threads)]
                # RecBole writes its logs where it stands.
                run = subprocess.run(
                    command, capture_output=True, text=True, check=False, cwd=folder
                )
                answers = json.loads(run.stdout) if run.stdout else [{"failed": run.stderr[-300:]}]
                for number, answer in zip(threads, answers, strict=False):
                    best = found.setdefault(f"{name}, {number}", answer)
                    timed = {k: v for k, v in answer.items() if k.startswith("rows")}
                    best |= {k: max(best.get(k, 0.0), rate) for k, rate in timed.items()}
    ratios = {}
    for unit in ("second", "cpu_second"):
        key = f"rows_per_{unit}"
        rates = {name: of[key] for name, of in found.items() if key in of}
        ours = [rate for name, rate in rates.items() if name.startswith("prerank")]
        theirs = [rate for name, rate in rates.items() if not name.startswith("prerank")]
        if ours and theirs:
            ratios[f"ratio_to_fastest_peer_by_{unit}"] = round(max(ours) / max(theirs), 2)
    about = {"users": n_users, "items": n_items, "rows": n_rows, "steps": steps, "rounds": rounds}
    return {**about, "by name and threads": found, **ratios}


def measure(n_rows: int, runs: int) -> dict[str, float]:
    rng = np.random.default_rng(0)
    data, labels = make_dataset(n_rows, rng), make_labels(n_rows, rng)
    vectors = rng.normal(size=(N_ITEMS, CONTENT_DIM)).astype(np.float32)
    content = a.ItemEmbeddings(vectors / np.linalg.norm(vectors, axis=1)[:, None])
    found = {
        "ours": ours(data, content, labels, runs),
        "plain": plain(data, content, runs),
        "floor": floor(runs),
    }
    return {
        "rows_per_second": {name: round(rate) for name, rate in found.items()},
        "ours_over_plain": round(found["ours"] / found["plain"], 2),
        "ours_over_floor": round(found["ours"] / found["floor"], 3),
        "threads": torch.get_num_threads(),
        "rows": 2 * n_rows,
        "history": HISTORY,
        "torch": torch.__version__,
    }


def in_bounded_memory(n_rows: int) -> dict[str, Any]:
    """Train one epoch on ``n_rows`` exposures that lie in mapped files; watch private memory."""
    rng, n_users, n_items = np.random.default_rng(0), 200_000, 50_000

    def mapped(kind: Any, high: int, value: int | None = None) -> NDArray[Any]:
        with tempfile.TemporaryFile() as file:
            column = np.memmap(file, kind, "w+", shape=(n_rows,))
        for start in range(0, n_rows, 1 << 20):
            part = column[start : start + (1 << 20)]
            part[:] = rng.integers(0, high, len(part)) if value is None else value
        return column

    user, item = mapped(np.int32, n_users), mapped(np.int32, n_items)
    click, split = mapped(np.int8, 2), mapped(np.int8, 0, a.TRAIN)
    data = log_of(n_users, n_items, user[:1], item[:1], click[:1], split[:1], 0)
    shown = a.Exposures(
        request=mapped(np.int64, 0, 0),
        user=user,
        item=item,
        time=mapped(np.int64, 0, 0),
        click=click,
        position=mapped(np.int32, 0, -1),
        propensity=mapped(np.float32, 0, 1),
        split=split,
    )
    data = replace(data, exposures=shown)
    content = a.ItemEmbeddings(np.zeros((n_items, 1), np.float32))
    config = TrainConfig(
        epochs=1, rows_on_disk=True, use_content=False, use_history=False, min_id_rows=0
    )
    before, peak, done = private_memory(), [0.0], threading.Event()

    def watch() -> None:
        while not done.wait(0.05):
            peak[0] = max(peak[0], private_memory())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        ranker = train(data, content, None, config, seed=0)
    finally:
        done.set()
        watcher.join()
    return {
        "rows": n_rows,
        "rows_per_second": ranker.history[0]["rows_per_second"],
        "mapped_megabytes": n_rows * 36 / 1e6,
        "private_megabytes_more": peak[0] - before,
        "model_and_moments_megabytes": 3 * 4 * (n_users + n_items) * 33 / 1e6,
    }


def private_memory() -> float:
    """Return the megabytes of this process that no file stands behind."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0]) / 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer rows and runs")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0: as torch is set")
    parser.add_argument("--peer-python", default=sys.executable, help="a Python with the peers")
    parser.add_argument("--rows", type=int, default=0, help="only: so many rows on disk")
    options = parser.parse_args()
    progress.silence()
    torch.set_num_threads(options.threads or torch.get_num_threads())
    if options.rows:
        print(json.dumps(in_bounded_memory(options.rows)))
        return
    found: dict[str, Any] = {"history": measure(*((60_000, 2) if options.quick else (400_000, 6)))}
    python, threads = options.peer_python, torch.get_num_threads()
    few, many = ((120, 1), (4, 1)) if options.quick else ((600, 5), (100, 1))
    found["small tables"] = against_peers(4_000, 7_000, few[0], python, threads, few[1])
    found["large tables"] = against_peers(1_000_000, 200_000, many[0], python, threads, many[1])
    if options.json:
        print(json.dumps(found))
        return
    for name, part in found.items():
        print(f"{name}:")
        for key, value in part.items():
            print(f"  {key}: {value}")


if __name__ == "__main__":
    main()
