# SPDX-License-Identifier: Apache-2.0
"""Rows that hold several victims: filters that separate them, and what is left when decoded victims are subtracted.

Source: linear detection of least mean squared error; Tse and Viswanath, "Fundamentals of Wireless Communication"
(2005), section 8.3.
"""

import math
import statistics
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_recon.image_format import ImageFormat
from lightning_recon.privacy.mechanism import Mechanism
from lightning_recon.reconstruction import CodecName
from lightning_recon.structure.coding.channel_code import LADDER, decode_batch, message_bits, needed_snr
from lightning_recon.structure.coding.code_plan import HEADER, Plan
from lightning_recon.structure.coding.messages import checked_message
from lightning_recon.structure.coding.modulation import header_words, symbols
from lightning_recon.structure.detection.row_pursuit import evidence_of, grouped_rows

# A header counts as readable if it exceeds the noise by this many standard deviations. In much noise headers have
# little power, and a checksum tells whether a codeword was read with the right one.
_READABLE = 2.0
# Rows whose inner products are this many standard deviations above noise may hold a victim that is not known yet.
_EXPLAINED = 4.0
# Rows of this multiple of the received victims' median power hold two victims.
_SINGLE = 1.5
# A row holds a victim if this share of the largest amplitude arrived there.
_HELD = 0.5
# A codeword this many decibels below the capacity of its rate is not decoded.
HOPELESS_DB = -0.3
# Message bits that are decoded at once on a CPU, whose beliefs, accessed in random order, have to fit its cache.
_CACHED = 2**18
# Inputs whose products are added up at once.
_COLUMNS = 2**16
# Rounding in float32 leaves this share of what rows held.
_ROUNDING = 1e-6
# A filter is a single row if that row has this share of its squared weights.
_SINGLE_ROW = 0.99


@dataclass(frozen=True)
class Received:
    """An image that passed its checksum.

    Args:
        image: Shape (C, H, W), uint8 or int32.
        codec: The source code that it was sent by.
        rung: The rung of the ladder it was sent at.
        snr: Power of its inputs by the variance of their noise, after filtering.
    """

    image: Tensor
    codec: CodecName
    rung: int
    snr: float


@dataclass(frozen=True)
class Filter:
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


