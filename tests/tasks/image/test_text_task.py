"""The task against the contract with the real engine: what is read, what it earns, what is reported."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("rapidocr", reason="the extra `ocr` is not installed")

from rlflow.config import resolve
from rlflow.policies.flow_config import FlowConfig
from rlflow.random import Noise, generator
from rlflow.testing import TaskCheck, task_checks
from tasks.image import text_pretrain
from tasks.image.networks import ShapesNet, ShapesNetConfig, load_network
from tasks.image.pretrain import PretrainConfig, save_base
from tasks.image.text import BASE_FOLDER, BASE_STRICT, TextImages, training_starts
from tasks.image.text_pretrain import pretrain_text
from tasks.image.text_reader import FAILURES, judge, quality
from tasks.image.text_report import evaluation, layout_diversity
from tasks.image.text_words import catalogue, evaluation_words, held_out, render

EXACT = {"rtol": 0.0, "atol": 1e-6}
LOOSE = {"rtol": 0.0, "atol": 1e-3}
SMALL = ShapesNetConfig(
    channels=(8, 16, 16),
    token_dim=8,
    condition_dim=16,
    caption_length=4,
    vocabulary_size=9,
    image_channels=1,
    size=(12, 28),
)
FLOW = FlowConfig(
    train_steps=4, eval_steps=2, sde="cps", noise_level=0.8, window=2, reduction="sqrt_d", num_probes=2, kl="velocity"
)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("base")
    torch.manual_seed(0)
    network = ShapesNet(SMALL)
    torch.nn.init.normal_(network.head.weight, std=0.1)
    save_base(folder, network, {"seed": 0}, {})
    return str(folder)


@pytest.fixture
def task(base: str) -> TextImages:
    return TextImages(base=base, groups_per_rollout=3, group_size=4, evaluation_groups=2, flow=FLOW)


@pytest.mark.parametrize("check", task_checks(), ids=lambda check: check.__name__)
def test_conformance(check: TaskCheck, task: TextImages) -> None:
    assert check(task) is None


def test_the_engine_reads_clean_renders() -> None:
    rows = torch.arange(0, 1024, 8)
    images = render(rows, torch.Generator().manual_seed(3))
    verdict = judge(images, rows)
    # All 1,024 words were read in every position tried; the issue asks for 95 %.
    assert verdict.strict.float().mean() > 0.98
    assert torch.allclose(quality(images, verdict.texts)[verdict.strict], torch.tensor(1.0), **EXACT)


def row_of(word: str) -> int:
    return catalogue().index(word)


def test_verdicts_by_hand() -> None:
    longer = next(w for w in catalogue() if len(w) == 4)
    three = longer[:3]
    other = next(w for w in catalogue() if len(w) == 3 and w[:2] == three[:2] and w != three)
    shown = torch.tensor([row_of(w) for w in (three, longer, three, other)])
    asked = torch.tensor([row_of(w) for w in (three, three, longer, three)])
    images = render(shown, torch.Generator().manual_seed(0))
    verdict = judge(images, asked)
    assert verdict.texts == (three, longer, three, other)
    assert [FAILURES[code] for code in verdict.failure.tolist()] == ["none", "extra", "missing", "letters"]
    # One letter too many of 3, one of 4 missing, one of 3 wrong.
    assert torch.allclose(verdict.soft, torch.tensor([1.0, 2 / 3, 3 / 4, 2 / 3]), **EXACT)
    assert verdict.strict.tolist() == [True, False, False, False]


def test_blank_and_broken_pictures() -> None:
    rows = torch.tensor([0, 0, 0])
    images = torch.stack([torch.ones(1, 12, 28), torch.full((1, 12, 28), math.nan), torch.full((1, 12, 28), 9.0)])
    verdict = judge(images, rows)
    assert [FAILURES[code] for code in verdict.failure.tolist()] == ["unread", "invalid", "invalid"]
    assert verdict.soft.tolist() == [0.0, 0.0, 0.0]
    # An empty sheet is the clean redrawing of nothing.
    assert torch.allclose(quality(images[:1], ("",)), torch.ones(1), **EXACT)


def test_quality_by_hand() -> None:
    image = render(torch.tensor([5]), torch.Generator().manual_seed(0))
    word = (catalogue()[5],)
    image[0, 0, 0, :3] = -1.0
    # Three specks of 336 pixels, each wrong by 1: rms sqrt(3/336).
    assert torch.allclose(quality(image, word), torch.tensor([math.exp(-math.sqrt(3 / 336) / 0.1)]), **LOOSE)
    # Greyer paper everywhere lowers it; a text of foreign letters is compared with an empty sheet.
    assert quality(image * 0.8, word) < quality(image, word)
    assert quality(image, ("日本",)) < 0.2


def test_layout_diversity_by_hand() -> None:
    images = torch.ones(4, 1, 12, 28)
    images[0, 0, 0, :4] = images[1, 0, 0, 2:6] = images[2:, 0, 5, 5] = -1.0
    # Two of six pixels shared: 1 - 2/6; the second pair is equal.
    assert torch.allclose(layout_diversity(images, 2), torch.tensor([2 / 3, 0.0]), **EXACT)


def test_reward_is_the_weighted_verdict(task: TextImages) -> None:
    policy = task.build_policy(frozenset({"log_prob"}))
    starts = torch.tensor(task.starts()[:3])
    with torch.no_grad():
        rollout = task.rollout(policy, starts, Noise(generator=generator(0)))
    rollout.action["sample"][:, 0] = render(rollout.extras["prompts"], torch.Generator().manual_seed(0))
    rollout.action["sample"][0, 0] = 1.0
    rollout.action["sample"][1, 0] = math.nan
    task.strict_weight, task.soft_weight = 0.7, 0.2
    scored = task.score(rollout)
    # The blank sheet earns 0, the broken one stops the loop, clean renders earn .7 + .2.
    assert scored.reward[0, 0] == 0.0
    assert bool(scored.reward[1, 0].isnan())
    assert torch.allclose(scored.reward[2:, 0], torch.full((10,), 0.9), **EXACT)
    assert set(scored.reward_terms) == {"strict", "soft"}
    assert {"quality", "layout_diversity", "within_group_variance"} <= set(scored.metrics)


def test_starts_are_not_held_out() -> None:
    assert len(training_starts()) == 1024 - 192
    assert not bool(held_out()[list(training_starts())].any())


def test_evaluation_reports_lengths_guards_and_files(tmp_path: Path) -> None:
    rows = evaluation_words()[:4].repeat_interleave(8)
    result = evaluation(render(rows, torch.Generator().manual_seed(0)), rows)
    assert result.metrics["score"] > 0.9
    assert {"soft", "quality", "quality_correct", "layout_diversity"} <= set(result.metrics)
    assert {"accuracy_3_letters", "accuracy_4_letters", "failure_unread"} <= set(result.metrics)
    failures = sum(value for name, value in result.metrics.items() if name.startswith("failure_"))
    assert math.isclose(result.metrics["score"] + failures, 1.0, abs_tol=1e-6)
    assert set(result.items[0]) == {"item", "kind", "word", "read", "strict", "soft", "failure", "quality"}
    path = tmp_path / "images.png"
    result.files["images.png"](path)
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_pretraining_is_a_function_of_the_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_pretrain, "EVAL_STEPS", 1)
    monkeypatch.setattr(text_pretrain, "evaluation_words", lambda: evaluation_words()[:2])
    tiny = PretrainConfig(steps=2, batch=2, log_every=0)
    scores = [pretrain_text(tmp_path / str(i), 0, tiny) for i in range(2)]
    weights = [(tmp_path / str(i) / "model.safetensors").read_bytes() for i in range(2)]
    assert weights[0] == weights[1]
    assert scores[0] == scores[1]
    assert set(scores[0]) == {"strict", "soft", "quality", "strict/3_letters", "strict/4_letters"}


@pytest.mark.parametrize("algorithm", ["flow_grpo", "fpo", "flowrl", "ppo", "reinforce_pp"])
def test_preset_resolves_for_every_algorithm(algorithm: str) -> None:
    config = resolve(algorithm, "image/text")
    assert config.task.samples_per_rollout == 160
    assert config.trainer.budget % 160 == 0


def test_shipped_base_scores_near_its_anchor() -> None:
    task = TextImages(evaluation_groups=16, flow=replace(FLOW, eval_steps=20))
    with torch.no_grad():  # as in training; the graph of 20 steps would take gigabytes
        score = task.evaluate(task.build_policy(frozenset()), Noise(generator=generator(0))).metrics["score"]
    # 128 images instead of 1,024: a standard error of .042.
    assert abs(score - BASE_STRICT) < 0.2
    assert load_network(BASE_FOLDER, task.name).config == text_pretrain.NETWORK
