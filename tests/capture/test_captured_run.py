# SPDX-License-Identifier: Apache-2.0
"""The command line on a captured update: with and without true images, resumed, replayed, and refused."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_recon.audit.run import read_outcome
from lightning_recon.capture import Declared, load_captured, save_captured
from lightning_recon.cli import main
from lightning_recon.data import ClientBatch, save_truth

Attack = Callable[..., dict[str, Any]]

CONFIG = Path(__file__).parent.parent.parent / "configs" / "captured.yaml"


def arguments(root: Path, update: Path, *flags: str, steps: int = 4) -> list[str]:
    given = ["--config", str(CONFIG), "--model.update", str(update), "--trainer.default_root_dir", str(root)]
    return [*given, "--trainer.accelerator", "cpu", "--trainer.max_steps", str(steps), *flags]


@pytest.fixture(scope="module")
def blind(single: Path, attack: Attack, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run without a truth: look, do not touch."""
    root = tmp_path_factory.mktemp("blind") / "run"
    attack(root, single / "update-d0.safetensors")
    return root


@pytest.fixture
def refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    def run(update: Path, *flags: str) -> str:
        """Run a fit that must fail as it should; the line that it prints."""
        with pytest.raises(SystemExit) as stop:
            main(["fit", *arguments(tmp_path / "refused", update, *flags)])
        assert stop.value.code == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("recon: error: ")
        assert not (tmp_path / "refused" / "results.json").exists()
        return line

    return run


def test_without_a_truth_there_are_images_and_no_scores(blind: Path) -> None:
    record = json.loads((blind / "results.json").read_text())
    assert len(record["victims"]) == 4
    assert all((blind / victim["image"]).is_file() for victim in record["victims"])
    assert {victim["psnr"] for victim in record["victims"]} == {None}
    summary = record["summary"]
    assert (summary["victims"], summary["detected"], summary["steps"]) == (4, 4, 4)
    assert [summary[name] for name in ("psnr_mean", "ssim_mean", "collided")] == [None] * 3
    assert record["baselines"] == {"black_psnr": None, "mean_image_psnr": None}
    assert record["bounds"]["noise_law_psnr"] is None
    assert record["bounds"]["gaussian_reference_psnr"] is None  # it is computed from the true images
    assert record["bounds"]["channel_nats"] > 0
    assert (blind / "reconstructions.safetensors").is_file()
    board = EventAccumulator(str(blind), size_guidance={"images": 0, "tensors": 0}).Reload()
    assert board.Tags()["images"] == ["client_0"]
    assert [picture.step for picture in board.Images("client_0")] == [0, 1, 2, 4]
    assert board.Images("client_0")[0].height > 2 * 128  # decoded and refined, without scores
    assert "psnr" not in board.Tags()["scalars"]
    (said,) = board.Tensors("verdict/text_summary")
    assert b"detected 4 of 4 victims; the true images are not known" in said.tensor_proto.string_val[0]


def test_the_record_has_the_fields_of_any_other(blind: Path, finished: Path) -> None:
    found, usual = (json.loads((root / "results.json").read_text()) for root in (blind, finished))
    assert found.keys() == usual.keys() | {"capture"}
    for part in ("privacy", "bounds", "baselines"):
        assert found[part].keys() == usual[part].keys()
    assert found["summary"].keys() == usual["summary"].keys()
    assert found["victims"][0].keys() == usual["victims"][0].keys()


