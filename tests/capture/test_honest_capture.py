# SPDX-License-Identifier: Apache-2.0
"""Updates of an honest server's clients, made by plain torch and by Opacus, attacked from the command line."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from opacus import PrivacyEngine
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_recon.capture import CapturedUpdate, load_captured, save_captured
from lightning_recon.cli import main
from lightning_recon.data import ClientBatch, save_truth
from lightning_recon.exchange import Task
from lightning_recon.networks.construction import build_network

ROOT = Path(__file__).parents[2] / "configs"
UPDATE = "update.safetensors"
FIRST = "network.features.0.weight"


def task(network: str = "convnet", **changes: Any) -> Task:  # noqa: ANN401 - fields of a task
    tensors = len(list(build_network(network, 16).parameters()))
    return replace(Task((3, 24, 24), 16, 4, 1, network, "update", False, None, 0.0, 1, tensors), **changes)


def torch_step(pictures: ClientBatch, network: str = "convnet") -> dict[str, Tensor]:
    """The gradient of one plain training step, by the names that updates have."""
    model = build_network(network, 16)
    torch.autograd.backward(F.cross_entropy(model(pictures.images), pictures.labels))
    return {f"network.{name}": parameter.grad.clone() for name, parameter in model.named_parameters()}


@pytest.fixture(scope="session")
def plain(tmp_path_factory: pytest.TempPathFactory, pictures: ClientBatch) -> Path:
    """A folder with a captured update and the weights that were shipped: look, do not touch."""
    root = tmp_path_factory.mktemp("plain")
    save_captured(root / UPDATE, CapturedUpdate(task(), torch_step(pictures), "gradient_mean"))
    # As any torch program saves them.
    save_file(build_network("convnet", 16).state_dict(), root / "network.safetensors")
    save_truth(root / "truth.safetensors", pictures.images, pictures.labels)
    return root


def attack(update: Path, root: Path, *flags: str, command: str = "fit") -> None:
    configs = ["--config", str(ROOT / "captured.yaml"), "--config", str(ROOT / "attack" / "likelihood.yaml")]
    run = ["--model.update", str(update), "--trainer.default_root_dir", str(root), "--trainer.accelerator", "cpu"]
    main([command, *configs, *run, "--trainer.max_steps", "3", "--results.show", "false", *flags])


def test_a_captured_gradient_is_attacked_with_and_without_a_truth(plain: Path, tmp_path: Path) -> None:
    attack(plain, tmp_path / "scored", "--data", "CapturedPictures", "--data.root", str(plain))
    scored = json.loads((tmp_path / "scored" / "results.json").read_text())
    assert scored["summary"]["label_accuracy"] >= 0.75
    assert scored["capture"]["convention"] == "gradient_mean"
    attack(plain / UPDATE, tmp_path / "blind")
    blind = json.loads((tmp_path / "blind" / "results.json").read_text())
    assert blind["summary"]["label_accuracy"] is None
    name = "reconstructions.safetensors"
    assert (tmp_path / "scored" / name).read_bytes() == (tmp_path / "blind" / name).read_bytes()


def test_validate_looks_for_the_weights(plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    attack(plain, tmp_path, command="validate")
    assert "network.safetensors beside the update fits convnet" in capsys.readouterr().out
    assert not (tmp_path / "reconstructions.safetensors").exists()
    main_configs = ["--config", str(ROOT / "captured.yaml"), "--model.update", str(plain)]
    with pytest.raises(SystemExit) as stop:
        main(["validate", *main_configs, "--trainer.default_root_dir", str(tmp_path)])
    assert stop.value.code == 2
    assert "answers an honest server, which sends its network only" in capsys.readouterr().err


def test_an_opacus_step_is_attacked(pictures: ClientBatch, tmp_path: Path) -> None:
    model = build_network("convnet", 16)
    save_file(model.state_dict(), tmp_path / "network.safetensors")
    module, optimizer, loader = PrivacyEngine().make_private(
        module=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        data_loader=DataLoader(TensorDataset(pictures.images, pictures.labels), batch_size=4),
        noise_multiplier=0.01,
        max_grad_norm=1.0,
        poisson_sampling=False,
    )
    ((images, labels),) = loader
    torch.autograd.backward(F.cross_entropy(module(images), labels))
    optimizer.pre_step()
    tensors = {f"network.{n.removeprefix('_module.')}": p.grad for n, p in module.named_parameters()}
    announced = task(granularity="sample", max_grad_norm=1.0, noise_multiplier=0.01)
    save_captured(tmp_path / UPDATE, CapturedUpdate(announced, tensors, "gradient_mean", source="opacus"))
    attack(tmp_path, tmp_path / "run")
    record = json.loads((tmp_path / "run" / "results.json").read_text())
    assert (record["summary"]["victims"], record["summary"]["detected"]) == (4, 4)


# --- bad input ---


def swapped(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    names = list(tensors)
    return tensors | {names[0]: tensors[names[2]], names[2]: tensors[names[0]]}


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda t: {k: v for k, v in t.items() if k != FIRST}, "the update lacks network.features.0.weight"),
        (lambda t: t | {FIRST: t[FIRST][:1]}, "has shape (1, 3, 3, 3) in the update and (32, 3, 3, 3)"),
        (swapped, "the client trained another model, or the arrays are out of order"),
        (lambda t: t | {"network.bn.running_mean": torch.zeros(3)}, "is a buffer of batch normalization"),
        (lambda t: t | {"network.extra": torch.zeros(3)}, "the update has network.extra"),
        (lambda t: {k: -v for k, v in t.items()}, "its sign is reversed, so set convention delta"),
        (lambda t: {k: v + 0.5 * v.roll(5, 0) - 0.5 * v.roll(9, 0) for k, v in t.items()}, "without momentum"),
    ],
    ids=["missing", "shape", "order", "buffers", "unknown", "sign", "momentum"],
)
def test_a_bad_update_is_answered_in_one_line(
    spoil: Callable[[dict[str, Tensor]], dict[str, Tensor]],
    said: str,
    plain: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    good = load_captured(plain / UPDATE)
    save_captured(tmp_path / UPDATE, replace(good, tensors=spoil(good.tensors)))
    with pytest.raises(SystemExit) as stop:
        attack(tmp_path, tmp_path / "run")
    assert stop.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("recon: error")]
    assert said in line


@pytest.mark.parametrize(
    ("network", "weights", "said"),
    [
        ("convnet", None, "holds no network.safetensors, without which the update cannot be inverted"),
        ("resnet18", lambda n: "running" not in n and "tracked" not in n, "running statistics included"),
        ("package.Network", lambda n: True, "nobody may name code to be run"),
    ],
    ids=["missing", "buffers", "code"],
)
def test_the_weights_that_were_shipped_are_needed(
    network: str,
    weights: Callable[[str], bool] | None,
    said: str,
    pictures: ClientBatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    known = "convnet" if "." in network else network
    announced = replace(task(known), network=network)
    save_captured(tmp_path / UPDATE, CapturedUpdate(announced, torch_step(pictures, known), "gradient_mean"))
    if weights is not None:
        state = build_network(known, 16).state_dict()
        save_file({name: tensor for name, tensor in state.items() if weights(name)}, tmp_path / "network.safetensors")
    for command in ("validate", "fit"):
        with pytest.raises(SystemExit) as stop:
            attack(tmp_path, tmp_path / "run", command=command)
        assert stop.value.code == 2
        assert said in capsys.readouterr().err


# --- normalisation and names ---


class Own(nn.Module):
    """A network as users have them: images in [0, 1], no normalisation, no wrapper."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.head, self.conv = nn.Linear(512, num_classes), nn.Conv2d(3, 32, 3, 2, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Logits."""
        logits: Tensor = self.head(F.adaptive_avg_pool2d(F.gelu(self.conv(images)), 4).flatten(1))
        return logits


