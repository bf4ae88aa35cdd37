"""The rewards on CLIP, on random models of the real class: arithmetic by hand, batches, loading, errors."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from tasks.image.rewards import Prompt
from tasks.image.rewards.aesthetic import Aesthetic
from tasks.image.rewards.clip_score import ClipScore
from tasks.image.rewards.hpsv2 import HpsV2
from tasks.image.rewards.mlp import linear_head
from tasks.image.rewards.open_clip import to_transformers
from tasks.image.rewards.pickscore import PickScore
from tasks.image.rewards.pixels import CLIP_MEAN, CLIP_STD, Preprocessing, to_uint8
from tests.tasks.image.rewards.tiny_models import save_clip

EXACT = {"rtol": 0.0, "atol": 1e-6}
LOOSE = {"rtol": 0.0, "atol": 1e-4}
# PIL rounds to bytes between the two passes of a resize: 1.5 of 255, over the least standard deviation.
ROUNDED = {"rtol": 0.0, "atol": 1.5 / 255 / min(CLIP_STD)}
IMAGES = torch.rand(5, 3, 40, 56, generator=torch.Generator().manual_seed(1))
PROMPTS = [Prompt(text=text) for text in ("a cat", "a dog", "two red dogs", "a cat", "blue")]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_clip(tmp_path_factory.mktemp("clip")))


@pytest.fixture(scope="module")
def parts(clip):
    """Unit embeddings by the classes of transformers alone."""
    from transformers import AutoTokenizer, CLIPModel

    model, words = CLIPModel.from_pretrained(clip).eval(), AutoTokenizer.from_pretrained(clip)
    with torch.no_grad():
        seen = model.get_image_features(pixel_values=Preprocessing(size=32)(IMAGES)).pooler_output
        read = [model.get_text_features(**words([p.text], return_tensors="pt")).pooler_output for p in PROMPTS]
    image, text = seen / seen.norm(dim=1, keepdim=True), torch.cat(read)
    return image, text / text.norm(dim=1, keepdim=True), model.logit_scale.exp().item()


def test_pick_score_is_the_scaled_cosine(clip, parts):
    image, text, scale = parts
    expected = scale * (image * text).sum(1) / 26
    # The text tower saw each prompt alone and without padding: padding and batches change nothing.
    assert torch.allclose(PickScore(model=clip, batch=2)(IMAGES, PROMPTS), expected, **LOOSE)
    assert torch.allclose(PickScore(model=clip, divisor=1)(IMAGES, PROMPTS), 26 * expected, **LOOSE)


def test_clip_score_has_no_negative_values(clip, parts):
    image, text, _ = parts
    cosine = (image * text).sum(1)
    assert bool((cosine < 0).any())
    assert bool((cosine > 0).any())
    score = ClipScore(model=clip, prefix="")(IMAGES, PROMPTS)
    assert torch.allclose(score, 2.5 * cosine.clamp(min=0), **LOOSE)
    assert not torch.equal(score, ClipScore(model=clip)(IMAGES, PROMPTS))


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_a_score_does_not_depend_on_the_batch(clip, batch):
    first = PickScore(model=clip)(IMAGES, PROMPTS)
    again = PickScore(model=clip, batch=batch)(IMAGES, PROMPTS)
    assert torch.allclose(first, again, **EXACT)
    order = torch.tensor([4, 2, 0, 1, 3])
    shuffled = PickScore(model=clip, batch=batch)(IMAGES[order], [PROMPTS[i] for i in order.tolist()])
    assert torch.allclose(shuffled, first[order], **EXACT)


def test_half_precision_answers_in_single(clip):
    score = PickScore(model=clip, dtype="bfloat16")(IMAGES, PROMPTS)
    assert score.dtype == torch.float32
    assert (score - PickScore(model=clip)(IMAGES, PROMPTS)).abs().max() < 0.02


def test_closing_drops_the_model(clip):
    reward = PickScore(model=clip)
    reward(IMAGES, PROMPTS)
    reward.close()
    assert reward._clip is None


@pytest.mark.parametrize("size", [(40, 56), (96, 64), (32, 32), (33, 150)])
def test_preprocessing_equals_the_image_processor(size):
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    # Smooth pictures: on noise the rounding between the passes is all that is left.
    small = torch.rand(3, 3, 6, 6, generator=torch.Generator().manual_seed(2))
    images = torch.nn.functional.interpolate(small, size, mode="bilinear")
    pictures = [Image.fromarray(picture) for picture in to_uint8(images)]
    processor = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    expected = torch.from_numpy(np.stack(processor(pictures, return_tensors="np")["pixel_values"]))
    found = Preprocessing(size=32)(torch.from_numpy(to_uint8(images)).permute(0, 3, 1, 2).float() / 255)
    assert found.shape == expected.shape == (3, 3, 32, 32)
    assert torch.allclose(found, expected, **ROUNDED)
    assert (found - expected).abs().mean() < 0.005


def test_padding_by_hand():
    white = torch.ones(1, 3, 16, 32)
    found = Preprocessing(size=32, fit="pad")(white) * torch.tensor(CLIP_STD)[:, None, None]
    found = found + torch.tensor(CLIP_MEAN)[:, None, None]
    # 16 rows of white in the middle of 32, 8 rows of black above and below.
    assert torch.allclose(found[0, :, :8], torch.zeros(3, 8, 32), **EXACT)
    assert torch.allclose(found[0, :, 8:24], torch.ones(3, 16, 32), **EXACT)
    assert torch.allclose(found[0, :, 24:], torch.zeros(3, 8, 32), **EXACT)


def head_state():
    generator = torch.Generator().manual_seed(4)
    sizes = {0: (8, 6), 2: (6, 5), 4: (5, 4), 6: (4, 3), 7: (3, 1)}
    return {
        f"layers.{place}.{kind}": torch.randn(shape, generator=generator)
        for place, (wide, narrow) in sizes.items()
        for kind, shape in (("weight", (narrow, wide)), ("bias", (narrow,)))
    }


def test_aesthetic_is_five_linear_layers_on_the_unit_embedding(clip, parts, tmp_path):
    state = head_state()
    save_file(state, tmp_path / "head.safetensors")
    torch.save(state, tmp_path / "head.pth")
    x = parts[0]
    for place in (0, 2, 4, 6, 7):
        x = x @ state[f"layers.{place}.weight"].T + state[f"layers.{place}.bias"]
    for name in ("head.safetensors", "head.pth"):
        score = Aesthetic(model=clip, head=str(tmp_path / name), divisor=2)(IMAGES, PROMPTS)
        assert torch.allclose(score, x[:, 0] / 2, **LOOSE)


def test_the_single_linear_head(clip, parts, tmp_path):
    weight, bias = torch.arange(8.0)[None], torch.tensor([3.0])
    save_file({"weight": weight, "bias": bias}, tmp_path / "head.safetensors")
    score = Aesthetic(model=clip, head=str(tmp_path / "head.safetensors"))(IMAGES, PROMPTS)
    assert torch.allclose(score, (parts[0] * torch.arange(8.0)).sum(1) + 3, **LOOSE)


def test_another_head_is_refused():
    with pytest.raises(ValueError, match=r"head.pth: expected the tensors layers.N.weight"):
        linear_head({"layers.0.weight": torch.zeros(1, 1)}, "head.pth")


def open_clip_state(model):
    """The weights of a transformers CLIP under open_clip's names, written down tower by tower."""
    own = model.state_dict()
    state = {
        "logit_scale": own["logit_scale"],
        "text_projection": own["text_projection.weight"].T,
        "visual.proj": own["visual_projection.weight"].T,
        "visual.class_embedding": own["vision_model.embeddings.class_embedding"],
        "visual.positional_embedding": own["vision_model.embeddings.position_embedding.weight"],
        "visual.conv1.weight": own["vision_model.embeddings.patch_embedding.weight"],
        "positional_embedding": own["text_model.embeddings.position_embedding.weight"],
        "token_embedding.weight": own["text_model.embeddings.token_embedding.weight"],
        "attn_mask": torch.zeros(1),
    }
    norms = {
        "visual.ln_pre": "vision_model.pre_layrnorm",
        "visual.ln_post": "vision_model.post_layernorm",
        "ln_final": "text_model.final_layer_norm",
    }
    for tower, layers in (("visual.", "vision_model"), ("", "text_model")):
        for i in range(2):
            there, here = f"{tower}transformer.resblocks.{i}", f"{layers}.encoder.layers.{i}"
            pairs = {"ln_1": "layer_norm1", "ln_2": "layer_norm2", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}
            norms |= {f"{there}.{a}": f"{here}.{b}" for a, b in pairs.items()}
            norms[f"{there}.attn.out_proj"] = f"{here}.self_attn.out_proj"
            for kind in ("weight", "bias"):
                stack = [own[f"{here}.self_attn.{part}_proj.{kind}"] for part in "qkv"]
                state[f"{there}.attn.in_proj_{kind}"] = torch.cat(stack)
    state |= {f"{a}.{kind}": own[f"{b}.{kind}"] for a, b in norms.items() for kind in ("weight", "bias")}
    return {name: value.clone() for name, value in state.items()}


