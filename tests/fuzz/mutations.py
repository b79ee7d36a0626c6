# SPDX-License-Identifier: Apache-2.0
"""Damage to files: bytes flipped and cut, and in JSON other values, other types, and entries that are gone."""

import copy
import json
import random
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lightning_recon.files.digests import DIGEST, digest_of

ODD: list[Any] = [
    *(None, True, "yes", "", "1", 0, -1, 24.7, 1e308, 10**9, 10**40, [], {}, [[]]),
    *("\ud800", "x [/red]y", "\x1b]0;t\x07", "$\\frac$", "../../etc/passwd", "A" * 100_000, [0] * 1000, [10**6] * 3),
]


def damaged(path: Path, whole: bytes, rng: random.Random) -> tuple[str, bytes]:
    """One damaged version of a file with the bytes `whole`: what was done, and its bytes, which differ."""
    choices = [cut, flipped]
    if path.suffix in (".json", ".safetensors"):
        choices += [swapped, swapped, forged]
    while True:
        choice = rng.choice(choices)
        changed = choice(path, whole, rng)
        if changed != whole:
            return choice.__name__, changed


def cut(path: Path, whole: bytes, rng: random.Random) -> bytes:
    """The beginning of a file."""
    return whole[: rng.randrange(len(whole))]


def flipped(path: Path, whole: bytes, rng: random.Random) -> bytes:
    """A file with a few bits flipped."""
    found = bytearray(whole)
    for _ in range(rng.choice((1, 1, 1, 3))):
        found[rng.randrange(len(found))] ^= 1 << rng.randrange(8)
    return bytes(found)


def swapped(path: Path, whole: bytes, rng: random.Random) -> bytes:
    """A file whose record says something else than its digest."""
    return _rewritten(path, whole, rng, forge=False)


def forged(path: Path, whole: bytes, rng: random.Random) -> bytes:
    """The same with a digest that belongs to it, as far as it is over the record alone."""
    return _rewritten(path, whole, rng, forge=True)


def _rewritten(path: Path, whole: bytes, rng: random.Random, forge: bool) -> bytes:
    if path.suffix == ".json":
        return json.dumps(_changed(json.loads(whole), rng, forge), indent=1).encode()
    (length,) = struct.unpack("<Q", whole[:8])
    header = json.loads(whole[8 : 8 + length])
    metadata = header.get("__metadata__", {})
    for entry, text in metadata.items():
        metadata[entry] = json.dumps(_changed(json.loads(text), rng, False))
    if not metadata:
        header = _changed(header, rng, False)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + whole[8 + length :]


def _changed(record: dict[str, Any], rng: random.Random, forge: bool) -> dict[str, Any]:
    """The record with one entry, at any depth, replaced or gone."""
    record = copy.deepcopy(record)
    place = rng.choice(list(_places(record)))
    inner: Any = record
    for key in place[:-1]:
        inner = inner[key]
    if isinstance(inner, dict) and rng.random() < 0.2:
        del inner[place[-1]]
    else:
        inner[place[-1]] = copy.deepcopy(rng.choice(ODD))
    if forge and DIGEST in record:
        record[DIGEST] = digest_of(record)
    return record


def _places(value: object, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield (*place, key)
        yield from _places(item, (*place, key))
