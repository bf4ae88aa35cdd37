import math
from itertools import pairwise

import pytest
import torch

from rlflow.flow_matching import SDE_KINDS, cfm_loss, integrate, reduce_dims, sde_step, time_grid
from rlflow.random import generator

EXACT = 1e-6
ROUNDED = 1e-4
MEAN, STD = 2.0, 0.5
"""Data of the analytic flow: x_s is normal with mean (1-s) MEAN and variance ((1-s) STD)^2 + s^2."""
STANDARD_ERRORS = 4.0


def gaussian_velocity(x, s):
    """E[eps - x0 | x_s = x] for data N(MEAN, STD^2)."""
    s = s.view(-1, *[1] * (x.ndim - 1))
    variance = ((1 - s) * STD) ** 2 + s**2
    return -MEAN + (s - (1 - s) * STD**2) / variance * (x - (1 - s) * MEAN)


def at(value, n=1):
    return torch.full((n,), float(value))


def walk(velocity, x, grid, kind, a, seed=0):
    noise = generator(seed)
    for s, s_next in zip(grid[:-1].tolist(), grid[1:].tolist(), strict=True):
        v = velocity(x, at(s, x.shape[0]))
        draws = torch.randn(x.shape, generator=noise)
        x = sde_step(x, v, at(s), at(s_next), a=a, kind=kind, noise=draws).x_next
    return x


def test_time_grid_is_linear_and_shifted():
    assert time_grid(4).tolist() == [1.0, 0.75, 0.5, 0.25, 0.0]
    # Shift 3 at s = .5: 1.5 / (1 + 2*.5) = .75
    assert time_grid(2, shift=3.0).tolist() == [1.0, 0.75, 0.0]
    with pytest.raises(ValueError, match="expected num_steps >= 1 and shift > 0, found 0 and 1"):
        time_grid(0)


def test_reductions_over_dimensions():
    x = torch.tensor([[1.0, 2.0, 3.0, 6.0]])
    # mean 3, sum 12, 12/sqrt(4) = 6
    assert [float(reduce_dims(x, 1, r)) for r in ("mean", "sum", "sqrt_d")] == [3.0, 12.0, 6.0]
    assert reduce_dims(torch.ones(2, 3, 4, 5), 2, "sum").tolist() == [[20.0] * 3] * 2
    with pytest.raises(ValueError, match=r"expected one of .* found 'max'"):
        reduce_dims(x, 1, "max")


@pytest.mark.parametrize("kind", SDE_KINDS)
def test_no_noise_is_exactly_euler_without_density(kind):
    x, v = torch.tensor([[1.0, -2.0]]), torch.tensor([[0.5, 3.0]])
    step = sde_step(x, v, at(0.75), at(0.5), a=0.0, kind=kind)
    # x - .25 v
    assert step.x_next.tolist() == [[0.875, -2.75]]
    assert step.log_prob is None
    assert float(step.std) == 0.0


def test_flow_sde_step_by_hand():
    x, v, noise = torch.tensor([[1.0]]), torch.tensor([[2.0]]), torch.tensor([[1.0]])
    step = sde_step(x, v, at(0.5), at(0.25), a=0.8, noise=noise)
    # sigma = .8 sqrt(.5/.5) = .8, sigma^2 = .64, dt = -.25
    # mean = 1*(1 + .64/1 * -.25) + 2*(1 + .64*.5/1)*-.25 = .84 - .66 = .18; std = .8*.5 = .4; next .58
    assert step.mean.item() == pytest.approx(0.18, abs=EXACT)
    assert step.x_next.item() == pytest.approx(0.58, abs=EXACT)
    # log density = -.5 - ln .4 - .5 ln(2 pi) = -.5 + .916291 - .918939 = -.502648
    assert step.log_prob.item() == pytest.approx(-0.502648, abs=EXACT)


def test_flow_sde_takes_the_second_grid_value_at_the_start():
    step = sde_step(torch.ones(1, 1), torch.ones(1, 1), at(1.0), at(0.75), a=0.8, noise=torch.zeros(1, 1))
    # sigma = .8 sqrt(1/(1-.75)) = 1.6; std = 1.6*.5 = .8; mean = 1*(1 - 2.56/2*.25) - .25 = .43
    assert step.std.item() == pytest.approx(0.8, abs=EXACT)
    assert step.mean.item() == pytest.approx(0.43, abs=EXACT)


