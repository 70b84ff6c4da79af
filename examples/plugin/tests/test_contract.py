"""What prerank promises of its own parts holds for these."""

from prerank.embeddings.config import EncodeConfig
from prerank.labels.config import LabelConfig
from prerank.ranking.config import TrainConfig
from prerank.testing import check_encoder, check_label_source, check_pre_ranker


def test_encoder() -> None:
    check_encoder(EncodeConfig(encoder="plugin", plugin="prerank_example.encoder:encode"))


def test_label_source() -> None:
    check_label_source(LabelConfig(source="plugin", plugin="prerank_example.labels:label"))


def test_pre_ranker() -> None:
    check_pre_ranker(TrainConfig(model="plugin", plugin="prerank_example.model:build"))
