# SPDX-License-Identifier: Apache-2.0
"""The clients' batches: whether they fit the client's options, and whose batch an answer is computed on."""

from collections.abc import Sequence

from lightning_recon.client.local_options import LocalOptions
from lightning_recon.client.noise_source import NoiseSource
from lightning_recon.data.sources import ClientBatch
from lightning_recon.errors import UserError


def check_batches(
    batches: Sequence[ClientBatch], num_classes: int, aggregated: int, participation: float, local: LocalOptions
) -> None:
    """Refuse batches that the client cannot answer on.

    Args:
        batches: one for each client.
        num_classes: number of classes of the network.
        aggregated: clients in a group under secure aggregation.
        participation: probability with which a client answers on its own batch.
        local: local training.

    Raises:
        UserError: a label exceeds the number of classes, or a number of clients or images does not fit the options.
    """
    if len(batches) % aggregated:
        raise UserError(
            f"--model.client.aggregated is {aggregated}, which does not divide the {len(batches)} client(s): "
            f"set --data.clients to a multiple of {aggregated}"
        )
    if participation < 1 and len(batches) < 2 * aggregated:
        raise UserError(
            f"--model.client.participation is {participation}, but no other client's images can replace those of an "
            f"absent client: set --data.clients to {2 * aggregated} or more"
        )
    for batch in batches:
        local.announced(len(batch.labels))
        if not 0 <= int(batch.labels.min()) <= int(batch.labels.max()) < num_classes:
            raise UserError(
                f"the images have labels up to {int(batch.labels.max())}, but the network has {num_classes} classes: "
                "raise --model.client.num_classes"
            )


def present(
    members: tuple[int, ...], dropout: float, draw: int, round: int, noise_source: NoiseSource
) -> tuple[int, ...]:
    """The clients of a group whose updates are in a round's sum; at least one.

    Args:
        members: the clients of the group.
        dropout: probability with which a client drops out of a round.
        draw: index of the noise realization.
        round: index of the round.
        noise_source: key of the draws: the server learns how many dropped out, not who.
    """
    if dropout == 0:
        return members
    drawn = noise_source.generator("dropout of clients", members[0], draw, round).random(len(members))
    kept = tuple(member for member, one in zip(members, drawn, strict=True) if one >= dropout)
    return kept or (members[int(drawn.argmax())],)


def answering_client(
    client: int,
    draw: int,
    round: int,
    *,
    clients: int,
    aggregated: int,
    participation: float,
    noise_source: NoiseSource,
) -> int:
    """Index of the client whose batch an answer is computed on.

    A client that does not participate in a round answers on the batch of a client of another group, so that no batch
    enters one sum twice.

    Args:
        client: index of the client that answers.
        draw: index of the noise realization.
        round: index of the round.
        clients: number of clients.
        aggregated: clients in a group under secure aggregation.
        participation: probability with which a client answers on its own batch.
        noise_source: key of the draws: the server must not know who participates.
    """
    if participation == 1:
        return client
    generator = noise_source.generator("participation", client, draw, round)
    if generator.random() < participation:
        return client
    away = aggregated * int(generator.integers(1, clients // aggregated))
    return (client + away) % clients
