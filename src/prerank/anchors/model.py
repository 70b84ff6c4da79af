"""The anchor model: a Hugging Face causal language model that speaks semantic IDs.

One code path for three cases: a small Qwen2-architecture decoder from scratch, a checkpoint trained
in full, a checkpoint with LoRA. What training needs of each is the decoder and the rows of our
tokens in the input embedding and in the head (`SidLM`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    Qwen2Config,
    Qwen2ForCausalLM,
)
from transformers.utils import logging as hf_logging

from prerank.anchors.config import FinetuneConfig
from prerank.anchors.fused import is_plain
from prerank.anchors.tokens import TOKENS_FILE, SidTokens
from prerank.errors import ArtifactError, ConfigError, MissingExtraError, first_line

POSITIONS = 4096
SAFE: dict[str, Any] = {"trust_remote_code": False, "use_safetensors": True}
"""A checkpoint is data: none of its code is run, no pickle is read."""
UNREADABLE = (
    OSError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    RuntimeError,
    ImportError,
    SafetensorError,
)
"""What transformers raises for folders that hold no, another, or half a model."""
ADAPTER = "default"
LOGIT_SCALES = ("logit_scale", "logits_scaling", "lm_head_multiplier")
"""Keys under which models keep a factor of their logits (Cohere, Granite, Falcon-H1)."""
NEW_ROW_SPREAD = 0.1
"""How far the rows of our tokens lie from the mean of a checkpoint's, over how far those spread."""


@dataclass(frozen=True, eq=False)
class SidLM:
    """A causal language model in training, and our tokens in it.

    Attributes:
        lm: the Hugging Face causal language model (with adapters injected, if any).
        tokens: the token map.
        tokenizer: the checkpoint's tokenizer with our tokens added, None from scratch.
        adapted: the PEFT model around ``lm``, None without LoRA.
    """

    lm: Any
    tokens: SidTokens
    tokenizer: Any = None
    adapted: Any = None

    @property
    def decoder(self) -> Any:
        """The model without its head."""
        return getattr(self.lm, self.lm.base_model_prefix)

    def input_rows(self) -> torch.Tensor:
        """Return (n_tokens, D): the input embeddings of our tokens."""
        return self._rows(self.lm.get_input_embeddings())

    def head_rows(self) -> torch.Tensor:
        """Return (n_tokens, D): the head's weights of our tokens."""
        return self._rows(self.lm.get_output_embeddings())

    def _rows(self, layer: Any) -> torch.Tensor:
        if self.adapted is not None:  # PEFT keeps exactly our rows, as values, beside the layer
            rows: torch.Tensor = layer.token_adapter.trainable_tokens_delta[ADAPTER]
        else:
            rows = layer.weight[self.tokens.first : self.tokens.end]
        return rows

    def trainable(self) -> dict[str, nn.Parameter]:
        """Return the parameters that training changes, by name, each once."""
        named = self.lm.named_parameters()
        return {name: value for name, value in named if value.requires_grad}


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """Return the dtype that ``name`` stands for; auto is bfloat16 on a GPU, float32 on a CPU."""
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return torch.bfloat16 if name == "bfloat16" else torch.float32


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Run with torch's global CPU generator at ``seed``, then put its state back."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def build(config: FinetuneConfig, codebook_sizes: tuple[int, ...], seed: int) -> SidLM:
    """Return the model to train, in float32 on the CPU; equal seed, equal weights.

    Raises:
        ConfigError: the checkpoint is not there or cannot speak semantic IDs.
        MissingExtraError: LoRA is asked for without peft.
    """
    with seeded(seed):
        if config.init == "from-scratch":
            return _from_scratch(config, codebook_sizes)
        model = _from_checkpoint(config.checkpoint, codebook_sizes)
        model = _with_lora(model, config) if config.lora else model
        if config.recompute and not is_plain(model.decoder):
            model.lm.gradient_checkpointing_enable({"use_reentrant": False})
        return model


