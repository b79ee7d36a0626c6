# SPDX-License-Identifier: Apache-2.0
"""Run the client on the probes, and keep what its releases show."""

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from lightning_recon.errors import UserError
from lightning_recon.rng import generator_for
from lightning_recon.verification.claims import Claims
from lightning_recon.verification.client_under_test import Batch, ClientUnderTest
from lightning_recon.verification.probes import BLANK, LAYERS, Canaries, ProbeModel, layer_name

LOUD = 1000.0  # of a loud canary's norm to that of a near one
NEAR = 2.0  # norm of a canary's gradient in clipping norms, just beyond the clip
QUIET = 0.5  # the same, below the clip
WHISPER = 1e-6  # norm of the gradient that is in every release, in standard deviations of the noise
KEPT = 1 << 18  # numbers of a tensor that are kept of every release: its first half and its last
_WRAPPERS = ("_module.", "module.")  # prefixes that wrappers add to parameter names


@dataclass(frozen=True)
class Reply:
    """One release, sorted.

    Args:
        update: of the model's floating-point parameters, in the unit of `Claims.update_factor`.
        beside: everything else that was sent: buffers, integers, metrics, as they were sent.
    """

    update: dict[str, Tensor]
    beside: dict[str, Tensor]


@dataclass(frozen=True)
class CanaryReach:
    """How far releases reach in the direction of each canary of one kind of probe.

    Args:
        norm: norm of the canaries' gradients, in clipping norms, where the client takes the gradient as it is.
        inside: scores of the canaries that were in the batch, float64.
        outside: scores of those that were not.
        others: how many canaries each of those inside was together with in a batch, itself included, on average.
    """

    norm: float
    inside: Tensor
    outside: Tensor
    others: float


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
        canaries: scores by the name of the probe: "near", "loud", "quiet", "both layers".
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


