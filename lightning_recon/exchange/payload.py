# SPDX-License-Identifier: Apache-2.0
"""The server's message of one round, and its files."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from torch import Tensor

from lightning_recon.files import schema
from lightning_recon.files.digests import describe
from lightning_recon.files.faults import readable
from lightning_recon.files.serialization import read_json, read_tensors, write_json, write_tensors


@dataclass(frozen=True)
class ServerPayload:
    """The server's message of one round, from which clients build the layer that the server adds to the network.

    Args:
        settings: plain values. Without settings and tensors, nothing is added to the network.
        tensors: arrays by name, of any shape and dtype.
    """

    settings: dict[str, bool | int | float | str] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)

    def digest(self) -> str:
        """Hash (sha256, hexadecimal) of settings and tensors."""
        return _digest(self.settings, {name: describe(tensor) for name, tensor in self.tensors.items()})

    def save(self, folder: Path, name: str, like: str | None = None) -> None:
        """Write `NAME.json` and, if there are tensors to store, `NAME.safetensors`.

        Args:
            folder: where to write; created if missing.
            name: file name without extension, see `payload_name`.
            like: name of an earlier payload in the same folder; tensors equal to its tensors are not stored again.
        """
        table: dict[str, dict[str, Any]] = {key: describe(tensor) for key, tensor in self.tensors.items()}
        digest = _digest(self.settings, table)
        earlier: schema.PayloadRecord | None = None
        if like is not None:
            with readable(folder / f"{like}.json"):
                earlier = read_json(folder / f"{like}.json", schema.PAYLOAD, "payload 1")
        for key, entry in table.items():
            known: Mapping[str, Any] = earlier["tensors"].get(key, {}) if earlier else {}
            same = all(known.get(part) == value for part, value in entry.items())
            entry["stored_in"] = known["stored_in"] if same else name
        write_tensors(folder, name, {k: t for k, t in self.tensors.items() if table[k]["stored_in"] == name})
        same_as = {"same_as": like} if earlier and earlier["digest"] == digest else {}
        content = {"format": "payload 1", "digest": digest, **same_as, "settings": self.settings, "tensors": table}
        write_json(folder / f"{name}.json", content)

    @classmethod
    def load(cls, folder: Path, name: str) -> Self:
        """Read what `save` wrote; a missing, truncated or altered file is a `UserError`."""
        path = folder / f"{name}.json"
        with readable(path):
            content = read_json(path, schema.PAYLOAD, "payload 1")
            tensors: dict[str, Tensor] = {}
            for key, entry in content["tensors"].items():
                mark = {part: value for part, value in entry.items() if part != "stored_in"}
                tensors[key] = read_tensors(folder, entry["stored_in"], {key: mark})[key]
                if tensors[key].is_floating_point() and bool(tensors[key].isnan().any()):
                    raise ValueError(f"NaN in {key}")
            if _digest(content["settings"], content["tensors"]) != content["digest"]:
                raise ValueError("its settings do not match its digest")
            return cls(settings=content["settings"], tensors=tensors)


def payload_name(round: int, client: int | None = None, draw: int | None = None) -> str:
    """File name, without extension, of a round's payload: for all clients, or for one client in one noise draw."""
    if client is None or draw is None:
        return f"payload-r{round:04d}"
    return f"payload-c{client:03d}-d{draw:03d}-r{round:04d}"


def _digest(settings: Mapping[str, Any], table: Mapping[str, Mapping[str, Any]]) -> str:
    marks = {name: [entry["shape"], entry["dtype"], entry["sha256"]] for name, entry in table.items()}
    return hashlib.sha256(json.dumps([settings, marks], sort_keys=True, allow_nan=False).encode()).hexdigest()
