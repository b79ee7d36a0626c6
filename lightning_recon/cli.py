# SPDX-License-Identifier: Apache-2.0
"""The `recon` command, which imports only what the given command needs.

PyTorch and Lightning take seconds to import: help, lists and versions do without them, and a run announces that it is
loading.
"""

import importlib.util
import os
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lightning_recon import __version__, console
from lightning_recon.command_line.cli_arguments import user_error
from lightning_recon.command_line.commands import COMMANDS, RUNS, help_of, overview, unknown_command
from lightning_recon.command_line.config_files import read_config
from lightning_recon.command_line.library_output import quieten
from lightning_recon.command_line.shipped_configs import (
    configs_first,
    configs_in,
    listing,
    printed,
    with_shipped_configs,
)
from lightning_recon.deprecated import classes_given, modernized_arguments
from lightning_recon.errors import UserError
from lightning_recon.interrupts import stoppable

_CLASS_PATH = re.compile(r"[A-Za-z_]\w*([.:][A-Za-z_]\w*)+")


@stoppable()
def main(args: Sequence[str] | None = None) -> None:
    """Entry point of the `recon` command.

    Args:
        args: Command line without the name of the program; None for the command line of the process.
    """
    typed = list(sys.argv[1:] if args is None else args)
    console.configure(quiet="--quiet" in typed)
    given = configs_first([word for word in typed if word != "--quiet"])
    try:
        if not answered(given):
            run(with_shipped_configs(given), typed)
    except Exception as error:
        mistake = user_error(error)
        if mistake is not None:
            print(f"recon: error: {console.plain(mistake.for_command_line)}", file=sys.stderr)
        if mistake is None or os.environ.get("LIGHTNING_RECON_DEBUG"):
            raise
        sys.exit(2)


def answered(given: Sequence[str]) -> bool:
    """Handle commands that only print information about the program.

    Args:
        given: Command line.

    Returns:
        Whether the command line was such a command.

    Raises:
        UserError: The command or the config does not exist.
    """
    command, rest = (given[0], list(given[1:])) if given else ("--help", [])
    if command in ("help", "--help", "-h"):
        if rest and rest[0] not in COMMANDS:
            raise unknown_command(rest[0])
        sys.stdout.write(help_of(rest[0]) if rest else overview())
    elif command == "--version" or (command == "version" and not rest):
        print(f"recon {__version__}")
    elif command not in COMMANDS:
        raise unknown_command(command)
    elif {"-h", "--help"} & set(rest):
        sys.stdout.write(help_of(command))
    elif command == "version":
        raise UserError(f"recon version takes no arguments, and {rest[0]} was given: leave it out")
    elif command == "configs":
        print(printed(rest[0]) if rest else listing(), end="" if rest else "\n")
    else:
        return False
    return True


def run(given: list[str], typed: Sequence[str]) -> None:
    """Run a command that needs PyTorch and Lightning.

    Args:
        given: Command line in which names of shipped configs are replaced by paths.
        typed: The command line as it was typed, for the record.

    Raises:
        UserError: For every mistake of the user.
    """
    classes = classes_given(given)
    contents = [read_config(name, classes) for name in configs_in(given) if not name.lstrip().startswith("{")]
    given = modernized_arguments(given, classes)
    command, rest = given[0], given[1:]
    find_modules_here([*rest, *_words(contents)])
    console.sign_of_life(f"recon {command}: loading PyTorch and Lightning, a few seconds …")
    from lightning_recon.command_line import lightning_cli  # takes seconds

    quieten()
    if command in RUNS:
        words = ["--help" if word in ("--help_all", "--help-all") else word for word in given]
        lightning_cli.run_cli(words, command=typed)
    elif command == "replay":
        from lightning_recon.command_line.replay import replay_command

        replay_command(rest)
    elif command == "verify":
        from lightning_recon.verification.command import verify_command

        if not verify_command(rest):
            sys.exit(1)
    elif command == "recommend":
        from lightning_recon.command_line.recommend import recommend

        recommend(rest)
    elif command == "capture":
        from lightning_recon.command_line.capture import capture_command

        capture_command(rest)
    elif command == "completion":
        from lightning_recon.command_line.completion import script

        print(script(rest))
    else:
        from lightning_recon.audit import commands as audit

        if command == "report":
            audit.report(rest)
        elif not audit.audit(rest, lightning_cli.resolved):
            sys.exit(1)


def find_modules_here(words: Sequence[str]) -> None:
    """Make modules of the current folder importable, with lower precedence than installed ones.

    This happens only if a given class path names a module that exists in the current folder and nowhere else. A file
    that happens to be in the current folder therefore never replaces a library, and is not executed unasked.

    Args:
        words: The words of the command line and all texts of the configs.
    """
    for word in words:
        name = word.rpartition("=")[2]
        if not _CLASS_PATH.fullmatch(name) or Path(name).exists():
            continue
        top = re.split("[.:]", name)[0]
        here = Path(f"{top}.py").is_file() or Path(top).is_dir()
        if here and importlib.util.find_spec(top) is None:
            sys.path.append(os.getcwd())
            importlib.invalidate_caches()
            return


def _words(content: Any) -> Iterator[str]:  # noqa: ANN401 - whatever YAML holds
    """All texts in a config."""
    if isinstance(content, str):
        yield content
    elif isinstance(content, dict | list):
        for one in content.values() if isinstance(content, dict) else content:
            yield from _words(one)