@dataclass(frozen=True)
class Probes:
    """All that is sent to clients in one verification.

    Args:
        network: the network under test.
        canaries: geometry of the canaries.
        claims: what is claimed, from which norms follow.
        releases: how many silent releases are asked of the first client; of other probes half as many.
        seed: of the choice of canaries.
    """

    network: nn.Module
    canaries: Canaries
    claims: Claims
    releases: int
    seed: int

    @property
    def few(self) -> int:
        """Number of silent releases of the second client, and of the first after a restart."""
        return max(2, self.releases // 8)

    def silent(self) -> tuple[ProbeModel, Batch]:
        """A probe whose release is nothing but noise."""
        blank = torch.full((self.claims.batch_size,), BLANK, dtype=torch.int64)
        return self._model((0.0,) * LAYERS), self.canaries.batch(blank)

    def open(self, number: int) -> tuple[ProbeModel, Batch]:
        """The network itself, on random images."""
        generator = generator_for("open probe", self.seed, number)
        shape = (self.claims.batch_size, *self.canaries.image_shape)
        labels = torch.randint(self.canaries.classes, shape[:1], generator=generator)
        return self._model((0.0,) * LAYERS, silent=False), (torch.rand(shape, generator=generator), labels)

    def with_canaries(self, norm: float, numbers: Tensor, layers: int) -> tuple[ProbeModel, Batch]:
        """A probe with canaries.

        Args:
            norm: norm of their gradients, in clipping norms.
            numbers: which, see `Canaries.batch`.
            layers: into how many of the server's layers they send their gradients.
        """
        gain = self.canaries.gain(norm * self.claims.max_grad_norm / layers**0.5 / self._rate)
        return self._model([gain] * layers + [0.0] * (LAYERS - layers)), self.canaries.batch(numbers)

    def chosen(self, number: int) -> tuple[Tensor, Tensor]:
        """The canaries of one release.

        Args:
            number: of the release.

        Returns:
            The canary of each image in the batch, and which canaries are in the batch, (count,) bool. Each canary is
            in with probability 1/2, on its own; where the update is clipped as a whole there is one in all images.
        """
        size, count = self.claims.batch_size, self.canaries.count
        generator = generator_for("canaries", self.seed, number)
        if self.claims.privacy.granularity == "update":
            present = torch.zeros(count, dtype=torch.bool)
            present[number % count] = bool(torch.rand((), generator=generator) < 0.5)
            return torch.full((size,), number % count if present.any() else BLANK, dtype=torch.int64), present
        present = torch.rand(count, generator=generator) < 0.5
        numbers = torch.full((size,), BLANK, dtype=torch.int64)
        numbers[:count] = torch.where(present, torch.arange(count), BLANK)
        return numbers, present

    @property
    def _rate(self) -> float:
        """Factor between a gradient and the update that is clipped."""
        trained = self.claims.released == "state_dict" and self.claims.privacy.granularity == "update"
        return self.claims.learning_rate if trained else 1.0

    @cached_property
    def _plain(self) -> ProbeModel:
        whisper = self.canaries.gain(WHISPER * self.claims.noise_std / self._rate)
        return ProbeModel(self.network, self.canaries.count, self.canaries.classes, (0.0,) * LAYERS, whisper)

    def _model(self, gains: Sequence[float], silent: bool = True) -> ProbeModel:
        model = copy.copy(self._plain)  # shares all tensors; clients are given deep copies
        model.gains, model.silent = tuple(gains), silent
        return model


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


def canary_scores(client: ClientUnderTest, probes: Probes) -> dict[str, CanaryReach]:
    """The scores of all canaries, by the name of the probe."""
    half, found = max(2, probes.releases // 2), {}
    plan = {"near": (NEAR, 1), "loud": (NEAR * LOUD, 1), "quiet": (QUIET, 1), "both layers": (NEAR * LOUD, LAYERS)}
    for place, (name, (norm, layers)) in enumerate(plan.items()):
        inside, outside, others = [], [], []
        for number in range(half):
            numbers, present = probes.chosen(place * half + number)
            probe = probes.with_canaries(norm, numbers, layers)
            update = reply_of(client, probe, probes.claims).update
            score = sum(probes.canaries.scores(update[layer_name(layer)]) for layer in range(layers)) / layers**0.5
            assert isinstance(score, Tensor)
            asked = torch.ones_like(present)
            if probes.claims.privacy.granularity == "update":
                asked = torch.arange(len(present)) == (place * half + number) % len(present)
            inside.append(score[present & asked])
            outside.append(score[~present & asked])
            others.append(int(present.sum()))
        found[name] = CanaryReach(norm, torch.cat(inside), torch.cat(outside), max(1.0, sum(others) / len(others)))
    return found


def reply_of(client: ClientUnderTest, probe: tuple[ProbeModel, Batch], claims: Claims) -> Reply:
    """One release of a client, which is given a copy of model and batch.

    Raises:
        UserError: the client failed, or see `sorted_reply`.
    """
    model, (images, labels) = probe
    try:
        reply = client(copy.deepcopy(model), (images.clone(), labels.clone()))
    except UserError:
        raise
    except Exception as error:  # a client of the user's may raise anything
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise UserError(f"the client failed on a probe ({type(error).__name__}: {reason}): see its own log") from error
    return sorted_reply(reply, model, claims)


def sorted_reply(reply: Mapping[str, Tensor], model: ProbeModel, claims: Claims) -> Reply:
    """Sort what a client sent into the update of the parameters and all the rest.

    Raises:
        UserError: the reply lacks the server's layers, or a parameter has another shape, NaN or infinity.
    """
    known = dict(model.named_parameters())
    update: dict[str, Tensor] = {}
    beside: dict[str, Tensor] = {}
    for wrapped, value in reply.items():
        name = _own_name(wrapped)
        tensor = torch.as_tensor(value).detach().cpu()
        if name not in known:
            beside[name] = tensor
            continue
        before = known[name].detach().cpu()
        if tensor.shape != before.shape:
            raise UserError(f"the client sent {name} as {tuple(tensor.shape)}, but it was given {tuple(before.shape)}")
        change = tensor.double() - before.double() if claims.released == "state_dict" else tensor.double()
        if not bool(change.isfinite().all()):
            raise UserError(f"the client sent NaN or infinity in {name}: verify a client whose step succeeds")
        update[name] = (claims.update_factor * change).float()
    for name in map(layer_name, range(LAYERS)):
        if name not in update:
            raise UserError(
                f"the client's release lacks {name}: it must train the model that it is given, and return "
                f"{'its state dict' if claims.released == 'state_dict' else 'the gradients'} by parameter name"
            )
    return Reply(update, beside)


def kept(tensor: Tensor) -> Tensor:
    """The numbers of a tensor that are kept, (n,) float32."""
    flat = tensor.flatten()
    return flat if len(flat) <= KEPT else torch.cat([flat[: KEPT // 2], flat[-KEPT // 2 :]])


def _stacked(updates: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.stack([kept(update[name]) for update in updates]) for name in (updates[0] if updates else {})}


def _own_name(wrapped: str) -> str:
    for prefix in _WRAPPERS:
        wrapped = wrapped.removeprefix(prefix)
    return wrapped