def test_a_captured_update_shows_what_share_of_the_budget_it_holds(
    blind: Path, single: Path, attack: Attack, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    record = json.loads((blind / "results.json").read_text())
    assert record["detached_logits"] is True
    assert record["summary"]["structure_share"] == pytest.approx(1, abs=0.1)
    assert record["summary"]["low_shares"] == 0
    assert "clipping budget" not in caplog.text
    # As if each image's gradient had filled half of the clip: the noise stays what was announced.
    good, structure = load_captured(single / "update-d0.safetensors"), "structure.weight"
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(good.tensors[structure].shape, generator=generator) * 10.0 * 0.01 / 4
    weak = {**good.tensors, structure: 0.5 * good.tensors[structure] + 0.75**0.5 * noise}
    save_captured(tmp_path / "u.safetensors", replace(good, tensors=weak))
    summary = attack(tmp_path / "run", tmp_path / "u.safetensors")["summary"]
    assert summary["structure_share"] == pytest.approx(0.25, abs=0.1)
    assert summary["low_shares"] == 1
    (line,) = (message for message in caplog.messages if "clipping budget" in message)
    assert "in 1 of 1 updates" in line
    assert "did not reach the clip" in line


def test_what_was_declared_stands_beside_what_is_accounted(blind: Path) -> None:
    record = json.loads((blind / "results.json").read_text())
    capture, privacy = record["capture"], record["privacy"]
    assert capture["source"].startswith("opacus 1.")
    assert capture["convention"] == "gradient_mean"
    assert capture["declared"] == {"epsilon": 8.0, "delta": 1e-5, "sensitivity": None}
    assert capture["epsilon_one_round"] == privacy["epsilon_by_adjacency"]
    assert privacy["epsilon_accounted"] == pytest.approx(5425.5, rel=1e-3)
    assert privacy["epsilon_nominal"] == pytest.approx(0.2)
    (remark,) = capture["remarks"]
    assert "declares epsilon 8, and its one round has 5426 under add/remove" in remark


def test_a_report_stands_without_scores(blind: Path, tmp_path: Path) -> None:
    assert read_outcome(blind) is not None
    main(["report", str(blind), "--output", str(tmp_path / "report.html")])
    assert (tmp_path / "report.html").stat().st_size > 1000


def test_validate_says_what_an_update_promises(
    single: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    good = load_captured(single / "update-d0.safetensors")
    # The noise goes with a sensitivity half the clip: Flower's LocalDpMod lets its users do so.
    save_captured(tmp_path / "u.safetensors", replace(good, declared=Declared(8.0, 1e-5, 5.0)))
    main(["validate", *arguments(tmp_path / "run", tmp_path / "u.safetensors")])
    said = capsys.readouterr().out
    assert "clip 10 per sample, noise multiplier 0.01" in said
    assert "accounted epsilon 5.43e+03" in said
    assert "2.09e+04" in said
    assert "declared by the program: epsilon 8, delta 1e-05, sensitivity 5" in said
    assert "sensitivity 5 is below the clipping norm 10: the noise is 2 times too small" in said
    assert not (tmp_path / "run" / "reconstructions.safetensors").exists()


def test_an_unknown_network_is_remarked_on(
    single: Path, attack: Attack, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    good = load_captured(single / "update-d0.safetensors")
    mine = replace(good, task=replace(good.task, network="mine"), declared=None)
    save_captured(tmp_path / "u.safetensors", mine)
    record = attack(tmp_path / "run", tmp_path / "u.safetensors")
    assert "only the structure's tensors were checked" in record["capture"]["remarks"][0]
    assert "no network 'mine' is known here" in caplog.text


def test_a_captured_update_has_a_comparison_and_no_second_attack(
    single: Path, truth: Path, attack: Attack, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures = ["--data", "CapturedPictures", "--data.root", str(truth), "--trainer.max_steps", "0"]
    older = [
        "--trainer.callbacks",
        "Comparison",
        "--trainer.callbacks.structure",
        "lightning_recon.structure.SeedPaper",
    ]
    attack(tmp_path, single / "update-d0.safetensors", *pictures, *older)
    assert (tmp_path / "comparison.png").is_file()
    said = " ".join(capsys.readouterr().out.split())
    assert "first client: mean image " in said
    assert "seed paper" not in said


def test_a_captured_run_is_resumed_scored_and_replayed(
    captured: Path, truth: Path, attack: Attack, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures = ["--data", "CapturedPictures", "--data.root", str(truth)]
    root, update = tmp_path / "run", captured / "update-d0.safetensors"
    whole = attack(tmp_path / "whole", update, *pictures)
    main(["fit", *arguments(root, update, *pictures, "--results.show", "false", steps=2)])
    other = captured / "update-d1.safetensors"
    with pytest.raises(SystemExit):
        main(["fit", *arguments(root, other, *pictures, "--ckpt_path", "last")])
    assert "lacks update-c000-d000-r0000" in capsys.readouterr().err
    resumed = attack(root, update, *pictures, "--ckpt_path", "last")
    assert resumed["victims"] == whole["victims"]
    name = "reconstructions.safetensors"
    assert (root / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    main(["test", *arguments(root, update, *pictures, "--results.show", "false")])
    assert json.loads((root / "results.json").read_text())["victims"] == whole["victims"]
    main(["predict", *arguments(root, update)])
    assert len(list((root / "predictions").iterdir())) == 4
    main(["replay", str(root), "--output", str(tmp_path / "again")])
    assert (tmp_path / "again" / name).read_bytes() == (root / name).read_bytes()


def test_another_update_is_not_resumed(
    single: Path,
    blind: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    root = tmp_path / "run"
    shutil.copytree(blind, root)
    good = load_captured(single / "update-d0.safetensors")
    mirrored = {name: -tensor for name, tensor in good.tensors.items()}
    save_captured(tmp_path / "u.safetensors", replace(good, tensors=mirrored))
    with pytest.raises(SystemExit) as stop:
        main(["fit", *arguments(root, tmp_path / "u.safetensors", "--ckpt_path", "last", steps=6)])
    assert stop.value.code == 2
    assert "hash of the captured update is" in capsys.readouterr().err


def test_a_run_without_truth_cannot_be_scored(
    blind: Path, single: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(blind, tmp_path / "run")
    before = (tmp_path / "run" / "results.json").read_bytes()
    with pytest.raises(SystemExit) as stop:
        main(["test", *arguments(tmp_path / "run", single / "update-d0.safetensors")])
    assert stop.value.code == 2
    assert "the true images are not known: give --data" in capsys.readouterr().err
    assert (tmp_path / "run" / "results.json").read_bytes() == before


# --- bad input ---


def test_one_of_client_and_update(refused: Callable[..., str], single: Path, tiny: str) -> None:
    assert "give either --model.client" in refused(single, "--model.update", "null", "--data", "ClientDataModule")
    assert "not both (--model.client null)" in refused(single, "--model.client", "lightning_recon.client.VictimClient")


def test_a_simulated_client_needs_images(refused: Callable[..., str], single: Path) -> None:
    line = refused(single, "--model.update", "null", "--model.client", "lightning_recon.client.VictimClient")
    assert "there are no images: give --data" in line
    assert "there are no images" in refused(single, "--model.update", "null")


def test_other_structure_settings_are_refused(refused: Callable[..., str], single: Path) -> None:
    line = refused(single, "--model.structure.pilot_power", "0.3")
    assert "the settings with which the payload was made" in line


def test_more_draws_than_captured_are_refused(refused: Callable[..., str], single: Path) -> None:
    assert "--model.draws" in refused(single, "--model.draws", "2")


def test_a_damaged_update_is_refused_before_anything_is_attacked(
    refused: Callable[..., str], single: Path, tmp_path: Path
) -> None:
    good = load_captured(single / "update-d0.safetensors")
    spoilt = {"network.classifier.bias": torch.full((16,), torch.nan)}
    save_captured(tmp_path / "u.safetensors", replace(good, tensors=good.tensors | spoilt))
    assert "classifier.bias holds NaN" in refused(tmp_path / "u.safetensors")
    (tmp_path / "u.safetensors").write_bytes(b"nothing")
    assert "truncated or not a safetensors file" in refused(tmp_path / "u.safetensors")
    assert "there is no captured update" in refused(tmp_path / "missing.safetensors")


def test_other_images_are_refused(refused: Callable[..., str], single: Path) -> None:
    line = refused(single, "--data", "ClientDataModule", "--data.batch_size", "3", "--data.image_size", "16")
    assert "have shape (3, 16, 16), the update is about (3, 24, 24)" in line


def test_the_same_images_serve_a_simulated_client(truth: Path, finished: Path, tmp_path: Path) -> None:
    usual = json.loads((finished / "results.json").read_text())["victims"]
    with_truth = tmp_path / "tiny.yaml"
    config = yaml.safe_load(CONFIG.read_text()) | {"data": {"class_path": "CapturedPictures"}}
    config["data"]["init_args"] = {"root": str(truth)}
    client = {"class_path": "lightning_recon.client.VictimClient", "init_args": {"network": "convnet", "noise_seed": 0}}
    client["init_args"] |= {"num_classes": 16, "privacy": {"max_grad_norm": 10.0, "noise_multiplier": 0.01}}
    config["model"]["init_args"]["client"] = client
    with_truth.write_text(yaml.safe_dump(config))
    flags = ["--trainer.max_steps", "4", "--trainer.accelerator", "cpu", "--results.show", "false"]
    main(["fit", "--config", str(with_truth), "--trainer.default_root_dir", str(tmp_path / "run"), *flags])
    found = json.loads((tmp_path / "run" / "results.json").read_text())["victims"]
    # A truth file comes without a gallery.
    assert [victim | {"identified": None} for victim in usual] == found


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda b: (b.images[..., :8], b.labels), r"have shape \(3, 24, 8\), the update is about \(3, 24, 24\)"),
        (lambda b: (b.images, b.labels + 16), "network has 16 classes"),
    ],
)
def test_another_truth_is_refused(
    refused: Callable[..., str],
    single: Path,
    pictures: ClientBatch,
    tmp_path: Path,
    spoil: Callable[[ClientBatch], tuple[torch.Tensor, torch.Tensor]],
    message: str,
) -> None:
    save_truth(tmp_path / "truth.safetensors", *spoil(pictures))
    line = refused(single, "--data", "CapturedPictures", "--data.root", str(tmp_path))
    assert re.search(message, line)
