# SPDX-License-Identifier: Apache-2.0
"""From a clipped update to what leaves the client: noise and compression, in the announced order."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields

import numpy as np
import torch
from torch import Tensor

from lightning_recon.client.compression import compressed, kept_entries
from lightning_recon.client.noise import add_noise
from lightning_recon.client.noise_key import Generators
from lightning_recon.errors import UserError
from lightning_recon.exchange import Compression, LazyTensors, shapes_of
from lightning_recon.privacy.parameters import Privacy
from lightning_recon.ranges import LEVELS, SHARE, check_ranges


def privatized(
    update: dict[str, Tensor],
    privacy: Privacy,
    noise: Sequence[tuple[float, Generators]],
    compression: Compression,
    generator: np.random.Generator,
) -> dict[str, Tensor]:
    """The update that is sent after compression.

    After the noise, compression is post-processing. Before it, the compressed update is clipped once more, so that C
    still bounds what the noise covers. The noise then goes on all entries, because those that "top_k" keeps depend on
    the images; only under "random_k", whose entries do not, on the kept ones alone.

    Args:
        update: after the clip; its memory is reused.
        privacy: the clip, and the noise that each client adds.
        noise: generators of the noise of each client whose clipped updates are in the sum, and the coefficient of this
            noise, which is 1 unless noise is correlated over rounds; empty if it has noise.
        compression: the method.
        generator: of the compression.

    Source: random_k before noise: Kerkouche et al. 2021 (arXiv 2011.05578).
    """
    kept: dict[str, Tensor] | None = None
    if compression.before_noise:
        if compression.method == "random_k":
            kept = kept_entries(update, compression, generator)
            update = {name: torch.where(kept[name], tensor, 0) for name, tensor in update.items()}
        else:
            update = privacy.clip(compressed(update, compression, generator))
    for coefficient, generators in noise:
        add_noise(update, coefficient * privacy.noise_scale, generators, privacy.noise)
    if kept is not None:
        return {name: torch.where(kept[name], tensor, 0) for name, tensor in update.items()}
    return update if compression.before_noise else compressed(update, compression, generator)


def noised_when_read(
    update: Mapping[str, Tensor], privacy: Privacy, noise: Sequence[tuple[float, Generators]]
) -> LazyTensors:
    """The update that is sent without compression; the noise of each tensor is drawn when the tensor is first read.

    Every tensor has a noise stream of its own, so that the noise does not depend on what is read, or when.

    Args:
        update: after the clip; read only.
        privacy: as in `privatized`.
        noise: as in `privatized`.
    """

    def noised(name: str) -> Tensor:
        released = {name: update[name].clone(memory_format=torch.contiguous_format)}
        for coefficient, generators in noise:
            add_noise(released, coefficient * privacy.noise_scale, generators, privacy.noise)
        return released[name]

    return LazyTensors(shapes_of(update), noised)


def added(releases: Iterable[Mapping[str, Tensor]]) -> Mapping[str, Tensor]:
    """Sum of clients' updates, made one by one; the memory of the first is reused, and a single one is as it was."""
    each = iter(releases)
    total = next(each)
    for release in each:
        for name, tensor in release.items():
            total[name].add_(tensor)
    return total


def check_compression(compression: Compression | None, privacy: Privacy, aggregated: int) -> None:
    """Refuse options of the compression that are out of range, or that nothing could bound or add up.

    Raises:
        UserError: what does not fit, and what to set.
    """
    if compression is None:
        return
    flag = "--model.client.compression."
    check_ranges(flag, share=(compression.share, SHARE), levels=(compression.levels, LEVELS))
    idle = [] if compression.method in ("top_k", "random_k") else ["share", "per_tensor"]
    idle += [] if compression.method == "qsgd" else ["levels"]
    for field in fields(compression):
        if field.name in idle and getattr(compression, field.name) != field.default:
            raise UserError(f"{flag}{field.name} has no effect on {compression.method}: leave it out")
    if compression.before_noise and privacy.granularity == "sample":
        raise UserError(
            f"{flag}before_noise is true, but under granularity sample no clip bounds what one image changes in the "
            "compressed sum: set it to false, or --model.client.privacy.granularity update"
        )
    if compression.method == "top_k" and aggregated > 1:
        raise UserError(
            f"{flag}method is top_k, but clients whose updates are only seen as a sum must keep the same entries: "
            "choose random_k, or --model.client.aggregated 1"
        )
