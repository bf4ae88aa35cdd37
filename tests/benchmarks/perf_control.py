"""Speed of control against Stable-Baselines3 and against the bare work, side by side (`make perf`).

    python tests/benchmarks/perf_control.py --peer .venv-peers/bin/python [--rounds 5] [--iterations 3] [--threads 1]

PPO on HalfCheetah-v5: 8 environments x 256 steps, 10 epochs of 8 minibatches, two layers of 64 on both sides. Every
contender is a process of its own; they take turns round by round, and a ratio is the median of the rounds' ratios.
Evaluation, checkpoints and the first iteration are outside the clock; tracking to MLflow is inside. Prints Markdown.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from contest import Measures, Ratio, contest, train
from torch import Tensor, nn

from tasks.control.engines import open_vector, spec_of

NUM_ENVS, NUM_STEPS, PROBES, MINIBATCH, UPDATES = 8, 256, 8, 256, 80
STEPS = NUM_ENVS * NUM_STEPS
GAUSSIAN = ("task.policy=gaussian", "task.video=false")
FLOW = ("task.engine=batched", "task.policy=flow", "task.video=false")


def ppo(engine: str, iterations: int) -> Measures:
    """The whole loop of Gaussian PPO."""
    return train("ppo", "control/halfcheetah", [f"task.engine={engine}", *GAUSSIAN], iterations)


def step(engine: str, iterations: int) -> Measures:
    """Steps a second of the engine alone, with random actions."""
    vector = open_vector(spec_of(engine, "HalfCheetah-v5"), list(range(NUM_ENVS)), lambda start, _: start)  # type: ignore[arg-type]
    actions = np.random.default_rng(0).uniform(-1, 1, (NUM_STEPS, NUM_ENVS, 6)).astype(np.float32)
    begin_s = time.perf_counter()
    for _ in range(iterations):
        for action in actions:
            vector.step(action)
    elapsed_s = time.perf_counter() - begin_s
    vector.close()
    return {"per_s": iterations * STEPS / elapsed_s}


def mlp(sizes: tuple[int, ...], activation: type[nn.Module]) -> nn.Sequential:
    """A plain network."""
    layers: list[nn.Module] = []
    for i, (a, b) in enumerate(pairwise(sizes)):
        layers += [nn.Linear(a, b), *([activation()] if i < len(sizes) - 2 else [])]
    return nn.Sequential(*layers)


def bare_fpo(iterations: int) -> Measures:
    """FPO's update without a library: the same passes on tensors that lie there, one function, fused Adam."""
    torch.manual_seed(0)
    actor, critic = mlp((17 + 6 + 8, 64, 64, 64, 6), nn.SiLU), mlp((17, 64, 64, 1), nn.Tanh)
    groups = [list(actor.parameters()), list(critic.parameters())]
    optimiser = torch.optim.AdamW([{"params": group} for group in groups], lr=1e-3, fused=True)
    observation, action = torch.randn(STEPS, 17), torch.randn(STEPS, 6)
    eps, t = torch.randn(STEPS, PROBES, 6), torch.rand(STEPS, PROBES, 1)
    old, advantage, returns = torch.zeros(STEPS), torch.randn(STEPS), torch.randn(STEPS)
    frequency = torch.arange(1, 5) * torch.pi

    def loss(i: Tensor) -> Tensor:
        x0, e, s = action[i].unsqueeze(1), eps[i], t[i]
        features = torch.cat([torch.sin(s * frequency), torch.cos(s * frequency)], -1)
        seen = observation[i].unsqueeze(1).expand(-1, PROBES, -1)
        v = actor(torch.cat([seen, s * e + (1 - s) * x0, features], -1))
        bound = -(v - (e - x0)).square().sum(-1).mean(-1) / 6**0.5
        ratio = (bound - old[i]).clamp(-20, 20).exp()
        gain = torch.minimum(ratio * advantage[i], ratio.clamp(0.95, 1.05) * advantage[i])
        return (critic(observation[i]).squeeze(-1) - returns[i]).square().mean() * 0.5 - gain.mean()

    def iterate() -> None:
        with torch.no_grad():
            loss(torch.arange(STEPS))
        for _ in range(UPDATES // (STEPS // MINIBATCH)):
            for i in torch.randperm(STEPS).split(MINIBATCH):
                optimiser.zero_grad(set_to_none=True)
                loss(i).backward()
                for group in groups:
                    nn.utils.clip_grad_norm_(group, 0.5)
                optimiser.step()

    iterate()
    begin_s = time.perf_counter()
    for _ in range(iterations):
        iterate()
    return {"update_per_s": iterations * STEPS / (time.perf_counter() - begin_s)}


ROLES: Mapping[str, Callable[[int], Measures]] = {
    "rlflow ppo, batched": lambda n: ppo("batched", n),
    "rlflow ppo, gymnasium": lambda n: ppo("gymnasium", n),
    "rlflow fpo, batched": lambda n: train("fpo", "control/halfcheetah", FLOW, n),
    "engine batched": lambda n: step("batched", n),
    "engine gymnasium": lambda n: step("gymnasium", n),
    "bare fpo update": bare_fpo,
}
RATIOS = (
    Ratio("PPO on `gymnasium` / SB3", ("rlflow ppo, gymnasium", "per_s"), ("SB3 ppo", "per_s"), "at least 1.5"),
    Ratio("PPO on `batched` / SB3", ("rlflow ppo, batched", "per_s"), ("SB3 ppo", "per_s"), "at least 3"),
    Ratio(
        "PPO's rollout / engine `batched`",
        ("rlflow ppo, batched", "rollout_per_s"),
        ("engine batched", "per_s"),
        "at least 0.6",
    ),
    Ratio(
        "PPO's rollout / engine `gymnasium`",
        ("rlflow ppo, gymnasium", "rollout_per_s"),
        ("engine gymnasium", "per_s"),
        "at least 0.6",
    ),
    Ratio(
        "FPO's update / bare torch",
        ("rlflow fpo, batched", "update_per_s"),
        ("bare fpo update", "update_per_s"),
        "at least 0.7",
    ),
)


def peers(folder: Path, iterations: int) -> Mapping[str, Sequence[str]]:
    """Stable-Baselines3, whole and its environments alone."""
    script = str(Path(__file__).parent / "peers" / "sb3_ppo.py")
    return {"SB3 ppo": [script], "SB3 environments": [script, "--engine"]}


if __name__ == "__main__":
    contest(__file__, __doc__, ROLES, peers, unit="steps", ratios=RATIOS)