def test_dance_step_has_constant_sigma():
    step = sde_step(torch.ones(1, 1), torch.ones(1, 1), at(0.5), at(0.25), a=0.4, kind="dance", noise=torch.zeros(1, 1))
    # sigma = .4: std = .4*.5 = .2; mean = (1 - .16*.25) - (1 + .16*.5)*.25 = .96 - .27 = .69
    assert step.std.item() == pytest.approx(0.2, abs=EXACT)
    assert step.mean.item() == pytest.approx(0.69, abs=EXACT)


def test_cps_step_by_hand():
    step = sde_step(torch.ones(1, 1), torch.ones(1, 1), at(0.5), at(0.4), a=0.5, kind="cps", noise=torch.zeros(1, 1))
    # std = .4 sin(pi/4) = .282843; x0 = .5, eps = 1.5; mean = .5*.6 + 1.5*sqrt(.16 - .08) = .3 + .424264
    assert step.std.item() == pytest.approx(0.282843, abs=EXACT)
    assert step.mean.item() == pytest.approx(0.724264, abs=EXACT)


@pytest.mark.parametrize("kind", SDE_KINDS)
@pytest.mark.parametrize("reduction", ["mean", "sum", "sqrt_d"])
def test_sampling_and_replay_agree_bit_for_bit(kind, reduction):
    x, v, noise = (torch.randn(5, 3, 2, generator=generator(0, name)) for name in ("x", "v", "noise"))
    args = {"a": 0.6, "kind": kind, "reduction": reduction}
    drawn = sde_step(x, v, at(0.6, 5), at(0.4, 5), noise=noise, **args)
    again = sde_step(x, v, at(0.6, 5), at(0.4, 5), x_next=drawn.x_next, **args)
    assert torch.equal(drawn.log_prob, again.log_prob)
    assert drawn.log_prob.shape == (5,)


def test_log_prob_is_the_normal_density():
    x, v, noise = (torch.randn(4, 3, generator=generator(0, name)) for name in ("x", "v", "noise"))
    step = sde_step(x, v, at(0.6, 4), at(0.4, 4), a=0.6, noise=noise, reduction="sum")
    expected = torch.distributions.Normal(step.mean, step.std.expand(4, 3)).log_prob(step.x_next).sum(-1)
    assert torch.allclose(step.log_prob, expected, atol=ROUNDED / 10)


def test_bfloat16_inputs_are_cast_up_first():
    x, v, noise = (torch.randn(4, 3, generator=generator(0, name)) for name in ("x", "v", "noise"))
    low = sde_step(x.bfloat16(), v.bfloat16(), at(0.6, 4), at(0.4, 4), a=0.6, noise=noise)
    high = sde_step(x.bfloat16().float(), v.bfloat16().float(), at(0.6, 4), at(0.4, 4), a=0.6, noise=noise)
    assert low.log_prob.dtype == torch.float32
    assert torch.equal(low.x_next, high.x_next)


def test_a_stochastic_step_wants_noise_or_a_next_state():
    x = torch.zeros(1, 1)
    for given in ({}, {"noise": x, "x_next": x}):
        with pytest.raises(ValueError, match=r"exactly one of noise .* and x_next"):
            sde_step(x, x, at(0.5), at(0.4), a=0.5, **given)
    with pytest.raises(ValueError, match=r"sde kind: expected one of .* found 'vp'"):
        sde_step(x, x, at(0.5), at(0.4), a=0.5, kind="vp", noise=x)


@pytest.mark.parametrize(("kind", "a"), [("flow_sde", 0.7), ("dance", 0.3)])
def test_sde_keeps_mean_and_variance_of_the_ode(kind, a):
    # 40,000 samples: standard error of the mean .5/200 = .0025, of the variance .25*sqrt(2/40000) = .0018;
    # 400 steps leave a discretisation error below one standard error.
    n, grid = 40_000, time_grid(400)
    start = torch.randn(n, 1, generator=generator(1))
    ode = integrate(gaussian_velocity, start, time_grid(100), "heun")
    found = walk(gaussian_velocity, start, grid, kind, a)
    assert abs(float(ode.mean()) - MEAN) < STANDARD_ERRORS * STD / n**0.5
    assert abs(float(found.mean() - ode.mean())) < STANDARD_ERRORS * STD / n**0.5
    assert abs(float(found.var() - ode.var())) < STANDARD_ERRORS * STD**2 * (2 / n) ** 0.5
    # The noise is real: the end is no function of the start any more.
    assert float(torch.corrcoef(torch.cat([found, start], dim=1).T)[0, 1]) < 0.97


