# SPDX-License-Identifier: Apache-2.0
"""The cells of the table `case_studies`: our attacks under privacy parameters that released programs document."""

from collections.abc import Iterator

from case_accounting import (
    FLIP,
    FLIP_ADVISED,
    FLOWER_CENTRAL,
    FLOWER_OPACUS,
    IMAGES,
    OPACUS_README,
    OPACUS_TUTORIAL,
    PAPER,
    Case,
)
from cells import CLOSED_FORM, DIGITAL, FEEDBACK, PHOTOGRAPHS, ROUNDS, cell, small
from measuring import Cell

CLIENTS, DRAWS = 2, 3
BATCH = (IMAGES, CLIENTS)  # images a client, and clients
ALONE = (1, IMAGES * CLIENTS)  # as many clients with one image each
# FLIP's tutorial on chest X-rays: three local epochs of Adam from this learning rate on, in batches of eight.
ADAM = (
    "--model.client.local.update delta --model.client.local.optimizer torch.optim.Adam "
    "--model.client.local.optimizer.lr 0.001 --model.client.local.epochs 3"
)
SUMS = "--model.client.aggregated 20"
SECAGG = "--model.client.quantization.clipping_range 8.0"  # the other defaults of Flower's SecAgg+
LOCAL_IMAGES, EPOCHS = 64, 20  # of a client whose batches change


def case_studies() -> Iterator[Cell]:
    """Privacy parameters that released programs document: our attacks at 64 x 64, three noise draws."""
    yield _cell(FLIP, "one round")
    yield _cell(FLIP, "one round of Adam, 3 epochs", options=ADAM)
    yield _cell(FLIP, "3 rounds", options=f"{ROUNDS} 3")
    yield _cell(FLIP_ADVISED, "one round")
    yield _cell(FLIP_ADVISED, "3 rounds", FEEDBACK, options=f"{ROUNDS} 3")
    for case, rounds in ((FLOWER_OPACUS, 3), (OPACUS_TUTORIAL, OPACUS_TUTORIAL.releases), (OPACUS_README, 16)):
        for clients, kind in ((BATCH, "8 images a client"), (ALONE, "1 image a client")):
            yield _cell(case, f"one round, {kind}", clients=clients)
            yield _cell(case, f"{rounds} rounds, {kind}", FEEDBACK, clients, f"{ROUNDS} {rounds}")
    rounds = EPOCHS * LOCAL_IMAGES // IMAGES
    changing = f"--data.local_images {LOCAL_IMAGES} --model.client.sampling poisson {ROUNDS} {rounds}"
    yield _cell(OPACUS_TUTORIAL, f"{rounds} rounds, batches change", FEEDBACK, (IMAGES, 1), changing)
    # Sums of twenty clients with three images each: as outsiders get them, and as the server does before its noise.
    noised = f"{SUMS} --model.client.noise_share distributed"
    yield _cell(FLOWER_CENTRAL, "one round, noised sum", clients=(3, 20), options=noised)
    yield _cell(FLOWER_CENTRAL, "3 rounds, noised sum", FEEDBACK, (3, 20), f"{noised} {ROUNDS} 3")
    yield _cell(FLOWER_CENTRAL, "one round, before the noise", clients=(3, 20), options=f"{SUMS} {SECAGG}", z=0.0)
    yield _cell(PAPER, "one round")


def _cell(
    case: Case,
    setting: str,
    attack: str = DIGITAL,
    clients: tuple[int, int] = BATCH,
    options: str = "",
    z: float | None = None,
) -> Cell:
    """A cell of a case; feedback in closed form, where nothing is refined."""
    granularity = "sample" if case.record == "image" else "update"
    clip = f"--model.client.privacy.granularity {granularity} --model.client.privacy.max_grad_norm {case.max_grad_norm}"
    chosen = f"{PHOTOGRAPHS} {clip} {options} --model.record false {CLOSED_FORM if attack == FEEDBACK else ''}"
    noise = case.noise_multiplier if z is None else z
    return cell(attack, small(*clients, chosen), z=noise, draws=DRAWS, case=case.name, setting=setting)
