# SPDX-License-Identifier: Apache-2.0
"""Help, the list of commands and the version, which import no PyTorch."""

import re
import subprocess
import sys

import pytest

from lightning_recon import __version__
from lightning_recon.cli import main
from lightning_recon.command_line.commands import COMMANDS, help_of
from lightning_recon.command_line.lightning_cli import roots

from .typed import answer


def test_asking_about_the_program_imports_no_torch() -> None:
    asked = (
        "[[], ['--help'], ['fit', '--help'], ['help', 'audit'], ['configs'], ['configs', 'quickstart'], ['version']]"
    )
    code = f"from lightning_recon.cli import main\nimport sys\nfor args in {asked}: main(args)\n"
    code += "assert not {'torch', 'lightning', 'jsonargparse', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"], ["help"]])
def test_every_command_is_listed_with_what_it_does(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    said = answer(capsys, *arguments)
    assert all(
        re.search(rf"^  {name} +{re.escape(command.summary)}$", said, re.M) for name, command in COMMANDS.items()
    )
    assert "Lightning" not in said


def test_commands_teach_by_examples_of_a_few_lines(capsys: pytest.CaptureFixture[str]) -> None:
    for name in COMMANDS:
        said = answer(capsys, name, "--help")
        assert said == help_of(name) == answer(capsys, "help", name)
        assert len(said.splitlines()) < 65
        assert max(map(len, said.splitlines())) <= 120


def test_the_options_that_help_teaches_exist() -> None:
    """An option that was renamed would stay in the help."""
    from lightning_recon.command_line.completion import flattened

    known = dict(flattened(roots()))
    taught = {
        name
        for command in ("fit", "validate", "test", "predict")
        for name in re.findall(r"--([\w.]+)", help_of(command))
    }
    assert taught - {"model.help", "OPTION"} <= known.keys() | roots().keys()
    assert len(taught) > 20


def test_the_whole_reference_begins_with_our_own(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--help_all"])
    assert stop.value.code == 0
    said = capsys.readouterr().out
    assert said.startswith("usage: recon fit [--config FILE]")
    assert said.index("--results.inspect") < said.index("--trainer.max_steps")
    assert "<class" not in said.partition("--trainer.accelerator")[0].replace("type: <class", "")


@pytest.mark.parametrize("word", ["version", "--version"])
def test_the_version_has_the_programs_name(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert answer(capsys, word) == f"recon {__version__}\n"
