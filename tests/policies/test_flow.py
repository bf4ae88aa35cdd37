import pytest
import torch
from torch import nn

from rlflow.flow_matching import reduce_dims, sde_step, time_grid
from rlflow.loss import recentred_log_ratio
from rlflow.policies.flow import FlowPolicy
from rlflow.policies.flow_config import FlowConfig, ScheduledFlowConfig
from rlflow.policies.heads import ContextHead, RunningNorm
from rlflow.random import Noise, generator
from rlflow.toy import ToyVelocity
from tests.fakes import block

EXACT = 1e-6
ROUNDED = 1e-4
ALL = frozenset({"log_prob", "elbo", "reference"})


def make(config=None, requires=ALL, seed=0, **changes):
    torch.manual_seed(seed)
    config = config or FlowConfig(train_steps=5, num_probes=3)
    return FlowPolicy(ToyVelocity(), (2,), config, requires=frozenset(requires), **changes).eval()


def roll(policy, rows=6, seed=0):
    """One decision per row, as a task would collect it."""
    context = {"observation": torch.linspace(0, 1, rows)[:, None]}
    with torch.no_grad():
        record = policy.sample(context, Noise(generator=generator(seed)))
        rollout = block(
            [[0.0]] * rows,
            context={k: v[:, None] for k, v in context.items()},
            action={k: v[:, None] for k, v in record.items()},
            decisions_independent=True,
        )
        policy.record_behaviour(rollout)
    return rollout


def nudge(policy, size=0.05):
    with torch.no_grad():
        for p in policy.actor.parameters():
            p.add_(size * torch.randn(p.shape, generator=generator(9)))


@pytest.mark.parametrize("kind", ["flow_sde", "cps", "dance"])
@pytest.mark.parametrize("replay", ["stepwise", "folded"])
def test_replay_of_the_trajectory_gives_the_old_log_prob_bit_for_bit(kind, replay):
    policy = make(FlowConfig(train_steps=5, sde=kind, replay=replay, noise_level=0.5))
    rollout = roll(policy)
    assert rollout.old_log_prob.shape == (6, 1, 4)
    assert torch.equal(policy.log_prob(rollout), rollout.old_log_prob)
    assert "log_prob" not in rollout.action


def test_stepwise_records_what_the_sampler_computed():
    policy = make()
    record = policy.sample({"observation": torch.zeros(3, 1)}, Noise(generator=generator(0)))
    latents, times = record["latents"], record["times"]
    v = policy.actor(latents[:, 1], times[:, 1], {"observation": torch.zeros(3, 1)})
    step = sde_step(latents[:, 1], v, times[:, 1], times[:, 2], a=0.7, x_next=latents[:, 2])
    assert torch.equal(record["log_prob"][:, 1], step.log_prob)


def test_by_default_all_steps_but_the_last_are_recorded():
    record = make().sample({"observation": torch.zeros(3, 1)}, Noise(generator=generator(0)))
    # Grid 1, .8, .6, .4, .2, 0: transitions up to .2, then one deterministic step.
    assert torch.allclose(record["times"][0], torch.tensor([1.0, 0.8, 0.6, 0.4, 0.2]))
    v = make().actor(record["latents"][:, -1], torch.full((3,), 0.2), {"observation": torch.zeros(3, 1)})
    assert torch.allclose(record["sample"], record["latents"][:, -1] - 0.2 * v, atol=EXACT)


def test_only_the_windows_steps_are_recorded_and_the_rest_is_euler():
    config = FlowConfig(train_steps=5, window=2, window_start=1)
    policy, context = make(config), {"observation": torch.zeros(3, 1)}
    start = torch.randn(3, 2, generator=generator(4))
    first, second = (policy.sample(context, Noise(generator=generator(s)), initial=start) for s in (0, 1))
    assert first["latents"].shape == (3, 3, 2)
    assert torch.allclose(first["times"][0], torch.tensor([0.8, 0.6, 0.4]))
    # The step before the window is deterministic, so the window starts in the same point whatever the noise.
    euler = start - 0.2 * policy.actor(start, torch.ones(3), context)
    assert torch.allclose(first["latents"][:, 0], euler, atol=EXACT)
    assert torch.equal(first["latents"][:, 0], second["latents"][:, 0])
    assert not torch.allclose(first["latents"][:, 1], second["latents"][:, 1])
    # Behind the window two Euler steps lead to the sample.
    x = first["latents"][:, -1]
    for s in (0.4, 0.2):
        x = x - 0.2 * policy.actor(x, torch.full((3,), s), context)
    assert torch.allclose(first["sample"], x, atol=ROUNDED)


