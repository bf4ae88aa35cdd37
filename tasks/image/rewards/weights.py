"""Where the weights of a reward come from: a local path or the hub, and one clear error where there are none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

T_ = TypeVar("T_")


def pretrained(load: Callable[..., T_], name: str, setting: str, **options: Any) -> T_:
    """`load(name)` of a `from_pretrained`, from a folder or a hub id.

    Args:
        load: A `from_pretrained` of transformers.
        name: Folder or hub id.
        setting: Name of the reward's setting that holds it, for the error.
        options: Passed on.

    Raises:
        FileNotFoundError: Neither; says how to download it.
    """
    if _is_path(name) and not Path(name).is_dir():
        raise FileNotFoundError(f"{setting}: no folder {name}; expected one of `save_pretrained` or `hf download`")
    try:
        return load(name, **options)
    except OSError as error:
        raise FileNotFoundError(_advice(name, setting, name, error)) from error


def weights_file(name: str, setting: str) -> Path:
    """A file by its path, or by `OWNER/REPOSITORY:FILE` of the hub.

    Raises:
        FileNotFoundError: Neither; says how to download it.
    """
    if Path(name).is_file():
        return Path(name)
    repository, colon, file = name.partition(":")
    if _is_path(name) or not colon:
        raise FileNotFoundError(f"{setting}: no file {name}; expected a path or OWNER/REPOSITORY:FILE of the hub")
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return Path(hf_hub_download(repository, file))
    except (OSError, HfHubHTTPError) as error:  # LocalEntryNotFoundError, offline, is a FileNotFoundError
        raise FileNotFoundError(_advice(name, setting, f"{repository} {file}", error)) from error


def read_state(path: Path) -> dict[str, Tensor]:
    """Tensors by name from safetensors or a torch file, without running code that the file brings."""
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        loaded: dict[str, Tensor] = load_file(path)
        return loaded
    content = torch.load(path, map_location="cpu", weights_only=True)
    state: dict[str, Tensor] = content.get("state_dict", content)
    return {name.removeprefix("module."): value for name, value in state.items()}


def _is_path(name: str) -> bool:
    return name.startswith(("/", "./", "../", "~")) or name.count("/") > 1


def _advice(name: str, setting: str, arguments: str, error: Exception) -> str:
    first = (str(error).splitlines() or [type(error).__name__])[0]
    return (
        f"{setting}: cannot open {name!r} ({first}); where the hub is reached, run "
        f"`hf download {arguments} --local-dir FOLDER` and set {setting} to what it wrote"
    )
