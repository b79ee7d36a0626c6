# SPDX-License-Identifier: Apache-2.0
"""The audience shows what it is told to, fairly, and says what protection was attacked."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_recon.callbacks import finished_pictures
from lightning_recon.errors import UserError
from lightning_recon.evaluation.results import privacy_record
from lightning_recon.terminal import privacy_line

Fit = Callable[..., dict[str, Any]]


def events(root: Path) -> EventAccumulator:
    accumulator = EventAccumulator(str(root), size_guidance={"images": 0, "scalars": 0})
    accumulator.Reload()
    return accumulator


@pytest.mark.parametrize(("steps", "shown"), [(0, [0]), (4, [0, 2, 4]), (5, [0, 2, 4, 5])])
def test_grids_are_shown_now_and_then_and_at_the_end(fit: Fit, tmp_path: Path, steps: int, shown: list[int]) -> None:
    flags = ["--trainer.max_steps", str(steps), "--image_grid.every_n_steps", "2", "--image_grid.clients", "1"]
    record = fit(tmp_path, "--data.clients", "2", *flags)
    found = events(tmp_path)
    assert found.Tags()["images"] == ["client_0/truth_decoded_refined"]
    assert [image.step for image in found.Images("client_0/truth_decoded_refined")] == shown
    assert [scalar.step for scalar in found.Scalars("psnr")] == shown
    shown_clients = [victim["psnr"] for victim in record["victims"] if victim["client"] == 0]
    assert found.Scalars("psnr")[-1].value == pytest.approx(sum(shown_clients) / len(shown_clients), abs=1e-3)


def test_the_loss_falls(fit: Fit, tmp_path: Path) -> None:
    fit(tmp_path, "--trainer.max_steps", "5")
    losses = [scalar.value for scalar in events(tmp_path).Scalars("loss")]
    assert len(losses) == 5
    assert losses[-1] < losses[0]


def test_perceptual_distances_are_recorded_where_they_can_be_had(
    fit: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "lpips_mean" not in fit(tmp_path / "without", "--trainer.max_steps", "0")["summary"]
    monkeypatch.setattr(
        "lightning_recon.callbacks.lpips_per_image", lambda pictures, truth: pictures[:, 0, 0, 0] * 0 + 0.25
    )
    assert fit(tmp_path / "with", "--trainer.max_steps", "0")["summary"]["lpips_mean"] == 0.25


def test_a_rival_like_us_is_a_tie(fit: Fit, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rival = ["--trainer.callbacks+", "lightning_recon.callbacks.Comparison", "--trainer.callbacks.title", "twin"]
    rival += ["--trainer.callbacks.structure", "lightning_recon.structure.WaterFilling"]
    record = fit(tmp_path, "--trainer.max_steps", "0", *rival)
    output = " ".join(capsys.readouterr().out.split())
    scores = re.search(r"twin ([\d.]+) dB, lightning_recon ([\d.]+) dB", output)
    assert scores is not None
    assert scores[1] == scores[2] == f"{record['summary']['psnr_mean']:.1f}"


@pytest.mark.parametrize(
    ("clip", "noise", "says"),
    [
        (None, 0.0, ["no clipping", "no noise", "no privacy guarantee"]),
        (10.0, 0.0, ["clip 10 per update", "no noise", "no privacy guarantee"]),
        (10.0, 2e-4, ["clip 10 per update", "nominal epsilon 10,", "accounted epsilon 1.25e+07 at delta 1e-05"]),
    ],
)
def test_the_protection_in_one_line(clip: float | None, noise: float, says: list[str]) -> None:
    record = privacy_record(
        granularity="update",
        per_layer=False,
        max_grad_norm=clip,
        noise_multiplier=noise,
        rounds=1,
        batch_size=4,
        delta=1e-5,
        adjacency="add_remove",
    )
    line = privacy_line(record)
    assert all(part in line for part in says)
    assert "\n" not in line


def test_an_unfinished_run_has_no_pictures(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"reconstructions\.safetensors"):
        finished_pictures(tmp_path)
