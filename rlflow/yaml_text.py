"""YAML of files that people write: plain values, and no key twice, of which YAML would silently drop the first."""

from __future__ import annotations

from typing import Any

import yaml


class _UniqueKeys(yaml.SafeLoader):
    """PyYAML's safe loader that refuses a mapping with equal keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """See `yaml.SafeLoader`."""
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for index, key in enumerate(keys):
            if key in keys[:index]:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key!r} is there twice", node.value[index][0].start_mark
                )
        return super().construct_mapping(node, deep=deep)


def read_yaml(text: str) -> Any:
    """Plain values of a YAML text.

    Raises:
        yaml.YAMLError: Not YAML, or a key is there twice; names the line.
    """
    return yaml.load(text, Loader=_UniqueKeys)
