# SPDX-License-Identifier: Apache-2.0
"""The attacker's pictures meet the truth: whose is whose, and how good each one is."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from lightning_recon.evaluation.assignment import arrange, match
from lightning_recon.evaluation.files import file_fields
from lightning_recon.evaluation.metrics import mse_per_image, psnr_from_mse, same_in_8_bits, ssim_per_image
from lightning_recon.structure.base import ReceivedFile


class Truth(Protocol):
    """What is known of one client's victims once the attack is over; `ClientBatch` is one."""

    @property
    def images(self) -> Tensor:
        """What the client trained on, shape (B, 3, H, W), values in [0, 1]."""

    @property
    def photographs(self) -> Tensor:
        """The same pictures before the subject was cut out, shape (B, 3, H, W), values in [0, 1]."""

    @property
    def masks(self) -> Tensor:
        """The subject, shape (B, 1, H, W), bool."""


@dataclass(frozen=True)
class Attacked:
    """What the attacker hands over for one client and one noise draw, in the attacker's own order.

    Args:
        client: Number of the client.
        draw: Number of the noise draw.
        pictures: Final reconstructions, shape (M, 3, H, W) with M <= B, values in [0, 1].
        initial: The same pictures before refinement, same shape.
        unresolved: How many rows the attacker could not explain by single victims.
        evident: Whether the attacker vouches for them: more came through than noise explains.
        files: For each picture how its file arrived, or None where none did; None if nothing was sent digitally.
    """

    client: int
    draw: int
    pictures: Tensor
    initial: Tensor
    unresolved: int
    evident: bool = True
    files: Sequence[ReceivedFile | None] | None = None


@dataclass(frozen=True)
class VictimScore:
    """One entry of `victims` in `results.json`, without the name of its picture's file.

    Args:
        client: Number of the client.
        index: Place of the victim in the client's batch.
        draw: Number of the noise draw.
        detected: Whether the attacker has a picture for this victim, and vouches for it.
        collision: Whether it has none while some rows stayed unexplained: victims that excited the same rows.
        false_detection: Whether the attacker's picture is no closer to it than the public mean image.
        psnr: PSNR in dB against what the client trained on.
        bit_exact: Whether the picture, saved with 8 bits a channel, is the true file.
        ssim: Structural similarity to what the client trained on.
        psnr_initial: PSNR in dB before refinement.
        psnr_photograph: PSNR in dB against the photograph before the subject was cut out.
        codec: "webp" (lossless) or "avif", the format of the file that arrived; None where none did.
        code_rate: Message bits an input of the codeword that carried it; else None.
        bits_sent: Message bits of that codeword; else None.
        capacity_bits: What its ±1 inputs could have carried at the signal-to-noise ratio that they arrived with, in
            bits; else None.
    """

    client: int
    index: int
    draw: int
    detected: bool
    collision: bool
    false_detection: bool
    psnr: float
    bit_exact: bool
    ssim: float
    psnr_initial: float
    psnr_photograph: float
    codec: str | None = None
    code_rate: float | None = None
    bits_sent: int | None = None
    capacity_bits: float | None = None


@dataclass(frozen=True)
class Scored:
    """One client and draw after matching, in the victims' order.

    Args:
        pictures: Each victim's picture, or the public mean image where the attacker had none, shape (B, 3, H, W).
        initial: The same before refinement.
        victims: Their scores, B of them.
    """

    pictures: Tensor
    initial: Tensor
    victims: list[VictimScore]


def score(truth: Truth, attacked: Attacked, mean_image: Tensor) -> Scored:
    """Match one client's pictures to its victims and score every victim.

    Args:
        truth: The client's batch.
        attacked: The attacker's pictures of it.
        mean_image: Public mean image, shape (3, H, W): what an attacker guesses who saw nothing.

    Returns:
        Pictures and scores in the victims' order; a victim without a picture scores with the mean image.
    """
    owner = match(truth.images, attacked.pictures)
    pictures, initial = (
        arrange(part, owner, mean_image).to(truth.images) for part in (attacked.pictures, attacked.initial)
    )
    found = (owner >= 0).cpu()
    detected = found & attacked.evident
    collision = ~found & (attacked.unresolved > 0)
    mse = mse_per_image(pictures, truth.images)
    guess = mean_image.to(truth.images).expand_as(truth.images)
    useless = (mse >= mse_per_image(guess, truth.images)).cpu()
    columns = zip(
        detected.tolist(),
        collision.tolist(),
        (detected & useless).tolist(),
        psnr_from_mse(mse).tolist(),
        same_in_8_bits(pictures, truth.images).tolist(),
        ssim_per_image(pictures, truth.images).tolist(),
        psnr_from_mse(mse_per_image(initial, truth.images)).tolist(),
        psnr_from_mse(mse_per_image(pictures, truth.photographs)).tolist(),
        strict=True,
    )
    handed_over = [None] * len(attacked.pictures) if attacked.files is None else attacked.files
    files = [*handed_over, None]  # the last for those without a picture, whose owner is -1
    victims = [
        VictimScore(attacked.client, index, attacked.draw, *row, **file_fields(files[place]))
        for index, (row, place) in enumerate(zip(columns, owner.tolist(), strict=True))
    ]
    return Scored(pictures=pictures, initial=initial, victims=victims)
