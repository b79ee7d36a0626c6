# SPDX-License-Identifier: Apache-2.0
"""The base class of layers that a malicious server adds, and the target network with such a layer."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from lightning_recon.exchange import ServerPayload


class ServerLayer(nn.Module, ABC):
    """A layer that a malicious server adds to the target network, built from a payload alone.

    A structure of your own ships a layer of its own by naming its class in the payload's settings:
    `ServerPayload(settings={"layer": OwnLayer.path(), ...}, tensors=...)`. What else is in the settings and tensors is
    then up to that class. Its parameters appear in updates as "structure.NAME".
    """

    target_scale: float = 1.0  # factor of the network's own logits; 0 silences the network
    detach_logits: bool = False  # whether the network's own gradient is removed, see `TamperedNetwork`

    def __init__(self, payload: ServerPayload) -> None:
        """Build the layer from what the server shipped; to be extended."""
        super().__init__()

    @classmethod
    def path(cls) -> str:
        """The path by which a payload's settings name this class."""
        return f"{cls.__module__}.{cls.__qualname__}"

    @classmethod
    def defined(cls) -> dict[str, type["ServerLayer"]]:
        """All classes derived from this one that are defined now, by their paths."""
        found: dict[str, type[ServerLayer]] = {}
        for child in cls.__subclasses__():
            found |= {child.path(): child, **child.defined()}
        return found

    @abstractmethod
    def forward(self, images: Tensor, logits: Tensor | None = None) -> Tensor:
        """Contribution to the logits, shape (B, classes).

        Args:
            images: Shape (B, C, H, W), values in [0, 1].
            logits: The network's own logits, shape (B, classes), detached; None if the network is silenced.
        """


class TamperedNetwork(nn.Module):
    """The target network with the server's layer in parallel.

    With `structure.detach_logits` the output is what it was to the last bit, and the network's own gradient is exactly
    zero: the structure has the whole clipping budget, whatever the network, and no local step moves the logits.

    Args:
        network: Maps images in [0, 1], shape (B, C, H, W), to logits (B, classes).
        structure: The added layer.
        zeros: Whether parameters of the network get a gradient of zeros when the logits are detached, or none at all.
            Opacus and DistributedDataParallel wait for a gradient of every parameter; without it a client saves the
            backward pass through the network, a third to a half of its time.
    """

    def __init__(self, network: nn.Module, structure: ServerLayer, zeros: bool = True) -> None:
        """Keep both as submodules, so gradients are named `network.*` and `structure.*`."""
        super().__init__()
        self.network = network
        self.structure = structure
        self.zeros = zeros

    @property
    def silences_network(self) -> bool:
        """Whether the gradient of every parameter of the network is zero."""
        return self.structure.detach_logits or self.structure.target_scale == 0

    def forward(self, images: Tensor) -> Tensor:
        """Logits of the target network plus the structure's contribution."""
        # With the network silenced every label is equally likely, and every victim has the same gradient weight.
        if self.structure.target_scale == 0:
            output: Tensor = self.structure(images)
        else:
            logits = self.structure.target_scale * self.network(images)
            # Detached outside of the layer: hooks that wait for a gradient of every input, like Opacus's, never run.
            known = logits.detach()
            if self.structure.detach_logits:
                logits = _with_zero_gradient(logits) if self.zeros else known
            output = logits + self.structure(images, known)
        return output


def _with_zero_gradient(logits: Tensor) -> Tensor:
    """The same values, whose gradient is zero rather than missing.

    A selection, because `logits.detach() + 0 * logits` makes NaN of infinite logits, and a backward pass of its own
    (`torch.autograd.Function`) would need rules for vmap and forward-mode differentiation.
    """
    return torch.where(torch.ones_like(logits, dtype=torch.bool), logits.detach(), logits)
