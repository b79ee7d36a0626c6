# SPDX-License-Identifier: Apache-2.0
"""Names of earlier versions, which still work for one release, and the names that replaced them."""

import json
import logging
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

import yaml

from lightning_recon.deprecated_local import LOCAL_OPTIONS, with_local_arguments, with_local_section

# Import paths in configs, old to new.
CLASS_PATHS: Final = {
    "lightning_recon.structure.TrapWeights": "lightning_recon.structure.CuriousAbandonHonesty",
    "lightning_recon.victim.VictimClient": "lightning_recon.client.VictimClient",
    "lightning_recon.victim.Privacy": "lightning_recon.client.Privacy",
    "lightning_recon.victim.Release": "lightning_recon.client.Release",
    "lightning_recon.attack.QuasiNewton": "lightning_recon.attack.BatchedLBFGS",
    "lightning_recon.attack.quasi_newton.QuasiNewton": "lightning_recon.attack.BatchedLBFGS",
    "lightning_recon.attack.denoiser.SmallDenoiser": "lightning_recon.attack.SmallDenoiser",
    "lightning_recon.attack.denoising.TotalVariation": "lightning_recon.attack.TotalVariation",
    "lightning_recon.attack.inversion.GradientInversion": "lightning_recon.attack.GradientInversion",
    "lightning_recon.attack.reconstruction.ReconstructionAttack": "lightning_recon.attack.ReconstructionAttack",
    "lightning_recon.attack.reconstruction.whole_way": "lightning_recon.attack.malicious_server.whole_way",
}
# Config keys by the class or the section that has them, old to new.
KEYS: Final[dict[str, dict[str, str]]] = {
    "Digital": {"force": "always_digital"},
    "RobbingTheFed": {"row_choice": "row_selection"},
    "WaterFilling": {"encoding": "power_allocation", "voices": "head_weights"},
    "GradientInversion": {"start": "init", "penalties": "regularization"},
    "regularization": {"opponents": "double_opponents", "consensus": "group_consistency"},
    "audit": {"changes": "interventions", "records": "population_size"},
    "attacks.*": {"least_rounds": "min_rounds", "most_noise": "max_noise_multiplier"},
    "interventions.*": {"noise_times": "noise_factor", "batch_times": "batch_factor"},
    "comparison": {"noise_times": "noise_factor"},
    "Comparison": {"noise_times": "noise_factor"},
}
# Sections inside a section or a class; "*" is an entry whose name the user chose.
_INNER: Final = {
    ("root", "audit"): "audit",
    ("root", "comparison"): "comparison",
    ("audit", "attacks"): "attacks",
    ("audit", "interventions"): "interventions",
    ("attacks", "*"): "attacks.*",
    ("interventions", "*"): "interventions.*",
    ("GradientInversion", "regularization"): "regularization",
}
# Values by the class or the section and its (new) key, old to new.
VALUES: Final[dict[str, dict[str, dict[str, str]]]] = {
    "GradientInversion": {"labels": {"known": "oracle"}, "signed": {"no": "none"}},
    "VictimClient": {"noise_share": {"full": "local", "shared": "distributed"}},
}
# Options that structures did not have in earlier versions, with the values that repeat what these versions did. The
# config of a run states all options, so that a missing one is one of these.
EARLIER_BEHAVIOUR: Final[dict[str, dict[str, Any]]] = {
    "RobbingTheFed": {"variant": "cumulative", "fallback": False},
    "SeedPaper": {"fallback": False},
    "CuriousAbandonHonesty": {"fallback": False},
}

# The place of a value in a config: its keys from the outside in, without init_args.
Place = tuple[str, ...]
# The owner of a key is a class or section of `KEYS`, or ROOT: the config itself; FOREIGN: a class of the user or of a
# library; ANY: a class that is not known; "": none of them.
ROOT: Final = "root"
FOREIGN: Final = "foreign"
ANY: Final = "any"
_CLIENTS: Final = ("VictimClient", ANY)  # owners of the options that `deprecated_local` translates

_CLASS_PATH = re.compile(r"[A-Za-z_][\w.]*")
_reported: Final[set[str]] = set()
log = logging.getLogger("lightning_recon")