def _from_scratch(config: FinetuneConfig, codebook_sizes: tuple[int, ...]) -> SidLM:
    tokens = SidTokens(0, codebook_sizes)
    about = Qwen2Config(
        vocab_size=tokens.size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.n_layers,
        num_attention_heads=config.n_heads,
        num_key_value_heads=config.n_heads,
        max_position_embeddings=POSITIONS,
        tie_word_embeddings=True,
        pad_token_id=tokens.pad,
        bos_token_id=tokens.begin,
        eos_token_id=None,
    )
    return SidLM(Qwen2ForCausalLM(about), tokens)


def _from_checkpoint(checkpoint: str, codebook_sizes: tuple[int, ...]) -> SidLM:
    try:
        lm = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32, **SAFE)
        trained_before = (Path(checkpoint) / TOKENS_FILE).is_file()
        has_tokenizer = not trained_before or (Path(checkpoint) / "tokenizer.json").is_file()
        tokenizer = _tokenizer(checkpoint) if has_tokenizer else None
    except UNREADABLE as error:
        raise ConfigError(
            "the checkpoint cannot be read",
            where="finetune.checkpoint",
            must="a folder or hub id of a Hugging Face causal language model with a tokenizer "
            "and weights in safetensors",
            got=f"{checkpoint}: {first_line(error)[:200]}",
            hint="code of the model is never run; `save_pretrained` writes safetensors",
        ) from None
    _require_plain(lm, checkpoint)
    if trained_before:
        tokens = SidTokens.load(Path(checkpoint))
        sizes = torch.tensor(codebook_sizes).numpy()
        tokens.check_vocabulary(lm.get_input_embeddings().weight.shape[0], sizes, where=checkpoint)
        return SidLM(lm, tokens, tokenizer)
    return SidLM(lm, _add_tokens(lm, tokenizer, codebook_sizes, checkpoint), tokenizer)


def _tokenizer(checkpoint: str) -> Any:
    return AutoTokenizer.from_pretrained(checkpoint, trust_remote_code=False)


def _require_plain(lm: Any, checkpoint: str) -> None:
    """Refuse heads and embeddings that are more than one matrix: we read their rows."""
    head, embedding = lm.get_output_embeddings(), lm.get_input_embeddings()
    capped = getattr(lm.config, "final_logit_softcapping", None)
    scales = [getattr(lm.config, name, None) for name in LOGIT_SCALES]
    scaled = any(scale not in (None, 1) for scale in scales)
    plain = type(embedding) is nn.Embedding and type(head) is nn.Linear and head.bias is None
    if not plain or capped or scaled:
        raise ConfigError(
            "the checkpoint's head or embedding is not a plain matrix",
            where=checkpoint,
            must="nn.Embedding and nn.Linear without bias, scale or soft cap (Qwen, Llama ...)",
            got=f"{type(embedding).__name__}, {type(head).__name__}"
            + (", logits capped or scaled" if capped or scaled else ""),
        )


def require_window(lm: Any, n_items: int, n_levels: int, where: str, after: int = 0) -> None:
    """Raise ConfigError if ``n_items`` of ``n_levels`` tokens exceed the model's window.

    Args:
        where: the key that says how long histories are.
        after: tokens that the window must hold beside them.
    """
    longest = n_items * n_levels + after
    window = getattr(lm.config, "max_position_embeddings", longest)
    if longest > window:
        raise ConfigError(
            "histories are longer than the model's window",
            where=where,
            must=f"at most {(window - after) // n_levels} items of {n_levels} tokens",
            got=n_items,
        )


