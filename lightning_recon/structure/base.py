# SPDX-License-Identifier: Apache-2.0
"""The protocol of a malicious server, and the results of decoding an update."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, runtime_checkable

from torch import Tensor

from lightning_recon.exchange import ClientUpdate, ServerPayload, Task
from lightning_recon.exchange.task import MOST_NUMBERS
from lightning_recon.priors.image_statistics import PublicStatistics
from lightning_recon.reconstruction import NO_MISMATCH, Mismatch, ReceivedFile, RoundsSeen
from lightning_recon.structure.clipping_budget import BudgetShare
from lightning_recon.structure.refinement import Refinement

# Clients may have more images than announced, up to this many times as many.
_MOST_FOUND = 4


@dataclass(frozen=True)
class Decoded:
    """The result of decoding one update, or the mean of several, of one client.

    Args:
        images: Shape (M, C, H, W), values in [0, 1]: at most `most_found`, in the attacker's order.
        unresolved: Rows whose content no single image explains: collisions.
        rows: For each tensor of the update that was read, the rows read; None for all of them.
        refinement: What refinement starts from, which also defines its objective; None if there is nothing to refine.
        evident: Whether the update shows more than the public mean image. If not, the images are returned all the same,
            because they cost nothing, but do not count as detections.
        files: For each image the file that was received, or None where none was; None if nothing was sent digitally.
        share: The structure's share of the clipping budget, as the rows show it; None where it cannot be estimated.
        mismatch: Where the update contradicts the announcement.
        mean_image: The public mean image under the hypothesis that the update shows to be true, shape (C, H, W); None
            where that is the announced one.
        seen: For each image the rounds that it was seen in; None where all are in all rounds.
    """

    images: Tensor
    unresolved: int
    rows: Mapping[str, Tensor | None]
    refinement: Refinement | None = None
    evident: bool = True
    files: tuple[ReceivedFile | None, ...] | None = None
    share: BudgetShare | None = None
    mismatch: Mismatch = NO_MISMATCH
    mean_image: Tensor | None = None
    seen: tuple[RoundsSeen, ...] | None = None


@dataclass(frozen=True)
class Knowledge:
    """The server's knowledge of one client's batch after rounds with feedback: V victims, n coefficients each.

    Args:
        mean: Posterior mean, shape (V, n).
        variance: Posterior variance, without the correction by `belief`, shape (V, n).
        prior_variance: The variance before the first round, shape (V, C, H, W).
        units: The unit of the first rounds that each victim activates alone, shape (V,); -1 if there is none.
        scales: Signed scale of each victim's row at unit energy, shape (V,).
        belief: Log-evidence for each factor by which the variance may be mistaken, shape (V, factors).
    """

    mean: Tensor
    variance: Tensor
    prior_variance: Tensor
    units: Tensor
    scales: Tensor
    belief: Tensor


State = TypeVar("State")


class FeedbackCode(Protocol[State]):
    """Feedback coding: each payload after the first rounds depends on the updates before it.

    What the server knows of one client is of the code's own type, such as `Knowledge`.
    """

    def begin(self, payload: ServerPayload, task: Task, update: ClientUpdate, decoded: Decoded) -> State | None:
        """The server's knowledge when feedback starts; None if feedback cannot start.

        Args:
            payload: What was shipped in the first rounds.
            task: What was announced.
            update: The mean of the first rounds' updates.
            decoded: Its decoding.
        """
        ...

    def next_payload(self, task: Task, knowledge: State) -> ServerPayload:
        """The payload for this client in the next round."""
        ...

    def update_knowledge(self, payload: ServerPayload, task: Task, update: ClientUpdate, knowledge: State) -> State:
        """The server's knowledge after one more update."""
        ...

    def conclude(self, task: Task, knowledge: State, decoded: Decoded) -> Decoded:
        """The result after the last round."""
        ...


def most_found(task: Task) -> int:
    """Largest number of images that is looked for in an update, for the sake of memory.

    Args:
        task: What was announced; clients may have more images than that.
    """
    return max(task.local_images, min(_MOST_FOUND * task.victims, MOST_NUMBERS // math.prod(task.image_shape)))


@runtime_checkable
class Structure(Protocol):
    """A malicious server: what it adds to the model, and how it decodes the updates.

    A structure of your own inherits from this class, and defines `name`, `statistics`, `payload` and `decode`.
    """

    @property
    def name(self) -> str:
        """Name of the attack in `results.json`."""
        ...

    def feedback_code(self, task: Task) -> FeedbackCode[Any] | None:
        """The code of the rounds after the first ones; None if no payload depends on earlier updates."""
        return None

    def rounds(self, task: Task) -> int:
        """Number of rounds that repeat the first payload, at most all; their updates are averaged before decoding."""
        return task.rounds

    def statistics(self, task: Task) -> PublicStatistics:
        """Public statistics of images that the server assumes."""
        ...

    def payload(self, task: Task) -> ServerPayload:
        """The structure to ship, designed from what was announced."""
        ...

    def decode(self, payload: ServerPayload, task: Task, update: ClientUpdate) -> Decoded:
        """Images from one update, or from the mean of `task.rounds` updates."""
        ...
