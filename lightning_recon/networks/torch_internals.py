# SPDX-License-Identifier: Apache-2.0
"""Private parts of PyTorch that the package relies on, each with the reason and what happens without it.

No other module touches them. A version of PyTorch without one of them gives the same results, more slowly.
"""

import itertools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

# A place where a module refers to a parameter: the module, the attribute there, the parameter, and its full name.
Place = tuple[nn.Module, str, nn.Parameter, str]

# Whether autograd's engine, within a backward pass, is going to execute a node. Without it, second derivatives of a
# convolution compute one of seven convolutions for nothing.
_WILL_EXECUTE = getattr(torch._C, "_will_engine_execute_node", None)
# `Module._parameters`, the dictionary in which a module keeps its parameters. `torch.func.functional_call`, which is
# used without it, takes 15 to 25 % longer for the networks and images that gradient inversion is fastest with.
_KEEPS_PARAMETERS = isinstance(vars(nn.Module()).get("_parameters"), dict)
# `Tensor._version`, which every in-place change increments. Without it nothing counts as unchanged, so every update is
# computed anew; a hash over the parameters, the public way, costs more than a small network's gradient.
_COUNTS_VERSIONS = hasattr(torch.Tensor, "_version")

_serial = itertools.count(-1, -1)  # no sum of versions is negative


def will_execute(node: Any) -> bool:  # noqa: ANN401 - autograd's nodes have no public type
    """Whether the backward pass under way goes on to a node of the graph; True where that cannot be known."""
    return True if _WILL_EXECUTE is None else bool(_WILL_EXECUTE(node))


def places_of(network: nn.Module) -> tuple[Place, ...]:
    """Every place at which a module of the network refers to a parameter; shared parameters have several."""
    names = {parameter: name for name, parameter in network.named_parameters()}
    return tuple(
        (module, attribute, parameter, names[parameter])
        for module in network.modules()
        for attribute, parameter in module.named_parameters(recurse=False, remove_duplicate=False)
    )


def call_with(network: nn.Module, places: tuple[Place, ...], values: Mapping[str, Tensor], images: Tensor) -> Tensor:
    """Output of a network with other parameters.

    Args:
        network: Any network; afterwards it has its own parameters again.
        places: From `places_of`.
        values: Parameters by name.
        images: What the network is called with.
    """
    if not _KEEPS_PARAMETERS:
        called: Tensor = functional_call(network, dict(values), (images,))
        return called
    try:
        for module, attribute, _, name in places:
            module._parameters[attribute] = values[name]  # type: ignore[assignment]
        output: Tensor = network(images)
    finally:
        for module, attribute, own, _ in places:
            module._parameters[attribute] = own
    return output


def version_of(network: nn.Module) -> int:
    """A number that changes whenever a parameter or a buffer is changed in place, as by a step of an optimiser.

    Changes through `.data` are not seen.
    """
    return version_of_tensors(*network.parameters(), *network.buffers())


def version_of_tensors(*tensors: Tensor) -> int:
    """A number that changes whenever one of the tensors is changed in place, but not through its `.data`.

    Tensors that were made in inference mode have no version, so they count as changed every time.
    """
    if not _COUNTS_VERSIONS or any(tensor.is_inference() for tensor in tensors):
        return next(_serial)
    return sum(tensor._version for tensor in tensors)
