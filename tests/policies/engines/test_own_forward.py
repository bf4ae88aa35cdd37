import pytest
import torch

from rlflow.policies.causal_lm import CausalLMPolicy, LMConfig
from rlflow.policies.engines import own_forward
from rlflow.policies.engines.kv_cache import ROOM, RoomyLayer, distinct_rows, roomy_cache
from rlflow.policies.engines.own_forward import _inverse_cdf
from rlflow.random import Noise, generator

PAD, EOS, VOCABULARY, LIMIT = 0, 1, 12, 10


def make(kind, **config):
    import transformers

    shape = {
        "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 256,
    }  # fmt: skip
    torch.manual_seed(0)
    actor = getattr(transformers, f"{kind}ForCausalLM")(getattr(transformers, f"{kind}Config")(**shape, **config))
    with torch.no_grad():
        for weight in actor.parameters():
            weight.mul_(3.0)
    settings = LMConfig(max_new_tokens=LIMIT)
    return CausalLMPolicy(
        actor.eval(), settings, requires=frozenset({"log_prob"}), eos_id=EOS, pad_id=PAD, banned_ids=[PAD]
    ).eval()


def asked(lengths, group):
    # Left-padded prompts, each of them `group` times in a row.
    prompt = torch.randint(2, VOCABULARY, (len(lengths), max(lengths)), generator=generator(3))
    mask = torch.arange(max(lengths)) >= max(lengths) - torch.tensor(lengths)[:, None]
    prompt = torch.where(mask, prompt, PAD)
    return {"prompt": prompt.repeat_interleave(group, 0), "prompt_mask": mask.repeat_interleave(group, 0)}


@torch.no_grad()
def without_a_cache(policy, context, seed):
    # One row at a time, the whole text anew for every token.
    n = len(context["prompt"])
    draws = Noise(generator=generator(seed)).uniform((n, LIMIT))
    token = torch.full((n, LIMIT), PAD)
    for row in range(n):
        text = context["prompt"][row][context["prompt_mask"][row]].tolist()
        for t in range(LIMIT):
            log_p = policy.log_softmax(policy.actor(input_ids=torch.tensor([text])).logits[:, -1])
            text.append(int(_inverse_cdf(log_p, draws[row, t : t + 1])))
            token[row, t] = text[-1]
            if text[-1] == EOS:
                break
    return token


@pytest.mark.parametrize(
    ("kind", "config"),
    [("Qwen2", {}), ("Qwen3", {"head_dim": 16}), ("Llama", {}), ("Mistral", {"sliding_window": 6})],
)
def test_completions_are_those_of_whole_forward_passes_row_by_row(kind, config):
    # The last has layers of a sliding window, shorter than prompt and completion, which keep transformers' own cache.
    policy, context = make(kind, **config), asked([4, 2, 5], group=8)
    made = policy.engine.complete(policy, context, Noise(generator=generator(5)))
    assert torch.equal(made.token, without_a_cache(policy, context, 5))
    # Some end early, some do not.
    lengths = made.mask.sum(1)
    assert int(lengths.min()) < LIMIT
    assert int(lengths.max()) == LIMIT
    assert torch.equal(made.mask, made.token != PAD)


def test_a_prompt_is_read_once_and_ended_rows_leave_the_batch(monkeypatch):
    policy, context = make("Qwen2"), asked([3, 3], group=16)
    rows = []
    policy.actor.register_forward_pre_hook(
        lambda _, args, given: rows.append(tuple(given["input_ids"].shape)), with_kwargs=True
    )
    made = policy.engine.complete(policy, context, Noise(generator=generator(0)))
    assert rows[:2] == [(2, 3), (32, 1)]
    # A step computes the rows of the last time that fewer than four in five of them were still being written.
    batch = 32
    for t, (seen, width) in enumerate(rows[1:]):
        alive = int((made.mask[:, t] & (made.token[:, t] != EOS)).sum())
        batch = alive if alive < own_forward.KEPT_SHARE * batch else batch
        assert (seen, width) == (batch, 1)
    assert batch < 32
    monkeypatch.setattr(own_forward, "KEPT_SHARE", 0.0)
    assert torch.equal(policy.engine.complete(policy, context, Noise(generator=generator(0))).token, made.token)


def test_a_roomy_layer_holds_what_transformers_layer_holds():
    from transformers.cache_utils import DynamicLayer

    ours, theirs = RoomyLayer(), DynamicLayer()
    for width in (3, 1, 1, ROOM, 2, 2 * ROOM):
        new = torch.randn(4, 2, width, 8, generator=generator(width)), torch.randn(4, 2, width, 8)
        for mine, other in zip(ours.update(*new), theirs.update(*new), strict=True):
            assert torch.equal(mine, other)
        assert ours.get_seq_length() == theirs.get_seq_length()
    order = torch.tensor([2, 2, 0, 1, 3, 3])
    for layer in (ours, theirs):
        layer.reorder_cache(order)
    assert torch.equal(ours.keys, theirs.keys)
    new = torch.ones(6, 2, 1, 8), torch.zeros(6, 2, 1, 8)
    for mine, other in zip(ours.update(*new), theirs.update(*new), strict=True):
        assert torch.equal(mine, other)


def test_a_roomy_layer_copies_nothing_while_there_is_room():
    layer = RoomyLayer()
    step = torch.ones(1, 1, 1, 4)
    first = layer.update(step, step)[0].data_ptr()
    for _ in range(ROOM - 1):
        assert layer.update(step, step)[0].data_ptr() == first
    assert layer.update(step, step)[0].data_ptr() != first


def test_only_layers_of_full_attention_are_roomy():
    assert all(type(layer) is RoomyLayer for layer in roomy_cache(make("Qwen2").actor).layers)
    sliding = roomy_cache(make("Mistral", sliding_window=6).actor)
    assert [type(layer).__name__ for layer in sliding.layers] == ["DynamicSlidingWindowLayer"] * 2


def test_distinct_rows_compares_neighbours_in_all_tensors():
    prompt = torch.tensor([[1, 2], [1, 2], [1, 3], [1, 3], [1, 2]])
    mask = torch.tensor([[True], [True], [True], [False], [True]])
    first, which = distinct_rows(prompt, mask)
    assert first.tolist() == [0, 2, 3, 4]
    assert which.tolist() == [0, 0, 1, 2, 3]
    assert [x.tolist() for x in distinct_rows(prompt[:1], mask[:1])] == [[0], [0]]
