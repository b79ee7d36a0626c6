# SPDX-License-Identifier: Apache-2.0
"""What a run leaves behind: the record, images, tensors, TensorBoard's events, and a config that repeats it."""

import json
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_recon.callbacks import results_writer
from lightning_recon.cli import main

Fit = Callable[..., dict[str, Any]]


def files(root: Path) -> set[str]:
    return {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("quickstart")
    small = ["--data.image_size", "24", "--data.batch_size", "4", "--trainer.max_steps", "3", "--trainer.accelerator"]
    more = ["cpu", "--comparison.noise_factor", "200"]  # so much that four files do not arrive
    main(["fit", "--config", "configs/quickstart.yaml", *small, *more, "--trainer.default_root_dir", str(root)])
    return root


def test_the_run_folder_holds_everything(quickstart: Path) -> None:
    left = files(quickstart)
    assert left >= {"config.yaml", "results.json", "reconstructions.safetensors", "comparison.png"}
    assert left >= {"exchange/task.json", "exchange/payload-r0000.json", "exchange/update-c000-d000-r0000.safetensors"}
    assert len([name for name in left if name.startswith("events.out.tfevents")]) == 1
    assert {name for name in left if name.startswith("images/")} == {f"images/{number:03d}.png" for number in range(4)}
    assert not [name for name in left if name.endswith((".new", ".old")) or "exchange." in name]


def test_results_are_written_after_the_index_of_the_true_images(
    fit: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there: list[bool] = []
    write = results_writer.write_results

    def noted(path: Path, record: Any) -> None:  # noqa: ANN401 - any record
        there.append((tmp_path / "truth" / "index.json").exists())
        write(path, record)

    monkeypatch.setattr(results_writer, "write_results", noted)
    fit(tmp_path, "--trainer.max_steps", "0")
    assert there == [True]


def test_results_have_the_promised_schema(quickstart: Path) -> None:
    record = json.loads((quickstart / "results.json").read_text())
    assert set(record) == {
        *("schema_version", "attack", "config", "versions", "seed", "privacy", "oracles", "public_statistics"),
        *(
            "denoiser",
            "subject_fraction",
            "batchnorm",
            "participation",
            "client_dropout",
            "alarms",
            "payload_alarms",
            "baselines",
            "bounds",
            "victims",
            "summary",
        ),
        *("detached_logits", "mismatch", "skipped_pictures", "local_training", "compression", "quantization", "sha256"),
    }
    assert record["schema_version"] == 1
    assert record["oracles"] == []
    assert (quickstart / record["config"]).is_file()
    assert set(record["privacy"]) == {
        *("membership_advantage", "membership_tpr"),
        *("mechanism", "granularity", "per_layer", "max_grad_norm", "noise_multiplier", "rounds", "batch_size"),
        *("delta", "adjacency", "epsilon_nominal", "epsilon_accounted", "epsilon_by_adjacency", "accountant", "mu"),
        *("rero_gamma", "aggregated", "noise_share", "epsilon_of_one_client", "epsilon_of_sum", "reproducible_noise"),
        *("releases_per_round", "sampling", "noise_bands", "adaptive_clip", "client_dropout", "participation"),
    }
    assert record["privacy"]["epsilon_nominal"] == pytest.approx(10.0)
    assert set(record["summary"]) == {
        *("clients", "draws", "victims", "detected", "collided", "false_detections", "psnr_mean"),
        *(
            "psnr_mean_low",
            "psnr_mean_high",
            "psnr_worst",
            "lost_share",
            "identification",
            "gallery_size",
            "identification_chance",
            "identification_bound",
            "recognition_top1",
            "recognition_top5",
            "recognition_top1_mean_image",
            "recognition_top5_mean_image",
            "lpips_mean",
            "psnr_std_over_draws",
            "psnr_median",
            "psnr_of_mean_mse",
            "ssim_mean",
            "label_accuracy",
        ),
        *(
            "bit_exact_share",
            "channel_code",
            "received_share",
            "file_decoded_fraction",
            "bits_sent_mean",
            "capacity_bits_mean",
        ),
        *("seconds", "steps", "steps_per_second", "structure_bytes", "structure_share", "low_shares"),
    }
    assert (record["summary"]["victims"], record["summary"]["steps"]) == (4, 3)
    assert record["summary"]["psnr_std_over_draws"] is None
    assert 0 < record["subject_fraction"] < 1
    for number, victim in enumerate(record["victims"]):
        assert set(victim) >= {
            *("client", "index", "draw", "detected", "collision", "false_detection", "psnr", "bit_exact", "ssim"),
            *("psnr_initial", "image", "codec", "code_rate", "bits_sent", "capacity_bits"),
        }
        assert victim["index"] == number
        with Image.open(quickstart / victim["image"]) as picture:
            assert picture.size == (24, 24)


def test_pictures_are_kept_as_the_attacker_has_them(quickstart: Path) -> None:
    pictures = load_file(quickstart / "reconstructions.safetensors")
    assert list(pictures) == ["client000-draw000"]
    batch = pictures["client000-draw000"]
    assert 1 <= len(batch) <= 4
    assert batch.shape[1:] == (3, 24, 24)
    assert 0 <= batch.min() < batch.max() <= 1


def test_the_comparison_is_a_picture(quickstart: Path) -> None:
    with Image.open(quickstart / "comparison.png") as picture:
        pixels = np.asarray(picture.convert("RGB"), dtype=float)
    assert pixels.shape[1] > 5 * 240  # photograph, subject, rival, attack, and the attack under more noise
    assert pixels.std() > 10


def test_tensorboard_shows_the_search_and_something_that_moves(quickstart: Path) -> None:
    events = EventAccumulator(str(quickstart), size_guidance={"images": 0, "scalars": 0})
    events.Reload()
    assert events.Tags()["images"] == ["client_0", "client_0/200_times_the_noise"]
    for tag in events.Tags()["images"]:
        grids = events.Images(tag)
        assert [grid.step for grid in grids] == [0, 1, 2, 3]
        for grid in grids:
            with Image.open(BytesIO(grid.encoded_image_string)) as picture:
                assert picture.width > 4 * 144 + 100  # four victims, six times as large, and the names of the rows
                assert 4 * 144 < picture.height < 4 * 200
    states = [grid.encoded_image_string for grid in events.Images("client_0/200_times_the_noise")]
    assert len(set(states)) == len(states)
    harder = [scalar.value for scalar in events.Scalars("psnr_under_more_noise")]
    assert len(set(harder)) > 1
    psnr = events.Scalars("psnr")
    assert psnr[-1].value == pytest.approx(
        json.loads((quickstart / "results.json").read_text())["summary"]["psnr_mean"]
    )


def test_the_kept_config_repeats_the_run(finished: Path, tmp_path: Path) -> None:
    main(["fit", "--config", str(finished / "config.yaml"), "--trainer.default_root_dir", str(tmp_path)])
    name = "reconstructions.safetensors"
    assert (tmp_path / name).read_bytes() == (finished / name).read_bytes()
    again, before = (json.loads((root / "results.json").read_text()) for root in (tmp_path, finished))
    assert again["victims"] == before["victims"]


def test_the_last_lines_say_what_came_out_and_where(
    fit: Fit, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = fit(tmp_path, "--results.show", "true")
    output = " ".join(capsys.readouterr().out.split())
    assert f"{record['summary']['psnr_mean']:.1f}" in output
    assert "tensorboard --logdir" in output
    assert "accounted epsilon" in output
