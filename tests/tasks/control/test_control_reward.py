import numpy as np
import torch

from rlflow.policies.heads import RunningNorm
from tasks.control.reward import ReturnScaler

EXACT = 1e-12
ROUNDED = 1e-6


def test_scaler_divides_by_the_std_of_discounted_returns():
    scaler = ReturnScaler(0.5)
    reward = torch.tensor([[1.0, 2.0, 4.0], [0.0, 2.0, 0.0]])
    ended = torch.tensor([[False, True, False], [False, False, False]])
    scaled = scaler(reward, ended)
    # Row 0: 1, 2 + .5*1 = 2.5, then anew 4.  Row 1: 0, 2, 1.  All: 1, 2.5, 4, 0, 2, 1.
    # Mean 1.75, squares 1 + 6.25 + 16 + 0 + 4 + 1 = 28.25, variance 28.25/6 - 1.75^2 = 1.6458333
    assert abs(scaler.std - (28.25 / 6 - 1.75**2) ** 0.5) < ROUNDED
    assert torch.allclose(scaled, reward / scaler.std, atol=ROUNDED)


def test_scaler_carries_unfinished_traces_and_statistics_across_blocks():
    rng = np.random.default_rng(0)
    reward = torch.from_numpy(rng.standard_normal((3, 12)).astype(np.float32))
    ended = torch.from_numpy(rng.random((3, 12)) < 0.2)
    whole, halves = ReturnScaler(0.9), ReturnScaler(0.9)
    whole(reward, ended)
    halves(reward[:, :6], ended[:, :6])
    resumed = ReturnScaler(0.9)
    resumed.load_state_dict(halves.state_dict())
    resumed(reward[:, 6:], ended[:, 6:])
    assert abs(whole.std - resumed.std) < ROUNDED
    assert resumed.statistics.count == 36


def test_shared_observation_statistics_equal_numpy():
    rng = np.random.default_rng(0)
    parts = [rng.normal(5.0, 3.0, size=(n, 7, 4)) for n in (1, 8, 3)]
    norm = RunningNorm((4,))
    for part in parts:
        norm.update(torch.from_numpy(part))
    rows = np.concatenate([p.reshape(-1, 4) for p in parts])
    assert np.allclose(norm.mean.numpy(), rows.mean(0), atol=EXACT, rtol=0)
    assert np.allclose(norm.variance.numpy(), rows.var(0), atol=1e3 * EXACT, rtol=0)
