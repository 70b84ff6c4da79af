"""How fast the pre-ranker trains: our loop, a plain loop over the same model, and a floor.

    python benchmarks/bench_train.py [--quick] [--json] [--threads N]

The plain loop is what one writes first: padded histories, `nn.Embedding` and a masked mean, the
default Adam. The floor is what no loop over this model can beat on this machine: its matrix
products at the speed of `torch.mm`, plus the table rows read and written at copying speed.
Every figure is the best of several epochs (ours) or of several runs of 10 steps (the others).
"""

from __future__ import annotations

import argparse
import json
import time

import numpy as np
import torch
from torch import Tensor, nn

from prerank import artifacts as a
from prerank import progress
from prerank.ranking.config import TrainConfig
from prerank.ranking.train import train
from prerank.vocabulary import Vocabulary

N_USERS, N_ITEMS, CONTENT_DIM, HISTORY, STEPS = 4_000, 7_000, 96, 50, 10


def make_dataset(n_rows: int, rng: np.random.Generator) -> a.Dataset:
    """Return a random log: every user has 50 interactions before ``n_rows`` random exposures."""
    user = rng.integers(0, N_USERS, n_rows).astype(np.int32)
    item = rng.integers(0, N_ITEMS, n_rows).astype(np.int32)
    names = np.array([str(i) for i in range(N_ITEMS)], dtype=object)
    empty = np.zeros(0, np.int32)
    none = np.zeros(0, np.int64)
    past = np.repeat(np.arange(N_USERS, dtype=np.int32), HISTORY)
    return a.Dataset(
        name="random",
        time_unit="order",
        users=Vocabulary.of(range(N_USERS)),
        items=Vocabulary.of(range(N_ITEMS)),
        user_features=a.Features(N_USERS),
        catalog=a.Catalog(names, names, a.Features(N_ITEMS)),
        exposures=a.Exposures(
            request=user.astype(np.int64),
            user=user,
            item=item,
            time=np.full(n_rows, HISTORY, np.int64),
            click=rng.integers(0, 2, n_rows).astype(np.int8),
            position=np.full(n_rows, -1, np.int32),
            propensity=np.full(n_rows, np.nan, np.float32),
            split=np.zeros(n_rows, np.int8),
        ),
        candidates=a.Candidates(
            none, empty, empty, none, np.zeros(0, np.int8), empty.astype("f4"), empty.astype("f4")
        ),
        interactions=a.Interactions(
            user=past,
            item=rng.integers(0, N_ITEMS, len(past)).astype(np.int32),
            time=np.tile(np.arange(HISTORY), N_USERS),
        ),
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
    shapes = [(CONTENT_DIM, dim), (3 * dim, hidden), (hidden, dim)]
    shapes += [(CONTENT_DIM, dim), (2 * dim, hidden), (hidden, dim)]
    inputs = [(torch.randn(batch, m), torch.randn(m, n), torch.randn(batch, n)) for m, n in shapes]

    def products() -> None:
        for x, w, g in inputs:  # forward, gradient of the weights, gradient of the input
            x @ w
            x.T @ g
            g @ w.T

    # Floats a step: history rows of both tables read, id gradients written; AdamW reads weight,
    # gradient and two moments and writes three of them, over both id tables.
    moved = batch * HISTORY * (2 * dim + CONTENT_DIM) + 7 * (N_USERS + N_ITEMS) * dim
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer rows and runs")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0: as torch is set")
    options = parser.parse_args()
    progress.silence()
    torch.set_num_threads(options.threads or torch.get_num_threads())
    found = measure(*((60_000, 3) if options.quick else (400_000, 6)))
    if options.json:
        print(json.dumps(found))
        return
    for name, rate in found["rows_per_second"].items():
        print(f"{name:>6}: {rate:>10,} rows/s")
    print(f"ours / plain {found['ours_over_plain']}, ours / floor {found['ours_over_floor']}")


if __name__ == "__main__":
    main()
