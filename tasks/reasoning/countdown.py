"""Countdown: a causal LM writes arithmetic chains; the verifier pays 1 for a solution and 0 for anything else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from rlflow.policies.causal_lm import CausalLMPolicy, LMConfig
from rlflow.policy import Policy
from rlflow.random import Noise, generator
from rlflow.rollout import Rollout
from rlflow.task import Anchors, Evaluation, Task
from tasks.reasoning.countdown_data import evaluation_puzzles, training_puzzle, training_starts
from tasks.reasoning.countdown_puzzle import FAILURES, MAX_COMPLETION_TOKENS, Puzzle, Verdict, verify
from tasks.reasoning.countdown_report import evaluation

if TYPE_CHECKING:
    from tasks.reasoning.countdown_model import Checkpoint

# Measured with `rlflow pretrain reasoning/countdown`; a new base or a new evaluation set is a new version.
BASE_PASS_AT_1 = 0.31
EVALUATION_SEED = 20_250_101
# Rows of one evaluation forward; 512 keep the key-value cache near 70 MB.
EVALUATION_ROWS = 512


@dataclass(kw_only=True)
class Countdown(Task):
    """Digit-pool countdown with written gaps, from a shipped base that is right about one time in three.

    Attributes:
        groups_per_rollout: Prompts per iteration.
        group_size: Completions per prompt.
        base: Folder of a causal LM checkpoint with its tokenizer; empty means the shipped base.
        lm: Sampling and likelihood. `max_new_tokens` below 36 cuts legal chains (`unfinished`).
        evaluation_prompts: Prompts of the frozen set to use, from its start. Fewer than 150: a noisy score.
        evaluation_samples: Completions per prompt; pass@k is reported for k up to this.
        rarefied_size: Correct samples at which variety is compared. Too high: few prompts have that many.
    """

    version: ClassVar[str] = "1"
    guards: ClassVar[tuple[str, ...]] = ("distinct_canonical", "failure_unfinished")
    content_fields: ClassVar[tuple[str, ...]] = ("base",)
    policies: ClassVar[dict[str, str]] = {"causal_lm": "causal_lm"}

    name: str = "reasoning/countdown"
    groups_per_rollout: int = 32
    group_size: int = 8
    base: str = ""
    lm: LMConfig = field(default_factory=lambda: LMConfig(max_new_tokens=MAX_COMPLETION_TOKENS))
    evaluation_prompts: int = 150
    evaluation_samples: int = 32
    rarefied_size: int = 4

    def __post_init__(self) -> None:
        """Refuse sizes that the frozen set or the metrics cannot serve."""
        available = len(evaluation_puzzles())
        if not 1 <= self.evaluation_prompts <= available:
            raise ValueError(f"task.evaluation_prompts: expected 1-{available}, found {self.evaluation_prompts}")
        if self.evaluation_samples < 1 or self.rarefied_size < 1:
            raise ValueError(
                "task.evaluation_samples and task.rarefied_size: expected at least 1, found "
                f"{self.evaluation_samples} and {self.rarefied_size}"
            )

    @property
    def policy_kind(self) -> str:
        """Always a causal LM."""
        return "causal_lm"

    @property
    def anchors(self) -> Anchors:
        """pass@1 of the shipped base on the whole frozen set (see CARD.md), and 1 for always right."""
        return Anchors(base=BASE_PASS_AT_1, reference=1.0)

    def starts(self) -> Sequence[int]:
        """3,750 training puzzles x 24 orders of the digits in the prompt."""
        return training_starts()

    def build_policy(self, requires: frozenset[str]) -> Policy:
        """The base with the heads that `requires` names."""
        checkpoint = self._checkpoint
        return CausalLMPolicy(
            checkpoint.load_model(),
            self.lm,
            requires=requires,
            eos_id=checkpoint.eos_id,
            pad_id=checkpoint.pad_id,
            banned_ids=checkpoint.banned_ids,
        )

    def rollout(self, policy: Policy, starts: Tensor, noise: Noise) -> Rollout:
        """Complete each prompt `group_size` times; rows are cut at the longest completion of the batch."""
        asked = [training_puzzle(start) for start in starts.tolist() for _ in range(self.group_size)]
        context = self._context(asked, noise.device)
        action = policy.sample(context, noise)
        longest = int(action["mask"].any(dim=0).sum())
        token, mask = action["token"][:, :longest], action["mask"][:, :longest]  # [B, T]
        last = _last(mask)
        return Rollout(
            context=context,
            action={"token": token},
            mask=mask,
            group=starts.to(noise.device).repeat_interleave(self.group_size),
            reward=torch.zeros(mask.shape, device=mask.device),
            terminated=last,
            boundary=last,
            metrics={"completion_tokens": float(mask.sum(dim=1).float().mean())},
            extras={"puzzles": asked},
        )

    def score(self, rollout: Rollout) -> Rollout:
        """1 on the last token of a solution; `correct` and each kind of failure are logged as fractions."""
        verdicts = self._verdicts(rollout.extras["puzzles"], rollout.action["token"])
        correct = torch.tensor([float(v.correct) for v in verdicts], device=rollout.device)  # [B]
        terms = {"correct": correct}
        for kind in FAILURES:
            terms[f"failure_{kind}"] = torch.tensor([float(v.failure == kind) for v in verdicts], device=rollout.device)
        return rollout.replace(reward=_last(rollout.mask) * correct.unsqueeze(1), reward_terms=terms)

    @torch.no_grad()
    def evaluate(self, policy: Policy, noise: Noise) -> Evaluation:
        """Sample the frozen set at the training temperature with the same draws at every point of the grid."""
        asked = evaluation_puzzles()[: self.evaluation_prompts]
        draws = Noise(generator=generator(EVALUATION_SEED), device=noise.device)
        prompts_per_pass = max(1, EVALUATION_ROWS // self.evaluation_samples)
        samples: list[list[tuple[str, Verdict]]] = []
        num_tokens = 0
        for i in range(0, len(asked), prompts_per_pass):
            rows = [p for p in asked[i : i + prompts_per_pass] for _ in range(self.evaluation_samples)]
            action = policy.sample(self._context(rows, noise.device), draws, train=False)
            num_tokens += int(action["mask"].sum())
            texts = [text for text, _ in self._checkpoint.decode(action["token"])]
            answers = list(zip(texts, self._verdicts(rows, action["token"]), strict=True))
            samples += [answers[j : j + self.evaluation_samples] for j in range(0, len(rows), self.evaluation_samples)]
        mean_tokens = num_tokens / (len(asked) * self.evaluation_samples)
        return evaluation(asked, samples, self.rarefied_size, mean_tokens)

    @staticmethod
    def pretrain(out: Path, seed: int) -> dict[str, float]:
        """Make the base anew in `out` and return its score (`rlflow pretrain reasoning/countdown`)."""
        from tasks.reasoning.pretrain import pretrain_countdown

        return pretrain_countdown(out, seed)

    @property
    def _checkpoint(self) -> Checkpoint:
        return _open(self.base)

    def _context(self, asked: Sequence[Puzzle], device: torch.device) -> dict[str, Tensor]:
        prompt, prompt_mask = self._checkpoint.encode([puzzle.prompt for puzzle in asked])
        return {"prompt": prompt.to(device), "prompt_mask": prompt_mask.to(device)}

    def _verdicts(self, asked: Sequence[Puzzle], token: Tensor) -> list[Verdict]:
        answers = self._checkpoint.decode(token)
        return [verify(puzzle, text, finished) for puzzle, (text, finished) in zip(asked, answers, strict=True)]


@cache
def _open(base: str) -> Checkpoint:
    # Imports transformers, which takes seconds that a plan or a finished suite need not spend.
    from tasks.reasoning.countdown_model import Checkpoint, shipped_base

    return Checkpoint.open(Path(base)) if base else shipped_base()


def _last(mask: Tensor) -> Tensor:
    """True at the last unmasked decision of each row, `[B, T]`."""
    after = torch.cat([mask[:, 1:], torch.zeros_like(mask[:, :1])], dim=1)
    return mask & ~after
