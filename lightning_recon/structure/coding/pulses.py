# SPDX-License-Identifier: Apache-2.0
"""Biorthogonal modulation: where only the largest entries of an update arrive, their places carry bits, too.

Under top-k compression the number of entries that arrive is fixed, and an entry of ±1 among zeros says more than its
sign: log2 binomial(N, k) bits are in the choice of k among N entries, against k in their signs. So every log2(M) + 1
bits of a codeword choose one of M inputs and its sign; the others are zero. The channel code corrects pulses that did
not arrive, and noise that did. The bits of a pulse, which are lost together, are as far apart in the codeword as can
be: neighbouring parities that are unknown together would stop its decoding.

Source: Viterbi, "On coded phase-coherent communications" (1961); beliefs in single bits after Caire, Taricco and
Biglieri, "Bit-interleaved coded modulation" (1998).
"""

import math

import torch
from torch import Tensor

from lightning_recon.structure.coding.censored_means import CensoredMean

# Inputs that are simulated for the capacity; its standard deviation is about a hundredth of a bit.
_SIMULATED = 16_000
_LEAST = 1e-30


def bits_of_pulse(positions: int) -> int:
    """Bits that a pulse at one of so many positions carries, its sign included."""
    return positions.bit_length()


def pulses_of(inputs: int, positions: int) -> int:
    """Number of pulses of a codeword of so many bits."""
    return -(-inputs // bits_of_pulse(positions))


def pulses(codeword: Tensor, positions: int) -> Tensor:
    """The inputs of a codeword.

    Args:
        codeword: Shape (..., n), ±1.
        positions: Inputs of each pulse (M), a power of two.

    Returns:
        Shape (..., pulses · M): one entry of ±1 in each M, zeros elsewhere.
    """
    inputs = codeword.shape[-1]
    count, size = pulses_of(inputs, positions), bits_of_pulse(positions)
    bits = torch.nn.functional.pad(codeword, (0, count * size - inputs), value=1.0)
    bits = bits.view(*codeword.shape[:-1], size, count).transpose(-1, -2)
    place = ((bits[..., 1:] < 0).long() << torch.arange(size - 1, device=bits.device)).sum(dim=-1, keepdim=True)
    chosen = place == torch.arange(positions, device=bits.device)
    sent: Tensor = (chosen * bits[..., :1]).flatten(-2)
    return sent.to(codeword)


def pulse_beliefs(
    received: Tensor, amplitude: float, noise: float, threshold: float, positions: int, inputs: int, rounds: int = 1
) -> Tensor:
    """What arrived as beliefs in the bits of the codeword.

    Args:
        received: Shape (pulses · M,), the mean over all rounds; 0 where nothing arrived.
        amplitude: Of a pulse, with its sign.
        noise: Standard deviation of the noise on each entry in one round.
        threshold: Magnitude from which entries arrive.
        positions: Inputs of each pulse (M).
        inputs: Length of the codeword (n).
        rounds: Number of rounds.

    Returns:
        Shape (n,): log-likelihood of +1 against -1.
    """
    words, size = received.view(-1, positions), bits_of_pulse(positions)
    # Log-likelihoods of a pulse at each position relative to noise alone there, shape (pulses, M, 2).
    signs = torch.tensor([1.0, -1.0], device=words.device)
    if rounds == 1:
        there = (amplitude * words[..., None] * signs - amplitude**2 / 2) / noise**2
        likely = torch.where(words[..., None] == 0, _missing(abs(amplitude), noise, threshold), there)
    else:
        means = (words[..., None] * signs).double().cpu().numpy()
        pulse, empty = (CensoredMean(one, noise, threshold, rounds) for one in (amplitude, 0.0))
        likely = torch.from_numpy(pulse.log_likelihood(means) - empty.log_likelihood(means)).to(words)
    beliefs = [likely[..., 0].logsumexp(dim=1) - likely[..., 1].logsumexp(dim=1)]
    at = likely.logsumexp(dim=2)
    places = torch.arange(positions, device=words.device)
    for bit in range(size - 1):
        second = (places >> bit) % 2 == 1
        beliefs.append(at[:, ~second].logsumexp(dim=1) - at[:, second].logsumexp(dim=1))
    return torch.stack(beliefs).flatten()[:inputs]


def _missing(amplitude: float, noise: float, threshold: float) -> float:
    """Log-likelihood ratio of a pulse where nothing arrived."""
    high, low = (threshold + amplitude) / noise, (threshold - amplitude) / noise
    hidden = 0.5 * (math.erfc(-low / math.sqrt(2)) - math.erfc(high / math.sqrt(2)))
    return math.log(max(hidden, _LEAST)) - math.log(max(math.erf(threshold / noise / math.sqrt(2)), _LEAST))


def pulse_capacity(amplitude: float, threshold: float, positions: int) -> float:
    """Bits that each bit of a codeword carries, in [0, 1], by simulation.

    Args:
        amplitude: Of a pulse by the noise.
        threshold: Magnitude from which entries arrive, likewise.
        positions: Inputs of each pulse (M).
    """
    generator = torch.Generator().manual_seed(10)
    inputs = _SIMULATED // positions * bits_of_pulse(positions)
    codeword = torch.randint(2, (inputs,), generator=generator) * 2.0 - 1
    received = amplitude * pulses(codeword, positions)
    received += torch.randn(len(received), generator=generator)
    received = torch.where(received.abs() >= threshold, received, 0.0)
    beliefs = pulse_beliefs(received, amplitude, 1.0, threshold, positions, inputs)
    lost = torch.nn.functional.softplus(-codeword * beliefs.clamp(-50, 50)).double().mean() / math.log(2)
    return max(0.0, 1 - float(lost))
