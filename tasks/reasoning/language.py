"""What every task of verified texts shares: prompts to completions, verdicts to rewards, and the frozen evaluation."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Generic, Literal, TypeVar

import torch
from torch import Tensor

from rlflow.policies.causal_lm import CausalLMPolicy, LMConfig
from rlflow.policies.engines.choice import open_engine
from rlflow.policies.engines.engine import Engine
from rlflow.policies.engines.vllm import VLLMConfig
from rlflow.policy import Policy
from rlflow.random import Noise, generator
from rlflow.rollout import Rollout
from rlflow.task import Evaluation, Task
from tasks.reasoning.judging import judged
from tasks.reasoning.report import answer_metrics, as_answers, evaluation
from tasks.reasoning.settings import TrainedSettings
from tasks.reasoning.verdict import Completion, Judged, Problem, Verdict

if TYPE_CHECKING:
    from tasks.reasoning.checkpoint import Checkpoint

EVALUATION_SEED = 20_250_101
# Rows of one evaluation forward; 512 keep the key-value cache of the shipped bases near 70 MB.
EVALUATION_ROWS = 512

P = TypeVar("P", bound=Problem)


@dataclass(kw_only=True)
class LanguageTask(Task, ABC, Generic[P]):
    """A causal LM writes a text, a verifier says what is wrong with it; 1 for a correct text, 0 for any other.

    A subclass names its problems and verifies completions; it may encode prompts in its own way.

    Attributes:
        failures: Every failure that a verdict may name; logged as fractions.
        shipped_base: Folder of the base that comes with the package; None where `base` must be given.
        has_answers: Whether verdicts carry final answers, so that votes and the variety of texts are reported too.
        groups_per_rollout: Prompts per iteration.
        group_size: Completions per prompt.
        base: Folder or hub id of a causal LM with its tokenizer; empty means the shipped base.
        lm: Sampling and likelihood. Too small a `max_new_tokens` cuts completions (`unfinished`).
        overlong_buffer: Last tokens before `lm.max_new_tokens` over which a penalty of length rises to
            `overlong_penalty` (DAPO, arXiv 2503.14476, eq. 13; 0 = off). Too few: a cliff at the limit; too many:
            short texts are cut shorter.
        overlong_penalty: What a text that reaches the limit loses. Too low: lengths run into the limit; above what a
            correct text earns: no long text pays.
        trained: LoRA or full training.
        engine: What completes prompts (docs/engines.md): `transformers`, `transformers-cb` or `vllm`.
        vllm: Settings of `engine=vllm`.
        evaluation_prompts: Prompts of the frozen set to use, from its start. Fewer than 150: a noisy score.
        evaluation_samples: Completions per prompt; pass@k is reported for k up to this.
        verify_limit_s: Seconds by the clock that verifying a batch may take, before the run ends with the place where
            it hangs. Too low: slow verifiers end runs; too high: a hanging one is found late.
        rarefied_size: Correct samples at which variety is compared. Too high: few prompts have that many.
    """

    policies: ClassVar[dict[str, str]] = {"causal_lm": "causal_lm"}
    failures: ClassVar[tuple[str, ...]]
    shipped_base: ClassVar[Path | None] = None
    has_answers: ClassVar[bool] = False

    groups_per_rollout: int = 32
    group_size: int = 8
    base: str = ""
    lm: LMConfig = field(default_factory=LMConfig)
    overlong_buffer: int = 0
    overlong_penalty: float = 1.0
    trained: TrainedSettings = field(default_factory=TrainedSettings)
    engine: Literal["transformers", "transformers-cb", "vllm"] = "transformers"
    vllm: VLLMConfig = field(default_factory=VLLMConfig)
    evaluation_prompts: int = 150
    evaluation_samples: int = 32
    verify_limit_s: float = 3600.0
    rarefied_size: int = 4

    @abstractmethod
    def training_problem(self, start: int) -> P:
        """The problem of one id of `starts`; raises IndexError where there is none."""

    @abstractmethod
    def evaluation_problems(self) -> Sequence[P]:
        """The frozen set, whole and in its order."""

    @abstractmethod
    def verify(self, problems: Sequence[P], completions: Sequence[Completion]) -> list[Verdict]:
        """One verdict per completion of the problem at its place; raises where a verdict cannot be reached."""

    def encode(self, problems: Sequence[P]) -> tuple[Tensor, Tensor]:
        """Left-padded prompts `[B, C]` int64 and their mask `[B, C]`."""
        return self.checkpoint.encode([problem.prompt for problem in problems])

    def __post_init__(self) -> None:
        """Refuse sizes that no frozen set and no metric can serve."""
        sizes = {name: getattr(self, name) for name in ("evaluation_prompts", "evaluation_samples", "rarefied_size")}
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"task.{name}: expected at least 1, found {size}")
        if self.verify_limit_s <= 0:
            raise ValueError(f"task.verify_limit_s: expected more than 0 seconds, found {self.verify_limit_s}")
        if not 0 <= self.overlong_buffer <= self.lm.max_new_tokens or self.overlong_penalty < 0:
            raise ValueError(
                f"task.overlong_buffer: expected 0 (off) to lm.max_new_tokens = {self.lm.max_new_tokens} tokens and a "
                f"penalty of at least 0, found {self.overlong_buffer} and {self.overlong_penalty}; e.g. "
                f"task.overlong_buffer={max(1, self.lm.max_new_tokens // 5)} task.overlong_penalty=1"
            )

    def frozen_problems(self) -> Sequence[P]:
        """The part of the frozen set that is asked; raises ValueError where more is wanted than there is."""
        every = self.evaluation_problems()
        self.refuse_more_prompts_than(len(every))
        return every[: self.evaluation_prompts]

    def refuse_more_prompts_than(self, available: int) -> None:
        """ValueError where the frozen set has fewer; a task that knows its size need not make the set to say so."""
        if self.evaluation_prompts > available:
            raise ValueError(f"task.evaluation_prompts: expected 1-{available}, found {self.evaluation_prompts}")

    @property
    def rows_per_pass(self) -> int:
        """Completions of one evaluation forward."""
        return EVALUATION_ROWS

    def content(self) -> Mapping[str, str]:
        """An own base."""
        return {"base": self.base}

    @property
    def policy_kind(self) -> str:
        """Always a causal LM."""
        return "causal_lm"

    @property
    def checkpoint(self) -> Checkpoint:
        """The base, opened once."""
        source = self.base or self.shipped_base
        if not source:
            raise ValueError(
                f"task.base: expected a folder or a hub id of a causal LM, found nothing, and {self.name} ships none; "
                "give task.base=FOLDER or task.base=ORGANISATION/MODEL"
            )
        return _open(str(source))

    def build_policy(self, requires: frozenset[str]) -> Policy:
        """The base with the heads that `requires` names."""
        checkpoint = self.checkpoint
        return CausalLMPolicy(
            checkpoint.load_trainable(self.trained),
            self.lm,
            requires=requires,
            eos_id=checkpoint.eos_id,
            pad_id=checkpoint.pad_id,
            banned_ids=checkpoint.banned_ids,
            engine=self._engine,
        )

    def save(self, policy: Policy, folder: Path) -> None:
        """Write the model for `from_pretrained` into `folder/model`, with its tokenizer; heads are no part of it."""
        self.checkpoint.save(policy.actor, folder / "model", merged=self.trained.export == "merged")

    def close(self) -> None:
        """End the engine."""
        if "_engine" in vars(self):
            self._engine.close()

    @cached_property
    def _engine(self) -> Engine:
        return open_engine(self.engine, self.checkpoint.source, self.vllm)

    def rollout(self, policy: Policy, starts: Tensor, noise: Noise) -> Rollout:
        """Complete each prompt `group_size` times; rows are cut at the longest completion of the batch."""
        asked = [self.training_problem(start) for start in starts.tolist() for _ in range(self.group_size)]
        context = self._context(asked, noise.device)
        action = policy.sample(context, noise)
        longest = int(action["mask"].any(dim=0).sum())
        token, mask = action["token"][:, :longest], action["mask"][:, :longest]  # [B, T]
        last, said = _last(mask), action.get("sampler_log_prob")
        return Rollout(
            context=context,
            action={"token": token},
            mask=mask,
            group=starts.to(noise.device).repeat_interleave(self.group_size),
            reward=torch.zeros(mask.shape, device=mask.device),
            terminated=last,
            boundary=last,
            sampler_log_prob=None if said is None else said[:, :longest].unsqueeze(-1),
            metrics={"completion_tokens": float(mask.sum(dim=1).float().mean())},
            extras={"problems": asked},
        )

    def score(self, rollout: Rollout) -> Rollout:
        """1 on the last token of a correct completion, less the penalty of length where there is one.

        `correct` and each kind of failure are logged as fractions, the penalty as `overlong`.
        """
        completions = self._completions(rollout.action["token"], rollout.mask)
        verdicts = self._verdicts(rollout.extras["problems"], completions)
        correct = torch.tensor([float(v.correct) for v in verdicts], device=rollout.device)  # [B]
        terms = {"correct": correct}
        for kind in self.failures:
            terms[f"failure_{kind}"] = torch.tensor([float(v.failure == kind) for v in verdicts], device=rollout.device)
        earned = correct
        if self.overlong_buffer > 0:
            length, limit = rollout.mask.sum(dim=1), self.lm.max_new_tokens
            terms["overlong"] = -self.overlong_penalty * overlong(length, limit, self.overlong_buffer)
            earned = correct + terms["overlong"]
        return rollout.replace(reward=_last(rollout.mask) * earned.unsqueeze(1), reward_terms=terms)

    @torch.no_grad()
    def evaluate(self, policy: Policy, noise: Noise) -> Evaluation:
        """Sample the frozen set at the training temperature with the same draws at every point of the grid."""
        asked = self.frozen_problems()
        draws = Noise(generator=generator(EVALUATION_SEED), device=noise.device)
        prompts_per_pass = max(1, self.rows_per_pass // self.evaluation_samples)
        samples: list[list[Judged]] = []
        for i in range(0, len(asked), prompts_per_pass):
            rows = [p for p in asked[i : i + prompts_per_pass] for _ in range(self.evaluation_samples)]
            action = policy.sample(self._context(rows, noise.device), draws, train=False)
            completions = self._completions(action["token"], action["mask"])
            answers = list(zip(completions, self._verdicts(rows, completions), strict=True))
            samples += [answers[j : j + self.evaluation_samples] for j in range(0, len(rows), self.evaluation_samples)]
        result = evaluation(asked, samples, rarefied_size=self.rarefied_size, failures=self.failures)
        if self.has_answers:
            answer_metrics(result, asked, samples)
            result.metrics["temperature"] = self.lm.temperature
        result.answers = as_answers(asked, samples, self._earned)
        return result

    def _verdicts(self, problems: Sequence[P], completions: Sequence[Completion]) -> list[Verdict]:
        return judged(
            self.verify, problems, completions, name=self.name, failures=self.failures, limit_s=self.verify_limit_s
        )

    def _earned(self, answer: Judged) -> float:
        """The reward of `score` for one completion."""
        completion, verdict = answer
        if self.overlong_buffer == 0:
            return float(verdict.correct)
        length, limit = torch.tensor(completion.num_tokens), self.lm.max_new_tokens
        return float(verdict.correct) - self.overlong_penalty * float(overlong(length, limit, self.overlong_buffer))

    def _context(self, asked: Sequence[P], device: torch.device) -> dict[str, Tensor]:
        prompt, prompt_mask = self.encode(asked)
        return {"prompt": prompt.to(device), "prompt_mask": prompt_mask.to(device)}

    def _completions(self, token: Tensor, mask: Tensor) -> list[Completion]:
        written = zip(self.checkpoint.decode(token), mask.sum(dim=1).tolist(), strict=True)
        return [Completion(text=text, finished=finished, num_tokens=length) for (text, finished), length in written]


@cache
def _open(source: str) -> Checkpoint:
    # Imports transformers, which takes seconds that a plan or a finished suite need not spend.
    from tasks.reasoning.checkpoint import Checkpoint

    return Checkpoint.open(source)


def overlong(length: Tensor, limit: int, buffer: int) -> Tensor:
    r"""Share of the penalty of length, $(|y| - L_{max} + L_{cache}) / L_{cache}$ in [0, 1] (2503.14476, eq. 13), `[B]`.

    Args:
        length: `[B]` tokens.
        limit: L_max.
        buffer: L_cache.
    """
    return ((length - (limit - buffer)) / buffer).clamp(0.0, 1.0)


def _last(mask: Tensor) -> Tensor:
    """True at the last unmasked decision of each row, `[B, T]`."""
    after = torch.cat([mask[:, 1:], torch.zeros_like(mask[:, :1])], dim=1)
    return mask & ~after
