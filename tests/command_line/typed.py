# SPDX-License-Identifier: Apache-2.0
"""Run a command line and return its output, or its one-line error message."""

import pytest

from lightning_recon.cli import main


def answer(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    main(arguments)
    return capsys.readouterr().out


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("recon: error: ")
    return line.removeprefix("recon: error: ")
