# SPDX-License-Identifier: Apache-2.0
"""Read config files: mistakes are reported with file and line, and deprecated names are translated."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, cast

import yaml

from lightning_recon.command_line.shipped_configs import configs_in, shipped
from lightning_recon.deprecated import Place, classes_given, classes_in, modernized, modernized_arguments
from lightning_recon.errors import UserError
from lightning_recon.files.yaml_size import YAML_NODES, expanded
from lightning_recon.suggestions import closest


def read_config(name: str, classes: dict[Place, str] | None = None) -> dict[str, Any]:
    """Read a config file.

    Args:
        name: Its path.
        classes: Class paths that the configs before it set, by their place; those of this config are added. An
            overlay that names no class sets options of these, see `deprecated.modernized`.

    Returns:
        Its settings, at least one, with current names for deprecated ones.

    Raises:
        UserError: There is no such file, or it is no YAML mapping in UTF-8; file and line are named.
    """
    text = _text(name)
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        if expanded(node) > YAML_NODES:
            raise UserError(f"config {name} expands to more than {YAML_NODES} values: is it a config of recon?")
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
    """Translate the deprecated names in the options, values and configs of a command line.

    Args:
        args: Command line.

    Returns:
        The command line with current names; a config that uses deprecated names is replaced by its content as JSON.

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
    """The line of a config file that sets an option; None if it does not set the option.

    Args:
        name: Path of a valid config.
        keys: Keys of the option from the outside in, without `init_args`.
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
    """Refuse configs with an unknown top-level setting, which jsonargparse ignores.

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


def _entries(node: Any) -> dict[str, tuple[int, Any]]:  # noqa: ANN401 - a node of PyYAML, which has no type hints
    if not isinstance(node, yaml.MappingNode):
        return {}
    return {str(key.value): (key.start_mark.line + 1, value) for key, value in node.value}


def _refuse_twice(name: str, root: Any) -> None:  # noqa: ANN401 - likewise
    """Refuse a key that is set twice; YAML silently takes the last one."""
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
