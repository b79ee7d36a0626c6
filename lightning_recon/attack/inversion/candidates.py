# SPDX-License-Identifier: Apache-2.0
"""The guesses of all ranks: where they are, what the objective says of them, and the best of them so far."""

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
    """Dummies, logits of searched labels, and what was best by the objective: all that a checkpoint has to keep."""

    best: Tensor
    best_logits: Tensor
    lowest: Tensor

    def __init__(self, count: int, shape: tuple[int, ...], classes: int | None) -> None:
        """Make room.

        Args:
            count: How many guesses there are, K.
            shape: Of the dummies of one, (B, 3, H, W).
            classes: Of the network, if labels are searched too; None if they are not.
        """
        super().__init__()
        searched, labels = (0 if classes is None else count), (shape[0], classes or 0)
        # A parameter for each guess: L-BFGS moves every one along a line of its own.
        self.dummies = nn.ParameterList(torch.zeros(shape) for _ in range(count))
        self.logits = nn.ParameterList(torch.zeros(labels) for _ in range(searched))
        self.register_buffer("best", torch.zeros(count, *shape))
        self.register_buffer("best_logits", torch.zeros(searched, *labels))
        self.register_buffer("lowest", torch.full((count,), math.inf))

    def begin(self, coordinates: Parametrization, start: Start, seed: int) -> None:
        """Start every guess, other ranks' too, from numbers that depend on its place alone."""
        for slot, dummies in enumerate(self.dummies):
            generator = generator_for("start", seed, slot)
            dummies.data.copy_(coordinates.start(start, len(dummies), generator))
            if len(self.logits):
                self.logits[slot].data.copy_(torch.randn(self.logits[slot].shape, generator=generator))

    def begin_at(self, dummies: Tensor) -> None:
        """Start every guess at these dummies, (K, B, 3, H, W)."""
        for slot, one in enumerate(self.dummies):
            one.data.copy_(dummies[slot])

    def now(self) -> tuple[Tensor, Tensor | None]:
        """A copy of all dummies, (K, B, 3, H, W), and of the logits, if labels are searched."""
        logits = torch.stack(list(self.logits)).detach() if len(self.logits) else None
        return torch.stack(list(self.dummies)).detach(), logits

    def guesses(self, chunk: Chunk, dummies: Tensor, logits: Tensor | None, centre: Tensor | None) -> Candidates:
        """Those of all guesses that a chunk is about, beside what they are compared with."""
        places = chunk.slots
        mine = [None if part is None else part[places] for part in (logits, centre)]
        return Candidates(dummies[places], mine[0], chunk.labels, chunk.seen, chunk.weights, mine[1])

    def evaluated(
        self, evaluate: Evaluate, chunks: Sequence[Chunk], dummies: Tensor, logits: Tensor | None, centre: Tensor | None
    ) -> Evaluated:
        """What the objective says of the guesses in these chunks, in their places; zero elsewhere."""
        value, gradient = torch.zeros_like(self.lowest), torch.zeros_like(dummies)
        residual, by_logits = torch.zeros_like(self.lowest), None if logits is None else torch.zeros_like(logits)
        for chunk in chunks:
            found = evaluate(self.guesses(chunk, dummies, logits, centre))
            value[chunk.slots], residual[chunk.slots] = found.value, found.residual
            gradient[chunk.slots] = found.dummies
            if by_logits is not None and found.logits is not None:
                by_logits[chunk.slots] = found.logits
        return Evaluated(value, gradient, by_logits, residual)

    def remember(self, values: Tensor, dummies: Tensor, logits: Tensor | None) -> None:
        """Keep what is better than the best so far, guess by guess, by the objective alone; NaN never is.

        Args:
            values: The objective, (K,); infinite where it was not asked.
            dummies: What it is of.
            logits: Likewise.
        """
        better = values < self.lowest
        self.lowest.copy_(torch.where(better, values, self.lowest))
        for best, now in ((self.best, dummies), (self.best_logits, logits)):
            if now is not None:
                best.copy_(torch.where(better.view(-1, *[1] * (now.dim() - 1)), now, best))

    def follow(self, dummies: Tensor, logits: Tensor | None) -> None:
        """Give gradients of all guesses to the optimiser."""
        for slot, one in enumerate(self.dummies):
            one.grad = dummies[slot]
        if logits is not None:
            for slot, one in enumerate(self.logits):
                one.grad = logits[slot]

    def settle(self, coordinates: Parametrization, boxed: bool, before: Tensor, rest: Tensor | None) -> None:
        """End a step: keep the pictures within their range, and guesses that rest where they were.

        Args:
            coordinates: Of the search.
            boxed: Whether pictures keep within [0, 1].
            before: The dummies before the step, (K, B, 3, H, W).
            rest: Which guesses rest, (K,), bool; None: none does.
        """
        for slot, one in enumerate(self.dummies):
            moved = coordinates.boxed(one.data) if boxed else one.data
            one.data.copy_(moved if rest is None else torch.where(rest[slot], before[slot], moved))

    def along_line(self, evaluate: Evaluate, chunk: Chunk, slot: int) -> Callable[[], float]:
        """The closure of L-BFGS for one guess, alone in its chunk."""

        def closure() -> float:
            dummies, logits = self.dummies[slot].detach(), self.logits[slot].detach() if len(self.logits) else None
            chosen = None if logits is None else logits[None]
            found = evaluate(Candidates(dummies[None], chosen, chunk.labels, chunk.seen, chunk.weights, None))
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
        """Of several guesses at one update the one with the best objective: dummies, logits, and whether it has any."""
        slot = slots[int(self.lowest[list(slots)].argmin())]
        if not bool(self.lowest[slot].isfinite()):
            return self.dummies[slot].detach(), self.logits[slot].detach() if len(self.logits) else None, False
        return self.best[slot], self.best_logits[slot] if len(self.logits) else None, True
