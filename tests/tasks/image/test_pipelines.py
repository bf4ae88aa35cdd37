"""Adapters against the pipelines of diffusers themselves, on random models: equal bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from rlflow.policies.flow import FlowPolicy
from rlflow.policies.flow_config import ScheduledFlowConfig
from rlflow.random import Noise, generator
from rlflow.rollout import Rollout
from tasks.image.pipelines import adapter as adapter_module
from tasks.image.pipelines.denoiser import Denoiser
from tasks.image.pipelines.embeddings import PromptEmbeddings
from tasks.image.pipelines.loading import ModelError, build_denoiser, open_adapter, save_trained
from tests.tasks.image.tiny_pipelines import save_flux, save_qwen, save_schnell, save_sd3, save_sd35

EXACT = {"rtol": 0.0, "atol": 0.0}
PROMPTS = ["a red cube", "two cats", "a green sphere left of a cup"]
SAVERS: dict[str, Callable[[Path], Path]] = {
    "sd3": save_sd3, "sd35": save_sd35, "flux": save_flux, "schnell": save_schnell, "qwen": save_qwen,
}  # fmt: skip
SEEDS = (11, 12)
FLOW = ScheduledFlowConfig(train_steps=4, eval_steps=3, noise_level=0.0, num_probes=1)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return {name: str(save(tmp_path_factory.mktemp(name))) for name, save in SAVERS.items()}


def embeddings(model: str, texts: list[str] = PROMPTS, dtype: str = "float32") -> PromptEmbeddings:
    adapter = open_adapter(model, dtype, height=32, width=64, max_tokens=40, offload=True)
    return PromptEmbeddings(adapter, texts, "blurry", limit=8)


def denoiser(kept: PromptEmbeddings, model: str, **changes: Any) -> Denoiser:
    settings = {
        "dtype": "float32", "lora_rank": 2, "lora_alpha": 4.0, "lora_targets": (), "gradient_checkpointing": False,
        "rows_per_pass": 2, "guidance": 1.0,
    }  # fmt: skip
    torch.manual_seed(0)
    return build_denoiser(model, kept, **(settings | changes))


def policy(actor: Denoiser, flow: ScheduledFlowConfig = FLOW, requires: str = "log_prob") -> FlowPolicy:
    adapter = actor.embeddings.adapter
    return FlowPolicy(actor, adapter.shape, flow, requires=frozenset(requires.split()), grid=adapter.grid).eval()


def diffusers_pipeline(model: str) -> Any:
    from diffusers import DiffusionPipeline

    index = DiffusionPipeline.load_config(model)
    without = {part: None for part, where in index.items() if isinstance(where, list) and where[0] is None}
    pipeline = DiffusionPipeline.from_pretrained(model, **without)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def answers(pipeline: Any, name: str, guidance: float, steps: int, prompt: str = PROMPTS[0], **more: Any) -> Any:
    """Latents and images of the pipeline's own call."""
    kwargs = {"guidance_scale": guidance, "negative_prompt": "blurry"}
    if name in ("flux", "schnell"):
        kwargs = {"guidance_scale": guidance}
    elif name == "qwen":
        kwargs = {"true_cfg_scale": guidance, "negative_prompt": "blurry"}
    found = [
        pipeline(
            prompt, height=32, width=64, num_inference_steps=steps, num_images_per_prompt=len(SEEDS),
            max_sequence_length=40, generator=[torch.Generator().manual_seed(s) for s in SEEDS], output_type=kind,
            **kwargs, **more,
        ).images
        for kind in ("latent", "pt")
    ]  # fmt: skip
    return found


def nudge(actor: Denoiser, scale: float = 0.05) -> None:
    rng = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in actor.parameters():
            if parameter.requires_grad:
                parameter += scale * torch.randn(parameter.shape, generator=rng)


@pytest.mark.parametrize("guidance", [1.0, 4.5])
@pytest.mark.parametrize("name", SAVERS)
def test_without_noise_samples_are_the_pipelines_own(models: dict[str, str], name: str, guidance: float) -> None:
    kept = embeddings(models[name], PROMPTS[:1])
    # All steps of the training sampler are deterministic where nothing asks for their likelihood.
    flow = policy(denoiser(kept, models[name], guidance=guidance), requires="elbo")
    noise, context = Noise(generator=generator(0)), {"prompt": torch.tensor([0, 0])}
    initial = kept.adapter.initial(SEEDS)
    assert initial.std() > 0.5
    for train, steps in ((True, 4), (False, 3)):
        latents, images = answers(diffusers_pipeline(models[name]), name, guidance, steps)
        with torch.no_grad():
            sample = flow.sample(context, noise, train=train, initial=initial)["sample"]
        assert torch.equal(sample, latents)
        assert torch.equal(kept.adapter.decode(sample, 2), images)
        assert images.std() > 0.01


