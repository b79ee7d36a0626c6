# SPDX-License-Identifier: Apache-2.0
"""From rows to files: each victim's codeword is decoded, checked, and subtracted from all rows.

Which rows hold which victim is known already. Their amplitudes follow from inner products of rows, which are
almost free of noise over so many inputs. Each codeword is estimated as in a receiver with several antennas, with the
weights of least mean squared error against noise and interference. A codeword that passed its checksum is known without
any error, and what it adds to the rows can be subtracted without leaving anything behind: victims are decoded in the
order of their signal-to-noise ratio, each from what the ones before it left. Those whose ratio already suffices are
decoded together, which saves time. Finally what the rows still hold is explained anew, without the victims that were
subtracted: this finds victims that were missed in a collision, and corrects wrongly identified rows.

Source: linear detection of least mean squared error with successive cancellation; Tse and Viswanath, "Fundamentals of
Wireless Communication" (2005), section 8.3.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_recon.image_format import ImageFormat
from lightning_recon.privacy.mechanism import Mechanism
from lightning_recon.structure.coding.code_plan import Plan
from lightning_recon.structure.detection.remaining_rows import HOPELESS_DB, Received, RemainingRows

# The places of the rows that hold a victim.
Places = tuple[int, ...]
# A victim that failed is tried again once subtracting others improves its signal-to-noise ratio by this many decibels.
_BETTER_DB = 0.02


@dataclass(frozen=True)
class Reading:
    """What the digital inputs of all rows held: R victims whose files were received, and L others.

    Args:
        received: The images, in the order of decoding.
        rows_received: Which rows hold each of them, shape (R, K), bool.
        rows_left: Which rows hold each victim whose file was not received, shape (L, K), bool.
    """

    received: list[Received]
    rows_received: Tensor
    rows_left: Tensor


def read_victims(
    rows: Tensor,
    noise: float,
    members: Tensor,
    unit_direction: Tensor,
    weight: float,
    plan: Plan,
    image_format: ImageFormat,
    announced: int,
    victims: int,
    progress: Callable[[int], None] = lambda count: None,
    mechanism: Mechanism | None = None,
) -> Reading:
    """Decode all victims.

    Args:
        rows: Shape (K, HEADER + inputs): what came through the digital inputs of each row.
        noise: Noise standard deviation of every entry.
        members: Shape (V, K), bool: which rows seem to hold which victim.
        unit_direction: The measurement direction of each row, shape (K,), int64.
        weight: What one row usually holds of a victim's inputs, as a factor.
        plan: What was shipped.
        image_format: Format of the images.
        announced: How many there should be.
        victims: How many there are at most.
        progress: Called with the number of images received so far.
        mechanism: Distribution of the noise of every entry; None for normal noise.
    """
    remaining = RemainingRows(rows, noise, unit_direction, plan, image_format, mechanism)
    found: list[Received] = []
    waiting, tried = list(members.cpu()), dict[Places, float]()
    while len(found) < victims:
        room = victims - len(found)
        received = _decode(remaining, waiting, weight, room, tried)
        if not received:
            remaining.refit()
            waiting = [held for held in waiting if not remaining.is_explained(held)]
            received = _decode(remaining, list(remaining.groups(room)), weight, room, tried)
        if not received:
            break
        found += received.values()
        progress(len(found))
        waiting = [held for held in waiting if _places(held) not in received]
        # What was mixed with these is worth another try.
        taken = remaining.taken[-len(received) :].any(dim=0)
        tried = {places: margin for places, margin in tried.items() if not bool(taken[list(places)].any())}
    left = _left(remaining, waiting, max(announced, len(members)) - len(found)) if len(found) < victims else []
    return Reading(found, remaining.taken, torch.stack(left) if left else remaining.taken[:0])


def _left(remaining: RemainingRows, waiting: list[Tensor], most: int) -> list[Tensor]:
    """Rows of the victims that were not received, each of shape (K,), bool: at most so many.

    With several directions inner products show them better than what was thought before. They are no evidence of more
    victims than that, and rows of more power than the received victims have hold several.
    """
    several = int(remaining.unit_direction.max()) > 0 and bool(remaining.messages)
    left = [held for held in remaining.groups(most) if remaining.is_single(held)] if several and most > 0 else []
    regrouped = torch.stack(left).any(dim=0) if left else torch.zeros(len(remaining.words), dtype=torch.bool)
    return [*left, *(held for held in waiting if not bool((held & regrouped).any()))][: max(most, 0)]


def _places(held: Tensor) -> Places:
    """The places of the rows in a mask of shape (K,)."""
    return tuple(torch.nonzero(held).flatten().tolist())


def _decode(
    remaining: RemainingRows, members: list[Tensor], weight: float, room: int, tried: dict[Places, float]
) -> dict[Places, Received]:
    """Decode the most promising of these victims, with those that need nothing from its subtraction.

    Args:
        remaining: The rows.
        members: Which rows hold each victim, shape (K,), bool.
        weight: As in `read_victims`.
        room: Largest number of images.
        tried: Margins at which victims were tried in vain, by their rows; what is tried now is added.

    Returns:
        The images received, by the rows that were thought to hold them.
    """
    filters = remaining.filters(torch.stack(members), weight) if members else []
    rows = [_places(held) for held in members]
    promising = [
        one
        for one in range(len(filters))
        if filters[one].margin >= max(HOPELESS_DB, tried.get(rows[one], -math.inf) + _BETTER_DB)
    ]
    promising.sort(key=lambda one: -filters[one].margin)
    while promising:
        together = remaining.together([filters[one] for one in promising])[:room]
        batch = [promising[place] for place in together]
        promising = [one for one in promising if one not in batch]
        tried.update({rows[one]: filters[one].margin for one in batch})
        contents = remaining.receive([filters[one] for one in batch])
        received = {rows[one]: content for one, content in zip(batch, contents, strict=True) if content is not None}
        if received:
            return received
    return {}
