# SPDX-License-Identifier: Apache-2.0
"""The audience shows what it is told to, fairly, and says what protection was attacked."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_recon.callbacks.results import finished
from lightning_recon.errors import UserError
from lightning_recon.evaluation.results import privacy_record
from lightning_recon.exchange import ClientUpdate, ServerPayload
from lightning_recon.terminal import privacy_line
from lightning_recon.victim import VictimClient

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
        "lightning_recon.callbacks.results.lpips_per_image", lambda pictures, truth: pictures[:, 0, 0, 0] * 0 + 0.25
    )
    assert fit(tmp_path / "with", "--trainer.max_steps", "0")["summary"]["lpips_mean"] == 0.25


def test_a_rival_like_us_is_a_tie_on_a_release_of_its_own(
    fit: Fit, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    share, draws = VictimClient.share, []

    def listened(self: VictimClient, payload: ServerPayload, client: int, draw: int, round: int) -> ClientUpdate:
        draws.append(draw)
        return share(self, payload, client, draw, round)

    monkeypatch.setattr(VictimClient, "share", listened)
    rival = ["--trainer.callbacks+", "lightning_recon.callbacks.Comparison", "--trainer.callbacks.title", "twin"]
    rival += ["--trainer.callbacks.structure", "lightning_recon.structure.WaterFilling"]
    record = fit(tmp_path, "--trainer.max_steps", "0", "--model.draws", "2", *rival)
    assert draws == [0, 1, 2]  # the last is the rival's, whose noise nobody has seen
    assert len(list((tmp_path / "exchange").glob("update-*.json"))) == 2
    output = " ".join(capsys.readouterr().out.split())
    scores = re.search(r"twin ([\d.]+) dB, lightning_recon ([\d.]+) dB", output)
    assert scores is not None
    first = [victim["psnr"] for victim in record["victims"] if victim["draw"] == 0]
    assert scores[2] == f"{sum(first) / len(first):.1f}"
    assert float(scores[1]) == pytest.approx(float(scores[2]), abs=1.0)


@pytest.mark.parametrize(
    ("clip", "layers", "noise", "says"),
    [
        (None, False, 0.0, ["no clipping,", "no noise", "no privacy guarantee"]),
        (None, True, 0.0, ["no clipping,", "no noise", "no privacy guarantee"]),
        (10.0, False, 0.0, ["clip 10 per update,", "no noise", "no privacy guarantee"]),
        (10.0, True, 2e-4, ["clip 10 per update and layer,", "nominal epsilon 10,"]),
        (
            10.0,
            False,
            2e-4,
            ["clip 10 per update,", "nominal epsilon 10,", "accounted epsilon 1.25e+07 at delta 1e-05"],
        ),
    ],
)
def test_the_protection_in_one_line(clip: float | None, layers: bool, noise: float, says: list[str]) -> None:
    record = privacy_record(
        granularity="update",
        per_layer=layers,
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
        finished(tmp_path)
