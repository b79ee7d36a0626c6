# SPDX-License-Identifier: Apache-2.0
"""A unit of its own for each image of a client: where two images measure alike, one of them takes the next free unit.

Where images in one row do not add up, as under Adam or sign compression, a collision costs a whole image. A layer that
sees a mini-batch can avoid it, as it can normalize a batch; and one that remembers which image holds which unit keeps
the images of later mini-batches apart, too, and sends an image to the same row in every epoch.
"""

import torch
from torch import Tensor

# Measurements that differ by less belong to the same image: rounding is a hundredth of it, and of 16 photographs two
# are that close once in a thousand batches.
_SAME = 1e-4


def own_units(measured: Tensor, wanted: Tensor, owners: Tensor) -> Tensor:
    """Give each image a unit that no other image holds.

    Args:
        measured: What each image measures, shape (B,).
        wanted: The unit whose interval that is in, shape (B,), int64.
        owners: The measurement of the image that holds each unit, NaN for a free one, shape (K,); new owners are
            entered in place.

    Returns:
        The units, shape (B,), int64: that of an earlier mini-batch for an image that is known, else the first free one
        from the wanted one upwards, from the last to the first; the wanted one if none is free.
    """
    # In host memory, because every image depends on those before it: a GPU would be waited for at each.
    measured, wanted, held = measured.cpu(), wanted.cpu(), owners.cpu()
    units = wanted.clone()
    for image in measured.argsort().tolist():
        alike = (held - measured[image]).abs() <= _SAME
        candidates = alike if bool(alike.any()) else held.isnan()
        if bool(candidates.any()):
            places = torch.nonzero(candidates).flatten()
            units[image] = places[((places - wanted[image]) % len(held)).argmin()]
            held[units[image]] = measured[image]
    owners.copy_(held)
    return units.to(owners.device)
