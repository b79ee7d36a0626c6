# SPDX-License-Identifier: Apache-2.0
"""Run the client on the probes, and keep what its releases show."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from lightning_recon.verification.canary_scores import CanaryReach, canary_scores
from lightning_recon.verification.client_under_test import ClientUnderTest
from lightning_recon.verification.probe_series import Probes
from lightning_recon.verification.replies import Reply, reply_of, sorted_reply

KEPT = 1 << 18  # numbers of a tensor that are kept of every release: its first half and its last


@dataclass
class Releases:
    """What the releases have shown.

    Args:
        noise: silent releases of the first client by tensor: (releases, numbers kept), float32.
        second: the same of the second client; empty: there was none.
        restarted: the same of the first client after a restart; empty: it was not restarted.
        beside: what silent releases held beside the parameters, of the first client, in their order.
        sizes: numbers in each tensor.
        same: how many numbers of each tensor were the same in all silent releases.
        zero: how many were zero in all of them.
        canaries: scores by the name of the probe: "near", "far", "below", "both layers".
        open: two releases of the network itself on one batch, and one on another.
        reach: Euclidean norms of the silent releases as a whole.
    """

    noise: dict[str, Tensor]
    second: dict[str, Tensor]
    restarted: dict[str, Tensor]
    beside: list[dict[str, Tensor]]
    sizes: dict[str, int]
    same: dict[str, int]
    zero: dict[str, int]
    canaries: dict[str, CanaryReach]
    open: list[Reply]
    reach: Tensor

    @cached_property
    def distinct(self) -> dict[str, Tensor]:
        """The noise of those silent releases that repeat no earlier one: repeats say nothing new of its size."""
        count = len(next(iter(self.noise.values())))
        marks = [tuple(hash(rows[place].numpy().tobytes()) for rows in self.noise.values()) for place in range(count)]
        first = [place for place in range(count) if marks[place] not in marks[:place]]
        return self.noise if len(first) == count else {name: rows[first] for name, rows in self.noise.items()}

    @property
    def never_noised(self) -> dict[str, int]:
        """How many numbers of each tensor have no noise; where the noise repeats, only zeros show that."""
        return self.zero if len(next(iter(self.distinct.values()))) == 1 else self.same

    @property
    def tensors(self) -> int:
        """Number of parameter tensors that are released, the server's included."""
        return len(self.noise)


def collect(
    client: ClientUnderTest,
    second: Callable[[], ClientUnderTest] | None,
    restarted: Iterable[Mapping[str, Tensor]],
    probes: Probes,
) -> Releases:
    """Send every probe, and keep what is needed of the releases.

    Args:
        client: the first client; every call is a round of its own.
        second: creates another client of the same program, when the first has answered; None: there is none.
        restarted: replies of the first client to silent probes after a restart of its program.
        probes: what is sent.

    Raises:
        UserError: a client failed, or its release lacks the server's layer or holds NaN or infinity.
    """
    claims, silent = probes.claims, probes.silent()
    noise: dict[str, list[Tensor]] = {}
    first: dict[str, Tensor] = {}
    zero: dict[str, Tensor] = {}
    same: dict[str, Tensor] = {}
    beside, reach = [], []
    for _ in range(probes.releases):
        one = reply_of(client, silent, claims)
        beside.append(one.beside)
        reach.append(torch.stack([tensor.double().norm() for tensor in one.update.values()]).norm())
        for name, tensor in one.update.items():
            noise.setdefault(name, []).append(kept(tensor))
            before = first.setdefault(name, tensor)
            zero[name] = (tensor == 0) & zero.get(name, torch.tensor(True))
            same[name] = (tensor == before) & same.get(name, torch.tensor(True))
    model = silent[0]
    again = [sorted_reply(one, model, claims).update for one in restarted]
    other = None if second is None else second()
    others = [] if other is None else [reply_of(other, silent, claims).update for _ in range(probes.few)]
    seen = [reply_of(client, probes.open(number), claims) for number in (0, 0, 1)]
    return Releases(
        noise={name: torch.stack(rows) for name, rows in noise.items()},
        second=_stacked(others),
        restarted=_stacked(again),
        beside=beside,
        sizes={name: tensor.numel() for name, tensor in zero.items()},
        same={name: int(tensor.sum()) for name, tensor in same.items()},
        zero={name: int(tensor.sum()) for name, tensor in zero.items()},
        canaries=canary_scores(client, probes),
        open=seen,
        reach=torch.stack(reach),
    )


def kept(tensor: Tensor) -> Tensor:
    """The numbers of a tensor that are kept, (n,) float32."""
    flat = tensor.flatten()
    return flat if len(flat) <= KEPT else torch.cat([flat[: KEPT // 2], flat[-KEPT // 2 :]])


def _stacked(updates: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.stack([kept(update[name]) for update in updates]) for name in (updates[0] if updates else {})}
