# SPDX-License-Identifier: Apache-2.0
"""The server's side of the exchange: ship, listen for all rounds, decode, and keep what was read."""

from dataclasses import replace
from pathlib import Path

import torch
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
from lightning_recon.structure.guess import Guess, Structure


def prepare(client: Client, structure: Structure) -> ServerPayload:
    """The payload to ship; from a recording, the one that was shipped."""
    if isinstance(client, RecordedClient):
        return client.payload(0)
    return structure.payload(client.task)


def record_payload(payload: ServerPayload, task: Task, folder: Path) -> None:
    """Write what was announced and what was shipped in every round."""
    task.save(folder)
    payload.save(folder, payload_name(0))
    for number in range(1, task.rounds):
        payload.save(folder, payload_name(number), like=payload_name(0))


def converse(
    client: Client, structure: Structure, payload: ServerPayload, index: int, draw: int, folder: Path | None
) -> Guess:
    """Attack one client under one noise draw: every round's answer, their mean, its decoding.

    Args:
        client: Who answers.
        structure: Who decodes.
        payload: What is shipped, the same in every round.
        index: Which client.
        draw: Which noise draw.
        folder: Where to keep what the decoding read of the updates; None to keep nothing.

    Returns:
        What was learned.
    """
    task = client.task
    total: dict[str, Tensor] = {}
    for number in range(task.rounds):
        update = client.share(payload, index, draw, number)
        read = {name: value for name, value in update.gradient.items() if name.startswith("structure.")}
        total = {name: total[name] + value for name, value in read.items()} if total else read
        if folder is not None and task.rounds > 1:
            # Which rows matter is known only once all rounds are in, so all rows of each are kept.
            update.save(folder, update_name(index, draw, number), keep=dict.fromkeys(read))
    mean = {name: value / task.rounds for name, value in total.items()} if task.rounds > 1 else total
    guess = structure.decode(payload, task, _as_update(update, mean))
    if folder is not None and task.rounds == 1:
        update.save(folder, update_name(index, draw, 0), keep=guess.rows)
    return _on_cpu(guess)


def _as_update(last: ClientUpdate, mean: dict[str, Tensor]) -> ClientUpdate:
    """The mean of all rounds in the shape of an update; what is not the structure's is counted, not carried."""
    others = {name: {"shape": list(value.shape), "sha256": ""} for name, value in last.gradient.items() if name not in mean}
    return replace(last, gradient=mean, omitted={**last.omitted, **others})


def _on_cpu(guess: Guess) -> Guess:
    """Guesses of all clients wait in host memory until they are refined together."""
    posterior = guess.posterior and replace(
        guess.posterior, **{name: value.cpu() for name, value in vars(guess.posterior).items()}
    )
    moments = None if guess.moments is None else guess.moments.cpu()
    return replace(guess, pictures=guess.pictures.cpu(), posterior=posterior, moments=moments)