@pytest.mark.parametrize("guidance", [1.0, 4.5])
@pytest.mark.parametrize("name", SAVERS)
def test_replay_of_a_trajectory_repeats_its_likelihoods(models: dict[str, str], name: str, guidance: float) -> None:
    kept = embeddings(models[name])
    actor = denoiser(kept, models[name], guidance=guidance, gradient_checkpointing=True)
    nudge(actor)
    flow = policy(actor, ScheduledFlowConfig(train_steps=4, window=2, noise_level=0.7))
    rollout = roll(flow, torch.tensor([0, 0, 1, 1, 2]))
    with torch.no_grad():
        flow.record_behaviour(rollout)
    # Minibatches of other rows in another order, one of them smaller than a pass, with gradient.
    for rows in ([0, 1, 2, 3, 4], [4, 2], [3, 0, 1], [1]):
        part = take(rollout, rows)
        assert (flow.log_prob(part) - rollout.old_log_prob[rows]).abs().max() == 0
    nudge(actor)
    assert (flow.log_prob(rollout.replace()) - rollout.old_log_prob).abs().max() > 0


@pytest.mark.parametrize("name", SAVERS)
def test_around_a_bfloat16_model_everything_else_is_float32(models: dict[str, str], name: str) -> None:
    kept = embeddings(models[name], dtype="bfloat16")
    actor = denoiser(kept, models[name], dtype="bfloat16")
    nudge(actor)
    flow = policy(actor, ScheduledFlowConfig(train_steps=4, window=2, noise_level=0.7))
    rollout = roll(flow, torch.tensor([0, 1, 2]))
    dtypes = {"frozen": set(), "trained": set()}
    for parameter in actor.parameters():
        dtypes["trained" if parameter.requires_grad else "frozen"].add(parameter.dtype)
    assert dtypes == {"frozen": {torch.bfloat16}, "trained": {torch.float32}}
    assert {x.dtype for x in rollout.action.values()} == {torch.float32}
    assert {p.dtype for p in kept.adapter.pipeline.vae.parameters()} == {torch.float32}
    assert kept.adapter.decode(rollout.action["sample"][:, 0], 2).dtype == torch.float32
    log_prob = flow.log_prob(rollout)
    assert (log_prob - rollout.action["log_prob"]).abs().max() == 0
    log_prob.sum().backward()
    gradients = {name: p.grad for name, p in actor.named_parameters() if p.requires_grad and p.grad is not None}
    assert all(bool(torch.isfinite(g).all()) for g in gradients.values())
    # What reads the image; the text side of a last block may lead nowhere.
    assert all(bool(g.any()) for name, g in gradients.items() if "to_q" in name or "to_v" in name)
    assert sum("to_q" in name for name in gradients) >= 2


def roll(flow: FlowPolicy, prompts: torch.Tensor) -> Rollout:
    context = {"prompt": prompts}
    with torch.no_grad():
        action = flow.sample(context, Noise(generator=generator(3)))
    flags = torch.ones(len(prompts), 1, dtype=torch.bool)
    return Rollout(
        context=context, action={k: v.unsqueeze(1) for k, v in action.items()}, mask=flags, group=prompts,
        reward=torch.zeros(len(prompts), 1), terminated=flags, boundary=flags,
    )  # fmt: skip


def take(rollout: Rollout, rows: list[int]) -> Rollout:
    kept = {name: {k: v[rows] for k, v in getattr(rollout, name).items()} for name in ("context", "action")}
    cut = {name: getattr(rollout, name)[rows] for name in ("mask", "group", "reward", "terminated", "boundary")}
    return rollout.replace(old_log_prob=None, **kept, **cut)


def test_the_transformers_dtype_follows_where_it_is_moved(models: dict[str, str]) -> None:
    kept = embeddings(models["sd3"])
    actor = denoiser(kept, models["sd3"])
    x, context = torch.zeros(2, *kept.adapter.shape), {"prompt": torch.tensor([0, 1])}
    seen = []
    actor.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["hidden_states"].dtype), with_kwargs=True
    )
    with torch.no_grad():
        for dtype in (torch.float32, torch.float64):
            actor.to(dtype)
            kept._kept.clear()
            kept.adapter.pipeline.to(dtype)
            actor(x, torch.ones(2), context)
    assert seen == [torch.float32, torch.float64]


