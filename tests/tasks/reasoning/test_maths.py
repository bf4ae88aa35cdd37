from __future__ import annotations

import json
import string
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from rlflow.config import ConfigError, resolve
from rlflow.policies.causal_lm import LMConfig
from rlflow.random import Noise, generator
from rlflow.rollout import Rollout
from rlflow.testing import TaskCheck, task_checks
from tasks.reasoning.character_model import EOS, PAD_ID, character_config, character_tokenizer, fresh_model
from tasks.reasoning.maths import Maths
from tasks.reasoning.verdict import Completion

EXACT = 1e-12
CHARACTERS = "".join(c for c in string.printable if c not in "\t\r\x0b\x0c")
TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
TRAINING = [
    {"question": f"What is {i} + 1?", "answer": f"{i} + 1 = <<{i}+1={i + 1}>>\n#### {i + 1}"} for i in range(12)
]
HELD_OUT = [{"question": f"What is {i} * 2?", "answer": f"#### {2 * i}"} for i in range(5)]


def save_base(folder: Path, *, template: str | None = TEMPLATE, llama: bool = False) -> Path:
    tokenizer = character_tokenizer(CHARACTERS)
    tokenizer.chat_template = template
    config = character_config(CHARACTERS, hidden_size=32, num_layers=1, intermediate_size=32, max_positions=512)
    if llama:
        from transformers import LlamaConfig, LlamaForCausalLM

        sizes = {name: getattr(config, name) for name in ("vocab_size", "hidden_size", "num_hidden_layers")}
        torch.manual_seed(0)
        model = LlamaForCausalLM(
            LlamaConfig(**sizes, num_attention_heads=1, num_key_value_heads=1, intermediate_size=32, eos_token_id=2)
        )
    else:
        model = fresh_model(config, seed=0)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("data")
    write_lines(folder / "train.jsonl", TRAINING)
    write_lines(folder / "test.jsonl", HELD_OUT)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datasets.config.HF_DATASETS_CACHE", folder / "cache")
        yield folder


def small(model: Path, folder: Path, **values: Any) -> Maths:
    settings: dict[str, Any] = {
        "base": str(model),
        "data": str(folder),
        "evaluation": (f"gsm8k:{folder}",),
        "groups_per_rollout": 2,
        "group_size": 2,
        "evaluation_samples": 2,
        "evaluation_prompts": 2,
        "lm": LMConfig(max_new_tokens=6),
        "verify_workers": 1,
    }
    return Maths(**(settings | values))


def noise() -> Noise:
    return Noise(generator=generator(0, "test"))


def written(task: Maths, starts: list[int], completions: list[str]) -> Rollout:
    """A rollout whose completions are given as text; `~` is the end of sequence."""
    tokenizer = task.checkpoint.tokenizer
    rows = [tokenizer(t.replace("~", EOS), add_special_tokens=False)["input_ids"] for t in completions]
    width = max(map(len, rows))
    mask = torch.arange(width) < torch.tensor(list(map(len, rows)))[:, None]
    return Rollout(
        context={},
        action={"token": torch.tensor([row + [PAD_ID] * (width - len(row)) for row in rows])},
        mask=mask,
        group=torch.tensor(starts),
        reward=torch.zeros(mask.shape),
        terminated=torch.zeros_like(mask),
        boundary=torch.zeros_like(mask),
        extras={"problems": [task.training_problem(start) for start in starts]},
    )


@pytest.mark.parametrize("check", task_checks(), ids=lambda check: check.__name__)
def test_conformance(check: TaskCheck, base: Path, folder: Path) -> None:
    check(small(base, folder))


def test_reward_and_failures_by_hand(base: Path, folder: Path) -> None:
    task = small(base, folder, verify_timeout_s=1.0)
    # Problem 1 asks for 1 + 1.
    texts = [r"so \boxed{2}~", r"\boxed{3}~", "2~", r"\boxed{2}", r"\boxed{9^{9^{9^{9}}}}~", r"\boxed{\frac{4}{2}}~"]
    scored = task.score(written(task, [1] * 6, texts))
    assert scored.reward.sum(1).tolist() == [1.0, 0.0, 0.0, 0.0, 0.0, 1.0]
    # 12 characters and the end
    assert scored.reward[0, 12] == 1.0
    failures = {name: x.nonzero().flatten().tolist() for name, x in scored.reward_terms.items()}
    assert failures == {
        "correct": [0, 5], "failure_wrong": [1], "failure_unparseable": [2], "failure_unfinished": [3],
        "failure_timeout": [4], "failure_crashed": [],
    }  # fmt: skip
    task.close()


def test_without_a_box_the_last_number_counts_if_wanted(base: Path, folder: Path) -> None:
    task = small(base, folder, boxed=False)
    answer = Completion(text="it is 2", finished=True, num_tokens=8)
    assert task.verify([task.training_problem(1)], [answer])[0].correct
    task.close()


def test_prompts_are_conversations_by_the_template(base: Path, folder: Path) -> None:
    task = small(base, folder, system="Be brief.", instruction="Box it.")
    token, mask = task.encode([task.training_problem(3)])
    # The template brings its own begin: no <bos> is put in front of it.
    assert task.checkpoint.tokenizer.decode(token[0]) == "[system]Be brief.[user]What is 3 + 1?\n\nBox it.[assistant]"
    assert mask.all()


