# SPDX-License-Identifier: Apache-2.0
"""Sections of `results.json` that follow from the protection and the true images, without any attack."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lightning_recon.evaluation.bounds import (
    Granularity,
    channel_nats,
    noise_law_batch_quantile,
    noise_law_psnr,
    unbiased_psnr,
)
from lightning_recon.evaluation.gaussian_reference import gaussian_reference
from lightning_recon.evaluation.metrics import psnr_per_image
from lightning_recon.evaluation.sampled_epsilon import hidden_epsilon, sampled_epsilon, sampling_record
from lightning_recon.evaluation.scoring import Truth
from lightning_recon.exchange import BatchSampling, NoiseShare, summed_noise
from lightning_recon.privacy.correlated_noise import equivalent_multiplier
from lightning_recon.privacy.gaussian import Gaussian
from lightning_recon.privacy.gaussian_accounting import nominal_epsilon
from lightning_recon.privacy.incomplete_sums import accounted_mechanism
from lightning_recon.privacy.mechanism import ADJACENCIES, Adjacency, Mechanism
from lightning_recon.privacy.parameters import mechanism_named
from lightning_recon.privacy.risk import FALSE_POSITIVE_RATES

_KAPPAS = (0.1,)
_UPPER_TAIL = 0.05

Record = dict[str, object]


def privacy_record(
    *,
    granularity: Granularity,
    per_layer: bool,
    max_grad_norm: float | None,
    noise_multiplier: float,
    rounds: int,
    batch_size: int,
    delta: float,
    adjacency: Adjacency,
    aggregated: int = 1,
    noise_share: NoiseShare = "local",
    mechanism: str = "gaussian",
    releases_per_round: int = 1,
    sampling: BatchSampling = BatchSampling(),  # noqa: B008 - frozen
    noise_bands: int = 1,
    adaptive_clip: Mapping[str, object] | None = None,
    client_dropout: float = 0.0,
    participation: float | None = 1.0,
) -> Record:
    """The protection under attack and its privacy guarantee.

    Args:
        granularity: "sample" or "update": what is clipped, hence the unit of privacy.
        per_layer: Whether each tensor is clipped by itself.
        max_grad_norm: Clipping norm C; None without clipping, which guarantees nothing.
        noise_multiplier: Scale of the noise divided by C.
        rounds: Releases of the same images.
        batch_size: Images a client.
        delta: Privacy parameter, in (0, 1).
        adjacency: "add_remove" or "replace_one": whose epsilon is `epsilon_accounted`; both are stated.
        aggregated: Clients whose updates reach the server as their sum alone (N).
        noise_share: "local": each adds noise of zC; "distributed": zC / sqrt(N), so that the sum has zC.
        mechanism: Name of the mechanism; what is not known of one is None.
        releases_per_round: Noisy sums of a round that an image is in, see `Task.releases_per_round`. All of them
            compose.
        sampling: Which of its images a client uses in a round, see `BatchSampling.accounted`.
        noise_bands: See `Task.noise_bands`. Accounted as independent noise with the same guarantee for all rounds.
        adaptive_clip: See `Task.adaptive_clip`; the noise multiplier is that of update and number together.
        client_dropout: Probability with which a client of a sum drops out of a round, and with distributed noise its
            share of the noise too, see `IncompleteSums`.
        participation: Probability with which a client answers a round on its own images; None if it is not known.
            Epsilon is that of one client's updates, as if they were about its images in every round. Below 1 an image
            may be in updates of other clients too, which this epsilon does not count.

    Returns:
        The `privacy` section. Risks of membership are those of `adjacency`; the robustness bound compares releases with
        and without one record, whatever `adjacency` epsilon is stated for. Accounted epsilon, mu, risks and robustness
        bound follow from the noise multiplier: with local noise they are each client's own guarantee, which does not
        depend on the aggregation; with distributed noise that of the sum, less the shares of clients that drop out.
        `epsilon_of_one_client` is that of one client's update if the server sees it by itself, `epsilon_of_sum` that of
        the aggregated sum.
    """
    z = 0.0 if max_grad_norm is None else equivalent_multiplier(noise_multiplier, noise_bands, rounds)
    each, counted = mechanism_named(mechanism), sampling.accounted(granularity, noise_bands)
    releases = counted.most_rounds(batch_size, rounds) * releases_per_round
    sums = accounted_mechanism(
        each,
        clients=aggregated,
        distributed=True,
        dropout=client_dropout,
        rounds=rounds,
        releases=releases_per_round,
        noise_bands=noise_bands,
        adaptive=adaptive_clip is not None,
    )
    noise = sums if noise_share == "distributed" else each

    def epsilon(noise: Mechanism, multiplier: float, neighbours: Adjacency = adjacency) -> float | None:
        guarantee = delta, neighbours
        return sampled_epsilon(noise, multiplier, rounds, releases_per_round, counted, batch_size, guarantee)

    accounted = {name: epsilon(noise, z, name) for name in ADJACENCIES}
    hidden = hidden_epsilon(
        noise, z, rounds, releases_per_round, counted, batch_size, (delta, adjacency), accounted[adjacency]
    )
    of_sum = summed_noise(z, aggregated, noise_share)
    summable = aggregated == 1 or each.closed_under_sums
    stated = isinstance(each, Gaussian) and accounted[adjacency] is not None
    return {
        "mechanism": mechanism,
        "granularity": granularity,
        "per_layer": per_layer,
        "max_grad_norm": max_grad_norm,
        "noise_multiplier": noise_multiplier,
        "noise_bands": noise_bands,
        "adaptive_clip": adaptive_clip,
        "rounds": rounds,
        "releases_per_round": releases_per_round,
        "batch_size": batch_size,
        "delta": delta,
        "adjacency": adjacency,
        "epsilon_nominal": nominal_epsilon(z) if stated else None,
        "epsilon_accounted": accounted[adjacency],
        "epsilon_by_adjacency": accounted,
        "aggregated": aggregated,
        "noise_share": noise_share,
        "client_dropout": client_dropout,
        "participation": participation,
        "epsilon_of_one_client": epsilon(each, of_sum / math.sqrt(aggregated)),
        "epsilon_of_sum": epsilon(sums, of_sum) if summable else None,
        "accountant": noise.accountant,
        "mu": noise.mu(z, releases, adjacency),
        "membership_advantage": noise.membership_advantage(z, releases, adjacency),
        "membership_tpr": {
            str(rate): noise.true_positive_rate(rate, z, releases, adjacency) for rate in FALSE_POSITIVE_RATES
        },
        "rero_gamma": {str(kappa): noise.reconstruction_robustness(kappa, z, releases) for kappa in _KAPPAS},
        "sampling": sampling_record(sampling, batch_size, rounds, hidden),
    }


def baselines_record(truths: Sequence[Truth], mean_image: Tensor) -> Record:
    """The `baselines` section: mean PSNR over victims of two images that need no attack."""
    images = torch.cat([truth.images for truth in truths])
    mean = mean_image.to(images).expand_as(images)
    return {
        "black_psnr": float(psnr_per_image(torch.zeros_like(images), images).mean()),
        "mean_image_psnr": float(psnr_per_image(mean, images).mean()),
    }


def bounds_record(
    truths: Sequence[Truth],
    *,
    noise_multiplier: float,
    granularity: Granularity,
    per_layer: bool,
    rounds: float,
    batch_size: int = 1,
    mechanism: str = "gaussian",
    averaged: float | None = None,
    linear: bool = True,
    share_in_batch: float = 1.0,
) -> Record:
    """The `bounds` section: bounds and reference values for these victims.

    Args:
        truths: Each client's batch; none where they are not known. Noise law and Gaussian reference are then None.
        noise_multiplier: Scale of the noise divided by the clipping norm, of what the server sees: under secure
            aggregation of the sum.
        granularity: "sample" or "update".
        per_layer: Whether each tensor is clipped by itself, for which no noise law is stated.
        rounds: Releases of the same images, of sampled ones their expected number.
        batch_size: Images a client, where `truths` do not say.
        mechanism: Name of the mechanism. The noise law, the unbiased bound and their quantiles hold for Gaussian noise.
        averaged: Number of releases whose mean has the noise of a victim's part in what the server sees, for the noise
            law; fewer than `rounds` where noise of releases without the victim is in it, too. None: `rounds`.
        linear: Whether an update is linear in the victims' gradients; no noise law is stated otherwise.
        share_in_batch: Expected share of a client's images that a release is about, which share one clip.

    Returns:
        The `bounds` section; None for what does not hold, or is not known.
    """
    known = [truth.images.double().square().sum((1, 2, 3)) for truth in truths]
    # Of every victim: the energy that is clipped together with its own.
    shared = [one if granularity == "sample" else share_in_batch * one.sum().expand_as(one) for one in known]
    images = share_in_batch * sum(len(one) for one in known) / len(known) if known else batch_size
    noise = mechanism_named(mechanism)
    gaussian = isinstance(noise, Gaussian)
    nats = channel_nats(noise_multiplier, granularity, images, rounds, noise)
    lawless = per_layer or not known or not gaussian or not linear
    energies = torch.cat(shared) if known else torch.zeros(0)
    law: tuple[float, Tensor, Granularity] = noise_multiplier, energies, "sample"
    carried = noise.mutual_information(noise_multiplier, rounds)
    # One clip describes all images of a client together, in more releases than one image is in.
    of_source = None if carried is None else carried / (share_in_batch if granularity == "update" else 1.0)
    source = None if of_source is None else gaussian_reference(truths, of_source, granularity)
    values = truths[0].images[0].numel() if known else 0
    releases = rounds if averaged is None else averaged
    upper = None if lawless else noise_law_batch_quantile(_UPPER_TAIL, *law, dimension=values, rounds=releases)
    return {
        "channel_nats": nats,
        "channel_bits": None if nats is None else nats / math.log(2),
        "noise_law_psnr": None if lawless else noise_law_psnr(*law, releases),
        "noise_law_psnr_p95": upper,
        "unbiased_psnr": unbiased_psnr(noise_multiplier, rounds) if gaussian else None,
        "gaussian_reference_psnr": None if source is None else source.psnr,
        "gaussian_reference_low": None if source is None else source.low,
        "gaussian_reference_high": None if source is None else source.high,
    }
