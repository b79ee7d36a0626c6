# SPDX-License-Identifier: Apache-2.0
"""Scores of canaries: numbers that are higher where the canary was in the client's data."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lightning_recon.errors import UserError

FEWEST = 2  # of each kind; with fewer the noise of the scores is not known


@dataclass(frozen=True, eq=False)
class CanaryScores:
    """Scores of the canaries that were in the client's data, and of those that were not.

    The scale of the scores does not matter. The score of a canary in a release with additive noise is the inner product
    of the release with the direction that the canary moves it in.

    Args:
        included: scores of the canaries that were in the data, shape (n,).
        excluded: scores of those that were not, shape (m,). Directions that belong to no canary at all are scores of
            this kind too.

    Raises:
        UserError: fewer than two scores of a kind, or scores that are no finite numbers.
    """

    included: NDArray[np.float64]
    excluded: NDArray[np.float64]

    def __post_init__(self) -> None:
        """Refuse scores that prove nothing."""
        for name in ("included", "excluded"):
            values = np.asarray(getattr(self, name), dtype=np.float64)
            if len(values) < FEWEST:
                raise UserError(f"{len(values)} scores of {name} canaries prove nothing: use at least {FEWEST}")
            if not np.isfinite(values).all():
                raise UserError(f"a score of the {name} canaries is not finite: the release holds NaN or infinity")
            object.__setattr__(self, name, values)

    @property
    def reversed(self) -> "CanaryScores":
        """The same test with the roles of the two kinds exchanged."""
        return CanaryScores(-self.excluded, -self.included)
