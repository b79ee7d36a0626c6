# SPDX-License-Identifier: Apache-2.0
"""What NVFlare's privacy filters release, from their parameters.

`PercentilePrivacy` (read in the source of 2.9) adds no noise. It sets the values of smallest magnitude to zero, up to a
percentile over all values, limits the others to gamma, and releases those below gamma exactly. Where more values are
zero than the percentile removes, as where a model has many unused weights, the threshold is 0 and nothing is removed.

`SVTPrivacy` (2.9) limits every value to gamma and compares it, with Laplace noise, with a noisy threshold. Of the
values above, it draws as many as `fraction` of all values at random, by default with replacement, adds fresh Laplace
noise to them, and releases zeros for all others. Noise for the comparison grows with the number of values that are
released, so that in a model of ordinary size the choice is made by the noise alone. Its accountant adds up `epsilon`
for the choice and `epsilon_release` for the release; where the latter is not given it is the number of released values
times `noise_var`, which is therefore no variance: a larger one means less noise.

Both filters first divide by the number of steps that the client reports, and multiply by it afterwards. Both release
arrays without dimensions exactly.
"""

import math
from dataclasses import dataclass

from lightning_recon.errors import UserError

# In units of gamma: below this the noise of the comparison does not dominate, and the choice depends on the values.
_RANDOM_CHOICE = 3.0


@dataclass(frozen=True)
class SvtRelease:
    """What `SVTPrivacy` releases of a client's update.

    Args:
        limit: largest magnitude of a value before noise.
        noise_scale: scale of the Laplace noise on every released value.
        share: expected share of the values that are released; the others are zero.
        epsilon: what its accountant adds up for one round, with delta 0.
    """

    limit: float
    noise_scale: float
    share: float
    epsilon: float

    @property
    def noise_std(self) -> float:
        """Standard deviation of the noise on every released value."""
        return math.sqrt(2) * self.noise_scale


def svt_release(
    parameters: int,
    fraction: float = 0.1,
    epsilon: float = 0.1,
    noise_var: float = 0.1,
    gamma: float = 1e-5,
    replace: bool = True,
    epsilon_query: float | None = None,
    epsilon_release: float | None = None,
    steps: int = 1,
) -> SvtRelease:
    """What `SVTPrivacy` releases, from its parameters.

    Args:
        parameters: number of values in the update.
        fraction: share of the values that are drawn, in (0, 1].
        epsilon: budget of the choice, above 0.
        noise_var: sets the budget of the release where `epsilon_release` does not.
        gamma: largest magnitude of a value of one step, above 0.
        replace: whether values are drawn with replacement, so that fewer different ones are released.
        epsilon_query: part of `epsilon` for the comparison; None: its default split.
        epsilon_release: budget of the release; None: number of drawn values times `noise_var`.
        steps: number of local steps that the client reports.

    Raises:
        UserError: nothing is released, or the choice depends on the values, so that the share is not known beforehand.
    """
    drawn = min(math.ceil(parameters * fraction), parameters)
    if drawn < 1 or min(epsilon, gamma) <= 0:
        raise UserError("SVTPrivacy releases nothing: give a fraction, an epsilon and a gamma above 0")
    released = drawn * noise_var if epsilon_release is None else epsilon_release
    ratio = (2 * drawn) ** (2 / 3)
    query = epsilon * ratio / (1 + ratio) if epsilon_query is None else epsilon_query
    if 2 * drawn / query < _RANDOM_CHOICE:
        raise UserError(
            "SVTPrivacy's choice depends on the values at so large an epsilon: which share arrives is unknown"
        )
    # The noise of the comparison is symmetric: each pass over the remaining values accepts half of them.
    accepted = 0.5
    while accepted < fraction:
        accepted += (1 - accepted) / 2
    share = accepted * -math.expm1(-fraction / accepted) if replace else fraction
    return SvtRelease(gamma * steps, 2 * gamma * drawn / released * steps, share, epsilon + released)
