# SPDX-License-Identifier: Apache-2.0
"""Whether the objective of gradient inversion is compiled, and what happens where it cannot be."""

import logging

import torch

from lightning_recon.attack.inversion.objective import Candidates, Evaluated, GradientMatching
from lightning_recon.attack.inversion.settings import InversionSettings
from lightning_recon.exchange import Task

log = logging.getLogger(__name__)

# Measured for the small network at 32 x 32 on a CPU: compiling takes 40 to 55 seconds of processor time, and a step of
# one candidate, which takes 5 ms, becomes 2 ms shorter; of more candidates by more.
LONG = 30_000


def compilation_pays(settings: InversionSettings, task: Task, steps: int, device: torch.device, small: bool) -> bool:
    """Whether a search is so long that compilation saves more time than it takes.

    The answer depends neither on the number of candidates nor on timings, so that waves, ranks and repeated runs
    compute the same.

    Args:
        settings: How to search.
        task: The announced training parameters.
        steps: Of the search.
        device: Where to compute; only CPUs were measured.
        small: Whether network and images are so small that calls of PyTorch take a large part of a step.
    """
    looks_inside = settings.regularization.features or settings.regularization.batch_norm
    mixed = torch.is_autocast_enabled(device.type)
    if device.type != "cpu" or not small or looks_inside or mixed:
        return False
    # Local steps are unrolled, and several times as much code has to be compiled.
    return steps >= LONG and task.local.is_plain_step


class CompiledObjective:
    """The objective compiled with its gradient; the plain one from the first failure of the compiler on."""

    def __init__(self, matching: GradientMatching, required: bool) -> None:
        """Prepare to compile, which happens at the first call.

        Args:
            matching: The objective.
            required: Whether a failure is an error.
        """
        self.matching, self.required = matching, required
        self._compiled = torch.compile(matching)
        self._failed = False

    def __call__(self, candidates: Candidates) -> Evaluated:
        """Objective and gradients.

        Args:
            candidates: See `GradientMatching`.
        """
        if self._failed:
            return self.matching(candidates)
        try:
            return self._compiled(candidates)
        except Exception as error:
            if self.required:
                raise
            found = self.matching(candidates)  # raises what is not the compiler's fault
            self._failed = True
            reason = " ".join(str(error).split())[:160]
            log.warning("torch.compile failed, and the search goes on uncompiled: %s: %s", type(error).__name__, reason)
            return found
