"""Full and LoRA training of random models of the real classes, by every engine of this process, and their export."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from rlflow.config import ConfigError, resolve
from rlflow.export import export
from rlflow.policies.causal_lm import LMConfig
from rlflow.policies.engines.apart import Apart, EngineDiedError, Rows
from rlflow.random import Noise, generator
from rlflow.rollout import Rollout
from rlflow.run import build
from rlflow.task import Evaluation
from tasks.reasoning.checkpoint import Checkpoint
from tasks.reasoning.countdown import Countdown
from tasks.reasoning.settings import TrainedSettings
from tests.tiny_models import KINDS, save_tiny

ROUNDED = 1e-5
# One more matrix product and the merge of a LoRA between the two.
MERGED = 1e-4
LORA = TrainedSettings(lora_rank=4, lora_alpha=8.0)
ALL = frozenset({"log_prob", "reference", "value", "partition", "entropy"})


@pytest.fixture(scope="module", params=KINDS)
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(request.param, tmp_path_factory.mktemp(request.param), tied=request.param != "Llama")


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny("Qwen2", tmp_path_factory.mktemp("qwen"))


def task_of(base: Path, **values: Any) -> Countdown:
    settings: dict[str, Any] = {"groups_per_rollout": 2, "group_size": 4, "lm": LMConfig(max_new_tokens=8)}
    return Countdown(base=str(base), **(settings | values))


def rolled(task: Countdown, policy: Any) -> Rollout:
    with torch.no_grad():
        rollout = task.rollout(policy, torch.tensor([0, 1]), Noise(generator=generator(0)))
        policy.record_behaviour(rollout)
        return task.score(rollout)


def step(policy: Any, rollout: Rollout) -> None:
    """One step of a size that changes what is sampled."""
    params = [p for group in policy.parameter_groups().values() for p in group]
    optimiser = torch.optim.SGD(params, lr=1.0)
    (-policy.log_prob(rollout).sum() + policy.value(rollout).square().sum()).backward()
    torch.nn.utils.clip_grad_norm_(params, 3.0)
    optimiser.step()


def logits(model: Any, rollout: Rollout) -> Tensor:
    ids = torch.cat([rollout.context["prompt"], rollout.action["token"]], dim=1)
    with torch.no_grad():
        answer: Tensor = model(input_ids=ids).logits
    return answer


def trained_policy(task: Countdown) -> tuple[Any, Rollout]:
    policy = task.build_policy(ALL).eval()
    rollout = rolled(task, policy)
    step(policy, rollout)
    return policy, rollout


def test_full_training_is_exported_for_from_pretrained(base: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    task = task_of(base)
    policy, rollout = trained_policy(task)
    task.save(policy, tmp_path)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    assert torch.equal(logits(plain, rollout), logits(policy.actor, rollout))
    assert not torch.allclose(logits(plain, rollout), logits(task.checkpoint.load_model(), rollout), atol=MERGED)
    # No head inside, and the tokenizer that the bundled opener reads.
    assert plain.state_dict().keys() == task.checkpoint.load_model().state_dict().keys()
    assert Checkpoint.open(tmp_path / "model").token_ids(["1 + 2"]) == task.checkpoint.token_ids(["1 + 2"])


def test_a_lora_trains_alone_and_is_exported_merged(base: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    task = task_of(base, trained=LORA)
    policy, rollout = trained_policy(task)
    assert all("lora_" in name for name, p in policy.actor.named_parameters() if p.requires_grad)
    task.save(policy, tmp_path)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    assert torch.allclose(logits(plain, rollout), logits(policy.actor, rollout), atol=MERGED)
    with policy.referenced_actor() as reference:
        expected = logits(task.checkpoint.load_model(), rollout)
        assert torch.allclose(logits(reference, rollout), expected, atol=ROUNDED)
        assert not torch.allclose(logits(plain, rollout), expected, atol=MERGED)


def test_a_lora_is_exported_as_an_adapter(qwen: Path, tmp_path: Path) -> None:
    from peft import PeftModel

    task = task_of(qwen, trained=TrainedSettings(lora_rank=4, lora_targets=("q_proj", "v_proj"), export="adapter"))
    policy, rollout = trained_policy(task)
    task.save(policy, tmp_path)
    written = json.loads((tmp_path / "model" / "adapter_config.json").read_text())
    assert sorted(written["target_modules"]) == ["q_proj", "v_proj"]
    assert not (tmp_path / "model" / "model.safetensors").exists()
    loaded = PeftModel.from_pretrained(task.checkpoint.load_model(), tmp_path / "model")
    assert torch.allclose(logits(loaded, rollout), logits(policy.actor, rollout), atol=ROUNDED)


def test_the_export_command_writes_the_model_and_keeps_heads_beside_it(qwen: Path, tmp_path: Path) -> None:
    # The embedding of this model is its LM head, too.
    loop = build(resolve("ppo", "reasoning/countdown", [f"task.base={qwen}", "task.trained.lora_rank=2"]), tmp_path)
    export(loop, Evaluation(metrics={"score": 0.0}), tmp_path / "out")
    kept = load_file(tmp_path / "out" / "policy.safetensors")
    assert {name.partition(".")[0] for name in kept} == {"actor", "critic"}
    inside = load_file(tmp_path / "out" / "model" / "model.safetensors")
    assert inside.keys() == dict(loop.task.checkpoint.load_model().named_parameters()).keys()


def test_gradient_checkpointing_changes_no_gradient(base: Path) -> None:
    gradients, calls = [], []
    for wanted in (False, True):
        torch.manual_seed(0)
        task = task_of(base, trained=TrainedSettings(gradient_checkpointing=wanted))
        policy = task.build_policy(frozenset({"log_prob"})).eval()
        rollout = rolled(task, policy)
        for layer in policy.trunk.modules():
            if getattr(layer, "gradient_checkpointing", False) and hasattr(layer, "_gradient_checkpointing_func"):
                inner = layer._gradient_checkpointing_func
                layer._gradient_checkpointing_func = lambda *a, inner=inner, **k: (calls.append(1), inner(*a, **k))[1]
        policy.log_prob(rollout).sum().backward()
        assert bool(calls) == wanted
        assert not any(module.training for module in policy.modules())
        gradients.append([p.grad for p in policy.actor.parameters()])
    for one, other in zip(*gradients, strict=True):
        assert torch.allclose(one, other, atol=ROUNDED)


def test_bfloat16_weights_have_float32_likelihoods(qwen: Path) -> None:
    task = task_of(qwen, trained=TrainedSettings(lora_rank=4, dtype="bfloat16"))
    policy = task.build_policy(ALL).eval()
    rollout = rolled(task, policy)
    assert next(p for n, p in policy.actor.named_parameters() if "embed" in n).dtype == torch.bfloat16
    assert {p.dtype for p in policy.actor.parameters() if p.requires_grad} == {torch.float32}
    for answer in (policy.log_prob, policy.kl, policy.entropy, policy.value, policy.log_partition):
        assert answer(rollout).dtype == torch.float32
    step(policy, rollout)


def test_full_training_in_bfloat16_is_refused() -> None:
    with pytest.raises(ValueError, match=r"task\.trained\.dtype: training in full needs float32"):
        TrainedSettings(dtype="bfloat16")


@pytest.mark.parametrize("trained", [TrainedSettings(), LORA])
def test_a_separate_critic_learns_on_a_trunk_of_its_own(qwen: Path, trained: TrainedSettings) -> None:
    task = task_of(qwen, trained=trained, lm=LMConfig(max_new_tokens=8, critic="separate"))
    policy = task.build_policy(ALL).eval()
    rollout = rolled(task, policy)
    assert policy.value(rollout).shape == rollout.mask.shape
    policy.value(rollout).square().sum().backward()
    groups = policy.parameter_groups()
    assert all(p.grad is None for p in groups["actor"])
    touched = [p for p in groups["critic"] if p.grad is not None and bool(p.grad.any())]
    assert len(touched) > 4
    assert not {id(p) for p in groups["actor"]} & {id(p) for p in groups["critic"]}


@pytest.mark.parametrize("trained", [TrainedSettings(), LORA])
def test_continuous_batching_agrees_with_the_trainer(base: Path, trained: TrainedSettings) -> None:
    task = task_of(base, trained=trained, engine="transformers-cb")
    policy = task.build_policy(ALL).eval()
    rollout = rolled(task, policy)
    assert torch.allclose(rollout.sampler_log_prob, rollout.behaviour_log_prob, atol=MERGED)
    assert 0.0 <= rollout.metrics["engine_difference_mean"] <= rollout.metrics["engine_difference_max"] < MERGED
    again = rolled(task, policy)
    assert torch.equal(again.action["token"], rollout.action["token"])
    with torch.no_grad():
        for weight in policy.actor.parameters():
            weight.mul_(1.2)
    moved = rolled(task, policy)
    assert torch.allclose(moved.sampler_log_prob, moved.behaviour_log_prob, atol=MERGED)
    assert not (moved.mask.shape == rollout.mask.shape and torch.equal(moved.action["token"], rollout.action["token"]))


class Fixed(Apart):
    """Says the same two tokens each time, with a given log-probability, and dies in its first batch."""

    calls = 0

    def start(self) -> None:
        pass

    def load(self, weights: Any) -> None:
        list(weights)

    def generate(self, prompts: Any, sampling: Any, seeds: Any) -> Rows:
        Fixed.calls += 1
        if Fixed.calls == 2:
            raise EngineDiedError("told to")
        return [[7, sampling.eos_id] for _ in prompts], [[-1.0, -2.0] for _ in prompts]

    def stop(self) -> None:
        pass


def test_what_an_engine_says_reaches_the_rollout_and_the_log(qwen: Path) -> None:
    task = task_of(qwen)
    task.__dict__["_engine"] = Fixed(canary_tolerance=100.0)
    policy = task.build_policy(frozenset())
    rollout = rolled(task, policy)
    assert rollout.sampler_log_prob.tolist() == [[[-1.0], [-2.0]]] * 8
    expected = (policy.log_prob(rollout) - rollout.sampler_log_prob).abs()
    assert rollout.metrics["engine_difference_mean"] == pytest.approx(float(expected.detach().mean()), rel=ROUNDED)
    assert rollout.metrics["engine_restarts"] == 1.0
    assert rollout.metrics.keys() >= {"engine_canary", "engine_sync_s", "engine_kl", "completion_tokens"}
    assert rollout.flatten().sampler_log_prob is rollout.sampler_log_prob


def test_own_forward_reports_no_engine(qwen: Path) -> None:
    task = task_of(qwen)
    rollout = rolled(task, task.build_policy(ALL))
    assert rollout.sampler_log_prob is None
    assert rollout.metrics.keys() == {"completion_tokens"}


@pytest.mark.parametrize("name", ["gsm8k_05b", "gsm8k_15b_lora", "dapo17k_7b", "dapo17k_32b", "programs_r1_7b"])
@pytest.mark.parametrize("algorithm", ["ppo", "flowrl", "reinforce_pp"])
def test_presets_of_real_models_resolve_without_opening_one(algorithm: str, name: str) -> None:
    task = resolve(algorithm, f"reasoning/{name}").task
    assert task.engine == "vllm"
    assert task.lm.max_new_tokens + task.max_prompt_tokens <= task.vllm.max_model_len
    task.close()


def test_a_truncated_distribution_is_no_setting_of_training(qwen: Path) -> None:
    with pytest.raises(ConfigError, match=r"unknown key 'task\.lm\.top_p'"):
        resolve("ppo", "reasoning/countdown", [f"task.base={qwen}", "task.lm.top_p=0.9"])
