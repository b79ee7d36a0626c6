# SPDX-License-Identifier: Apache-2.0
"""Whether the sensitivity that a program computed its noise from fits the clipping norm."""

from lightning_recon.capture.update_file import CapturedUpdate


def sensitivity_remarks(clipping_norm: float, sensitivity: float) -> list[str]:
    """Warnings about the sensitivity from which the noise was computed.

    Args:
        clipping_norm: C, above 0.
        sensitivity: at least 0, in the same unit.
    """
    remarks = []
    if sensitivity == 0:
        remarks.append("sensitivity 0 adds no noise at all, whatever epsilon is declared")
    elif sensitivity < clipping_norm * (1 - 1e-9):
        remarks.append(
            f"sensitivity {sensitivity:g} is below the clipping norm {clipping_norm:g}: the noise is "
            f"{clipping_norm / sensitivity:.3g} times too small even for adding or removing one update (add_remove)"
        )
    if 0 < sensitivity < 2 * clipping_norm * (1 - 1e-9):
        remarks.append(
            f"two updates clipped to {clipping_norm:g} differ by up to {2 * clipping_norm:g}, and local differential "
            f"privacy compares any two (replace_one): it needs sensitivity {2 * clipping_norm:g}, not {sensitivity:g}"
        )
    if sensitivity > 2 * clipping_norm * (1 + 1e-9):
        remarks.append(
            f"sensitivity {sensitivity:g} is above {2 * clipping_norm:g}, the largest difference of two clipped "
            "updates: there is more noise than the declared epsilon needs"
        )
    return remarks


def remarks_of(captured: CapturedUpdate) -> list[str]:
    """Warnings about the privacy that the program which made an update declared.

    Args:
        captured: the file's content, or its header.
    """
    task, declared = captured.task, captured.declared
    if declared is None or declared.sensitivity is None or task.max_grad_norm is None:
        return []
    return sensitivity_remarks(task.max_grad_norm, declared.sensitivity)
