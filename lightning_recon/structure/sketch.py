# SPDX-License-Identifier: Apache-2.0
"""The linear sketch beside a digital code: how the two share a row's power, and how the sketch is decoded."""

import math
from dataclasses import replace

import torch
from torch import Tensor

from lightning_recon.exchange import ServerPayload
from lightning_recon.structure.coding.code_plan import HEADER, Plan
from lightning_recon.structure.detection.wiener import RowPosterior, RowPrior, decode_row


def with_words(prior: RowPrior, plan: Plan) -> RowPrior:
    """The prior of a whole row: the more inputs agree, the stronger the evidence that rows hold the same image.

    Codewords are assumed to have their smallest amplitude: larger ones are only detected more reliably.
    """
    least = min(amplitude for amplitude in plan.amplitudes if amplitude > 0)
    words = torch.cat([torch.full((HEADER,), plan.header), torch.full((plan.inputs,), least)])
    return replace(prior, power=torch.cat([prior.power, words.to(prior.power) ** 2]))


def decode_sketch(row: Tensor, sent: int, pilot: float, noise: float, prior: RowPrior) -> RowPosterior:
    """Decode a sketch, the first `sent` entries of a victim's row.

    For a victim that is clipped alone, the scale follows from the energy of its whole row: the digital inputs count as
    one more input that has their energy.
    """
    sketch, words = row[:sent], row[sent:]
    if prior.log_scale_std == 0:
        energy = float(words.double().square().sum()) - len(words) * noise**2
        sketch = torch.cat([sketch, sketch.new_tensor([math.sqrt(max(energy, 0.0))])])
        rest = 1 - prior.pilot_level**2 - float(prior.power.sum())
        prior = replace(prior, power=torch.cat([prior.power, prior.power.new_tensor([rest])]))
    found = decode_row(sketch, pilot, noise, prior)
    return RowPosterior(found.inputs[:sent], found.variance[:sent], found.contrast, found.scale)


def beside(sketch: ServerPayload, plan: Plan) -> ServerPayload:
    """A linear structure scaled to its share of the power, with the plan's inputs after its own."""
    amplitude, shipped = math.sqrt(plan.sketch), dict(sketch.tensors)
    shipped["gain"] = amplitude * shipped["gain"]
    shipped["constants"] = amplitude * shipped["constants"]
    # The units' measurements do not change: the digital inputs get the weight 0.
    shipped["directions"] = torch.nn.functional.pad(shipped["directions"] / amplitude, (0, HEADER + plan.inputs))
    shipped["digital_amplitudes"] = torch.tensor(plan.amplitudes)
    return ServerPayload(settings={**sketch.settings, **plan.settings()}, tensors=shipped)
