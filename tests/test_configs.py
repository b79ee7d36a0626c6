# SPDX-License-Identifier: Apache-2.0
"""Every shipped config parses and runs, and says everything about the classes that it sets."""

import hashlib
import inspect
import json
import pickle
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
import yaml
from PIL import Image
from torch import Tensor, nn
from torch.optim import Optimizer
from torchvision import datasets

from lightning_recon.cli import main

CONFIGS = Path(__file__).parent.parent / "configs"
# See test_audit_cli.py, capture/ and verification/.
ELSEWHERE = ("audit.yaml", "captured.yaml", "training.yaml", "verify.yaml")
BASES = sorted(path.name for path in CONFIGS.glob("*.yaml") if path.name not in ELSEWHERE)
OVERLAYS = sorted(path.relative_to(CONFIGS).as_posix() for path in CONFIGS.glob("*/*.yaml"))

PICTURES = 8
ONE_PROCESS = ["--trainer.accelerator", "cpu", "--trainer.devices", "1", "--trainer.strategy", "auto"]
TOY = ["--data.image_size", "24", "--data.batch_size", "4", "--data.masks", "lightning_recon.data.NoMasks"]
ATTACK = ["--model.client.network", "convnet", "--results.show", "false"]


ROLES = {"client", "draws", "record", "update"}  # what an attack has whatever its kind


class Perceptron(nn.Module):
    """Starts fully connected, as the closed form needs it."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3 * 24 * 24, 8), nn.Linear(8, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits."""
        logits: Tensor = self.last(self.first(images.flatten(1)).sigmoid())
        return logits


SINGLE = ["--data.batch_size", "1", "--model.client.network", f"{__name__}.Perceptron"]


def colours(count: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(0).integers(0, 256, (count, 3), dtype=np.uint8)


def folder(root: Path, names: list[str]) -> None:
    """Pictures with a bright half and a dark half, each of another colour."""
    for name, colour in zip(names, colours(len(names)), strict=True):
        pixels = np.broadcast_to(colour, (40, 40, 3)).copy()
        pixels[:, 20:] //= 4
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)


def imagenet(root: Path, patch: pytest.MonkeyPatch) -> None:
    folder(root, [f"val/n{index:08d}/{index}.JPEG" for index in range(PICTURES)])


def cifar100(root: Path, patch: pytest.MonkeyPatch) -> None:
    data = np.repeat(colours(PICTURES), 1024, axis=1)
    data[:, ::2] //= 3
    contents = {
        "train": {"data": data, "fine_labels": list(range(PICTURES))},
        "meta": {"fine_label_names": ["x"] * 100},
    }
    hashes = {}
    (root / "cifar-100-python").mkdir(parents=True)
    for name, content in contents.items():
        path = root / "cifar-100-python" / name
        path.write_bytes(pickle.dumps(content))
        hashes[name] = hashlib.md5(path.read_bytes()).hexdigest()
    patch.setattr(datasets.CIFAR100, "train_list", [["train", hashes["train"]]])
    patch.setattr(datasets.CIFAR100, "test_list", [])
    patch.setattr(datasets.CIFAR100, "meta", {"filename": "meta", "key": "fine_label_names", "md5": hashes["meta"]})


def caltech256(root: Path, patch: pytest.MonkeyPatch) -> None:
    parent = "caltech256/256_ObjectCategories"
    folder(root, [f"{parent}/{index + 1:03d}.thing/{index + 1:03d}_0001.jpg" for index in range(PICTURES)])


def flowers102(root: Path, patch: pytest.MonkeyPatch) -> None:
    parent = root / "flowers-102"
    folder(root, [f"flowers-102/jpg/image_{index + 1:05d}.jpg" for index in range(PICTURES)])
    everything = list(range(1, PICTURES + 1))
    scipy.io.savemat(parent / "imagelabels.mat", {"labels": [everything]})
    scipy.io.savemat(parent / "setid.mat", {"trnid": [everything], "valid": [[1]], "tstid": [[1]]})
    names = {"label": "imagelabels.mat", "setid": "setid.mat"}
    files = {key: (name, hashlib.md5((parent / name).read_bytes()).hexdigest()) for key, name in names.items()}
    patch.setattr(datasets.Flowers102, "_file_dict", files)


MAKERS: dict[str, Callable[[Path, pytest.MonkeyPatch], None]] = {
    "imagenet": imagenet,
    "cifar100": cifar100,
    "caltech256": caltech256,
    "flowers102": flowers102,
}


def read(name: str) -> dict[str, Any]:
    content = yaml.safe_load((CONFIGS / name).read_text())
    assert isinstance(content, dict)
    return content


