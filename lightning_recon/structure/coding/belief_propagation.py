# SPDX-License-Identifier: Apache-2.0
"""Belief propagation in layers, for the repeat-accumulate codes of `channel_code` and several codewords at once.

Parities are decoded in layers, each of which uses the messages of the layer before it at once; the sweeps run up and
down along the running sum in turn. That takes fewer iterations than flooding, and what a layer works on stays in a
processor's cache.

Messages to and from message bits are log-likelihood ratios, because a bit adds up many of them. Those along the running
sum are kept as tanh(L/2), which the rule of parities needs: a sum has only three neighbours, whose messages combine by
the addition theorem of tanh. So only the edges of message bits cost a sigmoid and a logarithm.

Source: layers after Hocevar, "A reduced complexity decoder architecture via layered decoding of LDPC codes" (2004).
"""

import math
from dataclasses import dataclass, field
from functools import lru_cache

import torch
from torch import Tensor

# Largest magnitude of a parity's message is logit(1 - _LEAST); tanh(L/2) of what is divided by is kept away from 0.
_LEAST, _NOT_ZERO = 5e-8, 1e-12
# Limit of tanh(L/2) of what the channel says about a running sum: 1 ± its product with another one is divided by.
_MOST = 1 - 1e-6
# The parities of the right message agree with the channel by at least this share of what they do on average. One wrong
# bit changes at least a tenth of them, which takes off a fifth.
_AGREEMENT = 0.9
# Log-likelihood ratio, of random sign, of bits that did not arrive. At exactly 0, parities would count as satisfied
# whose bits are unknown, and decoding would stop for want of progress.
_ERASED = 0.02
# With more than this share of parities violated, the message is not checked.
_NEARLY = 0.02
# Decoding stops when this many sweeps together did not reduce the violated parities by this share; half as many where
# more than a quarter of the parities are violated. Before, in every tenth sweep without such progress, a message is
# accepted whose running sums go on changing.
_PATIENCE, _STALLED, _PROGRESS, _FAR_FROM_DONE = 200, 10, 0.005, 0.25
# From the first number on, every other window of sweeps is damped: checks keep this share of what they sent to message
# bits before. A few wrong bits can make messages oscillate for good, which damping often ends; other sweeps converge
# faster.
_DAMPED_FROM, _WINDOW, _DAMPING = 60, 40, 0.5


def propagate(beliefs: Tensor, groups: Tensor, iterations: int) -> list[Tensor | None]:
    """Decode codewords of the same code.

    Args:
        beliefs: Shape (V, inputs), float32: log-likelihood of 0 against 1 for each bit of V codewords, the message
            first and then the running sum; 0 for a bit that did not arrive.
        groups: Shape (layers, group, lanes), integers: the message bits that each parity adds up. Neighbours along the
            running sum are in neighbouring layers.
        iterations: Most sweeps; the decoding of a codeword stops sooner if they bring no more progress.

    Returns:
        For each codeword the message, shape (messages,), int64; None if its parities contradict the channel.
    """
    state = _State.of(torch.where(beliefs == 0, _guesses(beliefs.shape[1]).to(beliefs), beliefs), groups)
    found: list[Tensor | None] = [None] * len(beliefs)
    waiting, best, since = list(range(len(beliefs))), [math.inf] * len(beliefs), [0] * len(beliefs)
    parities = groups.shape[0] * groups.shape[2]
    for iteration in range(iterations):
        state.sweep(upwards=iteration % 2 == 0, damped=_is_damped(iteration))
        going_on = []
        for place, violated in enumerate(state.violated()):
            one = waiting[place]
            # Incoming messages can violate a parity that the decoded word satisfies.
            if violated <= _NEARLY * parities:
                found[one] = state.message(place)
            if violated < (1 - _PROGRESS) * best[one]:
                best[one], since[one] = violated, iteration
            stalled = iteration - since[one]
            if found[one] is None and violated <= _NEARLY * parities and stalled % _STALLED == _STALLED - 1:
                found[one] = state.likely_message(place)
            if found[one] is None and stalled < (
                _PATIENCE // 2 if best[one] > _FAR_FROM_DONE * parities else _PATIENCE
            ):
                going_on.append(place)
        if not going_on:
            break
        if len(going_on) < len(waiting):
            waiting = [waiting[place] for place in going_on]
            state = state.of_codewords(going_on)
    return found


