# SPDX-License-Identifier: Apache-2.0
"""The candidates of all ranks: their present values, and the best values so far."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from lightning_recon.attack.inversion.objective import Candidates, Evaluated
from lightning_recon.attack.inversion.observations import Chunk
from lightning_recon.attack.inversion.parametrization import Parametrization, Start
from lightning_recon.rng import generator_for

Evaluate = Callable[[Candidates], Evaluated]


class CandidatePool(nn.Module):
    """Dummies, logits of optimised labels, and the best of both by the objective: the state that a checkpoint keeps."""

    best: Tensor
    best_logits: Tensor
    lowest: Tensor

    def __init__(self, count: int, shape: tuple[int, ...], classes: int | None) -> None:
        """Allocate.

        Args:
            count: Number of candidates, K.
            shape: Of the dummies of one candidate, (B, C, H, W).
            classes: Of the network, if labels are optimised too; None if they are not.
        """
        super().__init__()
        searched, labels = (0 if classes is None else count), (shape[0], classes or 0)
        # A parameter for each candidate, because L-BFGS has an optimiser for each.
        self.dummies = nn.ParameterList(torch.zeros(shape) for _ in range(count))
        self.logits = nn.ParameterList(torch.zeros(labels) for _ in range(searched))
        self.register_buffer("best", torch.zeros(count, *shape))
        self.register_buffer("best_logits", torch.zeros(searched, *labels))
        self.register_buffer("lowest", torch.full((count,), math.inf))

    def initialize(self, parametrization: Parametrization, start: Start, seed: int, earlier: int = 0) -> None:
        """Draw the start of every candidate, other ranks' too, from random numbers that depend on its slot alone.

        Args:
            parametrization: Of the images.
            start: Which kind of start.
            seed: Of the random numbers.
            earlier: Number of candidates in earlier waves of the run, by which slots are counted on.
        """
        for slot, dummies in enumerate(self.dummies):
            generator = generator_for("start", seed, earlier + slot)
            dummies.data.copy_(parametrization.start(start, len(dummies), generator))
            if len(self.logits):
                self.logits[slot].data.copy_(torch.randn(self.logits[slot].shape, generator=generator))

    def initialize_at(self, dummies: Tensor) -> None:
        """Start every candidate at these dummies, (K, B, C, H, W)."""
        for slot, one in enumerate(self.dummies):
            one.data.copy_(dummies[slot])

    def snapshot(self) -> tuple[Tensor, Tensor | None]:
        """A copy of all dummies, (K, B, C, H, W), and of the logits, if labels are optimised."""
        logits = torch.stack(list(self.logits)).detach() if len(self.logits) else None
        return torch.stack(list(self.dummies)).detach(), logits

    def select(self, chunk: Chunk, dummies: Tensor, logits: Tensor | None, consensus: Tensor | None) -> Candidates:
        """The candidates of a chunk, with the updates that they have to explain."""
        slots = chunk.slots
        mine = [None if part is None else part[slots] for part in (logits, consensus)]
        return Candidates(dummies[slots], mine[0], chunk.labels, chunk.observed, chunk.weights, mine[1])

    def evaluated(
        self,
        evaluate: Evaluate,
        chunks: Sequence[Chunk],
        dummies: Tensor,
        logits: Tensor | None,
        consensus: Tensor | None,
    ) -> Evaluated:
        """Objective and gradients of the candidates in these chunks, in their slots; zero elsewhere."""
        value, gradient = torch.zeros_like(self.lowest), torch.zeros_like(dummies)
        residual, by_logits = torch.zeros_like(self.lowest), None if logits is None else torch.zeros_like(logits)
        for chunk in chunks:
            found = evaluate(self.select(chunk, dummies, logits, consensus))
            value[chunk.slots], residual[chunk.slots] = found.value, found.residual
            gradient[chunk.slots] = found.dummies
            if by_logits is not None and found.logits is not None:
                by_logits[chunk.slots] = found.logits
        return Evaluated(value, gradient, by_logits, residual)

    def update_best(self, values: Tensor, dummies: Tensor, logits: Tensor | None) -> None:
        """Keep what has a lower objective than the best so far, candidate by candidate; NaN never has.

        Args:
            values: The objective, (K,); infinite where it was not evaluated.
            dummies: The values that it belongs to.
            logits: Likewise.
        """
        better = values < self.lowest
        self.lowest.copy_(torch.where(better, values, self.lowest))
        for best, present in ((self.best, dummies), (self.best_logits, logits)):
            if present is not None:
                best.copy_(torch.where(better.view(-1, *[1] * (present.dim() - 1)), present, best))

    def set_gradients(self, dummies: Tensor, logits: Tensor | None) -> None:
        """Hand the gradients of all candidates to the optimiser."""
        for slot, one in enumerate(self.dummies):
            one.grad = dummies[slot]
        if logits is not None:
            for slot, one in enumerate(self.logits):
                one.grad = logits[slot]

    def project(self, parametrization: Parametrization, boxed: bool, before: Tensor, frozen: Tensor | None) -> None:
        """End a step: project images onto their range, and undo the step of frozen candidates.

        Args:
            parametrization: Of the search.
            boxed: Whether images are clamped to [0, 1].
            before: The dummies before the step, (K, B, C, H, W).
            frozen: Which candidates are frozen, (K,), bool; None: none is.
        """
        for slot, one in enumerate(self.dummies):
            moved = parametrization.boxed(one.data) if boxed else one.data
            one.data.copy_(moved if frozen is None else torch.where(frozen[slot], before[slot], moved))

    def closure(self, evaluate: Evaluate, chunk: Chunk, slot: int) -> Callable[[], float]:
        """The closure of L-BFGS for one candidate, alone in its chunk."""

        def closure() -> float:
            dummies, logits = self.dummies[slot].detach(), self.logits[slot].detach() if len(self.logits) else None
            chosen = None if logits is None else logits[None]
            found = evaluate(Candidates(dummies[None], chosen, chunk.labels, chunk.observed, chunk.weights, None))
            if found.value[0] < self.lowest[slot]:
                self.lowest[slot], self.best[slot] = found.value[0], dummies
                if logits is not None:
                    self.best_logits[slot] = logits
            self.dummies[slot].grad = found.dummies[0]
            if found.logits is not None:
                self.logits[slot].grad = found.logits[0]
            return float(found.value[0])

        return closure

    def best_of(self, slots: Sequence[int]) -> tuple[Tensor, Tensor | None, bool]:
        """Of several candidates the one with the lowest objective: dummies, logits, and whether any was evaluated."""
        slot = slots[int(self.lowest[list(slots)].argmin())]
        if not bool(self.lowest[slot].isfinite()):
            return self.dummies[slot].detach(), self.logits[slot].detach() if len(self.logits) else None, False
        return self.best[slot], self.best_logits[slot] if len(self.logits) else None, True
