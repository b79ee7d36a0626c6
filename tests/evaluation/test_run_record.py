# SPDX-License-Identifier: Apache-2.0
"""`results.json` has the keys that other tools read, averages over all victims, and nothing that is not JSON."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_recon.errors import UserError
from lightning_recon.evaluation.results import Record, baselines_record, bounds_record, privacy_record
from lightning_recon.evaluation.run_record import RunRecord, results_record, summary_record, write_results
from lightning_recon.evaluation.scoring import VictimScore, score
from lightning_recon.reconstruction import ReceivedFile, Reconstruction

KEYS = {
    "": "schema_version attack config versions seed privacy oracles public_statistics denoiser subject_fraction "
    "batchnorm participation client_dropout local_training compression quantization mismatch alarms payload_alarms "
    "baselines bounds victims summary detached_logits skipped_pictures",
    "privacy": "mechanism granularity per_layer max_grad_norm noise_multiplier rounds releases_per_round batch_size "
    "delta adjacency "
    "epsilon_nominal epsilon_accounted epsilon_by_adjacency accountant mu rero_gamma aggregated noise_share "
    "client_dropout participation epsilon_of_one_client epsilon_of_sum sampling noise_bands adaptive_clip "
    "membership_advantage membership_tpr",
    "baselines": "black_psnr mean_image_psnr",
    "bounds": "channel_nats channel_bits noise_law_psnr noise_law_psnr_5_percent noise_law_psnr_p95 "
    "unbiased_psnr gaussian_reference_psnr gaussian_reference_low gaussian_reference_high",
    "victims": "client index draw detected collision false_detection psnr bit_exact ssim psnr_initial "
    "psnr_photograph codec code_rate bits_sent capacity_bits identified first_round rounds_seen image",
    "summary": "clients draws victims detected collided false_detections psnr_mean psnr_mean_low "
    "psnr_mean_high psnr_worst lost_share identification gallery_size identification_chance identification_bound "
    "recognition_top1 recognition_top5 recognition_top1_mean_image recognition_top5_mean_image lpips_mean "
    "psnr_std_over_draws psnr_median "
    "psnr_of_mean_mse ssim_mean label_accuracy bit_exact_share channel_code received_share file_decoded_fraction "
    "bits_sent_mean capacity_bits_mean seconds steps steps_per_second structure_bytes structure_share low_shares",
}


class Batch:
    """Three pictures of 16 x 16 whose subject is the middle half."""

    def __init__(self, seed: int) -> None:
        self.photographs = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(seed))
        self.masks = torch.zeros(3, 1, 16, 16, dtype=torch.bool)
        self.masks[..., 4:12, :] = True
        self.images = self.photographs * self.masks


def paper(**changes: object) -> Record:
    settings: dict[str, object] = {
        "granularity": "update",
        "per_layer": False,
        "max_grad_norm": 10.0,
        "noise_multiplier": 2e-4,
        "rounds": 1,
        "batch_size": 16,
        "delta": 1e-5,
        "adjacency": "add_remove",
    }
    return privacy_record(**(settings | changes))  # type: ignore[arg-type]


def run_of(**changes: object) -> RunRecord:
    settings: dict[str, object] = {
        "attack": "water-filling",
        "privacy": paper(),
        "bounds": {},
        "clients": 1,
        "batch_size": 2,
        "seconds": 1.0,
        "steps": 0,
        "structure_bytes": 123,
    }
    return RunRecord(**(settings | changes))  # type: ignore[arg-type]


def summary_of(run: RunRecord, psnr: dict[tuple[int, int, int], float], false: int = 0) -> Record:
    """Summary of victims (client, draw, index) that have these PSNR, the first of them by false detections."""
    victims = [
        VictimScore(client, index, draw, True, False, number < false, value, False, 0.5, value, value)
        for number, ((client, draw, index), value) in enumerate(psnr.items())
    ]
    updates = {(victim.client, victim.draw) for victim in victims}
    nothing = torch.zeros(len(victims) // len(updates), 3, 8, 8)
    return summary_record(run, [Reconstruction(*one, nothing, nothing, 0) for one in sorted(updates)], victims)


def test_a_record_has_the_documented_keys_and_survives_json(tmp_path: Path) -> None:
    truths = [Batch(0), Batch(1)]
    mean = torch.full((3, 16, 16), 0.5)
    found = [
        Reconstruction(client, draw, truth.images, truth.images, unresolved=0)
        for client, truth in enumerate(truths)
        for draw in range(2)
    ]
    scored = [score(truths[one.client], one, mean) for one in found]
    bounds = bounds_record(truths, noise_multiplier=2e-4, granularity="update", per_layer=False, rounds=1)
    run = run_of(
        clients=2, batch_size=3, seconds=2.0, steps=10, bounds=bounds, baselines=baselines_record(truths, mean)
    )
    images = [f"images/{number:03d}.png" for number in range(12)]
    record = results_record(run, found, scored, images)
    write_results(tmp_path / "run" / "results.json", record)
    read = json.loads((tmp_path / "run" / "results.json").read_text())
    assert len(read.pop("sha256")) == 64
    sections = {"": read, "victims": read["victims"][0]} | {k: read[k] for k in KEYS if k not in ("", "victims")}
    assert {name: set(section) for name, section in sections.items()} == {k: set(v.split()) for k, v in KEYS.items()}
    assert read["schema_version"] == 1
    assert read["summary"]["victims"] == 6
    assert read["summary"]["detected"] == 6
    assert read["summary"]["steps_per_second"] == 5.0
    assert len(read["victims"]) == 12
    assert [victim["image"] for victim in read["victims"]] == images


def test_without_true_images_a_record_has_the_same_keys_and_no_scores() -> None:
    file = ReceivedFile("avif", 0.5, 800, 900.0)
    images = torch.zeros(2, 3, 8, 8)
    found = [Reconstruction(0, draw, images, images, 0, evident=draw == 0, files=(file, None)) for draw in range(2)]
    record = results_record(run_of(batch_size=4, channel_code="a code"), found, [], ["a", "b", "c", "d"])
    victims: Any = record["victims"]
    assert [(victim["draw"], victim["codec"], victim["image"]) for victim in victims] == [
        *((0, "avif", "a"), (0, None, "b"), (1, "avif", "c"), (1, None, "d"))
    ]
    assert set(victims[0]) == set(KEYS["victims"].split())
    assert {victim[name] for victim in victims for name in ("index", "detected", "psnr", "ssim")} == {None}
    summary: Any = record["summary"]
    assert set(summary) == set(KEYS["summary"].split())
    assert (summary["victims"], summary["detected"], summary["draws"]) == (4, 1, 2)
    assert (summary["file_decoded_fraction"], summary["bits_sent_mean"]) == (0.25, 800)
    assert {summary[name] for name in ("collided", "psnr_mean", "psnr_median", "ssim_mean", "bit_exact_share")} == {
        None
    }
    assert record["baselines"] == {"black_psnr": None, "mean_image_psnr": None}


def test_averages_over_victims_and_draws() -> None:
    # client, draw, victim
    psnr = {(0, 0, 0): 10.0, (0, 0, 1): 20.0, (0, 1, 0): 14.0, (0, 1, 1): 24.0}
    summary = summary_of(run_of(), psnr, false=1)
    assert summary["victims"] == 2
    assert summary["draws"] == 2
    assert summary["detected"] == 2
    assert summary["false_detections"] == 0.5
    assert summary["psnr_mean"] == 17.0
    assert summary["psnr_median"] == 17.0
    assert (summary["psnr_mean_low"], summary["psnr_mean_high"]) == (12.0, 22.0)  # the images' means over draws
    assert summary["psnr_worst"] == 10.0
    assert summary["lost_share"] == 0.25
    assert summary["psnr_std_over_draws"] == pytest.approx(4 / math.sqrt(2))
    mean_mse = (10**-1.0 + 10**-2.0 + 10**-1.4 + 10**-2.4) / 4
    assert summary["psnr_of_mean_mse"] == pytest.approx(-10 * math.log10(mean_mse))
    assert summary["steps_per_second"] is None


def test_one_draw_has_no_spread() -> None:
    summary = summary_of(run_of(clients=2, batch_size=1), {(0, 0, 0): 10.0, (1, 0, 0): 20.0})
    assert summary["clients"] == 2
    assert summary["psnr_std_over_draws"] is None
    alone: dict[str, object] = summary_of(run_of(batch_size=1), {(0, 0, 0): 10.0})
    assert alone["psnr_mean_low"] is None


def test_numbers_that_are_not_finite_become_null(tmp_path: Path) -> None:
    write_results(tmp_path / "a.json", {"x": math.nan, "y": [math.inf, 1.0], "z": {"w": (-math.inf, 2)}})
    read = json.loads((tmp_path / "a.json").read_text())
    assert [read[name] for name in "xyz"] == [None, [None, 1.0], {"w": [None, 2]}]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_results(path, {"x": 1})
    with pytest.raises(TypeError):
        write_results(path, {"x": object()})
    assert json.loads(path.read_text())["x"] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="cannot write"):
        write_results(tmp_path / "file" / "results.json", {"x": 1})
