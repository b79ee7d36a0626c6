# SPDX-License-Identifier: Apache-2.0
"""Optimiser steps for all candidates of a search, on one or several ranks."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim import LBFGS, Optimizer

from lightning_recon.attack.inversion.analytic import revealed_image
from lightning_recon.attack.inversion.candidates import CandidatePool
from lightning_recon.attack.inversion.distances import explained, noise_std
from lightning_recon.attack.inversion.objective import Evaluated
from lightning_recon.attack.inversion.observations import Chunk, Observation
from lightning_recon.attack.inversion.problem import InverseProblem
from lightning_recon.attack.inversion.settings import InversionSettings
from lightning_recon.attack.inversion.step_rules import StepRule
from lightning_recon.errors import UserError
from lightning_recon.losses import relaxed_targets
from lightning_recon.priors.regularizers import group_consistency


class Stepper(Protocol):
    """An optimiser of torch, or Lightning's wrapper of one."""

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """Options, the learning rate among them, by group of parameters."""
        ...

    def step(self, closure: Any) -> Any:  # noqa: ANN401 - the types of torch's optimisers differ
        """Move the parameters."""
        ...


def build_optimizers(pool: CandidatePool, settings: InversionSettings, ranks: int) -> list[Optimizer]:
    """One optimiser for all candidates; of L-BFGS, whose line search is global, one for each candidate.

    Args:
        pool: The candidates.
        settings: How to search.
        ranks: Number of ranks.

    Raises:
        UserError: L-BFGS cannot be combined with other settings.
    """
    dummies, logits = list(pool.dummies), list(pool.logits)
    together = settings.optimizer([*dummies, *logits])
    if not isinstance(together, LBFGS):
        return [together]
    if ranks > 1:
        raise UserError("L-BFGS searches on one rank only: set --trainer.devices 1, or another --model.optimizer")
    if (
        settings.signed != "none"
        or settings.langevin
        or settings.discrepancy
        or settings.regularization.group_consistency
    ):
        raise UserError(
            "L-BFGS searches along a line for each candidate: leave out --model.signed, langevin, discrepancy and "
            "regularization.group_consistency, or give another --model.optimizer"
        )
    pairs = zip(dummies, logits, strict=True) if logits else ((one,) for one in dummies)
    return [settings.optimizer(list(pair)) for pair in pairs]


def start(
    pool: CandidatePool,
    problem: InverseProblem,
    observations: Mapping[range, Observation],
    ranks: int,
    earlier: int = 0,
) -> None:
    """Initialise all candidates.

    Args:
        pool: The candidates of all ranks.
        problem: Of the search.
        observations: This rank's updates by the slots of their candidates.
        ranks: Number of ranks; every rank must call this.
        earlier: Number of candidates in earlier waves of the run.

    Raises:
        UserError: The updates do not reveal images to start from.
    """
    settings, task = problem.settings, problem.task
    pool.initialize(problem.parametrization, settings.init, settings.seed, earlier)
    if settings.init != "revealed":
        return
    if task.victims > 1:
        raise UserError(
            f"--model.init revealed is for updates of a single image, and each of these is of {task.victims}: set "
            "--data.batch_size 1 without aggregation, or --model.init mean"
        )
    found, std = torch.zeros_like(pool.best), noise_std(task)
    for slots, observation in observations.items():
        found[list(slots)] = revealed_image(problem.model, observation.update, std, problem.parametrization)
    if ranks > 1:
        dist.all_reduce(found)
    pool.initialize_at(found)


