# SPDX-License-Identifier: Apache-2.0
"""How many rows a digital code has: one for each image where the layer sees a client's batch, else rows they share."""

import math

from lightning_recon.exchange import Task
from lightning_recon.structure.sign_payload import sees_all_images

# Units for each image where each one gets its own, at least and at most: spare ones are for clients that have more
# images than they announced, and there are fewer of them where the upload limit shortens the codewords.
_OWN_UNITS = (1.25, 2.0)
# Units for each image where images share rows, at least and at most, and their least number.
_SHARED_UNITS, _FEWEST_UNITS = (4.0, 8.0), 64
# Bytes of a float32.
ENTRY = 4


def has_own_units(task: Task, units: int | None, directions: int | None) -> bool:
    """Whether each image can get a unit of its own, see `coding.own_units`.

    Not where batches change, since an image would get another row in every round, and a client may have any number of
    images.

    Args:
        task: What was announced.
        units: How many units the user asked for, if any.
        directions: How many directions the user asked for, if any.
    """
    fit = directions in (None, 1) and (units is None or units >= task.victims)
    return fit and task.victims > 1 and sees_all_images(task) and not task.batches_change


def unit_count(task: Task, own: bool, inputs: int, upload_limit: int) -> int:
    """Number of units.

    Args:
        task: What was announced.
        own: Whether each image gets a unit of its own.
        inputs: Length of the codeword if the upload limit were a single row's.
        upload_limit: Most bytes of all rows.
    """
    if task.victims == 1:
        return 1
    fewest, most = (math.ceil(share * task.victims) for share in (_OWN_UNITS if own else _SHARED_UNITS))
    if not own:
        fewest, most = max(_FEWEST_UNITS, fewest), max(_FEWEST_UNITS, most)
    return min(most, max(fewest, upload_limit // (ENTRY * inputs)))
