# SPDX-License-Identifier: Apache-2.0
"""How loud each victim is: head weights under which the gradient that reaches a unit is ±1, whatever the label.

A structure that adds u · (activation − twin) to the logits has the voice δ = u · (softmax − one-hot) for a victim. With
the same ±1 code for all, a confident network silences a victim: softmax and one-hot nearly agree. But the structure
knows the softmax when it runs, and may choose u anew for each picture, since activation and twin cancel whatever u is:
the network's output stays exactly what it was.
"""

import torch
from torch import Tensor

# A victim that the network confidently gets wrong may be so many times as loud as others, and no more: under a common
# clip it would drown them.
LOUDEST = 30.0


def class_code(classes: int) -> Tensor:
    """Balanced ±1 head weights, shape (classes,): a victim's voice is 2 · P(classes of the other sign).

    As many classes of either sign as possible, in random order, so that |δ| is near 1 for every label while the
    network is undecided, and look-alike classes seldom share a sign.
    """
    order = torch.randperm(classes, generator=torch.Generator().manual_seed(3))
    return torch.where(order % 2 == 0, 1.0, -1.0)


def balanced_code(logits: Tensor) -> Tensor:
    """Head weights for each picture under which every label speaks about equally loud.

    With Σ p u = 0 the voice of label y is exactly −u_y. So the classes are parted into two sets of probability P and Q,
    as equal as can be, which get the weights 1 and −P/Q. A network that gives the likeliest class more than half
    leaves P/Q > 1: should the label be another one, that victim is P/Q times as loud, but at most 30 times. A network
    surer than p = 0.968 reaches that; from there on, whom it gets right becomes fainter, by 30 (1 − p)/p.

    Args:
        logits: Shape (B, classes), at least 2 classes.

    Returns:
        Shape (B, classes), same dtype.
    """
    probability, order = torch.softmax(logits, dim=1).sort(dim=1, descending=True, stable=True)
    # The likeliest class against as many of the next ones as come nearest to one half.
    mass = probability[:, 1:].cumsum(dim=1)
    last = (mass - 0.5).abs().argmin(dim=1, keepdim=True)
    second = torch.arange(1, logits.shape[1], device=logits.device) <= last + 1
    other = mass.gather(1, last).clamp(min=1e-12)
    ratio = (1 - other) / other
    loud = ratio.clamp(max=LOUDEST)
    code = torch.where(second, -loud, loud / ratio)
    first = (loud / ratio).expand(-1, 1)
    return torch.zeros_like(probability).scatter(1, order, torch.cat([first, code], dim=1))