def test_without_the_lora_the_actor_is_its_own_reference(models: dict[str, str]) -> None:
    kept = embeddings(models["sd3"])
    actor = denoiser(kept, models["sd3"])
    flow = policy(actor, ScheduledFlowConfig(train_steps=3, window=1, noise_level=0.7), "log_prob reference")
    assert flow.reference_actor is None
    rollout = roll(flow, torch.tensor([0, 1]))
    with torch.no_grad():
        assert flow.kl(rollout).abs().max() == 0
        nudge(actor)
        moved = rollout.replace()
        assert flow.kl(moved).min() > 0
        # The reference does not move, and the actor is whole again after it has been asked.
        before = flow.log_prob(moved)
        assert torch.equal(flow.ref_log_prob(moved), rollout.action["log_prob"][:, 0].view(2, 1, 1))
        assert torch.equal(flow.log_prob(moved.replace()), before)


def test_both_branches_of_guidance_carry_gradient(models: dict[str, str]) -> None:
    kept = embeddings(models["sd3"], PROMPTS[:1])
    actor = denoiser(kept, models["sd3"], guidance=3.0, rows_per_pass=1)
    nudge(actor)
    x, s = kept.adapter.initial([1]), torch.tensor([0.6])

    def gradient(guidance: float, negative: bool) -> torch.Tensor:
        actor.zero_grad()
        rows = kept.negatives(1, x.device) if negative else kept.rows(torch.tensor([0]), x.device)
        other = kept.negatives(1, x.device) if guidance > 1 else None
        kept.adapter.velocity(actor.transformer, x, s, rows, other, guidance).sum().backward()
        return torch.cat([p.grad.flatten() for p in actor.parameters() if p.grad is not None])

    # v = v_n + 3 (v_p - v_n), so the gradient is 3 dv_p - 2 dv_n.
    expected = 3 * gradient(1.0, False) - 2 * gradient(1.0, True)
    assert torch.allclose(gradient(3.0, False), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", SAVERS)
def test_an_exported_lora_draws_the_same_image_in_diffusers(models: dict[str, str], name: str, tmp_path: Path) -> None:
    kept = embeddings(models[name], PROMPTS[:1])
    actor = denoiser(kept, models[name])
    nudge(actor)
    save_trained(actor, tmp_path)
    with torch.no_grad():
        sample = policy(actor, requires="elbo").sample(
            {"prompt": torch.tensor([0, 0])}, Noise(generator=generator(0)), train=False,
            initial=kept.adapter.initial(SEEDS),
        )["sample"]  # fmt: skip
    pipeline = diffusers_pipeline(models[name])
    without = answers(pipeline, name, 1.0, 3)[1]
    pipeline.load_lora_weights(tmp_path)
    latents, images = answers(pipeline, name, 1.0, 3)
    assert [path.name for path in tmp_path.iterdir()] == ["pytorch_lora_weights.safetensors"]
    # Rank 2 and alpha 4 travel with the file: a lost alpha would halve the update.
    assert torch.equal(sample, latents)
    assert torch.equal(kept.adapter.decode(sample, 2), images)
    assert (images - without).abs().max() > 1e-3


@pytest.mark.parametrize("name", SAVERS)
def test_a_transformer_trained_in_full_is_saved_for_diffusers(
    models: dict[str, str], name: str, tmp_path: Path
) -> None:
    import diffusers

    actor = denoiser(embeddings(models[name]), models[name], lora_rank=0)
    flow = policy(actor, ScheduledFlowConfig(train_steps=3, window=1, noise_level=0.7))
    flow.log_prob(roll(flow, torch.tensor([0, 1]))).sum().backward()
    # Only the text side of a last block may lead nowhere.
    idle = [parameter for parameter in actor.parameters() if parameter.grad is None]
    assert sum(p.numel() for p in idle) < 0.2 * sum(p.numel() for p in actor.parameters())
    nudge(actor)
    save_trained(actor, tmp_path)
    kind = getattr(diffusers, type(actor.transformer).__name__)
    loaded = kind.from_pretrained(tmp_path, subfolder="transformer").state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in actor.transformer.state_dict().items())


def test_a_checkpoint_holds_what_is_trained_alone(models: dict[str, str]) -> None:
    kept = embeddings(models["sd3"])
    actor, other = denoiser(kept, models["sd3"]), denoiser(kept, models["sd3"])
    nudge(actor)
    state = actor.state_dict()
    assert state
    assert all("lora_" in name for name in state)
    other.load_state_dict(state)
    assert all(torch.equal(a, b) for a, b in zip(actor.parameters(), other.parameters(), strict=True))
    assert len(denoiser(kept, models["sd3"], lora_rank=0).state_dict()) > len(state)


