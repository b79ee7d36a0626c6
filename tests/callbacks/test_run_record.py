# SPDX-License-Identifier: Apache-2.0
"""What the callbacks add to the record of a run."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_recon.callbacks.run_record import mean_lpips
from lightning_recon.cli import main
from lightning_recon.evaluation.scoring import Scored

Fit = Callable[..., dict[str, Any]]


def test_perceptual_distances_are_recorded_where_they_can_be_had(
    fit: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert fit(tmp_path / "without", "--trainer.max_steps", "0")["summary"]["lpips_mean"] is None
    monkeypatch.setattr(
        "lightning_recon.callbacks.run_record.lpips_per_image",
        lambda pictures, truth: pictures[:, 0, 0, 0] * 0 + 0.25,
    )
    assert fit(tmp_path / "with", "--trainer.max_steps", "0")["summary"]["lpips_mean"] == 0.25


def test_perceptual_distances_of_many_updates_are_found_together(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def brightness(images: Tensor, truth: Tensor) -> Tensor:
        assert torch.equal(images, truth)
        calls.append(len(images))
        return images.mean(dim=(1, 2, 3))

    monkeypatch.setattr("lightning_recon.callbacks.run_record.lpips_per_image", brightness)
    images = torch.rand(150, 3, 4, 4)
    updates = [Scored(one, one, []) for one in torch.split(images, 3)]
    truths = [SimpleNamespace(images=one.images, photographs=one.images, masks=one.images) for one in updates]
    assert mean_lpips(updates, truths) == pytest.approx(float(images.mean()))
    assert calls == [66, 66, 18]
    assert mean_lpips([], []) is None


@pytest.mark.parametrize("checked", [True, False])
def test_alarms_are_kept_or_found_when_a_run_is_scored_again(fit: Fit, tmp_path: Path, checked: bool) -> None:
    before = fit(tmp_path, "--trainer.max_steps", "0", "--results.inspect", str(checked).lower())
    assert (before["payload_alarms"] is not None) == checked
    main(["test", "--config", str(tmp_path / "config.yaml"), "--results.inspect", "true"])
    after = json.loads((tmp_path / "results.json").read_text())
    assert after["payload_alarms"] == after["alarms"]
    assert after["payload_alarms"]


def test_recognition_is_scored_by_a_classifier_of_the_users(
    fit: Fit, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    classifier = ["--results.classifier.network", "convnet", "--results.classifier.num_classes", "9"]
    summary = fit(tmp_path / "with", "--trainer.max_steps", "0", *classifier)["summary"]
    assert 0 <= summary["recognition_top1"] <= summary["recognition_top5"] <= 1
    assert 0 <= summary["recognition_top1_mean_image"] <= summary["recognition_top5_mean_image"] <= 1
    with pytest.raises(SystemExit) as stop:
        fit(tmp_path / "few", "--trainer.max_steps", "0", *classifier[:-1], "3")
    assert stop.value.code == 2
    assert "--results.classifier convnet cannot classify" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "few" / "exchange").exists()  # found before anything was attacked