def modernized(config: Any, classes: Mapping[Place, str] | None = None) -> Any:  # noqa: ANN401 - whatever YAML holds
    """A config in which current names stand for deprecated ones; each deprecated name is reported once.

    Args:
        config: A whole config, as read from YAML, or a list of them. It is not changed.
        classes: Class paths by their place in the config, for an overlay that does not name the classes that it sets.
            Options of classes that are not this package's are left alone; those of unknown classes are translated.
    """
    return _translated(config, (), ROOT, dict(classes or {}) | classes_in(config))


def with_earlier_behaviour(structure: Any) -> Any:  # noqa: ANN401 - whatever YAML holds
    """The structure of a recorded run, with options that the version that recorded it did not have.

    Args:
        structure: Class path and arguments, as in the run's config. It is not changed.
    """
    if not isinstance(structure, dict) or not str(structure.get("class_path")).startswith("lightning_recon."):
        return structure
    former = EARLIER_BEHAVIOUR.get(structure["class_path"].rpartition(".")[2], {})
    return {**structure, "init_args": former | (structure.get("init_args") or {})} if former else structure


def modernized_arguments(args: Sequence[str], classes: Mapping[Place, str] | None = None) -> list[str]:
    """A command line with current names for deprecated options, values and class paths; see `modernized`.

    Args:
        args: The command line; mappings, also whole configs, may be given inline as JSON or YAML.
        classes: Class paths that the configs set, by their place.
    """
    known = dict(classes or {}) | classes_given(args)
    found: list[str] = []
    path: Place = ()
    owner, option = "", ""  # those of the option to which the next word belongs
    for word in args:
        if not word.startswith("--"):
            found.append(_value_of(word, path, owner, option, known))
            continue
        name, equals, value = word.partition("=")
        parts = name.removeprefix("--").split(".")
        current, path, owner = _walked(parts, known)
        option = current[-1]
        text = _value_of(value, path, owner, option, known) if equals else ""
        found.append(f"--{'.'.join(current)}{equals}{text}")

    def is_client(option: str) -> bool:
        *_, owner = _walked(option.split("."), known)
        return owner in _CLIENTS

    return with_local_arguments(found, is_client)


def modernized_option(word: str, old: str, new: str) -> str:
    """A word of a command line, with the current name of one option that belongs to no section.

    Args:
        word: The word, `--option` or `--option=value`, or any other.
        old: The deprecated name without dashes.
        new: The current name.
    """
    name, equals, value = word.partition("=")
    return f"{_replaced({f'--{old}': f'--{new}'}, name)}{equals}{value}"


def classes_in(config: Any, path: Place = ()) -> dict[Place, str]:  # noqa: ANN401 - likewise
    """The class paths in a config by their place.

    Args:
        config: A config, or a part of it.
        path: The place of that part.
    """
    found: dict[Place, str] = {}
    if isinstance(config, str) and "." in config and _CLASS_PATH.fullmatch(config):
        found[path] = config
    elif isinstance(config, dict):
        for key, value in config.items():
            inner = path if key in ("init_args", "class_path") else (*path, str(key))
            found |= {path: value} if key == "class_path" and isinstance(value, str) else classes_in(value, inner)
    return found


def classes_given(args: Sequence[str]) -> dict[Place, str]:
    """The class paths on a command line by their place in the config.

    Args:
        args: The command line.
    """
    found: dict[Place, str] = {}
    pairs = [(word, after) for word, after in zip(args, [*args[1:], ""], strict=True) if word.startswith("--")]
    for word, after in pairs:
        name, equals, value = word.partition("=")
        value = value if equals else after
        path = tuple(part for part in name.removeprefix("--").split(".") if part not in ("init_args", "class_path"))
        if _CLASS_PATH.fullmatch(value):
            found[path] = value
        elif (content := _mapping_in(value)) is not None:
            found |= classes_in(content, () if path == ("config",) else path)
    return found


