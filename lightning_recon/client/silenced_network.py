# SPDX-License-Identifier: Apache-2.0
"""What a client keeps of a network that the server silences: one forward pass serves all rounds."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from lightning_recon.exchange import ServerPayload
from lightning_recon.structure.layer_spec import layer_spec

Place = tuple[int, str, int, int]  # a client, the device, and the versions of the network and of the client's images
# Matrix products may depend, in their last bits, on where an image begins in memory; multiples of this many numbers
# begin alike.
_ALIGNED = 16


@dataclass
class Silenced:
    """A network without a gradient, as the server's layer sees it on one client's images.

    Args:
        zeros: gradients of its parameters, see `update.zero_gradients`.
        of_images: outputs by the number of the image, where they depend on nothing else.
        of_batch: otherwise the images of the last forward passes, and the outputs in their order.
    """

    zeros: dict[str, Tensor]
    of_images: dict[int, Tensor] = field(default_factory=dict)
    of_batch: tuple[tuple[int, ...], Sequence[Tensor]] = ((), ())

    def outputs(self, images: tuple[int, ...]) -> Sequence[Tensor] | None:
        """Outputs of the forward passes over these images; None if they are not known."""
        if all(image in self.of_images for image in images):
            return [self.of_images[image] for image in images]
        return self.of_batch[1] if self.of_batch[0] == images else None

    def learn(self, images: tuple[int, ...], passes: "Passes", numbers: int, apart: bool) -> None:
        """Keep the outputs of forward passes.

        Args:
            images: which images these are about.
            passes: what was recorded.
            numbers: of an image.
            apart: whether each image had a pass of its own.
        """
        if apart and not passes.random and numbers % _ALIGNED == 0:
            self.of_images.update(zip(images, passes.outputs, strict=True))
        else:
            self.of_batch = images, passes.outputs


@dataclass
class Passes:
    """Forward passes of a network.

    Args:
        outputs: in their order.
        random: whether random numbers were drawn, or may have been.
    """

    outputs: list[Tensor] = field(default_factory=list)
    random: bool = True


class KnownOutputs(nn.Module):
    """Stands for a network of which only the outputs matter: returns them one after the other."""

    def __init__(self, outputs: Sequence[Tensor]) -> None:
        """Begin with the first.

        Args:
            outputs: of the network's forward passes, in their order.
        """
        super().__init__()
        self._left = iter(outputs)

    def forward(self, images: Tensor) -> Tensor:
        """The next output; the images are those that it was computed from."""
        return next(self._left)


def silences(payload: ServerPayload) -> bool:
    """Whether a payload ships a layer of this package that uses the network's outputs, but not its gradient.

    Other layers may draw random numbers, which would be others without the network's forward pass.
    """
    spec = layer_spec(payload)
    return spec is not None and spec.detach_logits and spec.target_scale != 0


@contextmanager
def recorded_passes(network: nn.Module, device: torch.device, wanted: bool) -> Iterator[Passes]:
    """The forward passes of a network, or of copies of it that are made meanwhile.

    Args:
        network: the network.
        device: where it is.
        wanted: whether to record anything.
    """
    passes, before = Passes(), _random_state(device)
    if not wanted:
        yield passes
        return
    handle = network.register_forward_hook(lambda module, given, output: passes.outputs.append(output.detach()))
    try:
        yield passes
    finally:
        handle.remove()
    after = _random_state(device)
    passes.random = before is None or after is None or not torch.equal(before, after)


def _random_state(device: torch.device) -> Tensor | None:
    """State of the generator that a forward pass draws from; None if that is not known."""
    return torch.get_rng_state() if device.type == "cpu" else None


def remember(known: dict[Place, Silenced], place: Place, silenced: Silenced, most: int) -> None:
    """Keep what was found, and forget what is oldest.

    Args:
        known: what is kept.
        place: where it belongs.
        silenced: what was found there.
        most: how many are kept.
    """
    known[place] = silenced
    while len(known) > most:
        known.pop(next(iter(known)))
