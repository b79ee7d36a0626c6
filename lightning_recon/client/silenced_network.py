# SPDX-License-Identifier: Apache-2.0
"""What a client keeps of a network that the server silences: one forward pass serves all rounds."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor, nn

from lightning_recon.exchange import ServerPayload
from lightning_recon.structure.layer_spec import layer_spec

# A client, its images in this round (None: all), the device, and the version of the network's parameters.
Place = tuple[int, tuple[int, ...] | None, str, int]


@dataclass(frozen=True)
class Silenced:
    """A network without a gradient, as the server's layer sees it on one client's images.

    Args:
        outputs: of its forward passes, in their order.
        zeros: gradients of its parameters, see `update.zero_gradients`.
    """

    outputs: Sequence[Tensor]
    zeros: dict[str, Tensor]


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
def recorded_outputs(network: nn.Module, wanted: bool) -> Iterator[list[Tensor]]:
    """The outputs of all forward passes of a network, or of copies of it that are made meanwhile; if wanted."""
    outputs: list[Tensor] = []
    if not wanted:
        yield outputs
        return
    handle = network.register_forward_hook(lambda module, given, output: outputs.append(output.detach()))
    try:
        yield outputs
    finally:
        handle.remove()


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
