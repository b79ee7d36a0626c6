# SPDX-License-Identifier: Apache-2.0
"""The shipped denoisers remove noise from photographs that they were not trained on, and do no harm without noise."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor

from lightning_recon.attack import LargeDenoiser, SmallDenoiser
from lightning_recon.cli import main
from lightning_recon.data import ClientDataModule, NoMasks
from lightning_recon.errors import UserError
from lightning_recon.files.digests import digest_of, sha256
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


def test_the_weights_of_the_one_do_not_fit_the_other() -> None:
    for denoiser, foreign in ((SmallDenoiser, SHIPPED_LARGE), (LargeDenoiser, SHIPPED)):
        with pytest.raises(UserError, match="another network"):
            denoiser(weights=str(foreign))


def test_training_of_the_large_one_starts_as_the_small_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "scripts"))
    from train_large_denoiser import start

    large, small = start().eval(), SmallDenoiser().eval()
    images, sigma = torch.rand(2, 3, 32, 40), torch.tensor([0.05, 0.2])
    with torch.no_grad():
        torch.testing.assert_close(large(images, sigma), small(images, sigma), rtol=0, atol=1e-5)


@pytest.mark.parametrize("sigma", [0.2, 0.3])
def test_the_large_one_removes_more_of_much_noise(sigma: float, photographs: Tensor) -> None:
    errors = []
    for denoiser in (SmallDenoiser().eval(), LargeDenoiser().eval()):
        with torch.no_grad():
            errors.append(float((denoiser(noisy(photographs, sigma), sigma) - photographs).square().mean()))
    assert errors[1] < errors[0]


def test_the_command_line_takes_it_by_its_name(tmp_path: Path) -> None:
    line = "--config quickstart.yaml --config attack/linear.yaml --model.denoiser SmallDenoiser --data.clients 1"
    line += " --data.batch_size 1 --data.image_size 32 --model.client.network convnet --trainer.max_steps 1"
    line += " --comparison.structure null"
    main(["fit", *line.split(), "--trainer.default_root_dir", str(tmp_path / "run")])
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert config["model"]["init_args"]["denoiser"]["class_path"].endswith(".SmallDenoiser")
    record = json.loads((tmp_path / "run" / "results.json").read_text())
    assert record["attack"] == "water_filling"
    assert record["denoiser"]["class_path"].endswith(".SmallDenoiser")


@pytest.mark.parametrize("steps", [0, 1])
def test_a_record_names_the_denoiser_and_its_weights(tmp_path: Path, steps: int) -> None:
    line = f"--config quickstart.yaml --config attack/linear.yaml --trainer.max_steps {steps} --data.clients 1"
    line += " --data.batch_size 1 --data.image_size 32 --model.client.network convnet --comparison.structure null"
    flags, run = line.split(), tmp_path / "run"
    main(["fit", *flags, "--trainer.default_root_dir", str(run)])
    record = json.loads((run / "results.json").read_text())["denoiser"]
    digest = digest_of({name: sha256(value) for name, value in LargeDenoiser().state_dict().items()})
    path = "lightning_recon.priors.unet_denoiser.LargeDenoiser"
    assert record == ({"class_path": path, "weights_sha256": digest} if steps else None)
    main(["test", "--config", str(run / "config.yaml"), "--model.denoiser", "SmallDenoiser"])
    assert (
        json.loads((run / "results.json").read_text())["denoiser"] == record
    )  # what refined the run, not what scores it
