# SPDX-License-Identifier: Apache-2.0
"""The server's side of the protocol: send payloads, collect the updates of all rounds, decode, record."""

import hashlib
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from lightning_recon.exchange import (
    Client,
    ClientUpdate,
    RecordedClient,
    ServerPayload,
    Task,
    at_first_clip,
    factor_in_mean,
    payload_name,
    shapes_of,
    task_of_sums,
    update_name,
)
from lightning_recon.files.schema import Fingerprint
from lightning_recon.structure.base import Decoded, FeedbackCode, Structure


def prepare(client: Client, structure: Structure) -> ServerPayload:
    """The payload to ship; from a recording, the one that was shipped."""
    if isinstance(client, RecordedClient):
        client.require(structure.rounds(client.task))
        return client.payload(0)
    return structure.payload(client.task)


def record_payload(payload: ServerPayload, structure: Structure, task: Task, folder: Path) -> None:
    """Write the task, and the payload of every round before any feedback."""
    task.save(folder)
    payload.save(folder, payload_name(0))
    for number in range(1, structure.rounds(task)):
        payload.save(folder, payload_name(number), like=payload_name(0))


def publish(staged: Path, folder: Path) -> None:
    """Replace an earlier recording by a complete new one; the earlier one stays intact until then."""
    old = folder.with_name(f"{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    staged.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def fingerprint(folder: Path) -> str:
    """Hash (sha256, hexadecimal) of a whole recording, from the hashes that its JSON files hold."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.json")):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def run_protocol(
    client: Client,
    structure: Structure,
    payload: ServerPayload,
    index: int,
    draw: int,
    folder: Path | None,
    hash_omitted: bool = False,
) -> Decoded:
    """Attack one client under one noise draw: average the first rounds' updates, decode, then use feedback, if any.

    Args:
        client: The client.
        structure: The attack.
        payload: What is shipped, the same in every round until there is feedback.
        index: Which client.
        draw: Which noise draw.
        folder: Where to keep the part of the updates that decoding read; None to keep nothing.
        hash_omitted: Whether to keep a hash of the rest, see `ClientUpdate.save`.

    Returns:
        The decoded images, in host memory.
    """
    task = client.task
    opening, received = structure.rounds(task), 0
    total: dict[str, Tensor] = {}
    contributors: list[int | None] = []
    while True:
        for number in range(received, opening):
            update = client.share(payload, index, draw, number)
            # Decoding takes about a second on the CPU, which has float64 on every machine.
            contributors.append(update.contributors)
            read = {name: update.gradient[name].cpu() for name in _of_structure(update)}
            if folder is not None and task.rounds > 1:
                # Which rows matter is known only once all rounds are in, so all rows of each are kept.
                update.save(folder, update_name(index, draw, number), dict.fromkeys(read), hash_omitted)
            if (factor := factor_in_mean(task, update, opening)) != 1:
                read = {name: factor * value for name, value in read.items()}
            total = {name: total[name] + value for name, value in read.items()} if total else read
        received = opening
        mean = {name: value / received for name, value in total.items()} if received > 1 else total
        opened = _as_update(update, mean)
        decoded = structure.decode(payload, replace(task_of_sums(task, contributors), rounds=received), opened)
        enough = len(decoded.images) >= (decoded.mismatch.images or task.victims)
        if enough or received == task.rounds or task.batches_change:
            break
        # Victims not yet detected would dominate the feedback rounds of the others: collect more rounds first.
        opening = min(2 * received, task.rounds)
    if folder is not None and task.rounds == 1:
        update.save(folder, update_name(index, draw, 0), decoded.rows, hash_omitted)
    code = structure.feedback_code(task)
    if code is not None and received < task.rounds:
        decoded = _feed_back(client, code, payload, opened, decoded, received, folder, hash_omitted)
    refinement = None if decoded.refinement is None else decoded.refinement.to("cpu")
    return replace(decoded, images=decoded.images.cpu(), refinement=refinement)


def _feed_back(
    client: Client,
    code: FeedbackCode[Any],
    payload: ServerPayload,
    opened: ClientUpdate,
    decoded: Decoded,
    received: int,
    folder: Path | None,
    hash_omitted: bool,
) -> Decoded:
    """The remaining rounds, in each of which the payload depends on the updates so far."""
    task, index, draw = client.task, opened.client, opened.draw
    knowledge = code.begin(payload, task, opened, decoded)
    if knowledge is None:
        return decoded
    for number in range(received, task.rounds):
        name = payload_name(number, index, draw)
        recorded = client.payload(number, index, draw) if isinstance(client, RecordedClient) else None
        shipped = code.next_payload(task, knowledge) if recorded is None else recorded
        update = client.share(shipped, index, draw, number)
        knowledge = code.update_knowledge(shipped, task, at_first_clip(task, update), knowledge)
        if folder is not None:
            shipped.save(folder, name, like=payload_name(0))
            update.save(folder, update_name(index, draw, number), dict.fromkeys(_of_structure(update)), hash_omitted)
    return code.conclude(task, knowledge, decoded)


def _of_structure(update: ClientUpdate) -> list[str]:
    """Names of the tensors that belong to the added layer."""
    return [name for name in update.gradient if name.startswith("structure.")]


def _as_update(last: ClientUpdate, mean: dict[str, Tensor]) -> ClientUpdate:
    """The mean of all rounds as an update; of tensors that are not the structure's only the shapes are kept."""
    shapes = shapes_of(last.gradient)
    others: dict[str, Fingerprint] = {
        name: {"shape": list(shape), "sha256": ""} for name, shape in shapes.items() if name not in mean
    }
    return replace(last, gradient=mean, omitted={**last.omitted, **others})
