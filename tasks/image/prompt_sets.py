"""Prompts from any source as one frozen, digested set: files, `datasets`, GenEval-style and OCR generators."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from rlflow.registry import did_you_mean
from tasks.image.rewards.reward import Prompt

SPLITS = ("train", "test")
# Of 256 values of a digest's first byte, those that fall to the test split of a generated set: a fifth.
_TEST_BYTES = 51
_TEXT_KEYS = ("prompt", "text", "caption")


@dataclass(frozen=True)
class PromptSet:
    """Prompts in a fixed order, without repetition; a prompt is an index into it.

    Attributes:
        prompts: As the source gave them, first occurrence of each.
    """

    prompts: tuple[Prompt, ...]

    def __len__(self) -> int:
        """Number of prompts."""
        return len(self.prompts)

    def __getitem__(self, row: int) -> Prompt:
        """The prompt of a start."""
        return self.prompts[row]

    @cached_property
    def digest(self) -> str:
        """sha256 over texts and metadata in order; equal sets train and evaluate on the same thing."""
        lines = (canonical(prompt) for prompt in self.prompts)
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def read_prompts(
    source: str,
    *,
    split: str = "train",
    limit: int = 0,
    max_characters: int = 1000,
    column: str = "",
    count: int = 1000,
    seed: int = 0,
) -> PromptSet:
    """Read or generate a prompt set.

    Args:
        source: `geneval` or `ocr` (generated), `guard` (own, for evaluation); a `.txt` file (one prompt a line) or
            `.jsonl` file (objects with `prompt`, `text` or `caption`, the rest becomes the metadata, so GenEval's own
            files are read as they are); a folder written by `datasets.save_to_disk`, or any other name that
            `datasets.load_dataset` opens.
        split: `train` or `test`. Generated sets are divided by the digest of a prompt, so that the two never share
            one; a dataset gives its own split; a file is taken whole, name another for the other split.
        limit: First prompts to keep; 0 keeps all.
        max_characters: A longer prompt is an error: it would be cut by the text encoder without a word.
        column: Key of the text; empty tries `prompt`, `text`, `caption`.
        count: Prompts of a generated set.
        seed: Of a generated set.

    Raises:
        FileNotFoundError: A source that names a file which is not there.
        ValueError: An empty set, a prompt that is empty or too long, an unknown key or split.
        ImportError: `datasets` is not installed.
    """
    if split not in SPLITS:
        raise ValueError(f"split: expected train or test, found {split!r}")
    if source in GENERATORS:
        from tasks.image import prompt_sets_generated as generated

        prompts: Iterable[Prompt] = getattr(generated, GENERATORS[source])(count, seed=seed, split=split)
    elif source.endswith((".txt", ".jsonl")):
        prompts = _file(Path(source), column)
    else:
        prompts = _dataset(source, split, column)
    return prompt_set(prompts, source=source, limit=limit, max_characters=max_characters)


GENERATORS = {"geneval": "geneval_prompts", "ocr": "ocr_prompts", "guard": "guard_prompts"}


def prompt_set(
    prompts: Iterable[Prompt], *, source: str = "prompts", limit: int = 0, max_characters: int = 1000
) -> PromptSet:
    """A set of distinct prompts within the limits; errors name the `source` and the prompt's number."""
    kept: dict[str, Prompt] = {}
    for number, prompt in enumerate(prompts):
        if limit and len(kept) == limit:
            break
        if not prompt.text.strip():
            raise ValueError(f"{source}: prompt {number} is empty")
        if len(prompt.text) > max_characters:
            raise ValueError(
                f"{source}: prompt {number} has {len(prompt.text)} characters, expected at most {max_characters}: "
                f"shorten it or raise the limit if the text encoder reads that much ({prompt.text[:60]!r}...)"
            )
        kept.setdefault(canonical(prompt), prompt)
    if not kept:
        raise ValueError(f"{source}: expected at least one prompt, found none")
    return PromptSet(tuple(kept.values()))


def canonical(prompt: Prompt) -> str:
    """One line of JSON that is equal exactly where two prompts ask for the same."""
    return json.dumps([prompt.text, dict(prompt.meta)], sort_keys=True, ensure_ascii=False, default=list)


def split_of(content: str) -> str:
    """The split of a generated prompt: a fifth of all contents by their digest, whatever the seed."""
    return "test" if hashlib.sha256(content.encode()).digest()[0] < _TEST_BYTES else "train"


def write_prompts(prompts: Sequence[Prompt], path: Path) -> None:
    """Write GenEval's JSON lines: the metadata with the text under `prompt`."""
    lines = [json.dumps({**prompt.meta, "prompt": prompt.text}, ensure_ascii=False) for prompt in prompts]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _file(path: Path, column: str) -> Iterator[Prompt]:
    if not path.is_file():
        raise FileNotFoundError(f"no prompts at {path}: expected a .txt file of lines or a .jsonl file of objects")
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        if path.suffix == ".txt":
            yield Prompt(text=line.strip())
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number}: expected a JSON object, found {line[:60]!r} ({error})") from error
        if not isinstance(row, dict):
            raise ValueError(f"{path}, line {number}: expected a JSON object, found {type(row).__name__}")
        yield _row(row, column, f"{path}, line {number}")


def _row(row: Mapping[str, Any], column: str, where: str) -> Prompt:
    keys = [column] if column else [key for key in _TEXT_KEYS if key in row]
    if not keys or keys[0] not in row:
        wanted = repr(column) if column else "prompt, text or caption"
        raise ValueError(f"{where}: expected the key {wanted}{did_you_mean(column or 'prompt', row)}")
    text = row[keys[0]]
    if not isinstance(text, str):
        raise ValueError(f"{where}: expected text under {keys[0]!r}, found {type(text).__name__}")
    return Prompt(text=text, meta={key: value for key, value in row.items() if key != keys[0]})


def _dataset(source: str, split: str, column: str) -> Iterator[Prompt]:
    try:
        import datasets
    except ImportError as error:
        raise ImportError("prompts from a dataset need `datasets`; pip install datasets") from error
    folder = Path(source)
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        table = datasets.load_from_disk(source)
    else:
        try:
            table = datasets.load_dataset(source)
        except (datasets.exceptions.DatasetNotFoundError, ConnectionError, FileNotFoundError, ValueError) as error:
            raise FileNotFoundError(
                f"no prompts called {source!r}: expected one of {sorted(GENERATORS)}, a .txt or .jsonl file, a folder "
                f"of `save_to_disk`, or a dataset of the hub (without network: download it first with `hf download "
                f"--repo-type dataset {source} --local-dir FOLDER` and name the folder): {error}"
            ) from error
    if isinstance(table, dict):
        if split not in table:
            raise ValueError(f"{source}: expected the split {split!r}{did_you_mean(split, table)}")
        table = table[split]
    for number, row in enumerate(table):
        yield _row(row, column, f"{source}, row {number}")
