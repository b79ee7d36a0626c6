# SPDX-License-Identifier: Apache-2.0
"""What a round's rows say about known images: whether each of them is there, and how it differs from its estimate."""

from dataclasses import replace

import torch
from torch import Tensor

from lightning_recon.exchange import ServerPayload, Task
from lightning_recon.structure.address_book import EXACT, LOG_PRIOR, MEMORY, MISMATCH, AddressBook

# Addresses that a round's update is less likely to hold than this are left as they are.
NEGLIGIBLE = 1e-3


def corrected_variance(task: Task, book: AddressBook) -> Tensor:
    """Posterior variances, shape (A, n), corrected by the evidence of the pilots."""
    return book.variance * (_mismatch(book)[:, None] if task.granularity == "sample" else 1.0)


def _mismatch(book: AddressBook) -> Tensor:
    """Expected factor between true and computed variance, shape (A,)."""
    return torch.softmax(book.belief, dim=1) @ MISMATCH


def _at_most(log_odds: Tensor, count: int) -> Tensor:
    """Log-odds lowered by one number, so that the probabilities add up to `count` at most."""
    low, high = -60.0, 0.0
    if float(torch.sigmoid(log_odds).sum()) <= count:
        return log_odds
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (low, middle) if float(torch.sigmoid(log_odds + middle).sum()) > count else (middle, high)
    return log_odds + low


def updated_by_rows(
    payload: ServerPayload, task: Task, inputs: Tensor, pilot: Tensor, noise: float, book: AddressBook
) -> tuple[AddressBook, Tensor]:
    """Every address after its row was seen.

    Args:
        payload: What was shipped.
        task: What was announced, for the clients that are in this round's sum.
        inputs: Rows of the units of the addresses, shape (A, m).
        pilot: Their pilots, shape (A,).
        noise: Standard deviation of every entry.
        book: What was known.

    Returns:
        What is known now, and the probability that each image was in the batch, shape (A,).
    """
    count, index = len(book), payload.tensors["index"]
    gain, level = payload.tensors["unit_gain"][:count, :-1], payload.tensors["unit_gain"][:count, -1:]
    noise, sign = max(noise, 1e-7), book.scales.sign()[:, None]
    inputs, pilot = sign * inputs, sign * pilot[:, None]
    variance = corrected_variance(task, book)[:, index]
    energies = gain**2 * variance
    expected = energies.sum(dim=1, keepdim=True)
    relative = MISMATCH / _mismatch(book)[:, None]
    if task.granularity == "sample":
        scales = (expected * relative + level**2).sqrt()
    else:
        scales = book.scales.abs()[:, None] * (MISMATCH * (expected + level**2)).sqrt()
    # The evidence that the image is there: of its pilot, at every scale, and of its energy at the likeliest one.
    seen = -((pilot - level / scales) ** 2) / (2 * noise**2)
    weight = torch.softmax(book.belief, dim=1)
    pilot_ratio = torch.logsumexp(seen + weight.log(), dim=1) + pilot[:, 0] ** 2 / (2 * noise**2)
    usual = (weight * scales).sum(dim=1, keepdim=True)
    ratio = energies / (usual * noise) ** 2
    energy_ratio = 0.5 * (inputs**2 * ratio / (1 + ratio) / noise**2 - ratio.log1p()).sum(dim=1)
    present = torch.logit(book.presence(task.presence), eps=1e-6) + pilot_ratio + energy_ratio
    # Batches of a fixed size hold no more images than that.
    present = torch.sigmoid(present if task.sampling.method == "poisson" else _at_most(present, task.victims))
    # Kalman's update where the image is there, none where it is not, and their disagreement.
    there = (present > NEGLIGIBLE).nonzero()[:, 0]
    chance = present[there, None]
    belief = book.belief.clone()
    belief[there] += chance * (LOG_PRIOR + MEMORY * (belief[there] - LOG_PRIOR) + seen[there] - belief[there])
    updated = replace(book, belief=belief)
    scale = (torch.softmax(belief[there], dim=1) * scales[there]).sum(dim=1, keepdim=True)
    variance = corrected_variance(task, updated)[there][:, index]
    gain = gain[there]
    kept = torch.where(gain > 0, variance / (variance + (noise * scale / gain) ** 2), 0.0)
    innovation = torch.where(gain > 0, kept * scale * inputs[there] / gain, 0.0)
    mean, remaining = book.mean.clone(), book.variance.clone()
    columns = there[:, None], index[None]
    mean[columns] += chance * innovation
    remaining[columns] = remaining[columns] * (1 - chance * kept) + chance * (1 - chance) * innovation.square()
    remaining = remaining.maximum(EXACT * book.prior_variance).minimum(book.prior_variance.maximum(book.variance))
    looked = replace(
        updated,
        mean=mean,
        variance=remaining,
        gain=book.gain.clone(),
        rounds_seen=book.rounds_seen + present,
        since=book.since + 1,
    )
    return looked, present
