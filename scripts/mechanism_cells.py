# SPDX-License-Identifier: Apache-2.0
"""The cells of the table about mechanisms beside Gaussian noise on real numbers, independent in every round."""

from collections.abc import Iterator

from cells import CLOSED_FORM, DIGITAL, FEEDBACK, LINEAR, PHOTOGRAPHS, ROUNDS, SAMPLE, cell, small
from measuring import Cell

from lightning_recon.privacy.correlated_noise import sensitivity

QUANTIZATION, PRIVACY = "--model.client.quantization", "--model.client.privacy"
SECAGG = f"{QUANTIZATION}.clipping_range 8.0"  # the other defaults of Flower's SecAgg+
FINE = f"{QUANTIZATION}.clipping_range 16.0 {QUANTIZATION}.quantization_range 1048576"
EIGHT_BITS = f"{QUANTIZATION}.clipping_range 2.0 {QUANTIZATION}.quantization_range 256 {QUANTIZATION}.modulus_range 256"
DRAWS = 3


def mechanisms() -> Iterator[Cell]:
    """Mechanisms beside Gaussian noise at equal variance: sums of integers, and 16 rounds; 64 x 64, three draws."""
    for attack, code in ((LINEAR, "linear"), (DIGITAL, "digital")):
        sums = f"{small(4, 4, PHOTOGRAPHS, SAMPLE)} --model.client.aggregated 4 --model.record false {CLOSED_FORM}"
        for mechanism, options in (
            ("Gaussian, real sums", ""),
            ("Gaussian, SecAgg+", SECAGG),
            ("Gaussian, SecAgg+, one in five drops out", f"{SECAGG} --model.client.client_dropout 0.2"),
            ("Gaussian, sums of 8 bits", EIGHT_BITS),
            ("Skellam", f"{PRIVACY}.mechanism skellam {FINE}"),
            ("discrete Gaussian", f"{PRIVACY}.mechanism discrete_gaussian {FINE}"),
        ):
            yield cell(attack, sums, options, z=0.003, draws=DRAWS, mechanism=mechanism, code=code)
    common = f"{small(1, 16, PHOTOGRAPHS, SAMPLE)} {ROUNDS} 16 {CLOSED_FORM} --model.record false"
    adaptive = f"{PRIVACY}.adaptive_clip.clipbound_learning_rate 0.2"
    for attack, code in ((LINEAR, "linear"), (FEEDBACK, "feedback")):
        for options, mechanism in (("", "Gaussian"), (adaptive, "Gaussian, adaptive clip")):
            yield cell(attack, common, options, z=0.1, draws=DRAWS, mechanism=mechanism, code=code)
    for bands in (4, 16):
        # With the epsilon of independent noise at z = 0.1, and so with its variance after whitening.
        z = 0.1 * sensitivity(bands, 16) / 4
        mechanism = f"Gaussian, correlated over {bands} rounds"
        options = f"{PRIVACY}.noise_bands {bands}"
        yield cell(LINEAR, common, options, z=z, draws=DRAWS, mechanism=mechanism, code="linear")
