# SPDX-License-Identifier: Apache-2.0
"""The network that the server shipped as a function of its parameters and of images."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lightning_recon.attack.inversion.matmul_layers import lighten
from lightning_recon.networks.batch_norm import BatchNorm
from lightning_recon.networks.construction import copied
from lightning_recon.networks.torch_internals import Place, call_with, places_of

# Named here, since `torch.compile` cannot trace inner functions whose annotations subscript a type.
Inputs = tuple[Tensor, ...]


@dataclass(frozen=True)
class FunctionalModel:
    """A network whose parameters are arguments.

    Args:
        network: images (B, C, H, W) in [0, 1] to logits (B, classes), in the mode in which clients differentiate.
        parameters: by name, without gradients.
        running: running mean and variance of each batch normalisation layer, by the layer's name.
        places: where the network refers to its parameters, see `torch_internals.places_of`.
    """

    network: nn.Module
    parameters: Mapping[str, Tensor]
    running: Mapping[str, tuple[Tensor, Tensor]]
    places: tuple[Place, ...]

    def at(self, values: Mapping[str, Tensor], images: Tensor) -> Tensor:
        """Logits with other parameters: as `torch.func.functional_call`, with less overhead per call."""
        return call_with(self.network, self.places, values, images)


def functionalize(network: nn.Module, batch_statistics: bool) -> FunctionalModel:
    """Copy the network that was shipped, in the mode in which the task says that clients use it.

    Args:
        network: as shipped; it is not changed.
        batch_statistics: whether clients normalise by the batch's statistics, or by the running ones. Dropout is off
            in the copy, because the attacker does not know which units a client dropped.
    """
    own = copied(network).eval().requires_grad_(False)
    running = {}
    for name, layer in own.named_modules():
        if isinstance(layer, BatchNorm):
            if layer.running_mean is not None and layer.running_var is not None:
                running[name] = (layer.running_mean.clone(), layer.running_var.clone())
            if batch_statistics:
                # Without running statistics a layer uses those of the batch and updates no buffer, which vmap forbids.
                layer.running_mean = layer.running_var = layer.num_batches_tracked = None
    lighten(own)
    parameters = {name: parameter.detach() for name, parameter in own.named_parameters()}
    return FunctionalModel(own, parameters, running, places_of(own))


@contextmanager
def inputs_of(network: nn.Module, layers: list[str]) -> Iterator[dict[str, Tensor]]:
    """Record the inputs of these layers, in every forward pass, in the dictionary that is yielded."""
    seen: dict[str, Tensor] = {}
    handles: list[RemovableHandle] = []
    for name in layers:

        def keep(module: nn.Module, given: Inputs, name: str = name) -> None:
            seen[name] = given[0]

        handles.append(network.get_submodule(name).register_forward_pre_hook(keep))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def exact_normalisation(network: nn.Module) -> Iterator[None]:
    """Run batch normalisation in float32 under autocast: under vmap it cannot mix types."""

    def widen(module: nn.Module, given: Inputs) -> Inputs:
        return tuple(tensor.float() for tensor in given)

    layers = [layer for layer in network.modules() if isinstance(layer, BatchNorm)]
    handles = [layer.register_forward_pre_hook(widen) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