def test_plain_prompts_and_a_tokenizer_without_a_template(folder: Path, tmp_path: Path) -> None:
    base = save_base(tmp_path / "base", template=None, llama=True)
    with pytest.raises(ValueError, match=r"expected a chat template .* task\.prompting=plain"):
        small(base, folder).starts()
    task = small(base, folder, prompting="plain", instruction="")
    token, _ = task.encode([task.training_problem(3)])
    assert task.checkpoint.tokenizer.decode(token[0]) == "<bos>What is 3 + 1?\n\n"
    rollout = task.score(task.rollout(task.build_policy(frozenset()), torch.tensor([0, 1]), noise()))
    assert rollout.mask.shape[0] == 4
    task.close()


def test_evaluation_by_source_with_the_digest_of_the_data(base: Path, folder: Path, tmp_path: Path) -> None:
    other = write_lines(tmp_path / "aime.jsonl", [{"problem": f"Find {i}.", "answer": str(i)} for i in range(3)])
    task = small(base, folder, evaluation=(f"gsm8k:{folder}", f"aime_2025:{other}"))
    result = task.evaluate(task.build_policy(frozenset()), noise())
    # Two of each set, the sets in the order of their names
    assert [item["source"] for item in result.items] == ["aime_2025"] * 2 + ["gsm8k"] * 2
    assert {"score_aime_2025", "score_gsm8k", "maj_at_2", "avg_at_2", "score_low"} <= result.metrics.keys()
    failures = sum(result.metrics[f"failure_{kind}"] for kind in task.failures)
    assert result.metrics["score"] + failures == pytest.approx(1.0, abs=EXACT)
    result.files["data.json"](tmp_path / "data.json")
    card = json.loads((tmp_path / "data.json").read_text())
    assert (card["training_rows"], card["evaluation_rows"]) == (12, 8)
    assert small(base, folder, evaluation=task.evaluation, digest=card["digest"][:12]).starts() == range(12)
    with pytest.raises(ValueError, match=r"task\.digest: expected data of SHA-256 abc, found " + card["digest"]):
        small(base, folder, evaluation=task.evaluation, digest="abc").starts()
    task.close()


def test_questions_of_the_evaluation_and_copies_leave_the_training_set(
    base: Path, folder: Path, tmp_path: Path
) -> None:
    rows = write_lines(tmp_path / "train.jsonl", [*TRAINING, TRAINING[0], HELD_OUT[1]])
    task = small(base, folder, data=str(rows))
    assert len(task.starts()) == 12
    counts = task._problems.counts
    assert (counts["training_rows"], counts["training_duplicates"], counts["training_in_evaluation"]) == (14, 1, 1)
    task.close()


def test_long_prompts_are_dropped_and_counted_or_refused(base: Path, folder: Path) -> None:
    # `[user]What is 9 + 1?[assistant]` has 6 + 14 + 11 characters; 10 and 11 have one more.
    settings: dict[str, Any] = {"instruction": "", "max_prompt_tokens": 31}
    task = small(base, folder, **settings)
    assert len(task.starts()) == 10
    rollout = task.rollout(task.build_policy(frozenset()), torch.tensor([0, 9]), noise())
    assert rollout.metrics["dropped_prompts"] == 2.0
    with pytest.raises(ValueError, match=r"found 2 longer \(gsm8k row 10 with 32 tokens"):
        small(base, folder, long_prompts="error", **settings).starts()
    with pytest.raises(ValueError, match="found none left"):
        small(base, folder, instruction="", max_prompt_tokens=5).starts()
    task.close()


def test_unreadable_references_are_listed_with_their_rows(base: Path, folder: Path, tmp_path: Path) -> None:
    rows = write_lines(tmp_path / "train.jsonl", [*TRAINING, {"question": "Why?", "answer": "#### ???"}])
    with pytest.raises(ValueError, match=r"math-verify can read.*gsm8k row 12: '\?\?\?' of 'Why\?'"):
        small(base, folder, data=str(rows)).starts()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"base": ""}, r"task\.base: expected a folder or a hub id"),
        ({"schema": "gsm"}, "did you mean gsm8k"),
        ({"evaluation": ()}, r"task\.evaluation: expected at least one set"),
        ({"evaluation": ("unheard",)}, "unknown 'unheard'"),
        ({"max_prompt_tokens": 0}, "max_prompt_tokens"),
        ({"evaluation_samples": 0}, "evaluation_samples"),
        ({"verify_timeout_s": 0.0}, "timeout_s"),
    ],
)
def test_impossible_settings_are_refused_before_anything_is_opened(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(Path("absent"), Path("absent"), **values)


def test_the_presets_ask_for_a_base_and_take_local_files(folder: Path, base: Path) -> None:
    with pytest.raises(ConfigError, match=r"task\.base"):
        resolve("reinforce_pp", "reasoning/gsm8k")
    for name in ("gsm8k", "dapo17k"):
        task = resolve("reinforce_pp", f"reasoning/{name}", ["task.base=absent"]).task
        assert task.schema == name
        assert task.evaluation
    overrides = [f"task.base={base}", f"task.evaluation=[gsm8k:{folder}]"]
    assert resolve("ppo", "reasoning/maths", overrides).task._evaluation_sets == {"gsm8k": str(folder)}
