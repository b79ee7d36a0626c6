# SPDX-License-Identifier: Apache-2.0
"""The assignment of labels to local steps that explains an update best.

A client that takes several local steps processes each label with different weights, so the order shows in its update.
The likelihood separates wrong orders from the right one: roughly before any search, reliably after a short one.
"""

import torch
from torch import Tensor, nn

from lightning_recon.attack.inversion.batched_lbfgs import BatchedLBFGS
from lightning_recon.attack.inversion.distances import squared_distance
from lightning_recon.attack.inversion.forward_model import Update, client_update
from lightning_recon.attack.inversion.objective import Candidates, GradientMatching
from lightning_recon.exchange import Task
from lightning_recon.rng import generator_for

_EXPANDED = 16  # orders whose neighbours (two labels exchanged) are judged too
_SEARCHED = 16  # orders for which images are optimised
_TRIAL = 20  # evaluations of each order between two halvings
_SPREAD = 0.1  # of the starts, relative to the attack's: with more, wrong orders stay ahead for longer

Order = tuple[int, ...]


def ordered_labels(labels: Tensor, update: Update, matching: GradientMatching, seed: int, chunk_size: int) -> Tensor:
    """The order of labels that explains an update best.

    Orders are first ranked with the public mean image in the place of every image, by a best-first search that
    exchanges pairs of labels. For the best 16 images are optimised by L-BFGS; after every 20 evaluations the worse half
    is dropped.

    Args:
        labels: In any order, (victims,), int64.
        update: As received.
        matching: The likelihood, in the parametrization of the search.
        seed: Of the starts.
        chunk_size: Orders that are evaluated at a time.

    Returns:
        The same labels, those of the first local step first; within a step ascending.

    Source: successive halving is Jamieson & Talwalkar 2016 (arXiv 1502.07943), algorithm 1; the rest is ours.
    """
    orders = _promising(labels, update, matching, chunk_size)
    if len(orders) == 1:
        return orders[0]
    start = _SPREAD * matching.parametrization.start("mean", len(labels), generator_for("order", seed))
    dummies = nn.ParameterList(start.to(labels.device, copy=True) for _ in orders)
    lowest = torch.full((len(orders),), torch.inf, device=labels.device)
    optimizer, alive = BatchedLBFGS(dummies), torch.arange(len(orders), device=labels.device)

    def closure() -> Tensor:
        values = torch.full_like(lowest, torch.inf)
        for one in dummies:
            one.grad = torch.zeros_like(one)
        for some in torch.split(alive, chunk_size):
            now = torch.stack([dummies[slot].detach() for slot in some.tolist()])
            found = matching(Candidates(now, None, orders[some], _repeated(update, len(some)), None, None))
            values[some] = found.value
            for slot, gradient in zip(some.tolist(), found.dummies, strict=True):
                dummies[slot].grad = gradient
        lowest.copy_(torch.minimum(lowest, values.nan_to_num(torch.inf, torch.inf)))
        return values

    while len(alive) > 1:
        for _ in range(_TRIAL):
            optimizer.step(closure)
        alive = alive[lowest[alive].argsort(stable=True)[: len(alive) // 2]]
    return orders[alive[0]]


def _promising(labels: Tensor, update: Update, matching: GradientMatching, chunk_size: int) -> Tensor:
    """The orders that explain an update best if every image were the public mean image, the best first.

    Best-first search from the ascending order: of four labels in four steps it judges all 24 orders, of more the
    neighbours of the best.
    """
    task, images = matching.task, matching.parametrization.mean.expand(len(labels), -1, -1, -1)
    judged: dict[Order, float] = {}
    waiting = [_within_steps(labels.tolist(), task)]
    expanded: set[Order] = set()
    for _ in range(_EXPANDED + 1):
        new = [one for one in dict.fromkeys(waiting) if one not in judged]
        for first in range(0, len(new), chunk_size):
            some = new[first : first + chunk_size]
            targets = torch.tensor(some, device=labels.device)
            judged |= zip(some, _misfits(targets, images, update, matching).tolist(), strict=True)
        open_orders = [one for one in judged if one not in expanded]
        if not open_orders:
            break
        best = min(open_orders, key=judged.__getitem__)
        expanded.add(best)
        waiting = _exchanged(best, task)
    ranked = sorted(judged, key=judged.__getitem__)[:_SEARCHED]
    return torch.tensor(ranked, device=labels.device)


@torch.no_grad()
def _misfits(orders: Tensor, images: Tensor, update: Update, matching: GradientMatching) -> Tensor:
    """Squared distance of the updates that orders of labels would give with these images, (K,)."""

    def misfit(targets: Tensor) -> Tensor:
        return squared_distance(client_update(matching.model, images, targets, matching.task)[0], update)

    if len(orders) == 1:
        return misfit(orders[0])[None]
    found: Tensor = torch.vmap(misfit)(orders)
    return found


def _within_steps(labels: list[int], task: Task) -> Order:
    """Labels with those of each local step in ascending order: which of them was first does not matter there."""
    size = task.local.batch_size or task.batch_size
    parts = [sorted(labels[first : first + size]) for first in range(0, len(labels), size)]
    return tuple(label for part in parts for label in part)


def _exchanged(order: Order, task: Task) -> list[Order]:
    """All orders that differ by two labels of different steps."""
    found = []
    for first in range(len(order)):
        for second in range(first + 1, len(order)):
            if order[first] != order[second]:
                swapped = list(order)
                swapped[first], swapped[second] = order[second], order[first]
                found.append(_within_steps(swapped, task))
    return [one for one in found if one != order]


def _repeated(update: Update, count: int) -> Update:
    return {name: tensor.expand(count, *tensor.shape) for name, tensor in update.items()}
