# SPDX-License-Identifier: Apache-2.0
"""Shell completion: a static script of all commands, options and values, so that completing imports nothing."""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lightning_recon.attack import GradientInversion, ReconstructionAttack
from lightning_recon.audit.commands import audit_options
from lightning_recon.audit.config import ReportOptions
from lightning_recon.command_line.capture import capture_options
from lightning_recon.command_line.commands import COMMANDS, RUNS
from lightning_recon.command_line.lightning_cli import roots
from lightning_recon.command_line.options import choices_of, group_of, nearby, options_of
from lightning_recon.command_line.recommend import recommend_options
from lightning_recon.command_line.shipped_configs import shipped
from lightning_recon.data import CapturedPictures, ClientDataModule
from lightning_recon.errors import UserError
from lightning_recon.verification.command import verify_options

SHELLS = ("bash", "zsh", "tcsh")

# Classes whose options are completed before a class is given; user classes are not known here.
_CHOSEN: dict[str, dict[str, Any]] = {
    "model": {"ReconstructionAttack": ReconstructionAttack, "GradientInversion": GradientInversion},
    "data": {"ClientDataModule": ClientDataModule, "CapturedPictures": CapturedPictures},
}

_FOLDERS = ("default_root_dir", "root", "output", "mask_cache")


def script(args: Sequence[str]) -> str:
    """Generate the completion script of a shell.

    Args:
        args: Command line of `recon completion` without the command: the name of the shell.

    Raises:
        UserError: The shell is none of `SHELLS`, or shtab is not installed.
    """
    if len(args) != 1 or args[0] not in SHELLS:
        raise UserError(f"for which shell? {COMMANDS['completion'].usage}")
    try:
        import shtab  # an extra
    except ImportError:
        raise UserError("shtab is not installed: pip install 'lightning_recon[completion]'") from None
    names = " ".join(shipped())
    bash = f'_recon_config() {{ compgen -W "{names}" -- "$1"; compgen -f -- "$1"; }}'
    parser = _parser(shtab.FILE, shtab.DIRECTORY)
    return shtab.complete(parser, shell=args[0], preamble=bash if args[0] == "bash" else "")


def _parser(file: Mapping[str, Any], folder: Mapping[str, Any]) -> argparse.ArgumentParser:
    """Build a parser that only lists the options, for shtab.

    Args:
        file: Completion of file names, as shtab describes it.
        folder: Completion of folder names, likewise.
    """
    parser = argparse.ArgumentParser("recon", add_help=False)
    parser.add_argument("--help", action="store_true")
    parser.add_argument("--version", action="store_true")
    commands = parser.add_subparsers()
    words = {"configs": list(shipped()), "completion": list(SHELLS)}
    for name, command in COMMANDS.items():
        one = commands.add_parser(name, help=command.summary, add_help=False)
        options = {"help": bool, "quiet": bool}
        if name in words:
            one.add_argument("word", choices=words[name])
        if name in ("replay", "report"):
            one.add_argument("run").complete = folder  # type: ignore[attr-defined]
            options |= {"output": str} | (options_of(ReportOptions) if name == "report" else {})
        if name == "recommend":
            options |= recommend_options()
        if name == "capture":
            options |= capture_options()
        if name in RUNS:
            options |= roots()
        if name == "verify":
            options |= verify_options()
        if name == "audit":
            options |= roots() | audit_options() | {part: roots()[part] for part in ("model", "data", "trainer")}
        for option, announced in dict(flattened(options)).items():
            last = option.rpartition(".")[2]
            if last in ("help", "help_all", "quiet", "overwrite"):
                one.add_argument(f"--{option}", action="store_true")
                continue
            added = one.add_argument(f"--{option}", choices=words_of(option, announced) or None)
            if option == "config":
                added.complete = dict(file) | {"bash": "_recon_config"}  # type: ignore[attr-defined]
            elif not added.choices:
                added.complete = folder if last in _FOLDERS else file  # type: ignore[attr-defined]
    return parser


def flattened(options: Mapping[str, Any], prefix: str = "", depth: int = 4) -> Iterator[tuple[str, Any]]:
    """List options with dotted names and their types, including those of the classes that an option may name.

    Args:
        options: Options by name; groups are mappings.
        prefix: Prefix of every name.
        depth: Number of nested classes to descend into.
    """
    for name, announced in options.items():
        full = f"{prefix}{name}"
        if not isinstance(announced, Mapping):
            yield full, announced
        inside = group_of(announced)
        below = [inside] if inside is not None else list(_classes(full, announced).values())
        for one in below if depth else []:
            yield from flattened(options_of(one), f"{full}.", depth - 1)


def words_of(option: str, announced: Any) -> list[str]:  # noqa: ANN401 - any annotation
    """The values of an option, if they can be enumerated.

    Args:
        option: Dotted name of the option.
        announced: Its type.
    """
    return choices_of(announced) or sorted(_classes(option, announced))


def _classes(option: str, announced: Any) -> dict[str, Any]:  # noqa: ANN401 - any annotation
    return _CHOSEN.get(option) or dict(nearby(announced))
