# SPDX-License-Identifier: Apache-2.0
"""The linear sketch beside a digital code: how the two share a row's power, and how the sketch is decoded."""

import math
from dataclasses import replace

import torch
from torch import Tensor

from lightning_recon.exchange import ServerPayload
from lightning_recon.structure.coding.code_plan import HEADER, Plan
from lightning_recon.structure.detection.wiener import RowPosterior, RowPrior, decode_row, scale_from_energy


def with_words(prior: RowPrior, plan: Plan) -> RowPrior:
    """The prior of a whole row: the more inputs agree, the stronger the evidence that rows hold the same image.

    Codewords are assumed to have their smallest amplitude: larger ones are only detected more reliably.
    """
    least = min(amplitude for amplitude in plan.amplitudes if amplitude > 0)
    words = torch.cat([torch.full((HEADER,), plan.header), torch.full((plan.inputs,), least)])
    return replace(prior, power=torch.cat([prior.power, words.to(prior.power) ** 2]))


def decode_sketch(row: Tensor, sent: int, pilot: float, noise: float, prior: RowPrior, plan: Plan) -> RowPosterior:
    """Decode a sketch, the first `sent` entries of a victim's row.

    For a victim that is clipped alone, the scale follows from the energy of its whole row, of which the sketch and its
    pilot have their share whatever the image: they are decoded like a linear code that is alone, with less power.

    Args:
        row: The row's image inputs and digital inputs, divided by the clipping norm.
        sent: Number of image inputs.
        pilot: The row's pilot, likewise.
        noise: Noise standard deviation of every entry.
        prior: What was expected of image inputs and pilot.
        plan: What was shipped.
    """
    if prior.log_scale_std > 0:
        return decode_row(row[:sent], pilot, noise, prior)
    amplitude = math.sqrt(plan.sketch)
    alone = replace(
        prior,
        power=prior.power / plan.sketch,
        pilot_level=prior.pilot_level / amplitude,
        scale=scale_from_energy(row, pilot, noise, prior.scale) / amplitude,
        mean=None if prior.mean is None else prior.mean / amplitude,
    )
    found = decode_row(row[:sent], pilot, noise, alone)
    return RowPosterior(amplitude * found.inputs, plan.sketch * found.variance, found.contrast, amplitude * found.scale)


def beside(sketch: ServerPayload, plan: Plan) -> ServerPayload:
    """A linear structure scaled to its share of the power, with the plan's inputs after its own."""
    amplitude, shipped = math.sqrt(plan.sketch), dict(sketch.tensors)
    shipped["gain"] = amplitude * shipped["gain"]
    shipped["constants"] = amplitude * shipped["constants"]
    # The units' measurements do not change: the digital inputs get the weight 0.
    shipped["directions"] = torch.nn.functional.pad(shipped["directions"] / amplitude, (0, HEADER + plan.inputs))
    shipped["digital_amplitudes"] = torch.tensor(plan.amplitudes)
    return ServerPayload(settings={**sketch.settings, **plan.settings()}, tensors=shipped)