def test_a_random_window_starts_anywhere_before_the_last_step():
    policy = make(FlowConfig(train_steps=5, window=2, window_start=-1))
    context = {"observation": torch.zeros(1, 1)}
    starts = {round(float(policy.sample(context, Noise(generator=generator(s)))["times"][0, 0]), 1) for s in range(40)}
    assert starts == {1.0, 0.8, 0.6}


@pytest.mark.parametrize(
    "settings",
    [
        {"train_steps": 1}, {"num_probes": 0}, {"train_steps": 5, "window": 5}, {"window": 9, "window_start": 1},
        {"noise_level": -0.1}, {"sde": "cps", "noise_level": 1.1},
    ],
)  # fmt: skip
def test_impossible_samplers_are_refused(settings):
    with pytest.raises(ValueError, match="flow: "):
        FlowConfig(**settings)


def test_likelihoods_of_deterministic_steps_are_refused():
    with pytest.raises(ValueError, match="expected above 0, found 0, where the algorithm asks for the likelihood"):
        make(FlowConfig(train_steps=5, noise_level=0.0))
    assert not make(FlowConfig(train_steps=5, noise_level=0.0), requires=frozenset({"elbo"})).is_stochastic


def test_bounds_reuse_the_stored_probes():
    policy = make()
    rollout = roll(policy)
    old = policy.elbo(rollout)
    assert old.shape == (6, 1, 3)
    assert torch.equal(policy.elbo(rollout.replace()), old)
    # By hand for row 2, probe 1: -mean |v(x_t, t) - (eps - x0)|^2
    x0, eps, t = (
        rollout.action["sample"][2, 0],
        rollout.action["probe_eps"][2, 0, 1],
        rollout.action["probe_time"][2, 0, 1],
    )
    v = policy.actor((t * eps + (1 - t) * x0)[None], t[None], {"observation": rollout.context["observation"][2]})
    assert old[2, 0, 1].item() == pytest.approx(-(v[0] - (eps - x0)).square().mean().item(), abs=EXACT)
    nudge(policy)
    assert not torch.allclose(policy.elbo(rollout.replace()), old)


def test_eps_bounds_are_scaled_u_bounds():
    u, eps = make(FlowConfig(num_probes=3)), make(FlowConfig(num_probes=3, probe_loss="eps"))
    rollout = roll(u)
    scaled = u.elbo(rollout) * (1 - rollout.action["probe_time"]) ** 2
    assert torch.allclose(eps.elbo(rollout.replace()), scaled, atol=EXACT)


def test_a_policy_without_likelihood_samples_the_ode_and_stores_no_trajectory():
    context, noise = {"observation": torch.zeros(3, 1)}, Noise(generator=generator(0))
    assert set(make(requires={"elbo"}).sample(context, noise)) == {"sample", "probe_eps", "probe_time"}
    assert set(make(requires={"log_prob"}).sample(context, noise)) == {"sample", "latents", "times", "log_prob"}


def test_reference_is_the_initial_network_and_latent_kl_follows_its_formula():
    policy = make()
    rollout = roll(policy)
    assert not bool(policy.kl(rollout).any())
    assert torch.equal(policy.ref_log_prob(rollout), rollout.old_log_prob)
    nudge(policy)
    rollout = rollout.replace()
    assert torch.equal(policy.ref_log_prob(rollout), rollout.old_log_prob)
    # Row 0, step 1 of a = .7 at s = .8 -> .6: sigma^2 = .49*.8/.2 = 1.96, std^2 = 1.96*.2 = .392; the means differ by
    # (v - v_ref)*(1 + 1.96*.2/1.6)*-.2 = -.249 (v - v_ref): mean over A of .062001/(2*.392) (v - v_ref)^2
    x, context = rollout.action["latents"][:1, 0, 1], {"observation": rollout.context["observation"][0]}
    gap = policy.actor(x, torch.tensor([0.8]), context) - policy.reference_actor(x, torch.tensor([0.8]), context)
    expected = (0.249**2 / 0.784 * gap.square()).mean().item()
    assert policy.kl(rollout)[0, 0, 1].item() == pytest.approx(expected, rel=ROUNDED)
    velocity = make(FlowConfig(train_steps=5, num_probes=3, kl="velocity"))
    velocity.load_state_dict(policy.state_dict())
    assert velocity.kl(rollout.replace())[0, 0, 1].item() == pytest.approx(gap.square().mean().item(), rel=ROUNDED)


