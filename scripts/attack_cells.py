# SPDX-License-Identifier: Apache-2.0
"""The cells of tables that compare attacks: structures and their parts, codes, and honest servers."""

import os
from collections.abc import Iterator

from cells import (
    CLOSED_FORM,
    CONVNET,
    DIGITAL,
    FEEDBACK,
    GRABCUT,
    LINEAR,
    OURS,
    PHOTOGRAPHS,
    ROUNDS,
    SAMPLE,
    TENSOR,
    cell,
    fixed,
    small,
)
from measuring import Cell
from peer_variants import IDENTITY, OTHERS, PAPER, PUBLISHED, SPARSE, seed_paper


def headline() -> Iterator[Cell]:
    """The paper's setting at nominal epsilon 10 and 2.5: its structure and ours, with the same victims and privacy."""
    for z in (2e-4, 8e-4):
        for attack, name in (*seed_paper(1, 2, 4), OURS):
            yield cell(attack, GRABCUT, z=z, attack=name)


def seed_sweep() -> Iterator[Cell]:
    """The paper's setting over its nominal epsilon at C = 10, and, without refinement, over C at epsilon 10."""
    for epsilon in (2.5, 5, 10, 20):
        for attack, name in (*seed_paper(1, 2, 4), OURS):
            yield cell(attack, GRABCUT, z=2 / (1000 * epsilon), attack=name)
    for bound in ("2.5", "5.0", "20.0"):
        for attack, name in (*seed_paper(1)[:1], *seed_paper(2)[:1], OURS):
            yield cell(
                attack, GRABCUT, f"--model.client.privacy.max_grad_norm {bound}", CLOSED_FORM, z=2e-4, attack=name
            )


def peers() -> Iterator[Cell]:
    """Published structures and ours under the paper's protection, in its setting."""
    for z in (2e-5, 2e-4, 8e-4):
        for attack, name in (*OTHERS, *seed_paper(1, 2, 4), OURS):
            yield cell(attack, GRABCUT, z=z, attack=name)


def peers_bundled() -> Iterator[Cell]:
    """The same on the bundled photographs."""
    for z in (2e-4, 8e-4):
        for attack, name in (*OTHERS, *seed_paper(1, 2, 4), OURS):
            yield cell(attack, z=z, attack=name, pictures="bundled")


def curve() -> Iterator[Cell]:
    """Every attack over the noise at one setting: 64 x 64 photographs, 16 per client, one clip for the update."""
    setting = small(16, 2, PHOTOGRAPHS)
    for z in (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2):
        for attack, name in (*OTHERS, *seed_paper(1, 2, 4, 8), OURS):
            yield cell(setting, attack, z=z, attack=name)
        yield cell(setting, FEEDBACK, f"{ROUNDS} 16 {CLOSED_FORM} --model.record false", z=z)


def sample64() -> Iterator[Cell]:
    """One image per client at 64 x 64, each sample clipped: plain pixels, the published structures and ours."""
    setting = small(1, 64, PHOTOGRAPHS, SAMPLE)
    few = "--model.structure.units 64"  # which need not separate victims here
    for z in (1, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001):
        yield cell(IDENTITY, setting, z=z, attack="identity")
        yield cell(f"{SPARSE} {few}", setting, z=z, attack="robbing_the_fed sparse")
        yield cell(f"{PAPER} {PUBLISHED} {few}", setting, z=z, attack="paper published")
        for attack, name in seed_paper(1, 2, 4, 8):
            yield cell(f"{attack} {few}", setting, z=z, attack=name)
        yield cell(setting, z=z, attack=OURS[1])


def moments() -> Iterator[Cell]:
    """The seed paper's structure with and without its moment refinement, at the noise where it finds something."""
    refined = (
        "--model.structure.moments true --model.optimizer torch.optim.Adam --model.optimizer.lr 0.005 "
        "--trainer.max_steps 2000"
    )
    setting = small(16, 1, PHOTOGRAPHS)
    for z in (1e-5, 1e-4, 1e-3):
        for attack, name in (*seed_paper(1), *seed_paper(2)[1:]):
            yield cell(setting, attack, z=z, attack=name, moments="not leaked")
            yield cell(setting, attack, refined, z=z, attack=name, moments="leaked and matched")


def ablation() -> Iterator[Cell]:
    """Ablation of each part: the paper's setting at 64 x 64, and one image per client at higher noise."""
    without = (
        ("", "water_filling"),
        ("--model.structure.cancel false", "without cancelling pairs"),
        ("--model.structure.units 1 --model.structure.directions 1", "without gating"),
        ("--model.structure.power_allocation flat", "without water-filling"),
        ("--model.structure.pilot_power 0.0", "without pilot"),
        ("--model.structure.nulls 0", "without nulls"),
        (CLOSED_FORM, "without refinement"),
    )
    for setting, z in (
        (small(16, 2, GRABCUT, "--data.masks.work_size 192"), 2e-4),
        (small(16, 2, GRABCUT, "--data.masks.work_size 192"), 2e-3),
        (small(1, 16, PHOTOGRAPHS, SAMPLE), 0.03),
    ):
        for options, name in without:
            yield cell(setting, options, z=z, attack=name)


