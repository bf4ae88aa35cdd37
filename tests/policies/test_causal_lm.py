import pytest
import torch
from torch import nn

from rlflow.policies.causal_lm import CausalLMPolicy, LMConfig
from rlflow.random import Noise, generator
from rlflow.toy import EOS, GOOD, PAD, tiny_lm
from tests.fakes import block

EXACT = 1e-6
ROUNDED = 1e-5
HEADS = frozenset({"log_prob", "reference", "value", "partition", "entropy"})


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    lm = tiny_lm().eval()
    with torch.no_grad():
        for p in lm.parameters():
            p.mul_(3.0)
    return lm


def make(model, requires=HEADS, **settings):
    torch.manual_seed(1)
    config = LMConfig(max_new_tokens=6, critic_hidden=8, **settings)
    return CausalLMPolicy(model, config, requires=requires, eos_id=EOS, pad_id=PAD, banned_ids=[PAD]).eval()


def complete(policy, prompt, prompt_mask=None, seed=0):
    mask = torch.ones_like(prompt, dtype=torch.bool) if prompt_mask is None else prompt_mask
    context = {"prompt": prompt, "prompt_mask": mask}
    action = policy.sample(context, Noise(generator=generator(seed)))
    mask = action.pop("mask")
    return block(torch.zeros(mask.shape).tolist(), context=context, action=action, mask=mask)


def prompts(rows=64, length=3):
    return torch.randint(GOOD, 5, (rows, length), generator=generator(7))


def test_sampler_and_training_forward_see_the_same_distribution(model):
    # The sampler inverts the CDF of its cached forward. With the training forward's CDF the same uniform draws must
    # give the same tokens, except where a draw falls within rounding of a boundary (none of 384 here).
    policy = make(model)
    rollout = complete(policy, prompts())
    draws = Noise(generator=generator(0)).uniform((64, 6))
    with torch.no_grad():
        log_p = policy.log_softmax(policy._logits(policy.actor, policy._states(rollout)))
    cdf = log_p.exp().cumsum(-1)
    token = rollout.action["token"]
    upper = cdf.gather(-1, token.unsqueeze(-1)).squeeze(-1)
    lower = upper - log_p.exp().gather(-1, token.unsqueeze(-1)).squeeze(-1)
    inside = (draws >= lower - ROUNDED) & (draws <= upper + ROUNDED)
    assert bool(inside[rollout.mask].all())
    assert 0.05 < float(rollout.mask.float().mean()) < 1.0
    chosen = log_p.gather(-1, token.unsqueeze(-1))
    assert torch.allclose(policy.log_prob(rollout)[rollout.mask], chosen[rollout.mask], atol=ROUNDED)


def test_log_prob_is_that_of_the_bare_model(model):
    policy = make(model, temperature=0.5)
    rollout = complete(policy, prompts(rows=4))
    for row in range(4):
        length = int(rollout.mask[row].sum())
        ids = torch.cat([rollout.context["prompt"][row], rollout.action["token"][row, :length]])[None]
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0, 2:-1] / 0.5
        logits[:, PAD] = float("-inf")
        expected = logits.log_softmax(-1).gather(-1, rollout.action["token"][row, :length, None])
        assert torch.allclose(policy.log_prob(rollout)[row, :length], expected, atol=ROUNDED)


def test_banned_tokens_are_never_sampled_and_have_no_mass(model):
    policy = make(model)
    with torch.no_grad():
        biased = policy.log_softmax(torch.tensor([[9.0, 0.0, 0.0, 0.0, 0.0]]))
    # PAD, by far the likeliest logit, is out: four tokens share the mass.
    assert biased[0].exp().tolist() == pytest.approx([0.0, 0.25, 0.25, 0.25, 0.25], abs=EXACT)
    rollout = complete(policy, prompts(rows=256))
    assert not bool((rollout.action["token"][rollout.mask] == PAD).any())
    assert torch.isfinite(policy.log_prob(rollout)).all()
    assert torch.isfinite(policy.entropy(rollout)).all()
    assert torch.isfinite(policy.kl(rollout)).all()


def test_mask_ends_with_the_first_eos(model):
    rollout = complete(make(model), prompts(rows=256))
    token, mask = rollout.action["token"], rollout.mask
    for row_token, row_mask in zip(token.tolist(), mask.tolist(), strict=True):
        end = row_token.index(EOS) + 1 if EOS in row_token else len(row_token)
        assert row_mask == [True] * end + [False] * (len(row_token) - end)
        assert set(row_token[end:]) <= {PAD}
    assert 0 < int((mask.sum(1) < 6).sum()) < 256


def test_left_padding_changes_nothing(model):
    policy, bare = make(model), prompts(rows=32)
    padded = torch.cat([torch.full((32, 2), PAD), bare], dim=1)
    mask = padded != PAD
    plain = complete(policy, bare)
    shifted = complete(policy, padded, mask)
    assert torch.equal(plain.action["token"], shifted.action["token"])
    for question in (policy.log_prob, policy.ref_log_prob, policy.value, policy.log_partition, policy.entropy):
        found, expected = question(shifted), question(plain)
        where = plain.mask if found.shape[1] == 6 else torch.ones(32, 1, dtype=torch.bool)
        assert torch.allclose(found[where], expected[where], atol=10 * ROUNDED), question


