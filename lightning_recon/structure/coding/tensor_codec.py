# SPDX-License-Identifier: Apache-2.0
"""An image codec of tensor operations alone, which fills a given number of bits.

A layer that calls an image library is arbitrary code, and no exported graph holds it. This codec transforms, quantises
and entropy codes by matrix products, gathers, scatters and running sums of fixed shapes, whose integers are the same in
every runtime. Decoding happens at the server, and is an ordinary loop.

A message is: the quantiser step, the state of the entropy coder, its bits, and a checksum. The step is the finest whose
bits fit.
"""

import math
from functools import lru_cache

import torch
from torch import Tensor, nn

from lightning_recon.structure.coding.block_transform import STEPS, BlockTransform
from lightning_recon.structure.coding.coefficient_contexts import Contexts
from lightning_recon.structure.coding.coefficient_symbols import COST_UNIT, CoefficientSymbols, looked_up

_STEP_BITS, _CHECK_BITS = 8, 32
# The cost that is known before coding is exceeded by at most this: a part of itself, and bits.
_SLACK, _SLACK_BITS = 600, 8
# Steps that are tried, and in how many steps bits fall by a factor of e: usually, at least and at most; at `_TYPICAL`
# bits a pixel photographs of 64 x 64 take step `_TYPICAL_STEP`.
_TRIALS, _STEPS_AN_E_FOLD, _LEAST_FOLD, _MOST_FOLD = 5, 46.0, 20.0, 120.0
_TYPICAL, _TYPICAL_STEP = 1.17, 165
# Modulus of the checksum, a prime.
_CHECK_PRIME = 4294967291


