# SPDX-License-Identifier: Apache-2.0
"""Match reconstructions with the true images and score every victim."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Protocol

from torch import Tensor

from lightning_recon.evaluation.assignment import arrange, match
from lightning_recon.evaluation.metrics import bit_exact, mse_per_image, psnr_from_mse, ssim_per_image
from lightning_recon.reconstruction import ReceivedFile, Reconstruction


class Truth(Protocol):
    """The true images of one client's victims, used after the attack only; `ClientBatch` is one."""

    @property
    def images(self) -> Tensor:
        """What the client trained on, shape (B, C, H, W), values in [0, 1]."""

    @property
    def photographs(self) -> Tensor:
        """The same images before the subject was cut out, shape (B, C, H, W), values in [0, 1]."""

    @property
    def masks(self) -> Tensor:
        """The subject, shape (B, 1, H, W), bool."""


@dataclass(frozen=True)
class VictimScore:
    """One entry of `victims` in `results.json`, without the name of its image's file.

    Args:
        client: Number of the client.
        index: Place of the victim in the client's batch.
        draw: Number of the noise draw.
        detected: Whether the attacker has an image for this victim, and counts it as evident.
        collision: Whether it has none while some rows stayed unexplained: several victims activated the same rows.
        false_detection: Whether the attacker's image is no closer to it than the public mean image.
        psnr: PSNR in dB against what the client trained on.
        bit_exact: Whether the image, rounded to the bits of a value, is the exact image that the client trained on.
        ssim: Structural similarity to what the client trained on.
        psnr_initial: PSNR in dB before refinement.
        psnr_photograph: PSNR in dB against the photograph before the subject was cut out.
        codec: "webp" or "jxl" (lossless), "avif" or "tensor" (lossy), or "jpeg2000" (of more than 8 bits, or of other
            than 1 or 3 channels): the format of the decoded file; None without a file.
        code_rate: Message bits an input of the codeword that carried it; None without a file.
        bits_sent: Message bits of that codeword; None without a file.
        identified: Whether the image is nearer to its own original than to every other image of a gallery; None where
            there was none.
        capacity_bits: Capacity of its ±1 channel inputs at the signal-to-noise ratio of the release, in bits; None
            without a file.
        first_round: Round in which the attacker saw the image first; None where it has none, and where all images are
            in all rounds.
        rounds_seen: Expected number of rounds in which the attacker saw it; None likewise.
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
    identified: bool | None = None
    first_round: int | None = None
    rounds_seen: float | None = None

    @property
    def lost(self) -> bool:
        """Whether the attacker has no image for this victim that is closer to it than the public mean image."""
        return not self.detected or self.false_detection


@dataclass(frozen=True)
class Scored:
    """One client and draw after matching, in the victims' order.

    Args:
        images: Each victim's image, or the public mean image where the attacker has none, shape (B, C, H, W).
        initial: The same before refinement.
        victims: Their scores, B of them.
    """

    images: Tensor
    initial: Tensor
    victims: list[VictimScore]


def score(truth: Truth, found: Reconstruction, mean_image: Tensor, bit_depth: int = 8) -> Scored:
    """Match one client's reconstructions to its victims and score every victim.

    Args:
        truth: The client's batch.
        found: What the attacker reconstructed of it.
        mean_image: Public mean image, shape (C, H, W): the estimate of an attacker without any update.
        bit_depth: Bits of a value of the images.

    Returns:
        Images and scores in the victims' order; a victim without a reconstruction scores with the mean image.
    """
    owner = match(truth.images, found.images)
    images, initial = (arrange(part, owner, mean_image).to(truth.images) for part in (found.images, found.initial))
    matched = (owner >= 0).cpu()
    detected = matched & found.evident
    collision = ~matched & (found.unresolved > 0)
    mse = mse_per_image(images, truth.images)
    baseline = mean_image.to(truth.images).expand_as(truth.images)
    useless = (mse >= mse_per_image(baseline, truth.images)).cpu()
    columns = zip(
        detected.tolist(),
        collision.tolist(),
        (detected & useless).tolist(),
        psnr_from_mse(mse).tolist(),
        bit_exact(images, truth.images, bit_depth).tolist(),
        ssim_per_image(images, truth.images).tolist(),
        psnr_from_mse(mse_per_image(initial, truth.images)).tolist(),
        psnr_from_mse(mse_per_image(images, truth.photographs)).tolist(),
        strict=True,
    )
    files = [*_files(found), None]  # the last for those without a reconstruction, whose owner is -1
    victims = [
        VictimScore(found.client, index, found.draw, *row, **_fields_of(found, files[place], place))
        for index, (row, place) in enumerate(zip(columns, owner.tolist(), strict=True))
    ]
    return Scored(images=images, initial=initial, victims=victims)


def entries_without_truth(found: Reconstruction) -> list[dict[str, object]]:
    """Entries of `victims` where the true images are not known: None in place of every score.

    Args:
        found: What the attacker reconstructed.

    Returns:
        An entry for each reconstruction, in the attacker's order.
    """
    unknown: dict[str, object] = dict.fromkeys(field.name for field in fields(VictimScore))
    return [unknown | {"client": found.client, "draw": found.draw} | _file_fields(file) for file in _files(found)]


def _fields_of(found: Reconstruction, file: ReceivedFile | None, place: int) -> dict[str, Any]:
    """The fields of an entry of `victims` about its file, and about when the attacker saw the image."""
    fields = _file_fields(file)
    if found.seen is None or place < 0:
        return fields
    seen = found.seen[place]
    return fields | {"first_round": seen.first, "rounds_seen": seen.expected}


def _files(found: Reconstruction) -> Sequence[ReceivedFile | None]:
    return [None] * len(found.images) if found.files is None else found.files


def _file_fields(file: ReceivedFile | None) -> dict[str, Any]:
    """The fields of an entry of `victims` that describe the decoded file; none without a file."""
    if file is None:
        return {}
    return {"codec": file.codec, "code_rate": file.rate, "bits_sent": file.bits, "capacity_bits": file.capacity}
