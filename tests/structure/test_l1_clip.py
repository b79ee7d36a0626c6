# SPDX-License-Identifier: Apache-2.0
"""Structures under the Laplace mechanism, whose clip bounds the L1 norm: from images to decoded images."""

import pytest
import torch

from lightning_recon.client import VictimClient
from lightning_recon.data.sources import ClientBatch
from lightning_recon.errors import UserError
from lightning_recon.evaluation.assignment import arrange, match
from lightning_recon.evaluation.metrics import psnr_per_image
from lightning_recon.priors.image_statistics import public_statistics
from lightning_recon.privacy.parameters import Privacy
from lightning_recon.structure import Digital, Feedback, Structure, WaterFilling

SIZE = 32


def some_images(count: int) -> torch.Tensor:
    """Random images with the spectrum of photographs, of 8 bits."""
    statistics = public_statistics(SIZE, SIZE, False, None)
    waves = torch.randn(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0)) * statistics.variance.sqrt()
    return (statistics.transform.synthesise(waves).clamp(0, 1) * 255).round() / 255


def attacked(structure: Structure, noise_multiplier: float, count: int, granularity: str = "update") -> tuple:
    privacy = Privacy(0.5, noise_multiplier, granularity, mechanism="laplace")  # type: ignore[arg-type]
    client = VictimClient(network="convnet", num_classes=10, privacy=privacy, noise_seed=0)
    images, masks = some_images(count), torch.ones(count, 1, SIZE, SIZE, dtype=torch.bool)
    client.bind([ClientBatch(images, images, masks, torch.arange(count), tuple(map(str, range(count))))])
    payload = structure.payload(client.task)
    decoded = structure.decode(payload, client.task, client.share(payload, 0, 0, 0))
    mean = structure.statistics(client.task).mean
    psnr = psnr_per_image(arrange(decoded.images, match(images, decoded.images), mean), images)
    return decoded, float(psnr.mean()), float(psnr_per_image(mean.expand_as(images), images).mean())


def test_a_linear_code_improves_as_the_noise_falls() -> None:
    found = [attacked(WaterFilling(), z, 1)[1] for z in (1e-2, 1e-3, 1e-4, 1e-5)]
    assert found == sorted(found)
    assert found[-1] > 35
    _, psnr, baseline = attacked(WaterFilling(), 10.0, 1)
    assert psnr < baseline + 0.5


@pytest.mark.parametrize("granularity", ["update", "sample"])
def test_several_victims_are_separated(granularity: str) -> None:
    decoded, psnr, baseline = attacked(WaterFilling(), 1e-5, 4, granularity)
    assert len(decoded.images) == 4
    assert psnr > baseline + 12


def test_files_arrive_bit_for_bit() -> None:
    decoded, psnr, _ = attacked(Digital(jpeg_xl=False), 1e-6, 1)
    assert decoded.files is not None
    assert decoded.files[0] is not None
    assert decoded.files[0].codec == "webp"
    assert psnr == 100


def test_a_digital_code_is_left_out_where_it_does_not_pay() -> None:
    decoded, psnr, _ = attacked(Digital(), 5e-4, 1)
    assert decoded.files is None
    assert psnr == pytest.approx(attacked(WaterFilling(), 5e-4, 1)[1])


def test_without_noise_everything_comes_back() -> None:
    assert attacked(WaterFilling(), 0.0, 1)[1] > 60


def test_feedback_says_that_it_needs_a_euclidean_clip() -> None:
    with pytest.raises(UserError, match="Feedback is designed for a Euclidean clip"):
        attacked(Feedback(), 1e-3, 1)


def test_files_of_a_batch_arrive_in_rows_of_their_own() -> None:
    decoded, psnr, _ = attacked(Digital(), 1e-6, 4)
    assert [file is not None for file in decoded.files or ()] == [True] * 4
    assert psnr == 100
