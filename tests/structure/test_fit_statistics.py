# SPDX-License-Identifier: Apache-2.0
"""Statistics fitted on photographs of one's own, and the scripts that gather and fit them."""

import json
import math
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import lightning_recon.data
from lightning_recon.errors import UserError
from lightning_recon.exchange import Task
from lightning_recon.priors.dct import analyse, synthesise
from lightning_recon.priors.fit_statistics import colour_axes, fit_ellipses, fit_mean, fit_spectrum, fit_statistics
from lightning_recon.priors.image_statistics import (
    PublicStatistics,
    between_knots,
    public_statistics,
    resized,
    synthetic_images,
)
from lightning_recon.structure import WaterFilling
from lightning_recon.structure.coding.power_allocation import water_filling
from lightning_recon.structure.detection.wiener import RowPrior, decode_row

SIZE = 16
SCRIPTS = Path(__file__).parents[2] / "scripts"
ROTATED = torch.linalg.qr(torch.tensor([[1.0, 0.2, 0.1], [0.3, -1.0, 0.4], [0.9, 0.1, -1.0]])).Q.T


def power_law(size: int, exponent: float = 2.0) -> Tensor:
    """Variances falling as r^-exponent, each channel fainter than the one before; shape (3, size, size)."""
    radius = torch.hypot(torch.arange(size).double()[:, None], torch.arange(size).double()[None]).clamp(min=1)
    return (torch.tensor([0.2, 0.05, 0.01])[:, None, None] * radius**-exponent).float()


def gaussian_images(count: int, variance: Tensor, colour: Tensor, mean: float = 0.5) -> Tensor:
    noise = torch.randn(count, *variance.shape)
    return synthesise(variance.sqrt() * noise, torch.full_like(variance, mean), colour)


def written(content: dict[str, Any], folder: Path) -> str:
    path = folder / "mine.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("exponent", [1.5, 3.0])
def test_the_fit_recovers_a_power_law(exponent: float) -> None:
    variance = power_law(32, exponent)
    images = gaussian_images(200, variance, torch.eye(3))
    energy = analyse(images, torch.full((3, 32, 32), 0.5), torch.eye(3)).square().mean(dim=0)
    weight = between_knots(torch.arange(32), 32)
    for channel in range(3):
        fitted = weight @ fit_spectrum(energy[channel], 200) @ weight.T
        error = fitted - variance[channel].double().log()
        # Lines between octaves are a few per cent off the circles of a power law, one coefficient's energy 10 %.
        assert float(error.square().mean().sqrt()) < 0.08
        assert float(error.abs().max()) < 0.5


def test_one_image_is_enough_for_a_smooth_spectrum() -> None:
    variance = power_law(32)[0]
    energy = variance * torch.randn(32, 32).square()
    weight = between_knots(torch.arange(32), 32)
    error = weight @ fit_spectrum(energy, 1) @ weight.T - variance.double().log()
    assert float(error[1:, 1:].square().mean().sqrt()) < 0.4  # a coefficient alone scatters by 2.2


def test_colour_axes_are_recovered_up_to_sign() -> None:
    found = colour_axes(gaussian_images(100, power_law(SIZE), ROTATED))
    torch.testing.assert_close((found @ ROTATED.T).abs(), torch.eye(3), rtol=0, atol=0.1)


def test_the_mean_keeps_what_is_certain_and_drops_what_is_not() -> None:
    ramp = torch.linspace(0.7, 0.3, SIZE)[None, :, None]
    images = ramp + 0.02 * torch.randn(400, 3, SIZE, SIZE)
    mean = resized(fit_mean(images, 8), SIZE, SIZE)
    torch.testing.assert_close(mean, ramp.expand(3, SIZE, SIZE), rtol=0, atol=0.015)
    flat = fit_mean(0.5 + 0.5 * torch.randn(10, 3, SIZE, SIZE), 8)
    raw = 0.5 / math.sqrt(10) * 8 / SIZE  # deviation of the mean of ten images, brought to the grid
    assert float((flat - flat.mean(dim=(1, 2), keepdim=True)).std()) < 0.8 * raw


def test_ellipses_are_recovered_from_their_masks() -> None:
    law = public_statistics(64, 64, subjects=True)
    masks = (synthetic_images(law, 500, 64).amax(dim=1, keepdim=True) > 0).float()
    found = fit_ellipses(masks)
    assert found["share"][0] == pytest.approx(law.ellipses.share[0], abs=0.04)
    assert found["place_std"] == pytest.approx(law.ellipses.place_std, abs=0.03)
    assert found["shape_std"] == pytest.approx(law.ellipses.shape_std, rel=0.35)  # long ones are cut at the border


