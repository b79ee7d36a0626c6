# SPDX-License-Identifier: Apache-2.0
"""Size of a YAML file after its aliases are expanded: a short file can expand to billions of values."""

from typing import Final

import yaml

YAML_BYTES: Final = 1 << 18  # of a config
YAML_NODES: Final = 10_000


def expanded(node: yaml.Node | None, known: dict[int, int] | None = None) -> int:
    """Number of values in a node after its aliases are expanded; more than `YAML_NODES` if it contains itself.

    Args:
        node: as `yaml.compose` gives it.
        known: numbers of nodes that were counted already, by identity.
    """
    if not isinstance(node, yaml.CollectionNode):
        return 1
    counted = {} if known is None else known
    if id(node) not in counted:
        counted[id(node)] = YAML_NODES + 1  # holds if the node is met again within itself
        parts = [part for item in node.value for part in (item if isinstance(item, tuple) else (item,))]
        counted[id(node)] = 1 + sum(expanded(part, counted) for part in parts)
    return counted[id(node)]
