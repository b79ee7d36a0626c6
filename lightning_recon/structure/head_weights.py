# SPDX-License-Identifier: Apache-2.0
"""Head weights under which the gradient that reaches a unit is ±1, whatever the label.

A structure that adds u · (activation − frozen copy) to the logits gives a sample the gradient weight
δ = u · (softmax − one-hot). With the same ±1 code for all samples, δ vanishes where the network is confident, because
softmax and one-hot nearly agree. But the structure knows the softmax in its forward pass and can choose u for each
sample: activation and frozen copy cancel for any u, so the output of the network does not change.
"""

import torch
from torch import Tensor

# Largest gradient weight of a confidently misclassified sample, relative to the others: under a common clip a larger
# one would leave them almost no budget.
MAX_WEIGHT_RATIO = 30.0
# Number of classes of which every partition is tried, since a mere cut of a few sorted classes leaves unequal sets.
_FREE_CLASSES = 10


def class_code(classes: int) -> Tensor:
    """Balanced ±1 head weights, shape (classes,): the gradient weight of a sample is 2 · P(classes of the other sign).

    As many classes of either sign as possible, in random order, so that |δ| is near 1 for every label while the
    network is undecided, and look-alike classes seldom share a sign.
    """
    order = torch.randperm(classes, generator=torch.Generator().manual_seed(3))
    return torch.where(order % 2 == 0, 1.0, -1.0)


def balanced_code(logits: Tensor, signs: Tensor | None = None) -> Tensor:
    """Head weights for each image under which every label gives about the same gradient weight.

    With Σ p u = 0 the gradient weight of label y is exactly −u_y. So the classes are divided into two sets of
    nearly equal probability P and Q, which get the weights 1 and −P/Q. A network that gives the likeliest class more
    than half leaves P/Q > 1: should the label be another one, that sample has P/Q times the weight, but at most 30
    times. A network surer than p = 0.968 reaches that limit; beyond it the weight of correctly classified samples falls
    as 30 (1 − p)/p.

    Args:
        logits: Shape (B, classes), at least 2 classes.
        signs: The sign of every class, ±1, shape (classes,): then the classes of either sign are the two sets. The
            gradient of an image has the same sign at every visit of several epochs then, while its logits change. The
            sets are less equal, so a confident network leaves more unequal weights. None: the most equal sets.

    Returns:
        Shape (B, classes), same dtype.
    """
    if signs is not None:
        return _balanced_signs(logits, signs)
    probability, order = torch.softmax(logits, dim=1).sort(dim=1, descending=True, stable=True)
    rest = probability[:, 1:]  # the likeliest class is in the first set
    second = _second_set(rest)
    other = (rest * second).sum(dim=1, keepdim=True).clamp(min=1e-12)
    ratio = (1 - other) / other
    largest = ratio.clamp(max=MAX_WEIGHT_RATIO)
    code = torch.where(second, -largest, largest / ratio)
    first = (largest / ratio).expand(-1, 1)
    return torch.zeros_like(probability).scatter(1, order, torch.cat([first, code], dim=1))


def _second_set(probability: Tensor) -> Tensor:
    """Which of the classes make up a probability nearest to one half.

    Args:
        probability: In descending order, shape (B, n).

    Returns:
        Shape (B, n), bool: as many of the first classes as come nearest, changed among the classes around that cut.
    """
    count = probability.shape[1]
    # The last of equally near ones: where every class is too unlikely to matter, none may be left out.
    cut = count - (probability.cumsum(dim=1) - 0.5).abs().flip(1).argmin(dim=1, keepdim=True)
    chosen = torch.arange(count, device=probability.device) < cut
    free = min(count, _FREE_CLASSES)
    window = (cut - free // 2).clamp(0, count - free) + torch.arange(free, device=probability.device)
    numbers = torch.arange(2**free, device=probability.device)
    # The partition that leaves out none comes first, for the same reason.
    partitions = ((numbers[:, None] >> torch.arange(free, device=probability.device)) & 1) == 0
    outside = chosen.scatter(1, window, torch.zeros_like(window, dtype=torch.bool))
    sums, inside = (probability * outside).sum(dim=1, keepdim=True), probability.gather(1, window)
    for place in range(free):  # one class at a time, which needs less memory than all of them together
        sums = sums + inside[:, place, None] * partitions[:, place]
    return chosen.scatter(1, window, partitions[(sums - 0.5).abs().argmin(dim=1)])


def _balanced_signs(logits: Tensor, signs: Tensor) -> Tensor:
    """Head weights with a given sign of every class, of which the likelier set has the weight 1 while it can."""
    positive = (signs > 0).expand_as(logits)
    # In logarithms, which stay finite where one set has hardly any probability.
    mass = [logits.masked_fill(~kind, -torch.inf).logsumexp(dim=1, keepdim=True) for kind in (positive, ~positive)]
    ratio = (mass[0] - mass[1]).abs().clamp(max=60.0).exp()
    largest = ratio.clamp(max=MAX_WEIGHT_RATIO)
    likelier = positive == (mass[0] > mass[1])
    return signs.to(logits) * torch.where(likelier, largest / ratio, largest)
