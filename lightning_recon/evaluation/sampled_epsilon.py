# SPDX-License-Identifier: Apache-2.0
"""Epsilon of a training on sampled batches: for a server that sees who is in them, and as if it did not."""

from lightning_recon.exchange import BatchSampling
from lightning_recon.privacy.gaussian import Gaussian
from lightning_recon.privacy.mechanism import Adjacency, Mechanism
from lightning_recon.privacy.visible_sampling import visible_sampling_epsilon


def sampled_epsilon(
    noise: Mechanism,
    noise_multiplier: float,
    rounds: int,
    releases_per_round: int,
    sampling: BatchSampling,
    batch_size: int,
    guarantee: tuple[float, Adjacency],
) -> float | None:
    """Accounted epsilon of rounds about samples, for a server that sees who is in them.

    Args:
        noise: The mechanism.
        noise_multiplier: Scale of the noise divided by the clipping norm.
        rounds: Number of rounds.
        releases_per_round: Noisy sums of a round that an image in it is in.
        sampling: How a client draws batches.
        batch_size: Images in a batch.
        guarantee: Delta and adjacency.

    Returns:
        Of samples drawn anew, under Gaussian noise, that of a random number of rounds; else that of the most rounds
        that an image can be in. None where it is not known.
    """
    releases = sampling.most_rounds(batch_size, rounds) * releases_per_round
    if isinstance(noise, Gaussian) and releases_per_round == 1 and sampling.method in ("poisson", "fixed_size"):
        return visible_sampling_epsilon(noise_multiplier, sampling.rate(batch_size), releases, *guarantee)
    return noise.epsilon(noise_multiplier, releases, *guarantee)


def hidden_epsilon(
    noise: Mechanism,
    noise_multiplier: float,
    rounds: int,
    releases_per_round: int,
    sampling: BatchSampling,
    batch_size: int,
    guarantee: tuple[float, Adjacency],
    visible: float | None,
) -> float | None:
    """Epsilon as if batches were Poisson samples, and the server did not see who is in them.

    Accountants state it for other samples, too, whose epsilon may be greater.

    Args:
        noise: See `sampled_epsilon`, as for the other arguments.
        noise_multiplier: Likewise.
        rounds: Likewise.
        releases_per_round: Likewise; no amplification is stated where an image is in several sums of its rounds.
        sampling: Likewise.
        batch_size: Likewise.
        guarantee: Likewise.
        visible: From `sampled_epsilon`. Whoever sees less learns no more.

    Returns:
        None where nothing is drawn, or it is not known.

    Source: Chua et al., "How Private are DP-SGD Implementations?" (arXiv 2403.17673), on shuffled batches.
    """
    if sampling.method == "all":
        return None
    hidden = None
    if releases_per_round == 1:
        hidden = noise.training_epsilon(noise_multiplier, sampling.rate(batch_size), rounds, *guarantee)
    known = [value for value in (hidden, visible) if value is not None]
    return min(known) if known else None


def sampling_record(
    sampling: BatchSampling, batch_size: int, rounds: int, hidden: float | None
) -> dict[str, object] | None:
    """The entry `sampling` of the `privacy` section; None where every round is about the same images.

    Args:
        sampling: How a client draws batches.
        batch_size: Images in a batch.
        rounds: Number of rounds.
        hidden: From `hidden_epsilon`.
    """
    if sampling.method == "all":
        return None
    return {
        "method": sampling.method,
        "images": sampling.images,
        "rate": sampling.rate(batch_size),
        "expected_rounds": rounds * sampling.rate(batch_size),
        "most_rounds": sampling.most_rounds(batch_size, rounds),
        "epsilon_if_hidden": hidden,
    }
