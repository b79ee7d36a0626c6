# SPDX-License-Identifier: Apache-2.0
"""Names of earlier versions, which still work for one release, and the names that replaced them."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Final

# Import paths in configs, old to new.
CLASS_PATHS: Final = {
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
    "VictimClient": {"local_rate": "local_lr"},
    "WaterFilling": {"encoding": "power_allocation", "voices": "head_weights"},
    "GradientInversion": {"start": "init", "penalties": "regularization"},
    "regularization": {"opponents": "double_opponents", "consensus": "group_consistency"},
    "audit": {"changes": "interventions", "records": "population_size"},
    "attacks.*": {"least_rounds": "min_rounds", "most_noise": "max_noise_multiplier"},
    "interventions.*": {"noise_times": "noise_factor", "batch_times": "batch_factor"},
    "comparison": {"noise_times": "noise_factor"},
    "Comparison": {"noise_times": "noise_factor"},
}
# Sections whose entries have names that the user chose; `KEYS` lists their keys under "section.*".
_NAMED: Final = ("attacks", "interventions")
# Options that may have a deprecated name begin so: data, trainer and callbacks have none.
_SECTIONS: Final = ("--model.", "--comparison.", "--audit.")
# Values by the class or the section and its (new) key, old to new.
VALUES: Final[dict[str, dict[str, dict[str, str]]]] = {
    "GradientInversion": {"labels": {"known": "oracle"}, "signed": {"no": "none"}},
    "VictimClient": {"noise_share": {"full": "local", "shared": "distributed"}},
}

_reported: Final[set[str]] = set()
log = logging.getLogger("lightning_recon")


def modernized(config: Any) -> Any:  # noqa: ANN401 - whatever YAML holds
    """A config in which current names stand for deprecated ones; each deprecated name is reported once.

    Args:
        config: A whole config or a part of it, as read from YAML. It is not changed.
    """
    return _translated(config, None)


def modernized_arguments(args: Sequence[str]) -> list[str]:
    """A command line with current names for deprecated options, values and class paths; see `modernized`.

    Args:
        args: The command line. Options of the model, the comparison and the audit are recognised by their last name,
            whatever class has them.
    """
    found: list[str] = []
    option = ""  # the option to which a word that begins with no dash belongs
    for word in args:
        if not word.startswith("--"):
            found.append(_value_of(option, word))
            continue
        name, equals, value = word.partition("=")
        path, dot, option = name.rpartition(".")
        if name.startswith(_SECTIONS):
            option = _replaced(_all_keys(), option)
        if path.startswith("--model."):  # inner parts of an audit's options are names that the user chose
            path = ".".join(_replaced(_all_keys(), part) for part in path.split("."))
        found.append(f"{path}{dot}{option}{equals}{_value_of(option, value) if equals else ''}")
    return found


def modernized_option(word: str, old: str, new: str) -> str:
    """A word of a command line, with the current name of one option that belongs to no section.

    Args:
        word: The word, `--option` or `--option=value`, or any other.
        old: The deprecated name without dashes.
        new: The current name.
    """
    name, equals, value = word.partition("=")
    return f"{_replaced({f'--{old}': f'--{new}'}, name)}{equals}{value}"


def _translated(part: Any, owner: str | None) -> Any:  # noqa: ANN401 - likewise
    """Translate a part of a config that belongs to a class or section; None if that is unknown."""
    if isinstance(part, str):
        return _replaced(CLASS_PATHS, part)
    if isinstance(part, list):
        return [_translated(item, owner) for item in part]
    if not isinstance(part, dict):
        return part
    path = part.get("class_path")
    inner = str(_translated(path, None)).rpartition(".")[2] if path else None
    found = {}
    for key, value in part.items():
        new = _replaced(_keys_of(owner), key) if isinstance(key, str) else key
        values = _values_of(new) if owner == "*" else VALUES.get(owner or "", {}).get(new, {})
        if isinstance(value, str) and value in values:
            found[new] = _replaced(values, value)
        else:
            entry = f"{owner}.*" if owner in _NAMED else new
            found[new] = _translated(value, inner or "*" if key == "init_args" else entry)
    return found


def _keys_of(owner: str | None) -> Mapping[str, str]:
    """The deprecated keys of a class or section; those of all classes for an overlay that does not name its class."""
    return _all_keys() if owner == "*" else KEYS.get(owner or "", {})


def _all_keys() -> dict[str, str]:
    return {old: new for keys in KEYS.values() for old, new in keys.items()}


def _value_of(option: str, value: str) -> str:
    """The current word for a deprecated value of an option that is given on the command line."""
    bare = _bare_names() if option.removeprefix("--") == "optimizer" else {}
    return _replaced(_values_of(option) | CLASS_PATHS | bare, value)


def _values_of(option: str) -> dict[str, str]:
    """The deprecated values of an option, whatever class has it."""
    return {old: new for keys in VALUES.values() for old, new in keys.get(option, {}).items()}


def _bare_names() -> dict[str, str]:
    """Deprecated class names without their modules; the only ones that differ are those of optimizers."""
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
