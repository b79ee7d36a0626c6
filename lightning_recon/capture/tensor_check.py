# SPDX-License-Identifier: Apache-2.0
"""Compare names, shapes and values of a captured update's tensors with those of the model that the server shipped."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_recon.errors import UserError
from lightning_recon.exchange import ServerPayload
from lightning_recon.structure.layer import build_layer

Shape = tuple[int, ...]

STRUCTURE = "structure."
NETWORK = "network."
_BUFFERS = ("running_mean", "running_var", "num_batches_tracked")


def structure_shapes(payload: ServerPayload) -> dict[str, Shape]:
    """Name and shape of the tensors that a payload's structure adds to an update; none for an empty payload."""
    if not payload.settings and not payload.tensors:
        return {}
    return {STRUCTURE + name: tuple(p.shape) for name, p in build_layer(payload).named_parameters()}


def check_tensors(tensors: Mapping[str, Tensor], expected: Mapping[str, Shape], others: bool) -> None:
    """Compare names, shapes, dtypes and values with what an honest client of this server would send.

    Args:
        tensors: the captured tensors by parameter name.
        expected: shape by parameter name.
        others: whether to accept tensors of the network that are not in `expected`, because the network is unknown.

    Raises:
        UserError: the first fault.
    """
    for name in tensors:
        if name.rpartition(".")[2] in _BUFFERS and name not in expected:
            raise UserError(
                f"{name} is a buffer of batch normalization, which is not a gradient and gets no noise: "
                "capture parameters only (named_parameters(), not state_dict())"
            )
    if not any(name.startswith(STRUCTURE) for name in tensors) and any(n.startswith(STRUCTURE) for n in expected):
        hint = next(iter(tensors), "none")
        raise UserError(
            f"the update holds no structure tensors (its first tensor is {hint}): the client must train the server's "
            "model, and names must begin with structure. or network., without a wrapper's prefix such as _module."
        )
    for name, shape in expected.items():
        if name not in tensors:
            present = sum(key in tensors for key in expected)
            raise UserError(
                f"the update lacks {name}, shape {shape}: it has {present} of {len(expected)} parameter tensors; "
                "capture all of the model's named_parameters()"
            )
        if tuple(tensors[name].shape) != shape:
            raise UserError(
                f"{name} has shape {tuple(tensors[name].shape)} in the update and {shape} in the server's model: the "
                "client trained another model, or the arrays are out of order"
            )
    for name, tensor in tensors.items():
        if name not in expected and not (others and not name.startswith(STRUCTURE)):
            raise UserError(
                f"the update has {name}, which is not in the server's model: capture only the parameters of that model"
            )
        if not tensor.is_floating_point():
            kind = str(tensor.dtype).removeprefix("torch.")
            raise UserError(f"{name} holds {kind}, but gradients are floating point: capture it before it is quantized")
        if not bool(tensor.isfinite().all()):
            raise UserError(f"{name} holds NaN or infinity: the client's training diverged, lower its learning rate")


def check_trained(untrained: Sequence[str], payload: ServerPayload, per_layer: bool) -> None:
    """Refuse an update without the gradients that its attack needs.

    An attack by an honest server models the gradients of all parameters, and the clip of all of them. One with a
    structure reads the structure's alone, and knows what is left of it by the number of all tensors where each is
    clipped on its own.

    Args:
        untrained: names of the parameters that the recorded training left out.
        payload: what the server sent.
        per_layer: whether each tensor is clipped on its own.

    Raises:
        UserError: names the parameters, and says what to do.
    """
    honest = not payload.settings and not payload.tensors
    needed = [name for name in untrained if honest or per_layer or name.startswith(STRUCTURE)]
    if not needed:
        return
    others = f" and {len(needed) - 3} more" if len(needed) > 3 else ""
    wrong = f"the training leaves out {', '.join(needed[:3])}{others} (frozen, or not given to the optimizer)"
    if honest:
        raise UserError(
            f"{wrong}, but an attack by an honest server models gradients of all parameters: train all of them, or "
            "let the server send a structure (payload and task)"
        )
    if per_layer:
        raise UserError(
            f"{wrong}, but where each tensor is clipped on its own, to C/sqrt(L), the attack counts all of them as L: "
            "train all of them, or clip the whole gradient"
        )
    raise UserError(f"{wrong}, whose gradients the attack reads: train all parameters of the structure")


def name_arrays(arrays: Sequence[Any], shapes: Mapping[str, Shape]) -> dict[str, Tensor]:
    """Name arrays that came without names, as Flower sends them, after a model's tensors.

    Args:
        arrays: numpy arrays or tensors, in the order of `shapes`.
        shapes: shape by name, in the sender's order: that of `state_dict()`, for example.

    Returns:
        Tensors by name.

    Raises:
        UserError: the number of arrays differs, or an array does not fit; the message names where it would fit.
    """
    found = [torch.as_tensor(array) for array in arrays]
    places = list(shapes.items())
    for index, (tensor, (name, shape)) in enumerate(zip(found, places, strict=False)):
        if tuple(tensor.shape) != tuple(shape):
            fitting = [other for other, wanted in places if tuple(wanted) == tuple(tensor.shape)]
            where = f"it would fit {' or '.join(fitting[:3])}" if fitting else "it fits no tensor of the model"
            raise UserError(
                f"array {index} has shape {tuple(tensor.shape)}, but the model's tensor {index} is {name} with "
                f"{tuple(shape)}; {where}: send the arrays in the order of the model's state_dict()"
            )
    if len(found) != len(places):
        buffers = sum(name.rpartition(".")[2] in _BUFFERS for name in shapes)
        hint = f" ({buffers} of them are buffers of batch normalization)" if buffers else ""
        raise UserError(f"{len(found)} arrays for the model's {len(places)} tensors{hint}: send all of them, in order")
    return {name: tensor for (name, _), tensor in zip(places, found, strict=True)}
