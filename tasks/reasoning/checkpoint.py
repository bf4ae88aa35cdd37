"""Any Hugging Face causal LM, from a folder or from the hub: its model, and prompts to tokens and back."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.models.auto.tokenization_auto import get_tokenizer_config

from rlflow.policies.engines.weights import plain_model, plain_weights
from tasks.reasoning.settings import TrainedSettings

# AutoTokenizer reads such a tokenizer as that of the model's family: beside Qwen2 it would lose white space.
_GENERIC = ("PreTrainedTokenizerFast", "TokenizersBackend")
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


@dataclass(frozen=True)
class Checkpoint:
    """A causal LM as `save_pretrained` leaves it, read where it lies.

    Attributes:
        source: Folder with config, weights and tokenizer, or a hub id such as `ORGANISATION/MODEL`.
        tokenizer: Any tokenizer with an end of sequence.
    """

    source: str
    tokenizer: PreTrainedTokenizerBase

    @classmethod
    def open(cls, source: str | Path) -> Checkpoint:
        """Read the tokenizer; the network is asked only for a hub id that is not a folder here.

        Raises:
            FileNotFoundError: Neither a folder with a checkpoint nor a repository of the hub.
            ValueError: The tokenizer has no end of sequence.
        """
        source = str(source)
        is_folder = (Path(source) / "config.json").is_file()
        # from_pretrained takes a missing folder for a repository name and retries the hub for half a minute.
        if not is_folder and (Path(source).exists() or not _HUB_ID.fullmatch(source)):
            raise FileNotFoundError(
                f"task.base: expected a checkpoint with config.json in {source}, found none; give a folder that "
                "`save_pretrained` or `rlflow pretrain TASK` wrote, or leave it empty where the task ships a base"
            )
        try:
            kind = get_tokenizer_config(source, local_files_only=is_folder).get("tokenizer_class")
            opener = PreTrainedTokenizerFast if kind in _GENERIC else AutoTokenizer
            tokenizer = opener.from_pretrained(source, local_files_only=is_folder)
        except OSError as error:
            raise FileNotFoundError(
                f"task.base: expected a folder with config.json or a repository of the hub, found neither at {source} "
                f"({str(error).splitlines()[0]}); download it first, or give the path of a folder"
            ) from error
        if tokenizer.eos_token_id is None:
            raise ValueError(f"task.base: expected a tokenizer with an end of sequence, found none in {source}")
        return cls(source, tokenizer)

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

    @property
    def has_chat_template(self) -> bool:
        """Whether the tokenizer knows how a conversation is written."""
        return bool(self.tokenizer.chat_template)

    def load_model(self, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
        """The model; weights and computation in `dtype`.

        Raises:
            ValueError: The tokenizer has tokens that the model does not.
        """
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            self.source, local_files_only=Path(self.source).is_dir(), dtype=dtype
        )
        wanted, found = max(self.tokenizer.get_vocab().values()) + 1, model.get_input_embeddings().weight.shape[0]
        # More embeddings than tokens are usual padding.
        if wanted > found:
            raise ValueError(
                f"task.base: expected a model with an embedding for each of the {wanted} tokens of its tokenizer, "
                f"found {found} in {self.source}; model and tokenizer do not belong together"
            )
        return model

    def load_trainable(self, trained: TrainedSettings) -> nn.Module:
        """The model with what `trained` names to be trained: all of it, or a LoRA (a peft model) in float32."""
        model: nn.Module = self.load_model(getattr(torch, trained.dtype))
        if trained.gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})  # type: ignore[operator]
        if trained.lora_rank == 0:
            return model
        from peft import LoraConfig, get_peft_model

        config = LoraConfig(
            r=trained.lora_rank, lora_alpha=trained.lora_alpha, lora_dropout=0.0, bias="none", task_type="CAUSAL_LM",
            target_modules=list(trained.lora_targets) or "all-linear",
        )  # fmt: skip
        adapted: nn.Module = get_peft_model(model, config).eval()
        return adapted

    def save(self, actor: nn.Module, folder: Path, *, merged: bool) -> None:
        """Write what `load_trainable` gave, trained, for `from_pretrained`, and the tokenizer beside it.

        Args:
            actor: The model, or the peft model.
            folder: Made.
            merged: Whether a LoRA is merged into the model; else its adapter alone is written, for peft.
        """
        if hasattr(actor, "peft_config") and not merged:
            actor.save_pretrained(folder)  # type: ignore[operator]
        else:
            plain_model(actor).save_pretrained(folder, state_dict=dict(plain_weights(actor)))
        self.tokenizer.save_pretrained(folder)

    def chat(self, question: str, system: str = "") -> str:
        """The text of a conversation of one question, up to where the answer begins.

        Args:
            question: What the user says.
            system: Instruction in front; none where empty.
        """
        messages = [{"role": "system", "content": system}] if system else []
        messages.append({"role": "user", "content": question})
        return str(self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))

    def encode(self, prompts: Sequence[str], *, special: bool = True) -> tuple[Tensor, Tensor]:
        """Left-padded tokens `[B, C]` int64 and their mask `[B, C]` bool.

        Args:
            prompts: Texts.
            special: Whether the tokenizer puts its beginning of sequence in front; a conversation has its own.
        """
        width = max(map(len, rows := self.token_ids(prompts, special=special)))
        token = torch.tensor([[self.pad_id] * (width - len(row)) + row for row in rows])  # [B, C]
        length = torch.tensor(list(map(len, rows)))
        return token, torch.arange(width) >= width - length[:, None]

    def token_ids(self, prompts: Sequence[str], *, special: bool = True) -> list[list[int]]:
        """The tokens of each text."""
        rows: list[list[int]] = self.tokenizer(list(prompts), add_special_tokens=special)["input_ids"]
        return rows

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