def test_without_trajectory_the_distance_is_taken_at_the_probes():
    policy = make(requires={"elbo", "reference"})
    rollout = roll(policy)
    assert policy.kl(rollout).shape == (6, 1, 3)
    assert not bool(policy.kl(rollout).any())
    nudge(policy)
    kl = policy.kl(rollout.replace())
    assert bool((kl > 0).all())
    assert kl.requires_grad


def test_evaluation_uses_its_own_grid_solver_and_start():
    config = FlowConfig(train_steps=2, eval_steps=4, eval_solver="heun", eval_start="mean")
    calls = []

    class Still(nn.Module):
        def forward(self, x, s, context):
            calls.append(float(s[0]))
            return torch.ones_like(x)

    policy = FlowPolicy(Still(), (2,), config, requires=frozenset({"log_prob"}))
    sample = policy.sample({"observation": torch.zeros(3, 1)}, Noise(generator=generator(0)), train=False)["sample"]
    # From the zero start along velocity 1 for time -1; Heun asks twice a step but once on the last.
    assert torch.allclose(sample, -torch.ones(3, 2), atol=EXACT)
    assert calls == [1.0, 0.75, 0.75, 0.5, 0.5, 0.25, 0.25]


def test_training_samples_have_their_own_solver():
    calls = []

    class Still(nn.Module):
        def forward(self, x, s, context):
            calls.append(float(s[0]))
            return torch.ones_like(x)

    context = {"observation": torch.zeros(3, 1)}
    for settings, times in (({"solver": "heun"}, [1.0, 0.5, 0.5]), ({"eval_solver": "heun"}, [1.0, 0.5])):
        calls.clear()
        policy = FlowPolicy(Still(), (2,), FlowConfig(train_steps=2, **settings), requires=frozenset({"elbo"}))
        policy.sample(context, Noise(generator=generator(0)))
        assert calls == times


def test_evaluation_by_the_sde_draws_noise_on_every_step_but_the_last():
    config = FlowConfig(train_steps=2, eval_steps=2, eval_solver="sde", noise_level=0.5, eval_start="mean")

    class Still(nn.Module):
        def forward(self, x, s, context):
            return torch.zeros_like(x)

    policy = FlowPolicy(Still(), (2,), config, requires=frozenset({"elbo"}))
    sample = policy.sample({"observation": torch.zeros(3, 1)}, Noise(generator=generator(0)), train=False)["sample"]
    # Velocity 0 from 0: only the first step moves, by sigma sqrt(.5) with sigma = .5 sqrt(1/(1 - .5)) = .5 sqrt 2.
    drawn = Noise(generator=generator(0)).normal((3, 2))
    assert torch.allclose(sample, 0.5 * drawn, atol=EXACT)


def test_a_given_start_is_used():
    start = torch.tensor([[1.0, 2.0]]).expand(3, 2)
    record = make().sample({"observation": torch.zeros(3, 1)}, Noise(generator=generator(0)), initial=start)
    assert torch.equal(record["latents"][:, 0], start)


def test_heads_read_normalised_observations_that_move_at_the_end_of_an_iteration():
    policy = make(
        critic=ContextHead(lambda c: c["observation"], nn.Identity()),
        partition=ContextHead(lambda c: 2 * c["observation"], nn.Identity()),
        normaliser=RunningNorm((1,)),
    )
    rollout = roll(policy, rows=2)
    # Observations 0 and 1, no statistics yet; afterwards mean .5 and std .5.
    assert torch.allclose(policy.value(rollout), torch.tensor([[0.0], [1.0]]), atol=EXACT)
    old = policy.log_prob(rollout)
    policy.end_iteration(rollout)
    assert torch.allclose(policy.value(rollout), torch.tensor([[-1.0], [1.0]]), atol=ROUNDED)
    assert torch.allclose(policy.log_partition(rollout), torch.tensor([[-2.0], [2.0]]), atol=ROUNDED)
    assert not torch.allclose(policy.log_prob(rollout.replace()), old)


def test_a_sliding_window_moves_with_the_iteration_and_stays_before_the_last_step():
    config = ScheduledFlowConfig(train_steps=5, window=2, window_place="sliding", window_every=2, window_stride=1)
    policy = make(config, grid=lambda steps: time_grid(steps))
    rollout, starts = roll(policy), []
    for _ in range(10):
        starts.append(round(float(roll(policy).action["times"][0, 0, 0]), 1))
        policy.end_iteration(rollout)
    # Steps of .2 from 1; the window [2, 4) is the last one before the final step.
    assert starts == [1.0, 1.0, 0.8, 0.8, 0.6, 0.6, 0.6, 0.6, 0.6, 0.6]
    resumed = make(config)
    resumed.load_state_dict(policy.state_dict())
    assert int(resumed.iteration) == 10


