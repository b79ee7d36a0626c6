# SPDX-License-Identifier: Apache-2.0
"""`scripts/gpu_check.py` works where there is no GPU, so that it works on the first machine that has one."""

import csv
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "scripts" / "gpu_check.py"


@pytest.mark.slow
@pytest.mark.timeout(900)  # a minute on an idle core
def test_every_check_leaves_a_row(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--device", "cpu", "--results", str(tmp_path)]
    subprocess.run(command, check=True, cwd=tmp_path)
    with (tmp_path / "gpu.csv").open(newline="") as file:
        assert next(file).startswith("# python scripts/gpu_check.py --device cpu; lightning_recon ")
        rows = list(csv.DictReader(file))
    checks = list(dict.fromkeys(row["check"] for row in rows))
    assert checks == ["tests", "peak memory", "equality", "images", "speed", "decoding"]
    assert {row["device"] for row in rows} == {"CPU"}
    assert not [row for row in rows if row["passed"] == "False"]
    assert sum(row["passed"] == "True" for row in rows) >= 7
    (skipped,) = (row for row in rows if row["quantity"] == "skipped")
    assert torch.cuda.is_available() or float(skipped["value"]) > 0


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="has a CUDA device")
def test_without_a_gpu_one_line_says_so() -> None:
    found = subprocess.run([sys.executable, str(SCRIPT)], capture_output=True, text=True, check=False)
    assert found.returncode == 1
    assert "give --device cpu" in found.stderr
    assert "Traceback" not in found.stderr
