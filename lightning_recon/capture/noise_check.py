# SPDX-License-Identifier: Apache-2.0
"""Compare the noise in a captured update with the announced noise, and name the likely cause of a mismatch."""

import math

from lightning_recon.capture.update_file import CapturedUpdate
from lightning_recon.errors import UserError
from lightning_recon.exchange import ClientUpdate, ServerPayload, task_of_sums
from lightning_recon.exchange.local_training import SGD
from lightning_recon.structure.layer_spec import layer_spec
from lightning_recon.structure.local_weights import local_weights
from lightning_recon.structure.readout import weight_names

# Tolerated difference between measured and announced noise: this share, or so many standard errors.
TOLERANCE = 0.05
ERRORS = 5.0
_MOMENTUM = 0.9
# Standard error of a standard deviation by that for normal noise: 1.58 for Laplace noise.
_HEAVY_TAILS = 1.6


def null_noise(update: ClientUpdate, payload: ServerPayload) -> tuple[float, int] | None:
    """Measure the noise on the weights of the structure's always-zero inputs, whose gradient is nothing but noise.

    Args:
        update: in the convention of `ClientUpdate`.
        payload: what the server sent.

    Returns:
        Standard deviation, in the update's unit, and the number of values; None if there are no such inputs.
    """
    # Constant inputs of 1, of which codes of ±1 have several, come before those of 0.
    if layer_spec(payload) is None or not (nulls := int((payload.tensors["constants"] == 0).sum())):
        return None
    last = update.gradient[weight_names(payload)[-1]][:, -nulls:].double()
    return float(last.square().mean().sqrt()), last.numel()


def check_noise(captured: CapturedUpdate, update: ClientUpdate, payload: ServerPayload) -> None:
    """Compare the noise on the structure's zero inputs with the announced noise.

    A sum taken for a mean, another clipping norm, momentum, and an average over rounds all scale the noise. A wrong
    sign of the update does not, and is not found.

    Args:
        captured: the file's content.
        update: the same in the convention of `ClientUpdate`.
        payload: what the server sent.

    Raises:
        UserError: the two differ by more than 5 %, and by more than chance explains.
    """
    found, task = null_noise(update, payload), task_of_sums(captured.task, [update.contributors])
    private_steps = task.granularity == "sample" and not task.local.is_plain_step
    # Of DP-SGD by other optimizers the noise of an update is not known, nor is that after compression.
    unknown = task.compression is not None or (private_steps and task.local.optimizer != SGD)
    if found is None or task.max_grad_norm is None or unknown:
        return
    measured, count = found
    announced = task.update_noise * task.max_grad_norm * local_weights(task).noise
    errors = ERRORS if task.noise_is_normal else _HEAVY_TAILS * ERRORS
    if abs(measured - announced) <= max(TOLERANCE, errors / math.sqrt(2 * count)) * announced + 1e-6 * measured:
        return
    unit = task.noise.noise_std
    factor = "z·C" if unit == 1 else f"{unit:.4g} z·C"
    raise UserError(
        f"the noise on the structure's {count} zero inputs has standard deviation {measured:.4g}, but {factor} = "
        f"{announced:.4g} is announced (z {task.update_noise / unit:g}, C {task.max_grad_norm:g}): it corresponds to "
        f"z = {measured / unit / task.max_grad_norm:.4g}; {_cause(captured, measured, announced)}"
    )


def _cause(captured: CapturedUpdate, measured: float, announced: float) -> str:
    """The likely cause of noise that is wrong by a factor."""
    task, declared = captured.task, captured.declared
    if announced == 0:
        return "announce the noise multiplier that the client really used"
    factor = measured / announced
    batch, convention = float(task.batch_size), captured.convention
    other = "gradient_sum" if convention == "gradient_mean" else "gradient_mean"
    causes: list[tuple[float, str]] = []
    if task.granularity == "sample" and batch > 1:
        wrong = batch if convention == "gradient_mean" else 1 / batch
        causes.append((wrong, f"a factor of the batch size {task.batch_size}, so the convention is likely {other}"))
    if declared is not None and declared.sensitivity and task.max_grad_norm:
        ratio = declared.sensitivity / task.max_grad_norm
        found = f"the noise is scaled by the sensitivity {declared.sensitivity:g}, not the clip {task.max_grad_norm:g}"
        causes.append((ratio, f"{found}: announce z = noise / clip"))
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
    return "likely another clipping norm, a learning rate, or momentum: capture the noised gradient itself"