class TensorCodec(nn.Module):
    """The codec for images of one size and messages of one length.

    Source: the parts are standard: block transforms with adaptive contexts as in image codecs, entropy coding after
    Duda (2013); their formulation as tensor operations is ours.
    """

    whitening: Tensor
    weights: Tensor

    def __init__(self, height: int, width: int, bits: int) -> None:
        """Make the constants.

        Args:
            height: Of the images.
            width: Likewise.
            bits: Of a message; with fewer than about 0.1 a pixel images are cut off.
        """
        super().__init__()
        self.transform = BlockTransform(height, width)
        self.contexts = Contexts(*self.transform.blocks)
        self.symbols = CoefficientSymbols()
        self.bits = bits
        self.head = _STEP_BITS + self.symbols.coder.state_bits
        self.room = bits - self.head - _CHECK_BITS
        typical = _TYPICAL_STEP - _STEPS_AN_E_FOLD * math.log(max(self.room, 1) / (_TYPICAL * height * width))
        self.first_step = min(max(round(typical), 0), STEPS - 2)
        generator = torch.Generator().manual_seed(7)
        self.register_buffer("whitening", torch.randint(2, (bits,), generator=generator), persistent=False)
        weights = torch.randint(1, _CHECK_PRIME, (bits - _CHECK_BITS,), generator=generator)
        self.register_buffer("weights", weights, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Messages of images.

        Args:
            images: Shape (B, 3, H, W), values in [0, 1].

        Returns:
            Shape (B, bits), int64, zeros and ones.
        """
        coefficients = self.transform.coefficients(images.detach())
        step = self._finest_step(coefficients)
        rows, others, counts = self.symbols.split(*self._ordered(coefficients, step))
        state, emitted, read = self.symbols.coder.encode(rows)
        words = emitted * looked_up(self.symbols.powers, counts).double() + others
        stream = self._packed(words, read + counts)
        head = torch.cat([_digits(step, _STEP_BITS), _digits(state, self.symbols.coder.state_bits)], dim=1)
        content = torch.cat([head, torch.where(stream < 0, 0, stream)], dim=1)
        # What is left is filled with bits that differ from image to image: codewords with equal parts would correlate.
        filling = self._filling(self._checksum(content))
        content = torch.where(torch.cat([head, stream], dim=1) < 0, filling, content)
        message = torch.cat([content, _digits(self._checksum(content), _CHECK_BITS)], dim=1)
        return (message - self.whitening).abs()

    def _ordered(self, coefficients: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
        """Quantised coefficients and their contexts in the order of coding, shape (B, N)."""
        quantised = self.transform.quantised(coefficients, step)
        levels = self.contexts.of(quantised, self.transform.steps.index_select(0, step))
        quantised = self._thresholded(coefficients, quantised, levels, step)
        levels = self.contexts.of(quantised, self.transform.steps.index_select(0, step))
        order = self.contexts.order
        return quantised.flatten(1).index_select(1, order), levels.flatten(1).index_select(1, order)

    def _thresholded(self, coefficients: Tensor, quantised: Tensor, levels: Tensor, step: Tensor) -> Tensor:
        """Rate-distortion thresholding: magnitudes of 1 in low contexts become 0 where they cost too much."""
        size = self.transform.steps.index_select(0, step).double().view(-1, 1, 1, 1, 1)
        dear = coefficients.abs() * COST_UNIT < looked_up(self.symbols.worthwhile, levels) * size
        return torch.where(dear & (quantised.abs() == 1), 0.0, quantised)

    def _finest_step(self, coefficients: Tensor) -> Tensor:
        """About the finest step whose bits fit, shape (B,); the coarsest where none does.

        The logarithm of the bits is nearly linear in the step's number, so that a few steps of the secant method, kept
        between steps of which one fits and one does not, end within one or two of the finest. The contexts are those
        before the last magnitudes are set to 0, so that sometimes a few bits too many result: the last coefficients are
        then cut off.
        """
        room = float((self.room - _SLACK_BITS) * COST_UNIT)
        step = torch.zeros_like(coefficients[:, 0, 0, 0, 0]).long() + self.first_step
        low, high = torch.full_like(step, -1), torch.full_like(step, STEPS)
        last, last_cost = step, torch.zeros_like(coefficients[:, 0, 0, 0, 0])
        fold = torch.full_like(last_cost, _STEPS_AN_E_FOLD)
        for trial in range(_TRIALS):
            quantised = self.transform.quantised(coefficients, step)
            levels = self.contexts.of(quantised, self.transform.steps.index_select(0, step))
            quantised = self._thresholded(coefficients, quantised, levels, step)
            cost = self.symbols.cost(quantised, levels).double() * (1 + 1 / _SLACK)
            low, high = torch.where(cost <= room, low, step), torch.where(cost <= room, step, high)
            if trial:
                fold = torch.where(step == last, fold, (step - last) / _log_ratio(last_cost, cost))
                fold = torch.where(fold < _LEAST_FOLD, _LEAST_FOLD, fold.clamp(max=_MOST_FOLD))
            last, last_cost = step, cost
            ahead = (_log_ratio(cost, torch.full_like(cost, room)) * fold).ceil().long()
            step = torch.minimum(torch.maximum(step + ahead, low + 1), high - 1).clamp(min=0, max=STEPS - 1)
        return torch.where(high < STEPS, high, step)

    def _packed(self, words: Tensor, lengths: Tensor) -> Tensor:
        """Words one after the other, most significant bit first.

        Args:
            words: Shape (B, N), float64.
            lengths: Bits of each, shape (B, N).

        Returns:
            Shape (B, room), int64, zeros and ones; -1 behind the last word. What does not fit is cut off.
        """
        ends = lengths.cumsum(dim=1)
        begins = (ends - lengths).clamp(max=self.room)
        # The word at each bit: as many words as have begun, less one.
        begun = torch.zeros_like(lengths[:, :1]).expand(-1, self.room + 1)
        begun = begun.scatter_add(1, begins, torch.ones_like(begins))
        word = begun[:, : self.room].cumsum(dim=1) - 1
        place = torch.arange(self.room, device=words.device)
        behind = ends.gather(1, word) - 1 - place
        # The digit's place is at most the largest power's; a coefficient has no more bits.
        power = looked_up(self.symbols.powers, behind.clamp(min=0))
        number = (words.gather(1, word) / power.double()).floor()
        return torch.where(behind < 0, -1, number.long() & 1)

    def _checksum(self, content: Tensor) -> Tensor:
        """Weighted sum of bits modulo a prime, shape (B,): wrong bits pass once in four thousand million times."""
        return (content * self.weights).sum(dim=1) % _CHECK_PRIME

    def _filling(self, seed: Tensor) -> Tensor:
        """Pseudo-random bits that begin at a place of their own for each image, shape (B, bits - 32)."""
        count = self.bits - _CHECK_BITS
        place = torch.arange(count, device=seed.device) + seed[:, None] % count
        return looked_up(self.whitening, torch.where(place >= count, place - count, place))

    def decode(self, message: Tensor) -> Tensor | None:
        """The image of a message.

        Args:
            message: Shape (bits,), int64.

        Returns:
            Shape (3, H, W), values in [0, 1]; None if the checksum fails.
        """
        plain = (message ^ self.whitening)[None]
        content = plain[:, :-_CHECK_BITS]
        if not torch.equal(_digits(self._checksum(content), _CHECK_BITS), plain[:, -_CHECK_BITS:]):
            return None
        bits = "".join(map(str, content[0].tolist()))
        step, state = int(bits[:_STEP_BITS], 2), int(bits[_STEP_BITS : self.head], 2)
        quantised = self._coefficients(bits[self.head :], state, torch.tensor([step]))
        return self.transform.images(quantised, step)[0]

    def _coefficients(self, bits: str, state: int, step: Tensor) -> Tensor:
        """Read the symbols, group after group of coefficients whose contexts are known by then."""
        height, width = self.transform.blocks
        size = self.transform.steps[step]
        found = torch.zeros(1, 3, 64, height, width, dtype=torch.float64)
        flat, reader = found.view(-1), _Reader(bits, state, self.symbols)
        for group in self.contexts.groups():
            levels = self.contexts.of(found, size).flatten()[group]
            flat[group] = torch.tensor(reader.read(levels.tolist()), dtype=torch.float64)
        return found


class _Reader:
    """Reads symbols one after the other."""

    def __init__(self, bits: str, state: int, symbols: CoefficientSymbols) -> None:
        self.bits, self.place, self.state = bits, 0, state
        self.tables = symbols.coder.decoding
        self.last, self.low_digits = symbols.last.tolist(), symbols.low_digits.tolist()

    def read(self, levels: list[int]) -> list[int]:
        """Coefficients of these contexts; 0 once the bits are exhausted."""
        bits, place, state, found = self.bits, self.place, self.state, []
        end = len(bits)
        for level in levels:
            symbol, count, base = self.tables[level][state]
            if place + count > end:
                place, symbol = end, 0
                found.append(0)
                continue
            state = base + int(bits[place : place + count], 2) if count else base
            place += count
            if symbol == self.last[level]:
                zeros = bits.find("1", place) - place
                if zeros < 0 or place + 2 * zeros >= end:
                    place = end
                    found.append(0)
                    continue
                symbol += int(bits[place + zeros : place + 2 * zeros + 1], 2) - 1
                place += 2 * zeros + 1
            digits = self.low_digits[level]
            if place + digits + 1 > end:
                place = end
                found.append(0)
                continue
            if digits:
                symbol = symbol << digits | int(bits[place : place + digits], 2)
                place += digits
            if symbol:
                symbol = -symbol if bits[place] == "1" else symbol
                place += 1
            found.append(symbol)
        self.place, self.state = place, state
        return found


def _log_ratio(one: Tensor, other: Tensor) -> Tensor:
    """The logarithm of a ratio but for terms of third order: runtimes need not agree on logarithms."""
    return 2 * (one - other) / (one + other)


def _digits(numbers: Tensor, count: int) -> Tensor:
    """Binary digits, the most significant first: (B,) to (B, count)."""
    powers = 2.0 ** torch.arange(count - 1, -1, -1, dtype=torch.float64, device=numbers.device)
    return (numbers[:, None].double() / powers).floor().long() & 1


@lru_cache(maxsize=4)
def tensor_codec(height: int, width: int, bits: int) -> TensorCodec:
    """`TensorCodec` on the processor, remembered."""
    return TensorCodec(height, width, bits)
