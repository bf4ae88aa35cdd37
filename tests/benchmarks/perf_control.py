"""Speed of control against Stable-Baselines3 and against the bare work, side by side (`make perf`).

    python tests/benchmarks/perf_control.py --peer .venv-peers/bin/python [--rounds 5] [--iterations 5] [--threads 2]

PPO on HalfCheetah-v5: 8 environments x 256 steps, 10 epochs of 8 minibatches, two layers of 64 on both sides. Every
contender is a process of its own; they take turns round by round, and a ratio is the median of the rounds' ratios.
Evaluation, checkpoints and the first iteration are outside the clock; tracking to MLflow is inside. Prints Markdown.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from rlflow.config import resolve
from rlflow.identity import cell_identity
from rlflow.launch import quiet_libraries
from rlflow.run import build_trainer
from rlflow.store import open_store
from rlflow.tracking import start_seed
from rlflow.trainer import Loop
from tasks.control.engines import open_vector, spec_of

NUM_ENVS, NUM_STEPS, PROBES, MINIBATCH, UPDATES = 8, 256, 8, 256, 80
STEPS = NUM_ENVS * NUM_STEPS


class TimedLoop(Loop):
    """The real loop with a clock that starts after the first iteration; evaluation is left out."""

    def judge(self) -> None:  # type: ignore[override]
        self.evaluations += 1

    def on_train_batch_start(self, batch: object, batch_idx: int) -> None:
        if batch_idx == 1:
            self.begin_s, self.before = time.perf_counter(), dict(self.cost.seconds)

    def on_train_end(self) -> None:
        self.elapsed_s = time.perf_counter() - self.begin_s


def train(algorithm: str, engine: str, policy: str, iterations: int) -> dict[str, float]:
    """Steps a second of rollout, update and both, of the whole loop."""
    given = [f"task.engine={engine}", f"task.policy={policy}", f"trainer.budget={STEPS * (iterations + 1)}"]
    config = resolve(algorithm, "control/halfcheetah", [*given, "task.video=false"])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        store = open_store(f"sqlite:///{folder}/mlflow.db", results=folder)
        identity = cell_identity(config, suite="perf@1")
        tracker = start_seed(store, identity, seed=0, config=config.resolved)
        loop = TimedLoop(config, tracker, folder)
        build_trainer(config, folder).fit(loop)
        tracker.finish("interrupted")
    config.task.close()
    spent = {stage: loop.cost.seconds[stage] - loop.before[stage] for stage in ("rollout_s", "update_s")}
    return {
        "steps_per_s": iterations * STEPS / loop.elapsed_s,
        "rollout_steps_per_s": iterations * STEPS / spent["rollout_s"],
        "update_steps_per_s": iterations * STEPS / spent["update_s"],
    }


def step(engine: str, iterations: int) -> dict[str, float]:
    """Steps a second of the engine alone, with random actions."""
    vector = open_vector(spec_of(engine, "HalfCheetah-v5"), list(range(NUM_ENVS)), lambda start, _: start)  # type: ignore[arg-type]
    actions = np.random.default_rng(0).uniform(-1, 1, (NUM_STEPS, NUM_ENVS, 6)).astype(np.float32)
    begin_s = time.perf_counter()
    for _ in range(iterations):
        for action in actions:
            vector.step(action)
    elapsed_s = time.perf_counter() - begin_s
    vector.close()
    return {"steps_per_s": iterations * STEPS / elapsed_s}


def mlp(sizes: tuple[int, ...], activation: type[nn.Module]) -> nn.Sequential:
    """A plain network."""
    layers: list[nn.Module] = []
    for i, (a, b) in enumerate(pairwise(sizes)):
        layers += [nn.Linear(a, b), *([activation()] if i < len(sizes) - 2 else [])]
    return nn.Sequential(*layers)


def bare_fpo(iterations: int) -> dict[str, float]:
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
    return {"update_steps_per_s": iterations * STEPS / (time.perf_counter() - begin_s)}


ROLES: Mapping[str, Callable[[int], dict[str, float]]] = {
    "rlflow ppo, batched": lambda n: train("ppo", "batched", "gaussian", n),
    "rlflow ppo, gymnasium": lambda n: train("ppo", "gymnasium", "gaussian", n),
    "rlflow fpo, batched": lambda n: train("fpo", "batched", "flow", n),
    "engine batched": lambda n: step("batched", n),
    "engine gymnasium": lambda n: step("gymnasium", n),
    "bare fpo update": bare_fpo,
}
PEERS = {"SB3 ppo": (), "SB3 environments": ("--engine",)}


def measured(role: str, peer: str, iterations: int, threads: int) -> dict[str, float]:
    """What a process of its own prints."""
    sizes = ["--iterations", str(iterations), "--threads", str(threads)]
    if role in PEERS:
        script = Path(__file__).parent / "peers" / "sb3_ppo.py"
        command = [peer, str(script), *sizes, *PEERS[role]]
    else:
        command = [sys.executable, __file__, "--role", role, *sizes]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{role} failed:\n{done.stderr[-2000:]}")
    found: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def report(rounds: list[dict[str, dict[str, float]]]) -> None:
    """Two tables: rates, and ratios with their targets."""
    print("| contender | steps/s | rollout steps/s | update steps/s |\n|---|---|---|---|")
    for role in rounds[0]:
        cells = []
        for key in ("steps_per_s", "rollout_steps_per_s", "update_steps_per_s"):
            values = [found[role][key] for found in rounds if key in found[role]]
            cells.append(f"{statistics.median(values):,.0f}" if values else "")
        print(f"| {role} | {' | '.join(cells)} |")
    whole, rollout, update = "steps_per_s", "rollout_steps_per_s", "update_steps_per_s"
    ratios = (
        ("PPO on `gymnasium` / SB3", ("rlflow ppo, gymnasium", whole), ("SB3 ppo", whole), 1.5),
        ("PPO on `batched` / SB3", ("rlflow ppo, batched", whole), ("SB3 ppo", whole), 3.0),
        ("PPO's rollout / engine `batched`", ("rlflow ppo, batched", rollout), ("engine batched", whole), 0.6),
        ("PPO's rollout / engine `gymnasium`", ("rlflow ppo, gymnasium", rollout), ("engine gymnasium", whole), 0.6),
        ("FPO's update / bare torch", ("rlflow fpo, batched", update), ("bare fpo update", update), 0.7),
    )
    print("\n| ratio | median (min .. max) | target |\n|---|---|---|")
    for name, (above, key), (below, other), target in ratios:
        if above in rounds[0] and below in rounds[0]:
            values = sorted(found[above][key] / found[below][other] for found in rounds)
            spread = f"{values[0]:.2f} .. {values[-1]:.2f}"
            print(f"| {name} | {statistics.median(values):.2f} ({spread}) | at least {target} |")


def main() -> None:
    """Let the contenders take turns and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--peer", default="", help="Python of the environment with Stable-Baselines3; empty: without it"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--iterations", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--role", choices=list(ROLES), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.role:
        quiet_libraries()
        torch.set_num_threads(options.threads)
        print(json.dumps(ROLES[options.role](options.iterations)))
        return
    roles = [*ROLES, *(PEERS if options.peer else ())]
    rounds = []
    for number in range(options.rounds):
        rounds.append({r: measured(r, options.peer, options.iterations, options.threads) for r in roles})
        print(f"round {number + 1} of {options.rounds}", file=sys.stderr, flush=True)
    report(rounds)


if __name__ == "__main__":
    main()
