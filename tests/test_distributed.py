import torch

from rlflow.distributed import all_max, all_sum, masked_moments, rank, world_size

EXACT = 1e-6


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
