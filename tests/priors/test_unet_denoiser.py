# SPDX-License-Identifier: Apache-2.0
"""The shipped denoisers remove noise from photographs that they were not trained on, and do no harm without noise."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lightning_recon.attack import LargeDenoiser, SmallDenoiser
from lightning_recon.data import ClientDataModule, NoMasks
from lightning_recon.errors import UserError
from lightning_recon.priors.unet_denoiser import SHIPPED, SHIPPED_LARGE, UNetDenoiser


@pytest.fixture(scope="module")
def photographs() -> Tensor:
    """The bundled photographs, which training leaves out."""
    data = ClientDataModule(image_size=64, batch_size=16, masks=NoMasks())
    data.prepare_data()
    data.setup()
    return data.client_batches[0].images


@pytest.fixture(scope="module", params=[SmallDenoiser, LargeDenoiser])
def denoiser(request: pytest.FixtureRequest) -> UNetDenoiser:
    found: UNetDenoiser = request.param().eval().requires_grad_(False)
    return found


def noisy(clean: Tensor, sigma: float) -> Tensor:
    return clean + sigma * torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("sigma", "share"), [(0.02, 0.75), (0.05, 0.45), (0.1, 0.3), (0.2, 0.2)])
def test_most_of_the_noise_goes(sigma: float, share: float, photographs: Tensor, denoiser: UNetDenoiser) -> None:
    found = denoiser(noisy(photographs, sigma), sigma)
    errors = (found - photographs).square().mean(dim=(1, 2, 3)) / sigma**2
    assert errors.mean() < share
    assert errors.max() < 1


@pytest.mark.parametrize("sigma", [1e-5, 1e-3])
def test_with_hardly_any_noise_hardly_anything_changes(
    sigma: float, photographs: Tensor, denoiser: UNetDenoiser
) -> None:
    assert (denoiser(photographs, sigma) - photographs).abs().max() < 8.1 * sigma
    assert (denoiser(photographs, 0.0) - photographs).abs().max() < 1e-5


@pytest.mark.parametrize("shape", [(2, 3, 24, 24), (1, 3, 9, 15), (3, 3, 31, 64)])
def test_pictures_of_any_size(shape: tuple[int, ...], denoiser: UNetDenoiser) -> None:
    assert denoiser(torch.rand(shape), torch.full(shape[:1], 0.1)).shape == shape


def test_each_picture_has_its_own_sigma(photographs: Tensor, denoiser: UNetDenoiser) -> None:
    some = noisy(photographs[:3], 0.1)
    together = denoiser(some, torch.tensor([0.05, 0.1, 0.2]))
    for index, sigma in enumerate([0.05, 0.1, 0.2]):
        torch.testing.assert_close(together[index], denoiser(some[index : index + 1], sigma)[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize(("path", "most"), [(SHIPPED, 4e6), (SHIPPED_LARGE, 8e6)])
def test_the_weights_are_small_and_of_half_precision(path: Path, most: float) -> None:
    assert path.stat().st_size < most
    assert {value.dtype for value in load_file(path).values()} == {torch.float16}


@pytest.mark.parametrize("denoiser", [SmallDenoiser, LargeDenoiser])
def test_wrong_weights_are_told_in_one_line(tmp_path: Path, denoiser: type[UNetDenoiser]) -> None:
    missing, broken, foreign = tmp_path / "missing.safetensors", tmp_path / "broken.safetensors", tmp_path / "foreign"
    broken.write_bytes(b"no tensors")
    save_file({"head.weight": torch.zeros(3)}, foreign)
    for path, says in ((missing, "do not exist"), (broken, "cannot be read"), (foreign, "another network")):
        with pytest.raises(UserError, match=says) as error:
            denoiser(weights=str(path))
        assert str(path) in str(error.value)
        assert "\n" not in str(error.value)
