# SPDX-License-Identifier: Apache-2.0
"""Every mistake costs one line that names the remedy, exit status 2, and nothing that was there before."""

import hashlib
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from lightning_recon import cli
from lightning_recon.cli import main
from lightning_recon.exchange import ClientUpdate, RecordedClient
from lightning_recon.files.checkpoints import DIGEST
from lightning_recon.networks.construction import build_network

Refused = Callable[..., str]


def contents(root: Path) -> dict[str, str]:
    paths = [path for path in sorted(root.rglob("*")) if path.is_file()]
    return {path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory, finished: Path) -> Path:
    """A folder with a finished run, into which every mistake below is made."""
    root = tmp_path_factory.mktemp("kept") / "run"
    shutil.copytree(finished, root)
    return root


@pytest.fixture
def refused(kept: Path, tiny: str, capsys: pytest.CaptureFixture[str]) -> Refused:
    def run(*flags: str, command: str = "fit") -> str:
        """Run a command that must fail as it should; the line that it prints."""
        before = contents(kept)
        # Refused before it replaces anything.
        replacing = ["--overwrite"] if command == "fit" and "--ckpt_path" not in flags else []
        arguments = [command, "--config", tiny, "--trainer.default_root_dir", str(kept), *replacing, *flags]
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert stop.value.code == 2
        after = contents(kept)
        assert {name: after.get(name) for name in before} == before
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("recon: error: ")
        return line

    return run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six photographs of different sizes, as JPEG."""
    (tmp_path / "pictures").mkdir()
    for index in range(6):
        pixels = torch.rand(3, 6, 6, generator=torch.Generator().manual_seed(index))
        small = Image.fromarray((pixels.permute(1, 2, 0) * 255).to(torch.uint8).numpy())
        small.resize((60 + index, 50)).save(tmp_path / "pictures" / f"{index}.jpg")
    return tmp_path / "pictures"


# --- data ---


def test_missing_data_root(refused: Refused) -> None:
    line = refused("--data.root", "/nowhere/pictures")
    assert "/nowhere/pictures does not exist" in line
    assert "--data.root" in line


def test_no_data_root(refused: Refused) -> None:
    line = refused("--data.source", "imagenet")
    assert "--data.root" in line
    assert "LIGHTNING_RECON_DATA" in line


def test_empty_folder(refused: Refused, tmp_path: Path) -> None:
    line = refused("--data.root", str(tmp_path))
    assert "holds no images" in line
    assert ".jpg" in line


def test_a_jpeg_cut_in_half_is_named_and_replaced(
    fit: Callable[..., dict[str, Any]], folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for path in (folder / "0.jpg", folder / "3.jpg"):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with caplog.at_level(logging.WARNING, "lightning_recon"):
        record = fit(tmp_path / "run", "--data.root", str(folder))
    assert record["summary"]["victims"] == 4
    messages = [entry.getMessage() for entry in caplog.records]
    assert [sum(name in message for message in messages) for name in ("0.jpg", "3.jpg")] == [1, 1]


def test_too_many_jpegs_cut_in_half(refused: Refused, folder: Path) -> None:
    for index in (0, 2, 3):
        path = folder / f"{index}.jpg"
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    line = refused("--data.root", str(folder))
    assert "3 readable images; 4 are needed" in line
    assert "--data.batch_size" in line


@pytest.mark.parametrize("flags", [["--data.batch_size", "17"], ["--data.clients", "5"]])
def test_a_batch_larger_than_the_data(refused: Refused, flags: list[str]) -> None:
    line = refused(*flags)
    assert "16 readable images" in line
    assert "--data.batch_size" in line


@pytest.mark.parametrize("flags", [["--data.batch_size", "0"], ["--data.clients", "-1"], ["--data.image_size", "1"]])
def test_numbers_out_of_range(refused: Refused, flags: list[str]) -> None:
    assert f"{flags[0].removeprefix('--')} is {flags[1]}" in refused(*flags)


# --- SAM ---

SAM = ["--data.masks", "lightning_recon.data.SamMasks", "--data.masks.model_type", "vit_b"]


def test_missing_sam_checkpoint(refused: Refused) -> None:
    for flags in ([], ["--data.masks.checkpoint", "/nowhere/sam.pth"]):
        line = refused(*SAM, *flags)
        assert "https://" in line
        assert "--data.masks.checkpoint" in line


def test_wrong_sam_checkpoint(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "sam.pth").write_bytes(b"something else")
    line = refused(*SAM, "--data.masks.checkpoint", str(tmp_path / "sam.pth"))
    assert "SHA-256" in line
    assert "download it again" in line


# --- the client ---


def test_unknown_network(refused: Refused) -> None:
    line = refused("--model.client.network", "resnet19")
    assert "unknown network 'resnet19'" in line
    assert "resnet18" in line


def test_the_analytic_attack_on_several_images(refused: Refused) -> None:
    line = refused("--config", "attack/analytic.yaml", "--model.client.network", "convnet", "--data.batch_size", "4")
    assert "--model.init revealed is for updates of a single image, and each of these is of 4" in line
    assert "set --data.batch_size 1" in line


@pytest.mark.parametrize("attack", [[], ["--config", "attack/likelihood.yaml"]], ids=["malicious", "honest"])
def test_batch_norm_over_a_single_value(attack: list[str], refused: Refused) -> None:
    batch = ("--data.batch_size", "1", "--data.image_size", "32")
    line = refused(*attack, "--model.client.network", "resnet18", *batch)
    assert "single number to normalize by its batch: set --model.client.batch_norm eval" in line


def test_noise_without_a_clip(refused: Refused) -> None:
    line = refused("--model.client.privacy.max_grad_norm", ".inf")
    assert "noise without a clip" in line
    assert "set max_grad_norm" in line


def test_negative_noise(refused: Refused) -> None:
    line = refused("--model.client.privacy.noise_multiplier", "-0.1")
    assert "noise_multiplier is -0.1: give a number of at least 0" in line


def test_no_draws(refused: Refused) -> None:
    assert "--model.draws is 0" in refused("--model.draws", "0")


def test_nan_in_the_update(refused: Refused, tmp_path: Path) -> None:
    network = build_network("convnet", 16)
    broken = {name: torch.full_like(tensor, torch.nan) for name, tensor in network.state_dict().items()}
    save_file(broken, tmp_path / "broken.safetensors")
    line = refused("--model.client.weights", str(tmp_path / "broken.safetensors"))
    assert "NaN or infinity" in line
    assert "weights" in line


def test_nothing_to_refine(refused: Refused) -> None:
    line = refused("--config", "configs/attack/paper.yaml", "--trainer.max_steps", "3")
    assert "--trainer.max_steps 0" in line


def test_refinement_without_end(refused: Refused) -> None:
    assert "give a number of steps by --trainer.max_steps" in refused("--trainer.max_steps", "-1")


# --- checkpoints ---


def test_missing_checkpoint(refused: Refused) -> None:
    assert "no checkpoint /nowhere/x.ckpt" in refused("--ckpt_path", "/nowhere/x.ckpt")


def test_no_last_checkpoint(tiny: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--config", tiny, "--trainer.default_root_dir", str(tmp_path), "--ckpt_path", "last"])
    assert stop.value.code == 2
    assert "leave out --ckpt_path" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["text", "empty", "tensors", "pickle", "truncated"])
def test_a_foreign_file_is_no_checkpoint(refused: Refused, kept: Path, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "foreign.ckpt"
    if kind in ("text", "empty"):
        path.write_text("a text\n" if kind == "text" else "")
    elif kind == "tensors":
        torch.save({"weight": torch.zeros(3)}, path)
    elif kind == "pickle":
        torch.save({"state_dict": Trap(tmp_path / "executed"), "pytorch-lightning_version": "2.6.6"}, path)
    else:
        whole = (kept / "checkpoints" / "last.ckpt").read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
    line = refused("--ckpt_path", str(path))
    assert f"{path} is no checkpoint of this program" in line
    assert not (tmp_path / "executed").exists()


class Trap:
    """Touches a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[Path], None], tuple[Path]]:
        return Path.touch, (self.path,)


