# SPDX-License-Identifier: Apache-2.0
"""What a structure's server makes of an update, and what it takes to be such a server."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor

from lightning_recon.exchange import ClientUpdate, ServerPayload, Task
from lightning_recon.priors.image_statistics import PublicStatistics
from lightning_recon.reconstruction import ReceivedFile
from lightning_recon.structure.clipping_budget import BudgetShare


@dataclass(frozen=True)
class Posterior:
    """Gaussian knowledge of pictures, in the coefficients of `transform.analyse`.

    Args:
        mean: Shape (M, 3, H, W).
        variance: Shape (M, 3, H, W), positive.
        prior_variance: Shape (M, 3, H, W): what it was before the update arrived.
    """

    mean: Tensor
    variance: Tensor
    prior_variance: Tensor


@dataclass(frozen=True)
class Decoded:
    """Everything one update told the server about one client's batch.

    Args:
        pictures: Shape (M, 3, H, W), values in [0, 1]: at most as many as the batch holds, in the attacker's order.
        unresolved: Rows that hold something no single picture explains: collisions.
        rows: For each tensor of the update that was read, the rows read; None for all of them.
        posterior: What refinement may start from; None if the decoding knows no spectrum.
        moments: Leaked statistics of each picture for the seed paper's refinement, see `moments.moments`; None if the
            structure leaks none.
        evident: Whether the update shows more than the public mean image. If not, pictures are handed over all the
            same, because they cost nothing, but must not count as detections.
        files: For each picture how its file arrived, or None where none did; None if nothing was sent digitally.
        share: The structure's share of the clipping budget, as the rows show it; None where that cannot be told.
    """

    pictures: Tensor
    unresolved: int
    rows: Mapping[str, Tensor | None]
    posterior: Posterior | None
    moments: Tensor | None = None
    evident: bool = True
    files: tuple[ReceivedFile | None, ...] | None = None
    share: BudgetShare | None = None


@dataclass(frozen=True)
class Knowledge:
    """What several rounds with feedback told about one client's batch: V victims, n coefficients each.

    Args:
        mean: Posterior mean, shape (V, n).
        variance: Posterior variance but for the mismatch, shape (V, n).
        prior_variance: What it was before the first round, shape (V, 3, H, W).
        units: The opening's unit that hears each victim alone, shape (V,); -1 if there is none.
        scales: Signed scale of each victim's row at unit energy, shape (V,).
        belief: Log-evidence for each factor by which the variance may be mistaken, shape (V, factors).
    """

    mean: Tensor
    variance: Tensor
    prior_variance: Tensor
    units: Tensor
    scales: Tensor
    belief: Tensor


@runtime_checkable
class Structure(Protocol):
    """A malicious server: what it adds to the model, and how it reads the answer."""

    @property
    def name(self) -> str:
        """Name of the attack in `results.json`."""
        ...

    def statistics(self, task: Task) -> PublicStatistics:
        """What the server takes for granted about pictures."""
        ...

    def payload(self, task: Task) -> ServerPayload:
        """The structure to ship, from what was announced."""
        ...

    def decode(self, payload: ServerPayload, task: Task, update: ClientUpdate) -> Decoded:
        """Pictures from one update, or from the mean of several."""
        ...
