"""ImageReward on a random BLIP saved under the release's own names: arithmetic, batches, completeness."""

import pytest
import torch

from tasks.image.rewards import Prompt
from tasks.image.rewards.image_reward import ImageReward, _released
from tasks.image.rewards.pixels import Preprocessing
from tests.tasks.image.rewards.tiny_models import blip, save_bert_tokenizer

EXACT = {"rtol": 0.0, "atol": 1e-6}
LOOSE = {"rtol": 0.0, "atol": 1e-4}
IMAGES = torch.rand(4, 3, 32, 48, generator=torch.Generator().manual_seed(1))
PROMPTS = [Prompt(text=text) for text in ("a cat", "a photo of two red cat", "blue", "a cat")]


def release(model, head):
    """The names of the released file, from those of transformers."""
    back = {
        "vision_model.encoder.layers.": "vision_model.blocks.",
        "vision_model.post_layernorm.": "vision_model.norm.",
        "vision_model.embeddings.patch_embedding.": "vision_model.patch_embed.proj.",
        "vision_model.embeddings.position_embedding": "vision_model.pos_embed",
        "vision_model.embeddings.class_embedding": "vision_model.cls_token",
        ".self_attn.projection.": ".attn.proj.",
        ".self_attn.qkv.": ".attn.qkv.",
        ".layer_norm1.": ".norm1.",
        ".layer_norm2.": ".norm2.",
        "vision_model.": "blip.visual_encoder.",
        "text_encoder.": "blip.text_encoder.",
        "vision_proj": "blip.vision_proj",
        "text_proj": "blip.text_proj",
    }
    state = {}
    for name, value in model.state_dict().items():
        if name.startswith("itm_head"):
            continue
        for new, old in back.items():
            name = name.replace(new, old)
        state[name] = value.clone()
    return {**state, **{f"mlp.{name}": value for name, value in head.items()}}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("image_reward")
    model = blip()
    model.config.save_pretrained(folder)
    save_bert_tokenizer(folder)
    sizes, generator = {0: (16, 8), 2: (8, 6), 4: (6, 5), 6: (5, 4), 7: (4, 1)}, torch.Generator().manual_seed(3)
    head = {
        f"layers.{place}.{kind}": torch.randn(shape, generator=generator)
        for place, (wide, narrow) in sizes.items()
        for kind, shape in (("weight", (narrow, wide)), ("bias", (narrow,)))
    }
    torch.save(release(model, head), folder / "ImageReward.pt")
    settings = {"weights": str(folder / "ImageReward.pt"), "tokenizer": str(folder), "config": str(folder)}
    return settings, model, head


def test_score_by_the_classes_alone(saved):
    from transformers import AutoTokenizer

    settings, model, head = saved
    words = AutoTokenizer.from_pretrained(settings["tokenizer"])(
        [p.text for p in PROMPTS], padding="max_length", max_length=35, return_tensors="pt"
    )
    with torch.no_grad():
        seen = model.vision_model(pixel_values=Preprocessing(size=32)(IMAGES)).last_hidden_state
        x = model.text_encoder(
            input_ids=words["input_ids"], attention_mask=words["attention_mask"], encoder_hidden_states=seen
        ).last_hidden_state[:, 0]
    for place in (0, 2, 4, 6, 7):
        x = x @ head[f"layers.{place}.weight"].T + head[f"layers.{place}.bias"]
    # The raw score, centred and scaled by the release's constants.
    expected = (x[:, 0] - 0.16717362830052426) / 1.0333394966054072
    found = ImageReward(**settings)(IMAGES, PROMPTS)
    assert torch.allclose(found, expected, **LOOSE)
    # The first and the last have the same text and other pictures.
    assert abs(found[0] - found[3]) > 1e-3


def test_a_score_does_not_depend_on_the_batch(saved):
    whole = ImageReward(**saved[0])(IMAGES, PROMPTS)
    assert torch.allclose(whole, ImageReward(**saved[0], batch=1)(IMAGES, PROMPTS), **LOOSE)


def test_incomplete_weights_are_refused(saved, tmp_path):
    settings, model, head = saved
    state = release(model, head)
    del state["blip.visual_encoder.blocks.1.attn.qkv.weight"]
    torch.save(state, tmp_path / "part.pt")
    with pytest.raises(ValueError, match=r"missing \['vision_model.encoder.layers.1.self_attn.qkv.weight'\]"):
        ImageReward(**{**settings, "weights": str(tmp_path / "part.pt")})(IMAGES, PROMPTS)


def test_sizes_of_the_release():
    from transformers import BlipConfig

    config = _released(BlipConfig)
    # A ViT-L/16 of 224 pixels and BERT-base that looks at its 1024 channels.
    vision, text = config.vision_config, config.text_config
    assert (vision.hidden_size, vision.num_hidden_layers, vision.image_size, vision.patch_size) == (1024, 24, 224, 16)
    assert (text.hidden_size, text.num_hidden_layers, text.num_attention_heads) == (768, 12, 12)
    assert (text.encoder_hidden_size, text.vocab_size) == (1024, 30524)
