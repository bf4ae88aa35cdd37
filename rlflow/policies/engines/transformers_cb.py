"""Continuous batching of transformers: the trainer's own module on a paged cache, rows leave the batch as they end."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from rlflow.policies.engines.engine import (
    MAX_SEED,
    Completions,
    Engine,
    EngineError,
    LanguageModel,
    Sampling,
    bare_prompts,
)
from rlflow.policies.engines.weights import plain_model
from rlflow.random import Noise

PAGE_TOKENS = 64


@dataclass(kw_only=True)
class ContinuousBatching(Engine):
    """`generate_batch` of the actor itself: nothing to synchronise, other attention kernels than the replay's.

    Rows share one generator, so that a batch is drawn again only as a whole: same prompts, same noise.
    """

    def complete(self, model: LanguageModel, context: dict[str, Tensor], noise: Noise) -> Completions:
        """One request per row.

        Raises:
            EngineError: A request failed; transformers logs why.
        """
        from transformers import ContinuousBatchingConfig, GenerationConfig

        sampling, prompts = model.sampling, bare_prompts(context)
        asked = GenerationConfig(
            do_sample=True, temperature=sampling.temperature, top_k=0, top_p=1.0, eos_token_id=sampling.eos_id,
            pad_token_id=sampling.pad_id, max_new_tokens=sampling.max_new_tokens,
            suppress_tokens=list(sampling.banned_ids) or None,
        )  # fmt: skip
        seed = (noise.integer(MAX_SEED) + noise.rank) % MAX_SEED
        # Another attention than the trainer's, and dropped processors, would sample from another distribution.
        batching = ContinuousBatchingConfig(
            return_logprobs=True, auto_switch_to_flash=False, drop_unsupported_processors=False, seed=seed,
            **self._sizes(context, sampling),
        )  # fmt: skip
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            answers = plain_model(model.actor).generate_batch(
                prompts, generation_config=asked, continuous_batching_config=batching, warmup=False
            )
        rows = list(answers.values())
        failed = [row.error for row in rows if row.error is not None]
        if failed or len(rows) != len(prompts):
            raise EngineError(
                f"engine: expected {len(prompts)} completions of transformers' continuous batching, found "
                f"{len(rows) - len(failed)} and the errors {failed[:3]}; see its messages above"
            )
        tokens, said = [list(row.generated_tokens) for row in rows], [list(row.logprobs) for row in rows]
        return Completions.from_rows(tokens, said, sampling).to(context["prompt"].device)

    def _sizes(self, context: dict[str, Tensor], sampling: Sampling) -> dict[str, int]:
        """A cache for all rows at once on a CPU, of which transformers would take most of the memory; else its own."""
        rows, width = context["prompt"].shape
        if context["prompt"].device.type != "cpu":
            return {}
        pages = math.ceil((width + sampling.max_new_tokens) / PAGE_TOKENS)
        return {"page_size": PAGE_TOKENS, "num_blocks": rows * pages + 1, "max_batch_tokens": max(rows, width, 256)}
