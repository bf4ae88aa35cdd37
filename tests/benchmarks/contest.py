"""What the speed benchmarks share: contenders in processes of their own that take turns, and tables of their ratios."""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from rlflow.config import resolve
from rlflow.identity import cell_identity
from rlflow.launch import quiet_libraries
from rlflow.run import build_trainer
from rlflow.store import open_store
from rlflow.tracking import start_seed
from rlflow.trainer import Loop

Measures = dict[str, float]


@dataclass(frozen=True)
class Ratio:
    """One number of the second table: `above` / `below`, each a contender and one of its measures."""

    name: str
    above: tuple[str, str]
    below: tuple[str, str]
    target: str

    def values(self, rounds: Sequence[Mapping[str, Measures]]) -> list[float]:
        """The ratio of every round, smallest first; empty where a contender did not take part."""
        (above, key), (below, other) = self.above, self.below
        if above not in rounds[0] or below not in rounds[0]:
            return []
        return sorted(found[above][key] / found[below][other] for found in rounds)


class TimedLoop(Loop):
    """The real loop with a clock that starts after the first iteration; evaluation is left out."""

    def judge(self) -> None:  # type: ignore[override]
        self.evaluations += 1

    def on_train_batch_start(self, batch: object, batch_idx: int) -> None:
        if batch_idx == 1:
            self.begin_s, self.before = time.perf_counter(), dict(self.cost.seconds)

    def on_train_end(self) -> None:
        self.elapsed_s = time.perf_counter() - self.begin_s


def train(algorithm: str, task: str, given: Sequence[str], iterations: int) -> Measures:
    """Samples a second of rollout, update and both, of the whole loop with its tracking."""
    samples = resolve(algorithm, task, given).task.samples_per_rollout
    config = resolve(algorithm, task, [*given, f"trainer.budget={samples * (iterations + 1)}"])
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
        "per_s": iterations * samples / loop.elapsed_s,
        "rollout_per_s": iterations * samples / spent["rollout_s"],
        "update_per_s": iterations * samples / spent["update_s"],
    }


def contest(
    script: str,
    about: str | None,
    roles: Mapping[str, Callable[[int], Measures]],
    peers: Callable[[Path, int], Mapping[str, Sequence[str]]],
    *,
    unit: str,
    ratios: Sequence[Ratio],
) -> None:
    """The command line of a benchmark: its contenders take turns and are reported, or one of them plays its role.

    Args:
        script: The benchmark's file, which each of our contenders starts.
        about: Its help.
        roles: What our contenders measure in a number of iterations.
        peers: From a scratch folder and the iterations, the script and arguments of other libraries' contenders.
        unit: Of the rates.
        ratios: Second table.
    """
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", default="", help="Python of the environment of other libraries; empty: without them")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--iterations", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--role", choices=list(roles), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.role:
        quiet_libraries()
        torch.set_num_threads(options.threads)
        print(json.dumps(roles[options.role](options.iterations)))
        return
    sizes = ["--iterations", str(options.iterations), "--threads", str(options.threads)]
    contenders: dict[str, list[str]] = {role: [sys.executable, script, "--role", role, *sizes] for role in roles}
    with tempfile.TemporaryDirectory() as folder:
        if options.peer:
            others = peers(Path(folder), options.iterations)
            contenders |= {name: [options.peer, *arguments, *sizes] for name, arguments in others.items()}
        report(take_turns(contenders, options.rounds), unit, ratios)


def take_turns(contenders: Mapping[str, Sequence[str]], num_rounds: int) -> list[dict[str, Measures]]:
    """Start each contender once a round; its last line of output is its measures as JSON.

    Raises:
        SystemExit: A contender failed; shows the end of what it said.
    """
    rounds = []
    for number in range(num_rounds):
        rounds.append({name: _measured(name, command) for name, command in contenders.items()})
        print(f"round {number + 1} of {num_rounds}", file=sys.stderr, flush=True)
    return rounds


def report(rounds: Sequence[Mapping[str, Measures]], unit: str, ratios: Sequence[Ratio]) -> None:
    """Two Markdown tables: rates, and ratios with their targets."""
    keys = {"per_s": f"{unit}/s", "rollout_per_s": f"rollout {unit}/s", "update_per_s": f"update {unit}/s"}
    print(f"| contender | {' | '.join(keys.values())} |\n|---|---|---|---|")
    for name in rounds[0]:
        cells = []
        for key in keys:
            values = [found[name][key] for found in rounds if key in found[name]]
            cells.append(f"{statistics.median(values):,.0f}" if values else "")
        print(f"| {name} | {' | '.join(cells)} |")
    print("\n| ratio | median (min .. max) | target |\n|---|---|---|")
    for ratio in ratios:
        if values := ratio.values(rounds):
            spread = f"{values[0]:.2f} .. {values[-1]:.2f}"
            print(f"| {ratio.name} | {statistics.median(values):.2f} ({spread}) | {ratio.target} |")


def _measured(name: str, command: Sequence[str]) -> Measures:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stderr[-2000:]}")
    found: Measures = json.loads(done.stdout.strip().splitlines()[-1])
    return found