def classes(part: object) -> Iterator[dict[str, Any]]:
    """Every {class_path, init_args} of a config."""
    if isinstance(part, dict):
        if "class_path" in part:
            yield part
        for value in part.values():
            yield from classes(value)
    elif isinstance(part, list):
        for value in part:
            yield from classes(value)


def test_the_folders_are_as_documented() -> None:
    assert {
        "quickstart.yaml",
        "grey16.yaml",
        "imagenet.yaml",
        "cifar100.yaml",
        "caltech256.yaml",
        "flowers102.yaml",
    } <= set(BASES)
    assert {"attack/dlg.yaml", "attack/likelihood.yaml", "attack/see_through_gradients.yaml"} <= set(OVERLAYS)
    assert {"attack/paper.yaml", "trainer/cpu.yaml", "trainer/gpu.yaml", "trainer/ddp.yaml"} <= set(OVERLAYS)
    assert any(name.startswith("defense/") for name in OVERLAYS)


@pytest.mark.parametrize("name", BASES)
def test_bases_run_a_step(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, data = read(name), []
    source = config["data"]["init_args"]["source"]
    if not source.startswith("samples"):
        MAKERS[source](tmp_path / "data", monkeypatch)
        data = ["--data.root", str(tmp_path / "data")]
    attack = config["model"]["class_path"].endswith("ReconstructionAttack")
    root = tmp_path / "run"
    toy = [*TOY, *ONE_PROCESS, *(ATTACK if attack else []), "--trainer.max_steps", "1"]
    main(["fit", "--config", str(CONFIGS / name), *data, *toy, "--trainer.default_root_dir", str(root)])
    if attack:
        summary = json.loads((root / "results.json").read_text())["summary"]
        assert (summary["victims"], summary["steps"]) == (4, 1)
        assert (root / "comparison.png").is_file()
    else:
        assert (root / "checkpoints" / "last.ckpt").is_file()


@pytest.mark.parametrize("name", OVERLAYS)
def test_overlays_run_a_step_on_top_of_quickstart(name: str, tmp_path: Path) -> None:
    overlay = read(name)
    steps = str(min(1, overlay.get("trainer", {}).get("max_steps", 1)))
    typed = ["--config", str(CONFIGS / "quickstart.yaml"), "--config", str(CONFIGS / name), *TOY, *ATTACK]
    typed += ["--trainer.max_steps", steps]
    typed += SINGLE if name == "attack/analytic.yaml" else []
    main(["fit", *typed, *ONE_PROCESS, "--trainer.default_root_dir", str(tmp_path)])
    assert (tmp_path / "comparison.png").is_file()
    record = json.loads((tmp_path / "results.json").read_text())
    privacy = overlay.get("model", {}).get("init_args", {}).get("client", {}).get("init_args", {}).get("privacy", {})
    assert {key: record["privacy"][key] for key in privacy} == privacy
    assert str(record["summary"]["steps"]) == steps


@pytest.mark.parametrize("name", [*BASES, *ELSEWHERE, *OVERLAYS])
def test_every_file_says_first_what_it_is(name: str) -> None:
    assert (CONFIGS / name).read_text().startswith("# Overlay: " if name in OVERLAYS else "# ")


@pytest.mark.parametrize("name", OVERLAYS)
def test_overlays_state_all_arguments_of_the_classes_they_set(name: str) -> None:
    # jsonargparse keeps an argument of the class before if the new one knows its name: only what is stated is certain.
    for part in classes(read(name)):
        module, _, attribute = part["class_path"].rpartition(".")
        known = set(inspect.signature(getattr(import_module(module), attribute)).parameters)
        if part == read(name).get("model"):
            known -= ROLES  # a whole attack is laid over another's client
        if issubclass(getattr(import_module(module), attribute), Optimizer):
            known = set(part.get("init_args", {})) & known  # torch's own defaults stay
        assert set(part.get("init_args", {})) == known, part["class_path"]


@pytest.mark.parametrize("name", [name for name in OVERLAYS if name.startswith("attack/")])
def test_an_attack_is_the_same_whatever_it_is_laid_over(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    attacks = []
    for base in ("quickstart.yaml", "imagenet.yaml"):
        typed = ["--config", str(CONFIGS / base), "--config", str(CONFIGS / name), "--print_config"]
        with pytest.raises(SystemExit):
            main(["fit", *typed])
        model = yaml.safe_load(capsys.readouterr().out)["model"]
        attacks.append({key: value for key, value in model["init_args"].items() if key not in ROLES})
    own = read(name)["model"]["init_args"]
    assert attacks[0] == attacks[1]
    for key in own.keys() - {"regularization", "optimizer"}:
        assert attacks[0][key] == own[key]
