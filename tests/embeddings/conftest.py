"""Tiny checkpoints with random weights, saved as their publishers save them."""

from pathlib import Path

import pytest
import torch

SMALL = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "red", "blue", "shoe", "hat", "passage", ":"]


@pytest.fixture(scope="session")
def bert(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return a folder with a BERT encoder of a few words, 16 dimensions and 12 positions."""
    from transformers import BertConfig, BertModel, BertTokenizer

    path = tmp_path_factory.mktemp("bert")
    (path / "vocab.txt").write_text("\n".join(WORDS))
    BertTokenizer(str(path / "vocab.txt"), model_max_length=12).save_pretrained(path)
    torch.manual_seed(0)
    config = BertConfig(vocab_size=len(WORDS), max_position_embeddings=12, **SMALL)
    BertModel(config).save_pretrained(path)
    return str(path)


@pytest.fixture(scope="session", params=["clip", "siglip"])
def vision(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return a folder with a CLIP or SigLIP model for images of 32 x 32 pixels."""
    import transformers as t

    path: Path = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(0)
    text = SMALL | {"vocab_size": 20, "max_position_embeddings": 8}
    image = SMALL | {"image_size": 32, "patch_size": 16}
    square = {"height": 32, "width": 32}
    if request.param == "clip":
        config = t.CLIPConfig(text_config=text, vision_config=image, projection_dim=8)
        t.CLIPModel(config).save_pretrained(path)
        t.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=square).save_pretrained(path)
    else:
        t.SiglipModel(t.SiglipConfig(text_config=text, vision_config=image)).save_pretrained(path)
        t.SiglipImageProcessor(size=square).save_pretrained(path)
    return str(path)
