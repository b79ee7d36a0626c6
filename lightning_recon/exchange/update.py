# SPDX-License-Identifier: Apache-2.0
"""A client's answer after clipping and noise, and its files."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from lightning_recon.exchange.lazy_tensors import shapes_of
from lightning_recon.files import schema
from lightning_recon.files.digests import describe, sha256
from lightning_recon.files.faults import readable
from lightning_recon.files.schema import Fingerprint
from lightning_recon.files.serialization import read_json, read_tensors, write_json, write_tensors

_OPTIONAL = ("reproducible_noise", "max_grad_norm", "contributors")  # written where there is something to say
ROWS = "#rows"  # "NAME#rows" holds the indices of the stored rows of tensor NAME


@dataclass(frozen=True)
class ClientUpdate:
    """A client's answer after clipping and noise: the only client data that an attack may use.

    Args:
        client: index of the client, from 0; under secure aggregation, index of the group of clients.
        draw: index of the noise realization, from 0.
        round: index of the round, from 0.
        gradient: privatized gradients, float32, by parameter name ("structure.weight", "network.<parameter>", ...).
            A simulated client draws the noise of a tensor when it is first read, see `LazyTensors`. In an update that
            was read from disk, rows that were not stored are NaN.
        omitted: shape of tensors that were not stored on disk, and their hash, or "" if it was not recorded; empty in
            the client's own answer.
        payload: digest of the payload that this update answers.
        reproducible_noise: whether the client drew its noise from a public seed, so that anyone who knows the seed can
            subtract it; None if the client did not say, as in records of earlier versions.
        max_grad_norm: clipping norm of this round, where it follows from earlier rounds; None: the announced one.
        contributors: number of clients in the sum, where some may have dropped out; None: all that were announced.
    """

    client: int
    draw: int
    round: int
    gradient: Mapping[str, Tensor]
    omitted: dict[str, Fingerprint] = field(default_factory=dict)
    payload: str = ""
    reproducible_noise: bool | None = None
    max_grad_norm: float | None = None
    contributors: int | None = None

    def save(self, folder: Path, name: str, keep: Mapping[str, Tensor | None], hash_omitted: bool = False) -> None:
        """Write `NAME.json` and `NAME.safetensors` with a part of the update.

        Args:
            folder: where to write; created if missing.
            name: file name without extension, see `update_name`.
            keep: for each tensor to store, the indices of its rows (int64, along dimension 0), or None for all rows.
                Of other tensors, only the shape is stored.
            hash_omitted: whether to store the hash of other tensors too, for which all of the noise has to be drawn.
        """
        if unknown := sorted(keep.keys() - self.gradient.keys()):
            raise KeyError(f"the update has no tensor {unknown[0]!r}")
        tensors: dict[str, Tensor] = {}
        whole: dict[str, Fingerprint] = {}
        omitted = dict(self.omitted)
        for key, shape in shapes_of(self.gradient).items():
            hashed = sha256(self.gradient[key]) if hash_omitted or key in keep else ""
            mark: Fingerprint = {"shape": list(shape), "sha256": hashed}
            if key not in keep:
                omitted[key] = mark
                continue
            whole[key] = mark
            rows, tensor = keep[key], self.gradient[key]
            tensors[key] = tensor if rows is None else tensor[rows.to(tensor.device)]
            if rows is not None:
                tensors[key + ROWS] = rows
        write_tensors(folder, name, tensors)
        content = {"format": "update 1", "client": self.client, "draw": self.draw, "round": self.round}
        content |= {"payload": self.payload, "whole": whole, "omitted": omitted}
        for field_name in _OPTIONAL:
            if (value := getattr(self, field_name)) is not None:
                content[field_name] = value
        write_json(folder / f"{name}.json", content | {"tensors": {k: describe(t) for k, t in tensors.items()}})

    @classmethod
    def load(cls, folder: Path, name: str) -> Self:
        """Read what `save` wrote; a missing, truncated or altered file, or NaN in it, is a `UserError`."""
        path = folder / f"{name}.json"
        with readable(path):
            content = read_json(path, schema.UPDATE, "update 1")
            stored = read_tensors(folder, name, content["tensors"]) if content["tensors"] else {}
            gradient = {}
            for key, mark in content["whole"].items():
                if not bool(stored[key].isfinite().all()):
                    raise ValueError(f"NaN or infinity in {key}")
                gradient[key] = _spread(stored[key], stored.get(key + ROWS), mark["shape"])
            place = content["client"], content["draw"], content["round"]
            return cls(
                *place,
                gradient=gradient,
                omitted=content["omitted"],
                payload=content["payload"],
                reproducible_noise=content.get("reproducible_noise"),
                max_grad_norm=content.get("max_grad_norm"),
                contributors=content.get("contributors"),
            )


def update_name(client: int, draw: int, round: int) -> str:
    """File name, without extension, of one update."""
    return f"update-c{client:03d}-d{draw:03d}-r{round:04d}"


def _spread(kept: Tensor, rows: Tensor | None, shape: list[int]) -> Tensor:
    """Restore a tensor from its stored rows; other rows are NaN."""
    if list(kept.shape) != ([len(rows), *shape[1:]] if rows is not None else shape):
        raise ValueError(f"stored as {tuple(kept.shape)}, recorded as {tuple(shape)}")
    if rows is None:
        return kept
    whole = torch.full(shape, torch.nan, dtype=kept.dtype)
    whole[rows] = kept
    return whole
