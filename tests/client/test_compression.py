# SPDX-License-Identifier: Apache-2.0
"""Compression of updates: known answers, its place before or after the noise, and sums of clients."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_recon.client import Privacy, VictimClient
from lightning_recon.client.compression import compressed, kept_entries
from lightning_recon.client.noise_source import NoiseSource
from lightning_recon.client.privatize import noised_when_read, privatized
from lightning_recon.data import ClientBatch
from lightning_recon.errors import UserError
from lightning_recon.exchange import Compression, ServerPayload
from lightning_recon.exchange.compression import Method

UPDATE = {"a": torch.tensor([[0.5, -4.0], [0.0, 1.26]]), "b": torch.tensor([-10.0, 0.001])}


def after(method: Method, update: dict[str, Tensor] = UPDATE, seed: int = 0, **options: Any) -> dict[str, list[float]]:  # noqa: ANN401 - of the compression
    found = compressed(update, Compression(method, **options), np.random.default_rng(seed))
    assert all(found[name].shape == one.shape and found[name].dtype == one.dtype for name, one in update.items())
    return {name: one.flatten().tolist() for name, one in found.items()}


def test_formats_round_to_their_nearest_number() -> None:
    numbers = {"a": torch.tensor([1 + 2**-10, 1 + 2**-11 + 2**-13, 1e6, -1e6, 2**-25])}
    assert after("float16", numbers)["a"] == [1 + 2**-10, 1 + 2**-10, 65504.0, -65504.0, 0.0]
    assert after("bfloat16", numbers)["a"] == [1.0, 1.0, 999424.0, -999424.0, 2**-25]


def test_int8_has_a_scale_for_each_tensor() -> None:
    found = after("int8")
    assert found["a"] == pytest.approx([16 * 4 / 127, -4.0, 0.0, 40 * 4 / 127], rel=1e-6)
    assert found["b"] == pytest.approx([-10.0, 0.0])
    assert after("int8", {"a": torch.zeros(3)})["a"] == [0.0, 0.0, 0.0]


def test_qsgd_rounds_at_random_and_without_bias() -> None:
    numbers = {"a": torch.tensor([1.0, 0.3, -0.8, 0.0]).repeat(20_000, 1)}
    found = compressed(numbers, Compression("qsgd", levels=2), np.random.default_rng(0))["a"]
    assert set(found.flatten().tolist()) == {1.0, 0.5, 0.0, -0.5, -1.0}
    assert torch.allclose(found.mean(0), numbers["a"][0], atol=0.01)
    assert found[:, 1].unique().tolist() == [0.0, 0.5]
    assert not torch.equal(found, compressed(numbers, Compression("qsgd", levels=2), np.random.default_rng(1))["a"])


def test_top_k_keeps_the_largest_of_all_or_of_each_tensor() -> None:
    assert after("top_k", share=2 / 6) == {"a": [0.0, -4.0, 0.0, 0.0], "b": [-10.0, 0.0]}
    expected = {"a": [0.0, -4.0, 0.0, pytest.approx(1.26)], "b": [-10.0, 0.0]}
    assert after("top_k", share=0.5, per_tensor=True) == expected
    assert after("top_k", share=1e-9) == {"a": [0.0] * 4, "b": [-10.0, 0.0]}  # at least one


def test_random_k_keeps_as_many_at_random_and_does_not_scale_them() -> None:
    numbers = {"a": torch.arange(1.0, 601.0).reshape(2, 300), "b": torch.arange(601.0, 1001.0)}
    for per_tensor in (False, True):
        found = compressed(numbers, Compression("random_k", 0.1, per_tensor), np.random.default_rng(0))
        kept = {name: one != 0 for name, one in found.items()}
        assert all(torch.equal(found[name][kept[name]], one[kept[name]]) for name, one in numbers.items())
        assert sum(int(one.sum()) for one in kept.values()) == 100
        assert (int(kept["b"].sum()) == 40) == per_tensor
    again, other = (kept_entries(numbers, Compression("random_k", 0.1), np.random.default_rng(one)) for one in (0, 1))
    assert not torch.equal(again["b"], other["b"])


def test_signs_have_the_mean_magnitude_of_their_tensor() -> None:
    mean = (0.5 + 4 + 1.26) / 4
    assert after("sign")["a"] == pytest.approx([mean, -mean, mean, mean])
    assert after("sign")["b"] == pytest.approx([-5.0005, 5.0005])


def released(compression: Compression | None, noise_multiplier: float = 0.1, clip: float = 1.0) -> dict[str, Tensor]:
    update = {"a": torch.full((400, 50), 1e-3), "b": torch.full((100,), 1e-2)}
    update["a"][:4] = 0.05
    privacy = Privacy(clip, noise_multiplier)
    clipped, noise = privacy.clip(update), [(1.0, NoiseSource(0).generators(0, 0, 0))]
    if compression is None:
        return dict(noised_when_read(clipped, privacy, noise))
    return privatized(clipped, privacy, noise, compression, np.random.default_rng(0))


def test_noise_is_under_the_compression_unless_it_comes_later() -> None:
    plain = released(None)
    for method in ("top_k", "random_k", "int8", "sign"):
        found = released(Compression(method))
        expected = compressed(plain, Compression(method), np.random.default_rng(0))
        assert all(torch.equal(found[name], one) for name, one in expected.items())
    # Before the noise, which then is on all entries, but for those that were drawn without looking at them.
    sparse = released(Compression("top_k", 200 / 20_100, before_noise=True))
    assert float(sparse["a"][4:].std()) == pytest.approx(0.1, rel=0.05)
    assert float(sparse["a"][:4].mean()) > 0.04
    drawn = released(Compression("random_k", 0.1, before_noise=True))
    assert sum(int((one != 0).sum()) for one in drawn.values()) == 2010
    assert float(drawn["a"][drawn["a"] != 0].std()) == pytest.approx(0.1, rel=0.05)


@pytest.mark.parametrize("method", ["qsgd", "int8", "sign", "float16"])
def test_what_is_compressed_before_the_noise_is_clipped_again(method: Method) -> None:
    found = released(Compression(method, levels=1, before_noise=True), noise_multiplier=0.0, clip=0.5)
    assert float(torch.cat([one.flatten() for one in found.values()]).double().norm()) <= 0.5 * (1 + 1e-4)


def client_of(batches: list[ClientBatch], aggregated: int = 1, **settings: Any) -> VictimClient:  # noqa: ANN401 - of the client
    client = VictimClient("tests.client.conftest.Linear", 5, aggregated=aggregated, **settings, noise_seed=0)
    client.bind(batches)
    return client


@pytest.mark.parametrize("method", ["int8", "random_k", "qsgd"])
def test_clients_compress_before_they_are_added_up(method: Method, a_batch: Callable[..., ClientBatch]) -> None:
    batches = [a_batch(0), a_batch(1)]
    privacy, compression = Privacy(1.0, 1e-3), Compression(method)
    assert client_of(batches, privacy=privacy, compression=compression).task.compression == compression
    summed = client_of(batches, 2, privacy=privacy, compression=compression).share(ServerPayload(), 0, 0, 0).gradient
    alone = client_of(batches, privacy=privacy, compression=compression)
    each = [alone.share(ServerPayload(), client, 0, 0).gradient for client in (0, 1)]
    name = "network.linear.weight"
    if method == "random_k":  # each alone keeps its own entries, in a sum all keep the same
        kept = sum(int((one != 0).sum()) for one in summed.values())
        assert kept == sum(int((one != 0).sum()) for one in each[0].values())
        assert not torch.equal(each[0][name] != 0, each[1][name] != 0)
    else:
        assert torch.allclose(summed[name], each[0][name] + each[1][name], atol=1e-7)


@pytest.mark.parametrize(
    ("compression", "privacy", "aggregated", "message"),
    [
        (Compression("top_k"), Privacy(), 2, "must keep the same entries"),
        (Compression("int8", before_noise=True), Privacy(granularity="sample"), 1, "no clip bounds"),
        (Compression("top_k", share=0.0), Privacy(), 1, "share is 0.0"),
        (Compression("qsgd", levels=0), Privacy(), 1, "levels is 0"),
        (Compression("int8", share=0.5), Privacy(), 1, "share has no effect on int8"),
        (Compression("qsgd", per_tensor=True), Privacy(), 1, "per_tensor has no effect on qsgd"),
        (Compression("top_k", levels=3), Privacy(), 1, "levels has no effect on top_k"),
    ],
)
def test_what_cannot_be_compressed_is_refused(
    compression: Compression, privacy: Privacy, aggregated: int, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        client_of([], aggregated, privacy=privacy, compression=compression)
