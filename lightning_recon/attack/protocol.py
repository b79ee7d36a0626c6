# SPDX-License-Identifier: Apache-2.0
"""The server's side of the protocol: send payloads, collect the updates of all rounds, decode, record."""

import hashlib
import shutil
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from lightning_recon.exchange import (
    Client,
    ClientUpdate,
    RecordedClient,
    ServerPayload,
    Task,
    payload_name,
    update_name,
)
from lightning_recon.files.schema import Fingerprint
from lightning_recon.structure.base import Decoded, Structure
from lightning_recon.structure.feedback import Feedback
from lightning_recon.structure.readout import weight_names


def prepare(client: Client, structure: Structure) -> ServerPayload:
    """The payload to ship; from a recording, the one that was shipped."""
    if isinstance(client, RecordedClient):
        client.require(_opening_rounds(structure, client.task))
        return client.payload(0)
    return structure.payload(client.task)


def record_payload(payload: ServerPayload, structure: Structure, task: Task, folder: Path) -> None:
    """Write what was announced, and what is shipped to every client in the rounds before any feedback."""
    task.save(folder)
    payload.save(folder, payload_name(0))
    for number in range(1, _opening_rounds(structure, task)):
        payload.save(folder, payload_name(number), like=payload_name(0))


def publish(staged: Path, folder: Path) -> None:
    """Put a complete recording in the place of an earlier one, which stays whole until then."""
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
    client: Client, structure: Structure, payload: ServerPayload, index: int, draw: int, folder: Path | None
) -> Decoded:
    """Attack one client under one noise draw: every round's answer, their mean, its decoding, and feedback.

    Args:
        client: Who answers.
        structure: Who decodes.
        payload: What is shipped, the same in every round until there is feedback.
        index: Which client.
        draw: Which noise draw.
        folder: Where to keep what the decoding read of the updates; None to keep nothing.

    Returns:
        What was learned.
    """
    task = client.task
    opening, received = _opening_rounds(structure, task), 0
    total: dict[str, Tensor] = {}
    while True:
        for number in range(received, opening):
            update = client.share(payload, index, draw, number)
            # Decoding takes a second where the payload is: in host memory, with float64 at hand.
            read = {name: value.cpu() for name, value in update.gradient.items() if name.startswith("structure.")}
            total = {name: total[name] + value for name, value in read.items()} if total else read
            if folder is not None and task.rounds > 1:
                # Which rows matter is known only once all rounds are in, so all rows of each are kept.
                update.save(folder, update_name(index, draw, number), keep=dict.fromkeys(read))
        received = opening
        mean = {name: value / received for name, value in total.items()} if received > 1 else total
        opened = _as_update(update, mean)
        guess = structure.decode(payload, task, opened)
        if len(guess.pictures) == task.victims or received == task.rounds:
            break
        # Victims not yet detected would dominate the feedback rounds of the others: collect more opening rounds.
        opening = min(2 * received, task.rounds)
    if folder is not None and task.rounds == 1:
        update.save(folder, update_name(index, draw, 0), keep=guess.rows)
    if isinstance(structure, Feedback) and received < task.rounds:
        guess = _feed_back(client, structure, payload, opened, guess, received, folder)
    return _on_cpu(guess)


def _feed_back(
    client: Client,
    structure: Feedback,
    payload: ServerPayload,
    opened: ClientUpdate,
    guess: Decoded,
    received: int,
    folder: Path | None,
) -> Decoded:
    """The rounds in which the structure sends what the server does not know yet."""
    task, index, draw = client.task, opened.client, opened.draw
    knowledge = structure.begin(payload, task, opened, guess)
    if knowledge is None:
        return guess
    for number in range(received, task.rounds):
        name = payload_name(number, index, draw)
        recorded = client.payload(number, index, draw) if isinstance(client, RecordedClient) else None
        shipped = structure.next_payload(task, knowledge) if recorded is None else recorded
        update = client.share(shipped, index, draw, number)
        knowledge = structure.update_knowledge(shipped, task, update, knowledge)
        if folder is not None:
            shipped.save(folder, name, like=payload_name(0))
            update.save(folder, update_name(index, draw, number), keep=dict.fromkeys(weight_names(shipped)))
    return structure.conclude(task, knowledge, guess)


def _opening_rounds(structure: Structure, task: Task) -> int:
    """Rounds that repeat the first payload: all of them but for a structure that uses feedback."""
    return structure.opening_rounds(task) if isinstance(structure, Feedback) else task.rounds


def _as_update(last: ClientUpdate, mean: dict[str, Tensor]) -> ClientUpdate:
    """The mean of all rounds in the shape of an update; what is not the structure's is counted, not carried."""
    others: dict[str, Fingerprint] = {
        name: {"shape": list(value.shape), "sha256": ""} for name, value in last.gradient.items() if name not in mean
    }
    return replace(last, gradient=mean, omitted={**last.omitted, **others})


def _on_cpu(guess: Decoded) -> Decoded:
    """Guesses of all clients wait in host memory until they are refined together."""
    posterior = guess.posterior and replace(
        guess.posterior, **{name: value.cpu() for name, value in vars(guess.posterior).items()}
    )
    moments = None if guess.moments is None else guess.moments.cpu()
    return replace(guess, pictures=guess.pictures.cpu(), posterior=posterior, moments=moments)
