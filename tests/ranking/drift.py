"""Run by torchrun: do the processes of a training with dropout keep their second heads alike?"""

import sys

import torch
from torch import distributed

from prerank.ranking.train import Training
from ranking.worlds import make_config, make_content, make_labels, make_world


def main(objective: str) -> None:
    """Train an epoch; exit with 1 where a weight that no model holds differs by process."""
    distributed.init_process_group("gloo")
    torch.manual_seed(distributed.get_rank())  # what else draws, draws differently
    config = make_config().model_copy(
        update={"objective": objective, "dropout": 0.3, "epochs": 1, "row_updates": "never"}
    )
    training = Training(make_world("none"), make_content(), make_labels(0.2), config, 0, None)
    more = list(training.objective.parameters())
    for weight in more:
        distributed.broadcast(weight.data, 0)
    training.run()
    apart = 0.0
    for weight in more:
        own = weight.detach().clone()
        distributed.broadcast(own, 0)
        apart = max(apart, float((own - weight).abs().max()))
    distributed.destroy_process_group()
    print(f"{len(more)} weights, apart by {apart}")
    sys.exit(not more or apart > 1e-6)


if __name__ == "__main__":
    main(sys.argv[1])
