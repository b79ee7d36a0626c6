# SPDX-License-Identifier: Apache-2.0
"""From rows to files: each victim's codeword is decoded, checked, and subtracted from all rows.

Which rows hold which victim is known already. Their amplitudes follow from inner products of rows, which are
almost free of noise over so many inputs. Each codeword is estimated as in a receiver with several antennas, with the
weights of least mean squared error against noise and interference. A codeword that passed its checksum is known without
any error, and what it adds to the rows can be subtracted without leaving anything behind: victims are decoded in the
order of their signal-to-noise ratio, each from what the ones before it left. Finally rows that still hold energy are
decoded by themselves: a victim missed in a collision may be alone in a remaining row.

Source: linear detection of least mean squared error with successive cancellation; Tse and Viswanath, "Fundamentals of
Wireless Communication" (2005), section 8.3.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_recon.privacy.mechanism import Mechanism
from lightning_recon.structure.coding.channel_code import LADDER, decode
from lightning_recon.structure.coding.code_plan import HEADER, Plan
from lightning_recon.structure.coding.messages import image_of
from lightning_recon.structure.coding.modulation import header_words, symbols

# A header counts as readable if it exceeds the noise by this many standard deviations.
_READABLE = 4.0
# A row still holds a victim if its energy exceeds the noise's by this many standard deviations of the latter.
_BUSY = 6.0
# Two rows hold the same codeword if their inner product is this share of one's energy.
_SAME = 0.6
# A codeword this many decibels below the capacity of its rate is not decoded.
_HOPELESS_DB = -0.3
# A victim that failed is tried again once subtracting others improves its signal-to-noise ratio by this many decibels.
_BETTER_DB = 0.02
# Rounding in float32 leaves this share of what rows held.
_ROUNDING = 1e-6

# A filter is a single row if that row has this share of its squared weights.
_SINGLE_ROW = 0.99


@dataclass(frozen=True)
class Received:
    """An image that passed its checksum.

    Args:
        image: Shape (3, H, W), uint8.
        exact: Whether it was sent losslessly.
        rung: The rung of the ladder it was sent at.
        snr: Power of its inputs by the variance of their noise, after filtering.
    """

    image: Tensor
    exact: bool
    rung: int
    snr: float


def read_victims(
    rows: Tensor,
    noise: float,
    members: Tensor,
    weight: float,
    plan: Plan,
    size: tuple[int, int],
    victims: int,
    progress: Callable[[int], None] = lambda count: None,
    mechanism: Mechanism | None = None,
) -> tuple[list[Received | None], list[Received]]:
    """Decode all victims.

    Args:
        rows: Shape (K, HEADER + inputs): what came through the digital inputs of each row.
        noise: Noise standard deviation of every entry.
        members: Shape (V, K), bool: which rows hold which victim.
        weight: What one row usually holds of a victim's inputs, as a factor.
        plan: What was shipped.
        size: Height and width of the images.
        victims: How many there are at most.
        progress: Called with the number of images received so far.
        mechanism: Distribution of the noise of every entry; None for normal noise.

    Returns:
        For each of the V victims its image, or None; and images of victims that `members` lacks. Together
        no more than `victims`.
    """
    remaining = _RemainingRows(rows, noise, plan, size, mechanism)
    found: list[Received | None] = [None] * len(members)
    others: list[Received] = []
    waiting = list(range(len(members)))
    tried = [-math.inf] * len(members)
    while len(found) - len(waiting) + len(others) < victims:
        filters = remaining.filters(members[waiting], weight)
        received, place = None, -1
        for one in sorted(range(len(filters)), key=lambda one: -filters[one].margin):
            place = waiting[one]
            if filters[one].margin < max(_HOPELESS_DB, tried[place] + _BETTER_DB):
                continue
            tried[place] = filters[one].margin
            received = remaining.receive(filters[one])
            if received is not None:
                break
        if received is None:
            for alone in remaining.unexplained():
                received = remaining.receive(remaining.filters(alone[None], weight)[0])
                if received is not None:
                    break
            else:
                break
            # A victim whose rows were identified wrongly takes the place of the one it shares most rows with, if there
            # is no room for both.
            place = -1
            if len(found) + len(others) == victims:
                place = max(waiting, key=lambda victim: int((members[victim] & alone).sum()))
        if place < 0:
            others.append(received)
        else:
            found[place] = received
            waiting.remove(place)
        progress(len(found) - len(waiting) + len(others))
    return found, others


@dataclass(frozen=True)
class _Filter:
    """Linear filter (beamformer) for one victim.

    Args:
        weights: Shape (K,): of the rows.
        amplitude: Signed amplitude of ±1 after filtering.
        deviation: Standard deviation of noise and interference after filtering.
        rung: The rung that its header names.
        margin: Signal-to-noise margin over what its rate needs at least, in dB; -inf without a header.
    """

    weights: Tensor
    amplitude: float
    deviation: float
    rung: int
    margin: float


class _RemainingRows:
    """Rows after the decoded codewords were subtracted."""

    def __init__(
        self, rows: Tensor, noise: float, plan: Plan, size: tuple[int, int], mechanism: Mechanism | None = None
    ) -> None:
        self.header, self.words = torch.split(rows.clone(), [HEADER, plan.inputs], dim=1)
        self.plan, self.size, self.mechanism = plan, size, mechanism
        self.gram = (self.words @ self.words.T).double() / plan.inputs
        strongest = float(self.gram.diagonal().max()) if len(rows) else 0.0
        self.noise = max(noise, _ROUNDING * math.sqrt(strongest), 1e-30)

    def filters(self, members: Tensor, weight: float) -> list[_Filter]:
        """LMMSE filter for each of the given victims, with the others as interference.

        Args:
            members: Shape (V, K), bool.
            weight: What one row usually holds of a victim's inputs, as a factor.
        """
        if not len(members) or self.gram.diagonal().max() <= 0:
            return []
        held = members.to(self.gram)
        signal = self.gram - self.noise**2 * torch.eye(len(self.gram)).to(self.gram)
        # Least squares: what victims' powers, each in all pairs of its rows, come nearest to these inner products?
        power = torch.linalg.pinv((held @ held.T) ** 2) @ ((held @ signal) * held).sum(dim=1)
        weights, variance = self._mixed(held, power.clamp(min=1e-30), self.noise**2)
        # Victims with the same header do not average out over its length: they have to be separated first.
        usual = torch.full_like(power, (weight * self.plan.header) ** 2)
        mixed, blur = self._mixed(held, usual, self.noise**2 / HEADER)
        match = (mixed.to(self.header) @ self.header @ header_words().to(self.header).T).double() / HEADER
        match *= torch.tensor(self.plan.amplitudes).to(match) > 0  # the other rungs are not used
        rung = match.abs().argmax(dim=1)
        match = match.gather(1, rung[:, None])[:, 0]
        readable = match.abs() > _READABLE * blur.sqrt()
        found = []
        for one in range(len(held)):
            margin = 10 * math.log10(float(power[one].clamp(min=1e-30) / variance[one])) - LADDER[rung[one]].capacity_db
            found.append(
                _Filter(
                    weights[one],
                    float(power[one].clamp(min=1e-30).sqrt() * match[one].sign()),
                    float(variance[one].sqrt()),
                    int(rung[one]),
                    margin if bool(readable[one]) else -math.inf,
                )
            )
        return found

    @staticmethod
    def _mixed(held: Tensor, power: Tensor, noise: float) -> tuple[Tensor, Tensor]:
        """Weights of the rows, shape (V, K), under which each victim has gain 1, and the variance of everything else.

        Args:
            held: Shape (V, K), zeros and ones.
            power: Shape (V,): of each victim in each of its rows.
            noise: Variance of the noise in every row.

        Returns:
            Weights, and the variance of noise and neighbours under them, shape (V,).
        """
        covariance = held.T @ (power[:, None] * held) + noise * torch.eye(held.shape[1]).to(held)
        white = torch.linalg.solve(covariance, held.T)
        gain = (held.T * white).sum(dim=0)
        return (white / gain).T, (1 / gain - power).clamp(min=noise / held.shape[1])

    def receive(self, filter_: _Filter) -> Received | None:
        """Decode one victim and take it out of the rows; None if it does not come through."""
        if filter_.margin < _HOPELESS_DB:
            return None
        mixed = filter_.weights.to(self.words) @ self.words
        bits = decode(self.beliefs(mixed, filter_), filter_.rung)
        content = None if bits is None else image_of(bits, self.plan, self.size)
        if bits is None or content is None:
            return None
        codeword = symbols(bits, filter_.rung, self.plan.inputs)
        # Correlation with the codeword gives its amplitude in each row.
        share = self.words @ codeword / self.plan.inputs
        self.words -= torch.outer(share, codeword)
        header = self.plan.header / self.plan.amplitudes[filter_.rung]
        self.header -= torch.outer(share, header * header_words()[filter_.rung].to(self.header))
        self.gram -= torch.outer(share, share).double()
        return Received(*content, filter_.rung, (filter_.amplitude / filter_.deviation) ** 2)

    def beliefs(self, mixed: Tensor, filter_: _Filter) -> Tensor:
        """Log-likelihood ratio of every input of a filtered codeword, shape (inputs,).

        A single row holds the mechanism's own noise; a sum of several is nearly normal, as is interference.
        """
        weights = filter_.weights.square()
        if self.mechanism is None or float(weights.max()) < _SINGLE_ROW * float(weights.sum()):
            return mixed * (2 * filter_.amplitude / filter_.deviation**2)
        scale = filter_.deviation / self.mechanism.noise_std
        above, below = (
            self.mechanism.log_likelihood((mixed - sign * filter_.amplitude) / scale) for sign in (1.0, -1.0)
        )
        return above - below

    def unexplained(self) -> list[Tensor]:
        """Rows that still hold a victim, each with those like it, the strongest first: shapes (K,), bool."""
        energy = self.gram.diagonal() - self.noise**2
        busy = energy > _BUSY * math.sqrt(2 / self.plan.inputs) * self.noise**2
        groups: list[Tensor] = []
        for row in energy.argsort(descending=True).tolist():
            alike = self.gram[row] >= _SAME * energy[row]
            alike[row] = True
            if bool(busy[row]) and not any(torch.equal(alike, group) for group in groups):
                groups.append(alike)
        return groups
