"""What completes prompts for a causal LM policy: its own forward, or an engine with other kernels or weights."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

import torch
from torch import Tensor, nn

from rlflow.random import Noise, derived_seed

MAX_SEED = 2**31


class EngineError(RuntimeError):
    """An engine that cannot do what was asked: not installed, other weights than the trainer's, dead for good."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How tokens are drawn: from the whole distribution of the likelihood, else every ratio would be of two others.

    There is no top_p, top_k or min_p: they take mass from tokens that the trainer's softmax still counts, and engines
    are told explicitly to leave them out, whatever `generation_config.json` of a model asks for.

    Attributes:
        max_new_tokens: T, longest completion.
        temperature: Divides the logits.
        eos_id: Ends a completion and belongs to it.
        pad_id: After the end.
        banned_ids: Never drawn.
        with_log_prob: Whether log-probabilities are wanted; engines with kernels of their own give them always.
    """

    max_new_tokens: int
    temperature: float
    eos_id: int
    pad_id: int
    banned_ids: tuple[int, ...] = ()
    with_log_prob: bool = False


@dataclass(frozen=True, kw_only=True)
class Completions:
    """Rows of tokens.

    Attributes:
        token: `[n, T]` int64, PAD after the end.
        mask: `[n, T]` bool, True up to and including EOS.
        log_prob: `[n, T]` float32 as the engine has it, 0 where masked; None where nobody asked the own forward.
    """

    token: Tensor
    mask: Tensor
    log_prob: Tensor | None = None

    @classmethod
    def from_rows(
        cls, tokens: Sequence[Sequence[int]], log_probs: Sequence[Sequence[float]], sampling: Sampling
    ) -> Completions:
        """Pad ragged rows; they end with the first EOS, whatever came after it.

        Raises:
            EngineError: A row without tokens, with a banned token, or with another number of log-probabilities.
        """
        n, limit = len(tokens), sampling.max_new_tokens
        token = torch.full((n, limit), sampling.pad_id, dtype=torch.int64)
        mask = torch.zeros(n, limit, dtype=torch.bool)
        log_prob = torch.zeros(n, limit)
        for i, (row, said) in enumerate(zip(tokens, log_probs, strict=True)):
            length = row.index(sampling.eos_id) + 1 if sampling.eos_id in row else len(row)
            if not 0 < length <= min(limit, len(said)):
                raise EngineError(
                    f"engine: expected 1-{limit} tokens with a log-probability each in row {i}, found {len(row)} "
                    f"tokens and {len(said)} log-probabilities"
                )
            token[i, :length] = torch.tensor(row[:length])
            log_prob[i, :length] = torch.tensor(said[:length])
            mask[i, :length] = True
        banned = torch.isin(token, torch.tensor(sampling.banned_ids, dtype=torch.int64)) & mask
        if bool(banned.any()):
            raise EngineError(
                f"engine: expected none of the banned tokens {list(sampling.banned_ids)}, found "
                f"{sorted(set(token[banned].tolist()))}; the trainer gives them no mass"
            )
        return cls(token=token, mask=mask, log_prob=log_prob)

    def to(self, device: torch.device) -> Completions:
        """On another device."""
        log_prob = None if self.log_prob is None else self.log_prob.to(device)
        return Completions(token=self.token.to(device), mask=self.mask.to(device), log_prob=log_prob)


class LanguageModel(Protocol):
    """What an engine sees of the policy."""

    actor: nn.Module

    @property
    def sampling(self) -> Sampling:
        """How tokens are drawn."""

    def log_softmax(self, logits: Tensor) -> Tensor:
        """Float32 log-probabilities of `logits [..., V]` at the temperature, without the banned tokens."""

    def completion_log_prob(self, context: dict[str, Tensor], token: Tensor, mask: Tensor) -> Tensor:
        """`[n, T]` of the trainer's forward, without gradient; 0 where masked."""


@dataclass(kw_only=True)
class Engine(ABC):
    """Completes prompts.

    Attributes:
        takes_sharded: Whether several processes may complete prompts at once with weights that are whole only while
            they do (`trainer.strategy=fsdp`).
        metrics: Scalars of the last `complete`, logged as `rollout/NAME`.
    """

    takes_sharded: ClassVar[bool] = False

    metrics: dict[str, float] = field(default_factory=dict, init=False)

    @abstractmethod
    def complete(self, model: LanguageModel, context: dict[str, Tensor], noise: Noise) -> Completions:
        """Complete each row of `prompt [n, C]`, left-padded, with `prompt_mask [n, C]`."""

    def close(self) -> None:  # noqa: B027 - most engines hold nothing
        """Release processes and memory; the next `complete` starts them again."""


def bare_prompts(context: dict[str, Tensor]) -> list[list[int]]:
    """The tokens of each prompt without its padding."""
    rows = zip(context["prompt"].tolist(), context["prompt_mask"].tolist(), strict=True)
    return [[token for token, real in zip(tokens, reals, strict=True) if real] for tokens, reals in rows]


def row_seeds(noise: Noise, num_rows: int) -> list[int]:
    """A seed per row that depends on the global row alone, not on the number of ranks."""
    drawn = noise.integer(MAX_SEED)
    return [derived_seed(drawn, noise.rank * num_rows + row) % MAX_SEED for row in range(num_rows)]
