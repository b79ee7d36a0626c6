# SPDX-License-Identifier: Apache-2.0
"""Feedback coding over rounds whose batches change: every known image has a unit of its own, its address."""

import math
from copy import copy
from dataclasses import replace

import torch
from torch import Tensor

from lightning_recon.errors import UserError
from lightning_recon.exchange import ClientUpdate, ServerPayload, Task, task_of_one_round, task_of_sums
from lightning_recon.reconstruction import NO_MISMATCH, RoundsSeen
from lightning_recon.structure.address_book import AddressBook
from lightning_recon.structure.address_filter import NEGLIGIBLE, corrected_variance, updated_by_rows
from lightning_recon.structure.base import Decoded
from lightning_recon.structure.coding.address_gate import AddressGate
from lightning_recon.structure.coding.movement import scale_free
from lightning_recon.structure.coding.power_allocation import water_filling
from lightning_recon.structure.layer_spec import LayerSpec
from lightning_recon.structure.readout import budget_share, design_noise, released_rows
from lightning_recon.structure.refinement import Posterior
from lightning_recon.structure.water_filling import WaterFilling

# At most this many coefficients, those of the largest variance, tell images apart.
_GATE_FEATURES = 256
# The pilot of a known image is so many standard deviations of the noise, for this share of its power at most: late
# residuals, whose energy is spread over all coefficients, hardly show by that whether the image is there.
_PILOT_DEVIATIONS, _MOST_PILOT = 3.0, 0.2


