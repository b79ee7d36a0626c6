# SPDX-License-Identifier: Apache-2.0
"""The objective of an honest server's attack, for many independent guesses at once."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.func import grad, vmap

from lightning_recon.attack.inversion.distances import (
    Distance,
    cosine_distance,
    negative_log_likelihood,
    noise_std,
    squared_distance,
)
from lightning_recon.attack.inversion.forward_model import Update, client_update
from lightning_recon.attack.inversion.functional_model import FunctionalModel
from lightning_recon.attack.inversion.parametrization import Parametrization
from lightning_recon.errors import UserError
from lightning_recon.exchange import Task
from lightning_recon.networks.classifier_head import Head
from lightning_recon.priors.regularizers import Penalties, batch_statistics, revealed_features, total_variation


@dataclass(frozen=True)
class Candidates:
    """P guesses at what clients hold; every guess is alone with its own update.

    Args:
        dummies: (P, B, 3, H, W), in the coordinates of the search.
        logits: (P, B, classes): labels that are searched too; None if they are taken as known.
        labels: (P, B), int64: labels that are not searched.
        seen: updates as received, each tensor (P, ...).
        weights: what each tensor of an update counts, (P,) each; None: 1.
        centre: where restarts agree, like `dummies`; None without that penalty.
    """

    dummies: Tensor
    logits: Tensor | None
    labels: Tensor
    seen: Update
    weights: Update | None
    centre: Tensor | None


@dataclass(frozen=True)
class Evaluated:
    """What the objective says of P guesses.

    Args:
        value: (P,).
        dummies: gradient with respect to the dummies, (P, B, 3, H, W).
        logits: gradient with respect to the logits; None if labels are not searched.
        residual: squared distance of the updates, (P,); only the likelihood's means anything beside the noise.
    """

    value: Tensor
    dummies: Tensor
    logits: Tensor | None
    residual: Tensor


class GradientMatching:
    """Distance between updates plus regularization, a sum over guesses that do not influence one another."""

    def __init__(
        self,
        model: FunctionalModel,
        task: Task,
        coordinates: Parametrization,
        distance: Distance,
        regularization: Penalties,
        head: Head | None = None,
    ) -> None:
        """Prepare the objective.

        Args:
            model: the network that the server shipped.
            task: what was announced.
            coordinates: of the search.
            distance: between updates; only "likelihood" reckons with clip and noise.
            regularization: what pictures look like.
            head: the network's last layer, which the penalty on features looks at.

        Raises:
            UserError: the network has no such layer as that penalty needs.
        """
        # The published distances know nothing of clipping.
        self.task = task if distance == "likelihood" else replace(task, max_grad_norm=None)
        self.scale = 2 * noise_std(task) ** 2 if distance == "likelihood" else 1.0
        self.normal = distance != "likelihood" or task.noise_is_normal
        self.model, self.coordinates = model, coordinates
        self.distance, self.regularization = distance, regularization
        watch = list(model.running) if regularization.batch_norm else []
        self.head = head
        if regularization.features:
            if head is None or head.layer is None or head.weight is None:
                raise UserError(
                    "--model.regularization.features looks at the input of a linear last layer with a bias, and the "
                    "network has none that can be found: set it to 0"
                )
            watch.append(head.layer)
        self.watch = tuple(watch)

    def __call__(self, guesses: Candidates) -> Evaluated:
        """Objective and its gradients.

        Args:
            guesses: P of them; with more than one, all are computed side by side, which takes P times the memory.

        Returns:
            Both, for every guess.
        """
        if len(guesses.dummies) == 1 and not torch.compiler.is_compiling():
            return self._alone(guesses)
        return self.by_transforms(guesses)

    def by_transforms(self, guesses: Candidates) -> Evaluated:
        """The same by `torch.func`, which refuses what plain autograd would differentiate wrongly in silence."""
        searched = (0, 1) if guesses.logits is not None else (0,)
        function = grad(self._value, argnums=searched, has_aux=True)
        arguments = (guesses.dummies, guesses.logits, guesses.labels, guesses.seen, guesses.weights, guesses.centre)
        if len(guesses.dummies) == 1:
            alone: list[Any] = [_first(argument) for argument in arguments]
            gradients, (value, residual) = function(*alone)
            gradients, value, residual = tuple(one[None] for one in gradients), value[None], residual[None]
        else:
            dims = tuple(None if argument is None else 0 for argument in arguments)
            gradients, (value, residual) = vmap(function, in_dims=dims)(*arguments)
        return Evaluated(value, gradients[0], gradients[1] if len(gradients) > 1 else None, residual)

    def _alone(self, guesses: Candidates) -> Evaluated:
        """The same for a single guess, by plain autograd: what `torch.func` adds to every operation counts there."""
        arguments = (guesses.dummies, guesses.logits, guesses.labels, guesses.seen, guesses.weights, guesses.centre)
        dummies, logits, *rest = (_first(argument) for argument in arguments)
        searched: list[Any] = [one.detach().requires_grad_() for one in (dummies, logits) if isinstance(one, Tensor)]
        given: list[Any] = [*searched, *([] if logits is not None else [None]), *rest, False]
        with torch.enable_grad():
            value, (shown, residual) = self._value(*given)
            gradients = torch.autograd.grad(value, searched)
        return Evaluated(
            shown[None], gradients[0][None], gradients[1][None] if len(gradients) > 1 else None, residual[None]
        )

    def _value(
        self,
        dummies: Tensor,
        logits: Tensor | None,
        labels: Tensor,
        seen: Update,
        weights: Update | None,
        centre: Tensor | None,
        mapped: bool = True,
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Objective of one guess; and handed over beside it, the same and the residual."""
        targets = labels if logits is None else logits.softmax(-1)
        pictures = self.coordinates.pictures(dummies)
        update, inputs = client_update(self.model, pictures, targets, self.task, self.watch, mapped)
        distance = cosine_distance if self.distance == "cosine" else squared_distance
        residual = distance(update, seen, weights)
        mismatch = residual / self.scale if self.normal else negative_log_likelihood(update, seen, self.task, weights)
        value = mismatch + self._inside(inputs, seen) + self._prior(dummies, pictures, centre)
        return value, (value.detach(), residual.detach())

    def _inside(self, inputs: Mapping[str, Tensor], seen: Update) -> Tensor | float:
        """Penalties on what the network's layers see of a guess."""
        regularization, head = self.regularization, self.head
        value: Tensor | float = 0.0
        if regularization.batch_norm and self.model.running:
            shown = {name: inputs[name] for name in self.model.running}
            value = value + regularization.batch_norm * batch_statistics(shown, self.model.running)
        if regularization.features and head is not None and head.layer is not None:
            revealed = revealed_features(seen[str(head.weight)], seen[str(head.bias)])
            value = (
                value + regularization.features * (inputs[head.layer].to(revealed).mean(0) - revealed).square().mean()
            )
        return value

    def _prior(self, dummies: Tensor, pictures: Tensor, centre: Tensor | None) -> Tensor:
        regularization = self.regularization
        value = dummies.new_zeros(())
        if regularization.total_variation:
            standardised = self.coordinates.standardised(dummies, pictures)
            value = value + regularization.total_variation * total_variation(
                standardised, regularization.double_opponents
            )
        if regularization.norm:
            value = value + regularization.norm * dummies.square().mean()
        if regularization.spectrum:
            value = value + regularization.spectrum * 0.5 * self.coordinates.whitened(dummies).square().sum()
        if regularization.group_consistency and centre is not None:
            value = value + regularization.group_consistency * (dummies - centre).square().mean()
        return value


def _first(argument: Tensor | Update | None) -> Tensor | Update | None:
    if isinstance(argument, dict):
        return {name: tensor[0] for name, tensor in argument.items()}
    return None if argument is None else argument[0]
