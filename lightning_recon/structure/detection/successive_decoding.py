# SPDX-License-Identifier: Apache-2.0
"""From rows to files: each victim's codeword is decoded, checked, and subtracted from all rows.

Which rows hold which victim is known already. Their amplitudes follow from inner products of rows, which are
almost free of noise over so many inputs. Each codeword is estimated as in a receiver with several antennas, with the
weights of least mean squared error against noise and interference. A codeword that passed its checksum is known without
any error, and what it adds to the rows can be subtracted without leaving anything behind: victims are decoded in the
order of their signal-to-noise ratio, each from what the ones before it left. Those whose ratio already suffices are
decoded together, which saves time. Finally rows that still hold energy are decoded by themselves: a victim missed in a
collision may be alone in a remaining row.

Source: linear detection of least mean squared error with successive cancellation; Tse and Viswanath, "Fundamentals of
Wireless Communication" (2005), section 8.3.
"""

import math
from collections.abc import Callable

from torch import Tensor

from lightning_recon.image_format import ImageFormat
from lightning_recon.privacy.mechanism import Mechanism
from lightning_recon.structure.coding.code_plan import Plan
from lightning_recon.structure.detection.remaining_rows import HOPELESS_DB, Received, RemainingRows

# A victim that failed is tried again once subtracting others improves its signal-to-noise ratio by this many decibels.
_BETTER_DB = 0.02


def read_victims(
    rows: Tensor,
    noise: float,
    members: Tensor,
    weight: float,
    plan: Plan,
    image_format: ImageFormat,
    victims: int,
    progress: Callable[[int], None] = lambda count: None,
    mechanism: Mechanism | None = None,
) -> tuple[list[Received | None], list[Received]]:
    """Decode all victims.

    Args:
        rows: Shape (K, HEADER + inputs): what came through the digital inputs of each row.
        noise: Noise standard deviation of every entry.
        members: Shape (V, K), bool: which rows hold which victim.
        weight: What one row usually holds of a victim's inputs, as a factor.
        plan: What was shipped.
        image_format: Format of the images.
        victims: How many there are at most.
        progress: Called with the number of images received so far.
        mechanism: Distribution of the noise of every entry; None for normal noise.

    Returns:
        For each of the V victims its image, or None; and images of victims that `members` lacks. Together
        no more than `victims`.
    """
    remaining = RemainingRows(rows, noise, plan, image_format, mechanism)
    found: list[Received | None] = [None] * len(members)
    others: list[Received] = []
    waiting = list(range(len(members)))
    tried = dict.fromkeys(waiting, -math.inf)
    count = 0
    while count < victims:
        filters = remaining.filters(members[waiting], weight)
        required = [max(HOPELESS_DB, tried[place] + _BETTER_DB) for place in waiting]
        promising = [one for one in range(len(filters)) if filters[one].margin >= required[one]]
        promising.sort(key=lambda one: -filters[one].margin)
        received: dict[int, Received] = {}
        while promising and not received:
            together = remaining.together([filters[one] for one in promising])[: victims - count]
            batch = [promising[place] for place in together]
            promising = [one for one in promising if one not in batch]
            tried.update({waiting[one]: filters[one].margin for one in batch})
            contents = remaining.receive([filters[one] for one in batch])
            received = {waiting[one]: content for one, content in zip(batch, contents, strict=True) if content}
        if not received:
            for alone in remaining.unexplained():
                other = remaining.receive(remaining.filters(alone[None], weight))[0]
                if other is not None:
                    break
            else:
                break
            # A victim whose rows were identified wrongly takes the place of the one it shares most rows with, if there
            # is no room for both.
            if len(found) + len(others) == victims:
                received[max(waiting, key=lambda victim: int((members[victim] & alone).sum()))] = other
            else:
                others.append(other)
        for place, content in received.items():
            found[place] = content
            waiting.remove(place)
        count = len(found) - len(waiting) + len(others)
        progress(count)
    return found, others
