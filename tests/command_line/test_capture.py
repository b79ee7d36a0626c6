# SPDX-License-Identifier: Apache-2.0
"""`recon capture`: weights of before and after a training, of any program, become an update that is attacked."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from lightning_recon.capture import load_captured
from lightning_recon.cli import main
from lightning_recon.data import ClientDataModule, NoMasks, save_truth
from lightning_recon.data.sources import ClientBatch
from lightning_recon.networks.construction import build_network

UPDATE = "update-c000-d000-r0000.safetensors"
NETWORK = ["--network", "convnet", "--num_classes", "16", "--image_size", "24", "--batch_size", "4"]
LOSS = "binary_cross_entropy"
SGD = ["--local.optimizer", "SGD", "--local.optimizer.lr", "0.05"]


@pytest.fixture(scope="module")
def pictures() -> ClientBatch:
    data = ClientDataModule(image_size=24, batch_size=4, masks=NoMasks(), num_classes=16)
    data.prepare_data()
    data.setup()
    return data.client_batches[0]


@pytest.fixture(scope="module")
def trained(pictures: ClientBatch) -> tuple[nn.Module, nn.Module]:
    """A network before and after a step."""
    before, after = build_network("convnet", 16), build_network("convnet", 16)
    F.cross_entropy(after(pictures.images), pictures.labels).backward()
    torch.optim.SGD(after.parameters(), lr=0.05).step()
    return before, after


def capture(folder: Path, *flags: str, before: str = "before.pt", after: str = "after.pt") -> None:
    files = ["--before", str(folder / before), "--after", str(folder / after), "--output", str(folder / "captured")]
    main(["capture", *files, *NETWORK, *flags])


def written(folder: Path, before: nn.Module, after: nn.Module) -> None:
    torch.save(before.state_dict(), folder / "before.pt")
    torch.save(after.state_dict(), folder / "after.pt")


def test_a_pair_of_files_is_attacked(
    trained: tuple[nn.Module, nn.Module], pictures: ClientBatch, tmp_path: Path
) -> None:
    written(tmp_path, *trained)
    capture(tmp_path, *SGD)
    captured = load_captured(tmp_path / "captured" / UPDATE)
    assert (captured.convention, captured.source) == ("delta", "before.pt and after.pt")
    assert captured.task.local.learning_rates == (0.05,)
    save_truth(tmp_path / "captured" / "truth.safetensors", pictures.images, pictures.labels)
    configs = ["--config", "captured.yaml", "--config", "attack/likelihood.yaml", "--results.show", "false"]
    run = ["--model.update", str(tmp_path / "captured"), "--trainer.default_root_dir", str(tmp_path / "run")]
    truth = ["--data", "CapturedPictures", "--data.root", str(tmp_path / "captured")]
    main(["fit", *configs, *run, *truth, "--trainer.accelerator", "cpu", "--trainer.max_steps", "20"])
    found: dict[str, Any] = json.loads((tmp_path / "run" / "results.json").read_text())
    assert found["summary"]["label_accuracy"] >= 0.75
    assert found["summary"]["psnr_mean"] > found["baselines"]["mean_image_psnr"]


@pytest.mark.parametrize("form", ["module", "compiled", "opacus", "checkpoint", "safetensors", "layer_compiled"])
def test_files_of_other_programs_say_the_same(form: str, trained: tuple[nn.Module, nn.Module], tmp_path: Path) -> None:
    written(tmp_path, *trained)
    capture(tmp_path, *SGD)
    plain = load_captured(tmp_path / "captured" / UPDATE).tensors
    _, after = trained
    prefix = {"module": "module.", "compiled": "_orig_mod.", "opacus": "_module.", "checkpoint": "model."}.get(form, "")
    state = {f"{prefix}{name}": tensor for name, tensor in after.state_dict().items()}
    name = "other.pt"
    if form == "layer_compiled":
        state = {name.replace("features.0", "features.0._orig_mod"): tensor for name, tensor in state.items()}
    if form == "safetensors":
        name = "other.safetensors"
        save_file(state, tmp_path / name)
    else:
        torch.save({"epoch": 1, "state_dict": state} if form == "checkpoint" else state, tmp_path / name)
    (tmp_path / "captured" / UPDATE).unlink()
    capture(tmp_path, *SGD, after=name)
    found = load_captured(tmp_path / "captured" / UPDATE).tensors
    assert found.keys() == plain.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in plain.items())


def test_a_captured_update_is_not_replaced_by_another(
    trained: tuple[nn.Module, nn.Module], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written(tmp_path, *trained)
    capture(tmp_path, *SGD)
    before = (tmp_path / "captured" / UPDATE).read_bytes()
    capture(tmp_path, *SGD)
    with pytest.raises(SystemExit):
        capture(tmp_path, "--local.optimizer", "SGD", "--local.optimizer.lr", "0.02")
    assert f"{UPDATE} holds another update: choose another folder" in capsys.readouterr().err
    assert (tmp_path / "captured" / UPDATE).read_bytes() == before


def test_protection_and_training_are_announced(trained: tuple[nn.Module, nn.Module], tmp_path: Path) -> None:
    written(tmp_path, *trained)
    training = ["--local.optimizer", "Adam", "--local.optimizer.lr", "0.01", "--local.epochs", "3"]
    capture(tmp_path, *training, "--privacy.max_grad_norm", "2", "--privacy.noise_multiplier", "0.1")
    task = load_captured(tmp_path / "captured" / UPDATE).task
    assert (task.max_grad_norm, task.noise_multiplier) == (2.0, 0.1)
    assert (task.local.optimizer, task.local.epochs, task.local.update) == ("torch.optim.adam.Adam", 3, "delta")
    assert task.parameter_tensors == len(list(trained[0].parameters()))


def test_images_and_loss_are_announced(tmp_path: Path) -> None:
    before, after = (build_network("convnet", 16, image_size=(16, 24), channels=1) for _ in range(2))
    with torch.no_grad():
        next(after.parameters()).add_(0.01)
    written(tmp_path, before, after)
    capture(tmp_path, *SGD, "--channels", "1", "--image_size", "[16,24]", "--bit_depth", "12", "--loss", LOSS)
    task = load_captured(tmp_path / "captured" / UPDATE).task
    assert (task.image_shape, task.bit_depth, task.loss) == ((1, 16, 24), 12, LOSS)


class Code:
    """What unpickling would run."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        """Call a function on loading."""
        return print, ("code was run",)


@pytest.mark.parametrize(
    ("content", "flags", "said"),
    [
        ({"a": Code()}, (), "hold more than plain tensors"),
        (nn.Linear(2, 2).state_dict(), (), "do not fit the network"),
        ("same", (), "hold the same weights"),
        ("good", ("--privacy.noise_multiplier", "1"), "--privacy.noise_multiplier is 1.0 but --privacy.max_grad_norm"),
        ("good", ("--local.epochs", "0"), "--local.epochs is 0"),
        ("good", ("--image_size", "[24,24,24]"), "--image_size is [24, 24, 24]: give one number, or height and width"),
        ("good", ("--channels", "0"), "--channels is 0"),
        ("good", ("--bit_depth", "7"), "--bit_depth is 7"),
        ("good", ("--client", "3", "--clients", "2"), "--client is 3, and --clients is 2: give a number below it"),
        ("good", ("--round", "1"), "--round is 1, and --privacy.rounds is 1: give a number below it"),
        ("good", ("--privacy.epoch", "0"), "there is no option --privacy.epoch"),
        ("missing", (), "do not exist"),
        ("text", (), "cannot be read (KeyError: 105): give a .safetensors or .pt state dict"),
    ],
)
def test_mistakes_are_one_line(
    content: Any,  # noqa: ANN401 - of a file
    flags: tuple[str, ...],
    said: str,
    trained: tuple[nn.Module, nn.Module],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    written(tmp_path, *trained)
    if content == "missing":
        (tmp_path / "after.pt").unlink()
    elif content == "text":
        (tmp_path / "after.pt").write_text("hi, no weights")
    elif content == "same":
        torch.save(trained[0].state_dict(), tmp_path / "after.pt")
    elif content != "good":
        torch.save(content, tmp_path / "after.pt")
    with pytest.raises(SystemExit) as stopped:
        capture(tmp_path, *SGD, *flags)
    assert stopped.value.code == 2
    shown = capsys.readouterr()
    assert said in shown.err
    assert "code was run" not in shown.out
    assert len(shown.err.strip().splitlines()) == 1
    assert not (tmp_path / "captured" / UPDATE).exists()