def test_windows_by_name():
    draw = {3: 2, 4: 1}.__getitem__
    fixed = ScheduledFlowConfig(train_steps=5, window=2, window_start=1)
    anywhere = ScheduledFlowConfig(train_steps=5, window=2, window_place="random")
    early = ScheduledFlowConfig(train_steps=8, window=2, window_place="random", window_end=5)
    # Windows of 2 in the first 4 of 5 steps have 3 places, in the first 5 of 8 steps 4.
    assert [c.first_stochastic(7, draw) for c in (fixed, anywhere, early)] == [1, 2, 1]
    places = [{"window_place": "random"}, {"window_place": "sliding", "window": 2, "window_start": 1}]
    sizes = [{"window_every": 0}, {"window_stride": 0}, {"window": 2, "window_end": 1}, {"window_end": 10}]
    for settings in places + sizes:
        with pytest.raises(ValueError, match="flow: "):
            ScheduledFlowConfig(**settings)


def test_a_policy_follows_the_grid_that_it_is_given():
    policy = make(grid=lambda steps: torch.linspace(1, 0, steps + 1) ** 2)
    # (1 - k/5)^2 for the 4 stochastic steps of 5
    assert torch.allclose(roll(policy).action["times"][0, 0], torch.tensor([1, 0.64, 0.36, 0.16, 0.04]), atol=EXACT)
    assert not any("iteration" in name for name in make().state_dict())


@pytest.mark.parametrize("kind", ["flow_sde", "cps", "dance"])
@pytest.mark.parametrize("reduction", ["mean", "sum", "sqrt_d"])
def test_a_recentred_log_ratio_is_the_noise_times_the_shift_of_the_mean(kind, reduction):
    policy = make(FlowConfig(train_steps=5, sde=kind, noise_level=0.5, reduction=reduction))
    rollout = roll(policy)
    with torch.no_grad():
        old_mean, std = policy.moments(rollout), policy.step_std(rollout)
        assert torch.equal(policy.divergence(rollout, old_mean), torch.zeros(6, 1, 4))
        nudge(policy)
        log_ratio = policy.log_prob(rollout) - rollout.old_log_prob
        found = recentred_log_ratio(log_ratio, policy.divergence(rollout, old_mean), std)
        noise = (rollout.action["latents"][:, :, 1:] - old_mean) / std.unsqueeze(-1)
        expected = reduce_dims(noise * (policy.moments(rollout) - old_mean), 3, reduction)
    assert log_ratio.abs().max() > 100 * ROUNDED
    assert torch.allclose(found, expected, atol=ROUNDED)


def test_the_divergence_of_a_row_does_not_depend_on_the_others():
    policy = make()
    rollout = roll(policy)
    old = policy.moments(rollout).detach()
    nudge(policy)
    alone = rollout.replace(
        context={k: v[:1] for k, v in rollout.context.items()},
        action={k: v[:1] for k, v in rollout.action.items()},
        mask=rollout.mask[:1],
    )
    assert torch.allclose(policy.divergence(alone, old[:1]), policy.divergence(rollout, old)[:1], atol=EXACT)


def test_the_divergence_is_the_gaussians_own_and_differentiable():
    policy = make(FlowConfig(train_steps=5, reduction="sum"))
    rollout = roll(policy)
    mean, std = policy.moments(rollout).detach(), policy.step_std(rollout).unsqueeze(-1)
    old = mean + torch.tensor([0.3, -0.4]) * std
    # (.09 + .16)/2 at every step
    divergence = policy.divergence(rollout, old)
    assert torch.allclose(divergence, torch.full((6, 1, 4), 0.125), atol=ROUNDED)
    divergence.sum().backward()
    assert any(p.grad.abs().max() > 0 for p in policy.actor.parameters())


def test_steps_have_the_length_and_the_noise_of_their_grid():
    policy = make(FlowConfig(train_steps=5, noise_level=0.7))
    rollout = roll(policy)
    # Grid 1, .8, .6, .4, .2
    assert torch.allclose(policy.step_length(rollout), torch.full((6, 1, 4), 0.2), atol=EXACT)
    # At s = .6: sigma = .7 sqrt(.6/.4) = .857321, times sqrt(.2) = .383406
    assert policy.step_std(rollout)[0, 0, 2].item() == pytest.approx(0.383406, abs=EXACT)
