# SPDX-License-Identifier: Apache-2.0
"""The command line from end to end: what is typed, what runs, and what a run leaves behind."""

import json
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_recon import __version__
from lightning_recon.cli import main

Fit = Callable[..., dict[str, Any]]
RECON = str(Path(sys.executable).with_name("recon"))

# design: "Command line that others rely on"; a class stands before its own arguments, else any order must do.
FLAGS = [
    ["--data.root", "DIR"],
    ["--data.image_size", "64"],
    ["--data.batch_size", "16"],
    ["--data.clients", "2"],
    ["--data.masks", "lightning_recon.data.SamMasks", "--data.masks.checkpoint", "FILE"],
    ["--model.client.network", "resnet50"],
    ["--model.client.privacy.max_grad_norm", "3.5"],
    ["--model.client.privacy.noise_multiplier", "0.5"],
    ["--model.client.privacy.granularity", "sample"],
    ["--model.client.privacy.per_layer", "true"],
    ["--model.client.privacy.rounds", "3"],
    ["--model.client.privacy.delta", "1.0e-6"],
    ["--model.draws", "5"],
    ["--trainer.default_root_dir", "OUT"],
    ["--trainer.max_steps", "7"],
    ["--ckpt_path", "last"],
]


def printed_config(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 0
    config: dict[str, Any] = yaml.safe_load(capsys.readouterr().out)
    return config


def lookup(config: dict[str, Any], flag: str) -> Any:  # noqa: ANN401 - whatever the config holds there
    value: Any = config
    for part in flag.removeprefix("--").split("."):
        value = value["init_args"][part] if "class_path" in value else value[part]
    return value["class_path"] if isinstance(value, dict) and "class_path" in value else value


def files(root: Path) -> set[str]:
    return {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}


# --- what is typed ---


def test_version_and_help_from_outside(tmp_path: Path) -> None:
    version = subprocess.run([sys.executable, "-m", "lightning_recon", "--version"], capture_output=True, text=True)
    assert (version.returncode, version.stdout.split()[-1]) == (0, __version__)
    helped = subprocess.run([RECON, "--help"], capture_output=True, text=True, cwd=tmp_path)
    assert helped.returncode == 0
    assert all(command in helped.stdout for command in ("fit", "validate", "test", "predict", "replay"))
    assert not files(tmp_path)


@pytest.mark.parametrize("command", ["fit", "test", "predict", "validate"])
@pytest.mark.parametrize("order", range(2))
def test_promised_flags_work_in_any_order(command: str, order: int, capsys: pytest.CaptureFixture[str]) -> None:
    shuffled = [["--config", "configs/imagenet.yaml"], *FLAGS]
    random.Random(order).shuffle(shuffled)
    typed = [word for group in shuffled for word in group]
    config = printed_config(capsys, command, *typed, "--print_config")
    for group in FLAGS:
        for flag, value in zip(group[::2], group[1::2], strict=True):
            assert str(lookup(config, flag)) == str(yaml.safe_load(value)), flag


def test_overlays_come_in_their_order_and_flags_last(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for draws in (2, 3):
        (tmp_path / f"{draws}.yaml").write_text(f"model:\n  init_args:\n    draws: {draws}\n")
    base, two, three = ["--config", "quickstart.yaml"], ["-c", f"{tmp_path}/2.yaml"], [f"--config={tmp_path}/3.yaml"]
    for typed, expected in [(base + two + three, 3), (base + three + two, 2), (["--model.draws", "9", *base, *two], 9)]:
        assert lookup(printed_config(capsys, "fit", *typed, "--print_config"), "model.draws") == expected


def test_shipped_configs_are_found_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    typed = ["fit", "--config", "imagenet.yaml", "--config=attack/paper.yaml", "--print_config"]
    assert lookup(printed_config(capsys, *typed), "model.structure").endswith("SeedPaper")
    (tmp_path / "imagenet.yaml").write_text("trainer:\n  max_steps: 77\n")  # the user's own file comes first
    assert (
        lookup(printed_config(capsys, "fit", "--config", "imagenet.yaml", "--print_config"), "trainer.max_steps") == 77
    )


def test_a_printed_config_is_a_config(tiny: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    printed = printed_config(capsys, "fit", "--config", tiny, "--model.draws", "2", "--print_config")
    (tmp_path / "again.yaml").write_text(yaml.safe_dump(printed))
    assert printed_config(capsys, "fit", "--config", f"{tmp_path}/again.yaml", "--print_config") == printed


# --- what a run leaves behind ---


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("quickstart")
    small = ["--data.image_size", "24", "--data.batch_size", "4", "--trainer.max_steps", "3", "--trainer.accelerator"]
    main(["fit", "--config", "configs/quickstart.yaml", *small, "cpu", "--trainer.default_root_dir", str(root)])
    return root


def test_the_run_folder_holds_everything(quickstart: Path) -> None:
    left = files(quickstart)
    assert left >= {"config.yaml", "results.json", "reconstructions.safetensors", "comparison.png"}
    assert left >= {"exchange/task.json", "exchange/payload-r0000.json", "exchange/update-c000-d000-r0000.safetensors"}
    assert len([name for name in left if name.startswith("events.out.tfevents")]) == 1
    assert {name for name in left if name.startswith("images/")} == {f"images/{number:03d}.png" for number in range(4)}
    assert not [name for name in left if name.endswith((".new", ".old")) or "exchange." in name]


def test_results_have_the_promised_schema(quickstart: Path) -> None:
    record = json.loads((quickstart / "results.json").read_text())
    assert set(record) == {
        *("schema_version", "attack", "config", "versions", "seed", "privacy", "oracles", "public_statistics"),
        *(
            "subject_fraction",
            "batchnorm",
            "participation",
            "alarms",
            "payload_alarms",
            "baselines",
            "bounds",
            "victims",
            "summary",
        ),
        *("detached_logits", "skipped_pictures", "sha256"),
    }
    assert record["schema_version"] == 1
    assert record["oracles"] == []
    assert (quickstart / record["config"]).is_file()
    assert set(record["privacy"]) == {
        *("mechanism", "granularity", "per_layer", "max_grad_norm", "noise_multiplier", "rounds", "batch_size"),
        *("delta", "adjacency", "epsilon_nominal", "epsilon_accounted", "epsilon_by_adjacency", "accountant", "mu"),
        *("rero_gamma", "aggregated", "noise_share", "epsilon_of_one_client", "epsilon_of_sum", "reproducible_noise"),
    }
    assert record["privacy"]["epsilon_nominal"] == pytest.approx(10.0)
    assert set(record["summary"]) == {
        *("clients", "draws", "victims", "detected", "collided", "false_detections", "psnr_mean"),
        *(
            "psnr_mean_low",
            "psnr_mean_high",
            "psnr_worst",
            "lost_share",
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
    assert events.Tags()["images"] == ["client_0", "client_0/50_times_the_noise"]
    for tag in events.Tags()["images"]:
        grids = events.Images(tag)
        assert [grid.step for grid in grids] == [0, 1, 2, 3]
        for grid in grids:
            with Image.open(BytesIO(grid.encoded_image_string)) as picture:
                assert picture.width > 4 * 144 + 100  # four victims, six times as large, and the names of the rows
                assert 4 * 144 < picture.height < 4 * 200
    states = [grid.encoded_image_string for grid in events.Images("client_0/50_times_the_noise")]
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


# --- what runs ---


def test_without_steps_the_decoding_is_the_result(fit: Fit, tmp_path: Path) -> None:
    record = fit(tmp_path, "--trainer.max_steps", "0")
    assert record["summary"]["steps"] == 0
    assert record["summary"]["steps_per_second"] is None
    assert all(victim["psnr"] == victim["psnr_initial"] for victim in record["victims"])


def test_steps_move_the_pictures(finished: Path) -> None:
    record = json.loads((finished / "results.json").read_text())
    assert all(victim["psnr"] != victim["psnr_initial"] for victim in record["victims"] if victim["detected"])


def test_draws_are_independent_noise_on_the_same_victims(fit: Fit, tmp_path: Path, finished: Path) -> None:
    record = fit(tmp_path, "--model.draws", "2")
    summary, victims = record["summary"], record["victims"]
    assert (summary["draws"], summary["victims"], len(victims)) == (2, 4, 8)
    assert summary["psnr_std_over_draws"] > 0
    first, second = ([v["psnr"] for v in victims if v["draw"] == draw] for draw in (0, 1))
    assert all(a != b for a, b in zip(first, second, strict=True))
    # A draw does not depend on how many there are, but for the order of float32 sums.
    alone = json.loads((finished / "results.json").read_text())["victims"]
    assert first == pytest.approx([victim["psnr"] for victim in alone], abs=1e-3)


def test_clients_hold_different_victims(fit: Fit, tmp_path: Path) -> None:
    record = fit(tmp_path, "--data.clients", "2")
    assert (record["summary"]["clients"], record["summary"]["victims"]) == (2, 8)
    assert [victim["client"] for victim in record["victims"]] == [0] * 4 + [1] * 4
    assert (tmp_path / "exchange" / "update-c001-d000-r0000.json").is_file()


def test_more_rounds_average_the_noise(fit: Fit, tmp_path: Path, finished: Path) -> None:
    once = json.loads((finished / "results.json").read_text())
    record = fit(tmp_path, "--model.client.privacy.rounds", "3")
    assert len(list((tmp_path / "exchange").glob("update-*.json"))) == 3
    assert record["privacy"]["mu"] == pytest.approx(once["privacy"]["mu"] * 3**0.5)
    assert record["summary"]["psnr_mean"] > once["summary"]["psnr_mean"] + 1


@pytest.mark.parametrize(
    "flags",
    [
        ["--model.client.privacy.granularity", "sample"],
        ["--model.client.privacy.per_layer", "true"],
        ["--model.client.privacy.granularity", "sample", "--model.client.privacy.per_layer", "true"],
        ["--trainer.precision", "bf16-mixed"],
        ["--model.client.network", "resnet18"],
    ],
    ids=["sample", "per_layer", "sample_per_layer", "bf16", "resnet18"],
)
def test_every_protection_lets_pictures_through(fit: Fit, tmp_path: Path, flags: list[str]) -> None:
    record = fit(tmp_path, "--model.client.privacy.noise_multiplier", "1e-3", *flags)
    assert record["summary"]["psnr_mean"] > max(record["baselines"].values()) + 6
    assert record["summary"]["false_detections"] == 0
    main(["report", str(tmp_path), "--output", str(tmp_path / "report.html")])  # takes every record that a run writes


def test_without_noise_isolated_pictures_are_exact(fit: Fit, tmp_path: Path) -> None:
    record = fit(tmp_path, "--model.client.privacy.noise_multiplier", "0")
    alone = [victim for victim in record["victims"] if victim["detected"] and not victim["collision"]]
    assert len(alone) >= 3
    assert all(victim["psnr"] > 50 for victim in alone)
    assert record["privacy"]["epsilon_accounted"] is None
    assert record["privacy"]["mu"] is None
    main(["report", str(tmp_path), "--output", str(tmp_path / "report.html")])  # takes every record that a run writes


@pytest.mark.parametrize("granularity", ["update", "sample"])
def test_under_much_noise_nothing_beats_the_trivial_guess(fit: Fit, tmp_path: Path, granularity: str) -> None:
    flags = ["--model.client.privacy.noise_multiplier", "10", "--model.client.privacy.granularity", granularity]
    record = fit(tmp_path, *flags)
    assert record["summary"]["psnr_mean"] <= max(record["baselines"].values()) + 0.1


@pytest.mark.parametrize("moments", [False, True])
def test_the_papers_attack_runs_on_the_same_protection(fit: Fit, tmp_path: Path, moments: bool) -> None:
    flags = ["--config", "configs/attack/paper.yaml", "--model.client.privacy.noise_multiplier", "2e-4"]
    leaking = ["--model.structure.moments", "true", "--model.optimizer", "torch.optim.Adam", "--model.optimizer.lr"]
    record = fit(tmp_path, *flags, *([*leaking, "1e-4", "--trainer.max_steps", "3"] if moments else []))
    assert record["attack"] == "paper"
    assert record["summary"]["steps"] == (3 if moments else 0)
    assert record["summary"]["detected"] >= 1
    for victim in record["victims"]:
        if victim["detected"]:
            assert victim["psnr"] > max(record["baselines"].values())


def test_validate_shows_the_release_and_attacks_nothing(
    tiny: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["validate", "--config", tiny, "--trainer.default_root_dir", str(tmp_path), "--data.clients", "2"])
    output = capsys.readouterr().out
    assert all(word in output for word in ("gradient norm", "clip factor", "noise std", "structure's", "accounted"))
    assert "0.1" in output  # noise std: z C = 0.01 * 10
    assert not {name for name in files(tmp_path) if not name.startswith(("events", "hparams"))}


def test_validate_says_what_per_layer_clipping_leaves_to_the_structure(
    tiny: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--trainer.default_root_dir", str(tmp_path), "--model.client.privacy.per_layer", "true"]
    main(["validate", "--config", tiny, *flags])
    output = " ".join(capsys.readouterr().out.split())
    said = re.search(r"each of (\d+) tensors is clipped to ([\d.]+); the structure's make up ([\d.]+) %", output)
    assert said is not None
    assert float(said[2]) == pytest.approx(10 / int(said[1]) ** 0.5, rel=1e-2)
    share = re.search(r"([\d.]+) % ", output)
    assert share is not None
    assert float(share[1]) >= float(said[3]) - 0.1  # the structure fills its tensors, the network not all of its own
    assert "per update and layer" in output


def test_an_absent_client_weakens_the_attack_and_is_recorded(fit: Fit, tmp_path: Path) -> None:
    flags = ["--data.clients", "2", "--model.client.privacy.rounds", "4", "--trainer.max_steps", "0"]
    always = fit(tmp_path / "always", *flags)
    often = fit(tmp_path / "often", *flags, "--model.client.participation", "0.6")
    assert (always["participation"], often["participation"]) == (1.0, 0.6)
    assert often["summary"]["psnr_mean"] < always["summary"]["psnr_mean"] - 1


def test_training_a_target_says_what_it_cost(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = ["--data.image_size", "24", "--trainer.max_epochs", "1", "--trainer.accelerator", "cpu"]
    main(["fit", "--config", "target.yaml", *small, "--trainer.default_root_dir", str(tmp_path)])
    output = " ".join(capsys.readouterr().out.split())
    said = re.search(r"2 training steps, .* sampling rate 0.364: accounted epsilon ([\d.]+) at delta 1e-05", output)
    assert said is not None
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert events.Scalars("epsilon")[-1].value == pytest.approx(float(said[1]), rel=0.01)


def test_test_scores_a_finished_run_again(finished: Path, tiny: str, tmp_path: Path) -> None:
    root = tmp_path / "run"
    shutil.copytree(finished, root)
    before = json.loads((root / "results.json").read_text())
    (root / "results.json").unlink()
    main(["test", "--config", tiny, "--trainer.default_root_dir", str(root)])
    after = json.loads((root / "results.json").read_text())
    assert after["victims"] == before["victims"]
    for name in ("reconstructions.safetensors", "config.yaml", "exchange/task.json"):
        assert (root / name).read_bytes() == (finished / name).read_bytes()


def test_predict_exports_the_pictures_of_a_finished_run(finished: Path, tiny: str, tmp_path: Path) -> None:
    root = tmp_path / "run"
    shutil.copytree(finished, root)
    main(["predict", "--config", tiny, "--trainer.default_root_dir", str(root)])
    (batch,) = load_file(finished / "reconstructions.safetensors").values()
    exported = sorted((root / "predictions").iterdir())
    assert len(exported) == len(batch)
    for path, picture in zip(exported, batch, strict=True):
        with Image.open(path) as image:
            pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255
        assert (pixels - picture).abs().max() <= 0.5 / 255 + 1e-6
    assert (root / "results.json").read_bytes() == (finished / "results.json").read_bytes()
