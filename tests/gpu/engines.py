"""Control engines end to end on a CUDA device: PPO on HalfCheetah-v5 with 4,096 environments, as a Markdown table.

    python tests/gpu/engines.py [--num-envs 4096] [--num-steps 32] [--iterations 4] [--out results/engines.md]

`warp` steps on the device, `batched` in the host's threads; policy and update run on the device in both. Rates leave
out the first iteration (kernels, captured graph) and the evaluations. Exits with 1 where no CUDA device is visible;
`--accelerator cpu --num-envs 64` tries the script itself.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import torch

from rlflow.config import resolve
from rlflow.run import Points, build_trainer
from rlflow.tracker import MemoryTracker
from rlflow.trainer import Loop

COLUMNS = "| engine | environments | env steps/s | rollout env steps/s | update env steps/s | peak GB |"


class TimedLoop(Loop):
    """The real loop with a clock that starts after the first iteration; evaluation is left out."""

    def judge(self) -> None:
        """Count the evaluation and do without it."""
        self.evaluations += 1

    def on_train_batch_start(self, batch: object, batch_idx: int) -> None:
        """Start the clock."""
        if batch_idx == 1:
            self.begin_s, self.before = time.perf_counter(), dict(self.cost.seconds)

    def on_train_end(self) -> None:
        """Stop it, when the device has done all that it was given."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.elapsed_s = time.perf_counter() - self.begin_s


def row(engine: str, options: argparse.Namespace) -> str:
    """Train on one engine for a few iterations."""
    per_rollout = options.num_envs * options.num_steps
    settings = [
        f"task.engine={engine}",
        f"task.group_size={options.num_envs}",
        f"task.num_steps={options.num_steps}",
        "task.video=false",
        "update.epochs=4",
        "update.updates_per_rollout=32",
        f"trainer.accelerator={options.accelerator}",
        f"trainer.budget={per_rollout * (options.iterations + 1)}",
    ]
    config = resolve("ppo", "control/halfcheetah", settings)
    with tempfile.TemporaryDirectory() as folder:
        points = Points(MemoryTracker(), lambda _: None)
        loop = TimedLoop(config, points, Path(folder))
        build_trainer(config, Path(folder)).fit(loop)
        points.flush()
        cost = loop.cost.metrics(torch.device("cuda" if options.accelerator == "gpu" else "cpu"))
        config.task.close()
    steps = options.iterations * per_rollout
    spent = {stage: loop.cost.seconds[stage] - loop.before[stage] for stage in ("rollout_s", "update_s")}
    rates = (steps / loop.elapsed_s, steps / spent["rollout_s"], steps / spent["update_s"])
    cells = " | ".join(f"{rate:,.0f}" for rate in rates)
    return f"| {engine} | {options.num_envs:,} | {cells} | {cost['cost/peak_gb']:.2f} |"


def main() -> int:
    """Print the table, and write it where asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-envs", type=int, default=4096)
    parser.add_argument("--num-steps", type=int, default=32)
    parser.add_argument("--iterations", type=int, default=4)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--accelerator", default="gpu", choices=["gpu", "cpu"])
    options = parser.parse_args()
    if options.accelerator == "gpu" and not torch.cuda.is_available():
        print("expected a CUDA device, found none; see `rlflow doctor`", file=sys.stderr)
        return 1
    device = torch.cuda.get_device_name() if options.accelerator == "gpu" else "CPU"
    threads = torch.get_num_threads()
    lines = [f"{device}, {threads} host threads, torch {torch.__version__}, {options.iterations} iterations timed", ""]
    lines += [COLUMNS, "|" + "---|" * 6]
    for engine in ("warp", "batched"):
        lines.append(row(engine, options))
        print(lines[-1], flush=True)
    if options.out is not None:
        options.out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
