# SPDX-License-Identifier: Apache-2.0
"""Which option jsonargparse refused, read from the chain of exceptions that it raises.

Each exception of the chain names one more part of the option and quotes everything below it. Only the names and the
innermost reason are read here.
"""

import re
from dataclasses import dataclass

_KEY = re.compile(r'Parser key "([^"]+)"')
_CLASS = re.compile(
    r"Problem with given class_path '([^']+)'"
    r"|Type typing\.Callable.*class_path='([^']+)'"
    r"|Type typing\.Callable.*Got value: ([\w.]+)$",
    re.DOTALL,
)


@dataclass(frozen=True)
class Refusal:
    """One refused option.

    Args:
        path: Names of the option from the outside in, as far as they are known.
        owner: Class path of the class that has the option; None for options of the command itself.
        chosen: Class path that could not be imported or is of another kind, if that is the mistake.
        reason: The innermost exception.
    """

    path: tuple[str, ...]
    owner: str | None
    chosen: str | None
    reason: BaseException


def refusal_of(error: BaseException) -> Refusal:
    """Read the chain of exceptions from the outside in.

    Args:
        error: The exception that jsonargparse raised.
    """
    path: list[str] = []
    owner: str | None = None
    chosen: str | None = None
    reason, before, seen = error, "", error.__cause__ or error
    while seen is not None:
        reason, text = seen, str(seen).strip()
        if text != before:
            if key := _KEY.match(text):
                path += [] if path[-1:] == [key[1]] else [key[1]]
                owner, chosen = chosen or owner, None
            elif found := _CLASS.match(text):
                chosen = found[1] or found[2] or found[3]
        before, seen = text, seen.__cause__  # type: ignore[assignment]
    if not isinstance(reason, ImportError | AttributeError) and chosen is not None:
        owner, chosen = chosen, None
    return Refusal(tuple(path), owner, chosen, reason)