def _is_damped(iteration: int) -> bool:
    """Whether a sweep is damped, by its number."""
    return iteration >= _DAMPED_FROM and (iteration - _DAMPED_FROM) // _WINDOW % 2 == 0


@lru_cache(maxsize=1)
def _guesses(inputs: int) -> Tensor:
    """Weak beliefs of random sign, shape (inputs,)."""
    return _ERASED * (torch.randint(2, (inputs,), generator=torch.Generator().manual_seed(0)) * 2 - 1)


@dataclass
class _Layer:
    """What the update of one layer reads and writes: views, since making them takes as long as using them."""

    members: Tensor
    sent: Tensor
    incoming: Tensor
    before: Tensor
    channel: Tensor
    product: Tensor
    to_sum_before: Tensor
    to_check_after: Tensor
    outgoing: tuple[Tensor, Tensor]


@dataclass
class _State:
    """Messages of codewords that are being decoded.

    Args:
        groups: Shape (layers, group, lanes).
        total: Shape (V, messages): log-likelihood ratios of the message bits.
        channel: Shape (layers, 2, V, lanes): tanh(L/2) of what the channel says about the sum before a check, and about
            the check's own sum.
        incoming: Likewise: messages to a check from its own sum, and from the sum before.
        sent: Shape (layers, V, group * lanes): log-likelihood ratios from checks to their message bits.
    """

    groups: Tensor
    total: Tensor
    channel: Tensor
    incoming: Tensor
    sent: Tensor
    layers: list[_Layer] = field(init=False)

    @classmethod
    def of(cls, beliefs: Tensor, groups: Tensor) -> "_State":
        """State before the first sweep."""
        layers, size, lanes = groups.shape
        messages = beliefs.shape[1] - layers * lanes
        own = (beliefs[:, messages:] / 2).tanh().clamp(-_MOST, _MOST).view(-1, lanes, layers).permute(2, 0, 1)
        before = own.roll(1, dims=0)
        before[0] = before[0].roll(1, dims=1)
        before[0, :, 0] = 0.0
        incoming = torch.stack([own, before], dim=1)
        incoming[0, 1, :, 0] = 1.0  # there is no sum before the first: it is 0 for sure
        sent = beliefs.new_zeros(layers, len(beliefs), size * lanes)
        return cls(groups, beliefs[:, :messages].clone(), torch.stack([before, own], dim=1), incoming, sent)

    def of_codewords(self, places: list[int]) -> "_State":
        """State of some of the codewords."""
        chosen = torch.tensor(places, device=self.total.device)
        total, sent = self.total.index_select(0, chosen), self.sent.index_select(1, chosen)
        channel, incoming = (one.index_select(2, chosen) for one in (self.channel, self.incoming))
        return _State(self.groups, total, channel, incoming, sent)

    def __post_init__(self) -> None:
        (count, size, lanes), victims = self.groups.shape, len(self.total)
        self._half, self._minus, self._one = (self.total.new_full((), number) for number in (0.5, -1.0, 1.0))
        self._factors, self._change = (self.total.new_empty(victims, size * lanes) for _ in range(2))
        self._place = self.groups.new_empty(size * lanes, dtype=torch.int64)
        self._product, self._outgoing = self.total.new_empty(victims, lanes), self.total.new_empty(2, victims, lanes)
        self._next, self._products = (
            self.total.new_empty(2, victims, lanes),
            self.total.new_empty(count, victims, lanes),
        )
        self.layers = []
        for layer in range(count):
            # Lanes follow one another: the sum before the first layer's check is that of the last layer, a lane before.
            first, last = layer == 0, layer == count - 1
            self.layers.append(
                _Layer(
                    self.groups[layer].flatten(),
                    self.sent[layer],
                    self.incoming[layer],
                    self.incoming[layer, 1],
                    self.channel[layer],
                    self._products[layer],
                    self.incoming[-1, 0, :, :-1] if first else self.incoming[layer - 1, 0],
                    self.incoming[0, 1, :, 1:] if last else self.incoming[layer + 1, 1],
                    (
                        self._next[0, :, 1:] if first else self._next[0],
                        self._next[1, :, :-1] if last else self._next[1],
                    ),
                )
            )

    def sweep(self, upwards: bool, damped: bool = False) -> None:
        """Update all layers once, in the order of the running sum or against it."""
        factors, change, product, outgoing = self._factors, self._change, self._product, self._outgoing
        by_check = factors.view(len(factors), *self.groups.shape[1:])
        for layer in self.layers if upwards else reversed(self.layers):
            members = self._place.copy_(layer.members)
            torch.index_select(self.total, 1, members, out=factors)
            factors.sub_(layer.sent).sigmoid_()
            torch.add(self._minus, factors, alpha=2, out=factors).add_(_NOT_ZERO)  # tanh(L/2) = 2 sigmoid(L) - 1
            torch.prod(by_check, dim=1, out=product)
            torch.mul(layer.incoming, product, out=outgoing)
            torch.mul(outgoing[0], layer.before, out=layer.product)
            # 2 atanh(x) = logit(1/2 + x/2), with x the product of the others.
            torch.addcdiv(self._half, layer.product[:, None], by_check, value=0.5, out=by_check)
            torch.special.logit(factors, eps=_LEAST, out=factors)
            if damped:
                factors.lerp_(layer.sent, _DAMPING)
            torch.sub(factors, layer.sent, out=change)
            self.total.scatter_add_(1, members.expand_as(change), change)
            layer.sent.copy_(factors)
            torch.add(outgoing, layer.channel, out=self._next)
            self._next.div_(torch.addcmul(self._one, outgoing, layer.channel, out=outgoing))
            layer.to_sum_before.copy_(layer.outgoing[0])
            layer.to_check_after.copy_(layer.outgoing[1])

    def violated(self) -> list[int]:
        """How many parities incoming messages violated in the last sweep, of each codeword."""
        counts: list[int] = (self._products < 0).sum(dim=(0, 2)).tolist()
        return counts

    def message(self, place: int) -> Tensor | None:
        """The decided message of a codeword, if it satisfies all parities; the last sum is whatever satisfies its."""
        bits = self.total[place] < 0
        behind, own = self.incoming[:, 0, place], self.channel[:, 1, place]
        ahead = self.incoming[:, 1, place].roll(-1, dims=0)
        ahead[-1] = ahead[-1].roll(-1)
        # The sign of the sum of three log-likelihood ratios, of which two hold the channel's.
        sums = (behind + ahead - own - behind * ahead * own < 0).T.flatten()
        members = bits.to(torch.uint8).index_select(0, self.groups.flatten()).view(self.groups.shape)
        odd = members.sum(dim=1, dtype=torch.uint8).T.flatten() + sums
        odd[1:] += sums[:-1]
        return None if bool((odd[:-1] & 1).any()) else bits.long()

    def likely_message(self, place: int) -> Tensor | None:
        """The decided message of a codeword, if its parities agree with what the channel says about them.

        A decided message is often right although some running sums change from sweep to sweep for good. For beliefs L
        that are log-likelihood ratios, parities agree by L tanh(L/2) on average.
        """
        bits = self.total[place] < 0
        members = bits.to(torch.uint8).index_select(0, self.groups.flatten()).view(self.groups.shape)
        parities = members.sum(dim=1, dtype=torch.int32).T.flatten().cumsum(dim=0) & 1
        certainty = self.channel[:, 1, place].T.flatten()
        beliefs = 2 * certainty.atanh()
        agreement, expected = ((1 - 2 * parities) * beliefs).sum(), (certainty * beliefs).sum()
        return bits.long() if agreement >= _AGREEMENT * expected else None