def test_masked_tokens_have_log_prob_zero_and_change_nothing(model):
    policy = make(model)
    rollout = complete(policy, prompts())
    assert not bool(policy.log_prob(rollout)[~rollout.mask].any())
    other = rollout.replace(action={"token": torch.where(rollout.mask, rollout.action["token"], 4)})
    assert torch.allclose(policy.log_prob(other), policy.log_prob(rollout), atol=EXACT)


def test_shapes_and_detached_heads(model):
    policy = make(model)
    rollout = complete(policy, prompts(rows=5))
    assert policy.value(rollout).shape == (5, 6)
    assert policy.log_partition(rollout).shape == (5, 1)
    assert policy.kl(rollout).shape == policy.elbo(rollout).shape == (5, 6, 1)
    with torch.no_grad():
        policy.partition[-1].weight.add_(1.0)
    policy.zero_grad()
    (policy.value(rollout.replace()).sum() + policy.log_partition(rollout.replace()).sum()).backward()
    assert all(p.grad is None for p in policy.actor.parameters())
    assert all(p.grad is not None for p in [*policy.critic.parameters(), policy.partition[0].weight])


def test_entropy_and_kl_are_exact(model):
    policy = make(model)
    rollout = complete(policy, prompts(rows=8))
    assert float(policy.kl(rollout).detach().abs().max()) < EXACT
    with torch.no_grad():
        for p in policy.actor.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=generator(3)))
    rollout = rollout.replace()
    with torch.no_grad():
        states = policy._states(rollout)
        p = policy.log_softmax(policy._logits(policy.actor, states))
        reference = policy.reference_actor
        q = policy.log_softmax(policy._logits(reference, policy._hidden(reference, rollout)[:, 2:-1]))
        kl, entropy = policy.kl(rollout)[..., 0], policy.entropy(rollout)
        for param in policy.actor.parameters():
            param.sub_(0.1 * torch.randn(param.shape, generator=generator(3)))
    # Over the four tokens that are not banned.
    kept = torch.tensor([EOS, GOOD, 3, 4])
    p, q = p[..., kept], q[..., kept]
    assert torch.allclose(kl, (p.exp() * (p - q)).sum(-1), atol=ROUNDED)
    assert torch.allclose(entropy, -(p.exp() * p).sum(-1), atol=ROUNDED)
    assert float(kl[rollout.mask].min()) > 0


def test_lora_reference_is_the_base_model():
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    base = tiny_lm().eval()
    plain = make(base, frozenset({"log_prob"}))
    rollout = complete(plain, prompts(rows=8))
    expected = plain.log_prob(rollout).detach()
    config = peft.LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj", "v_proj"], lora_dropout=0.0)
    adapted = make(peft.get_peft_model(base, config), frozenset({"log_prob", "reference"}))
    assert adapted.reference_actor is None
    assert {n.split(".")[-3] for n, p in adapted.named_parameters() if p.requires_grad} == {"lora_A", "lora_B"}
    with torch.no_grad():
        for name, p in adapted.actor.named_parameters():
            if "lora_B" in name:
                p.add_(torch.randn(p.shape, generator=generator(5)))
    rollout = rollout.replace()
    assert torch.allclose(adapted.ref_log_prob(rollout), expected, atol=EXACT)
    assert not torch.allclose(adapted.log_prob(rollout), expected, atol=10 * ROUNDED)
    adapted.log_prob(rollout.replace()).sum().backward()
    assert all(p.grad is not None for p in adapted.parameters() if p.requires_grad)


def test_memo_shares_one_forward_between_questions(model):
    policy = make(model)
    rollout = complete(policy, prompts(rows=4))
    calls = []
    hook = policy.actor.model.register_forward_hook(lambda *_: calls.append(1))
    policy.log_prob(rollout), policy.value(rollout), policy.entropy(rollout)
    hook.remove()
    assert len(calls) == 1
    assert isinstance(policy.critic, nn.Module)


def test_old_likelihoods_are_those_of_the_sampler_where_the_configuration_says_so(model):
    forwards = []
    policy = make(model, requires=frozenset({"log_prob"}), behaviour="engine")
    context = {"prompt": prompts(rows=8), "prompt_mask": torch.ones(8, 3, dtype=torch.bool)}
    action = policy.sample(context, Noise(generator=generator(0)))
    mask = action.pop("mask")
    said = action.pop("sampler_log_prob")
    rollout = block(torch.zeros(mask.shape).tolist(), context=context, action=action, mask=mask)
    rollout = rollout.replace(sampler_log_prob=said.unsqueeze(-1))
    hook = policy.trunk.register_forward_hook(lambda *_: forwards.append(1))
    policy.record_behaviour(rollout)
    hook.remove()
    assert forwards == []
    assert rollout.old_log_prob is rollout.sampler_log_prob
    # Those of the trainer, by rounding; masked tokens have none.
    assert torch.allclose(rollout.old_log_prob, policy.log_prob(rollout), atol=ROUNDED)
    assert bool((rollout.old_log_prob[~mask] == 0).all())
    assert "sampler_log_prob" not in make(model).sample(context, Noise(generator=generator(0)))