def test_cps_keeps_the_marginals_of_a_point_mass_on_any_grid():
    # Data at 2: x_s = (1-s)*2 + s*eps, v = (x - 2)/s. At s = .25 mean 1.5 and std .25 after only four steps.
    # 40,000 samples: standard error of the mean .25/200 = .00125, of the variance .0625*sqrt(2/40000) = .00044.
    n, grid = 40_000, torch.tensor([1.0, 0.8, 0.6, 0.4, 0.25])
    start = torch.randn(n, 1, generator=generator(1))
    found = walk(lambda x, s: (x - 2.0) / s[:, None], start, grid, "cps", 0.8)
    assert abs(float(found.mean()) - 1.5) < STANDARD_ERRORS * 0.25 / n**0.5
    assert abs(float(found.var()) - 0.0625) < STANDARD_ERRORS * 0.0625 * (2 / n) ** 0.5


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("heun", 2)])
def test_error_of_the_solver_falls_with_its_order(solver, order):
    start = torch.linspace(-2, 2, 9)[:, None].double()
    # The flow of a Gaussian maps x_1 to MEAN + STD x_1.
    exact = MEAN + STD * start
    errors = [
        float((integrate(gaussian_velocity, start, time_grid(n), solver).double() - exact).abs().max())
        for n in (16, 32, 64)
    ]
    for coarse, fine in pairwise(errors):
        assert 0.75 * 2**order < coarse / fine < 1.35 * 2**order


def test_heun_spends_two_velocities_a_step_but_the_last():
    calls = []
    integrate(lambda x, s: calls.append(float(s[0])) or x * 0, torch.zeros(1, 1), time_grid(2), "heun")
    assert calls == [1.0, 0.5, 0.5]
    with pytest.raises(ValueError, match=r"solver: expected one of .* found 'rk4'"):
        integrate(gaussian_velocity, torch.zeros(1, 1), time_grid(2), "rk4")


def test_cfm_loss_by_hand():
    x0, eps, time = torch.tensor([[1.0, 2.0]]), torch.tensor([[[3.0, 0.0], [1.0, 2.0]]]), torch.tensor([[0.5, 0.25]])
    seen = []

    def velocity(x, t):
        seen.append((x.tolist(), t.tolist()))
        return torch.zeros_like(x)

    loss = cfm_loss(velocity, x0, eps, time)
    # x_t = .5 eps + .5 x0 = (2, 1); .25 eps + .75 x0 = (1, 2). u = eps - x0 = (2, -2), (0, 0): (4+4)/2 = 4 and 0.
    assert seen == [([[2.0, 1.0], [1.0, 2.0]], [0.5, 0.25])]
    assert loss.tolist() == [[4.0, 0.0]]
    assert cfm_loss(velocity, x0, eps, time, reduction="sum").tolist() == [[8.0, 0.0]]


def test_eps_and_x0_losses_are_the_u_loss_times_one_minus_t_and_t_squared():
    x0, eps = torch.randn(4, 3, generator=generator(0)), torch.randn(4, 5, 3, generator=generator(1))
    time = torch.rand(4, 5, generator=generator(2))

    def velocity(x, t):
        return torch.sin(x) + t[:, None]

    u, scaled, clean = (cfm_loss(velocity, x0, eps, time, parameterisation=p) for p in ("u", "eps", "x0"))
    # Predicted noise: x_t + (1-t) v, against eps.
    t = time[..., None]
    x_t = t * eps + (1 - t) * x0[:, None]
    v = velocity(x_t.flatten(0, 1), time.flatten()).view_as(eps)
    direct = (x_t + (1 - t) * v - eps).square().mean(-1)
    assert torch.allclose(scaled, direct, atol=EXACT)
    assert torch.allclose(scaled, u * (1 - time) ** 2, atol=EXACT)
    assert not math.isclose(float(u.sum()), float(scaled.sum()), rel_tol=ROUNDED)
    # Predicted clean sample: x_t - t v, against x0.
    direct = (x_t - t * v - x0[:, None]).square().mean(-1)
    assert torch.allclose(clean, direct, atol=EXACT)
    assert torch.allclose(clean, u * time**2, atol=EXACT)
    with pytest.raises(ValueError, match="expected u, eps or x0, found 'v'"):
        cfm_loss(velocity, x0, eps, time, parameterisation="v")
