"""Training that was stopped after an epoch goes on to the same bytes."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prerank.ranking.state import FILE
from prerank.ranking.train import train
from ranking.worlds import make_config, make_content, make_labels, make_world


class StopError(Exception):
    pass


def weights(ranker: Any) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in ranker.model.state_dict().items()}


@pytest.mark.parametrize("row_updates", ["always", "never"])
@pytest.mark.parametrize("last", [0, 1])
def test_a_stopped_training_goes_on_to_the_same_bytes(
    row_updates: str, last: int, tmp_path: Path
) -> None:
    more = {"row_updates": row_updates, "epochs": 3, "dropout": 0.1, "patience": 0}
    config = make_config().model_copy(update=more)
    given = (make_world(), make_content(), make_labels(0.5), config, 0)
    whole = train(*given)

    def stop(record: Any) -> None:
        if record["epoch"] == last:
            raise StopError

    with pytest.raises(StopError):
        train(*given, work=tmp_path, on_epoch=stop)
    told: list[int] = []
    again = train(*given, work=tmp_path, on_epoch=lambda record: told.append(record["epoch"]))
    assert told == list(range(last + 1, 3))
    ours, theirs = weights(again), weights(whole)
    for name, value in ours.items():
        np.testing.assert_array_equal(value, theirs[name], err_msg=name)


def test_an_objective_with_more_to_train_starts_again(tmp_path: Path) -> None:
    config = make_config().model_copy(update={"objective": "adapted", "epochs": 1})
    labels = make_labels(0.5, 0.0)
    object.__setattr__(labels, "source", "unlabeled")
    train(make_world(), make_content(), labels, config, 0, work=tmp_path)
    assert not (tmp_path / FILE).exists()


def test_a_damaged_state_is_not_used(tmp_path: Path) -> None:
    config = make_config().model_copy(update={"epochs": 1})
    (tmp_path / FILE).write_bytes(b"not whole")
    told: list[Any] = []
    train(make_world(), make_content(), None, config, 0, work=tmp_path, on_epoch=told.append)
    assert [record["epoch"] for record in told] == [0]
