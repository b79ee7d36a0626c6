# SPDX-License-Identifier: Apache-2.0
"""Validate a captured update before it is attacked; the first fault is reported in one line."""

from collections.abc import Mapping
from dataclasses import replace

from lightning_recon.capture.noise_check import ERRORS, check_noise
from lightning_recon.capture.tensor_check import NETWORK, Shape, check_tensors, structure_shapes
from lightning_recon.capture.update_file import CapturedUpdate
from lightning_recon.errors import UserError
from lightning_recon.exchange import ClientUpdate, ServerPayload
from lightning_recon.networks.normalization import without_wrapper


def check_update(
    captured: CapturedUpdate,
    payload: ServerPayload,
    network: Mapping[str, Shape] | None,
    head: str | None = None,
) -> ClientUpdate:
    """Check payload, tensors, noise and sign of one captured update.

    Args:
        captured: the file's content.
        payload: what the configured structure sends.
        network: shape of the network's parameters by name, without "network."; None if the network is unknown.
        head: name of the last layer's bias, (classes,), among them; None if it is unknown.

    Returns:
        The update in the convention of `ClientUpdate`.

    Raises:
        UserError: the first fault.
    """
    if captured.payload != (digest := payload.digest()):
        if captured.payload == ServerPayload().digest():
            raise UserError(
                "this update answers an honest server, which sends its network only, but a structure is configured: "
                "add --config attack/likelihood.yaml, or another attack by an honest server"
            )
        raise UserError(
            f"this update answers the payload {captured.payload[:12]}, but the configured structure sends "
            f"{digest[:12]}: set --model.structure to the settings with which the payload was made"
        )
    expected = structure_shapes(payload) | {NETWORK + name: shape for name, shape in (network or {}).items()}
    tensors = captured.tensors if network is None else without_wrapper(captured.tensors, expected, NETWORK)
    check_tensors(tensors, expected, others=network is None)
    if network is not None and len(network) != captured.task.parameter_tensors:
        raise UserError(
            f"task.parameter_tensors is {captured.task.parameter_tensors}, but the network has {len(network)} "
            "parameter tensors: correct the number"
        )
    update = replace(captured, tensors=tensors).update()
    check_noise(captured, update, payload)
    if head is not None:
        check_sign(captured, update, head)
    return update


def check_sign(captured: CapturedUpdate, update: ClientUpdate, head: str) -> None:
    """Check the sign of an update by the gradient of the last layer's bias under cross-entropy.

    An image's gradient there is prediction minus label, which is negative only in the image's own class. Neither a sum
    of clipped gradients nor an update of local steps is therefore negative in more classes than there are images. A
    delta, which has the opposite sign, is; so is a momentum buffer, which also holds gradients of other batches.

    Args:
        captured: the file's content.
        update: the same in the convention of `ClientUpdate`.
        head: name of the last layer's bias in the network.

    Raises:
        UserError: more classes are negative than chance explains.
    """
    task = captured.task
    if not task.local.is_plain_sgd or (task.granularity == "sample" and not task.local.is_plain_step):
        return  # signs of noise, of earlier steps or of weights
    entries = update.gradient[NETWORK + head].double()
    margin = max(ERRORS * task.update_noise * (task.max_grad_norm or 0.0), 1e-4 * float(entries.abs().max()))
    below, above = int((entries < -margin).sum()), int((entries > margin).sum())
    if below <= task.victims:
        return
    advice = "capture the gradient itself, without momentum and weight decay"
    if above <= task.victims:
        other = "gradient_mean" if captured.convention == "delta" else "delta"
        advice = f"its sign is reversed, so set convention {other}"
    raise UserError(
        f"{NETWORK + head} is negative in {below} classes, but a gradient is negative in no more classes than it has "
        f"images, here {task.victims} (a gradient is old minus new weights, a delta is new minus old): {advice}"
    )