def test_hpsv2_reads_the_open_clip_file(clip, tmp_path):
    from transformers import CLIPModel

    tuned = CLIPModel.from_pretrained(save_clip(tmp_path / "tuned", seed=9))
    assert set(to_transformers(open_clip_state(tuned))) == set(tuned.state_dict())
    torch.save({"epoch": 3, "state_dict": open_clip_state(tuned)}, tmp_path / "hps.pt")
    square = IMAGES[..., :40]
    found = HpsV2(model=clip, weights=str(tmp_path / "hps.pt"))(square, PROMPTS)
    # The tuned model's cosine; a square picture is neither cropped nor padded.
    expected = ClipScore(model=str(tmp_path / "tuned"), scale=1.0, prefix="").cosine(square, [p.text for p in PROMPTS])
    assert torch.allclose(found, expected, **LOOSE)


def test_hpsv2_without_its_weights_is_refused(clip, tmp_path):
    with pytest.raises(ValueError, match="expected weights, found none"):
        HpsV2(weights="")
    torch.save({"state_dict": {"visual.unknown": torch.zeros(1)}}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match=r"expected the weights of an open_clip CLIP, found 'visual.unknown'"):
        HpsV2(model=clip, weights=str(tmp_path / "other.pt"))(IMAGES, PROMPTS)


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        (PickScore(model="/nowhere/at/all"), "model: no folder /nowhere/at/all"),
        (PickScore(), "hf download yuvalkirstain/PickScore_v1 --local-dir FOLDER` and set model"),
    ],
)
def test_absent_weights_say_how_to_get_them(reward, message, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(FileNotFoundError, match=message):
        reward(IMAGES, PROMPTS)


def test_absent_files_say_how_to_get_them(clip):
    with pytest.raises(FileNotFoundError, match=r"weights: no file /nowhere.pt"):
        HpsV2(model=clip, weights="/nowhere.pt")(IMAGES, PROMPTS)
    with pytest.raises(FileNotFoundError, match=r"hf download trl-lib/ddpo-aesthetic-predictor aesthetic-model.pth"):
        Aesthetic(model=clip)(IMAGES, PROMPTS)


def test_torchvision_is_never_imported(clip):
    PickScore(model=clip)(IMAGES, PROMPTS)
    assert "torchvision" not in sys.modules
    assert Path(clip).is_dir()
