# SPDX-License-Identifier: Apache-2.0
"""Explain a refused option in one line: the option, the mistake, and what to give instead.

The names and the mistake are those of jsonargparse (see `refusals`); suggestions follow from the signatures of the
classes.
"""

import re
from argparse import ArgumentError
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, get_args, get_origin

from lightning_recon.command_line.commands import COMMANDS, RUNS
from lightning_recon.command_line.config_files import line_of
from lightning_recon.command_line.options import (
    choices_of,
    class_at,
    described,
    group_of,
    known_classes,
    nearby,
    options_of,
    parts_of,
    type_of,
)
from lightning_recon.command_line.refusals import Refusal, refusal_of
from lightning_recon.command_line.shipped_configs import configs_in
from lightning_recon.errors import UserError
from lightning_recon.suggestions import closest

Owner = Callable[..., object] | Mapping[str, Any]

_UNKNOWN = re.compile(
    r"Option '(?P<a>.+)' is not accepted|Group '(?P<group>.+)' does not accept option '(?P<b>.+)'"
    r"|Subcommand '.+' does not accept option '(?P<c>.+)'|unrecognized arguments: (?P<d>\S+)"
)
_MISSING = re.compile(r"the following arguments are required: (.+)|Key \"(.+)\" is required")
_VALUE = re.compile(r"Got value: (.*)", re.DOTALL)
_NAME = re.compile(r"Expected a dot import path string: (.+)|Import path (\S+) does not .*")
_NO_PARTS = re.compile(r"Unable to load config [\"'](.*)[\"']")
_NO_VALUE = "expected one argument"
_OUT_OF_BOUNDS = re.compile(r"validation error for .*? Input (?P<rule>.*?) \[type=.*input_value='?(?P<value>[^',]*)'?,")
# Parts of the name of an option that no shipped config sets.
_DEEP = 3
# Owners that jsonargparse names where a callable's class was not chosen.
_NOT_CHOSEN = ("torch.optim.Optimizer", "typing.Union")


@contextmanager
def explaining(roots: Callable[[], Mapping[str, Any]], args: Sequence[str]) -> Iterator[None]:
    """Turn mistakes on the command line or in a config into a `UserError` of one line.

    Args:
        roots: Returns the options of the command by name, groups as mappings.
        args: The command line, beginning with the command.

    Raises:
        UserError: An option was refused.
    """
    try:
        yield
    except ArgumentError as error:
        raise UserError(explained(error, roots(), args)) from error


