"""Speed of reasoning against TRL and against the bare work, side by side (`make perf`).

    python tests/benchmarks/perf_reasoning.py --peer .venv-peers/bin/python [--rounds 5] [--iterations 3] [--threads 1]

GRPO on countdown with the shipped base: 32 prompts x 8 completions of at most 32 tokens, two optimiser steps. Every
contender is a process of its own; they take turns round by round, and a ratio is the median of the rounds' ratios.
rlflow's clock includes verified rewards and tracking to MLflow. Without replay the sampler's likelihoods are the old
ones (`task.lm.behaviour=engine`). Prints Markdown.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from contest import Measures, Ratio, contest, train

from rlflow.policies.causal_lm import CausalLMPolicy, LMConfig
from rlflow.random import Noise, generator
from rlflow.rollout import Rollout
from tasks.reasoning.countdown import Countdown

# As in peers/trl_grpo.py.
GROUPS, GROUP_SIZE, UPDATES, MAX_TOKENS = 32, 8, 2, 32
COMPLETIONS = GROUPS * GROUP_SIZE
SIZES = (
    f"task.groups_per_rollout={GROUPS}",
    f"task.group_size={GROUP_SIZE}",
    f"task.lm.max_new_tokens={MAX_TOKENS}",
    f"update.updates_per_rollout={UPDATES}",
    "update.epochs=1",
    "update.lr=1e-6",
    "algorithm.beta=0",
)


def task() -> Countdown:
    """Countdown at the sizes of the contest."""
    return Countdown(groups_per_rollout=GROUPS, group_size=GROUP_SIZE, lm=LMConfig(max_new_tokens=MAX_TOKENS))


def sampled() -> tuple[CausalLMPolicy, Rollout]:
    """The base and one rollout of it."""
    countdown = task()
    policy = countdown.build_policy(frozenset({"log_prob"}))
    assert isinstance(policy, CausalLMPolicy)
    rollout = countdown.rollout(policy, torch.arange(GROUPS), Noise(generator=generator(0)))
    return policy, rollout


def rollouts(iterations: int) -> Measures:
    """rlflow's rollouts alone: prompts, sampling and the block; old likelihoods are a second pass of the loop."""
    countdown = task()
    policy = countdown.build_policy(frozenset({"log_prob"}))
    noise, starts = Noise(generator=generator(0)), torch.arange(GROUPS)
    with torch.no_grad():
        countdown.rollout(policy, starts, noise)
        begin_s = time.perf_counter()
        for _ in range(iterations):
            countdown.rollout(policy, starts, noise)
    return {"rollout_per_s": iterations * COMPLETIONS / (time.perf_counter() - begin_s)}


def generate(iterations: int) -> Measures:
    """`generate` of transformers on the same prompts, with its own cache and sampling."""
    policy, rollout = sampled()
    prompt, mask = rollout.context["prompt"], rollout.context["prompt_mask"].long()
    banned = [[int(i)] for i in policy.banned.tolist()]  # type: ignore[union-attr, operator]

    def once() -> torch.Tensor:
        tokens: torch.Tensor = policy.actor.generate(  # type: ignore[operator]
            input_ids=prompt, attention_mask=mask, do_sample=True, temperature=1.0, top_k=0, top_p=1.0,
            max_new_tokens=policy.config.max_new_tokens, pad_token_id=policy.pad_id, eos_token_id=policy.eos_id,
            bad_words_ids=banned,
        )  # fmt: skip
        return tokens

    torch.manual_seed(0)
    once()
    begin_s = time.perf_counter()
    for _ in range(iterations):
        once()
    return {"rollout_per_s": iterations * COMPLETIONS / (time.perf_counter() - begin_s)}


def bare_update(iterations: int) -> Measures:
    """Forward, likelihood, clipped ratio, backward and AdamW on the same tokens, without a library."""
    policy, rollout = sampled()
    model, tokens = policy.actor, rollout.action["token"]
    ids = torch.cat([rollout.context["prompt"], tokens], dim=1)
    attention = torch.cat([rollout.context["prompt_mask"], rollout.mask], dim=1).long()
    position = (attention.cumsum(-1) - 1).clamp_min(0)
    advantage, width = torch.randn(COMPLETIONS, 1), tokens.shape[1]
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)

    def likelihood(i: torch.Tensor) -> torch.Tensor:
        out = model(input_ids=ids[i], attention_mask=attention[i], position_ids=position[i], logits_to_keep=width + 1)
        return out.logits[:, :-1].log_softmax(-1).gather(-1, tokens[i].unsqueeze(-1)).squeeze(-1)  # type: ignore[no-any-return]

    with torch.no_grad():
        old = likelihood(torch.arange(COMPLETIONS))

    def iterate() -> None:
        for i in torch.randperm(COMPLETIONS).chunk(UPDATES):
            ratio = (likelihood(i) - old[i]).exp()
            gain = torch.minimum(ratio * advantage[i], ratio.clamp(0.8, 1.2) * advantage[i])
            optimiser.zero_grad(set_to_none=True)
            (-(gain * rollout.mask[i]).sum() / rollout.mask[i].sum()).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()

    iterate()
    begin_s = time.perf_counter()
    for _ in range(iterations):
        iterate()
    return {"update_per_s": iterations * COMPLETIONS / (time.perf_counter() - begin_s)}


ROLES: Mapping[str, Callable[[int], Measures]] = {
    "rlflow GRPO": lambda n: train("flow_grpo", "reasoning/countdown", SIZES, n),
    "rlflow GRPO without replay": lambda n: train(
        "flow_grpo", "reasoning/countdown", (*SIZES, "task.lm.behaviour=engine"), n
    ),
    "rlflow rollout": rollouts,
    "generate": generate,
    "bare update": bare_update,
}
RATIOS = (
    Ratio("GRPO iteration / TRL", ("rlflow GRPO", "per_s"), ("TRL GRPO", "per_s"), "at least 1.5"),
    Ratio("GRPO iteration without replay / TRL", ("rlflow GRPO without replay", "per_s"), ("TRL GRPO", "per_s"), ""),
    Ratio("rollout / `generate`", ("rlflow rollout", "rollout_per_s"), ("generate", "rollout_per_s"), "at least 1.3"),
    Ratio(
        "rollout (with old likelihoods) / `generate`",
        ("rlflow GRPO", "rollout_per_s"),
        ("generate", "rollout_per_s"),
        "",
    ),
    Ratio("time of update / bare", ("bare update", "update_per_s"), ("rlflow GRPO", "update_per_s"), "at most 1.15"),
)


def peers(folder: Path, iterations: int) -> Mapping[str, Sequence[str]]:
    """TRL, with our base and our prompts."""
    countdown, prompts = task(), folder / "prompts.json"
    problems = [countdown.training_problem(i).prompt for i in range(GROUPS * (iterations + 1))]
    prompts.write_text(json.dumps(problems), encoding="utf-8")
    script = str(Path(__file__).parent / "peers" / "trl_grpo.py")
    return {"TRL GRPO": [script, "--base", str(countdown.shipped_base), "--prompts", str(prompts)]}


if __name__ == "__main__":
    contest(__file__, __doc__, ROLES, peers, unit="completions", ratios=RATIOS)
