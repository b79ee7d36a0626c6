# SPDX-License-Identifier: Apache-2.0
"""TensorBoard shows the images and scores of the attack at the documented steps."""

from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_recon.cli import main

Fit = Callable[..., dict[str, Any]]


def events(root: Path) -> EventAccumulator:
    accumulator = EventAccumulator(str(root), size_guidance={"images": 0, "scalars": 0, "tensors": 0})
    accumulator.Reload()
    return accumulator


@pytest.mark.parametrize(
    ("steps", "further", "shown"),
    [(0, [], [0]), (5, [], [0, 1, 2, 4, 5]), (6, ["--image_grid.every_n_steps", "3"], [0, 1, 2, 3, 4, 6])],
)
def test_the_search_is_shown_at_the_start_at_powers_of_two_and_at_the_end(
    fit: Fit, tmp_path: Path, steps: int, further: list[str], shown: list[int]
) -> None:
    flags = ["--trainer.max_steps", str(steps), "--image_grid.clients", "1", "--trainer.log_every_n_steps", "50"]
    record = fit(tmp_path, "--data.clients", "2", *flags, *further)
    found = events(tmp_path)
    assert found.Tags()["images"] == ["client_0"]
    assert [image.step for image in found.Images("client_0")] == shown
    for name in ("psnr", "ssim", "mean_image_psnr", "objective"):
        assert [scalar.step for scalar in found.Scalars(name)] == shown, name
    first = [victim for victim in record["victims"] if victim["client"] == 0]
    for name, field in (("psnr", "psnr"), ("ssim", "ssim")):
        assert found.Scalars(name)[-1].value == pytest.approx(sum(v[field] for v in first) / len(first), abs=1e-3)
    assert len({scalar.value for scalar in found.Scalars("mean_image_psnr")}) == 1


def test_a_picture_has_a_row_for_each_version_and_no_more_victims_than_fit(fit: Fit, tmp_path: Path) -> None:
    fit(tmp_path, "--trainer.max_steps", "0", "--image_grid.columns", "3")
    (image,) = events(tmp_path).Images("client_0")
    with Image.open(BytesIO(image.encoded_image_string)) as picture:
        pixels = np.asarray(picture.convert("L"), dtype=int)
    # Tiles of 24 pixels six times as large: photograph, subject, decoded, refined; three of four victims.
    assert 4 * 144 < pixels.shape[0] < 5 * 144
    assert 3 * 144 + 100 < pixels.shape[1] < 4.5 * 144
    names = pixels[:, 15:100]
    written = [rows.min() < 100 for rows in np.array_split(names, 4)]
    assert written == [True] * 4


def test_the_objective_falls(fit: Fit, tmp_path: Path) -> None:
    fit(tmp_path, "--trainer.max_steps", "5")
    losses = [scalar.value for scalar in events(tmp_path).Scalars("objective")]
    assert len(losses) == 6
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("flag", ["image_grid.columns", "image_grid.every_n_steps"])
def test_counts_of_nothing_are_refused(
    tiny: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], flag: str
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--config", tiny, "--trainer.default_root_dir", str(tmp_path / "run"), f"--{flag}", "0"])
    assert stop.value.code == 2
    assert "give a whole number of at least 1" in capsys.readouterr().err


def test_nothing_is_scored_for_a_run_without_loggers(fit: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*arguments: object) -> None:
        raise AssertionError("scored for nobody")

    monkeypatch.setattr("lightning_recon.callbacks.image_grid.scored_one", refused)
    fit(tmp_path, "--trainer.logger", "false")
    with pytest.raises(AssertionError, match="scored for nobody"):
        fit(tmp_path, "--overwrite", "true")
