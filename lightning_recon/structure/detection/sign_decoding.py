# SPDX-License-Identifier: Apache-2.0
"""From rows of ±1 inputs to files, where images that share a row do not add up.

Under Adam two images that activate one unit in the same step leave the signs of a sum: those of the image of larger
gradient weight. In different steps each adds its signs, times a movement of its own. Either way a row holds
α s + β t + ... with codewords s and t, because every odd function of two signs is linear in them, but an image has a
different amplitude in each of its rows, and none in some. So amplitudes are estimated row by row: from the second and
fourth moments of its entries, or, where only signs or the largest entries arrive, from its header.

A row that holds one image shows by correlation which other rows hold it, too; their beliefs add up. An image whose
checksum is right is subtracted from all rows, which may uncover others.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from scipy import stats
from torch import Tensor

from lightning_recon.image_format import ImageFormat
from lightning_recon.reconstruction import CodecName
from lightning_recon.structure.coding.channel_code import LADDER, decode
from lightning_recon.structure.coding.code_plan import HEADER, Plan
from lightning_recon.structure.coding.messages import checked_message
from lightning_recon.structure.coding.modulation import header_words, symbols

# Probability that noise alone is read as a header in any row of an update.
_FALSE_HEADERS = 1e-4
# Two rows are alike, and a row holds an image whatever its header, this many standard deviations above the noise.
_ALIKE = 6.0
# A row holds a second image if the estimate of its power has this share of the first one's.
_SECOND = 0.05
# Standard errors of the noise's variance by which it may differ from what was measured.
_SURELY = 2.0
# A codeword with less than this share of the information that its rate needs is not decoded. Of an amplitude from a
# header, it may be so many standard errors larger.
_HOPELESS, _HEADER_REACH = 0.97, 2.0
# A failed image is tried again once others were subtracted and the information grew by this.
_BETTER = 0.002
# Entries whose fourth moment exceeds their squared second one by less than this share have the same magnitude.
_EQUAL = 1e-3
# Rounding in float32 leaves this share of the power of the strongest row.
_ROUNDING = 1e-6
_LEAST = 1e-30
# Largest log-likelihood ratio of an input where others did not arrive. With it the decoder decoded all codewords on
# erasure channels that were tried.
_CERTAIN = 8.0


@dataclass(frozen=True)
class SignImage:
    """What the rows hold of one image.

    Args:
        image: Shape (C, H, W), uint8 or int32; None if no file was received.
        codec: The source code that it was sent by; None if no file was received.
        rung: The rung of the ladder that its header names most likely.
        information: Bits that each input carried, as its beliefs show.
        amplitude: Signed amplitude in every row, shape (K,); 0 where it is not.
        noise: Standard deviation of everything else in every row, shape (K,).
    """

    image: Tensor | None
    codec: CodecName | None
    rung: int
    information: float
    amplitude: Tensor
    noise: Tensor


def read_signs(
    rows: Tensor,
    noise: float,
    plan: Plan,
    image_format: ImageFormat,
    most: int,
    amplitudes_from: Literal["moments", "header"] = "moments",
    progress: Callable[[int], None] = lambda count: None,
    zeros: float = math.inf,
    alone: bool = False,
) -> list[SignImage]:
    """Decode all images.

    Args:
        rows: Shape (K, words): what came through the digital inputs of each row; 0 where nothing arrived.
        noise: Standard deviation of the noise on every entry that arrived.
        plan: What was shipped.
        image_format: Format of the images.
        most: Largest number of images to find.
        amplitudes_from: How to estimate amplitudes, see above.
        progress: Called with the number of images received so far.
        zeros: Number of entries on which the noise was measured.
        alone: Whether each row holds one image at most.

    Returns:
        Images received, then those that rows show but whose file was not received, the strongest first.
    """
    remaining = _Remaining(rows, noise, plan, amplitudes_from, zeros, alone)
    found: list[SignImage] = []
    tried: dict[tuple[int, ...], float] = {}
    while len(found) < most:
        failed: list[tuple[tuple[int, ...], SignImage]] = []
        for row in remaining.order():
            one, beliefs = remaining.estimate(row)
            held = tuple(torch.nonzero(one.amplitude).flatten().tolist())
            if not held or any(set(held) <= set(other) for other, _ in failed):
                continue
            failed.append((held, one))
            hopeless = one.information * remaining.doubt(row) < _HOPELESS * LADDER[one.rung].rate
            if hopeless or one.information < tried.get(held, -1.0) + _BETTER:
                continue
            tried[held] = one.information
            bits = decode(beliefs, one.rung)
            checked = None if bits is None else checked_message(bits, one.rung, plan, image_format)
            if checked is not None:
                message, image, codec = checked
                amplitude = remaining.subtract(symbols(message, one.rung, plan.inputs), one.rung)
                found.append(SignImage(image, codec, one.rung, one.information, amplitude, one.noise))
                progress(len(found))
                break
        else:
            return found + [one for _, one in failed][: most - len(found)]
    return found


def header_threshold(rows: int, words: int) -> float:
    """Standard deviations by which a header has to stand above the noise, in so many rows and of so many words."""
    return float(stats.norm.isf(_FALSE_HEADERS / (2 * rows * words)))


class _Remaining:
    """The rows after the codewords that were decoded."""

    def __init__(
        self, rows: Tensor, noise: float, plan: Plan, amplitudes_from: str, zeros: float, alone: bool = False
    ) -> None:
        header, words = torch.split(rows.view(len(rows), plan.repeats, -1), [HEADER, plan.inputs], dim=2)
        self.header, self.words = header.flatten(1).clone(), words.flatten(1).clone()
        self.header_words = header_words().repeat(1, plan.repeats).to(rows)
        self.arrived = (self.words != 0).sum(dim=1).clamp(min=1)
        power = self.words.double().square().sum(dim=1) / self.arrived
        self.floor = _ROUNDING * float(power.max())
        self.plan, self.moments = plan, amplitudes_from == "moments"
        if self.moments:
            # Every row holds at least the noise, and has more entries than the zeros that the noise was measured on.
            most = power * (1 + _SURELY * (2 / self.arrived).sqrt())
            noise = min(noise, math.sqrt(float(most.min())))
        self.noise = max(noise, math.sqrt(self.floor))
        self.alone = alone
        self.noise_error = self.noise**2 * math.sqrt(2 / max(1, zeros))
        self.erasures = bool((self.words == 0).any())
        fourth = float(self.words.double().pow(4).mean())
        self.binary = not self.moments and not self.erasures and fourth < (1 + _EQUAL) * float(power.mean()) ** 2
        self.used = torch.tensor(plan.amplitudes).to(rows) > 0
        self.readable = header_threshold(len(rows), int(self.used.sum()))
        self._measure()

    def _measure(self) -> None:
        """Power and header of every row."""
        self.power = (self.words.double().square().sum(dim=1) / self.arrived).clamp(min=_LEAST)
        known = (self.header != 0).sum(dim=1).clamp(min=1)
        match = (self.header @ self.header_words.T).double() / known[:, None]
        match[:, ~self.used] = 0.0
        self.match, self.known = match, known
        self.strength = match.abs().amax(dim=1) * (known / self.power).sqrt()

    def order(self) -> list[int]:
        """Rows that hold an image, those that hold one alone and the strongest of them first."""
        present = self.strength > self.readable
        if self.moments:
            present |= self._above_noise()
        rows = torch.nonzero(present).flatten().tolist()
        signal = (self.power - self.noise**2).clamp(min=0)
        pure = {row: not self.moments or self._components(row)[1] == 0 for row in rows}
        return sorted(
            (row for row in rows if self.power[row] > 2 * self.floor),
            key=lambda row: (not pure[row], -float(signal[row] if self.moments else self.strength[row])),
        )

    def _above_noise(self) -> Tensor:
        """Whether each row surely holds an image, shape (K,), even if what arrived of its header is short."""
        fourth = self.words.double().pow(4).sum(dim=1) / self.arrived
        error = ((fourth - self.power**2).clamp(min=0) / self.arrived + self.noise_error**2).sqrt()
        evident: Tensor = self.power - self.noise**2 > _ALIKE * error
        return evident & (self.strength > 0)

    def doubt(self, row: int) -> float:
        """By which factor the information of a row's codeword may have been estimated too low."""
        if not self.moments:
            return (1 + _HEADER_REACH / float(self.strength[row])) ** 2
        # The power of a signal is what a row holds beyond the noise: that of a weak one is known far less precisely.
        return 1 + _SURELY * self.noise_error / max(float(self.power[row]) - self.noise**2, _LEAST)

    def _components(self, row: int) -> tuple[float, float]:
        """Amplitudes of the two strongest images in a row, from its second and fourth moments; the second may be 0."""
        words = self.words[row]
        square = words.double().square()
        second = float(self.power[row])
        signal = max(second - self.noise**2, _LEAST)
        if self.alone:
            return math.sqrt(signal), 0.0
        # The fourth cumulant of normal noise is 0, that of ±α is -2 α⁴.
        fourth = float(square.square().sum() / self.arrived[row]) - 3 * second**2
        first, other = _two_powers(signal, -fourth / 2)
        error = 1.5 * math.sqrt(24 / float(self.arrived[row])) * second**2 / signal
        # A noise that was measured too low looks like a second image.
        surely = _two_powers(max(signal - _SURELY * self.noise_error, _LEAST), -fourth / 2)[1]
        if min(other, surely) < max(_SECOND * first, error):
            return math.sqrt(signal), 0.0
        return math.sqrt(first), math.sqrt(other)

    def estimate(self, row: int) -> tuple[SignImage, Tensor]:
        """The strongest image of a row: its amplitudes in all rows, and the beliefs about its codeword."""
        best = int(self.match[row].abs().argmax())
        if self.moments:
            first, second = self._components(row)
        else:
            first, second = float(self.match[row, best].abs()), 0.0
        amplitude = torch.zeros(len(self.words), dtype=torch.float64)
        amplitude[row] = first
        if second == 0:
            both = self._both(row)
            shared = (self.words @ self.words[row]).double() / both
            alike = shared.abs() > _ALIKE * (self.power * self.power[row] / both).sqrt()
            alike[row] = False
            amplitude = torch.where(alike.cpu(), (shared / first).cpu(), amplitude)
            amplitude = amplitude.sign() * amplitude.abs().minimum(self._most().cpu())
        held = torch.nonzero(amplitude).flatten().tolist()
        others = (self.power.cpu() - amplitude.square()).clamp(min=_LEAST)
        weight = amplitude / others.maximum(1e-3 * self.power.cpu())
        match = weight.to(self.match) @ self.match
        rung = int(match.abs().argmax())
        amplitude = amplitude * float(match[rung].sign())
        beliefs = torch.zeros(self.plan.inputs)
        for one in held:
            beliefs += self._beliefs(one, float(amplitude[one])).cpu().view(self.plan.repeats, -1).sum(dim=0)
        information = 1 - float(F.softplus(-beliefs.abs()).double().mean()) / math.log(2)
        information -= float((beliefs.abs() * torch.sigmoid(-beliefs.abs())).double().mean()) / math.log(2)
        if self.erasures:
            beliefs = beliefs.clamp(-_CERTAIN, _CERTAIN)
        return SignImage(None, None, rung, information, amplitude, others.sqrt()), beliefs

    def _both(self, row: int) -> Tensor:
        """Number of inputs that arrived both in a row and in each other one, shape (K,)."""
        if not self.erasures:
            return self.arrived
        return ((self.words[row] != 0) & (self.words != 0)).sum(dim=1).clamp(min=1)

    def _most(self) -> Tensor:
        """The largest amplitude that an image may have in each row."""
        return (self.power - (self.noise**2 if self.moments else 0.0)).clamp(min=0).sqrt() * (1 - 1e-6)

    def _beliefs(self, row: int, amplitude: float) -> Tensor:
        """Log-likelihood ratio of every input; what else the row holds is another image, where moments tell."""
        words, power = self.words[row], float(self.power[row])
        rest = max(power - amplitude**2, 1e-6 * power)
        noise = min(max(self.noise**2, 1e-6 * power), rest) if self.moments else rest
        if self.binary:
            # A binary symmetric channel: entries of the same magnitude, some of the wrong sign.
            magnitude = math.sqrt(power)
            ratio = max(-1 + 1e-6, min(1 - 1e-6, amplitude / magnitude))
            return words * (2 * math.atanh(ratio) / magnitude)
        beliefs = 2 * amplitude * words / noise
        other = rest - noise
        if other > _SECOND * amplitude**2:
            second = math.sqrt(other)
            beliefs = beliefs + _log_cosh(second * (words - amplitude) / noise)
            beliefs = beliefs - _log_cosh(second * (words + amplitude) / noise)
        elif other > 0:
            beliefs = 2 * amplitude * words / rest
        return torch.where(words == 0, 0.0, beliefs)

    def subtract(self, codeword: Tensor, rung: int) -> Tensor:
        """Take a known codeword and its header out of all rows; returns its amplitude in each, shape (K,)."""
        codeword, arrived = codeword.repeat(self.plan.repeats), (self.words != 0).to(self.words)
        share = (self.words @ codeword) / self.arrived
        certain = share.abs().double() > _ALIKE * (self.power / self.arrived).sqrt()
        share = torch.where(certain, share, 0.0)
        for row in torch.nonzero(certain).flatten().tolist():
            self.words[row] -= share[row] * codeword * arrived[row]
            self.header[row] -= share[row] * self.header_words[rung] * (self.header[row] != 0)
        self._measure()
        return share.double().cpu()


def _two_powers(signal: float, fourths: float) -> tuple[float, float]:
    """Powers of two images from their sum and that of their squares; the second one is the smaller, and may be 0."""
    fourths = min(max(fourths, signal**2 / 2), signal**2)
    apart = math.sqrt(max(fourths / 2 - signal**2 / 4, 0.0))
    return signal / 2 + apart, signal / 2 - apart


def _log_cosh(values: Tensor) -> Tensor:
    """Log cosh, without overflow, but for a constant."""
    return values.abs() + torch.log1p(torch.exp(-2 * values.abs()))
