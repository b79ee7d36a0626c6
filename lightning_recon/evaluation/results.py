# SPDX-License-Identifier: Apache-2.0
"""The record of a run, `results.json`: every victim of every draw counts, and what cannot be computed is null."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_recon import __version__
from lightning_recon.evaluation.bounds import (
    Granularity,
    channel_nats,
    gaussian_reference_psnr,
    noise_law_luck,
    noise_law_psnr,
)
from lightning_recon.evaluation.files import files_record
from lightning_recon.evaluation.metrics import psnr_per_image
from lightning_recon.evaluation.scoring import Scored, Truth
from lightning_recon.evaluation.unbiased import unbiased_psnr
from lightning_recon.exchange import NoiseShare, summed_noise
from lightning_recon.files import serialization
from lightning_recon.files.renamed_fields import record_with_both_names
from lightning_recon.privacy.gaussian import Gaussian
from lightning_recon.privacy.gaussian_accounting import nominal_epsilon
from lightning_recon.privacy.mechanism import ADJACENCIES, Adjacency
from lightning_recon.privacy.parameters import mechanism_named

SCHEMA_VERSION = 1
_KAPPAS = (0.1,)
_LUCK = 0.05
PACKAGES = ("torch", "torchvision", "lightning", "torchmetrics", "opacus")

Record = dict[str, object]


def results_record(
    *,
    attack: str,
    config: str,
    seed: int | None,
    privacy: Record,
    oracles: Sequence[str],
    public_statistics: str | None,
    batchnorm: str | None,
    participation: float | None,
    truths: Sequence[Truth],
    scored: Sequence[Scored],
    mean_image: Tensor,
    bounds: Record,
    seconds: float,
    steps: int,
    structure_bytes: int,
    payload_alarms: Sequence[str] | None = None,
    label_accuracy: float | None = None,
    channel_code: str | None = None,
    detached_logits: bool | None = None,
    structure_share: float | None = None,
    low_shares: int | None = None,
) -> Record:
    """Everything that a run comes to, as `results.json` holds it.

    Args:
        attack: Name of the attack.
        config: File in the run folder that repeats the run.
        seed: Seed of the run's noise; None if another program drew it.
        privacy: From `privacy_record`.
        oracles: What the attack was told that no attacker knows; empty for an honest one.
        public_statistics: Where the attacker's prior knowledge came from; None if it used none.
        batchnorm: Mode of the target's batch normalisation; None if it has none.
        participation: Probability with which a client answered a round on the batch that is scored; None if not
            known.
        truths: Each client's batch, once.
        scored: Every client and draw, in the order of `named_pictures`.
        mean_image: Public mean image, shape (3, H, W).
        bounds: From `bounds_record`.
        seconds: Wall time of the attack.
        steps: Refinement steps; one step moves every dummy of every victim once.
        structure_bytes: What the server's structure adds to one client's upload in one round.
        payload_alarms: Which checks of the shipped model would have warned a client; None if it was not looked at.
        label_accuracy: See `summary_record`.
        channel_code: See `summary_record`.
        detached_logits: Whether the server shipped the network's logits detached, so that the network's own gradient is
            zero; None if it added nothing to the network.
        structure_share: See `summary_record`.
        low_shares: See `summary_record`.

    Returns:
        A record for `write_json`.
    """
    shares: Any = {"structure_share": structure_share, "low_shares": low_shares}
    victims = [victim for one in scored for victim in one.victims]
    cost: dict[str, Any] = {"seconds": seconds, "steps": steps, "structure_bytes": structure_bytes}
    names = [name for name, _ in named_pictures(scored)]
    record = {
        "schema_version": SCHEMA_VERSION,
        "attack": attack,
        "config": config,
        "versions": {"lightning_recon": __version__} | {package: version(package) for package in PACKAGES},
        "seed": seed,
        "privacy": privacy,
        "oracles": list(oracles),
        "detached_logits": detached_logits,
        "public_statistics": public_statistics,
        "subject_fraction": float(torch.cat([truth.masks for truth in truths]).double().mean()),
        "batchnorm": batchnorm,
        "participation": participation,
        "payload_alarms": None if payload_alarms is None else list(payload_alarms),
        "baselines": baselines_record(truths, mean_image),
        "bounds": bounds,
        "victims": [asdict(victim) | {"image": name} for victim, name in zip(victims, names, strict=True)],
        "summary": summary_record(scored, **cost, **shares, label_accuracy=label_accuracy, channel_code=channel_code),
    }
    return record_with_both_names(record)


def named_pictures(scored: Sequence[Scored]) -> list[tuple[str, Tensor]]:
    """Every picture with the file that the record names for it, relative to the run folder; shape (3, H, W) each."""
    pictures = [picture for one in scored for picture in one.pictures]
    return [(f"images/{number:03d}.png", picture) for number, picture in enumerate(pictures)]


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
) -> Record:
    """The protection that was attacked, with what it promises.

    Args:
        granularity: "sample" or "update": what is clipped, hence whose privacy epsilon speaks of.
        per_layer: Whether each tensor is clipped by itself.
        max_grad_norm: Clipping norm C; None without clipping, where nothing is promised.
        noise_multiplier: Scale of the noise divided by C.
        rounds: Releases of the same images.
        batch_size: Images a client.
        delta: Privacy parameter, in (0, 1).
        adjacency: "add_remove" or "replace_one": whose epsilon is `epsilon_accounted`; both are stated.
        aggregated: Clients whose updates reach the server as their sum alone (N).
        noise_share: "local": each adds noise of zC; "distributed": zC / sqrt(N), so that the sum has zC.
        mechanism: Name of the mechanism; what is not known of one is None.

    Returns:
        The `privacy` section. The robustness bound compares releases with and without one record, whatever
        `adjacency` epsilon is stated for. What is accounted, like mu and the robustness bound, rests on the noise
        multiplier: with local noise each client's own promise, which needs no aggregation; with distributed noise
        that of the sum, which needs every client's share. `epsilon_of_one_client` is of one client's update where
        the server sees it by itself, `epsilon_of_sum` of what the server sees if the aggregation holds.
    """
    z = 0.0 if max_grad_norm is None else noise_multiplier
    noise = mechanism_named(mechanism)
    accounted = {name: noise.epsilon(z, rounds, delta, name) for name in ADJACENCIES}
    of_sum = summed_noise(z, aggregated, noise_share)
    summable = aggregated == 1 or noise.closed_under_sums
    return {
        "mechanism": mechanism,
        "granularity": granularity,
        "per_layer": per_layer,
        "max_grad_norm": max_grad_norm,
        "noise_multiplier": noise_multiplier,
        "rounds": rounds,
        "batch_size": batch_size,
        "delta": delta,
        "adjacency": adjacency,
        "epsilon_nominal": nominal_epsilon(z) if isinstance(noise, Gaussian) else None,
        "epsilon_accounted": accounted[adjacency],
        "epsilon_by_adjacency": accounted,
        "aggregated": aggregated,
        "noise_share": noise_share,
        "epsilon_of_one_client": noise.epsilon(of_sum / math.sqrt(aggregated), rounds, delta, adjacency),
        "epsilon_of_sum": noise.epsilon(of_sum, rounds, delta, adjacency) if summable else None,
        "accountant": noise.accountant,
        "mu": noise.mu(z, rounds, adjacency),
        "rero_gamma": {str(kappa): noise.reconstruction_robustness(kappa, z, rounds) for kappa in _KAPPAS},
    }


def baselines_record(truths: Sequence[Truth], mean_image: Tensor) -> Record:
    """Mean over victims of the PSNR of two pictures that need no attack: the `baselines` section."""
    images = torch.cat([truth.images for truth in truths])
    guess = mean_image.to(images).expand_as(images)
    return {
        "black_psnr": float(psnr_per_image(torch.zeros_like(images), images).mean()),
        "mean_image_psnr": float(psnr_per_image(guess, images).mean()),
    }


def bounds_record(
    truths: Sequence[Truth],
    variances: Tensor,
    *,
    noise_multiplier: float,
    granularity: Granularity,
    per_layer: bool,
    rounds: int,
    batch_size: int = 1,
    mechanism: str = "gaussian",
) -> Record:
    """The yardsticks of `bounds` for the victims at hand.

    Args:
        truths: Each client's batch, all of one shape; none where they are not known, for which no noise law is stated.
        variances: Public variance of each decorrelated coefficient of an image, shape (3, H, W).
        noise_multiplier: Scale of the noise divided by the clipping norm, of what the server sees: under secure
            aggregation of the sum.
        granularity: "sample" or "update".
        per_layer: Whether each tensor is clipped by itself, for which no noise law is stated.
        rounds: Releases of the same images.
        batch_size: Images a client, where `truths` do not say.
        mechanism: Name of the mechanism. The noise law, the unbiased bound and their quantiles hold for Gaussian noise.

    Returns:
        The `bounds` section; None for what does not hold, or is not known.
    """
    known = [truth.images.double().square().sum((1, 2, 3)) for truth in truths]
    energies = torch.stack(known) if known else torch.zeros(1, batch_size)
    gaussian = isinstance(mechanism_named(mechanism), Gaussian)
    nats = channel_nats(noise_multiplier, granularity, energies.shape[1], rounds, mechanism_named(mechanism))
    law, lawless = (noise_multiplier, energies, granularity), per_layer or not known or not gaussian
    source = None if nats is None else gaussian_reference_psnr(variances, nats, variances.numel())
    lucky = None if lawless else noise_law_luck(_LUCK, *law, dimension=variances.numel(), rounds=rounds)
    return {
        "channel_nats": nats,
        "channel_bits": None if nats is None else nats / math.log(2),
        "noise_law_psnr": None if lawless else noise_law_psnr(*law, rounds),
        "noise_law_psnr_p95": lucky,
        "unbiased_psnr": unbiased_psnr(noise_multiplier, rounds) if gaussian else None,
        "gaussian_reference_psnr": source,
    }


def summary_record(
    scored: Sequence[Scored],
    *,
    seconds: float,
    steps: int,
    structure_bytes: int,
    label_accuracy: float | None = None,
    channel_code: str | None = None,
    structure_share: float | None = None,
    low_shares: int | None = None,
) -> Record:
    """Averages over all victims and draws.

    Args:
        scored: Every client and draw, at least one.
        seconds: Wall time of the attack.
        steps: Refinement steps.
        structure_bytes: What the server's structure adds to one client's upload in one round.
        label_accuracy: Share of the true labels that the attacker has, a mean over updates and draws; None if it cares
            for none.
        channel_code: Name of the channel code that files were sent with; None if nothing was sent digitally.
        structure_share: Share of the clipping budget that the structure had, as the server estimates it; a mean over
            updates and draws; None where that cannot be told.
        low_shares: In how many updates, of all draws, it is significantly below 0.9; None likewise.

    Returns:
        The `summary` section. `victims` counts each image once; `detected`, `collided` and `false_detections` are
        means over the draws, so that they compare with it.
    """
    victims = [victim for one in scored for victim in one.victims]
    psnr = [victim.psnr for victim in victims]
    draws = sorted({victim.draw for victim in victims})
    psnr_by_draw = [statistics.fmean(v.psnr for v in victims if v.draw == draw) for draw in draws]
    mean_mse = statistics.fmean(10 ** (-value / 10) for value in psnr)

    def each_draw(count: int) -> float:
        return count // len(draws) if count % len(draws) == 0 else count / len(draws)

    return {
        "clients": len({victim.client for victim in victims}),
        "draws": len(draws),
        "victims": len({(victim.client, victim.index) for victim in victims}),
        "detected": each_draw(sum(victim.detected for victim in victims)),
        "collided": each_draw(sum(victim.collision for victim in victims)),
        "false_detections": each_draw(sum(victim.false_detection for victim in victims)),
        "psnr_mean": statistics.fmean(psnr),
        "psnr_std_over_draws": statistics.stdev(psnr_by_draw) if len(draws) > 1 else None,
        "psnr_median": statistics.median(psnr),
        "psnr_of_mean_mse": -10 * math.log10(mean_mse),
        "ssim_mean": statistics.fmean(victim.ssim for victim in victims),
        "label_accuracy": label_accuracy,
        "bit_exact_share": statistics.fmean(victim.bit_exact for victim in victims),
        **files_record([asdict(victim) for victim in victims], len(victims), channel_code),
        "seconds": seconds,
        "steps": steps,
        "steps_per_second": steps / seconds if steps and seconds else None,
        "structure_bytes": structure_bytes,
        "structure_share": structure_share,
        "low_shares": low_shares,
    }


def write_json(path: str | Path, record: Mapping[str, object]) -> None:
    """Write a record at one stroke: a reader finds the old file or the new one, never half of either.

    Args:
        path: File to write; its folder is made where it is missing.
        record: What to write; numbers that are not finite become null.

    Raises:
        UserError: If the folder cannot be written.
    """
    serialization.write_json(Path(path), {key: _finite(value) for key, value in record.items()})


def _finite(value: object) -> object:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