def explained(error: BaseException, roots: Mapping[str, Any], args: Sequence[str] = ()) -> str:
    """The mistake in one line.

    Args:
        error: The exception that jsonargparse raised.
        roots: The options of the command by name, groups as mappings.
        args: The command line, to find the config that sets the option.
    """
    found = refusal_of(error)
    owner: Owner = roots if found.owner is None else class_at(found.owner) or {}
    text, command = " ".join(str(found.reason).split()), args[0] if args else "fit"
    if unknown := _UNKNOWN.search(text):
        option = next(value for name, value in unknown.groupdict().items() if value and name != "group")
        if option[:1] not in "-" and found.owner is None and unknown["d"]:
            return f"{option!r} belongs to no option: options are --NAME VALUE; see recon {command} --help"
        if found.owner is None and re.fullmatch("-[^-].*", option):
            return f"there is no option {option} of recon {command}: see recon {command} --help"
        option = ".".join(filter(None, [unknown["group"], option.lstrip("-").partition("=")[0]]))
        return _unknown(found, owner, option, command, args)
    if missing := _MISSING.search(text):
        return _missing([*found.path], missing[1] or missing[2], command)
    if _NO_VALUE in text:
        follows = zip(args, [*args[1:], "--"], strict=True)
        bare = next(
            (one for one, then in follows if one[:1] == "-" and "=" not in one and then[:2] == "--"), "an option"
        )
        return f"{bare} has no value: give one, as in {bare} VALUE"
    option = found.path[-1] if found.path else ""
    announced = type_of(owner, option)
    flag, place = _flag(found.path), _place(found.path, args)
    if parts := _NO_PARTS.search(text):
        names = list(options_of(group_of(announced) or {}))
        return f"{flag} is {parts[1]!r}{place}: give its parts by name{': ' if names else ''}{', '.join(names)}"
    value = _VALUE.search(text)
    name = _NAME.search(text)
    if type(None) in parts_of(announced) and "None" in (value and value[1], name and name[1]):
        return (
            f"{flag} cannot be set to null on the command line: set it in a file given by --config; left out, it is "
            "what the configs say"
        )
    if name and name[1] and (group := group_of(announced)):
        return f"{flag} is {name[1]!r}{place}: give its parts by name: {', '.join(options_of(group))}"
    if bounds := _OUT_OF_BOUNDS.search(text):
        return f"{flag} is {bounds['value']}{place}, but it {bounds['rule']}"
    if name or found.chosen or (value and _names_class(announced, value[1])):
        given = found.chosen or (name and (name[1] or name[2])) or (value[1] if value else "")
        return f"{flag}{place}: {_no_class(given, announced, found.reason, bool(name and name[2]))}"
    if value and (wanted := described(announced)):
        near = closest(value[1], choices_of(announced)) if choices_of(announced) else None
        hint = f"did you mean {near}? " if near else ""
        shown = "null" if value[1] == "None" else repr(value[1])
        return f"{flag} is {shown}{place}: {hint}give {wanted}"
    return (
        f"{flag}{place}: {text.rstrip('.')}: see recon {command} --help"
        if flag
        else f"{text}: see recon {command} --help"
    )


def _unknown(found: Refusal, owner: Owner, option: str, command: str, args: Sequence[str]) -> str:
    path = [*found.path, option]
    flag, place = _flag(path), _place(path, args)
    if found.owner in ("lightning.LightningModule", "lightning.LightningDataModule"):
        part, kind = found.path[0], "attack" if found.path[0] == "model" else "data"
        return (
            f"{flag}{place} belongs to a class that was not chosen: give --config quickstart.yaml, or --{part} with "
            f"the class of the {kind}"
        )
    if found.owner in _NOT_CHOSEN:
        return f"{flag}{place} belongs to a class that was not chosen: give {_flag(found.path)} CLASS before it"
    if others := _of_siblings(owner, option):
        kind, having = (found.owner or "").rpartition(".")[2], " and ".join(others)
        return f"{flag}{place} is an option of {having}, not of {kind}: give {_flag(found.path)} {others[0]}"
    near = nearest(owner, option)
    of = f" of {found.owner.rpartition('.')[2]}" if found.owner else f" of recon {command}"
    if near:
        return f"there is no option {flag}{of}{place}: did you mean {_flag([*found.path, near])}?"
    names = [name for name in options_of(owner) if name != "config"]
    own = (found.owner or "").startswith("lightning_recon.")
    known = f"it has {', '.join(names)}" if own and names else f"see recon {command} --help"
    return f"there is no option {flag}{of}{place}: {known}"


def _of_siblings(owner: Owner, option: str) -> list[str]:
    """Classes of the owner's kind that have an option which the owner lacks."""
    head = option.partition(".")[0]
    if not isinstance(owner, type) or head in options_of(owner):
        return []
    kinds = [kind for kind in owner.__mro__ if kind.__module__.startswith("lightning_recon.")]
    fitting = {name: one for name, one in known_classes().items() if issubclass(one, tuple(kinds))} if kinds else {}
    return [name for name, one in fitting.items() if head in options_of(one)]