def denoisers() -> Iterator[Cell]:
    """Refinement by each denoiser, also after feedback; by FFDNet at 64 x 64, where FFDNET names its weights' file."""
    known = {"none": CLOSED_FORM, "small": "--model.denoiser SmallDenoiser", "large": ""}
    public = {"FFDNet": "--model.denoiser ffdnet.FFDNet"} if "FFDNET" in os.environ else {}
    alone = small(1, 64, PHOTOGRAPHS, SAMPLE)
    larger = f"{PHOTOGRAPHS} {SAMPLE} {CONVNET} --data.batch_size 1 --data.clients 8 --model.record false"
    rounds = f"{small(1, 16, PHOTOGRAPHS, SAMPLE)} {FEEDBACK} --model.record false {ROUNDS}"
    # A digital code leaves nothing to refine: its perceptual quality beside the others'.
    yield cell(alone, DIGITAL, CLOSED_FORM, z=0.02, denoiser="none")
    for name, denoiser in (known | public).items():
        for z in (0.1, 0.05, 0.03, 0.02):
            yield cell(alone, denoiser, z=z, denoiser=name)
    for name, denoiser in known.items():
        for z in (0.03, 0.01, 0.003):
            yield cell(larger, denoiser, z=z, denoiser=name)
        for number in (1, 4, 16):
            yield cell(f"{rounds} {number}", denoiser, z=0.1, attack="feedback", denoiser=name)


def digital() -> Iterator[Cell]:
    """Digital codes and the linear code, in closed form: 64 x 64, one image clipped alone, and batches."""
    for z in (0.1, 0.05, 0.03, 0.02, 0.01, 0.005, 0.003, 0.001):
        yield from _coded(small(1, 64, PHOTOGRAPHS, SAMPLE), z)
    for z in (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 2.5e-3, 3e-3, 1e-2):
        yield from _coded(small(16, 2, PHOTOGRAPHS), z)


def digital_paper() -> Iterator[Cell]:
    """The same in the paper's setting, with 64 photographs."""
    for z in (2e-4, 8e-4):
        yield from _coded(f"{GRABCUT} --data.clients 4", z)


def upload() -> Iterator[Cell]:
    """Digital codes in the paper's setting under several upload limits, of subjects and of whole photographs."""
    for limit in (123_000_000, 60_000_000):
        for masks, pictures in ((GRABCUT, "subjects"), (f"{PHOTOGRAPHS} --model.structure.subjects false", "whole")):
            setting = f"{masks} --data.clients 4 --model.structure.upload_limit {limit}"
            common = (DIGITAL, setting, CLOSED_FORM, "--model.record false")
            yield cell(*common, z=2e-4, draws=1, upload_limit=limit, masked=pictures)


def tensor_code() -> Iterator[Cell]:
    """Digital codes whose source code consists of tensor operations alone, with one image clipped alone."""
    for z in (0.02, 0.01, 0.005):
        yield cell(f"{DIGITAL} {TENSOR}", small(1, 64, PHOTOGRAPHS, SAMPLE), CLOSED_FORM, "--model.record false", z=z)


def digital_rounds() -> Iterator[Cell]:
    """The same, and feedback, over many rounds of one image clipped alone."""
    for z in (0.1, 0.03, 0.02):
        common = f"{small(1, 16, SAMPLE)} {ROUNDS} 64"
        yield from _coded(f"{common} {PHOTOGRAPHS}", z)
        yield cell(FEEDBACK, common, PHOTOGRAPHS, CLOSED_FORM, "--model.record false", z=z)


def _coded(setting: str, z: float) -> Iterator[Cell]:
    """The digital and the linear code for the same clients."""
    for attack in (DIGITAL, LINEAR):
        yield cell(attack, setting, CLOSED_FORM, "--model.record false", z=z)


def margins() -> Iterator[Cell]:
    """Digital codes designed for other than the actual noise, and with different margins; closed form."""
    one, batch = small(1, 16, PHOTOGRAPHS, SAMPLE), small(16, 2, PHOTOGRAPHS)
    for setting, z in ((one, 0.01), (one, 0.005), (batch, 0.001)):
        common = f"{DIGITAL} {setting} {CLOSED_FORM} --model.record false"
        for factor in (0.5, 0.9, 0.95, 0.98, 1, 1.05, 1.25, 2):
            assumed = f"--model.structure.assumed_noise {fixed(factor * z)}"
            yield cell(common, assumed, z=z, assumed_over_true=factor)
        for margin in ("0.0", "0.2"):
            yield cell(common, f"--model.structure.margin_db {margin}", z=z, margin_db=margin)