class Solver:
    """Takes optimiser steps; every candidate has its own update, and none influences another."""

    def __init__(
        self,
        pool: CandidatePool,
        problem: InverseProblem,
        chunks: Sequence[Chunk],
        learning_rate: float,
        line_search: bool,
        steps: int,
        ranks: int = 1,
    ) -> None:
        """Prepare the steps.

        Args:
            pool: The candidates of all ranks.
            problem: Of the search.
            chunks: This rank's candidates, with their updates.
            learning_rate: Of the optimisers, before any schedule.
            line_search: Whether each candidate has an L-BFGS optimiser of its own.
            steps: Number of steps of the whole search.
            ranks: Number of ranks.
        """
        self.pool, self.problem, self.chunks, self.ranks = pool, problem, chunks, ranks
        self.learning_rate, self.line_search, settings = learning_rate, line_search, problem.settings
        self.rule = StepRule(settings.schedule, settings.signed, settings.langevin, settings.seed, steps)
        self.slots = torch.cat([chunk.slots for chunk in chunks]) if chunks else torch.zeros(0, dtype=torch.int64)

    def step(self, optimizers: Sequence[Stepper], number: int) -> Tensor:
        """Move every candidate once.

        Args:
            optimizers: From `build_optimizers`, or wrappers of them.
            number: Of the step, from 0.

        Returns:
            The lowest objective so far, a mean over this rank's candidates; it stays on the device.
        """
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self.learning_rate * self.rule.rate_factor(number)
        if self.line_search:
            self._search_lines(optimizers)
        else:
            self._move_together(optimizers[0], number)
        return self.pool.lowest[self.slots].mean()

    def _move_together(self, optimizer: Stepper, number: int) -> None:
        """Step the candidates of all ranks on every rank, so that a run can be resumed from any rank's checkpoint."""
        problem, settings = self.problem, self.problem.settings
        before, logits = self.pool.snapshot()
        consensus = None
        if settings.regularization.group_consistency:
            groups = torch.split(before, settings.restarts)
            consensus = torch.cat([group_consistency(restarts) for restarts in groups])
        found = self.pool.evaluated(problem.evaluate, self.chunks, before, logits, consensus)
        if self.ranks > 1:
            found = summed_over_ranks(found)
        self.pool.update_best(found.value, before, logits)
        rate = optimizer.param_groups[0]["lr"]
        self.pool.set_gradients(self.rule.shaped(found.dummies, number, rate), found.logits)
        optimizer.step(lambda: found.value)
        frozen = None
        if settings.discrepancy and settings.distance == "likelihood":
            numbers = sum(parameter.numel() for parameter in problem.model.parameters.values())
            frozen = explained(found.residual, problem.task, numbers)
        self.pool.project(problem.parametrization, settings.boxed, before, frozen)

    def _search_lines(self, optimizers: Sequence[Stepper]) -> None:
        for chunk in self.chunks:
            slot = int(chunk.slots)
            optimizers[slot].step(self.pool.closure(self.problem.evaluate, chunk, slot))
        before, _ = self.pool.snapshot()
        self.pool.project(self.problem.parametrization, self.problem.settings.boxed, before, None)

    @torch.no_grad()
    def best_images(self, slots: Sequence[int], observation: Observation) -> tuple[Tensor, Tensor, bool]:
        """The images with the lowest objective among candidates of one update.

        Args:
            slots: Of the candidates.
            observation: Of the update.

        Returns:
            On the CPU: images (victims, C, H, W) in [0, 1], labels (victims,), int64, or other targets (victims, ...),
            empty if the update shows none; and whether the update shows the images.
        """
        problem = self.problem
        dummies, logits, searched = self.pool.best_of(slots)
        searched = searched or (problem.settings.init == "revealed" and bool(dummies.any()))
        images = problem.parametrization.images(dummies).clamp(0, 1).float()
        loss = problem.task.loss
        targets = observation.labels if logits is None else relaxed_targets(loss, logits)
        labels = targets if logits is None or loss != "cross_entropy" else logits.argmax(-1)
        evident = searched and problem.is_evident(observation, images, targets)
        return images.cpu(), labels.cpu() if observation.labels_shown else labels[:0].cpu(), evident


def summed_over_ranks(found: Evaluated) -> Evaluated:
    """Sum what the ranks found, each zero for the others' candidates, in a single reduction."""
    parts = [part for part in (found.value, found.dummies, found.residual, found.logits) if part is not None]
    together = torch.cat([part.flatten() for part in parts])
    # Not the strategy's reduction, which waits at a barrier first.
    dist.all_reduce(together)
    pieces = torch.split(together, [part.numel() for part in parts])
    value, dummies, residual, *logits = (one.view_as(part) for one, part in zip(pieces, parts, strict=True))
    return Evaluated(value, dummies, logits[0] if logits else None, residual)