def nearest(owner: Owner, option: str) -> str | None:
    """The option closest to a mistyped one, part by part; None if none is similar.

    Args:
        owner: The class or group that should have the option.
        option: The typed option, with dots.
    """
    head, _, rest = option.partition(".")
    known = options_of(owner)
    name = head if head in known else closest(head, known)
    if name is None:
        return None
    inside = group_of(known[name])
    if not rest or inside is None:
        return None if name == head else ".".join(filter(None, (name, rest)))
    found = rest if type_of(inside, rest) is not Any else nearest(inside, rest)
    return None if found is None else f"{name}.{found}"


def _missing(path: Sequence[str], names: str, command: str) -> str:
    inside = f"{command}." if command in RUNS else ""
    flags = [_flag([*path, name.removeprefix(inside)]) for name in names.split(", ")]
    verb = "is" if len(flags) == 1 else "are"
    usage = COMMANDS[command].usage if command in COMMANDS else "recon --help"
    if command in RUNS:
        config = ", or a config that has it, such as --config quickstart.yaml" if len(path) < _DEEP else ""
        return f"{' and '.join(flags)} {verb} missing: give it{config}"
    if command in ("replay", "report"):
        flags = [flag if flag == "--output" else "RUN" for flag in flags]
    return f"{' and '.join(flags)} {verb} missing: {usage}"


def _no_class(given: str, announced: Any, reason: BaseException, other_kind: bool) -> str:  # noqa: ANN401
    kind = next(
        (part.__name__ for part in parts_of(announced) if isinstance(part, type) and part is not type(None)), ""
    )
    fitting = dict(nearby(announced))
    own = sorted(fitting)
    instead = f"give {', '.join(own)}, or a class path" if own else "give a class path such as package.module.Class"
    if other_kind:
        return f"{given} is no {kind or 'class of that kind'}: {instead}"
    near = closest(given.rpartition(".")[2], fitting or _of_kind(announced) or known_classes())
    if isinstance(reason, ModuleNotFoundError) and reason.name and find_spec(reason.name.partition(".")[0]) is None:
        top = reason.name.partition(".")[0]
        return f"there is no module {top!r}: run recon in the folder that holds it, or put that folder on PYTHONPATH"
    if isinstance(reason, ImportError) and not isinstance(reason, ModuleNotFoundError):
        return f"{given} cannot be imported ({' '.join(str(reason).split())}): fix the module"
    if near == given.rpartition(".")[2]:
        return f"there is no class {given}: give its name alone, {near}"
    return f"there is no class {given}: " + (f"did you mean {near}?" if near else instead)


def _of_kind(announced: Any) -> dict[str, type]:  # noqa: ANN401 - any annotation
    """Known classes that an option may name, by their base class or by the return type of a callable."""
    bases = [part for part in parts_of(announced) if isinstance(part, type)]
    for part in parts_of(announced):
        inner = get_args(part)
        if get_origin(part) is not None and inner:
            bases += [one for one in parts_of(inner[-1]) if isinstance(one, type)]
    bases = [base for base in bases if base.__module__ != "builtins" and not getattr(base, "_is_protocol", False)]
    return {name: one for name, one in known_classes().items() if bases and issubclass(one, tuple(bases))}


def _names_class(announced: Any, value: str) -> bool:  # noqa: ANN401 - any annotation
    return (
        value.replace(".", "").isidentifier() and bool(_of_kind(announced)) and value not in ("True", "False", "None")
    )


def _flag(path: Sequence[str]) -> str:
    return "--" + ".".join(path) if path else ""


def _place(path: Sequence[str], args: Sequence[str]) -> str:
    """The config and the line that set an option; empty if the command line sets it."""
    plain = ".".join(path)
    for word in args:
        name = word.partition("=")[0].lstrip("-").replace(".init_args", "").rstrip("+")
        if word.startswith("--") and (name == plain or (plain.startswith(f"{name}.") and name.count("."))):
            return ""
    for name in reversed(configs_in(args)):
        if line := line_of(name, plain.split(".")):
            return f" ({name}, line {line})"
    return ""
