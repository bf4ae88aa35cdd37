"""Prompt sets: sources, limits, digests, and generated splits that never meet."""

import json
from collections import Counter
from pathlib import Path

import pytest

from tasks.image.prompt_sets import prompt_set, read_prompts, split_of, write_prompts
from tasks.image.prompt_sets_generated import (
    COLOURS,
    KINDS,
    OBJECTS,
    RELATIONS,
    geneval_prompts,
    ocr_prompts,
)
from tasks.image.rewards import Prompt
from tasks.image.rewards.ocr import target


def test_coco_names() -> None:
    assert len(OBJECTS) == 80
    assert len(set(OBJECTS)) == 80
    assert len(COLOURS) == 10


def test_geneval_kinds_come_with_their_shares() -> None:
    prompts = geneval_prompts(553, seed=1)
    tags = Counter(prompt.meta["tag"] for prompt in prompts)
    # 80 single objects are asked for, but only those whose digest falls to train exist.
    singles = sum(split_of(json.dumps(["single_object", [name]])) == "train" for name in OBJECTS)
    assert tags == {**KINDS, "single_object": singles}
    assert len({prompt.text for prompt in prompts}) == len(prompts)


def test_geneval_metadata_by_hand() -> None:
    by_tag: dict[str, list[Prompt]] = {kind: [] for kind in KINDS}
    for prompt in geneval_prompts(300, seed=0):
        by_tag[prompt.meta["tag"]].append(prompt)
    for prompt in by_tag["counting"]:
        (include,), (exclude,) = prompt.meta["include"], prompt.meta["exclude"]
        assert exclude == {"class": include["class"], "count": include["count"] + 1}
        assert prompt.text.split()[3] == {2: "two", 3: "three", 4: "four"}[include["count"]]
    for prompt in by_tag["position"]:
        other, placed = prompt.meta["include"]
        relation, place = placed["position"]
        assert relation in RELATIONS
        assert place == 0
        first, second = prompt.text.removeprefix("a photo of ").split(f" {relation} ")
        assert first.split(" ", 1)[1] == placed["class"]
        assert second.split(" ", 1)[1] == other["class"]
    for prompt in by_tag["color_attr"]:
        first, second = prompt.meta["include"]
        assert first["color"] != second["color"]
        assert f"{first['color']} {first['class']} and a" in prompt.text
    assert not any(i["class"] == "person" for p in by_tag["colors"] for i in p.meta["include"])
    assert any(
        prompt.text == f"a photo of an {prompt.meta['include'][0]['class']}" for prompt in by_tag["single_object"]
    )


@pytest.mark.parametrize("make", [geneval_prompts, ocr_prompts])
def test_splits_never_meet_whatever_the_seed(make) -> None:
    train = {prompt.text for seed in range(3) for prompt in make(400, seed=seed, split="train")}
    test = {prompt.text for seed in range(3) for prompt in make(400, seed=seed + 7, split="test")}
    assert len(test) > 100
    assert not train & test


def test_an_unordered_pair_lies_in_one_split() -> None:
    sides: dict[frozenset[str], set[str]] = {}
    for split in ("train", "test"):
        for prompt in geneval_prompts(2000, split=split):
            if prompt.meta["tag"] == "two_object":
                pair = frozenset(part["class"] for part in prompt.meta["include"])
                sides.setdefault(pair, set()).add(split)
    assert all(len(found) == 1 for found in sides.values())


def test_ocr_prompts_quote_their_target() -> None:
    prompts = ocr_prompts(200, seed=3)
    assert len(prompts) == 200
    for prompt in prompts:
        assert prompt.meta["target"] in prompt.text
        # The quotes alone give the same target as the metadata.
        assert target(Prompt(text=prompt.text)) == prompt.meta["target"]
    words = {split: {w.lower() for p in ocr_prompts(300, split=split) for w in p.meta["target"].split()}
             for split in ("train", "test")}  # fmt: skip
    assert not words["train"] & words["test"]


def test_the_same_seed_gives_the_same_digest() -> None:
    first, again, other = (read_prompts("geneval", count=50, seed=seed).digest for seed in (0, 0, 1))
    assert first == again
    assert first != other
    # Metadata counts: the same words with another demand are another set.
    plain, marked = prompt_set([Prompt(text="a")]), prompt_set([Prompt(text="a", meta={"count": 1})])
    assert plain.digest != marked.digest


def test_text_files(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("a cat\n\n a dog \na cat\n")
    found = read_prompts(str(path))
    assert [prompt.text for prompt in found.prompts] == ["a cat", "a dog"]
    assert [prompt.text for prompt in read_prompts(str(path), limit=1).prompts] == ["a cat"]


def test_geneval_files_come_back_as_they_were_written(tmp_path: Path) -> None:
    prompts = geneval_prompts(40)
    write_prompts(prompts, tmp_path / "meta.jsonl")
    found = read_prompts(str(tmp_path / "meta.jsonl"))
    assert found.digest == prompt_set(prompts).digest
    assert found[0] == prompts[0]


def test_datasets(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    table = datasets.Dataset.from_dict({"caption": ["a cat", "a dog"], "score": [1, 2]})
    datasets.DatasetDict({"train": table, "test": table.select([1])}).save_to_disk(str(tmp_path / "both"))
    train = read_prompts(str(tmp_path / "both"))
    assert train.prompts == (Prompt(text="a cat", meta={"score": 1}), Prompt(text="a dog", meta={"score": 2}))
    assert [prompt.text for prompt in read_prompts(str(tmp_path / "both"), split="test").prompts] == ["a dog"]
    table.save_to_disk(str(tmp_path / "one"))
    assert len(read_prompts(str(tmp_path / "one"), column="caption")) == 2
    with pytest.raises(ValueError, match=r"row 0: expected the key 'captions'; did you mean caption?"):
        read_prompts(str(tmp_path / "one"), column="captions")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"prompt": "a"}\n{"promt": "b"}', "line 2: expected the key prompt, text or caption; did you mean promt?"),
        ("not json", "line 1: expected a JSON object, found 'not json'"),
        ("[1]", "line 1: expected a JSON object, found list"),
        ('{"prompt": 3}', "expected text under 'prompt', found int"),
        ('{"prompt": " "}', "prompt 0 is empty"),
        ('{"prompt": "' + 9 * "long " + '"}', "has 45 characters, expected at most 20"),
        ("", "expected at least one prompt, found none"),
    ],
)
def test_a_broken_file_is_refused(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        read_prompts(str(path), max_characters=20)


def test_unknown_sources_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no prompts at"):
        read_prompts(str(tmp_path / "nowhere.jsonl"))
    with pytest.raises(ValueError, match="split: expected train or test"):
        read_prompts("geneval", split="dev")
    with pytest.raises(ValueError, match="count >= 1"):
        read_prompts("ocr", count=0)
    pytest.importorskip("datasets")
    with pytest.raises(
        FileNotFoundError, match=r"no prompts called 'genevall': expected one of \['geneval', 'guard', 'ocr'\]"
    ):
        read_prompts("genevall")
