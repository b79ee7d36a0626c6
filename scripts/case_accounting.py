# SPDX-License-Identifier: Apache-2.0
"""Privacy parameters that released programs document, and what they account to.

docs/explanation/case-studies.md names the file and the commit that each set of parameters is taken from.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lightning_recon.capture.flower_ldp import declared_privacy
from lightning_recon.privacy.gaussian_accounting import gaussian_epsilon, mu_of, noise_multiplier_for
from lightning_recon.privacy.mechanism import ADJACENCIES, Adjacency
from lightning_recon.privacy.reconstruction_robustness import rero_gamma
from lightning_recon.privacy.risk import gaussian_advantage, gaussian_true_positive_rate
from lightning_recon.privacy.subsampled_accounting import training_epsilon
from lightning_recon.privacy.visible_sampling import visible_sampling_epsilon

DELTA = 1e-5  # documented in every case that names one
FALSE_POSITIVE_RATE, GUESS = 0.01, 0.1


@dataclass(frozen=True)
class Case:
    """Parameters of one program, with Gaussian noise.

    Args:
        name: in the tables.
        record: what is clipped: the gradient of each image, or the update of a client.
        max_grad_norm: clipping norm C.
        noise_multiplier: standard deviation of the noise divided by C.
        releases: how many releases of the documented training hold a record; the mean number under sampling.
        epsilon_claimed: epsilon that the documentation gives; None where it gives none.
        sample_rate: probability with which a record is in one of the `steps` releases; 1 for all of them.
        steps: releases of the documented training, in all.
        server_selects: whether the server decides which records take part, so that it may select one every time.
    """

    name: str
    record: Literal["image", "client"]
    max_grad_norm: float
    noise_multiplier: float
    releases: int
    epsilon_claimed: float | None = None
    sample_rate: float = 1.0
    steps: int = 1
    server_selects: bool = False

    def epsilon_of_training(self, adjacency: Adjacency) -> float | None:
        """Epsilon of the documented training for a server that sees, or selects, who is in a release."""
        if self.sample_rate == 1 or self.server_selects:
            return gaussian_epsilon(mu_of(self.noise_multiplier, self.releases, adjacency), DELTA)
        return visible_sampling_epsilon(self.noise_multiplier, self.sample_rate, self.steps, DELTA, adjacency)

    def epsilon_if_hidden(self, adjacency: Adjacency) -> float | None:
        """Epsilon of the documented training if the sampling is random and secret; None where nothing is sampled."""
        if self.sample_rate == 1:
            return None
        return training_epsilon(self.noise_multiplier, self.sample_rate, self.steps, DELTA, adjacency)


IMAGES = 8  # of a client that is attacked
FLIP = Case("FLIP", "client", 1.0, declared_privacy(1.0, 1e-4, 10.0, DELTA).noise_multiplier, 3, 10.0)
# The sensitivity that FLIP's documentation advises, 2 C / |D|, for a client whose data set is the attacked batch.
FLIP_ADVISED = Case(
    "FLIP as advised",
    "client",
    1.0,
    declared_privacy(1.0, 2 * 1.0 / IMAGES, 10.0, DELTA).noise_multiplier,
    3,
    10.0,
)
# CIFAR-10 on ten clients, of which four fifths are for training: 4000 images in 125 batches of 32, an epoch a round.
FLOWER_OPACUS = Case("Flower with Opacus", "image", 1.0, 1.0, 3, sample_rate=1 / 125, steps=3 * 125)
FLOWER_CENTRAL = Case(
    "Flower central noise", "client", 10.0, 0.2, 3, sample_rate=20 / 100, steps=3, server_selects=True
)
# What Opacus 1.6.0 computes for epsilon 50, delta 1e-5 and 20 epochs of 98 batches (a test computes it again).
OPACUS_TUTORIAL = Case("Opacus tutorial", "image", 1.2, 0.37197, 20, 50.0, sample_rate=1 / 98, steps=20 * 98)
OPACUS_README = Case("Opacus README", "image", 1.0, 1.1, 1)  # one step: it names no number of epochs
PAPER = Case("seed paper", "client", 10.0, 2e-4, 1, 10.0)
CASES = (FLIP, FLIP_ADVISED, FLOWER_OPACUS, FLOWER_CENTRAL, OPACUS_TUTORIAL, OPACUS_README, PAPER)


def rows(root: Path) -> Iterator[dict[str, object]]:
    """The table, with one row per case.

    Args:
        root: not used: nothing is attacked.
    """
    for case in CASES:
        mu = mu_of(case.noise_multiplier, case.releases, "add_remove")
        yield {
            "case": case.name,
            "record": case.record,
            "max_grad_norm": case.max_grad_norm,
            "z": case.noise_multiplier,
            "delta": DELTA,
            "epsilon_claimed": case.epsilon_claimed,
            "releases": case.releases,
            "sample_rate": case.sample_rate,
            "steps": case.steps,
            **{
                f"epsilon_one_{name}": gaussian_epsilon(mu_of(case.noise_multiplier, 1, name), DELTA)
                for name in ADJACENCIES
            },
            **{f"epsilon_training_{name}": case.epsilon_of_training(name) for name in ADJACENCIES},
            **{f"epsilon_if_hidden_{name}": case.epsilon_if_hidden(name) for name in ADJACENCIES},
            "z_for_claim": _noise_for_claim(case),
            # Risks of a record that is in `releases` releases, under add/remove.
            "membership_advantage": gaussian_advantage(mu),
            "members_found": gaussian_true_positive_rate(FALSE_POSITIVE_RATE, mu),
            "gamma": rero_gamma(GUESS, mu),
        }


def _noise_for_claim(case: Case) -> float | None:
    """The noise multiplier whose accounted epsilon of one release is the claimed one; without sampling only."""
    if case.epsilon_claimed is None or case.sample_rate < 1:
        return None
    return noise_multiplier_for(case.epsilon_claimed, DELTA, 1, "add_remove")
