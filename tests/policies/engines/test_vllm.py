"""vLLM for real, on a CPU or a GPU, with a random model: half a minute to start, and once more after it is killed."""

import importlib.util

import pytest
import torch

from rlflow.policies.causal_lm import CausalLMPolicy, LMConfig
from rlflow.policies.engines.engine import EngineError, Sampling
from rlflow.policies.engines.transfer import adapter_folder, weights_file
from rlflow.policies.engines.vllm import VLLM, VLLMConfig, request_parameters
from rlflow.random import Noise, generator
from tasks.reasoning.checkpoint import Checkpoint
from tasks.reasoning.settings import TrainedSettings
from tests.tiny_models import save_tiny

needs_vllm = pytest.mark.skipif(
    importlib.util.find_spec("vllm") is None, reason="vLLM is not installed (docs/engines.md tells how)"
)
SETTINGS = {"dtype": "float32", "enforce_eager": True, "max_model_len": 64, "max_num_seqs": 16, "kv_cache_gb": 0.0625}
# Other kernels than the trainer's, in float32.
KERNELS = 1e-4
PAD, EOS, UNK = 0, 2, 3
PROMPTS = {
    "prompt": torch.tensor([[PAD, 1, 5, 9], [1, 6, 7, 8]] * 8),
    "prompt_mask": torch.tensor([[False, True, True, True], [True] * 4] * 8),
}


def with_lora(folder, rank):
    return Checkpoint.open(folder).load_trainable(TrainedSettings(lora_rank=rank, lora_alpha=8.0))


def test_the_whole_distribution_is_asked_for():
    sampling = Sampling(max_new_tokens=5, temperature=0.7, eos_id=2, pad_id=0, banned_ids=(0, 3))
    asked = request_parameters(sampling, seed=11)
    assert asked["temperature"] == 0.7
    assert (asked["top_p"], asked["top_k"], asked["min_p"], asked["repetition_penalty"]) == (1.0, 0, 0.0, 1.0)
    assert asked["logit_bias"] == {0: -100.0, 3: -100.0}
    assert (asked["max_tokens"], asked["seed"], asked["stop_token_ids"]) == (5, 11, [2])


def test_the_weights_file_is_gone_after_use():
    with weights_file(iter([("a", torch.ones(2, 3).t())])) as path:
        assert path.is_file()
    assert not path.parent.exists()


def test_only_a_lora_of_the_announced_rank_is_sent_alone(tmp_path):
    actor = with_lora(save_tiny("Qwen2", tmp_path), rank=4)
    with adapter_folder(actor, 4) as folder:
        assert {path.name for path in folder.iterdir()} >= {"adapter_config.json", "adapter_model.safetensors"}
    assert not folder.exists()
    with (
        pytest.raises(EngineError, match=r"lora_rank: expected a LoRA of rank 1-2, found rank 4"),
        adapter_folder(actor, 2),
    ):
        pass
    with (
        pytest.raises(EngineError, match=r"expected a LoRA of rank 1-2, found a model that is trained in full"),
        adapter_folder(torch.nn.Linear(2, 2), 2),
    ):
        pass


def test_ranks_are_rounded_up_to_those_that_vllm_has():
    assert [VLLMConfig(lora_rank=rank).room_for_lora for rank in (1, 2, 8, 9, 33, 512)] == [1, 8, 8, 16, 64, 512]
    for rank in (-1, 513):
        with pytest.raises(ValueError, match=r"lora_rank: expected 0 \(merged\) to 512"):
            VLLMConfig(lora_rank=rank)


