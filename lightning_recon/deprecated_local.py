# SPDX-License-Identifier: Apache-2.0
"""The client's options `local_steps`, `local_lr` and `local_epochs` of earlier versions, in terms of `local`."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

# Old option to its current place in the client's options. They all mean steps of plain SGD whose sum is sent.
LOCAL_OPTIONS: Final = {
    "local_steps": "local.steps",
    "local_epochs": "local.epochs",
    "local_lr": "local.optimizer.lr",
    "local_rate": "local.optimizer.lr",
}
_UPDATE = "gradient"


def with_local_section(options: Mapping[str, Any]) -> dict[str, Any]:
    """A client's options with a section `local` in place of the old options.

    Args:
        options: as in a config; what `local` holds already is kept.
    """
    found = {name: value for name, value in options.items() if name not in LOCAL_OPTIONS}
    if len(found) == len(options):
        return found
    local: dict[str, Any] = {"update": _UPDATE}
    for old, place in LOCAL_OPTIONS.items():
        if old in options:
            value, key = options[old], place.split(".")[1]
            local[key] = _sgd(value) if key == "optimizer" else value
    return {**found, "local": local | dict(found.get("local") or {})}


def with_local_arguments(args: Sequence[str], is_client: Callable[[str], bool]) -> list[str]:
    """A command line with options of `local` in place of the old options.

    Args:
        args: the words.
        is_client: whether an option, without dashes, is one of a simulated client.
    """
    found: list[str] = []
    words = iter(args)
    for word in words:
        name, equals, value = word.partition("=")
        prefix, _, last = name.rpartition(".")
        if not (word.startswith("--") and last in LOCAL_OPTIONS and is_client(name.removeprefix("--"))):
            found.append(word)
            continue
        value = value if equals else next(words, "")
        key = LOCAL_OPTIONS[last].split(".")[1]
        new = json.dumps(_sgd(float(value))) if key == "optimizer" and _is_number(value) else value
        found += [f"{prefix}.local.{key}={new}", f"{prefix}.local.update={_UPDATE}"]
    return found


def _sgd(rate: object) -> dict[str, Any]:
    return {"class_path": "torch.optim.SGD", "init_args": {"lr": rate}}


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
