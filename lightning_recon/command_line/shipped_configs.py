# SPDX-License-Identifier: Apache-2.0
"""The configs that ship with the package, and the `--config` options of a command line."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from lightning_recon.errors import UserError
from lightning_recon.suggestions import closest

# The configs are inside an installed package, and at the top of a source checkout.
PACKAGE = Path(__file__).parents[1]
CONFIGS = [PACKAGE / "configs", PACKAGE.parent / "configs"]

_FLAGS = ("--config", "-c")


def shipped() -> dict[str, Path]:
    """The shipped configs by name (`quickstart.yaml`, `attack/paper.yaml`), those at the top first."""
    folder = next(folder for folder in CONFIGS if folder.is_dir())
    paths = sorted(folder.rglob("*.yaml"), key=lambda path: (path.parent != folder, path))
    return {path.relative_to(folder).as_posix(): path for path in paths}


def listing() -> str:
    """The names and first comments of the shipped configs, as a list for the terminal."""
    names = shipped()
    width = max(map(len, names))
    lines = [f"{name:{width}}  {_first_comment(path)}" for name, path in names.items()]
    return "\n".join([*lines, "", "Use one by name: recon fit --config NAME; print one: recon configs NAME"])


def printed(name: str) -> str:
    """The text of a shipped config.

    Args:
        name: Its name in the list, with or without `.yaml`.

    Raises:
        UserError: No shipped config has that name.
    """
    names = shipped()
    wanted = name.removeprefix("configs/")
    path = names.get(wanted) or names.get(f"{wanted}.yaml")
    if path is None:
        near = closest(wanted, names)
        raise UserError(f"no config {name!r} ships: " + (f"did you mean {near}?" if near else "see recon configs"))
    return path.read_text(encoding="utf-8")


def with_shipped_configs(args: Sequence[str]) -> list[str]:
    """Replace names of shipped configs by their paths; a file of the same name in the current folder has precedence.

    Args:
        args: Command line.

    Returns:
        The command line in which `--config NAME`, `-c NAME` and `--config=NAME` name files.
    """
    found: list[str] = []
    for place, argument in enumerate(args):
        flag, separator, name = argument.partition("=") if argument.startswith(("--config=", "-c=")) else ("", "", "")
        if not separator and place and args[place - 1] in _FLAGS:
            name = argument
        name = name.removeprefix("configs/") if name and not Path(name).exists() else ""
        inside = [folder / name for folder in CONFIGS if name and (folder / name).is_file()]
        found.append(f"{flag}{separator}{inside[0]}" if inside else argument)
    return found


def configs_first(args: Sequence[str]) -> list[str]:
    """Move the configs before the other arguments of a subcommand, which override them wherever they are typed.

    Args:
        args: Command line.
    """
    configs: list[str] = []
    others: list[str] = []
    for place, argument in enumerate(args):
        follows = place > 0 and args[place - 1] in _FLAGS
        is_config = argument in _FLAGS or argument.startswith(("--config=", "-c="))
        (configs if follows or is_config else others).append(argument)
    return [*others[:1], *configs, *others[1:]]


def configs_in(args: Sequence[str]) -> list[str]:
    """The values of `--config` on a command line, in their order.

    Args:
        args: Command line.
    """
    found = [value for flag, value in pairwise(args) if flag in _FLAGS]
    return found + [arg.partition("=")[2] for arg in args if arg.startswith(("--config=", "-c="))]


def _first_comment(path: Path) -> str:
    """The first sentence of a config, which may take several lines."""
    words: list[str] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("# ") or line.startswith("#   ") or (words and words[-1].endswith((".", "?"))):
            break
        words.append(line.removeprefix("# ").strip())
    return " ".join(words)