def test_a_checkpoint_of_another_model(refused: Refused, kept: Path, tmp_path: Path) -> None:
    path = tmp_path / "other.ckpt"
    checkpoint = torch.load(kept / "checkpoints" / "last.ckpt", weights_only=True)
    del checkpoint["exchange"], checkpoint[DIGEST]
    torch.save(checkpoint | {"state_dict": {"network.weight": torch.zeros(3)}}, path)
    assert "does not belong to" in refused("--ckpt_path", str(path))


def test_a_checkpoint_that_does_not_fit_a_target_network(
    kept: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [
        "fit",
        "--config",
        "target.yaml",
        "--trainer.default_root_dir",
        str(tmp_path),
        "--trainer.max_steps",
        "1",
    ]
    with pytest.raises(SystemExit) as stop:
        main([*arguments, "--trainer.accelerator", "cpu", "--ckpt_path", str(kept / "checkpoints" / "last.ckpt")])
    assert stop.value.code == 2
    assert "belongs to another model" in capsys.readouterr().err


def test_validate_takes_no_checkpoint(refused: Refused) -> None:
    assert "leave out --ckpt_path" in refused("--ckpt_path", "last", command="validate")


# --- the output folder ---


def test_an_output_folder_that_cannot_be_written(tiny: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("I was here first")
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--config", tiny, "--trainer.default_root_dir", str(tmp_path / "file" / "run")])
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("recon: error: cannot write to ")
    assert "--trainer.default_root_dir" in line
    assert (tmp_path / "file").read_text() == "I was here first"


@pytest.mark.parametrize("command", ["test", "predict"])
def test_there_is_no_run_to_score_or_export(
    command: str, tiny: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main([command, "--config", tiny, "--trainer.default_root_dir", str(tmp_path)])
    assert stop.value.code == 2
    assert "run `recon fit`" in capsys.readouterr().err


# --- the command line ---


@pytest.mark.parametrize("arguments", [["fitt"], ["replay"], ["replay", "/nowhere", "--output", "x"]])
def test_bad_commands(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("recon: error: ")
    assert not list(tmp_path.iterdir())


def test_a_fault_of_the_program_is_not_blamed_on_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(given: object, typed: object) -> None:
        raise ZeroDivisionError("ours")

    monkeypatch.setattr(cli, "run", broken)
    with pytest.raises(ZeroDivisionError, match="ours"):
        main(["fit"])


# --- replay ---


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A finished run whose recording may be spoilt."""
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def refused_replay(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Refused:
    def replay(run: Path) -> str:
        before = contents(run)
        with pytest.raises(SystemExit) as stop:
            main(["replay", str(run), "--output", str(tmp_path / "again")])
        assert stop.value.code == 2
        assert contents(run) == before
        assert not (tmp_path / "again" / "reconstructions.safetensors").exists()
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("recon: error: ")
        return line

    return replay


def test_nan_in_a_recorded_update(run: Path, refused_replay: Refused) -> None:
    client = RecordedClient(run / "exchange")
    update = client.share(client.payload(0), 0, 0, 0)
    update.gradient["structure.weight"][3, 5] = torch.nan
    spoilt = ClientUpdate(0, 0, 0, update.gradient, update.omitted, update.payload)
    spoilt.save(run / "exchange", "update-c000-d000-r0000", {"structure.weight": None})
    line = refused_replay(run)
    assert "NaN or infinity in structure.weight" in line
    assert "run again" in line


@pytest.mark.parametrize("name", ["update-c000-d000-r0000.safetensors", "payload-r0000.json", "task.json"])
@pytest.mark.parametrize("harm", ["missing", "truncated"])
def test_a_damaged_recording(run: Path, refused_replay: Refused, name: str, harm: str) -> None:
    path = run / "exchange" / name
    whole = path.read_bytes()
    path.unlink()
    if harm == "truncated":
        path.write_bytes(whole[: len(whole) // 2])
    line = refused_replay(run)
    assert name.split(".")[0] in line
    assert "restore" in line


@pytest.mark.parametrize("text", ["", "model: [", "trainer: {}\n", "just a text\n"])
def test_a_foreign_config(run: Path, refused_replay: Refused, text: str) -> None:
    (run / "config.yaml").write_text(text)
    assert "config.yaml" in refused_replay(run)