def test_a_missing_vllm_is_one_clear_error(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(EngineError, match=r"expected vLLM to be installed, found no package; pip install 'rlflow"):
        VLLM(source="nowhere", config=VLLMConfig()).start()


@needs_vllm
@pytest.mark.timeout(560)
def test_rollouts_follow_the_weights_and_a_killed_engine_comes_back(tmp_path, monkeypatch):
    from transformers import AutoModelForCausalLM

    # Inductor would compile a sampling kernel for half a minute.
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")
    monkeypatch.setenv("VLLM_LOGGING_LEVEL", "ERROR")
    folder = save_tiny("Qwen2", tmp_path)
    actor = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    # The file that the engine starts from has other weights than the trainer, as after a resumed run.
    with torch.no_grad():
        for weight in actor.parameters():
            weight.mul_(1.1)
    engine = VLLM(source=str(folder), config=VLLMConfig(**SETTINGS), canary_tolerance=KERNELS)
    policy = CausalLMPolicy(
        actor, LMConfig(max_new_tokens=12, temperature=0.8), requires=frozenset({"log_prob"}), eos_id=EOS, pad_id=PAD,
        banned_ids=[PAD, UNK], engine=engine,
    ).eval()  # fmt: skip

    def sample():
        action = policy.sample(PROMPTS, Noise(generator=generator(0)))
        expected = policy.completion_log_prob(PROMPTS, action["token"], action["mask"])
        assert torch.allclose(action["sampler_log_prob"], expected, atol=KERNELS)
        assert not bool(torch.isin(action["token"][action["mask"]], torch.tensor([PAD, UNK])).any())
        assert engine.metrics["engine_canary"] < KERNELS
        return action

    try:
        first, again = sample(), sample()
        assert torch.equal(first["token"], again["token"])
        assert EOS in first["token"]
        synced = engine.metrics["engine_sync_s"]
        # As the trainer steps: a fused optimiser does not touch the version counters of the weights.
        optimiser = torch.optim.AdamW(actor.parameters(), lr=0.01, fused=True)
        actor(input_ids=PROMPTS["prompt"], labels=PROMPTS["prompt"]).loss.backward()
        optimiser.step()
        moved = sample()
        assert not torch.equal(moved["token"], first["token"])
        assert engine.metrics["engine_sync_s"] != synced
        for process in engine._processes:
            process.kill()
        back = sample()
        assert torch.equal(back["token"], moved["token"])
        assert engine.metrics["engine_restarts"] == 1.0
    finally:
        engine.close()


@needs_vllm
@pytest.mark.timeout(560)
def test_a_lora_that_vllm_adds_itself_is_replaced_after_an_update(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")
    monkeypatch.setenv("VLLM_LOGGING_LEVEL", "ERROR")
    folder = save_tiny("Qwen2", tmp_path)
    actor = with_lora(folder, rank=4)
    engine = VLLM(source=str(folder), config=VLLMConfig(**SETTINGS, lora_rank=4), canary_tolerance=KERNELS)
    policy = CausalLMPolicy(
        actor, LMConfig(max_new_tokens=12, temperature=0.8), requires=frozenset({"log_prob"}), eos_id=EOS, pad_id=PAD,
        banned_ids=[PAD, UNK], engine=engine,
    ).eval()  # fmt: skip
    adapter = [weight for weight in actor.parameters() if weight.requires_grad]
    seen = []
    try:
        for step in range(3):
            action = policy.sample(PROMPTS, Noise(generator=generator(0)))
            expected = policy.completion_log_prob(PROMPTS, action["token"], action["mask"])
            assert torch.allclose(action["sampler_log_prob"], expected, atol=KERNELS)
            with actor.disable_adapter():
                base = policy.completion_log_prob(PROMPTS, action["token"], action["mask"])
            # A new LoRA adds nothing; a trained one moves the likelihoods far beyond what kernels differ by.
            assert bool((base - expected).abs().max() > 100 * KERNELS) == (step > 0)
            seen.append(action["token"])
            with torch.no_grad():
                for weight in adapter:
                    weight.add_(0.1 * torch.randn(weight.shape, generator=generator(step)))
        assert not torch.equal(seen[1], seen[0])
        assert not torch.equal(seen[2], seen[1])
    finally:
        engine.close()
