"""All pairs of the core suite on a CUDA device: samples/s of training and peak memory, as a Markdown table.

    python tests/gpu/pairs.py [--iterations 4] [--out results/gpu.md]

The same configurations as on the CPU, only `trainer.accelerator=gpu`. Exits with 1 where no CUDA device is visible;
`--accelerator cpu` tries the script itself.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import torch

from rlflow.config import resolve
from rlflow.run import Points, build_trainer
from rlflow.suite import load_suite
from rlflow.tracker import MemoryTracker
from rlflow.trainer import Loop

COLUMNS = "| algorithm | task | samples/s | rollout share | peak GB | first ratio error | score before -> after |"


def row(algorithm: str, task: str, iterations: int, accelerator: str) -> str:
    """Train one pair for a few iterations on the device."""
    if accelerator == "gpu":
        torch.cuda.reset_peak_memory_stats()
    samples = resolve(algorithm, task).task.samples_per_rollout
    settings = [
        f"trainer.accelerator={accelerator}",
        "trainer.num_evaluations=2",
        f"trainer.budget={samples * iterations}",
    ]
    config = resolve(algorithm, task, settings)
    tracker = MemoryTracker()
    with tempfile.TemporaryDirectory() as folder:
        points = Points(tracker, lambda _: None)
        loop = Loop(config, points, Path(folder))
        build_trainer(config, Path(folder)).fit(loop)
        points.flush()
        cost = loop.cost.metrics(torch.device("cuda" if accelerator == "gpu" else "cpu"))
        config.task.close()
    scores = [value for _, value in tracker.points["eval/score"]]
    error = max((value for _, value in tracker.points.get("update/first_ratio_error", [])), default=float("nan"))
    rate, share = loop.samples / cost["cost/wall_s"], cost["cost/rollout_s"] / cost["cost/wall_s"]
    return (
        f"| {algorithm} | {task} | {rate:,.0f} | {share:.0%} | {cost['cost/peak_gb']:.2f} | {error:.1e} "
        f"| {scores[0]:.3f} -> {scores[-1]:.3f} |"
    )


def main() -> int:
    """Print the table, and write it where asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iterations", type=int, default=4)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--accelerator", default="gpu", choices=["gpu", "cpu"])
    options = parser.parse_args()
    if options.accelerator == "gpu" and not torch.cuda.is_available():
        print("expected a CUDA device, found none; see `rlflow doctor`", file=sys.stderr)
        return 1
    suite = load_suite("core")
    device = torch.cuda.get_device_name() if options.accelerator == "gpu" else "CPU"
    lines = [f"{device}, torch {torch.__version__}, {options.iterations} iterations per pair", ""]
    lines += [COLUMNS, "|" + "---|" * 7]
    for task in suite.tasks:
        for algorithm in suite.algorithms:
            lines.append(row(algorithm, task, options.iterations, options.accelerator))
            print(lines[-1], flush=True)
    if options.out is not None:
        options.out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
