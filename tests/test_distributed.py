import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from rlflow.distributed import all_max, all_sum, masked_moments, rank, world_size
from tests.fakes import assert_same_weights, fit, load, toy_loop, weights

EXACT = 1e-6
RANKS = 1e-5
"""Two ranks add the same float32 numbers in another order; Adam's normalised step keeps a part of that."""

ROOT = Path(__file__).parent.parent


def test_alone_the_collectives_are_identities():
    x = torch.ones(2)
    assert all_sum(x) is x
    assert all_max(3, x.device) == 3
    assert (rank(), world_size()) == (0, 1)


def test_masked_moments_are_those_of_the_mask():
    mean, std = masked_moments(torch.tensor([2.0, 4.0, 1000.0]), torch.tensor([True, True, False]))
    # mean (2+4)/2 = 3, population std 1
    assert (float(mean), float(std)) == (3.0, 1.0)


def test_masked_moments_survive_a_large_offset():
    # float32 sums of squares around 1e6 would lose the variance 1 altogether.
    x = 1e6 + torch.tensor([-1.0, 1.0]).repeat(1000)
    assert abs(float(masked_moments(x, torch.ones(2000, dtype=torch.bool))[1]) - 1.0) < EXACT


def test_masked_moments_of_nothing_are_zero():
    mean, std = masked_moments(torch.ones(2), torch.zeros(2, dtype=torch.bool))
    assert (float(mean), float(std)) == (0.0, 0.0)


TWO_RANK_RUNS = [
    # The rows of a minibatch fall unevenly on the ranks, so that one of them has more micro-batches.
    "ppo task.kind=gaussian update.micro_batch=2",
    "flowrl task.kind=causal_lm task.horizon=3 update.ema=0.9",
    "ppo task.kind=gaussian algorithm.surrogate.aggregation=sequence algorithm.kl_weight=0.1 "
    "algorithm.kl.controller=proportional algorithm.kl.target=0.01",
]
REFILLED = "flow_grpo task.kind=causal_lm task.horizon=3 update.refill=2"
SHARED = ["update.lr=0.001", "trainer.budget=24", "trainer.num_evaluations=2"]


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    """Checkpoints of the runs on two gloo processes."""
    folder = tmp_path_factory.mktemp("ranks")
    shared = [*SHARED, "trainer.strategy=ddp", "trainer.devices=2"]
    runs = [" ".join([run, *shared]) for run in [*TWO_RANK_RUNS, REFILLED]]
    environment = {k: v for k, v in os.environ.items() if k not in ("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE")}
    environment |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "tests.ddp_run", str(folder), *runs]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=250, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return [
        (load(folder / str(number)), json.loads((folder / str(number) / "logged.json").read_text()))
        for number in range(len(runs))
    ]


@pytest.mark.parametrize("number", range(len(TWO_RANK_RUNS)))
def test_two_processes_train_as_one_on_the_same_global_batch(number, two_ranks, tmp_path):
    algorithm, *overrides = TWO_RANK_RUNS[number].split()
    alone = toy_loop(algorithm, tmp_path, *overrides, *SHARED)
    before = weights(alone)
    fit(alone)
    one, (two, logged) = load(tmp_path), two_ranks[number]
    assert_same_weights(two, one, atol=RANKS)
    # The weights moved a hundred times further than the tolerance.
    assert max(float((v - before[k]).abs().max()) for k, v in one["state_dict"].items()) > 100 * RANKS
    assert two["rlflow"]["samples"] == one["rlflow"]["samples"] == 24
    for name, state in one["rlflow"]["streams"].items():
        assert torch.equal(two["rlflow"]["streams"][name], state), name
    assert_logged_alike(logged, alone.tracker.calls)
    assert two["rlflow"]["controls"] == pytest.approx(one["rlflow"]["controls"])


def test_ranks_refill_together_within_one_budget(two_ranks):
    state, logged = two_ranks[-1]
    counts = [metrics["rollout/collected"] for _, metrics in logged if "rollout/collected" in metrics]
    # Each rank fills its own rows, both collect until the last has enough; three rollouts are the budget of 24.
    assert sum(counts) == 3
    assert state["rlflow"]["samples"] == 24


def assert_logged_alike(found, expected):
    """Both ranks' rewards, targets and costs are in what the first rank logs."""
    alike = ("reward/", "rollout/", "advantage/", "eval/", "cost/tokens", "cost/env_steps")
    assert [step for step, _ in found] == [step for step, _ in expected]
    compared = set()
    for (step, two), (_, one) in zip(found, expected, strict=True):
        for name in (n for n in one if n.startswith(alike)):
            assert two[name] == pytest.approx(one[name], abs=1e-4), f"{name} at {step}"
            compared.add(name.split("/")[0])
        # A rank without rows of its own in a micro-batch pays for a silent one.
        if "eval/score" in one:
            assert two["cost/policy_forwards"] == pytest.approx(one["cost/policy_forwards"], rel=0.1)
    assert compared >= {"reward", "eval", "cost"}
