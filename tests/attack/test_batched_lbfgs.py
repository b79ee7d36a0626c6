# SPDX-License-Identifier: Apache-2.0
"""Side by side L-BFGS: right on problems with a known answer, and every problem alone with itself."""

import torch
from torch import Tensor

from lightning_recon.attack import BatchedLBFGS

STIFF = torch.logspace(0, 4, 12, dtype=torch.float64)
CENTRES = torch.arange(36, dtype=torch.float64).view(3, 12) / 6


def bowls(points: Tensor) -> Tensor:
    """Quadratic bowls of condition 10⁴, the second one much deeper, around `CENTRES`."""
    scale = torch.tensor([1.0, 1e6, 1.0], dtype=torch.float64)[: len(points)]
    return scale * (STIFF * (points - CENTRES[: len(points)]).square()).sum(1) / 2


def valleys(points: Tensor) -> Tensor:
    """Rosenbrock's valley in two dimensions, least at (1, 1)."""
    return 100 * (points[:, 1] - points[:, 0].square()).square() + (1 - points[:, 0]).square()


def searched(objective: object, start: Tensor, steps: int) -> tuple[Tensor, list[Tensor]]:
    points = [torch.nn.Parameter(one.clone()) for one in start]
    optimizer, seen = BatchedLBFGS(points), []
    assert callable(objective)

    def closure() -> Tensor:
        optimizer.zero_grad()
        values: Tensor = objective(torch.stack(points))
        values.sum().backward()
        return values

    for _ in range(steps):
        seen.append(optimizer.step(closure))
    return torch.stack(points).detach(), seen


def test_it_finds_the_bottom_of_stiff_bowls() -> None:
    found, _ = searched(bowls, torch.zeros(3, 12, dtype=torch.float64), 120)
    torch.testing.assert_close(found, CENTRES, atol=1e-5, rtol=0)


def test_it_follows_a_curved_valley() -> None:
    found, _ = searched(valleys, torch.tensor([[-1.2, 1.0], [2.0, -1.0]], dtype=torch.float64), 120)
    torch.testing.assert_close(found, torch.ones_like(found), atol=1e-4, rtol=0)


def test_problems_side_by_side_are_as_each_alone() -> None:
    together, _ = searched(valleys, torch.tensor([[-1.2, 1.0], [2.0, -1.0]], dtype=torch.float64), 25)
    alone, _ = searched(valleys, torch.tensor([[-1.2, 1.0]], dtype=torch.float64), 25)
    torch.testing.assert_close(together[:1], alone, atol=1e-12, rtol=0)


def test_a_problem_without_a_value_does_not_harm_the_others() -> None:
    def broken(points: Tensor) -> Tensor:
        return valleys(points) * torch.tensor([1.0, torch.nan], dtype=torch.float64)

    found, _ = searched(broken, torch.tensor([[-1.2, 1.0], [2.0, -1.0]], dtype=torch.float64), 120)
    torch.testing.assert_close(found[0], torch.ones(2, dtype=torch.float64), atol=1e-4, rtol=0)


def test_a_search_goes_on_from_its_state() -> None:
    start = torch.tensor([[-1.2, 1.0], [2.0, -1.0]], dtype=torch.float64)
    whole, _ = searched(valleys, start, 20)
    points = [torch.nn.Parameter(one.clone()) for one in start]
    first, second = BatchedLBFGS(points), BatchedLBFGS(points)

    def closure() -> Tensor:
        for one in points:
            one.grad = None
        values = valleys(torch.stack(points))
        values.sum().backward()
        return values

    for _ in range(10):
        first.step(closure)
    second.load_state_dict(first.state_dict())
    for _ in range(10):
        second.step(closure)
    torch.testing.assert_close(torch.stack(points).detach(), whole)
