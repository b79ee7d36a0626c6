# SPDX-License-Identifier: Apache-2.0
"""Console output: names are literal, logs have no bars, and --quiet prints nothing."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import rich

from lightning_recon import console
from lightning_recon.callbacks.progress import step_line
from lightning_recon.cli import main

Fit = Callable[..., dict[str, Any]]


@pytest.mark.parametrize("name", ["x[/red]y", "[bold]", "a\x1b[31mb", "\\[x", "é…–"])
def test_names_are_printed_as_they_are(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    console.say(f"pictures in {name}")
    assert capsys.readouterr().out == f"pictures in {name}\n".replace("\x1b", "\\x1b")


def test_a_run_into_a_folder_with_markup_in_its_name(
    fit: Fit, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "x[/red]y"
    fit(root, "--results.show", "true", "--trainer.max_steps", "3")
    said = capsys.readouterr().out
    assert f"tensorboard --logdir {root}" in said
    # What pytest captures is no terminal: lines instead of a bar.
    assert re.search(r"^step 1 of 3, objective [\d.e+-]+, \d+ s left$", said, re.M)
    assert re.search(r"^step 3 of 3, .*, 0 s left$", said, re.M)
    assert not re.search(r"[\x00-\x09\x0b-\x1f]", said)


def test_quiet_says_nothing_of_a_good_run(fit: Fit, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit(tmp_path, "--results.show", "true", "--quiet")
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "")
    main(["version"])
    assert not rich.get_console().quiet  # the next command is not quiet for that


def test_lines_of_a_log() -> None:
    assert step_line(40, 300, 0.0123, 0.05) == "step 40 of 300, objective 0.0123, 13 s left"
    assert step_line(40, -1, None, 0.05) == "step 40"
