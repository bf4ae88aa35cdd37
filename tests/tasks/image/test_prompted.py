"""The task on a random Stable Diffusion 3: contract, errors, and every algorithm from the command line to export."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from rlflow.checkpoint import read_checkpoint
from rlflow.cli import app
from rlflow.config import ConfigError, resolve
from rlflow.random import Noise, generator
from rlflow.registry import entries
from rlflow.store import Store, ensure_experiment, history, search_runs
from rlflow.testing import TaskCheck, task_checks
from tasks.image import prompted
from tasks.image.pipelines.settings import JudgeSettings, ModelSettings, TrainedSettings
from tasks.image.prompted import Prompted
from tasks.image.rewards import open_rewards
from tests.tasks.image.tiny_task import FLOW, FROZEN, arguments, make, save_folder

pytest_plugins = ("tests.mlflow_fixtures",)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_folder(tmp_path_factory.mktemp("prompted"))


@pytest.fixture
def task(folder: Path) -> Prompted:
    return make(folder)


@pytest.mark.parametrize("check", task_checks(), ids=lambda check: check.__name__)
def test_conformance(check: TaskCheck, task: Prompted) -> None:
    assert check(task) is None


def roll(task: Prompted, requires: str = "log_prob", seed: int = 0, rows: tuple[int, ...] = (0, 1, 2)) -> Any:
    torch.manual_seed(0)
    policy = task.build_policy(frozenset(requires.split()))
    with torch.no_grad():
        return task.rollout(policy, torch.tensor(rows), Noise(generator=generator(seed)))


def test_noise_is_that_of_iteration_prompt_and_number(folder: Path) -> None:
    task = make(folder, flow=replace(FLOW, window_start=0))
    whole, part = roll(task, "log_prob elbo"), roll(task, "log_prob elbo", rows=(2, 0))
    # Prompts 0, 1, 2 twice each, against prompts 2, 0: the same rows wherever a prompt stands, also the noise of the
    # steps and of the probes.
    for name, leaf in part.action.items():
        assert torch.equal(leaf, whole.action[name][[4, 5, 0, 1]]), name
    first = roll(task).action["latents"][:, 0, 0]
    assert (first[0] - first[1]).abs().max() > 0.1
    assert not torch.equal(roll(task, seed=1).action["latents"][:, 0, 0], first)
    task.group_noise = "shared"
    shared = roll(task).action["latents"][:, 0, 0].view(3, 2, -1)
    assert torch.equal(shared[:, 0], shared[:, 1])
    assert not torch.equal(shared[0], shared[1])
    steps = roll(task).action["latents"][:, 0, 1].view(3, 2, -1)
    assert (steps[:, 0] - steps[:, 1]).abs().amax(1).min() > 0.1


def test_reward_is_that_of_the_decoded_image(task: Prompted) -> None:
    scored = task.score(roll(task))
    images = task._embeddings.adapter.decode(scored.action["sample"][:, 0], 2)
    assert images.shape == (6, 3, 16, 16)
    # Bytes of a JPEG file in thousands, negative; a picture of 16 pixels has a few hundred.
    assert bool(((scored.reward < -0.3) & (scored.reward > -1.5)).all())
    assert torch.equal(scored.reward[:, 0], scored.reward_terms["jpeg_compressibility"])
    scored.action["sample"][1] = torch.nan
    assert bool(torch.isnan(task.score(scored).reward).all())


def test_evaluation_uses_its_own_guidance_and_fixed_noise(folder: Path, tmp_path: Path) -> None:
    held_out = {"jpeg_compressibility": 2.0, "size": {"reward": "jpeg_incompressibility", "held_out": True}}
    task = make(folder, rewards=held_out)
    policy = task.build_policy(frozenset({"log_prob"}))
    results = [task.evaluate(policy, Noise(generator=generator(seed))) for seed in (0, 1)]
    assert results[0].items == results[1].items
    metrics, items = results[0].metrics, results[0].items
    # Weight 2 of the trained reward; the held-out one is its negative and has no part in the score.
    assert metrics["score"] == pytest.approx(2 * metrics["jpeg_compressibility"])
    assert metrics["size"] == pytest.approx(-metrics["jpeg_compressibility"])
    assert [item["prompt"] for item in items] == [FROZEN[0], FROZEN[0], FROZEN[1], FROZEN[1]]
    assert items[0]["score"] != items[1]["score"]
    assert set(items[0]) == {"item", "prompt", "kind", "seed", "score", "jpeg_compressibility", "size"}
    other = make(folder, judge=replace(task.judge, guidance=1.0), rewards=held_out)
    assert other.evaluate(policy, Noise(generator=generator(0))).metrics["score"] != metrics["score"]
    assert policy.actor.guidance == 1.0
    results[0].files["images.png"](tmp_path / "images.png")
    assert (tmp_path / "images.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_prompts_over_the_limit_are_refused_or_counted(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "long.txt").write_text("a cat\n" + "very " * 10 + "long\nb")
    task = make(folder, prompts=str(tmp_path / "long.txt"))
    with pytest.raises(ValueError, match=r"1 of 5 prompts have more than model\.max_tokens = 24 tokens"):
        task.build_policy(frozenset())
    task = make(folder, prompts=str(tmp_path / "long.txt"), overlong="truncate")
    assert roll(task).metrics["overlong_prompts"] == 1.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows_per_pass": 4}, "expected a divisor of groups_per_rollout .* = 6, found 4"),
        ({"rows_per_pass": 0}, "expected a divisor"),
        ({"model": ModelSettings(cached_prompts=2)}, "expected at least groups_per_rollout = 3, found 2"),
        ({"trained": TrainedSettings(lora_rank=0), "model": ModelSettings()}, "training in full needs float32"),
        ({"anchor_base": 1.0}, "expected another score"),
    ],
)
def test_bad_sizes_are_refused(folder: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(folder, **change)
    for build in (lambda: TrainedSettings(lora_rank=-1), lambda: JudgeSettings(num_prompts=0)):
        with pytest.raises(ValueError, match="expected"):
            build()


def test_prompts_that_are_missing_or_trained_on_are_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"task\.prompts: expected geneval"):
        make(folder, prompts="").starts()
    with pytest.raises(ValueError, match=r"4 of 4 evaluation prompts are trained on, the first is 'a cat'"):
        make(folder, judge=JudgeSettings(prompts=str(folder / "train.txt"))).evaluation_starts()


def test_group_sizes_that_do_not_fit_are_refused_before_any_work() -> None:
    sizes = ["task.groups_per_rollout=3", "task.group_size=2", "task.rows_per_pass=3"]
    with pytest.raises(ConfigError, match=r"rows per rollout = 6 is not divisible by .* = 4"):
        resolve("flow_grpo", "image/prompted", [*sizes, "update.updates_per_rollout=4"])


def test_a_configuration_is_resolved_without_the_libraries() -> None:
    script = (
        "import sys; from rlflow.config import resolve; resolve('flow_grpo', 'image/prompted');"
        "print([name for name in ('diffusers', 'transformers', 'peft') if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_rewards_are_a_free_mapping_and_other_settings_are_not() -> None:
    layer = {"task": {"rewards": {"jpeg_compressibility": 1.0}}}
    words = ["task.rewards.clip_score.held_out=true", "task.rewards.ocr=0.5"]
    config = resolve("flow_grpo", "image/prompted", words, [layer])
    assert config.task.rewards == {"jpeg_compressibility": 1.0, "clip_score": {"held_out": True}, "ocr": 0.5}
    with pytest.raises(ConfigError, match=r"unknown key .task\.model\.pth.; did you mean task\.model\.path"):
        resolve("flow_grpo", "image/prompted", ["task.model.pth=x"])


def run(*words: str) -> str:
    result = CliRunner().invoke(app, list(words))
    assert result.exit_code == 0, result.output
    return result.output


def test_train_sample_and_export_to_diffusers(store: Store, folder: Path, tmp_path: Path) -> None:
    results = ["--results", str(store.lock_path.parent)]
    words = arguments(folder, "flow_grpo", tmp_path / "run", "trainer.budget=16", "algorithm.beta=0.04")
    assert "finished" in run(*words, *results)
    (seed,) = search_runs(store, ensure_experiment(store, "train@1"), {"kind": "seed"})

    def curve(name: str) -> list[float]:
        return [point.value for point in history(store, seed.info.run_id, name)]

    # Two iterations of 8 images; the replay has the sampler's bits, so that the first ratio is exactly 1.
    assert curve("update/first_ratio_error") == [0.0, 0.0]
    assert len(curve("eval/score")) == 2
    assert curve("eval/score")[0] != curve("eval/score")[1]
    assert all(value < 0 for value in curve("reward/jpeg_compressibility"))
    run("export", str(tmp_path / "run"), "--out", str(tmp_path / "exported"))
    lora = tmp_path / "exported" / "pytorch_lora_weights.safetensors"
    # 17 thousand trained numbers at most, not the model.
    assert lora.stat().st_size < 100_000
    # Taken along is the average of the weights, which is not what the last update left.
    exported, state = list(load_file(lora).values()), read_checkpoint(tmp_path / "run" / "last.ckpt")
    averaged, last = state["rlflow"]["averaged"], state["state_dict"].values()
    assert len(averaged) == len(exported) > 10
    assert all(any(torch.equal(a, e) for e in exported) for a in averaged)
    assert not all(any(torch.equal(a, e) for e in last) for a in averaged)
    output = run("sample", str(tmp_path / "run"), "--out", str(tmp_path / "samples"))
    assert "images.png" in output
    # An evaluation afterwards leaves what that of training left, byte for byte, and its record.
    run("eval", str(tmp_path / "run"), "--track", *results)
    kept, judged = (tmp_path / "run" / name / "000000016" for name in ("samples", "evaluations"))
    names = {"images.png", "base_and_trained.png", "generation.json", "by_kind.csv", "per_item.csv"}
    assert {path.name for path in kept.iterdir()} == names
    assert {path.name for path in judged.iterdir()} == names | {"evaluation.json"}
    assert all((judged / name).read_bytes() == (kept / name).read_bytes() for name in names)
    # Both runs have the files in MLflow, and their metrics are the same to the last digit.
    (later,) = search_runs(store, ensure_experiment(store, "eval@1"), {"kind": "evaluation"})
    place = "samples/000000016"
    for found, more in ((seed, set()), (later, {"evaluation.json"})):
        logged = {Path(f.path).name for f in store.client.list_artifacts(found.info.run_id, place)}
        assert logged == names - {"per_item.csv"} | more
        assert [f.path for f in store.client.list_artifacts(found.info.run_id, "eval")] == ["eval/per_item.csv"]
    metrics = {name: value for name, value in later.data.metrics.items() if name.startswith("eval/")}
    assert metrics == {name: curve(name)[-1] for name in metrics}
    assert {"eval/score", "eval/jpeg_compressibility"} <= set(metrics)
    # The example of the page, at this model's size.
    page = (Path(prompted.__file__).parents[2] / "docs" / "image.md").read_text()
    example = page.partition("```python\n")[2].partition("```")[0]
    for written, meant in (
        ("stabilityai/stable-diffusion-3.5-medium", str(folder / "model")), ("exported", str(lora.parent)),
        ("image.png", str(tmp_path / "image.png")), ("512", "16"), (".to(\"cuda\")", ""), ("bfloat16", "float32"),
    ):  # fmt: skip
        assert written in example
        example = example.replace(written, meant)
    exec(example, {})
    assert (tmp_path / "image.png").exists()


@pytest.mark.parametrize(
    "words",
    [
        ["surrogate.ratio_norm=true", "surrogate.step_weight=inverse_dt", "clip_low=1e-4", "clip_high=1e-4"],
        ["surrogate.trust_region=divergence", "surrogate.divergence_limit=1e-5"],
        ["beta=0.01", "task.flow.kl=velocity", "task.flow.sde=dance", "task.flow.noise_level=0.3"],
        ["beta=0.01", "task.flow.kl=latent", "task.flow.sde=cps", "task.flow.grid=linspace_shift", "task.flow.shift=3"],
        ["task.flow.window_place=random", "task.guidance=3", "task.normalise=per_reward", "task.group_noise=shared"],
    ],
    ids=lambda words: words[0],
)
def test_options_of_the_sampler_and_of_flow_grpo(store: Store, folder: Path, tmp_path: Path, words: list[str]) -> None:
    results = ["--results", str(store.lock_path.parent)]
    given = [word if word.startswith("task.") else f"algorithm.{word}" for word in words]
    # A step large enough for the size of a JPEG, which is a whole number of bytes, to tell.
    run(*arguments(folder, "flow_grpo", tmp_path / "run", "trainer.budget=8", "update.lr=0.01", *given), *results)
    (seed,) = search_runs(store, ensure_experiment(store, "train@1"), {"kind": "seed"})
    (error,) = history(store, seed.info.run_id, "update/first_ratio_error")
    assert error.value == 0.0
    first, last = history(store, seed.info.run_id, "eval/score")
    assert first.value != last.value


@pytest.mark.parametrize(
    ("algorithm", "rank"), [("fpo", 2), ("ppo", 2), ("flowrl", 2), ("reinforce_pp", 2), ("fpo", 0)]
)
def test_every_algorithm_trains(store: Store, folder: Path, tmp_path: Path, algorithm: str, rank: int) -> None:
    results = ["--results", str(store.lock_path.parent)]
    words = arguments(folder, algorithm, tmp_path / "run", "trainer.budget=8", f"task.trained.lora_rank={rank}")
    assert "finished" in run(*words, *results)
    (seed,) = search_runs(store, ensure_experiment(store, "train@1"), {"kind": "seed"})
    errors = [p.value for p in history(store, seed.info.run_id, "update/first_ratio_error")]
    assert errors in ([], [0.0])
    if rank == 0:
        run("export", str(tmp_path / "run"), "--out", str(tmp_path / "exported"))
        files = {path.name for path in (tmp_path / "exported" / "transformer").iterdir()}
        assert files == {"config.json", "diffusion_pytorch_model.safetensors"}


ALGORITHMS = ("flow_grpo", "fpo", "flowrl", "ppo", "reinforce_pp")
PRESETS = {name for name, entry in entries("task").items() if entry.target == "tasks.image.prompted:Prompted"}


def test_every_preset_is_a_task_of_its_own() -> None:
    folder = Path(prompted.__file__).parent / "presets"
    of_models = {f"image/{path.stem}" for path in folder.glob("*.yaml")} - {
        "image/shapes",
        "image/shapes_sharp",
        "image/text",
    }
    assert of_models == PRESETS
    assert len(PRESETS) == 6


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_presets_are_parsed(name: str) -> None:
    for algorithm in ALGORITHMS:
        config = resolve(algorithm, name)
        task, update = config.task, config.update
        assert isinstance(task, Prompted)
        assert task.name == name
        assert update.micro_batch % task.rows_per_pass == 0
        # Optimiser batches of each device are whole micro-batches.
        rows = task.rows_per_rollout // config.trainer.devices // (update.updates_per_rollout // update.epochs)
        assert rows % update.micro_batch == 0
    if name != "image/prompted":
        assert task.model.path
        open_rewards(task.rewards, task.normalise).close()
        header = (Path(prompted.__file__).parent / "presets" / f"{name.partition('/')[2]}.yaml").read_text()
        assert "Not run here" in header
        # The command of the header is a command.
        command = next(line for line in header.splitlines() if "rlflow train" in line).split()
        resolve(command[3], command[4], command[5:])
        assert command[4] == name
