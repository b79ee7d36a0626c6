# SPDX-License-Identifier: Apache-2.0
"""Which rows hold the same codeword: orthogonal matching pursuit on the inner products of the rows.

A victim adds the same codeword to one row of every measurement direction, so that each pair of its rows has an inner
product of its power, while different codewords and noise are nearly orthogonal over so many inputs. Rows are therefore
grouped by their inner products even where a single row's energy is no evidence, and victims that share some of their
rows are told apart.

Source: Pati, Rezaiifar and Krishnaprasad, "Orthogonal matching pursuit" (1993), section 2; the dictionary of one row
for each direction is ours.
"""

from itertools import combinations

import torch
from torch import Tensor

# Standard deviations above which inner products show a victim, and those above which a single pair is followed up.
_CONVINCING, _PROMISING = 6.0, 2.0


def grouped_rows(gram: Tensor, noise: float, inputs: int, unit_direction: Tensor, most: int) -> Tensor:
    """Find the victims that explain the inner products of the rows.

    Args:
        gram: Inner products of the rows, divided by `inputs`, shape (K, K), float64.
        noise: Standard deviation of the noise of every entry.
        inputs: Entries of a row.
        unit_direction: The measurement direction of each row, shape (K,), int64.
        most: Largest number of victims.

    Returns:
        Shape (V, K), bool: which rows hold each victim, one of every direction; the most evident first.
    """
    gram = gram.cpu()  # least squares of deficient rank
    signal = gram - noise**2 * torch.eye(len(gram)).to(gram)
    spread = torch.outer(gram.diagonal(), gram.diagonal()).clamp(min=1e-300) / inputs
    spread = spread + torch.diag_embed(spread.diagonal())  # a row's energy has twice the variance of a product
    groups = [torch.nonzero(unit_direction == one).flatten() for one in sorted(set(unit_direction.tolist()))]
    found: list[list[int]] = []
    left = signal
    while len(found) < most:
        held, evidence = _best_tuple(left, spread, groups)
        if evidence <= _CONVINCING or held in found:
            break
        found.append(held)
        left = signal - _fitted(signal, found)
    members = torch.zeros(len(found), len(gram), dtype=torch.bool)
    for victim, held in enumerate(found):
        members[victim, held] = True
    return members


def evidence_of(held: Tensor, gram: Tensor, noise: float, inputs: int) -> float:
    """Standard deviations by which the inner products of a victim's rows, shape (K,), bool, exceed those of noise."""
    rows = torch.nonzero(held).flatten().to(gram.device)
    own = gram[rows][:, rows]
    spread = torch.outer(own.diagonal(), own.diagonal()).clamp(min=1e-300) / inputs
    if len(rows) == 1:
        return float((own[0, 0] - noise**2) / (2 * spread[0, 0]).sqrt())
    pairs = torch.ones_like(own).triu(diagonal=1) > 0
    return float(own[pairs].sum() / spread[pairs].sum().sqrt())


def _best_tuple(left: Tensor, spread: Tensor, groups: list[Tensor]) -> tuple[list[int], float]:
    """One row of every direction with the most significant inner products, and their significance."""
    if len(groups) == 1:
        score = left.diagonal() / spread.diagonal().sqrt()
        return [int(score.argmax())], float(score.max())
    best: tuple[list[int], float] = [], 0.0
    for one, other in combinations(range(len(groups)), 2):
        product, variance = left[groups[one]][:, groups[other]], spread[groups[one]][:, groups[other]]
        first, second = torch.nonzero(product > _PROMISING * variance.sqrt(), as_tuple=True)
        if not len(first):
            continue
        chosen = [groups[one][first], groups[other][second]]
        for group in (group for place, group in enumerate(groups) if place not in (one, other)):
            # For a given pair, the row that agrees best with all rows chosen so far.
            product = torch.stack([left[rows][:, group] for rows in chosen]).sum(dim=0)
            variance = torch.stack([spread[rows][:, group] for rows in chosen]).sum(dim=0)
            chosen.append(group[(product / variance.sqrt()).argmax(dim=1)])
        pairs = list(combinations(chosen, 2))
        product = torch.stack([left[rows, others] for rows, others in pairs]).sum(dim=0)
        variance = torch.stack([spread[rows, others] for rows, others in pairs]).sum(dim=0)
        score = product / variance.sqrt()
        place = int(score.argmax())
        if float(score[place]) > best[1]:
            best = sorted(int(rows[place]) for rows in chosen), float(score[place])
    return best


def _fitted(signal: Tensor, found: list[list[int]]) -> Tensor:
    """What victims of nonnegative power, fitted by least squares to products of different rows, explain, shape (K, K).

    With a single direction there are no such products, and a row's own energy takes their place.
    """
    held = torch.zeros(len(found), len(signal)).to(signal)
    for victim, rows in enumerate(found):
        held[victim, rows] = 1.0
    both, own = held @ held.T, held @ signal.diagonal()
    if all(len(rows) == 1 for rows in found):
        power = torch.linalg.pinv(both) @ own
    else:
        power = torch.linalg.pinv(both.square() - both) @ (((held @ signal) * held).sum(dim=1) - own)
    explained: Tensor = held.T @ (power.clamp(min=0)[:, None] * held)
    return explained