class AddressedRounds:
    """A code for rounds about changing parts of a client's images.

    The layer recognises every image of which the server has an estimate, and sends it to a unit of its own, which
    encodes the residual against that estimate; any other image goes to the units of the opening, which encode it from
    scratch. The server does not know who is in a round's batch. From each unit's row it computes the probability that
    its image was there, and updates the estimate accordingly; from the units of the opening it decodes new images.

    Source: the update is that of a probabilistic data association filter (Bar-Shalom & Tse 1975).
    """

    def __init__(self, opening: WaterFilling, pilot_power: float) -> None:
        """Choose the code.

        Args:
            opening: The structure that finds new images.
            pilot_power: Least share of the power spent on the pilot of known images, in (0, 1).
        """
        self.opening, self.pilot_power = copy(opening), pilot_power
        self.opening.spread = False
        self._opened: tuple[Task, ServerPayload] | None = None

    def opening_payload(self, task: Task) -> ServerPayload:
        """The structure of the first round, for new images alone."""
        if self._opened is None or self._opened[0] != task:
            payload = self.opening.payload(task_of_one_round(task))
            if LayerSpec.of(payload).signs:
                raise UserError(
                    f"batches change from round to round, and Feedback follows no images through {_reducing(task)}, "
                    "which leaves little but signs: choose --model.structure WaterFilling, which averages the rounds"
                )
            if not LayerSpec.of(payload).cancel:
                raise UserError(
                    "batches change from round to round, for which Feedback needs an opening whose outputs cancel: set "
                    "--model.structure.opening.cancel true"
                )
            self._opened = task, payload
        return self._opened[1]

    def begin(self, payload: ServerPayload, task: Task, update: ClientUpdate, decoded: Decoded) -> AddressBook:
        """The server's knowledge after the first round.

        Args:
            payload: The opening's payload.
            task: What was announced.
            update: The first round's update.
            decoded: Its decoding.
        """
        book = AddressBook.empty(math.prod(task.image_shape))
        return self._with_new(book, payload, task, update, decoded)

    def next_payload(self, task: Task, book: AddressBook) -> ServerPayload:
        """The structure with a unit for every address, before the units of the opening."""
        first = self.opening_payload(task)
        shipped, gain, variance = first.tensors, book.gain, corrected_variance(task, book)
        new_gain = torch.zeros(gain.shape[1])
        new_gain[shipped["index"]] = shipped["gain"]
        strongest = torch.maximum(gain.amax(dim=0), new_gain) if len(book) else new_gain
        index = strongest.argsort(descending=True, stable=True)[: int((strongest > 0).sum())]
        position = torch.full((gain.shape[1],), -1)
        position[index] = torch.arange(len(index))
        prior = self.opening.statistics(task).variance.flatten()
        strongest_inputs = prior[shipped["index"]].topk(min(_GATE_FEATURES, len(shipped["index"]))).indices
        features = shipped["index"][strongest_inputs]
        gate = AddressGate.design(
            position[features],
            book.mean[:, features],
            variance[:, features],
            prior[features],
        )
        count, units = len(book), len(shipped["lower"])
        pilot = torch.full((count,), math.sqrt(self._pilot(task)))
        levels = torch.cat([pilot, shipped["constants"][:1].expand(units)])
        gains = torch.cat([gain[:, index], new_gain[index].expand(units, -1)])
        directions = torch.zeros(len(shipped["directions"]), len(index))
        directions[:, position[shipped["index"]]] = shipped["directions"] * shipped["gain"]
        never = torch.full((count,), torch.inf)
        constants = torch.zeros_like(shipped["constants"])
        constants[0] = 1.0
        return ServerPayload(
            settings=first.settings,
            tensors={
                **shipped,
                **gate.tensors(),
                "index": index,
                "gain": torch.ones(len(index)),
                "constants": constants,
                "unit_gain": torch.cat([gains, levels[:, None]], dim=1),
                "offset": torch.cat([gain[:, index] * book.mean[:, index], torch.zeros(units, len(index))]),
                "directions": directions,
                "unit_direction": torch.cat([torch.zeros(count, dtype=torch.int64), shipped["unit_direction"]]),
                "lower": torch.cat([never, shipped["lower"]]),
                "upper": torch.cat([never, shipped["upper"]]),
            },
        )

    def update_knowledge(
        self, payload: ServerPayload, task: Task, update: ClientUpdate, book: AddressBook
    ) -> AddressBook:
        """Update every address by the row of its unit, and add the new images that other units show."""
        seen = task_of_sums(task_of_one_round(task), [update.contributors])
        inputs, pilot, noise = released_rows(update, seen, payload)
        inputs, pilot, count = inputs.cpu(), pilot.cpu(), len(book)
        known, present = updated_by_rows(payload, seen, inputs[:count], pilot[:count], noise, book)
        there, gain = (present > NEGLIGIBLE).nonzero()[:, 0], book.gain.clone()
        gain[there] = self._gains(task, corrected_variance(task, known)[there])
        known = replace(known, gain=gain)
        first = self.opening_payload(task)
        opened = _of_new_images(first, payload, update, count)
        # Known images are not looked for among the new ones.
        missing = seen.victims - round(float(present.sum()))
        expected = max(1, math.ceil(missing / seen.aggregated)) if task.granularity == "sample" else task.batch_size
        announced = replace(seen, batch_size=min(expected, task.batch_size))
        decoded = self.opening.decode(first, announced, opened)
        return self._with_new(known, first, task, opened, decoded)

    def conclude(self, task: Task, book: AddressBook, decoded: Decoded) -> Decoded:
        """The images that were seen most often, at most as many as the client holds."""
        order = book.rounds_seen.argsort(descending=True, stable=True)[: task.local_images]
        best, statistics = book.chosen(order), self.opening.statistics(task)
        shape = (len(best), *task.image_shape)
        prior = best.prior_variance.view(shape)
        posterior = Posterior(
            mean=best.mean.view(shape),
            variance=best.variance.view(shape).clamp(min=1e-12 * prior, max=prior),
            prior_variance=prior,
            prior_mean=torch.zeros(shape),
        )
        return replace(
            decoded,
            images=statistics.transform.synthesise(posterior.mean).clamp(0, 1),
            refinement=posterior,
            evident=len(best) > 0,
            mismatch=NO_MISMATCH,
            mean_image=None,
            seen=tuple(
                RoundsSeen(int(first), float(seen) + 1)
                for first, seen in zip(best.first, best.rounds_seen, strict=True)
            ),
        )

    def _gains(self, task: Task, variance: Tensor) -> Tensor:
        """Encoder gains for the next look at images whose coefficients have these variances, shape (images, n)."""
        noise, budget = _noise(task), 1 - self._pilot(task)
        power = [water_filling(one, noise, budget) for one in variance]
        return (torch.stack(power) / variance).sqrt() if power else torch.zeros_like(variance)

    def _pilot(self, task: Task) -> float:
        """Share of the power of a known image's pilot."""
        return max(self.pilot_power, min(_MOST_PILOT, (_PILOT_DEVIATIONS * _noise(task)) ** 2))

    def _with_new(
        self, book: AddressBook, first: ServerPayload, task: Task, update: ClientUpdate, decoded: Decoded
    ) -> AddressBook:
        """The book with the images that an update shows in the units of the opening."""
        posterior = decoded.refinement
        if not decoded.evident or not isinstance(posterior, Posterior) or not len(decoded.images):
            return book
        inputs, pilot, _ = released_rows(update, task_of_one_round(task), first)
        shipped = first.tensors
        encoded = posterior.mean.flatten(1)[:, shipped["index"]] * shipped["gain"]
        level = float(shipped["constants"][0])
        overlap = encoded @ inputs.cpu().T + level * pilot.cpu()
        overlap = overlap / (encoded.square().sum(dim=1, keepdim=True) + level**2)
        # An image is in the row of each direction that correlates most with it; collisions there average out.
        clearest = []
        for direction in range(count := len(shipped["directions"])):
            place = torch.where(shipped["unit_direction"] == direction, overlap.abs(), -1.0).argmax(dim=1, keepdim=True)
            clearest.append(overlap.gather(1, place)[:, 0])
        scales = 1 / (torch.stack(clearest).mean(dim=0) * math.sqrt(count))
        gain = self._gains(task, posterior.variance.flatten(1))
        signed = scales if task.granularity == "update" else scales.sign()
        return book.with_images(posterior, gain, signed, update.round)


def _noise(task: Task) -> float:
    """Standard deviation of the noise, divided by the norm of a known image's row."""
    return design_noise(task_of_one_round(task), None) * math.sqrt(task.sharers) / budget_share(task, 1)


def _of_new_images(first: ServerPayload, payload: ServerPayload, update: ClientUpdate, count: int) -> ClientUpdate:
    """What an update would be if it had the units of the opening alone.

    Args:
        first: The opening's payload.
        payload: What was shipped.
        update: Its answer.
        count: Number of addresses.
    """
    weight, index = update.gradient["structure.weight"].cpu(), payload.tensors["index"]
    position = torch.zeros(int(index.max()) + 1, dtype=torch.int64)
    position[index] = torch.arange(len(index))
    rows = weight[count:]
    inputs = rows[:, position[first.tensors["index"]]]
    return replace(update, gradient={"structure.weight": torch.cat([inputs, rows[:, len(index) :]], dim=1)})


def _reducing(task: Task) -> str:
    """What leaves little but signs of an update, in words."""
    if task.compression is None or scale_free(task.local):
        return f"the optimizer {task.local.optimizer.rpartition('.')[2]}"
    return f"compression by {task.compression.in_words}"
