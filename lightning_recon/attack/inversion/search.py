# SPDX-License-Identifier: Apache-2.0
"""The search for one update's images as a function, without a Trainer."""

from torch import Tensor
from torch.optim import LBFGS

from lightning_recon.attack.inversion.candidates import CandidatePool
from lightning_recon.attack.inversion.forward_model import Update
from lightning_recon.attack.inversion.observations import lay_out
from lightning_recon.attack.inversion.problem import InverseProblem
from lightning_recon.attack.inversion.solver import Solver, build_optimizers, start


def search(problem: InverseProblem, update: Update, labels: Tensor | None, steps: int) -> tuple[Tensor, Tensor, bool]:
    """Search for the images of one update, as `GradientInversion` does.

    Args:
        problem: Network, task and settings.
        update: The update, by the names of the network's parameters.
        labels: True labels, (victims,), int64; None to recover them as the settings say.
        steps: Number of steps, 0 for the start alone.

    Returns:
        On the CPU: images (victims, C, H, W) in [0, 1], labels (victims,), int64, empty if the update shows none;
        and whether the update shows the images.
    """
    task, settings = problem.task, problem.settings
    observation = problem.observe(update, labels, 0, 0, in_order=steps > 0)
    classes = task.num_classes if settings.labels == "joint" else None
    pool = CandidatePool(settings.restarts, (task.victims, *task.image_shape), classes).to(problem.device)
    optimizers, slots = build_optimizers(pool, settings, ranks=1), range(settings.restarts)
    line_search, rate = isinstance(optimizers[0], LBFGS), float(optimizers[0].param_groups[0]["lr"])
    size = 1 if line_search else problem.chunk_size
    groups = [slots[first : first + size] for first in range(0, len(slots), size)]
    chunks = [lay_out([(slot, observation) for slot in group], task, settings.weigh_tensors) for group in groups]
    solver = Solver(pool, problem, chunks, rate, line_search, steps)
    start(pool, problem, {slots: observation}, ranks=1)
    if steps:
        problem.check_differentiable(pool.select(chunks[0], *pool.snapshot(), None))
    for number in range(steps):
        solver.step(optimizers, number)
    return solver.best_images(slots, observation)
