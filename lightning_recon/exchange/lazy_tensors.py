# SPDX-License-Identifier: Apache-2.0
"""Tensors by name that are computed when they are first read."""

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor


class LazyTensors(Mapping[str, Tensor]):
    """Tensors by name, each of which is computed when it is first read, and then kept.

    An attack reads a few of the tensors in an update. Where each of them has a random stream of its own, the others
    need not be computed, and those that are read do not depend on it. What they are computed from, such as an update
    before noise, stays inside: an attack reads the mapping alone.
    """

    def __init__(self, shapes: Mapping[str, torch.Size], compute: Callable[[str], Tensor]) -> None:
        """Name the tensors.

        Args:
            shapes: by name, in the order of the mapping.
            compute: from a name to the tensor; called at most once for each.
        """
        self.shapes, self._compute = dict(shapes), compute
        self._computed: dict[str, Tensor] = {}

    def __getitem__(self, name: str) -> Tensor:
        """The tensor of this name."""
        if name not in self._computed:
            if name not in self.shapes:
                raise KeyError(name)
            self._computed[name] = self._compute(name)
        return self._computed[name]

    def __contains__(self, name: object) -> bool:
        """Whether there is such a tensor; computes nothing."""
        return name in self.shapes

    def __iter__(self) -> Iterator[str]:
        """Names."""
        return iter(self.shapes)

    def __len__(self) -> int:
        """Number of tensors."""
        return len(self.shapes)


def shapes_of(tensors: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    """Shapes by name; computes no tensor."""
    if isinstance(tensors, LazyTensors):
        return dict(tensors.shapes)
    return {name: tensor.shape for name, tensor in tensors.items()}
