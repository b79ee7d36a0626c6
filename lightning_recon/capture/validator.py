# SPDX-License-Identifier: Apache-2.0
"""What is wrong with a captured update, in one line, before anything is attacked."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lightning_recon.capture.update_file import CapturedUpdate
from lightning_recon.errors import UserError
from lightning_recon.exchange import ClientUpdate, ServerPayload
from lightning_recon.networks.normalization import without_wrapper
from lightning_recon.structure.layer import build_layer
from lightning_recon.structure.layer_spec import layer_spec
from lightning_recon.structure.readout import weight_names

Shape = tuple[int, ...]

STRUCTURE = "structure."
NETWORK = "network."
# How far the measured noise may be from the announced one: this share, or so many standard errors.
TOLERANCE = 0.05
_ERRORS = 5.0
_BUFFERS = ("running_mean", "running_var", "num_batches_tracked")
_MOMENTUM = 0.9


def structure_shapes(payload: ServerPayload) -> dict[str, Shape]:
    """Name and shape of what the structure of a payload adds to an update; nothing for an empty payload."""
    if not payload.settings and not payload.tensors:
        return {}
    return {STRUCTURE + name: tuple(p.shape) for name, p in build_layer(payload).named_parameters()}


def check_tensors(tensors: Mapping[str, Tensor], expected: Mapping[str, Shape], others: bool) -> None:
    """Compare names, shapes, dtypes and values with what an honest client of this server would send.

    Args:
        tensors: what was captured, by parameter name.
        expected: shape by parameter name.
        others: whether tensors of the network that `expected` does not name are let pass, because the network is not
            known here.

    Raises:
        UserError: the first thing that is wrong.
    """
    for name in tensors:
        if name.rpartition(".")[2] in _BUFFERS and name not in expected:
            raise UserError(
                f"{name} is a buffer of batch normalisation, which is no gradient and not protected by the noise: "
                "capture parameters only (named_parameters(), not state_dict())"
            )
    if not any(name.startswith(STRUCTURE) for name in tensors) and any(n.startswith(STRUCTURE) for n in expected):
        hint = next(iter(tensors), "nothing")
        raise UserError(
            f"the update holds no structure tensors (its first is {hint}): the client must train the server's model, "
            "and names begin with structure. or network., without a wrapper's prefix such as _module."
        )
    for name, shape in expected.items():
        if name not in tensors:
            present = sum(key in tensors for key in expected)
            raise UserError(
                f"the update lacks {name}, shape {shape}: {present} of {len(expected)} parameter tensors are there; "
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
                f"the update has {name}, which the server's model has not: capture the parameters of that model alone"
            )
        if not tensor.is_floating_point():
            kind = str(tensor.dtype).removeprefix("torch.")
            raise UserError(f"{name} holds {kind}, and a gradient is floating point: capture it before it is quantised")
        if not bool(tensor.isfinite().all()):
            raise UserError(f"{name} holds NaN or infinity: the client's training diverged, lower its learning rate")


def name_arrays(arrays: Sequence[Any], shapes: Mapping[str, Shape]) -> dict[str, Tensor]:
    """Give arrays that came without names (as Flower ships them) the names of a model's tensors, in their order.

    Args:
        arrays: numpy arrays or tensors, in the order of `shapes`.
        shapes: shape by name, in the order in which the sender listed them: of `state_dict()`, say.

    Returns:
        Tensors by name.

    Raises:
        UserError: there are more or fewer, or one does not fit; which one, and where it would.
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
        hint = f" ({buffers} of them are buffers of batch normalisation)" if buffers else ""
        raise UserError(f"{len(found)} arrays for the model's {len(places)} tensors{hint}: send all of them, in order")
    return {name: tensor for (name, _), tensor in zip(places, found, strict=True)}


