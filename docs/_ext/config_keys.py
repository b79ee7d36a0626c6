# SPDX-License-Identifier: Apache-2.0
"""Configuration keys as Markdown, read from the parser of the command line."""

import inspect
import re
from argparse import Action
from collections.abc import Iterator
from dataclasses import is_dataclass
from typing import Any
from unittest.mock import patch

import yaml

from lightning_recon.audit import config as audit_config
from lightning_recon.command_line.completion import _CHOSEN
from lightning_recon.command_line.lightning_cli import ReconCLI, run_cli
from lightning_recon.command_line.options import choices_of, nearby
from lightning_recon.command_line.parser import Parser
from lightning_recon.priors.denoisers import TotalVariation
from lightning_recon.priors.unet_denoiser import LargeDenoiser, SmallDenoiser

Classes = dict[str, dict[str, type]]


class _ParserBuiltError(BaseException):
    """Ends the command line as soon as its parser is built, and carries the parser."""


def run_parser() -> Any:  # noqa: ANN401 - jsonargparse's parser
    """The parser of `recon fit`."""

    def stop(cli: ReconCLI, parser: Any, args: Any) -> None:  # noqa: ANN401 - Lightning's signature
        raise _ParserBuiltError(parser)

    with patch.object(ReconCLI, "parse_arguments", stop):
        try:
            run_cli(["fit"])
        except _ParserBuiltError as built:
            parser = built.args[0]
    return next(action.choices["fit"] for action in parser._actions if isinstance(action.choices, dict))


def actions_of(owner: type) -> list[Action]:
    """One action for each key of a class.

    Args:
        owner: a class of the configuration.
    """
    parser = Parser()
    parser.add_class_arguments(owner, None)
    return keys_of(parser._actions)


def keys_of(actions: list[Action]) -> list[Action]:
    """Those actions that set a value.

    Args:
        actions: of a parser or a group.
    """
    return [action for action in actions if hasattr(action, "_typehint") and not action.dest.endswith(".help")]


def keys(actions: list[Action], prefix: str = "") -> str:
    """Definition list of keys: name, type, default, explanation.

    Args:
        actions: one for each key.
        prefix: of every name.
    """
    parts = []
    for action in actions:
        default = yaml.safe_dump(_plain(action.default), default_flow_style=True, width=1000).strip()
        default = default.removesuffix("...").strip()
        shown = f"; default `{default}`" if default != "null" or not action.required else ""
        required = "; required" if action.required and not shown else ""
        text = escaped(action.help or "No explanation.")
        parts.append(f"`{prefix}{action.dest}`\n: *{kind(action._typehint)}*{shown}{required}  \n  {text}\n")
    return "\n".join(parts)


def _plain(value: Any) -> Any:  # noqa: ANN401 - any default
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return value if isinstance(value, bool | int | float | str | None) else str(value)


def kind(announced: Any) -> str:  # noqa: ANN401 - any annotation
    """A type in a few words, the words it accepts if they are few.

    Args:
        announced: the type.
    """
    words = choices_of(announced)
    if words and (words != ["true", "false"] or announced is bool):
        return escaped(", ".join(words) + (", null" if type(None) in getattr(announced, "__args__", ()) else ""))
    text = announced.__name__ if inspect.isclass(announced) and not hasattr(announced, "__args__") else str(announced)
    text = re.sub(r"(?:[A-Za-z_]\w*\.)+(?=[A-Za-z_])", "", text)
    text = re.sub(r"Optional\[(.*)\]", r"\1 | None", text).replace("NoneType", "null").replace("None", "null")
    text = re.sub(r"Union\[(.*)\]$", lambda found: found[1].replace(", ", " | "), text)
    return escaped(text)


def escaped(text: str) -> str:
    """A help text as Markdown: one line, code kept, everything else literal.

    Args:
        text: the help text.
    """
    text = re.sub(r"\s*Default: ``.*?``\.?\s*$", "", text.strip(), flags=re.DOTALL)
    text = re.sub(r"(?m)^\s*\.\. .*$", "", text)
    text = re.sub(r":\w+:`~?([^`]+)`", r"`\1`", " ".join(text.split()))
    parts = re.split(r"(``[^`]*``|`[^`]*`)", text)
    return "".join(
        part if index % 2 else re.sub(r"([*_<>\[\]{}|#\\$])", r"\\\1", part) for index, part in enumerate(parts)
    )


def config_classes() -> Classes:
    """Classes by the path of the key that chooses them, such as `model.structure`."""
    found: Classes = {path: dict(classes) for path, classes in _CHOSEN.items()}
    waiting = [(path, one) for path, classes in found.items() for one in classes.values()]
    seen = set()
    while waiting:
        path, owner = waiting.pop(0)
        for action in actions_of(owner):
            place = f"{path}.{action.dest}"
            for name, one in nearby(action._typehint):
                if (one, action.dest) in seen:
                    continue
                seen.add((one, action.dest))
                found.setdefault(place, {})[name] = one
                waiting.append((place, one))
    # Announced as any module, so that those of other libraries fit: these ship with the package.
    found["model.denoiser"] = {one.__name__: one for one in (SmallDenoiser, LargeDenoiser, TotalVariation)}
    return found


def config_pages() -> Iterator[tuple[str, str]]:
    """Name and text of the page of each key that chooses a class, and of their index."""
    classes = config_classes()
    names = "\n".join(["run", *classes, "audit", "shipped"])
    yield (
        "index",
        f"""# Configuration keys

A config is a YAML file; `--config FILE` may be repeated, and later files win. Every key is also an option: the key
`noise_multiplier` below `model`, `client` and `privacy` is `--model.client.privacy.noise_multiplier`. A key that takes
a class is written as `class_path` and `init_args` in YAML; on the command line the class comes before its own options.
Old names of keys are accepted for one release, with a warning that names the new one.

```{{toctree}}
:maxdepth: 2

{names}
```
""",
    )
    for path, chosen in classes.items():
        parts = [f"# {path}\n", f"Classes that `--{path}` accepts, with the keys of each.\n"]
        for name, owner in chosen.items():
            summary = escaped((inspect.getdoc(owner) or "").split("\n\n")[0])
            parts.append(f"## {name}\n\n`{owner.__module__}.{owner.__qualname__}`: {summary}\n")
            parts.append(keys(actions_of(owner)) or "No keys.\n")
        yield path, "\n".join(parts)


def run_page() -> str:
    """Keys of a run that belong to no class: output, callbacks and Lightning's Trainer."""
    parts = ["# Run and Trainer\n", "Keys beside `model` and `data`, for `recon fit` and the commands like it.\n"]
    for group in run_parser()._action_groups:
        actions = keys_of(group._group_actions)
        actions = [action for action in actions if action.dest not in ("model", "data")]
        if actions:
            parts.append(f"## {(group.title or 'options').capitalize()}\n\n{keys(actions)}")
    return "\n".join(parts)


def audit_page() -> str:
    """Keys of the section `audit`: the sweep itself, then the classes inside it."""
    owners = [one for one in vars(audit_config).values() if is_dataclass(one) and inspect.isclass(one)]
    owners.sort(key=lambda one: "attacks" not in one.__dataclass_fields__)
    parts = ["# audit\n", "The section `audit` of a config of `recon audit`.\n"]
    for owner in owners:
        first = (inspect.getdoc(owner) or "").split("\n\n")[0]
        parts.append(f"## {owner.__name__}\n\n{escaped(first)}\n")
        parts.append(keys(actions_of(owner), "audit." if owner is owners[0] else ""))
    return "\n".join(parts)
