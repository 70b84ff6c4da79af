"""One trainer of bench_train.py, in whatever Python has it installed; prints a JSON list.

    python benchmarks/bench_train_peer.py {prerank,rechub,recbole} FOLDER STEPS THREADS [THREADS...]

FOLDER holds rows.npz: train and valid rows (user, item, click) and the sizes. Each trains
with its own data loading and loop (shuffled batches of 2,048, Adam, dim 32, towers of 64 and 32),
one uncounted pass of up to 3 batches first; a new model for each number of threads.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np

BATCH, DIM, HIDDEN, LEARNING_RATE = 2048, 32, (64, 32), 0.003
Run = Callable[[], dict]  # type: ignore[type-arg]


class Clock:
    """Counts seconds, and processor seconds, which hold on a busy machine too."""

    def __init__(self) -> None:
        self.started = time.perf_counter(), time.process_time()

    def rates(self, rows: int) -> dict[str, float]:
        """Return the rows a second since the start, by both clocks."""
        wall, busy = self.started
        return {
            "rows_per_second": rows / (time.perf_counter() - wall),
            "rows_per_cpu_second": rows / (time.process_time() - busy),
        }


def warm_batches(steps: int) -> int:
    """Return the batches before the clock starts."""
    return min(3, max(1, steps // 2))


def prerank(rows: dict, steps: int) -> Run:  # type: ignore[type-arg]
    from bench_train import ours_ids

    return lambda: ours_ids(rows, steps)


def rechub(rows: dict, steps: int) -> Run:  # type: ignore[type-arg]
    import torch
    from torch_rechub.basic.features import SparseFeature
    from torch_rechub.models.matching import DSSM
    from torch_rechub.trainers import MatchTrainer
    from torch_rechub.utils.data import MatchDataGenerator

    tower = {"dims": list(HIDDEN), "activation": "relu", "dropout": 0}
    user = [SparseFeature("user", vocab_size=int(rows["n_users"]), embed_dim=DIM)]
    item = [SparseFeature("item", vocab_size=int(rows["n_items"]), embed_dim=DIM)]
    adam = {"lr": LEARNING_RATE, "weight_decay": 0.0}

    def loader(start: int, stop: int):  # type: ignore[no-untyped-def]
        part = {k: rows[k][start:stop] for k in ("user", "item")}
        made = MatchDataGenerator(part, rows["click"][start:stop])
        few = {k: v[:1] for k, v in part.items()}
        return made.generate_dataloader(few, few, batch_size=BATCH, num_workers=0)[0]

    n = min(len(rows["click"]), steps * BATCH)

    def run() -> dict:  # type: ignore[type-arg]
        model = DSSM(user, item, user_params=tower, item_params=tower)
        trainer = MatchTrainer(model, mode=0, optimizer_params=adam, n_epoch=1, device="cpu")
        trainer.train_one_epoch(loader(0, warm_batches(steps) * BATCH))
        timed = loader(0, n)
        clock = Clock()
        done = 0
        while done < steps * BATCH:
            trainer.train_one_epoch(timed)
            done += n
        rates = clock.rates(done)
        model.eval()
        with torch.no_grad():
            held = {k: torch.from_numpy(rows[f"valid_{k}"]) for k in ("user", "item")}
            score = model(held).numpy()
        return {**rates, "score": score}

    return run


def recbole(rows: dict, steps: int, folder: Path) -> Run:  # type: ignore[type-arg]
    import pandas as pd
    import torch
    from recbole.config import Config
    from recbole.data import create_dataset, data_preparation
    from recbole.data.interaction import Interaction
    from recbole.utils import get_model, get_trainer, init_seed

    path = folder / "bench"
    path.mkdir(exist_ok=True)
    # Every id stands in the first rows, so that the tables have their full size.
    for name, start in (("train", ""), ("valid", "valid_"), ("test", "valid_")):
        table = np.stack([rows[f"{start}{k}"] for k in ("user", "item", "click")], 1)
        head = ["user_id:token", "item_id:token", "label:float"]
        pd.DataFrame(table, columns=head).to_csv(
            path / f"bench.{name}.inter", sep="\t", index=False
        )
    settings = {
        "data_path": str(folder),
        "benchmark_filename": ["train", "valid", "test"],
        "load_col": {"inter": ["user_id", "item_id", "label"]},
        "LABEL_FIELD": "label",
        "threshold": None,
        "embedding_size": DIM,
        "mlp_hidden_size": list(HIDDEN),
        "dropout_prob": 0.0,
        "train_batch_size": BATCH,
        "eval_batch_size": 65536,
        "learning_rate": LEARNING_RATE,
        "learner": "adam",
        "train_neg_sample_args": None,
        "eval_args": {"split": {"RS": [1, 1, 1]}, "order": "RO", "mode": "labeled"},
        "metrics": ["AUC"],
        "valid_metric": "AUC",
        "device": "cpu",
        "use_gpu": False,
        "gpu_id": "",
        "show_progress": False,
        "state": "ERROR",
        "checkpoint_dir": str(folder / "saved"),
    }
    sys.argv = sys.argv[:1]
    config = Config(model="DSSM", dataset="bench", config_dict=settings)
    read = pd.read_csv
    # It asks for pandas' parser in Python, which takes many times as long; none of it is timed.
    with mock.patch(
        "pandas.read_csv", lambda *args, **more: read(*args, **{**more, "engine": "c"})
    ):
        dataset = create_dataset(config)
    init_seed(0, True)
    train_data, *_ = data_preparation(config, dataset)
    ids = {
        f"{k}_id": torch.from_numpy(
            dataset.token2id(f"{k}_id", rows[f"valid_{k}"].astype(str)).astype(np.int64)
        )
        for k in ("user", "item")
    }

    def run() -> dict:  # type: ignore[type-arg]
        init_seed(0, True)
        model = get_model("DSSM")(config, train_data.dataset)
        trainer = get_trainer(config["MODEL_TYPE"], "DSSM")(config, model)
        model.train()
        clock, done, taken = Clock(), 0, -warm_batches(steps)
        while taken < steps:
            for batch in train_data:  # the loop of its own Trainer._train_epoch
                if taken == 0:
                    clock, done = Clock(), 0
                trainer.optimizer.zero_grad()
                loss = model.calculate_loss(batch.to("cpu"))
                trainer._check_nan(loss)
                loss.backward()
                trainer.optimizer.step()
                done, taken = done + len(batch), taken + 1
                if taken >= steps:
                    break
        rates = clock.rates(done)
        model.eval()
        with torch.no_grad():
            score = model.predict(Interaction(ids)).numpy()
        return {**rates, "score": score}

    return run


def main() -> None:
    peer, folder, steps, *threads = sys.argv[1], Path(sys.argv[2]), *map(int, sys.argv[3:])
    os.environ.setdefault("TQDM_DISABLE", "1")
    stdout = os.dup(1)
    os.dup2(2, 1)  # what the peers print is no data
    try:
        import torch
        from sklearn.metrics import roc_auc_score

        rows = dict(np.load(folder / "rows.npz"))
        makers = {"prerank": prerank, "rechub": rechub, "recbole": partial(recbole, folder=folder)}
        run = makers[peer](rows, steps)
        found = []
        for number in threads:
            torch.set_num_threads(number)
            torch.manual_seed(0)
            answer = run()
            if "score" in answer:
                answer["auc"] = float(roc_auc_score(rows["valid_click"], answer.pop("score")))
            found.append(answer)
    except ImportError as error:
        found = [{"missing": str(error)}] * len(threads)
    os.write(stdout, (json.dumps(found) + "\n").encode())


if __name__ == "__main__":
    main()