class RemainingRows:
    """Rows after the decoded codewords were subtracted."""

    def __init__(
        self,
        rows: Tensor,
        noise: float,
        unit_direction: Tensor,
        plan: Plan,
        image_format: ImageFormat,
        mechanism: Mechanism | None = None,
    ) -> None:
        """Begin with all rows; arguments as in `successive_decoding.read_victims`."""
        self.header, self.words = torch.split(rows.clone(), [HEADER, plan.inputs], dim=1)
        self.plan, self.image_format, self.mechanism = plan, image_format, mechanism
        self.gram = self._inner_products()
        strongest = float(self.gram.diagonal().max()) if len(rows) else 0.0
        self.noise = max(noise, _ROUNDING * math.sqrt(strongest), 1e-30)
        self.unit_direction = unit_direction
        # Message, codeword, power in a row, and rows of each victim that was received.
        self.messages, self.codewords, self.powers = list[Tensor](), list[Tensor](), list[float]()
        self.taken = torch.zeros(0, len(rows), dtype=torch.bool)

    def _inner_products(self) -> Tensor:
        """Inner products of the rows, divided by their length, shape (K, K), float64."""
        total = torch.zeros(len(self.words), len(self.words), dtype=torch.float64, device=self.words.device)
        for first in range(0, self.words.shape[1], _COLUMNS):
            piece = self.words[:, first : first + _COLUMNS].double()
            total += piece @ piece.T
        return total / self.plan.inputs

    def filters(self, members: Tensor, weight: float) -> list[Filter]:
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
                Filter(
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

    def together(self, candidates: list[Filter]) -> list[int]:
        """Which candidates to decode at once with the first: those that need nothing from its subtraction.

        They are of the same rate, and get through nearly always even with the interference that is left. On a CPU they
        are no more than what fits its cache.

        Args:
            candidates: The strongest first.
        """
        rung = candidates[0].rung
        sure = 10 * math.log10(needed_snr(rung, self.plan.inputs)) - LADDER[rung].capacity_db
        alike = [one for one in range(1, len(candidates)) if candidates[one].rung == rung]
        most = len(alike)
        if self.words.device.type == "cpu":
            most = max(1, _CACHED // message_bits(rung, self.plan.inputs)) - 1
        return [0, *(one for one in alike if candidates[one].margin >= sure)][: most + 1]

    def receive(self, filters: list[Filter]) -> list[Received | None]:
        """Decode victims of one rate and take them out of the rows; None for each that does not come through."""
        if filters[0].margin < HOPELESS_DB:
            return [None] * len(filters)
        mixed = torch.stack([one.weights for one in filters]).to(self.words) @ self.words
        beliefs = torch.stack([self.beliefs(*pair) for pair in zip(mixed, filters, strict=True)])
        received: list[Received | None] = []
        for bits, one in zip(decode_batch(beliefs, filters[0].rung), filters, strict=True):
            found = None
            if bits is not None and not self._is_known(bits):
                found = checked_message(bits, one.rung, self.plan, self.image_format)
            if found is None or self._is_known(found[0]):
                received.append(None)
                continue
            message, image, codec = found
            self._subtract(message.to(self.words.device), one.rung)
            self.messages.append(message)
            received.append(Received(image, codec, one.rung, (one.amplitude / one.deviation) ** 2))
        return received

    def _is_known(self, bits: Tensor) -> bool:
        """Whether a message was received before: the same victim, with other rows, or what rounding left of it."""
        return any(torch.equal(bits.cpu(), other) for other in self.messages)

    def _subtract(self, bits: Tensor, rung: int) -> None:
        """Take a decoded message out of the rows."""
        codeword = symbols(bits, rung, self.plan.inputs)
        # Correlation with the codeword gives its amplitude in each row.
        share = self.words @ codeword / self.plan.inputs
        self.taken = torch.cat([self.taken, (share.abs() > _HELD * share.abs().max())[None].cpu()])
        self.words.addr_(share, codeword, alpha=-1)
        self.codewords.append(codeword.to(torch.int8))
        self.powers.append(float(share[self.taken[-1].to(share.device)].square().mean()))
        header = self.plan.header / self.plan.amplitudes[rung]
        self.header.addr_(share, header * header_words()[rung].to(self.header), alpha=-1)
        self.gram -= torch.outer(share, share).double()

    def beliefs(self, mixed: Tensor, filter_: Filter) -> Tensor:
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

    def refit(self) -> None:
        """Subtract all received codewords once more, now from rows without the others, and compare the rows anew.

        Codewords are not quite orthogonal: what each one had of the others when it was subtracted would look like a
        victim at low noise.
        """
        for codeword in self.codewords:
            share = self.words @ codeword.to(self.words) / self.plan.inputs
            self.words.addr_(share, codeword.to(self.words), alpha=-1)
        self.gram = self._inner_products()

    def groups(self, most: int) -> Tensor:
        """Victims that explain what the rows still hold, shape (V, K), bool, see `row_pursuit`."""
        return grouped_rows(self.gram, self.noise, self.plan.inputs, self.unit_direction, most)

    def is_single(self, held: Tensor) -> bool:
        """Whether rows, shape (K,), bool, two or more, hold the power of one victim, as received ones have it."""
        rows = torch.nonzero(held).flatten().to(self.gram.device)
        pairs = self.gram[rows][:, rows].triu(diagonal=1).sum() / (len(rows) * (len(rows) - 1) / 2)
        return float(pairs) < _SINGLE * statistics.median(self.powers)

    def is_explained(self, held: Tensor) -> bool:
        """Whether received victims explain what led to a victim in these rows, shape (K,), bool.

        They do where they hold some of its rows, and too little is left. With a single direction a row's energy is all
        there is to compare, so that the noise in the rows of received victims counts, not the announced one.
        """
        taken, noise = self.taken.any(dim=0), self.noise
        if int(self.unit_direction.max()) == 0 and bool(taken.any()):
            noise = max(noise, math.sqrt(max(0.0, float(self.gram.diagonal().cpu()[taken].median()))))
        elif not bool((held & taken).any()):
            return False
        return evidence_of(held, self.gram, noise, self.plan.inputs) < _EXPLAINED