def null_noise(update: ClientUpdate, payload: ServerPayload) -> tuple[float, int] | None:
    """Noise as the structure's always-zero inputs show it: nothing but noise ever reaches their weights.

    Args:
        update: in the convention of `ClientUpdate`.
        payload: what was shipped.

    Returns:
        Standard deviation of the numbers there, in the update's unit, and how many there are; None without such inputs.
    """
    if layer_spec(payload) is None or not (nulls := payload.tensors["constants"].numel() - 1):
        return None
    last = update.gradient[weight_names(payload)[-1]][:, -nulls:].double()
    return float(last.square().mean().sqrt()), last.numel()


def check_noise(captured: CapturedUpdate, update: ClientUpdate, payload: ServerPayload) -> None:
    """Hold the noise on the structure's zero inputs against the announced one.

    The sign of an update cannot be told from it (the pilot's sign is the victim's), but a sum taken for a mean, another
    clip, momentum or an average over rounds all change the noise by a factor.

    Args:
        captured: the file's content.
        update: the same in the convention of `ClientUpdate`.
        payload: what was shipped.

    Raises:
        UserError: the two differ by more than 5 %, and by more than chance explains.
    """
    found, task = null_noise(update, payload), captured.task
    if found is None or task.max_grad_norm is None:
        return
    measured, count = found
    announced = task.update_noise * task.max_grad_norm
    if abs(measured - announced) <= max(TOLERANCE, _ERRORS / math.sqrt(2 * count)) * announced + 1e-6 * measured:
        return
    raise UserError(
        f"the noise on the structure's {count} zero inputs has standard deviation {measured:.4g}, but z·C = "
        f"{announced:.4g} is announced (z {task.update_noise:g}, C {task.max_grad_norm:g}): it is what z = "
        f"{measured / task.max_grad_norm:.4g} gives; {_reason(captured, measured, announced)}"
    )


def _reason(captured: CapturedUpdate, measured: float, announced: float) -> str:
    """What is likely wrong when the noise is off by a factor."""
    task, declared = captured.task, captured.declared
    if announced == 0:
        return "state the noise multiplier that the client really used"
    factor = measured / announced
    batch, convention = float(task.batch_size), captured.convention
    other = "gradient_sum" if convention == "gradient_mean" else "gradient_mean"
    causes: list[tuple[float, str]] = []
    if task.granularity == "sample" and batch > 1:
        wrong = batch if convention == "gradient_mean" else 1 / batch
        causes.append((wrong, f"a factor of the batch size {task.batch_size}, so the convention is likely {other}"))
    if declared is not None and declared.sensitivity and task.max_grad_norm:
        ratio = declared.sensitivity / task.max_grad_norm
        said = f"its noise goes with the sensitivity {declared.sensitivity:g}, not with the clip {task.max_grad_norm:g}"
        causes.append((ratio, f"{said}: announce z = noise / clip"))
    if task.rounds > 1:
        causes.append((task.rounds**-0.5, f"likely an average over {task.rounds} rounds: capture each round"))
    if task.clients > 1:
        causes.append((task.clients**-0.5, f"likely an average over {task.clients} clients: capture each client"))
    momentum = (1 - _MOMENTUM**2) ** -0.5
    causes.append((momentum, f"likely a momentum buffer (factor {momentum:.2f} for {_MOMENTUM}), not the gradient"))
    causes.append((1 - _MOMENTUM, f"likely a running mean with weight {1 - _MOMENTUM:.1f}, not the gradient"))
    for expected, cause in causes:
        if expected != 1 and abs(factor / expected - 1) <= TOLERANCE:
            return cause
    return "likely another clip, a learning rate, or momentum: capture the noised gradient itself"


