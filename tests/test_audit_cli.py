# SPDX-License-Identifier: Apache-2.0
"""An audit from end to end, with real cells; and the shipped config."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from lightning_recon.audit.command import check_cells, read_configs
from lightning_recon.audit.plan import Attack, Sweep, cells_of
from lightning_recon.cli import main, resolved

SHIPPED = Path(__file__).parent.parent / "configs" / "audit.yaml"


def test_two_real_cells(tiny: str, tmp_path: Path, fit: Callable[..., dict[str, Any]]) -> None:
    audit = {"attacks": {"<ours>": {}}, "noise_multiplier": [0.01, 3.0], "batch_size": [4], "jobs": 2}
    (tmp_path / "audit.yaml").write_text(yaml.safe_dump({"audit": audit}))
    output = tmp_path / "out"
    main(["audit", "--config", tiny, "--config", str(tmp_path / "audit.yaml"), "--output", str(output),
          "--trainer.max_steps", "1"])  # fmt: skip
    rows = list(csv.DictReader((output / "results.csv").read_text(encoding="utf-8").splitlines()))
    assert [(row["attack"], row["noise_multiplier"], row["status"]) for row in rows] == [
        ("<ours>", "0.01", "finished"),
        ("<ours>", "3", "finished"),
    ]
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
    assert page.count("data:image/png;base64") == 4 * 4  # photographs, what the client used, two cells
    assert str(tmp_path) not in page


@pytest.mark.filterwarnings("ignore:LightningCLI's args parameter is intended")
def test_the_shipped_audit_is_sound() -> None:
    assert SHIPPED.read_text().startswith("# ")
    section, bases = read_configs([str(SHIPPED)])
    attacks = {name: Attack(**attack) for name, attack in section.pop("attacks").items()}
    sweep = Sweep(attacks, **section)
    cells = cells_of(sweep, bases, Path("configs"))
    structures = []

    def with_base(arguments: Any) -> dict[str, Any]:  # noqa: ANN401 - a command line
        config = resolved(["--config", str(SHIPPED.with_name("quickstart.yaml")), *arguments[2:]])
        structures.append(config["model"]["init_args"]["structure"]["class_path"].rpartition(".")[2])
        return config

    check_cells(cells, with_base)
    assert structures == ["WaterFilling", "SeedPaper", "RobbingTheFed", "Feedback"]
    assert len(cells) == 6 * 3 + 6 * 4
