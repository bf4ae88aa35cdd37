"""An engine with weights of its own: synchronised before it samples, checked by a canary, restarted when it dies."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor, nn

from rlflow.policies.engines.engine import (
    Completions,
    Engine,
    EngineError,
    LanguageModel,
    Sampling,
    bare_prompts,
    row_seeds,
)
from rlflow.policies.engines.weights import fingerprint, plain_weights
from rlflow.random import Noise

CANARY_ROWS, CANARY_TOKENS = 4, 8
MAX_DEATHS = 3

Rows = tuple[list[list[int]], list[list[float]]]
"""Tokens of each row, and their log-probabilities."""


class EngineDiedError(RuntimeError):
    """The engine's process is gone, or does not answer; a restart may help."""


@dataclass(kw_only=True)
class Apart(Engine):
    """Samples with the weights of the last `load`, which happens whenever the actor's have changed since.

    Attributes:
        canary_tolerance: Mean difference in nats between engine and trainer on a few tokens after each load, above
            which the run ends. Too low: rounding of bfloat16 kernels ends runs; too high: stale weights pass.
        restarts: Deaths survived so far.
    """

    canary_tolerance: float = 0.1
    restarts: int = field(default=0, init=False)
    _loaded: tuple[float, ...] = field(default=(), init=False)

    @abstractmethod
    def start(self) -> None:
        """Be ready to load and generate; nothing where it is already."""

    def bring(self, actor: nn.Module) -> None:
        """Make the engine sample as `actor` does; here by all of its weights, a LoRA merged."""
        self.load(plain_weights(actor))

    @abstractmethod
    def load(self, weights: Iterator[tuple[str, Tensor]]) -> None:
        """Replace the weights in place, and forget every cached key and value of the old ones."""

    @abstractmethod
    def generate(self, prompts: Sequence[Sequence[int]], sampling: Sampling, seeds: Sequence[int]) -> Rows:
        """Complete each prompt from its own seed; raises `EngineDiedError` where the engine is gone."""

    @abstractmethod
    def stop(self) -> None:
        """End the engine, also a dead one."""

    def rest(self) -> None:
        """Called after each batch: give memory back to the trainer."""

    def complete(self, model: LanguageModel, context: dict[str, Tensor], noise: Noise) -> Completions:
        """Bring the weights, sample; after a death start anew and repeat the batch from the same seeds.

        Raises:
            EngineError: It died several times in one batch, or the canary found other weights than the trainer's.
        """
        prompts, sampling = bare_prompts(context), model.sampling
        seeds = row_seeds(noise, len(prompts))
        for attempt in range(MAX_DEATHS + 1):
            try:
                self._bring(model, context)
                tokens, log_probs = self.generate(prompts, sampling, seeds)
                self.rest()
                break
            except EngineDiedError as error:
                self.close()
                if attempt == MAX_DEATHS:
                    raise EngineError(
                        f"engine: expected it to sample {len(prompts)} completions, found that it died "
                        f"{MAX_DEATHS + 1} times: {error}; see its own messages above"
                    ) from error
                self.restarts += 1
        self.metrics["engine_restarts"] = float(self.restarts)
        return Completions.from_rows(tokens, log_probs, sampling).to(context["prompt"].device)

    def close(self) -> None:
        """Stop; the next `complete` starts and loads again."""
        self._loaded = ()
        self.stop()

    def _bring(self, model: LanguageModel, context: dict[str, Tensor]) -> None:
        self.start()
        wanted = fingerprint(model.actor)
        if self._loaded == wanted:
            return
        began = time.perf_counter()
        self.bring(model.actor)
        self.metrics["engine_sync_s"] = time.perf_counter() - began
        self.metrics["engine_canary"] = self._canary(model, context)
        self._loaded = wanted

    def _canary(self, model: LanguageModel, context: dict[str, Tensor]) -> float:
        rows = slice(None, None, max(len(context["prompt"]) // CANARY_ROWS, 1))
        few = {name: context[name][rows][:CANARY_ROWS] for name in ("prompt", "prompt_mask")}
        short = replace(model.sampling, max_new_tokens=min(CANARY_TOKENS, model.sampling.max_new_tokens))
        prompts = bare_prompts(few)
        tokens, said = self.generate(prompts, short, range(len(prompts)))
        made = Completions.from_rows(tokens, said, short).to(few["prompt"].device)
        assert made.log_prob is not None
        expected = model.completion_log_prob(few, made.token, made.mask)
        difference = float((expected - made.log_prob)[made.mask].abs().mean())
        # Also where it is NaN.
        if not difference <= self.canary_tolerance:
            raise EngineError(
                f"engine: expected the trainer's log-probabilities within {self.canary_tolerance:g} nats after the "
                f"weights were loaded, found a mean difference of {difference:.3g} over {int(made.mask.sum())} tokens; "
                "the engine has other weights or another dtype (task.vllm.dtype, task.vllm.canary_tolerance)"
            )
        return difference
