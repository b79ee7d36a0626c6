# SPDX-License-Identifier: Apache-2.0
"""Public statistics: the bundled ones, their file, and synthetic images that obey them."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_recon.errors import UserError
from lightning_recon.priors.dct import analyse, synthesise
from lightning_recon.priors.fit_statistics import fit_statistics
from lightning_recon.priors.image_statistics import (
    between_knots,
    octaves,
    public_statistics,
    synthetic_images,
)

SIZE = 16
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


@pytest.mark.parametrize("subjects", [False, True])
def test_the_bundled_statistics_are_those_of_photographs(subjects: bool) -> None:
    statistics = public_statistics(64, 64, subjects)
    assert statistics.name.startswith("octave power law v2 (153 CC0 photographs)")
    # Bright in the middle, luminance far above colour, and an energy that falls by about 4 an octave.
    assert bool(((statistics.mean[:, 32, 32] > 0.35) & (statistics.mean[:, 32, 32] < 0.6)).all())
    total = statistics.variance.sum(dim=(1, 2))
    assert float(total[0]) > 4 * float(total[1]) > 12 * float(total[2])
    falls = (statistics.variance[0, 4, 4] / statistics.variance[0, 8, 8]).log2()
    assert 2 < float(falls) < 4


def test_the_bundled_statistics_describe_the_bundled_photographs(photographs: Callable[[int], Tensor]) -> None:
    statistics = public_statistics(64, 64, subjects=False)
    found = analyse(photographs(64), statistics.mean, statistics.colour).square().mean(dim=0)
    for low, high in ((1, 4), (4, 16), (16, 48)):
        ratio = found[0, low:high, low:high].sum() / statistics.variance[0, low:high, low:high].sum()
        assert 0.4 < float(ratio) < 2.5


@pytest.mark.parametrize("size", [16, 32, 64, 128])
def test_finer_images_have_the_same_spectrum_at_a_larger_scale(size: int) -> None:
    fine, coarse = (public_statistics(n, n, subjects=False).variance for n in (2 * size, size))
    # Half way to the finest details: these alone depend on how images were made small.
    expected = 4 * coarse[:, : size // 4, : size // 4]
    torch.testing.assert_close(fine[:, : size // 4, : size // 4], expected, rtol=0.12, atol=0)


def test_colour_axes_are_orthonormal_with_luminance_first() -> None:
    colour = public_statistics(8, 8, subjects=False).colour
    torch.testing.assert_close(colour @ colour.T, torch.eye(3), rtol=0, atol=1e-5)
    torch.testing.assert_close(colour[0], torch.full((3,), 3**-0.5), rtol=0, atol=1e-5)


def test_a_square_of_an_oblong_image_has_the_frequencies_of_its_pixels() -> None:
    oblong, square = public_statistics(32, 128, subjects=False), public_statistics(64, 64, subjects=False)
    # 8 half-periods over a height of 32 are as fine as 16 over 64.
    torch.testing.assert_close(oblong.variance[:, 8, 32], square.variance[:, 16, 16])
    assert oblong.mean.shape == oblong.variance.shape == (3, 32, 128)


def test_synthetic_images_reproduce_mean_and_variance() -> None:
    statistics = public_statistics(32, 32, subjects=False)
    images = synthetic_images(statistics, 2000, 32)
    assert (float(images.min()), float(images.max())) == (0.0, 1.0)
    torch.testing.assert_close(images.mean(dim=0), statistics.mean, rtol=0, atol=0.04)
    found = analyse(images, statistics.mean, statistics.colour).square().mean(dim=0)
    # Cutting values off at black and white costs some energy, and spreads a little of it over high frequencies.
    total = found.sum(dim=(1, 2)) / statistics.variance.sum(dim=(1, 2))
    assert bool(((total > 0.7) & (total < 1.1)).all())
    assert 0.7 < float((found / statistics.variance)[0, 1:6, 1:6].mean()) < 1.1


def test_contrast_differs_from_image_to_image_as_announced() -> None:
    statistics = public_statistics(32, 32, subjects=False)
    coefficients = analyse(synthetic_images(statistics, 2000, 32), statistics.mean, statistics.colour)
    # Luminance detail away from the lowest frequencies is dense enough to measure a single picture's energy.
    energy = (coefficients**2 / statistics.variance)[:, 0, 4:16, 4:16].mean(dim=(1, 2))
    assert float(energy.log().std()) == pytest.approx(statistics.log_contrast_std, abs=0.1)


def test_synthetic_images_are_the_same_on_every_call_and_leave_the_random_state_alone() -> None:
    statistics, state = public_statistics(16, 16, subjects=True), torch.get_rng_state()
    assert torch.equal(synthetic_images(statistics, 5, 16), synthetic_images(statistics, 5, 16))
    assert torch.equal(torch.get_rng_state(), state)
    assert synthetic_images(statistics, 5, 24).shape == (5, 3, 24, 24)


def test_subjects_are_cut_out_on_black() -> None:
    statistics = public_statistics(32, 32, subjects=True)
    share = (synthetic_images(statistics, 1000, 32).amax(dim=1) > 0).float().mean(dim=(1, 2))
    (low, high), skew = statistics.ellipses.share, statistics.ellipses.skew
    # Large ellipses lose some of their area at the border.
    assert float(share.mean()) == pytest.approx(low + (high - low) / (1 + skew), abs=0.06)
    assert float(share.min()) < low + 0.05
    assert statistics.subjects
    assert statistics.whole is not None
    assert not statistics.whole.subjects
    assert float(statistics.mean[:, 0, 0].max()) < 0.2 < float(statistics.mean[:, 16, 16].min())


def test_a_file_without_subjects_cuts_ellipses(tmp_path: Path) -> None:
    colour = public_statistics(8, 8, subjects=False).colour
    images = gaussian_images(50, power_law(SIZE), colour)
    file = written(fit_statistics({SIZE: images}, None, "mine"), tmp_path)
    whole, cut = (public_statistics(SIZE, SIZE, subjects, file) for subjects in (False, True))
    assert whole.name.startswith("mine.json (50 photographs, ")
    assert cut.name == f"{whole.name}, elliptic subjects"
    assert torch.equal(cut.variance, whole.variance)
    assert float(cut.mean[0, 0, 0]) < 0.15 < float(cut.mean[0, 8, 8])
    torch.testing.assert_close(cut.mean, synthetic_images(cut, 2000, SIZE).mean(dim=0), rtol=0, atol=0.06)


def test_knots_are_octaves_and_lines_go_on_beyond_the_last() -> None:
    assert octaves(16) == [-1, 0, 1, 2, 3, 4]
    assert octaves(24) == pytest.approx([-1, 0, 1, 2, 3, 4, math.log2(24)])
    weight = between_knots(torch.tensor([0.0, 1.0, 2.0, 6.0, 32.0]), 16)
    torch.testing.assert_close(weight.sum(dim=1), torch.ones(5, dtype=torch.float64))
    line = weight @ torch.tensor(octaves(16), dtype=torch.float64)
    torch.testing.assert_close(line, torch.tensor([-1, 0, 1, math.log2(6), 5], dtype=torch.float64))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: content.update(format="other"), "format 'other'"),
        (lambda content: content.pop("whole"), "'whole'"),
        (lambda content: [row.pop() for row in content["colour"]], "shape"),
        (lambda content: content["colour"][0].reverse(), "not orthonormal"),
        (lambda content: content["whole"]["log_variance"]["16"][0].pop(), "expected"),
        (lambda content: content["whole"]["log_variance"]["16"][0][0].__setitem__(0, float("nan")), "finite"),
        (lambda content: content["whole"].update(log_variance={}), "empty"),
        (lambda content: content["whole"].update(log_contrast_std=-1), "spread of contrast"),
        (lambda content: content["whole"].update(mean=["grey"]), "str"),
    ],
)
def test_a_damaged_file_is_named_in_one_line(tmp_path: Path, damage: Callable[[Any], None], message: str) -> None:
    content = fit_statistics({SIZE: gaussian_images(5, power_law(SIZE), ROTATED)}, None, "mine")
    damage(content)
    with pytest.raises(UserError, match=r"mine\.json holds no public statistics") as caught:
        public_statistics(SIZE, SIZE, False, written(content, tmp_path))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_none_is_named_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is missing"):
        public_statistics(SIZE, SIZE, False, str(tmp_path / "nowhere.json"))
    for name, content in (
        ("picture.png", b"\x89PNG\xff"),
        ("cut.json", b'{"format": "public st'),
        ("list.json", b"[]"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=f"{name} holds no public statistics"):
            public_statistics(SIZE, SIZE, False, str(tmp_path / name))


@pytest.mark.parametrize("subjects", [False, True])
def test_grey_is_the_mean_over_the_channels(subjects: bool) -> None:
    rgb, grey = (public_statistics(16, 24, subjects, channels=channels) for channels in (3, 1))
    generator = torch.Generator().manual_seed(0)
    coefficients = torch.randn(4000, 3, 16, 24, generator=generator) * rgb.variance.sqrt()
    images = rgb.transform.synthesise(coefficients).mean(dim=1, keepdim=True)
    torch.testing.assert_close(grey.mean, rgb.mean.mean(dim=0, keepdim=True))
    found = grey.transform.analyse(images).square().mean(dim=0)
    assert float((found / grey.variance).log().abs().mean()) < 0.05
    assert synthetic_images(grey, 3, 16).shape == (3, 1, 16, 16)


def test_nothing_is_bundled_about_other_channels() -> None:
    with pytest.raises(UserError, match=r"3 channels, and these have 4: fit a file .*--channels 4"):
        public_statistics(16, 16, False, channels=4)
