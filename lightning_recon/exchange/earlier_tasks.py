# SPDX-License-Identifier: Apache-2.0
"""Tasks that earlier versions recorded, in the fields of today."""

from collections.abc import Mapping
from typing import Any

EARLIER_LOCAL_FIELDS = ("local_steps", "local_lr", "local_rate", "local_epochs")


def completed(record: Mapping[str, Any]) -> dict[str, Any]:
    """Update the record of a task that an earlier version wrote.

    Without `normalization`, it means that of ImageNet. Earlier versions wrote `local_steps` of plain SGD, each on an
    equal part of the batch, with `local_lr` (or `local_rate`) and `local_epochs`; and other values of `noise_share`.
    """
    current = {"normalization": "imagenet", **record}
    earlier = {name: current.pop(name) for name in EARLIER_LOCAL_FIELDS if name in current}
    if earlier and "local" not in current:
        current["local"] = _local_of(earlier, current.get("batch_size"))
    if "noise_share" in current:
        current["noise_share"] = current_noise_share(current["noise_share"])
    return current


def _local_of(earlier: Mapping[str, Any], images: Any) -> dict[str, Any]:  # noqa: ANN401 - unchecked content of a file
    """The record of `Task.local` for the fields that earlier versions wrote.

    Raises:
        ValueError: the steps do not divide the batch.
    """
    found = {"epochs": earlier.get("local_epochs", 1)}
    found["learning_rates"] = [earlier.get("local_lr", earlier.get("local_rate", 0.1))]
    steps = earlier.get("local_steps", 1)
    if not (type(steps) is int and steps >= 1 and type(images) is int and images % steps == 0):
        raise ValueError(f"task.local_steps is {steps}, which does not divide task.batch_size")
    return found | ({"batch_size": images // steps} if steps > 1 else {})


def current_noise_share(value: Any) -> Any:  # noqa: ANN401 - unchecked content of a file
    """Translate the values of `noise_share` that earlier versions wrote; any other value stays as it is."""
    return {"full": "local", "shared": "distributed"}.get(value, value) if isinstance(value, str) else value