def _translated(part: Any, path: Place, owner: str, classes: Mapping[Place, str]) -> Any:  # noqa: ANN401 - likewise
    """Translate a part of a config at a path, whose keys belong to an owner."""
    if isinstance(part, str):
        return _replaced(CLASS_PATHS, part)
    if isinstance(part, list):
        return [_translated(item, path, owner, classes) for item in part]
    if not isinstance(part, dict):
        return part
    if isinstance(part.get("class_path"), str):
        classes = {**classes, path: part["class_path"]}
    found = {}
    for key, value in part.items():
        if key == "init_args":
            found[key] = _translated(value, path, _owner_at(path, classes), classes)
            continue
        new = _replaced(_keys_of(owner), key) if isinstance(key, str) else key
        if owner in _CLIENTS:
            _replaced(LOCAL_OPTIONS, str(new))  # reports it
        values = _values_of(owner, new)
        if isinstance(value, str) and value in values:
            found[new] = _replaced(values, value)
        else:
            inner = path if new == "class_path" else (*path, str(new))
            found[new] = _translated(value, inner, _inner(owner, str(new)), classes)
    return with_local_section(found) if owner in _CLIENTS else found


def _walked(parts: Sequence[str], classes: Mapping[Place, str]) -> tuple[list[str], Place, str]:
    """Translate the parts of an option's name; return them, their path, and the owner of the last one."""
    found: list[str] = []
    path: Place = ()
    owner, inside = "", ROOT
    for part in parts:
        if part in ("init_args", "class_path", "dict_kwargs"):
            found.append(part)
            continue
        owner = inside
        new = _replaced(_keys_of(owner), part)
        if owner in _CLIENTS:
            _replaced(LOCAL_OPTIONS, new)  # reports it
        found.append(new)
        path = (*path, new)
        inside = _inner(owner, new)
        if path in classes:
            inside = _owner_at(path, classes)
        elif not inside and path[0] in ("model", "comparison"):
            inside = ANY
    return found, path, owner


def _owner_at(path: Place, classes: Mapping[Place, str]) -> str:
    """The class at a place of a config."""
    if path not in classes:
        return ANY
    current = CLASS_PATHS.get(classes[path], classes[path])
    ours = "." not in current or current.startswith("lightning_recon.")
    return current.rpartition(".")[2] if ours else FOREIGN


def _inner(owner: str, key: str) -> str:
    """The section of a key; inside a foreign class everything is foreign."""
    if owner == FOREIGN:
        return FOREIGN
    owners = {"GradientInversion"} if owner == ANY else {owner}
    return next((name for (outer, inner), name in _INNER.items() if outer in owners and inner in (key, "*")), "")


def _keys_of(owner: str) -> Mapping[str, str]:
    """The deprecated keys of a class or section."""
    return {old: new for keys in KEYS.values() for old, new in keys.items()} if owner == ANY else KEYS.get(owner, {})


def _values_of(owner: str, option: str) -> Mapping[str, str]:
    """The deprecated values of an option."""
    if owner != ANY:
        return VALUES.get(owner, {}).get(option, {})
    return {old: new for keys in VALUES.values() for old, new in keys.get(option, {}).items()}


def _value_of(value: str, path: Place, owner: str, option: str, classes: Mapping[Place, str]) -> str:
    """The current word for a deprecated value on the command line."""
    content = _mapping_in(value)
    if content is not None:
        whole = path == ("config",)
        new = _translated(content, () if whole else path, ROOT if whole else _inner(owner, option), classes)
        return value if new == content else json.dumps(new)
    bare = _bare_names() if option in ("optimizer", "structure") else {}
    return _replaced({**_values_of(owner, option), **CLASS_PATHS, **bare}, value)


def _mapping_in(value: str) -> dict[str, Any] | None:
    """A mapping that is given inline; None if the value is anything else."""
    if value.lstrip().startswith("{"):
        with suppress(yaml.YAMLError, RecursionError):  # the parser reports the mistake
            content = yaml.safe_load(value)
            return content if isinstance(content, dict) else None
    return None


def _bare_names() -> dict[str, str]:
    """Deprecated class names without their modules; those that differ are of an optimizer and of a structure."""
    short = {old.rpartition(".")[2]: new.rpartition(".")[2] for old, new in CLASS_PATHS.items()}
    return {old: new for old, new in short.items() if old != new}


def _replaced(names: Mapping[str, str], name: str) -> str:
    """The current name for a deprecated one, with one warning; any other name as it is."""
    new = names.get(name)
    if new is None:
        return name
    if name not in _reported:
        _reported.add(name)
        log.warning("%s is deprecated and will be removed in the next release: write %s", name, new)
    return new
