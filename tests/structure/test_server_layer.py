# SPDX-License-Identifier: Apache-2.0
"""A structure may bring a layer of its own, and a payload from disk brings no code."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from lightning_recon.cli import main
from lightning_recon.errors import UserError
from lightning_recon.exchange import ServerPayload
from lightning_recon.structure import build_layer
from lightning_recon.structure.layer import structure_bytes

from ..conftest import TINY

HERE = Path(__file__).parent


def test_a_structure_by_class_path_brings_its_own_layer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(HERE))
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(TINY))
    flags = ["--model.structure", "thumbnails.Thumbnails", "--data.batch_size", "1", "--trainer.max_steps", "0"]
    flags += ["--model.client.privacy.noise_multiplier", "0.001", "--comparison.structure", "null"]
    main(["fit", "--config", str(config), *flags, "--trainer.default_root_dir", str(tmp_path / "run")])
    record = json.loads((tmp_path / "run" / "results.json").read_text())
    assert record["attack"] == "thumbnails"
    assert record["summary"]["structure_bytes"] == 4 * (3 * 6 * 6 + 1)
    assert record["summary"]["psnr_mean"] > record["baselines"]["mean_image_psnr"] + 3
    main(["replay", str(tmp_path / "run"), "--output", str(tmp_path / "again"), "--trust_config", "true"])
    first, again = ((tmp_path / run / "reconstructions.safetensors").read_bytes() for run in ("run", "again"))
    assert first == again


def test_a_payload_imports_nothing(tmp_path: Path) -> None:
    (tmp_path / "trap.py").write_text("open('executed', 'w')\nclass Layer: path = None\n")
    code = (
        "from lightning_recon.exchange import ServerPayload\n"
        "from lightning_recon.structure import build_layer\n"
        "try:\n    build_layer(ServerPayload({'layer': 'trap.Layer'}))\nexcept Exception as error:\n    print(error)\n"
    )
    found = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "ships the layer 'trap.Layer', which is not defined here" in found.stdout
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("path", ["torch.nn.Linear", "lightning_recon.structure.server_layer.ServerLayer", 3, True])
def test_only_layers_of_servers_are_built(path: str | int) -> None:
    with pytest.raises(UserError, match="is not defined here"):
        build_layer(ServerPayload({"layer": path}, {"code": torch.zeros(2)}))


def test_an_empty_payload_adds_no_bytes() -> None:
    assert structure_bytes(ServerPayload()) == 0
