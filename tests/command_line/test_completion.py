# SPDX-License-Identifier: Apache-2.0
"""Completion scripts of the shells."""

import shutil
import subprocess
from pathlib import Path

import pytest

from lightning_recon.command_line.commands import COMMANDS

from .typed import answer


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion(shell: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("shtab")
    text = answer(capsys, "completion", shell)
    if shutil.which(shell):
        (tmp_path / "script").write_text(text)
        subprocess.run([shell, "-n", tmp_path / "script"], check=True)
    assert all(f"{word}" in text for word in (*COMMANDS, "--model.client.privacy.noise_multiplier", "RobbingTheFed"))


def complete(script: str, typed: list[str]) -> list[str]:
    words = " ".join(f"'{word}'" for word in typed)
    ask = f"{script}\nCOMP_WORDS=({words}); COMP_CWORD={len(typed) - 1}\n"
    ask += '"$(complete -p recon | sed "s/.*-F //; s/ .*//")" recon "${COMP_WORDS[COMP_CWORD]}"\n'
    ask += 'printf "%s\\n" "${COMPREPLY[@]}"'
    # By standard input: the script is longer than an argument may be.
    return subprocess.run(["bash", "-s"], input=ask, capture_output=True, text=True, check=False).stdout.split()


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash here")
def test_bash_completes_commands_options_and_values(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("shtab")
    script = answer(capsys, "completion", "bash")
    assert complete(script, ["recon", "rep"]) == ["replay", "report"]
    assert complete(script, ["recon", "fit", "--model.client.privacy.gran"]) == ["--model.client.privacy.granularity"]
    assert complete(script, ["recon", "fit", "--model.structure", "Dig"]) == ["Digital"]
    assert complete(script, ["recon", "fit", "--data.source", "ci"]) == ["cifar100"]
    assert "quickstart.yaml" in complete(script, ["recon", "fit", "--config", "quick"])
