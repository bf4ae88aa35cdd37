import copy
import math

import pytest
import torch

from rlflow.policies.causal_lm import CausalLMPolicy, LMConfig
from rlflow.policies.engines.apart import MAX_DEATHS, Apart, EngineDiedError
from rlflow.policies.engines.choice import open_engine
from rlflow.policies.engines.difference import engine_difference
from rlflow.policies.engines.engine import Completions, EngineError, Sampling, bare_prompts, row_seeds
from rlflow.policies.engines.own_forward import OwnForward
from rlflow.policies.engines.vllm import VLLMConfig
from rlflow.policies.engines.weights import plain_weights
from rlflow.random import Noise, generator
from rlflow.toy import EOS, GOOD, PAD, tiny_lm

EXACT = 1e-6
ROUNDED = 1e-5
SAMPLING = Sampling(max_new_tokens=3, temperature=1.0, eos_id=1, pad_id=0, banned_ids=(0,))


class Copied(Apart):
    """A copy of the model in this process: a real engine with weights of its own, which can be told to die."""

    def __init__(self, shape, *, tolerance=1e-4, dies_at=(), ignores_weights=False):
        super().__init__(canary_tolerance=tolerance)
        self.shape = shape
        self.dies_at = set(dies_at)
        self.ignores_weights = ignores_weights
        self.policy = None
        self.starts = self.loads = self.calls = 0

    def start(self):
        if self.policy is None:
            self.starts += 1
            self.policy = make(copy.deepcopy(self.shape))

    def load(self, weights):
        self.loads += 1
        own = dict(self.policy.actor.named_parameters())
        with torch.no_grad():
            for name, weight in weights:
                if not self.ignores_weights:
                    own[name].copy_(weight)

    def generate(self, prompts, sampling, seeds):
        self.calls += 1
        if self.calls in self.dies_at:
            raise EngineDiedError("told to")
        tokens, said = [], []
        for prompt, seed in zip(prompts, seeds, strict=True):
            row = torch.tensor([prompt])
            context = {"prompt": row, "prompt_mask": torch.ones_like(row, dtype=torch.bool)}
            self.policy.config = LMConfig(max_new_tokens=sampling.max_new_tokens)
            action = self.policy.sample(context, Noise(generator=generator(seed)))
            log_prob = self.policy.completion_log_prob(context, **action)
            length = int(action["mask"].sum())
            tokens.append(action["token"][0, :length].tolist())
            said.append(log_prob[0, :length].tolist())
        return tokens, said

    def stop(self):
        self.policy = None


def make(actor, engine=None):
    config = LMConfig(max_new_tokens=6, critic_hidden=8)
    policy = CausalLMPolicy(
        actor, config, requires=frozenset({"log_prob"}), eos_id=EOS, pad_id=PAD, banned_ids=[PAD], engine=engine
    )
    return policy.eval()


def model():
    torch.manual_seed(0)
    lm = tiny_lm().eval()
    with torch.no_grad():
        for weight in lm.parameters():
            weight.mul_(3.0)
    return lm


def prompts(rows=8):
    prompt = torch.randint(GOOD, 5, (rows, 4), generator=generator(7))
    mask = torch.ones_like(prompt, dtype=torch.bool)
    mask[::2, 0] = False
    return {"prompt": prompt, "prompt_mask": mask}


def sample(policy, seed=0):
    return policy.sample(prompts(), Noise(generator=generator(seed)))


def change(policy):
    # As the trainer steps: a fused optimiser does not touch the version counters of the weights.
    optimiser = torch.optim.AdamW(policy.actor.parameters(), lr=0.1, fused=True)
    ids = prompts()["prompt"]
    policy.actor(input_ids=ids, labels=ids).loss.backward()
    optimiser.step()


def test_ragged_rows_end_with_the_first_eos():
    # EOS is 1: the second row ends there, whatever the engine wrote after it, and the third was cut.
    rows = Completions.from_rows([[2, 1], [1, 4, 4], [3, 3, 3]], [[-1.0, -2.0], [-0.5, 9.0, 9.0], [-1.0] * 3], SAMPLING)
    assert rows.token.tolist() == [[2, 1, 0], [1, 0, 0], [3, 3, 3]]
    assert rows.mask.tolist() == [[True, True, False], [True, False, False], [True] * 3]
    assert rows.log_prob.tolist() == [[-1.0, -2.0, 0.0], [-0.5, 0.0, 0.0], [-1.0] * 3]


@pytest.mark.parametrize(
    ("tokens", "said", "message"),
    [
        ([[]], [[]], "found 0 tokens"),
        ([[2, 2, 2, 2]], [[0.0] * 4], "found 4 tokens"),
        ([[2, 2]], [[0.0]], "1 log-probabilities"),
        ([[2, 0, 1]], [[0.0] * 3], r"banned tokens \[0\], found \[0\]"),
    ],
)
def test_rows_that_no_likelihood_covers_are_refused(tokens, said, message):
    with pytest.raises(EngineError, match=message):
        Completions.from_rows(tokens, said, SAMPLING)


