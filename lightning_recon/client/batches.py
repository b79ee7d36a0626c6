# SPDX-License-Identifier: Apache-2.0
"""The clients' batches: whether they fit the client's options, and which images an answer is computed on."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from lightning_recon.client.local_options import LocalOptions
from lightning_recon.client.noise_source import NoiseSource
from lightning_recon.data.sources import ClientBatch
from lightning_recon.errors import UserError
from lightning_recon.exchange import BatchSampling
from lightning_recon.plural import counted


def check_batches(
    batches: Sequence[ClientBatch],
    aggregated: int,
    participation: float,
    local: LocalOptions,
    sampling: BatchSampling = BatchSampling(),  # noqa: B008 - frozen
    batch_size: int | None = None,
    first_client: int = 0,
) -> None:
    """Refuse batches that the client cannot answer on.

    Args:
        batches: one for each client.
        aggregated: clients in a group under secure aggregation.
        participation: probability with which a client answers on its own batch.
        local: local training.
        sampling: which of its images a client uses in a round.
        batch_size: images in a round; None: all.
        first_client: number of the first of these clients among all clients of the run.

    Raises:
        UserError: a number of clients or images does not fit the options.
    """
    if len(batches) % aggregated:
        raise UserError(
            f"--model.client.aggregated is {aggregated}, which does not divide the {counted(len(batches), 'client')}: "
            f"set --data.clients to a multiple of {aggregated}"
        )
    if first_client % aggregated:
        raise UserError(
            f"--data.first_client is {first_client}, and updates of {aggregated} clients are summed: give a multiple "
            f"of {aggregated}"
        )
    if participation < 1 and first_client:
        raise UserError(
            f"--data.first_client is {first_client}, but clients that do not take part in a round answer on the images "
            "of all others: set it to 0, or --model.client.participation to 1"
        )
    if participation < 1 and len(batches) < 2 * aggregated:
        raise UserError(
            f"--model.client.participation is {participation}, but no other client's images can replace those of an "
            f"absent client: set --data.clients to {2 * aggregated} or more"
        )
    if sampling.method == "poisson" and local.steps is not None:
        raise UserError(
            "--model.client.local.steps divides a batch, and Poisson samples have no fixed size: give "
            "--model.client.local.batch_size"
        )
    for batch in batches:
        if sampling.method == "all":
            local.announced(len(batch.labels))
            if sampling.images is not None and sampling.images != batch_size:
                raise UserError(
                    f"--data.local_images is {sampling.images} and --data.batch_size {batch_size}: say how batches are "
                    "drawn by --model.client.sampling shuffle, fixed_size or poisson"
                )
        elif batch_size is None or len(batch.labels) < batch_size or sampling.images != len(batch.labels):
            held = counted(len(batch.labels), "image")
            raise UserError(
                f"--model.client.sampling is {sampling.method}, but a client holds {held}: give the number of its "
                "images by --data.local_images, at least --data.batch_size"
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


def drawn_images(
    sampling: BatchSampling, batch_size: int, count: int, place: tuple[int, int, int], noise_source: NoiseSource
) -> Tensor | None:
    """Which of its images a client uses in a round.

    Args:
        sampling: how they are drawn.
        batch_size: images in a batch; of Poisson samples the expected number.
        count: how many images the client holds.
        place: the client, the draw and the round.
        noise_source: key of the draws: the server must not know who was drawn.

    Returns:
        Ascending indices, int64, none of them twice; of a Poisson sample maybe none at all. None: all images.
    """
    if sampling.method == "all":
        return None
    client, draw, round = place
    if sampling.method == "poisson":
        drawn = noise_source.generator("poisson batch", client, draw, round).random(count) < batch_size / count
        return torch.from_numpy(drawn.nonzero()[0])
    if sampling.method == "fixed_size":
        chosen = noise_source.generator("batch", client, draw, round).choice(count, batch_size, replace=False)
        return torch.from_numpy(np.sort(chosen))
    # The last batch of an epoch may be smaller, as in a data loader.
    epoch, number = divmod(round, -(-count // batch_size))
    order = noise_source.generator("epoch", client, draw, epoch).permutation(count)
    return torch.from_numpy(np.sort(order[number * batch_size : (number + 1) * batch_size]))
