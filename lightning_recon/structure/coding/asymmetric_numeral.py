# SPDX-License-Identifier: Apache-2.0
"""Entropy coding by tabled asymmetric numeral systems, as gathers from tables of fixed shapes.

A coder of this kind is a finite automaton: the next symbol moves it to another state, and it emits some bits of the old
one. Moves of an automaton can be composed, in any grouping: so pieces of the sequence are run from every state at once,
all pieces side by side, which leaves few steps that depend on each other. The result is the one of the usual loop.

Source: Duda, "Asymmetric numeral systems" (arXiv 1311.2540); composition after Ladner and Fischer, "Parallel prefix
computation" (1980).
"""

import math

import torch
from torch import Tensor, nn


class NumeralCoder(nn.Module):
    """A coder of symbols whose distributions depend on contexts."""

    moves: Tensor
    emitted: Tensor
    first: Tensor
    powers: Tensor

    def __init__(self, frequencies: tuple[tuple[int, ...], ...]) -> None:
        """Make the tables.

        Args:
            frequencies: For each context how often each symbol occurs, at least 1; sums are the number of states, a
                power of two of at most 256.
        """
        super().__init__()
        self.states = sum(frequencies[0])
        self.state_bits = self.states.bit_length() - 1
        moves: list[list[int]] = []
        emitted: list[list[int]] = []
        first: list[int] = []
        self.decoding: list[list[tuple[int, int, int]]] = []
        for counts in frequencies:
            first.append(len(moves))
            decoding: list[tuple[int, int, int]] = [(0, 0, 0)] * self.states
            reached: dict[tuple[int, int], int] = {}
            seen = list(counts)
            for state, symbol in enumerate(_spread(counts)):
                bits = self.state_bits - (seen[symbol].bit_length() - 1)
                decoding[state] = symbol, bits, (seen[symbol] << bits) - self.states
                reached[symbol, seen[symbol]] = state
                seen[symbol] += 1
            self.decoding.append(decoding)
            for symbol, count in enumerate(counts):
                bits_of = [
                    next(bits for bits in range(self.state_bits + 1) if (self.states + state) >> bits < 2 * count)
                    for state in range(self.states)
                ]
                moves.append([reached[symbol, (self.states + state) >> bits_of[state]] for state in range(self.states)])
                emitted.append(bits_of)
        # The last row is a symbol that does nothing.
        moves.append(list(range(self.states)))
        emitted.append([0] * self.states)
        self.register_buffer("moves", torch.tensor(moves, dtype=torch.uint8).flatten(), persistent=False)
        self.register_buffer("emitted", torch.tensor(emitted, dtype=torch.int64).flatten(), persistent=False)
        self.register_buffer("powers", 2 ** torch.arange(self.state_bits + 1), persistent=False)
        # The row of each context's first symbol.
        self.register_buffer("first", torch.tensor(first), persistent=False)

    def encode(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Encode symbols from the last one to the first, so that they are decoded in their order.

        Args:
            rows: Shape (B, N), int64: `first` of a symbol's context, plus the symbol.

        Returns:
            The state to decode from, shape (B,); for each symbol the bits that its decoding reads, as a number, and how
            many they are, shape (B, N). All int64.
        """
        before, start = self._run(rows.flip(1))
        before = before.flip(1).long()
        bits = self.emitted.index_select(0, (rows * self.states + before).flatten()).view(rows.shape)
        # Before a move the state stands for itself plus the number of states, a power of two.
        return start.long(), before % self.powers.index_select(0, bits.flatten()).view(bits.shape), bits

    def _run(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The states before each move, from state 0, shape (B, N), and the last one, shape (B,)."""
        batch, count = rows.shape
        side = max(2, math.ceil(count ** (1 / 3)))
        pieces = -(-count // (side * side))
        idle = self.moves.numel() // self.states - 1
        padded = torch.nn.functional.pad(rows, (0, pieces * side * side - count), value=idle)
        offsets = (padded * self.states).to(torch.int32).view(batch, pieces * side, side)
        # Every piece from every state.
        every = torch.arange(self.states, dtype=torch.uint8, device=rows.device)
        ends = every.expand(batch, pieces * side, self.states)
        for place in range(side):
            ends = self._moved(offsets[:, :, place, None] + ends)
        whole = ends.view(batch, pieces, side, self.states).long()
        groups = every.long().expand(batch, pieces, self.states)
        for place in range(side):
            groups = whole[:, :, place].gather(2, groups)
        # Now the states that are really reached: before groups of pieces, before pieces, before moves.
        state, reached = torch.zeros_like(rows[:, :1]), []
        for place in range(pieces):
            reached.append(state)
            state = groups[:, place].gather(1, state)
        at, starts = torch.cat(reached, dim=1), []
        for place in range(side):
            starts.append(at)
            at = whole[:, :, place].gather(2, at[:, :, None])[:, :, 0]
        now, before = torch.stack(starts, dim=2).flatten(1).to(torch.uint8), []
        for place in range(side):
            before.append(now)
            now = self._moved(offsets[:, :, place] + now)
        return torch.stack(before, dim=2).flatten(1)[:, :count], state[:, 0]

    def _moved(self, places: Tensor) -> Tensor:
        return self.moves.index_select(0, places.flatten()).view(places.shape)


def _spread(counts: tuple[int, ...]) -> list[int]:
    """The symbol of each state: each symbol's states are spread evenly over all."""
    states = sum(counts)
    stride, place, symbols = (states >> 1) + (states >> 3) + 3, 0, [0] * states
    for symbol, count in enumerate(counts):
        for _ in range(count):
            symbols[place] = symbol
            place = (place + stride) % states
    return symbols
