# SPDX-License-Identifier: Apache-2.0
"""Config files: those that ship are found by name, and every one is read with mistakes named by file and line."""

import json
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import yaml

from lightning_recon.deprecated import Place, classes_given, classes_in, modernized, modernized_arguments
from lightning_recon.errors import UserError
from lightning_recon.files.yaml_size import YAML_NODES, expanded
from lightning_recon.suggestions import closest

# An installed package carries the configs; a source checkout has them at its top.
PACKAGE = Path(__file__).parents[1]
CONFIGS = [PACKAGE / "configs", PACKAGE.parent / "configs"]

_FLAGS = ("--config", "-c")


def shipped() -> dict[str, Path]:
    """The configs that ship, by name (`quickstart.yaml`, `attack/paper.yaml`), those of no folder first."""
    folder = next(folder for folder in CONFIGS if folder.is_dir())
    paths = sorted(folder.rglob("*.yaml"), key=lambda path: (path.parent != folder, path))
    return {path.relative_to(folder).as_posix(): path for path in paths}


def listing() -> str:
    """Name and first comment of every shipped config."""
    names = shipped()
    width = max(map(len, names))
    lines = [f"{name:{width}}  {_first_comment(path)}" for name, path in names.items()]
    return "\n".join([*lines, "", "Use one by name: recon fit --config NAME; print one: recon configs NAME"])


def printed(name: str) -> str:
    """The text of a shipped config.

    Args:
        name: As in the list, with or without `.yaml`.

    Raises:
        UserError: There is none of that name.
    """
    names = shipped()
    wanted = name.removeprefix("configs/")
    path = names.get(wanted) or names.get(f"{wanted}.yaml")
    if path is None:
        near = closest(wanted, names)
        raise UserError(f"no config {name!r} ships: " + (f"did you mean {near}?" if near else "see recon configs"))
    return path.read_text(encoding="utf-8")


def with_shipped_configs(args: Sequence[str]) -> list[str]:
    """Replace names of configs that are no files here by those that ship with the package.

    Args:
        args: Command line.

    Returns:
        The same with `--config imagenet.yaml`, `-c` or `--config=` pointing to the shipped file where it exists.
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
    """Move the configs of a subcommand, in their order, before its other arguments: those win wherever they stand.

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


def read_config(name: str, classes: dict[Place, str] | None = None) -> dict[str, Any]:
    """Read a config file.

    Args:
        name: Its path.
        classes: Class paths that the configs before it set, by their place; those of this config are added. They tell
            whose options an overlay sets that does not name the class, see `deprecated.modernized`.

    Returns:
        Its settings, at least one, with current names for deprecated ones.

    Raises:
        UserError: There is no such file, or it is no YAML mapping in UTF-8; file and line are named.
    """
    text = _text(name)
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        if expanded(node) > YAML_NODES:
            raise UserError(f"config {name} stands for more than {YAML_NODES} values: is it a config of recon?")
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark is not None else text.count("\n", 0, getattr(error, "position", 0)) + 1
        tab = mark is not None and mark.buffer is not None and mark.buffer[mark.pointer : mark.pointer + 1] == "\t"
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or str(error)
        reason = "indent with spaces, not tabs" if tab else f"{' '.join(str(problem).split())}: correct the YAML there"
        raise UserError(f"config {name}, line {line}: {reason}") from None
    except RecursionError:
        raise UserError(f"config {name} is nested too deeply: is it a config of recon?") from None
    if content is None:
        raise UserError(f"config {name} sets nothing: write settings into it, or leave it out")
    if not isinstance(content, dict):
        kind = "a list" if isinstance(content, list) else "a text"
        raise UserError(
            f"config {name} is {kind}, not settings: write `name: value` lines, as in recon configs quickstart"
        )
    _refuse_twice(name, node)
    known = {} if classes is None else classes
    known |= classes_in(content)
    return cast(dict[str, Any], modernized(content, known))


def with_current_names(args: Sequence[str]) -> list[str]:
    """A command line whose options, values and configs use no deprecated name.

    Args:
        args: Command line. A config that uses deprecated names is given by its translated content instead of its path.

    Raises:
        UserError: A config cannot be read.
    """
    classes = classes_given(args)
    texts = {}
    for name in configs_in(args):
        if not name.lstrip().startswith("{"):
            current = read_config(name, classes)
            if current != yaml.safe_load(_text(name)):
                texts[name] = json.dumps(current)
    found = modernized_arguments(args, classes)
    for name, text in texts.items():
        found = [text if arg == name else arg.replace(f"={name}", f"={text}") for arg in found]
    return found


def line_of(name: str, keys: Sequence[str]) -> int | None:
    """Line of a config file that sets something; None if it does not.

    Args:
        name: Path of a config that could be read.
        keys: Names from the outside in, without `init_args`.
    """
    node: Any = yaml.compose(_text(name), Loader=yaml.SafeLoader)
    line = None
    for key in keys:
        entries = _entries(node)
        if key not in entries and "init_args" in entries:
            entries = _entries(entries["init_args"][1])
        if key not in entries:
            return None
        line, node = entries[key]
    return line


def check_settings(names: Sequence[str], options: Iterable[str]) -> None:
    """Refuse configs with a setting that nothing reads; jsonargparse passes over it.

    Args:
        names: Paths of configs.
        options: Names of the command's options.

    Raises:
        UserError: A setting is unknown; file and line are named.
    """
    known = list(options)
    for name in names:
        for setting in read_config(name):
            if str(setting) not in known:
                near = closest(str(setting), known)
                place = f"config {name}, line {line_of(name, [str(setting)])}"
                hint = f"did you mean {near}?" if near else f"it may have {', '.join(known)}"
                raise UserError(f"{place}: there is no setting {setting}: {hint}")


def _text(name: str) -> str:
    path = Path(name)
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        near = None if path.is_absolute() else closest(name.removeprefix("configs/"), shipped())
        hint = f"did you mean {near}?" if near else "give the path of a file, or a name that `recon configs` lists"
        raise UserError(f"there is no config {name}: {hint}") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"cannot read the config {name} ({reason}): give the path of a YAML file") from None
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise UserError(f"config {name}, line {line}: not UTF-8: save the file with that encoding") from None


def _entries(node: Any) -> dict[str, tuple[int, Any]]:  # noqa: ANN401 - a node of PyYAML, which has no types
    if not isinstance(node, yaml.MappingNode):
        return {}
    return {str(key.value): (key.start_mark.line + 1, value) for key, value in node.value}


def _refuse_twice(name: str, root: Any) -> None:  # noqa: ANN401 - likewise
    """YAML takes the last of two entries of one name, and nobody notices."""
    waiting, seen = [root], set()
    while waiting:
        node = waiting.pop()
        if id(node) in seen or isinstance(node, yaml.ScalarNode):
            continue
        seen.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            waiting += node.value
            continue
        lines: dict[str, int] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if key.value in lines and key.value != "<<":
                raise UserError(
                    f"config {name}, line {line}: {key.value} is already set in line {lines[key.value]}: keep one"
                )
            if isinstance(key.value, str):
                lines[key.value] = line
            waiting.append(value)


def _first_comment(path: Path) -> str:
    """The sentence that a config begins with, over more than one line if it must."""
    words: list[str] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("# ") or line.startswith("#   ") or (words and words[-1].endswith((".", "?"))):
            break
        words.append(line.removeprefix("# ").strip())
    return " ".join(words)