def _add_tokens(
    lm: Any, tokenizer: Any, codebook_sizes: tuple[int, ...], checkpoint: str
) -> SidTokens:
    """Add our tokens to tokenizer and matrices; their rows begin near the mean of the old ones.

    Pre-trained rows are far apart and the last norm is large: rows drawn as widely as the old ones
    spread would begin with a loss several times that of knowing nothing.
    """
    tokens = SidTokens(len(tokenizer), codebook_sizes)
    n_rows = lm.get_input_embeddings().weight.shape[0]
    if n_rows < tokens.first:
        raise ConfigError(
            "the checkpoint's tokenizer and weights do not belong together",
            where=checkpoint,
            must=f"an embedding of at least {tokens.first} rows, as the tokenizer has tokens",
            got=f"{n_rows} rows",
        )
    tokenizer.add_tokens(tokens.names(), special_tokens=True)
    ids = tokenizer.convert_tokens_to_ids(tokens.names())
    if ids != list(range(tokens.first, tokens.end)):
        raise ConfigError(
            "the checkpoint's tokenizer has some of our tokens or gives ids with gaps",
            where=checkpoint,
            must=f"ids {tokens.first}..{tokens.end - 1} for the new tokens",
        )
    if n_rows < tokens.end:
        lm.resize_token_embeddings(tokens.end, mean_resizing=False)
    layers = [lm.get_input_embeddings(), lm.get_output_embeddings()]
    is_tied = layers[0].weight is layers[1].weight
    with torch.no_grad():
        for layer in layers[: 1 if is_tied else 2]:
            old = layer.weight[: tokens.first]
            rows = layer.weight[tokens.first : tokens.end]
            rows.normal_(0.0, NEW_ROW_SPREAD * float(old.std())).add_(old.mean(dim=0))
    return tokens


def _with_lora(model: SidLM, config: FinetuneConfig) -> SidLM:
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError:
        raise MissingExtraError(
            "LoRA needs peft", where="finetune.lora", hint="pip install 'prerank[lora]'"
        ) from None
    lm, ids = model.lm, list(range(model.tokens.first, model.tokens.end))
    names = {id(module): name.rsplit(".", 1)[-1] for name, module in lm.named_modules()}
    layers = [lm.get_input_embeddings(), lm.get_output_embeddings()]
    is_tied = layers[0].weight is layers[1].weight  # PEFT ties the new rows of a tied head itself
    rows = {names[id(layer)]: ids for layer in layers[: 1 if is_tied else 2]}
    adapters = LoraConfig(
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,
        target_modules="all-linear",
        trainable_token_indices=rows,
        task_type="CAUSAL_LM",
    )
    adapted = get_peft_model(lm, adapters, adapter_name=ADAPTER)
    return SidLM(adapted.get_base_model(), model.tokens, model.tokenizer, adapted)


def save(model: SidLM, folder: Path) -> None:
    """Write a plain Hugging Face folder, the token map and, with LoRA, ``adapter/`` for PEFT.

    Adapters are merged into the folder's weights, so one `AutoModelForCausalLM.from_pretrained`
    reads every case. The merge changes ``model``, which must not be used afterwards.
    """
    lm = model.lm
    hf_logging.disable_progress_bar()  # its bars of a second only garble our log
    if model.adapted is not None:
        model.adapted.save_pretrained(folder / "adapter", save_embedding_layers=False)
        lm = model.adapted.merge_and_unload()
    # A checkpoint's own sampling settings must not surprise who decodes with this folder.
    lm.generation_config = GenerationConfig(
        bos_token_id=model.tokens.begin, pad_token_id=model.tokens.pad
    )
    lm.save_pretrained(folder)
    if model.tokenizer is not None:
        model.tokenizer.save_pretrained(folder)
    model.tokens.save(folder)


def load(folder: Path, device: torch.device, dtype: torch.dtype) -> tuple[Any, SidTokens]:
    """Return a stored anchor model in evaluation mode, and its token map.

    Raises:
        ArtifactError: the folder holds no anchor model.
    """
    tokens = SidTokens.load(folder)
    hf_logging.disable_progress_bar()
    try:
        lm = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, attn_implementation="sdpa", local_files_only=True, **SAFE
        )
    except UNREADABLE as error:
        raise ArtifactError(
            "the anchor model cannot be read",
            where=str(folder),
            must="a Hugging Face causal language model with weights in safetensors",
            got=first_line(error)[:200],
            hint="`prerank finetune` makes one",
        ) from None
    return lm.to(device).eval(), tokens
