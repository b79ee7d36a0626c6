# SPDX-License-Identifier: Apache-2.0
"""Assign reconstructions to victims: an attacker cannot know the order of a batch, so none is expected."""

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor


def match(truth: Tensor, reconstructions: Tensor) -> Tensor:
    """Assign reconstructions and victims to each other, one to one, so that the total squared error is minimal.

    Args:
        truth: The victims' images, shape (B, C, H, W), values in [0, 1].
        reconstructions: Images in any order, shape (M, C, H, W), values in [0, 1]; of more than B the rest stays
            without a victim.

    Returns:
        For each victim the index of its reconstruction, or -1 without one; shape (B,), int64.

    Raises:
        ValueError: If images have different shapes, or values that are not finite.

    Source: Kuhn, "The Hungarian method for the assignment problem" (1955), through SciPy.
    """
    if reconstructions.shape[1:] != truth.shape[1:]:
        raise ValueError(
            f"{tuple(reconstructions.shape)} reconstructions for {tuple(truth.shape)} victims: hand over images of the "
            "same shape"
        )
    if not reconstructions.isfinite().all():
        raise ValueError("reconstructions hold NaN or infinity: they cannot be matched")
    # The product form would cancel between nearly equal images.
    distance = torch.cdist(
        truth.flatten(1).double(),
        reconstructions.flatten(1).double(),
        compute_mode="donot_use_mm_for_euclid_dist",
    )
    victims, assigned = linear_sum_assignment(distance.square().cpu().numpy())
    owner = torch.full((len(truth),), -1)
    owner[torch.from_numpy(victims)] = torch.from_numpy(assigned)
    return owner


def arrange(reconstructions: Tensor, owner: Tensor, fallback: Tensor) -> Tensor:
    """Put reconstructions into the victims' order, with a fallback for victims without one.

    Args:
        reconstructions: Shape (M, C, H, W).
        owner: Index of each victim's reconstruction, or -1; shape (B,), int64.
        fallback: The estimate of an attacker without any update, the public mean image; shape (C, H, W).

    Returns:
        One image per victim, shape (B, C, H, W).
    """
    candidates = torch.cat([reconstructions, fallback.to(reconstructions)[None]])
    return candidates[owner]


def label_share(recovered: Tensor, labels: Tensor) -> float:
    """Share of the labels that are among the recovered ones, each counted with its multiplicity.

    Args:
        recovered: shape (B,), int64, in any order; or empty without an estimate.
        labels: shape (B,), int64.
    """
    length = int(torch.cat([recovered, labels]).max()) + 1
    found = torch.minimum(recovered.bincount(minlength=length), labels.bincount(minlength=length))
    return int(found.sum()) / len(labels)
