# SPDX-License-Identifier: Apache-2.0
"""Renamed fields of `results.json`: for one release a record has each of them under its old and its new name."""

from collections.abc import Mapping
from typing import Any, Final

# By section, old name to new name; "" is the top level.
RENAMED: Final[dict[str, dict[str, str]]] = {
    "": {"alarms": "payload_alarms"},
    "bounds": {"noise_law_psnr_5_percent": "noise_law_psnr_p95"},
    "summary": {"received_share": "file_decoded_fraction"},
}


def record_with_both_names(record: Mapping[str, Any]) -> dict[str, Any]:
    """Give each renamed field of a record both names.

    Args:
        record: Content of `results.json`, old or new.
    """
    found = fields_with_both_names(record, RENAMED[""])
    for section, renamed in RENAMED.items():
        if section and isinstance(found.get(section), Mapping):
            found[section] = fields_with_both_names(found[section], renamed)
    return found


def fields_with_both_names(fields: Mapping[str, Any], renamed: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The same fields in the same order, each renamed one first under its old name and then under its new one.

    Args:
        fields: By name, old or new.
        renamed: Old name to new name; None for those of all sections, as a table has them side by side.
    """
    names = renamed if renamed is not None else {old: new for part in RENAMED.values() for old, new in part.items()}
    old_names = {new: old for old, new in names.items()}
    found: dict[str, Any] = {}
    for name, value in fields.items():
        found.setdefault(old_names.get(name, name), value)
        found.setdefault(names.get(name, name), value)
    return found
