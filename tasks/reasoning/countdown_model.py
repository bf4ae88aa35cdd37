"""The tokenizer and the small Qwen2 model of the countdown task, written and read as any Hugging Face checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

PAD, BOS, EOS, UNK = "<pad>", "<bos>", "<eos>", "<unk>"
SYMBOLS = (PAD, BOS, EOS, UNK, *"0123456789+-*=,;:>")
PAD_ID, BOS_ID, EOS_ID, UNK_ID = range(4)

BASE_FOLDER = Path(__file__).parent / "bases" / "countdown"


def countdown_tokenizer() -> PreTrainedTokenizerFast:
    """22 symbols, one character each; `tokenizer(prompt)` puts the beginning of sequence in front."""
    vocabulary = {symbol: index for index, symbol in enumerate(SYMBOLS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNK))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, BOS_ID)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNK,
        clean_up_tokenization_spaces=False,
    )


def countdown_config(
    hidden_size: int = 96, num_layers: int = 4, head_dim: int = 32, intermediate_size: int = 256
) -> Qwen2Config:
    """The shape of the shipped base: 446,496 parameters; tests pass smaller sizes.

    Args:
        hidden_size: Width; a multiple of `head_dim`.
        num_layers: Number of blocks.
        head_dim: Width of an attention head; vLLM's kernels need at least 32.
        intermediate_size: Width of the feed-forward layer.
    """
    if hidden_size % head_dim:
        raise ValueError(f"hidden_size: expected a multiple of head_dim {head_dim}, found {hidden_size}")
    return Qwen2Config(
        vocab_size=len(SYMBOLS),
        hidden_size=hidden_size,
        num_hidden_layers=num_layers,
        num_attention_heads=hidden_size // head_dim,
        num_key_value_heads=hidden_size // head_dim,
        intermediate_size=intermediate_size,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        pad_token_id=PAD_ID,
        bos_token_id=BOS_ID,
        eos_token_id=EOS_ID,
    )


def countdown_model(config: Qwen2Config, seed: int) -> Qwen2ForCausalLM:
    """A freshly initialised model; the same seed gives the same weights and leaves the global generator alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Qwen2ForCausalLM(config)


@dataclass(frozen=True)
class Checkpoint:
    """A causal LM folder as `save_pretrained` leaves it: its model, and prompts to tokens and back.

    Attributes:
        folder: Where config, weights and tokenizer lie.
        tokenizer: Any tokenizer with an end of sequence.
    """

    folder: Path
    tokenizer: PreTrainedTokenizerBase

    @classmethod
    def open(cls, folder: Path) -> Checkpoint:
        """Read the tokenizer of a folder; never asks the network.

        Raises:
            FileNotFoundError: The folder holds no checkpoint.
        """
        # from_pretrained takes a missing folder for a repository name and retries the hub for half a minute.
        if not (folder / "config.json").is_file():
            raise FileNotFoundError(
                f"task.base: expected a checkpoint with config.json in {folder}, found none; "
                "leave task.base empty for the shipped base, or make it with `rlflow pretrain reasoning/countdown`"
            )
        return cls(folder, AutoTokenizer.from_pretrained(str(folder), local_files_only=True))

    @property
    def eos_id(self) -> int:
        """Token that ends a completion."""
        return int(self.tokenizer.eos_token_id)

    @property
    def pad_id(self) -> int:
        """Token after the end; the end of sequence itself where the tokenizer has no padding."""
        pad = self.tokenizer.pad_token_id
        return self.eos_id if pad is None else int(pad)

    @property
    def banned_ids(self) -> tuple[int, ...]:
        """Special tokens that a completion must not hold.

        The training softmax must drop them as the sampler does, or the ratio of the first minibatch is not 1.
        """
        special = (self.tokenizer.pad_token_id, self.tokenizer.bos_token_id, self.tokenizer.unk_token_id)
        return tuple(sorted({int(token) for token in special if token is not None} - {self.eos_id}))

    def load_model(self) -> PreTrainedModel:
        """The model in float32."""
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            str(self.folder), local_files_only=True, dtype=torch.float32
        )
        return model

    def encode(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Left-padded tokens `[B, C]` int64 and their mask `[B, C]` bool."""
        batch = self.tokenizer(list(prompts), padding=True, padding_side="left", return_tensors="pt")
        return batch["input_ids"], batch["attention_mask"].bool()

    def decode(self, token: Tensor) -> list[tuple[str, bool]]:
        """Text before the first end of sequence of each row of `token [B, T]`, and whether there is one.

        Special symbols inside the text stay visible: dropping them would let `7<pad>+7` pass as `7+7`.
        """
        answers = []
        for row in token.tolist():
            finished = self.eos_id in row
            kept = row[: row.index(self.eos_id)] if finished else row
            answers.append((str(self.tokenizer.decode(kept, skip_special_tokens=False)), finished))
        return answers


@cache
def shipped_base() -> Checkpoint:
    """The base that comes with the package."""
    return Checkpoint.open(BASE_FOLDER)
