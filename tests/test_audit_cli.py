# SPDX-License-Identifier: Apache-2.0
"""An audit from end to end, with real cells; and the shipped config."""

import csv
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml

from lightning_recon.audit.commands import check_plan, read_configs
from lightning_recon.audit.config import AuditedAttack, Change, Reference, Sweep
from lightning_recon.audit.plan import plan_of
from lightning_recon.cli import main
from lightning_recon.command_line.lightning_cli import resolved

SHIPPED = Path(__file__).parent.parent / "configs" / "audit.yaml"


@pytest.fixture(scope="module")
def command(tiny: str, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """An audit of two real cells, but for its output."""
    audit = {"attacks": {"<ours>": {}}, "noise_multiplier": [0.01, 3.0], "batch_size": [4], "jobs": 2}
    config = tmp_path_factory.mktemp("config") / "audit.yaml"
    config.write_text(yaml.safe_dump({"audit": audit}))
    return ["audit", "--config", tiny, "--config", str(config), "--trainer.max_steps", "1", "--output"]


@pytest.fixture(scope="module")
def output(command: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The finished audit."""
    folder = tmp_path_factory.mktemp("audit")
    main([*command, str(folder)])
    return folder


@pytest.mark.slow
def test_two_real_cells(output: Path, tmp_path: Path, fit: Callable[..., dict[str, Any]]) -> None:
    rows = list(csv.DictReader((output / "results.csv").read_text(encoding="utf-8").splitlines()))
    assert [(row["attack"], row["noise_multiplier"], row["status"]) for row in rows] == [
        ("<ours>", "0.01", "finished"),
        ("<ours>", "3", "finished"),
    ]
    assert all("constant_inputs" in row["alarms"] for row in rows)  # the pilot
    # A cell is the same as `recon fit`: same pictures, same noise.
    alone = fit(tmp_path / "alone", "--trainer.max_steps", "1")
    cell = json.loads((output / "cells" / rows[0]["cell"] / "results.json").read_text())
    assert cell["victims"] == alone["victims"]
    assert cell["privacy"] == alone["privacy"]
    # Every run keeps its originals, with which the gain over a mean image gets its interval.
    index = json.loads((tmp_path / "alone" / "truth" / "index.json").read_text())["victims"]
    mean = sum(entry["mean_image_psnr"] for entry in index) / len(index)
    assert mean == pytest.approx(alone["baselines"]["mean_image_psnr"])
    assert float(rows[0]["gain_mean"]) == pytest.approx(alone["summary"]["psnr_mean"] - mean, rel=1e-4)
    assert rows[0]["gain_low"]
    page = (output / "report.html").read_text(encoding="utf-8")
    assert "&lt;ours&gt;" in page
    assert "<ours>" not in page
    # Four victims: photographs, what the client used, two cells; and the summary's pairs.
    assert page.count("data:image/png;base64") == 4 * (4 + 2)
    assert str(tmp_path) not in page


@pytest.mark.slow
def test_a_whole_training(tiny: str, tmp_path: Path) -> None:
    training = {"images": 6, "epochs": 3}
    audit = {"attacks": {"feedback": {"configs": ["attack/feedback.yaml"]}}, "noise_multiplier": [0.003]}
    config = tmp_path / "audit.yaml"
    config.write_text(yaml.safe_dump({"audit": audit | {"training": training, "batch_size": [3]}}))
    options = ["--data.clients", "1", "--trainer.max_steps", "0", "--audit.granularity", "[sample]"]
    main(["audit", "--config", tiny, "--config", str(config), *options, "--output", str(tmp_path / "audit")])
    (setting,) = json.loads((tmp_path / "audit" / "report.json").read_text())["settings"]
    assert setting["sampling"] == "from 6 images, shuffled in every epoch"
    (one,) = setting["training"]
    assert (one["images"], one["found"]) == (6, 1.0)
    assert list(one["by_round"].values())[-1] == 1.0


def measured(table: Path) -> list[dict[str, str]]:
    """A table without what a clock told."""
    rows = csv.DictReader(table.read_text(encoding="utf-8").splitlines())
    return [{name: value for name, value in row.items() if "seconds" not in name} for row in rows]


@pytest.mark.slow
def test_an_audit_that_was_killed_at_random_comes_to_the_same(command: list[str], output: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    typed = [sys.executable, "-m", "lightning_recon", *command, str(again)]
    wait = random.SystemRandom().uniform(1, 12)
    process = subprocess.Popen(typed, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    with suppress(subprocess.TimeoutExpired):
        process.wait(wait)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # the audit and its cells, as when a machine goes down
    process.wait()
    main([*command, str(again)])
    assert measured(again / "results.csv") == measured(output / "results.csv"), f"killed after {wait} s"


@pytest.mark.filterwarnings("ignore:LightningCLI's args parameter is intended")
def test_the_shipped_audit_is_sound() -> None:
    assert SHIPPED.read_text().startswith("# ")
    section, bases = read_configs([str(SHIPPED)])
    attacks = {name: AuditedAttack(**attack) for name, attack in section.pop("attacks").items()}
    changes = {name: Change(**change) for name, change in section.pop("interventions").items()}
    plan = plan_of(
        Sweep(attacks, interventions=changes, reference=Reference(**section.pop("reference")), **section),
        bases,
        Path("configs"),
    )
    structures = []

    def with_base(arguments: Any) -> dict[str, Any]:  # noqa: ANN401 - a command line
        config = resolved(["--config", str(SHIPPED.with_name("quickstart.yaml")), *arguments[2:]])
        structures.append(config["model"]["init_args"]["structure"]["class_path"].rpartition(".")[2])
        return config

    check_plan(plan, with_base)
    assert structures == ["Digital", "WaterFilling", "SeedPaper", "RobbingTheFed", "Feedback", *["Digital"] * 4]
    assert len(plan.sweep) == 5 * 3 + 5 * 4 + 3
    # One of the changes is a cell of the sweep, and so is what all are compared with.
    assert {cell.name for cell in plan.reference} <= {cell.name for cell in plan.sweep}
    assert len(plan.cells) == len(plan.sweep) + 4 * 3