def test_prompts_lose_their_padding():
    context = {"prompt": torch.tensor([[0, 5], [6, 7]]), "prompt_mask": torch.tensor([[False, True], [True, True]])}
    assert bare_prompts(context) == [[5], [6, 7]]


def test_seeds_belong_to_global_rows():
    one = row_seeds(Noise(generator=generator(3)), 4)
    ranks = [row_seeds(Noise(generator=generator(3), rank=rank, world_size=2), 2) for rank in range(2)]
    assert one == ranks[0] + ranks[1]
    assert len(set(one)) == 4
    assert row_seeds(Noise(generator=generator(4)), 4) != one


def test_difference_by_hand():
    # Differences pi - mu: .5 and -1 (the third is masked). Mean |d| .75, max 1;
    # k3: (e^.5 - 1 - .5 + e^-1 - 1 + 1) / 2 = (.148721 + .367879) / 2.
    log_prob = torch.tensor([[[-1.0], [-3.0], [-9.0]]])
    said = torch.tensor([[[-1.5], [-2.0], [0.0]]])
    found = engine_difference(log_prob, said, torch.tensor([[True, True, False]]))
    assert found["engine_difference_mean"] == pytest.approx(0.75, abs=EXACT)
    assert found["engine_difference_max"] == pytest.approx(1.0, abs=EXACT)
    assert found["engine_kl"] == pytest.approx((math.exp(0.5) - 1.5 + math.exp(-1.0)) / 2, abs=EXACT)


def test_merged_weights_are_those_that_peft_merges():
    peft = pytest.importorskip("peft")
    base = model()
    plain = {name: weight.detach().clone() for name, weight in base.named_parameters()}
    adapted = peft.get_peft_model(base, peft.LoraConfig(r=2, lora_alpha=8, target_modules="all-linear"))
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_B" in name:
                weight.normal_(generator=generator(5))
    before = {name: weight.clone() for name, weight in adapted.named_parameters()}
    found = dict(plain_weights(adapted))
    assert all(torch.equal(before[name], weight) for name, weight in adapted.named_parameters())
    merged = dict(copy.deepcopy(adapted).merge_and_unload().named_parameters())
    assert found.keys() == merged.keys() == plain.keys()
    for name, weight in merged.items():
        assert torch.allclose(found[name], weight, atol=ROUNDED), name
    # Seven linear layers in each of two blocks.
    assert sum(not torch.equal(found[name], plain[name]) for name in plain) == 2 * 7


def test_the_default_engine_says_nothing_of_likelihoods():
    assert isinstance(open_engine("transformers", "", VLLMConfig()), OwnForward)
    assert isinstance(make(model()).engine, OwnForward)
    assert sample(make(model())).keys() == {"token", "mask"}


def test_an_unknown_engine_is_refused():
    with pytest.raises(ValueError, match=r"task\.engine: expected one of"):
        open_engine("sglang", "", VLLMConfig())


def test_weights_are_brought_when_they_have_changed_and_only_then():
    engine = Copied(model())
    policy = make(model(), engine)
    first = sample(policy)
    again = sample(policy)
    assert engine.loads == 1
    assert torch.equal(first["token"], again["token"])
    change(policy)
    moved = sample(policy)
    assert engine.loads == 2
    assert not torch.equal(moved["token"], first["token"])
    expected = policy.completion_log_prob(prompts(), moved["token"], moved["mask"])
    assert torch.allclose(moved["sampler_log_prob"], expected, atol=ROUNDED)
    assert engine.metrics["engine_canary"] < ROUNDED
    assert engine.metrics["engine_sync_s"] > 0


def test_another_policy_brings_its_own_weights():
    engine = Copied(model())
    sample(make(model(), engine))
    other = make(model(), engine)
    change(other)
    sample(other)
    assert engine.loads == 2


def test_stale_weights_end_the_run():
    engine = Copied(model(), ignores_weights=True)
    policy = make(model(), engine)
    sample(policy)
    change(policy)
    with pytest.raises(EngineError, match="after the weights were loaded, found a mean difference"):
        sample(policy)


def test_a_dead_engine_is_started_again_and_the_batch_repeated():
    expected = sample(make(model(), Copied(model())))
    # Calls: canary, batch (dies), canary, batch.
    engine = Copied(model(), dies_at=[2])
    found = sample(make(model(), engine))
    assert torch.equal(found["token"], expected["token"])
    assert (engine.starts, engine.loads, engine.calls) == (2, 2, 4)
    assert engine.metrics["engine_restarts"] == 1.0


def test_an_engine_that_always_dies_ends_the_run():
    engine = Copied(model(), dies_at=range(100))
    with pytest.raises(EngineError, match=f"found that it died {MAX_DEATHS + 1} times: told to"):
        sample(make(model(), engine))
    assert engine.starts == MAX_DEATHS + 1
