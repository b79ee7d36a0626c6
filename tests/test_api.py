# SPDX-License-Identifier: Apache-2.0
"""The public Python API runs its example, and is imported only when it is used."""

import copy
import doctest
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import lightning_recon as lr
from lightning_recon.display import as_rgb
from lightning_recon.errors import UserError
from lightning_recon.structure import Feedback

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("name", lr.__all__)
def test_everything_public_has_an_example_that_runs(name: str) -> None:
    tests = doctest.DocTestFinder(recurse=False).find(getattr(lr, name), name, globs={})
    assert tests
    assert tests[0].examples
    assert doctest.DocTestRunner().run(tests[0]).failed == 0


def test_the_readme_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    generator = torch.Generator().manual_seed(0)
    # Two smooth images: a random plane wave in each channel.
    x = torch.linspace(0, 6, 32)
    phase = torch.rand(2, 3, 1, 1, generator=generator) * 6
    images = 0.5 + 0.4 * torch.sin(x[:, None] + phase) * torch.cos(x + 2 * phase)
    space = {"images": images, "labels": torch.tensor([3, 5])}
    torch.manual_seed(0)
    exec(compile(code, "README.md", "exec"), space)
    result = space["result"]
    assert isinstance(result, lr.AttackResult)
    assert result.psnr is not None
    assert result.psnr.min() > 35
    assert (tmp_path / "reconstructions.png").stat().st_size > 1000


def test_importing_the_package_does_not_import_torch() -> None:
    code = "import sys, lightning_recon; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


