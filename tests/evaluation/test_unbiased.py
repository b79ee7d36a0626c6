# SPDX-License-Identifier: Apache-2.0
"""Bounds on unbiased readings against closed forms, the noise law, and a real client's gradient."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call, grad, jacrev

from lightning_recon.data.images import ClientBatch
from lightning_recon.evaluation.bounds import noise_law_psnr
from lightning_recon.evaluation.unbiased import fisher_psnr, fisher_trace, unbiased_psnr
from lightning_recon.exchange import ServerPayload
from lightning_recon.victim import Privacy, VictimClient


def test_any_unbiased_reading_by_known_values() -> None:
    # MSE >= 1 / (4 (exp(4 / z^2) - 1))
    assert unbiased_psnr(1.0, 1) == pytest.approx(-10 * math.log10(1 / (4 * math.expm1(4.0))))
    assert unbiased_psnr(1.0, 1) == pytest.approx(23.3, abs=0.05)
    assert unbiased_psnr(0.5, 1) == pytest.approx(75.5, abs=0.05)
    assert unbiased_psnr(4.2, 1) == pytest.approx(0.0, abs=0.1)
    assert unbiased_psnr(2.0, 4) == pytest.approx(unbiased_psnr(1.0, 1))


def test_any_unbiased_reading_at_the_limits() -> None:
    for z in (0.0, 1e-6, 0.1):
        assert unbiased_psnr(z, 1) == 100.0
    # z -> infinity: MSE -> z^2 / 16
    assert unbiased_psnr(1e4, 1) == pytest.approx(-10 * math.log10(1e8 / 16), abs=1e-3)
    values = [unbiased_psnr(z, 3) for z in (0.9, 1.0, 2.0, 5.0, 100.0)]
    assert all(later < earlier for earlier, later in itertools.pairwise(values))


def test_one_pixel_s_best_unbiased_reading_keeps_to_the_bound() -> None:
    # A pixel in [0, 1] sent as 2 x - 1 uses the whole clipping norm; halving the noise's mean gives error z^2 / 4.
    for z in (0.3, 1.0, 3.0):
        assert unbiased_psnr(z, 1) >= -10 * math.log10(z**2 / 4)


def sent_as_it_is(image: Tensor) -> Tensor:
    """A structure that sends the picture itself, clipped to norm 10."""
    return 10.0 * image.flatten() / image.norm()


def test_where_the_picture_itself_is_sent_the_bound_is_the_noise_law() -> None:
    image = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    z, rounds, values = 0.02, 5, image.numel()
    energy = image.square().sum()
    exact = (values - 1) / (z**2 * float(energy))
    assert fisher_trace(sent_as_it_is, image, z * 10.0, probes=100) == pytest.approx(exact, rel=0.01)
    law = noise_law_psnr(z, energy[None, None], "sample", rounds)
    assert fisher_psnr(exact, values, rounds) == pytest.approx(law + 10 * math.log10((values - 1) / values))
    assert fisher_psnr(1e30, values, rounds) == 100.0


def test_information_about_a_picture_in_a_real_client_s_gradient() -> None:
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(1, 3, 16, 16, generator=generator)
    batch = ClientBatch(images, images, torch.ones(1, 1, 16, 16, dtype=torch.bool), torch.tensor([2]), ["one"])
    client = VictimClient("convnet", 4, privacy=Privacy(0.01, 0.0, "sample"))
    client.bind([batch])
    weights = {name: tensor.detach() for name, tensor in client.network.named_parameters()}

    def release(image: Tensor) -> Tensor:
        def loss(parameters: dict[str, Tensor]) -> Tensor:
            return F.cross_entropy(functional_call(client.network, parameters, (image[None],)), batch.labels)

        gradient = grad(loss)(weights)
        flat = torch.cat([gradient[name].flatten() for name in sorted(gradient)])
        return flat * (0.01 / flat.norm()).clamp(max=1)

    # The function is the client's own release.
    answer = client.share(ServerPayload(), 0, 0, 0).gradient
    sent = torch.cat([answer[name].flatten() for name in sorted(answer)])
    torch.testing.assert_close(release(images[0]), sent, rtol=1e-4, atol=1e-7)
    exact = float(jacrev(lambda image: release(image)[:100])(images[0]).double().square().sum())
    first = fisher_trace(lambda image: release(image)[:100], images[0], 1.0, probes=100)
    assert first == pytest.approx(exact, rel=0.15)
    quiet, loud = (fisher_psnr(fisher_trace(release, images[0], 0.01 * z, probes=5), 768, 1) for z in (0.01, 0.1))
    assert quiet == pytest.approx(loud + 20)
