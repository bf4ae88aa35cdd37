"""The task against the contract, on a random network of a few thousand weights; the shipped base where it matters."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from rlflow.config import resolve
from rlflow.policies.flow_config import FlowConfig
from rlflow.random import Noise, generator
from rlflow.testing import TaskCheck, task_checks
from tasks.image.networks import ShapesNet, ShapesNetConfig, load_network
from tasks.image.pretrain import save_base
from tasks.image.prompts import KIND_WEIGHTS, KINDS, catalogue
from tasks.image.renderer import render
from tasks.image.shapes import BASE_FOLDER, BASE_STRICT, Shapes, training_starts

EXACT = {"rtol": 0.0, "atol": 1e-6}
FLOW = FlowConfig(
    train_steps=4, eval_steps=2, sde="cps", noise_level=0.8, window=2, reduction="sqrt_d", num_probes=2, kl="velocity"
)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("base")
    torch.manual_seed(0)
    network = ShapesNet(ShapesNetConfig(channels=(8, 16, 16), token_dim=8, condition_dim=16))
    torch.nn.init.normal_(network.head.weight, std=0.1)
    save_base(folder, network, {"seed": 0}, {})
    return str(folder)


@pytest.fixture
def task(base: str) -> Shapes:
    return Shapes(base=base, groups_per_rollout=3, group_size=4, evaluation_groups=2, flow=FLOW)


def _rollout(task: Shapes, requires: frozenset[str] = frozenset({"log_prob"}), seed: int = 0) -> object:
    policy = task.build_policy(requires)
    starts = torch.tensor(task.starts()[: task.groups_per_rollout])
    with torch.no_grad():
        return task.rollout(policy, starts, Noise(generator=generator(seed)))


@pytest.mark.parametrize("check", task_checks(), ids=lambda check: check.__name__)
def test_conformance(check: TaskCheck, task: Shapes) -> None:
    assert check(task) is None


def test_starts_keep_the_split_and_the_mix() -> None:
    starts = [catalogue()[row] for row in training_starts()]
    assert not any(prompt.held_out for prompt in starts)
    assert {k: sum(p.kind == k for p in starts) for k in KINDS} == {k: round(1000 * w) for k, w in KIND_WEIGHTS.items()}
    # Every training prompt comes up: 432 prompts less the 105 held out (3 + 6 + 14 + 18 + 64).
    assert len(set(training_starts())) == 327


def test_group_noise(task: Shapes) -> None:
    task.flow = replace(FLOW, window_start=1)
    for kind, equal in (("shared", True), ("independent", False)):
        task.group_noise = kind
        first = _rollout(task).action["latents"][:, 0, 0].view(3, 4, -1)
        # One deterministic step after the start: equal within a group exactly if the start was shared.
        assert bool((first[:, :1] - first).abs().max() < 1e-5) is equal
        assert (first[0] - first[1]).abs().max() > 0.1


def test_reward_is_the_weighted_verdict(task: Shapes) -> None:
    rollout = _rollout(task)
    prompts = rollout.extras["prompts"]
    rollout.action["sample"][:, 0] = render(prompts, torch.Generator().manual_seed(0))
    rollout.action["sample"][0, 0] = 0.0
    task.strict_weight, task.soft_weight = 0.7, 0.2
    scored = task.score(rollout)
    # Clean renders earn .7 + .2; the grey image shows nothing but dirt and earns 0.
    assert torch.allclose(scored.reward[:, 0], torch.tensor([0.0] + [0.9] * 11), **EXACT)
    assert set(scored.reward_terms) == {"strict", "soft"}
    # Clean renders have quality 1 and the grey image almost none: 11/12 = .917.
    assert 0.91 < scored.metrics["quality"] < 0.93


def test_broken_images_stop_the_loop(task: Shapes) -> None:
    rollout = _rollout(task)
    rollout.action["sample"][3] = math.nan
    reward = task.score(rollout).reward
    assert torch.isnan(reward).nonzero().tolist() == [[3, 0]]


def test_within_group_variance_by_hand(task: Shapes) -> None:
    rollout = _rollout(task)
    rollout.extras["prompts"] = rollout.extras["prompts"][:1].repeat(12)
    clean = render(rollout.extras["prompts"], torch.Generator().manual_seed(0))
    blank = torch.full_like(clean, -0.8)
    good = torch.tensor([1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0], dtype=torch.bool)
    rollout.action["sample"][:, 0] = torch.where(good[:, None, None, None], clean, blank)
    # Groups of 4: (1111)(1100)(0000). Total variance .25; within: (0 + .25 + 0)/3; share 1/3.
    assert math.isclose(task.score(rollout).metrics["within_group_variance"], 1 / 3, abs_tol=1e-5)


def test_heads_exist_only_when_asked_for(task: Shapes) -> None:
    plain, full = (
        task.build_policy(frozenset({"log_prob"})),
        task.build_policy(frozenset({"elbo", "value", "partition"})),
    )
    assert set(plain.parameter_groups()) == {"actor"}
    assert set(full.parameter_groups()) == {"actor", "critic", "partition"}
    rollout = _rollout(task, frozenset({"elbo", "value", "partition"}))
    assert full.value(rollout).shape == (12, 1)
    assert full.log_partition(rollout).shape == (12, 1)


def test_evaluation_reports_kinds_guards_and_files(task: Shapes, tmp_path: Path) -> None:
    task.evaluation_groups = 8
    result = task.evaluate(task.build_policy(frozenset({"log_prob"})), Noise(generator=generator(0)))
    # The first 8 of 128 groups hold every kind but not each equally: 3 position, 2 count and 1 of each other.
    assert {f"accuracy_{kind}" for kind in KINDS} <= set(result.metrics)
    assert {"score", "soft", "quality", "layout_diversity", "failure_binding"} <= set(result.metrics)
    assert len(result.items) == 64
    assert set(result.items[0]) == {"item", "kind", "caption", "strict", "soft", "failure", "quality"}
    path = tmp_path / "images.png"
    result.files["images.png"](path)
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


@pytest.mark.parametrize("solver", ["euler", "sde"])
def test_the_base_stays_beside_what_was_trained(task: Shapes, tmp_path: Path, solver: str) -> None:
    task.flow = replace(FLOW, eval_solver=solver)
    policy = task.build_policy(frozenset({"log_prob"}))

    def halves() -> tuple[torch.Tensor, torch.Tensor]:
        sheet = task.evaluate(policy, Noise(generator=generator(0))).files["base_and_trained.png"]
        assert sheet.names[:2] == ["base", "trained"]
        assert sheet.captions[0] == sheet.captions[1] == catalogue()[int(task.evaluation_starts()[0])].caption
        sheet(tmp_path / "sheet.png")
        return sheet.images[::2], sheet.images[1::2]

    state = torch.get_rng_state()
    before, after = halves()
    assert torch.equal(torch.get_rng_state(), state)
    # All 16 images of two groups. Batches of other sizes may round in another way.
    assert len(before) == 16
    assert torch.allclose(before, after, rtol=0.0, atol=1e-4)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter += 0.1
    again, trained = halves()
    assert torch.equal(again, before)
    assert (trained - before).abs().max() > 0.01


def test_what_made_the_pictures_is_written_down(task: Shapes, tmp_path: Path) -> None:
    writer = task.evaluate(task.build_policy(frozenset()), Noise(generator=generator(0))).files["generation.json"]
    writer(tmp_path / "generation.json")
    found = json.loads((tmp_path / "generation.json").read_text())
    assert (found["steps"], found["times"], found["solver"]) == (2, [1.0, 0.5, 0.0], "euler")
    assert (found["num_prompts"], found["images_per_prompt"], found["image_shape"]) == (2, 8, [3, 16, 16])
    assert found["revision"] == task.revision


def test_failure_shares_and_score_add_up(task: Shapes) -> None:
    metrics = task.evaluate(task.build_policy(frozenset({"log_prob"})), Noise(generator=generator(0))).metrics
    failures = sum(value for name, value in metrics.items() if name.startswith("failure_"))
    assert math.isclose(metrics["score"] + failures, 1.0, abs_tol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"evaluation_groups": 0}, "evaluation_groups: expected 1-128"),
        ({"evaluation_groups": 129}, "evaluation_groups: expected 1-128"),
        ({"strict_weight": 0.0, "soft_weight": 0.0}, "not both 0"),
        ({"strict_weight": -1.0}, "expected >= 0"),
    ],
)
def test_bad_sizes_are_refused(change: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Shapes(**change)


def test_missing_base_is_refused(task: Shapes, tmp_path: Path) -> None:
    task.base = str(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="no pretrained network"):
        task.build_policy(frozenset())


@pytest.mark.parametrize("algorithm", ["flow_grpo", "fpo", "flowrl", "ppo", "reinforce_pp"])
def test_preset_resolves_for_every_algorithm(algorithm: str) -> None:
    config = resolve(algorithm, "image/shapes")
    assert config.task.samples_per_rollout == 160
    assert config.trainer.budget % 160 == 0


def test_shipped_base_scores_near_its_anchor() -> None:
    task = Shapes(evaluation_groups=16, flow=replace(FLOW, eval_steps=10))
    score = task.evaluate(task.build_policy(frozenset()), Noise(generator=generator(0))).metrics["score"]
    # 128 images at 10 steps instead of 1,024 at 20: a standard error of .044 and a bias of a few points.
    assert abs(score - BASE_STRICT) < 0.2
    assert load_network(BASE_FOLDER).config == ShapesNetConfig()


def test_an_evaluation_by_the_sde_draws_the_same_noise_every_time() -> None:
    task = Shapes(evaluation_groups=2, flow=replace(FLOW, eval_steps=4, eval_solver="sde"))
    policy = task.build_policy(frozenset())
    images = [task.evaluate(policy, Noise(generator=generator(seed))) for seed in (0, 1)]
    assert images[0].items == images[1].items
    assert images[0].metrics == images[1].metrics