def test_own_statistics_decode_images_of_their_kind_better(tmp_path: Path) -> None:
    """What is fitted on half of some unusual images decodes the other half better than the bundled statistics."""
    variance = power_law(SIZE, 1.0)
    images = gaussian_images(120, variance, ROTATED, mean=0.3)
    file = written(fit_statistics({SIZE: images[:60]}, None, "mine"), tmp_path)
    error = {}
    for name in (None, file):
        statistics = public_statistics(SIZE, SIZE, False, name)
        torch.manual_seed(1)
        error[name] = float(decoded(statistics, images[60:], noise=0.05).sub(images[60:]).square().mean())
    assert error[file] < 0.75 * error[None]


def decoded(statistics: PublicStatistics, images: Tensor, noise: float) -> Tensor:
    """One image a row, clipped alone."""
    power = water_filling(statistics.variance, noise, 0.92)
    sent = power > 0
    gain, level = (power / statistics.variance).sqrt()[sent], math.sqrt(0.08)
    prior = RowPrior(power[sent], level, statistics.log_contrast_std, scale=1.0, log_scale_std=0.0)
    result = torch.zeros_like(images)
    for image, coefficients in zip(result, analyse(images, statistics.mean, statistics.colour), strict=True):
        inputs = gain * coefficients[sent]
        scale = math.sqrt(float(inputs.square().sum()) + 0.08)
        row = inputs / scale + noise * torch.randn(len(inputs))
        filled = torch.zeros_like(coefficients)
        filled[sent] = decode_row(row, level / scale, noise, prior).inputs / gain
        image.copy_(synthesise(filled, statistics.mean, statistics.colour))
    return result


def test_masked_images_have_their_own_mean_and_spectrum(tmp_path: Path, task: Callable[..., Task]) -> None:
    masks = torch.zeros(80, 1, SIZE, SIZE)
    masks[:, :, 4:12, 2:8] = 1
    images = gaussian_images(80, power_law(SIZE) * 0.1, torch.eye(3))
    file = written(fit_statistics({SIZE: images}, {SIZE: masks}, "mine"), tmp_path)
    cut = WaterFilling(subjects=True, statistics=file).statistics(task(SIZE, 4, 0.01))
    assert cut.name.startswith("mine.json (80 photographs, ")
    assert cut.name.endswith("), subjects")
    torch.testing.assert_close(cut.mean, (images * masks).mean(dim=0), rtol=0, atol=0.06)
    found = analyse(images * masks, cut.mean, cut.colour).square().mean(dim=0).sum()
    assert float(cut.variance.sum() / found) == pytest.approx(1, abs=0.25)
    assert cut.whole is not None
    assert float(cut.whole.mean[:, 0, 0].mean()) == pytest.approx(0.5, abs=0.1)


def test_the_script_writes_what_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output, samples = tmp_path / "mine.json", Path(lightning_recon.data.__file__).parent / "samples"
    words = f"fit_statistics.py --root {samples} --size 8 16 --grid 1 --output {output}"
    monkeypatch.setattr("sys.argv", words.split())
    runpy.run_path(str(SCRIPTS / "fit_statistics.py"), run_name="__main__")
    statistics = public_statistics(SIZE, SIZE, False, str(output))
    assert statistics.name.startswith("mine.json (16 photographs, ")
    bundled = public_statistics(SIZE, SIZE, False).variance[0].log()
    assert float((statistics.variance[0].log() - bundled).abs().mean()) < 1
    monkeypatch.setattr("sys.argv", words.replace(str(samples), str(tmp_path / "nowhere")).split())
    with pytest.raises(SystemExit, match="2"):
        runpy.run_path(str(SCRIPTS / "fit_statistics.py"), run_name="__main__")


@pytest.mark.parametrize(
    ("licence", "folder"),
    [
        ("CC0-1.0", "cc0"),
        ("Public Domain", "cc0"),
        ("CC-BY 2.0", "by"),
        ("CC-BY-3.0", "by"),
        ("CC-BY-SA 4.0", None),
        ("CC-BY-NC-2.0", None),
        ("GPLv3 or later", None),
    ],
)
def test_only_free_licences_without_further_conditions_are_gathered(licence: str, folder: str | None) -> None:
    photograph = runpy.run_path(str(SCRIPTS / "photographs.py"))["Photograph"]
    assert photograph("x", "title", "author", licence, "source", None).folder == folder


def test_the_script_fits_grey_images_of_16_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output, samples = tmp_path / "grey.json", Path(lightning_recon.data.__file__).parent / "samples_grey16"
    words = f"fit_statistics.py --root {samples} --size 16 --grid 1 --channels 1 --bit-depth 16 --output {output}"
    monkeypatch.setattr("sys.argv", words.split())
    runpy.run_path(str(SCRIPTS / "fit_statistics.py"), run_name="__main__")
    statistics = public_statistics(SIZE, SIZE, False, str(output), 1)
    assert statistics.variance.shape == (1, SIZE, SIZE)
    with pytest.raises(UserError, match="1 channels, and these have 3"):
        public_statistics(SIZE, SIZE, False, str(output))
