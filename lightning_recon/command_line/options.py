# SPDX-License-Identifier: Apache-2.0
"""The options of a command, read from the signatures of the classes that it builds.

Suggestions for mistyped options and shell completion need the options of classes that are chosen on the command line,
which a parser does not list.
"""

import inspect
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import is_dataclass
from functools import cache
from importlib import import_module
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

# Modules whose classes may be given by their bare names.
MODULES = (
    *(
        f"lightning_recon.{part}"
        for part in ("attack", "structure", "client", "data", "capture", "callbacks", "exchange")
    ),
    *(f"lightning.pytorch.{part}" for part in ("callbacks", "loggers", "profilers", "strategies")),
    "torch.optim",
)

_WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text", type(None): "null"}


def options_of(owner: Callable[..., object] | Mapping[str, Any]) -> dict[str, Any]:
    """Options by name with their annotated types; `Any` without an annotation.

    Args:
        owner: A class, or the options themselves.
    """
    if isinstance(owner, Mapping):
        return dict(owner)
    called = owner.__init__ if inspect.isclass(owner) and not is_dataclass(owner) else owner
    try:
        hints = get_type_hints(owner if is_dataclass(owner) else called)
        parameters = inspect.signature(owner).parameters.values()
    except (NameError, TypeError, ValueError):  # a foreign class without annotations, or with unresolvable ones
        return {}
    plain = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {one.name: hints.get(one.name, Any) for one in parameters if one.kind in plain and one.name != "self"}


def type_of(owner: Callable[..., object] | Mapping[str, Any], option: str) -> Any:  # noqa: ANN401 - any annotation
    """The annotated type of an option; `Any` if it is not known.

    Args:
        owner: The class, or the options by name.
        option: Its name, with dots into data classes and groups.
    """
    head, _, rest = option.partition(".")
    found = options_of(owner).get(head, Any)
    if not rest:
        return found
    inside = group_of(found)
    return Any if inside is None else type_of(inside, rest)


def group_of(announced: Any) -> Callable[..., object] | Mapping[str, Any] | None:  # noqa: ANN401 - any annotation
    """The data class or group that an option consists of; None for other options.

    Args:
        announced: The type of the option.
    """
    if isinstance(announced, Mapping):
        return announced
    return next((part for part in parts_of(announced) if inspect.isclass(part) and is_dataclass(part)), None)


def parts_of(announced: Any) -> tuple[Any, ...]:  # noqa: ANN401 - any annotation
    """The alternatives of a type; X and NoneType for `X | None`.

    Args:
        announced: The type.
    """
    if get_origin(announced) in (Union, types.UnionType):
        return tuple(part for one in get_args(announced) for part in parts_of(one))
    return (announced,)


def choices_of(announced: Any) -> list[str]:  # noqa: ANN401 - any annotation
    """The values that an option accepts, if they can be enumerated.

    Args:
        announced: Its type.
    """
    words = [str(word) for part in parts_of(announced) if get_origin(part) is Literal for word in get_args(part)]
    words += [word for part in parts_of(announced) if get_origin(part) is list for word in choices_of(*get_args(part))]
    return list(dict.fromkeys(words)) or (["true", "false"] if bool in parts_of(announced) else [])


def described(announced: Any) -> str:  # noqa: ANN401 - any annotation
    """The values that an option accepts, in words; empty if they are not known.

    Args:
        announced: Its type.
    """
    words: list[str] = []
    for part in parts_of(announced):
        origin = get_origin(part) or part
        if inspect.isclass(origin) and origin in _WORDS:
            words.append(_WORDS[origin])
        elif inspect.isclass(origin) and issubclass(origin, list | tuple):
            inner = described(get_args(part)[0]) if get_args(part) else ""
            words.append(f"a list, each entry {inner}" if inner else "a list")
        elif inspect.isclass(origin) and issubclass(origin, Mapping):
            words.append("a mapping of names to values")
        elif inspect.isclass(origin):
            words.append("a class")
    literal = choices_of(announced) if any(get_origin(part) is Literal for part in parts_of(announced)) else []
    if literal:
        words.insert(0, ("one of " if len(literal) > 1 else "") + ", ".join(literal))
    return " or ".join(dict.fromkeys(words))


@cache
def known_classes() -> dict[str, type]:
    """Classes that may be given by their bare names, from the loaded modules."""
    found: dict[str, type] = {}
    for name in MODULES:
        if name in sys.modules or name.startswith("lightning_recon"):
            public = vars(import_module(name))
            found |= {key: one for key, one in public.items() if inspect.isclass(one) and not key.startswith("_")}
    return found


def class_at(path: str) -> type | None:
    """The class of a class path or a bare name, if its module is loaded; None otherwise.

    Args:
        path: Such as "lightning_recon.structure.Digital" or "Digital".
    """
    module, _, name = path.rpartition(".")
    found = getattr(sys.modules.get(module), name, None) if module else known_classes().get(name)
    return found if inspect.isclass(found) else None


def nearby(announced: Any) -> Iterator[tuple[str, type]]:  # noqa: ANN401 - any annotation
    """Classes of this package that an option may name: those in the package of the annotated base class or protocol.

    Args:
        announced: Type of the option.
    """
    for base in parts_of(announced):
        home = getattr(base, "__module__", "")
        if not (inspect.isclass(base) and home.startswith("lightning_recon.")) or is_dataclass(base):
            continue
        for name, one in known_classes().items():
            beside = one.__module__.split(".")[:2] == home.split(".")[:2] or home.startswith("lightning_recon.exchange")
            if one is not base and beside and _fits(one, base):
                yield name, one


def _fits(one: type, base: type) -> bool:
    if not getattr(base, "_is_protocol", False):
        return issubclass(one, base) and not inspect.isabstract(one)
    methods = [name for name, member in vars(base).items() if not name.startswith("_") and inspect.isroutine(member)]
    if not methods or getattr(one, "_is_protocol", False):
        return False
    return all(callable(getattr(one, name, None)) for name in methods)
