# SPDX-License-Identifier: Apache-2.0
"""A run folder of anyone's can be replayed: what its config names is not run, and nothing is written elsewhere."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from lightning_recon.cli import main
from lightning_recon.command_line.replay_config import is_allowed, replay_config
from lightning_recon.errors import UserError
from lightning_recon.files.digests import DIGEST
from lightning_recon.files.run_folder import LOCK
from lightning_recon.files.serialization import write_json

Config = dict[str, Any]


@pytest.fixture
def foreign(finished: Path, tmp_path: Path) -> Callable[[Callable[[Config], object]], Path]:
    def make(change: Callable[[Config], object]) -> Path:
        """A finished run whose config says something else."""
        shutil.copytree(finished, tmp_path / "run")
        path = tmp_path / "run" / "config.yaml"
        config = yaml.safe_load(path.read_text())
        change(config)
        path.write_text(yaml.safe_dump(config))
        return tmp_path / "run"

    return make


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c["model"]["init_args"].update(optimizer={"class_path": "os.system", "init_args": {"command": "x"}}),
        lambda c: c["model"]["init_args"].update(optimizer="os.getcwd"),
        lambda c: c["model"]["init_args"].update(optimizer="lightning_recon.files.atomic.os.system"),
        lambda c: c["model"]["init_args"].update(denoiser={"class_path": "antigravity.x"}),
        lambda c: c["model"]["init_args"].update(structure="this.x"),
        lambda c: c["model"]["init_args"]["structure"].update(class_path="subprocess.Popen"),
        lambda c: c["model"].update(class_path="os.system"),
        lambda c: c["results"].update(show={"class_path": "os.system"}),
    ],
)
def test_foreign_code_is_refused(foreign: Callable[..., Path], change: Callable[[Config], object]) -> None:
    run = foreign(change)
    with pytest.raises(UserError, match=r"config\.yaml names .*--trust_config true"):
        replay_config(run, Path("out"))
    assert replay_config(run, Path("out"), trust=True)["model"]


def test_a_network_of_anyones_is_refused(foreign: Callable[..., Path]) -> None:
    run = foreign(lambda c: c["model"]["init_args"].update(network="antigravity.x"))
    with pytest.raises(UserError, match="antigravity"):
        replay_config(run, Path("out"))


@pytest.mark.parametrize("path", ["torch.optim.SGD", "torch.optim.LBFGS", "lightning_recon.structure.WaterFilling"])
def test_own_classes_and_torchs_optimizers_are_allowed(path: str) -> None:
    assert is_allowed(path)


@pytest.mark.parametrize(
    "path",
    ["torch.optim.os", "torch.optim.lr_scheduler.sys", "lightning_recon.cli.main", "torch.load", "lightning_recon"],
)
def test_nothing_else_is(path: str) -> None:
    assert not is_allowed(path)


def test_what_a_trainer_could_run_is_left_out(
    foreign: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def change(config: Config) -> None:
        config["trainer"]["callbacks"] = [
            {"class_path": "subprocess.Popen"},
            {"class_path": "lightning_recon.callbacks.ImageGrid"},
        ]
        config["trainer"]["logger"] = {
            "class_path": "lightning.pytorch.loggers.CSVLogger",
            "init_args": {"save_dir": "x"},
        }
        config["trainer"]["default_root_dir"] = str(tmp_path / "elsewhere")

    run = foreign(change)
    trainer = replay_config(run, tmp_path / "out")["trainer"]
    assert [one["class_path"] for one in trainer["callbacks"]] == ["lightning_recon.callbacks.ImageGrid"]
    assert "trainer.callbacks, logger left out" in caplog.text
    monkeypatch.chdir(tmp_path)
    main(["replay", str(run), "--output", str(tmp_path / "out")])
    assert {path.name for path in tmp_path.iterdir()} == {"run", "out"}
    name = "reconstructions.safetensors"
    assert (tmp_path / "out" / name).read_bytes() == (run / name).read_bytes()


def test_what_the_task_announces_must_be_there(
    foreign: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = foreign(lambda c: None)
    path = run / "exchange" / "task.json"
    text = path.read_text()
    for field, value, says in (
        ("rounds", 10**9, "less than or equal"),
        ("rounds", 50, "lacks"),
        ("clients", 5000, "lacks"),
    ):
        write_json(path, {name: item for name, item in json.loads(text).items() if name != DIGEST} | {field: value})
        with pytest.raises(SystemExit) as stop:
            main(["replay", str(run), "--output", str(tmp_path / "out")])
        assert stop.value.code == 2
        assert says in capsys.readouterr().err
        assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file() and path.name != LOCK]
