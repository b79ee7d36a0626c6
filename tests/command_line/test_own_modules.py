# SPDX-License-Identifier: Apache-2.0
"""Class paths may name modules of the current folder."""

import sys
from pathlib import Path

import pytest

from lightning_recon.cli import find_modules_here


def test_a_class_path_finds_a_module_of_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    monkeypatch.setattr(sys, "path", list(before))
    for name in ("mine.py", "json.py"):
        (tmp_path / name).write_text("raise SystemExit('executed')\n")
    find_modules_here(["fit", "--model.client.network", "json.Net", "--data.root", "elsewhere.x", "0.5", "mine.py"])
    assert sys.path == before  # nothing of here was named, or what is installed has the name
    find_modules_here(["--model.structure=mine.Structure"])
    assert sys.path == [*before, str(tmp_path)]
