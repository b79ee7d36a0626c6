# SPDX-License-Identifier: Apache-2.0
"""Metrics against scikit-image and against hand-made cases."""

from pathlib import Path

import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor
from torchvision.models import SqueezeNet1_1_Weights, squeezenet1_1

from lightning_recon.evaluation.metrics import (
    bit_exact,
    lpips_per_image,
    mse_per_image,
    psnr_from_mse,
    psnr_per_image,
    ssim_per_image,
)


def pair(size: int, noise: float = 0.1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(size)
    ramp = torch.linspace(0, 1, size)
    truth = (ramp[:, None] * ramp)[None, None].expand(2, 3, size, size) * 0.8 + 0.1
    return (truth + noise * torch.randn(truth.shape, generator=generator)).clamp(0, 1), truth.contiguous()


def test_psnr_is_scikit_image_s() -> None:
    pictures, truth = pair(24)
    expected = [
        peak_signal_noise_ratio(t.numpy(), p.numpy(), data_range=1.0) for t, p in zip(truth, pictures, strict=True)
    ]
    assert psnr_per_image(pictures, truth).tolist() == pytest.approx(expected, abs=1e-4)


def test_ssim_is_scikit_image_s() -> None:
    pictures, truth = pair(128)
    expected = [
        structural_similarity(
            t,
            p,
            channel_axis=0,
            data_range=1.0,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            full=True,
        )[1].mean()
        for t, p in zip(truth.double().numpy(), pictures.double().numpy(), strict=True)
    ]
    # The two libraries extend a picture differently past its border.
    assert ssim_per_image(pictures, truth).tolist() == pytest.approx(expected, abs=2e-3)


@pytest.mark.parametrize("size", [1, 2, 5, 8, 10, 11, 32])
def test_ssim_works_at_any_size(size: int) -> None:
    pictures, truth = pair(size)
    assert ssim_per_image(truth, truth).tolist() == pytest.approx([1.0, 1.0], abs=1e-5)
    assert (ssim_per_image(pictures, truth) < 0.999).all()


def test_psnr_of_a_known_error() -> None:
    truth = torch.full((2, 3, 4, 4), 0.5)
    pictures = truth.clone()
    pictures[1] += 0.1
    assert mse_per_image(pictures, truth).tolist() == pytest.approx([0.0, 0.01], rel=1e-5)
    assert psnr_per_image(pictures, truth).tolist() == pytest.approx([100.0, 20.0], rel=1e-5)
    assert psnr_from_mse(torch.tensor([1.0, 1e-30])).tolist() == [0.0, 100.0]


def test_bit_exact_means_the_same_file() -> None:
    truth = torch.arange(48).view(1, 3, 4, 4) / 255
    off = truth.clone()
    off[0, 0, 0, 0] += 1 / 255
    pictures = torch.cat([truth + 0.49 / 255, off])
    assert bit_exact(pictures, truth.expand(2, -1, -1, -1)).tolist() == [True, False]


def test_no_lpips_without_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    assert lpips_per_image(*pair(64), network="squeeze") is None


def test_lpips_with_weights_at_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    torch.manual_seed(0)
    name = Path(SqueezeNet1_1_Weights.DEFAULT.url).name
    (tmp_path / "checkpoints").mkdir()
    torch.save(squeezenet1_1(weights=None).state_dict(), tmp_path / "checkpoints" / name)
    pictures, truth = pair(64)
    apart = lpips_per_image(pictures, truth, network="squeeze")
    same = lpips_per_image(truth, truth, network="squeeze")
    assert apart is not None
    assert same is not None
    assert apart.shape == (2,)
    assert same.tolist() == pytest.approx([0.0, 0.0], abs=1e-6)
    assert (apart > same).all()
    # A single image has one distance, in a tensor of one dimension.
    single = lpips_per_image(pictures[:1], truth[:1], network="squeeze")
    assert single is not None
    torch.testing.assert_close(single, apart[:1])
