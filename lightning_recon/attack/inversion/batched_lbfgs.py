# SPDX-License-Identifier: Apache-2.0
"""L-BFGS for many independent problems at once: one evaluation of all of them per step."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from lightning_recon.ranges import COUNT, POSITIVE, check_ranges

_DECREASE = 1e-4  # share of the predicted decrease that a step must reach (Armijo)
_SHRINK = (0.1, 0.5)  # bounds of the factor by which a rejected step is shortened
_PATIENCE = 10  # rejections in a row after which the curvature memory is cleared


class BatchedLBFGS(Optimizer):
    """Every problem has its own memory, search direction and step length.

    A step evaluates the objective once, at a trial point. A problem whose trial point decreases the objective enough
    accepts it, updates its curvature memory and computes a new direction; any other tries a shorter step next time.
    There is no synchronisation with the device, and the problems do not influence one another.

    Source: Nocedal & Wright, Numerical Optimization (2006), algorithms 7.4 and 7.5, with backtracking by interpolation.
    """

    def __init__(self, params: ParamsT, lr: float = 1.0, history: int = 20) -> None:
        """Set up; parameters of K problems, each of the first K with those K, 2K, … places further on.

        Args:
            params: Parameters of all problems.
            lr: Length of the first step along every direction, 1 for a full quasi-Newton step.
            history: Size of the curvature memory, in steps, at least 1.
        """
        check_ranges("--model.optimizer.", lr=(lr, POSITIVE), history=(history, COUNT))
        super().__init__(params, {"lr": lr, "history": history})

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor]) -> Tensor:  # type: ignore[override]
        """Evaluate the trial points, update the memory, and move to the next trial points.

        Args:
            closure: Returns the objective of every problem, (K,), at the parameters as they are, with gradients in
                place.
        """
        with torch.enable_grad():
            values = closure().detach()
        group, count = self.param_groups[0], len(values)
        problems = [group["params"][first::count] for first in range(count)]
        tried = torch.stack([torch.cat([one.flatten() for one in parts]) for parts in problems])
        slopes = torch.stack([torch.cat([one.grad.flatten() for one in parts]) for parts in problems])
        state = self.state[group["params"][0]]
        if not state:
            empty = tried.new_zeros(count, group["history"], tried.shape[1])
            state |= {"point": tried.clone(), "gradient": torch.zeros_like(tried), "line": torch.zeros_like(tried)}
            state |= {"value": torch.full_like(values, torch.inf), "length": torch.ones_like(values)}
            state |= {"refused": torch.zeros_like(values), "inverse": tried.new_zeros(count, group["history"])}
            state |= {"moves": empty, "changes": empty.clone()}
        moved, changed = tried - state["point"], slopes - state["gradient"]
        promised = (state["gradient"] * moved).sum(1)
        good = values <= state["value"] + _DECREASE * promised
        curvature = (moved * changed).sum(1)
        learns = good & (curvature > 1e-10 * changed.square().sum(1))
        new = {"moves": moved, "changes": changed, "inverse": 1 / curvature.clamp(min=1e-30)}
        for name, one in new.items():
            state[name] = _where(learns, torch.cat([state[name][:, 1:], one[:, None]], 1), state[name])
        # Minimum of the parabola through both values and the slope.
        least = -promised / (2 * (values - state["value"] - promised))
        shorter = least.nan_to_num(0, 0, 0).clamp(*_SHRINK) * state["length"]
        state["refused"] = torch.where(good, 0, state["refused"] + 1)
        lost = state["refused"] >= _PATIENCE
        state["refused"] = torch.where(lost, 0, state["refused"])
        state["inverse"] = _where(lost, torch.zeros_like(state["inverse"]), state["inverse"])
        state["point"], state["gradient"] = (
            _where(good, tried, state["point"]),
            _where(good, slopes, state["gradient"]),
        )
        state["value"] = torch.where(good, values, state["value"])
        anew = good | lost
        state["line"] = _where(anew, _direction(state), state["line"])
        state["length"] = torch.where(anew, torch.full_like(values, group["lr"]), shorter)
        following = state["point"] + state["length"][:, None] * state["line"]
        for parts, row in zip(problems, following, strict=True):
            for one, piece in zip(parts, row.split([one.numel() for one in parts]), strict=True):
                one.copy_(piece.view_as(one))
        return values


def _direction(state: dict[str, Tensor]) -> Tensor:
    """Minus the approximate inverse Hessian times the gradient; without memory a short step of steepest descent."""
    gradient, moves, changes, inverse = (state[name] for name in ("gradient", "moves", "changes", "inverse"))
    short = gradient.abs().sum(1).clamp(min=1e-30)
    line, shares = gradient.clone(), []
    for age in reversed(range(inverse.shape[1])):
        shares.append(inverse[:, age] * (moves[:, age] * line).sum(1))
        line = line - shares[-1][:, None] * changes[:, age]
    known = inverse[:, -1] > 0
    size = (inverse[:, -1] * changes[:, -1].square().sum(1)).clamp(min=1e-30)
    line = torch.where(known, 1 / size, 1 / short)[:, None] * line
    for age, share in zip(range(inverse.shape[1]), reversed(shares), strict=True):
        line = line + (share - inverse[:, age] * (changes[:, age] * line).sum(1))[:, None] * moves[:, age]
    downhill = (line * gradient).sum(1) > 0
    return -_where(downhill, line, gradient / short[:, None])


def _where(which: Tensor, yes: Tensor, no: Tensor) -> Tensor:
    """`torch.where` for a mask over the first dimension."""
    return torch.where(which.view(-1, *[1] * (yes.dim() - 1)), yes, no)