def test_embeddings_are_made_once_and_dropped_beyond_the_limit(models: dict[str, str]) -> None:
    kept = embeddings(models["sd3"], ["a", "b", "a", "c"])
    kept.limit = 2
    cpu = torch.device("cpu")
    first = kept.rows(torch.tensor([0, 2, 1]), cpu)
    assert kept.num_encoded == 2
    assert torch.equal(first["prompt"][0], first["prompt"][1])
    kept.rows(torch.tensor([3]), cpu)
    # c has pushed out a, the one not used for longest; encoded anew it is the same.
    again = kept.rows(torch.tensor([1, 0]), cpu)
    assert kept.num_encoded == 4
    assert torch.equal(again["prompt"][1], first["prompt"][0])


def test_prompts_too_long_for_the_encoder_are_found(models: dict[str, str]) -> None:
    adapter = embeddings(models["sd3"]).adapter
    # The tokenizer made here has a token for the start of a word, one per letter, and one for the end.
    assert adapter.num_tokens("ab") == 4
    assert PromptEmbeddings(adapter, ["ab" * 30, "ab"], "", limit=4).overlong == ["ab" * 30]
    # Without T5 the encoder that reads furthest is CLIP, whose tokenizer here stops at 24, whatever is asked for.
    adapter = embeddings(models["sd35"]).adapter
    assert (adapter.max_prompt_tokens, adapter.num_tokens("ab" * 11), adapter.num_tokens("ab" * 12)) == (24, 24, 26)
    kept = PromptEmbeddings(adapter, ["ab" * 12, "ab" * 11], "", limit=4)
    assert kept.overlong == ["ab" * 12]
    with pytest.raises(ValueError, match=r"task\.prompts: 1 of 2 prompts have more than the 24 tokens of CLIP"):
        kept.refuse_overlong()
    # Its embeddings are as long as asked for all the same, as the pipeline's own.
    assert kept.rows(torch.tensor([1]), torch.device("cpu"))["prompt"].shape[1] == 24 + 40


def test_frozen_parts_leave_the_device_after_use(models: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    moves: list[tuple[str, str]] = []
    monkeypatch.setattr(
        adapter_module, "_move", lambda module, device: moves.append((type(module).__name__, str(device)))
    )
    kept = embeddings(models["flux"])
    kept.adapter.encode(["a"], torch.device("cpu", 0))
    kept.adapter.decode(kept.adapter.initial([0]), 1)
    names = ["CLIPTextModel", "T5EncoderModel"]
    assert moves == [*((n, "cpu:0") for n in names), *((n, "cpu") for n in names), *[("AutoencoderKL", "cpu")] * 2]


def test_a_module_is_moved_only_where_it_is_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    module = torch.nn.Linear(1, 1)
    calls: list[object] = []
    monkeypatch.setattr(module, "to", calls.append)
    for device in ("cpu", "meta"):
        adapter_module._move(module, torch.device(device))
    assert calls == [torch.device("meta")]


@pytest.mark.parametrize(
    ("height", "message"), [(33, "draws multiples of 4 pixels, found 33; the nearest is 32"), (0, "found 0")]
)
def test_resolutions_that_latents_cannot_have_are_refused(models: dict[str, str], height: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_adapter(models["sd3"], "float32", height=height, width=32, max_tokens=40, offload=True)


def opened(model: str) -> None:
    kept = embeddings(model)
    denoiser(kept, model)


def test_missing_and_partial_models_are_refused(models: dict[str, str], tmp_path: Path) -> None:
    import shutil

    with pytest.raises(ModelError, match=r"expected the folder of a diffusers pipeline .* found '/nowhere'"):
        opened("/nowhere")
    with pytest.raises(ModelError, match="expected a complete pipeline at none/such"):
        opened("none/such")
    weights = "diffusion_pytorch_model.safetensors"
    files = ("model_index.json", "transformer/config.json", f"transformer/{weights}", f"vae/{weights}")
    for part in (*files, "vae", "text_encoder_3", "tokenizer_2"):
        folder = tmp_path / part.replace("/", "-")
        shutil.copytree(models["sd3"], folder)
        path = folder / part
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        with pytest.raises(ModelError, match="expected a complete pipeline at"):
            opened(str(folder))


def test_other_pipelines_are_refused(models: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text('{"_class_name": "KandinskyPipeline"}')
    with pytest.raises(ModelError, match="'StableDiffusion3Pipeline'], found KandinskyPipeline"):
        opened(str(tmp_path))
