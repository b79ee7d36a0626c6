# SPDX-License-Identifier: Apache-2.0
"""Bounds and reference values for each protection, without any attack, also with amplification by sampling."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lightning_recon.audit.aggregate import gaussian_reference_of
from lightning_recon.audit.verdict import Protection
from lightning_recon.privacy.gaussian import Gaussian
from lightning_recon.privacy.laplace import Laplace
from lightning_recon.privacy.mechanism import Mechanism
from lightning_recon.privacy.reconstruction_robustness import sampled_rero_gamma
from lightning_recon.privacy.risk import FALSE_POSITIVE_RATES

KAPPA = 0.1
_MECHANISMS: dict[str, Mechanism] = {one.name: one for one in (Gaussian(), Laplace())}
_SAMPLES = 20_000  # of the drawn gamma: its interval is then about a hundredth wide


@dataclass(frozen=True)
class Theory:
    """Bounds and reference values for one protection; None where they do not hold.

    Args:
        noise_multiplier: z.
        nats: Capacity of the releases for one image.
        noise_law: PSNR in dB of decoding without a prior.
        noise_law_lucky: PSNR in dB that such a decoding exceeds with a probability of 5 %.
        unbiased: PSNR in dB that no unbiased estimate exceeds, whatever the server ships.
        gaussian_reference: PSNR in dB that the best code reaches on a Gaussian source.
        gaussian_reference_low: Lower end of its interval.
        gaussian_reference_high: Upper end.
        advantage: Membership advantage, true- minus false-positive rate, that no attack exceeds.
        tpr: True-positive rate that no attack on membership exceeds at each of `FALSE_POSITIVE_RATES`.
        gamma: Bound on the success of an attack whose prior success is 0.1.
        gamma_sampled: The same under Poisson sampling; upper end of the interval of its Monte Carlo estimate.
        epsilon: Accounted epsilon of all rounds.
        epsilon_sampled: The same with amplification by that sampling.
    """

    noise_multiplier: float
    nats: float | None
    noise_law: float | None
    noise_law_lucky: float | None
    unbiased: float | None
    gaussian_reference: float | None
    gaussian_reference_low: float | None
    gaussian_reference_high: float | None
    advantage: float | None
    tpr: tuple[float | None, ...]
    gamma: float | None
    gamma_sampled: float | None
    epsilon: float | None
    epsilon_sampled: float | None


def theory_of(protections: Sequence[Protection], sampling_rate: float | None) -> list[Theory]:
    """Bounds by protection.

    Args:
        protections: Of one setting.
        sampling_rate: Probability with which a round uses a record, if Poisson sampling was announced. It applies where
            each sample is clipped: a clipped update contains the whole record of a client.
    """
    return [_theory(one, sampling_rate) for one in protections]


def _theory(one: Protection, rate: float | None) -> Theory:
    point, privacy = one.best, one.best.privacy
    sampled = rate is not None and one.noise > 0 and privacy["granularity"] == "sample"
    # Amplification is not accounted where clients drop out with their share of the noise, nor for correlated noise, and
    # batches that were sampled have their own rate.
    sampled = sampled and not (privacy.get("client_dropout") and privacy["noise_share"] == "distributed")
    sampled = sampled and privacy.get("noise_bands", 1) == 1 and not privacy.get("sampling")
    # A report imports no mechanism of somebody else.
    mechanism = _MECHANISMS.get(privacy.get("mechanism", Gaussian.name)) if sampled else None
    rounds, releases = int(privacy["rounds"]), int(privacy.get("releases_per_round", 1))
    guarantee = privacy["delta"], privacy["adjacency"]
    reference, low, high = gaussian_reference_of(point)
    return Theory(
        noise_multiplier=one.noise,
        nats=point.mean_of("bounds", "channel_nats"),
        noise_law=point.mean_of("bounds", "noise_law_psnr"),
        noise_law_lucky=point.mean_of("bounds", "noise_law_psnr_p95"),
        unbiased=point.mean_of("bounds", "unbiased_psnr"),
        gaussian_reference=reference,
        gaussian_reference_low=low,
        gaussian_reference_high=high,
        advantage=privacy.get("membership_advantage"),
        tpr=tuple(privacy.get("membership_tpr", {}).get(str(rate)) for rate in FALSE_POSITIVE_RATES),
        gamma=privacy["rero_gamma"][str(KAPPA)],
        # Robustness under sampling is estimated for Gaussian noise alone. A record that was sampled is in all sums of
        # its round, which are one with less noise.
        gamma_sampled=(
            sampled_rero_gamma(KAPPA, one.noise / math.sqrt(releases), rate or 1.0, rounds, samples=_SAMPLES).upper
            if isinstance(mechanism, Gaussian)
            else None
        ),
        epsilon=privacy["epsilon_accounted"],
        epsilon_sampled=(
            mechanism.training_epsilon(one.noise, rate or 1.0, rounds, *guarantee, releases) if mechanism else None
        ),
    )