def check_update(
    captured: CapturedUpdate,
    payload: ServerPayload,
    network: Mapping[str, Shape] | None,
    head: str | None = None,
) -> ClientUpdate:
    """Everything that can be said about one captured update.

    Args:
        captured: the file's content.
        payload: what the configured structure ships.
        network: shape of the network's parameters by name, without "network."; None if the network is not known here.
        head: which of them is the bias of the last layer, (classes,); None if that is not known.

    Returns:
        The update in the convention of `ClientUpdate`.

    Raises:
        UserError: the first thing that is wrong.
    """
    if captured.payload != (digest := payload.digest()):
        if captured.payload == ServerPayload().digest():
            raise UserError(
                "this update answers an honest server, which ships its network alone, and a structure is configured: "
                "add --config attack/likelihood.yaml, or another honest server's attack"
            )
        raise UserError(
            f"this update answers the payload {captured.payload[:12]}, and the configured structure ships "
            f"{digest[:12]}: set --model.structure to the settings under which the payload was made"
        )
    expected = structure_shapes(payload) | {NETWORK + name: shape for name, shape in (network or {}).items()}
    tensors = captured.tensors if network is None else without_wrapper(captured.tensors, expected, NETWORK)
    check_tensors(tensors, expected, others=network is None)
    if network is not None and len(network) != captured.task.parameter_tensors:
        raise UserError(
            f"task.parameter_tensors is {captured.task.parameter_tensors}, but the network has {len(network)} "
            "parameter tensors: write the true number"
        )
    update = replace(captured, tensors=tensors).update()
    check_noise(captured, update, payload)
    if head is not None:
        check_sign(captured, update, head)
    return update


def sensitivity_remarks(clipping_norm: float, sensitivity: float) -> list[str]:
    """What is wrong with a sensitivity that noise was computed from.

    Args:
        clipping_norm: C, above 0.
        sensitivity: at least 0, in the same unit.
    """
    remarks = []
    if sensitivity == 0:
        remarks.append("sensitivity 0 adds no noise at all, whatever epsilon says")
    elif sensitivity < clipping_norm * (1 - 1e-9):
        remarks.append(
            f"sensitivity {sensitivity:g} is below the clipping norm {clipping_norm:g}: the noise is "
            f"{clipping_norm / sensitivity:.3g} times too small even for an update that is there or is not"
        )
    if 0 < sensitivity < 2 * clipping_norm * (1 - 1e-9):
        remarks.append(
            f"two updates clipped to {clipping_norm:g} differ by up to {2 * clipping_norm:g}, and local differential "
            f"privacy compares any two (replace_one): it takes sensitivity {2 * clipping_norm:g}, not {sensitivity:g}"
        )
    if sensitivity > 2 * clipping_norm * (1 + 1e-9):
        remarks.append(
            f"sensitivity {sensitivity:g} is above {2 * clipping_norm:g}, the most by which two clipped updates "
            "differ: there is more noise than epsilon asks for"
        )
    return remarks


def check_sign(captured: CapturedUpdate, update: ClientUpdate, head: str) -> None:
    """Hold the gradient of the last layer's bias against what cross-entropy allows.

    An image's gradient there is prediction minus label: below zero in its own class alone. So no sum of clipped
    gradients, and no local steps, are negative in more classes than there are images; a delta, which points the other
    way, is, and so is momentum that remembers other batches.

    Args:
        captured: the file's content.
        update: the same in the convention of `ClientUpdate`.
        head: name of that bias in the network.

    Raises:
        UserError: more classes are below zero than chance explains.
    """
    task = captured.task
    entries = update.gradient[NETWORK + head].double()
    margin = max(_ERRORS * task.update_noise * (task.max_grad_norm or 0.0), 1e-4 * float(entries.abs().max()))
    below, above = int((entries < -margin).sum()), int((entries > margin).sum())
    if below <= task.victims:
        return
    advice = "send the gradient itself: neither momentum nor weight decay"
    if above <= task.victims:
        other = "gradient_mean" if captured.convention == "delta" else "delta"
        advice = f"its sign is the opposite one, so say convention {other}"
    raise UserError(
        f"{NETWORK + head} is below zero in {below} classes, and a gradient is in no more than it has pictures, here "
        f"{task.victims} (gradients point from the new weights to the old, deltas the other way): {advice}"
    )


def remarks_of(captured: CapturedUpdate) -> list[str]:
    """What the program that made an update does not tell its users.

    Args:
        captured: the file's content, or its header.
    """
    task, declared = captured.task, captured.declared
    if declared is None or declared.sensitivity is None or task.max_grad_norm is None:
        return []
    return sensitivity_remarks(task.max_grad_norm, declared.sensitivity)