class Small(nn.Module):
    """A network with everything that depends on its mode: batch normalisation and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.drop = nn.Conv2d(3, 4, 3, 2), nn.BatchNorm2d(4), nn.Dropout(0.2)
        self.head = nn.Linear(36, 5)

    def forward(self, images: Tensor) -> Tensor:
        """Logits."""
        logits: Tensor = self.head(self.drop(torch.sigmoid(self.norm(self.conv(images)))).flatten(1))
        return logits


@pytest.fixture
def model() -> Small:
    torch.manual_seed(0)
    return Small()


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    ramp = torch.linspace(0, 1, 8)
    return torch.stack([ramp.expand(3, 8, 8), ramp[:, None].expand(3, 8, 8)]), torch.tensor([1, 3])


def test_the_model_and_the_random_state_stay_as_they_were(model: Small, batch: tuple[Tensor, Tensor]) -> None:
    before = {name: tensor.clone() for name, tensor in model.double().state_dict().items()}
    model.drop.eval()
    modes = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    with torch.inference_mode():
        update = lr.privatized_update(model, *batch, lr.Privacy(1.0, 1e-3), seed=3, noise_seed=3)
        again = lr.privatized_update(model, *batch, lr.Privacy(1.0, 1e-3), seed=3, noise_seed=3)
        lr.reconstruct(model, *batch, 1.0, 1e-3, steps=1)
        lr.invert_gradients(model, update, 8, 2, privacy=lr.Privacy(1.0, 1e-3), steps=1)
    assert torch.equal(state, torch.get_rng_state())
    assert modes == [module.training for module in model.modules()]
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(tensor.dtype == torch.float32 for tensor in update.values())
    assert all(torch.equal(tensor, again[name]) for name, tensor in update.items())


def test_the_mode_of_the_model_counts(model: Small, batch: tuple[Tensor, Tensor]) -> None:
    """Dropout is reproducible in training mode, and off in evaluation mode."""
    unbounded = lr.Privacy(max_grad_norm=None)
    train, evaluation = (
        lr.privatized_update(model, *batch, unbounded),
        lr.privatized_update(model.eval(), *batch, unbounded),
    )
    expected = torch.autograd.grad(nn.functional.cross_entropy(model(batch[0]), batch[1]), list(model.parameters()))
    for tensor, wanted in zip(evaluation.values(), expected, strict=True):
        torch.testing.assert_close(tensor, wanted)
    assert not torch.allclose(train["network.head.weight"], evaluation["network.head.weight"])


def test_more_rounds_help(model: Small, batch: tuple[Tensor, Tensor]) -> None:
    one = lr.reconstruct(model, *batch, 1.0, 0.01, steps=0, noise_seed=0)
    many = lr.reconstruct(model, *batch, 1.0, 0.01, steps=0, rounds=6, structure=Feedback(), noise_seed=0)
    assert one.psnr is not None
    assert many.psnr is not None
    assert one.epsilon is not None
    assert many.epsilon is not None
    assert many.psnr.mean() > one.psnr.mean() + 3
    assert many.epsilon > one.epsilon


def test_a_training_step_is_inverted(batch: tuple[Tensor, Tensor]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 16), nn.Sigmoid(), nn.Linear(16, 5))
    before, image = copy.deepcopy(model), batch[0][:1]
    nn.functional.cross_entropy(model(image), batch[1][:1]).backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    gradient = lr.gradient_of_step(before, model, 0.1)
    found = lr.invert_gradients(before, gradient, 8, preset="analytic", steps=1, truth=image)
    assert found.psnr is not None
    assert found.psnr[0] > 35
    assert found.evident
    assert found.labels is not None
    assert found.labels.tolist() == [1]
    assert found.bounds == {}
    assert found.epsilon is None
    unscored = lr.invert_gradients(before, list(gradient.values()), (8, 8), preset="analytic", steps=1)
    assert torch.equal(unscored.images, found.images)
    assert unscored.psnr is None
    assert len(unscored.figure().axes) == 1
    given = lr.invert_gradients(before, gradient, 8, labels=torch.tensor([4]), steps=1)
    assert given.labels is not None
    assert given.labels.tolist() == [4]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"preset": "likelyhood"}, "did you mean likelihood"),
        ({"preset": "paper"}, "no preset 'paper' of gradient inversion"),
        ({"labels": torch.tensor([1])}, "give 2 class indices"),
        ({"labels": torch.tensor([1, 7])}, "classes 0 to 4"),
        ({"truth": torch.zeros(1, 3, 8, 8)}, r"give images \(2, 3, 8, 8\)"),
        ({"local_steps": 3}, "does not divide batch_size"),
        ({"local_steps": 2, "privacy": lr.Privacy(granularity="sample")}, "not model local steps of DP-SGD"),
        ({"local_epochs": 2, "privacy": lr.Privacy(granularity="sample")}, "not model local steps of DP-SGD"),
        ({"privacy": lr.Privacy(rounds=3)}, "privacy has 3 rounds, but one update is attacked"),
        ({"privacy": "sample"}, "privacy is 'sample': give a lightning_recon.Privacy"),
        ({"image_size": (8, 8, 3)}, r"image_size is \(8, 8, 3\): give one whole number of pixels, or height and width"),
        ({"image_size": 8.0}, r"image_size is 8\.0: give one whole number of pixels, or height and width"),
        ({"image_size": (8, 8.0)}, r"image_size is \(8, 8\.0\): give one whole number"),
        ({"image_size": (0, 8)}, "height is 0: give a whole number of at least 1"),
        ({"steps": 0.5}, "steps is 0.5: give a whole number of at least 0"),
        ({"model": "resnet18"}, "model is 'resnet18': give a torch.nn.Module"),
        ({"image_size": 4}, "the model cannot take images of 3 x 4 x 4"),
        ({"gradient": [torch.zeros(3)]}, "the gradient has 1 tensors"),
        ({"gradient": {"head.bias": torch.zeros(5)}}, "the gradient lacks conv.weight"),
        ({"gradient": {"tail": torch.zeros(5)}}, "which is no parameter of the model"),
    ],
)
def test_what_does_not_fit_is_said(change: dict[str, Any], said: str, model: Small) -> None:
    gradient = {name: torch.ones_like(parameter) for name, parameter in model.named_parameters()}
    with pytest.raises(UserError, match=said):
        lr.invert_gradients(**{"model": model, "gradient": gradient, "image_size": 8, "batch_size": 2, **change})


@pytest.mark.parametrize("size", [np.int64(8), (np.int64(8), 8), [8, 8], torch.tensor([8, 8])])
def test_sizes_of_images_are_whole_numbers_of_any_type(size: Any, model: Small) -> None:  # noqa: ANN401 - what users give
    gradient = {name: torch.ones_like(parameter) for name, parameter in model.named_parameters()}
    found, usual = (lr.invert_gradients(model, gradient, one, 2, steps=1).images for one in (size, 8))
    assert torch.equal(found, usual)


def test_images_and_labels_are_checked(model: Small, batch: tuple[Tensor, Tensor]) -> None:
    images, labels = batch
    for wrong, said in ((255 * images, "values from 0 to 255"), (images[0], "give a tensor"), (images.long(), "int64")):
        with pytest.raises(UserError, match=said):
            lr.privatized_update(model, wrong, labels, lr.Privacy())
    with pytest.raises(UserError, match="give 2 class indices"):
        lr.privatized_update(model, images, labels.float(), lr.Privacy())
    with pytest.raises(UserError, match="different parameters"):
        lr.gradient_of_step(model, nn.Linear(2, 2), 0.1)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"steps": -1}, "steps is -1: give a whole number of at least 0"),
        ({"rounds": 1.5}, "rounds is 1.5: give a whole number of at least 1"),
        ({"structure": "Digital"}, "structure is 'Digital': give an object"),
        ({"structure": Feedback}, "structure is Feedback: give an object"),
        ({"denoiser": "small"}, "denoiser is 'small': give an object"),
        ({"mechanism": 3}, "the mechanism is 3: give its name"),
        ({"loss": "dise"}, "loss is 'dise': did you mean dice"),
        ({"model": nn.Linear}, "give a torch.nn.Module"),
        ({"max_grad_norm": "a"}, "max_grad_norm is 'a': give a number"),
        ({"granularity": "Sample"}, "granularity is 'Sample': did you mean sample"),
    ],
)
def test_arguments_of_wrong_types_are_said(
    change: dict[str, Any], said: str, model: Small, batch: tuple[Tensor, Tensor]
) -> None:
    given = {"model": model, "images": batch[0], "labels": batch[1], "max_grad_norm": 1.0, "noise_multiplier": 0.1}
    with pytest.raises(UserError, match=said):
        lr.reconstruct(**given | change)


def test_a_batch_is_scored_and_drawn() -> None:
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 16 * 16, 10))
    images = torch.linspace(0, 1, 16).expand(1, 3, 16, 16)
    before = [parameter.clone() for parameter in model.parameters()]
    result = lr.reconstruct(model, images, torch.tensor([3]), 1.0, 0.01, "sample", steps=1, noise_seed=0)
    assert result.psnr is not None
    assert result.ssim is not None
    assert result.psnr.shape == result.ssim.shape == (1,)
    assert result.epsilon is not None
    assert len(result.figure().axes) == 2
    update = lr.privatized_update(model, images, torch.tensor([3]), lr.Privacy(1.0, 0.0))
    assert torch.linalg.vector_norm(torch.cat([value.flatten() for value in update.values()])) <= 1.0 + 1e-6
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_other_channels_are_drawn_from_black_to_white(channels: int) -> None:
    images = torch.linspace(0.25, 0.5, channels * 64).view(1, channels, 8, 8)
    figure = lr.AttackResult(images, None, None, None, None, True, None, {}, {}).figure()
    (drawn,) = figure.axes[0].get_images()
    assert np.allclose(np.asarray(drawn.get_array()), as_rgb(images[0]).permute(1, 2, 0).numpy())


@pytest.mark.parametrize("masks", [False, True])
def test_several_labels_and_masks_are_attacked_too(masks: bool) -> None:
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    model = nn.Conv2d(3, 1, 3, padding=1) if masks else nn.Sequential(nn.Flatten(), nn.Linear(768, 4))
    targets = (images[:, :1] > 0.5).float() if masks else torch.tensor([[0.0, 1.0, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    loss: Any = "dice_bce" if masks else "binary_cross_entropy"
    result = lr.reconstruct(model, images, targets, 1.0, 1e-4, steps=0, loss=loss)
    assert len(result.images) == 2
    assert result.psnr is not None
    assert float(result.psnr.min()) > 15  # images of noise are far from any photograph
    with pytest.raises(UserError, match="give a tensor with the targets of 2 images"):
        lr.reconstruct(model, images, targets[:1], 1.0, 1e-4, loss=loss)
