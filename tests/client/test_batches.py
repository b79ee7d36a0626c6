# SPDX-License-Identifier: Apache-2.0
"""Which of its images a client uses in a round."""

import math
from collections import Counter
from typing import Literal

import pytest
import torch
from torch import Tensor

from lightning_recon.client import LocalOptions, VictimClient
from lightning_recon.client.batches import drawn_images
from lightning_recon.client.local_training import LocalRound, randomness_of
from lightning_recon.client.noise_source import NoiseSource
from lightning_recon.client.update import clipped_update
from lightning_recon.data import ClientBatch
from lightning_recon.data.sources import DataProtocol
from lightning_recon.errors import UserError
from lightning_recon.exchange import BatchSampling, Sampling, ServerPayload
from lightning_recon.privacy.parameters import Privacy

HELD, BATCH = 10, 4
Granularity = Literal["sample", "update"]


def drawn(method: Sampling, round: int, client: int = 0, draw: int = 0) -> list[int]:
    chosen = drawn_images(BatchSampling(method, HELD), BATCH, HELD, (client, draw, round), NoiseSource(seed=3))
    assert chosen is not None
    assert chosen.dtype == torch.int64
    return list(chosen.tolist())


def a_client(
    sampling: Sampling,
    held: int = HELD,
    announced: int | None = HELD,
    noise: float = 0.0,
    local: LocalOptions = LocalOptions(),  # noqa: B008 - frozen
    granularity: Granularity = "sample",
) -> VictimClient:
    privacy = Privacy(max_grad_norm=1.0, noise_multiplier=noise, granularity=granularity)
    client = VictimClient("convnet", 10, privacy=privacy, sampling=sampling, noise_seed=3, local=local)
    images = torch.rand(held, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    batch = ClientBatch(images, images, images[:, :1] > -1, torch.arange(held) % 10, [""] * held)
    client.bind([batch], DataProtocol(BATCH, local_images=announced))
    return client


def test_all_images_are_used_where_nothing_is_sampled() -> None:
    assert drawn_images(BatchSampling(), BATCH, HELD, (0, 0, 0), NoiseSource(seed=3)) is None


def test_an_epoch_of_shuffled_batches_uses_every_image_once() -> None:
    epochs = [[drawn("shuffle", 3 * epoch + step) for step in range(3)] for epoch in range(2)]
    for epoch in epochs:
        assert [len(batch) for batch in epoch] == [4, 4, 2]  # the last batch is smaller, as in a data loader
        assert sorted(index for batch in epoch for index in batch) == list(range(HELD))
    assert epochs[0] != epochs[1]


def test_batches_of_fixed_size_are_drawn_anew() -> None:
    batches = [drawn("fixed_size", number) for number in range(200)]
    assert all(len(set(batch)) == BATCH for batch in batches)
    counts = Counter(index for batch in batches for index in batch)
    assert all(55 < counts[index] < 105 for index in range(HELD))  # 80 expected, standard deviation 7


def test_poisson_samples_take_every_image_independently() -> None:
    batches = [drawn("poisson", number) for number in range(400)]
    sizes = torch.tensor([float(len(batch)) for batch in batches])
    assert float(sizes.mean()) == pytest.approx(BATCH, abs=0.3)
    assert float(sizes.var()) == pytest.approx(HELD * 0.4 * 0.6, rel=0.3)


def test_the_choice_depends_on_client_draw_and_round_alone() -> None:
    assert drawn("fixed_size", 5) == drawn("fixed_size", 5)
    others = [drawn("fixed_size", 5, client=1), drawn("fixed_size", 5, draw=1), drawn("fixed_size", 6)]
    assert drawn("fixed_size", 5) not in others


def test_an_update_is_about_the_drawn_images_alone() -> None:
    def change(client: VictimClient, round: int) -> Tensor:
        return torch.cat([one.flatten() for one in client.share(ServerPayload(), 0, 0, round).gradient.values()])

    client = a_client("fixed_size")
    whole = client._batches[0]
    chosen = drawn("fixed_size", 7)
    alone = VictimClient("convnet", 10, privacy=client.privacy, noise_seed=3)
    names = [""] * BATCH
    images, labels = whole.images[chosen], whole.labels[chosen]
    alone.bind([ClientBatch(images, images, whole.masks[chosen], labels, names)])
    torch.testing.assert_close(change(client, 7), change(alone, 0))
    assert client.task.sampling == BatchSampling("fixed_size", HELD)
    assert client.task.batches_change
    assert client.task.batch_size == BATCH


def test_a_round_without_images_releases_noise_alone() -> None:
    client = a_client("poisson", held=10_000 // 1000, noise=1.0)
    rounds = [number for number in range(2000) if not drawn("poisson", number)]
    update = client.share(ServerPayload(), 0, 0, rounds[0])
    values = torch.cat([one.flatten() for one in update.gradient.values()])
    assert float(values.std()) == pytest.approx(1.0, rel=0.05)


@pytest.mark.parametrize("options", [{"batch_size": 4}, {"batch_size": 2, "accumulate_grad_batches": 2}])
@pytest.mark.parametrize("granularity", ["sample", "update"])
def test_a_smaller_batch_than_announced_is_trained_on_as_a_data_loader_does(
    options: dict[str, int], granularity: Granularity
) -> None:
    local = LocalOptions(**options)
    client = a_client("shuffle", local=local, granularity=granularity)
    chosen = drawn("shuffle", 2)
    assert len(chosen) == 2
    sent = client.share(ServerPayload(), 0, 0, 2).gradient["network.classifier.bias"]
    whole = client._batches[0]
    training = LocalRound(
        local.announced(BATCH), local.new_optimizer, randomness_of(client.noise_source, 0, 0, 2), BATCH
    )
    own = clipped_update(client.network, whole.images[chosen], whole.labels[chosen], client.privacy, 1, training)
    torch.testing.assert_close(sent, own.gradient["classifier.bias"])
    assert float(sent.abs().max()) > 0


def test_poisson_samples_of_every_size_are_trained_on() -> None:
    poisson = a_client("poisson", local=LocalOptions(batch_size=4, drop_last=True))
    sizes = {}
    for number in range(12):
        sent = poisson.share(ServerPayload(), 0, 0, number).gradient["network.classifier.bias"]
        sizes[len(drawn("poisson", number))] = bool(sent.abs().max() > 0)
    assert min(sizes) < BATCH < max(sizes)
    assert sizes == {size: size >= 4 for size in sizes}  # a data loader leaves smaller mini-batches out


@pytest.mark.parametrize("size", [None, 4])
def test_local_steps_without_images_have_the_noise_of_those_with_images(size: int | None) -> None:
    """Noise of scale zC in each step, times the learning rate, over the announced number of images."""
    client = a_client("poisson", noise=10.0, local=LocalOptions(epochs=2, batch_size=size))
    by_size = {len(drawn("poisson", number)): number for number in range(2000)}
    for count in (0, 3, 4):
        update = client.share(ServerPayload(), 0, 0, by_size[count])
        values = torch.cat([one.flatten() for one in update.gradient.values()])
        assert float(values.std()) == pytest.approx(0.1 * 10.0 / BATCH * math.sqrt(2), rel=0.05)


def test_sampling_needs_the_number_of_images() -> None:
    with pytest.raises(UserError) as raised:
        a_client("shuffle", announced=None)
    assert "--data.local_images" in raised.value.for_command_line
    with pytest.raises(UserError) as raised:
        a_client("shuffle", held=3, announced=3)
    assert "--data.local_images" in raised.value.for_command_line
    with pytest.raises(UserError) as raised:
        a_client("all")
    assert "--model.client.sampling shuffle" in raised.value.for_command_line