def test_a_plain_network_is_attacked_as_it_is(pictures: ClientBatch, tmp_path: Path) -> None:
    """Against the normalisation that every network had once, which a file without the field still means."""
    torch.manual_seed(0)
    model, name, found = Own(16), f"{__name__}.Own", {}
    torch.autograd.backward(F.cross_entropy(model(pictures.images), pictures.labels))
    plain = {f"network.{key}": one.grad for key, one in model.named_parameters() if one.grad is not None}
    wrapped = {key.replace("network.", "network.model."): tensor for key, tensor in plain.items()}
    for case, tensors in (("auto", plain), ("auto", wrapped), ("imagenet", plain)):
        root = tmp_path / f"{case}{len(found)}"
        announced = replace(task(), network=name, parameter_tensors=4, normalization=case)
        save_captured(root / UPDATE, CapturedUpdate(announced, tensors, "gradient_mean"))
        save_file(model.state_dict(), root / "network.safetensors")
        save_truth(root / "truth.safetensors", pictures.images, pictures.labels)
        truth = ("--data", "CapturedPictures", "--data.root", str(root), "--trainer.max_steps", "20")
        attack(root, root / "run", "--model.network", name, *truth)
        found[root.name] = json.loads((root / "run" / "results.json").read_text())["summary"]
    right, old_names, wrong = found.values()
    assert old_names["psnr_mean"] == right["psnr_mean"]
    assert right["psnr_mean"] > wrong["psnr_mean"] + 3
    assert (right["detected"], right["label_accuracy"]) == (4, 1.0)


def test_a_file_of_before_the_choice_means_imagenet(plain: Path) -> None:
    with safe_open(plain / UPDATE, framework="pt") as file:
        header = json.loads(file.metadata()["captured"])
    assert header["task"].pop("normalization") == "auto"
    assert Task.from_record(header["task"]).normalization == "imagenet"
