"""Loop overhead: iteration time of the Lightning loop with MLflow tracking against the same work in a bare torch loop.

    python tests/benchmarks/overhead.py [--pairs ppo:image/shapes ...] [--rounds 5] [--iterations 4]

Both sides run in one process, in turn, on copies of one configuration; the ratio is taken round by round and its
median is printed, so that a machine that slows down slows both. Evaluation and checkpoints are outside the iterations.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch

from rlflow.config import Config, resolve
from rlflow.identity import cell_identity
from rlflow.random import Noise, generator
from rlflow.rollout import flatten_targets, minibatch
from rlflow.run import build_trainer
from rlflow.store import open_store
from rlflow.tracking import SeedTracker, start_seed
from rlflow.trainer import Loop

DEFAULT_PAIRS = (
    "flow_grpo:image/shapes",
    "fpo:image/shapes",
    "flow_grpo:reasoning/countdown",
    "ppo:reasoning/countdown",
    "ppo:control/halfcheetah",
    "flowrl:control/halfcheetah",
)
LIMITS = {"image": 0.05, "reasoning": 0.05, "control": 0.15}


class TimedLoop(Loop):
    """The real loop, with the clock of its iterations; evaluation is left out."""

    def judge(self) -> None:  # type: ignore[override]
        self.evaluations += 1

    def on_train_batch_start(self, batch: object, batch_idx: int) -> None:
        if batch_idx == 1:
            self.begin_s = time.perf_counter()

    def on_train_end(self) -> None:
        self.elapsed_s = time.perf_counter() - self.begin_s


def bare_iterations(config: Config, iterations: int) -> float:
    """Seconds per iteration of plain torch code that does the same work, after one iteration of warm-up."""
    algorithm, task, update = config.algorithm, config.task, config.update
    torch.manual_seed(0)
    policy = task.build_policy(algorithm.requires).eval()
    groups = [{"params": params, "lr": update.lr} for params in policy.parameter_groups().values()]
    optimiser = torch.optim.AdamW(groups, betas=update.betas, weight_decay=update.weight_decay, fused=True)
    noise = Noise(generator=generator(0, "rollout"))
    ids = task.starts()
    begin_s = 0.0
    for iteration in range(iterations + 1):
        if iteration == 1:
            begin_s = time.perf_counter()
        with torch.no_grad():
            picks = torch.randint(len(ids), (task.groups_per_rollout,), generator=noise.generator).tolist()
            rollout = task.rollout(policy, torch.tensor([ids[i] for i in picks]), noise)
            policy.record_behaviour(rollout)
            rollout = task.score(rollout)
            targets = algorithm.targets(policy, rollout)
        rows = rollout.flatten(algorithm.row_decisions)
        goals = flatten_targets(targets, rollout, algorithm.row_decisions)
        for _ in range(update.epochs):
            order = torch.randperm(rows.num_rollouts)
            for index in order.chunk(update.updates_per_rollout // update.epochs):
                part = minibatch(rows, goals, index, float(rows.mask[index].sum()), float(len(index)))
                optimiser.zero_grad(set_to_none=True)
                algorithm.loss(policy, part).total.backward()
                for group in groups:
                    torch.nn.utils.clip_grad_norm_(group["params"], update.grad_clip)
                optimiser.step()
        policy.end_iteration(rollout)
    task.close()
    return (time.perf_counter() - begin_s) / iterations


def loop_iterations(config: Config, iterations: int, tracker: SeedTracker, folder: Path) -> float:
    """Seconds per iteration of the real loop under Lightning, writing to MLflow, after one iteration of warm-up."""
    loop = TimedLoop(config, tracker, folder)
    build_trainer(config, folder).fit(loop)
    tracker.flush()
    config.task.close()
    return loop.elapsed_s / iterations


def measure(pair: str, rounds: int, iterations: int, folder: Path) -> list[tuple[float, float]]:
    """(loop, bare) seconds per iteration of each round."""
    algorithm, _, task = pair.partition(":")
    store = open_store(f"sqlite:///{folder}/mlflow.db", results=folder)
    samples = resolve(algorithm, task).task.samples_per_rollout
    found = []
    for number in range(rounds):
        config = resolve(algorithm, task, [f"trainer.budget={samples * (iterations + 1)}"])
        identity = cell_identity(config, suite="overhead@1")
        tracker = start_seed(store, identity, seed=number, config=config.resolved)
        again = resolve(algorithm, task, [f"trainer.budget={samples * (iterations + 1)}"])
        loop_s = loop_iterations(config, iterations, tracker, folder)
        # Or its heartbeat would run beside all later rounds.
        tracker.finish("interrupted")
        found.append((loop_s, bare_iterations(again, iterations)))
    return found


def main() -> None:
    """Print a table; the exit code is 1 where a limit is exceeded."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", nargs="+", default=list(DEFAULT_PAIRS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--iterations", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    exceeded = False
    print("| pair | loop ms/iteration | bare ms/iteration | overhead, median (min .. max) | limit |")
    print("|---|---|---|---|---|")
    for pair in options.pairs:
        with tempfile.TemporaryDirectory() as folder:
            rounds = measure(pair, options.rounds, options.iterations, Path(folder))
        overheads = sorted(loop / bare - 1 for loop, bare in rounds)
        middle = statistics.median(overheads)
        limit = LIMITS[pair.partition(":")[2].partition("/")[0]]
        loop_ms, bare_ms = (1e3 * statistics.median(side) for side in zip(*rounds, strict=True))
        spread = f"{overheads[0]:+.1%} .. {overheads[-1]:+.1%}"
        print(f"| {pair} | {loop_ms:.0f} | {bare_ms:.0f} | {middle:+.1%} ({spread}) | {limit:.0%} |", flush=True)
        exceeded |= middle > limit
    raise SystemExit(1 if exceeded else 0)


if __name__ == "__main__":
    main()
