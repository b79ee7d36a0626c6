# SPDX-License-Identifier: Apache-2.0
"""The objective of gradient inversion, for many independent candidates at once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor
from torch.func import grad, vmap

from lightning_recon.attack.inversion.classifier_head import Head
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
from lightning_recon.losses import relaxed_targets
from lightning_recon.priors.base import Prior
from lightning_recon.priors.regularizers import Regularization, batch_statistics, revealed_features, total_variation


@dataclass(frozen=True)
class Candidates:
    """P candidates, each with the update that it has to explain.

    Args:
        dummies: (P, B, C, H, W), in the parametrization of the search.
        logits: (P, B, classes): optimised labels; None if labels are fixed.
        labels: (P, B), int64: fixed labels.
        observed: updates as received, each tensor (P, ...).
        weights: weight of each tensor of an update, (P,) each; None: 1.
        consensus: mean over restarts, like `dummies`; None without group consistency.
    """

    dummies: Tensor
    logits: Tensor | None
    labels: Tensor
    observed: Update
    weights: Update | None
    consensus: Tensor | None


@dataclass(frozen=True)
class Evaluated:
    """Objective and gradients of P candidates.

    Args:
        value: (P,).
        dummies: gradient with respect to the dummies, (P, B, C, H, W).
        logits: gradient with respect to the logits; None if labels are fixed.
        residual: distance of the updates, (P,); comparable with the noise under the likelihood only.
    """

    value: Tensor
    dummies: Tensor
    logits: Tensor | None
    residual: Tensor


class GradientMatching:
    """Distance between updates plus regularization, of candidates that do not influence one another."""

    def __init__(
        self,
        model: FunctionalModel,
        task: Task,
        parametrization: Parametrization,
        distance: Distance,
        regularization: Regularization,
        head: Head | None = None,
        priors: Sequence[Prior] = (),
    ) -> None:
        """Prepare the objective.

        Args:
            model: the network that the server shipped.
            task: the announced training parameters.
            parametrization: of the images.
            distance: between updates; only "likelihood" models clip and noise.
            regularization: weights of the regularization terms.
            head: the network's classifier, which the term `features` needs.
            priors: further priors of the images.

        Raises:
            UserError: the network has no such classifier.
        """
        # The published distances ignore clipping.
        self.task = task if distance == "likelihood" else replace(task, max_grad_norm=None)
        self.scale = 2 * noise_std(task) ** 2 if distance == "likelihood" else 1.0
        self.normal = distance != "likelihood" or task.noise_is_normal
        self.model, self.parametrization = model, parametrization
        self.distance, self.regularization, self.priors = distance, regularization, priors
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

    def __call__(self, candidates: Candidates) -> Evaluated:
        """Objective and its gradients.

        Args:
            candidates: P of them, evaluated side by side, which takes P times the memory of one.
        """
        if len(candidates.dummies) == 1 and not torch.compiler.is_compiling():
            return self._alone(candidates)
        return self.by_transforms(candidates)

    def by_transforms(self, candidates: Candidates) -> Evaluated:
        """The same by `torch.func`, which refuses operations that plain autograd silently differentiates wrongly."""
        searched = (0, 1) if candidates.logits is not None else (0,)
        function = grad(self._value, argnums=searched, has_aux=True)
        arguments = _arguments(candidates)
        if len(candidates.dummies) == 1:
            alone: list[Any] = [_first(argument) for argument in arguments]
            gradients, (value, residual) = function(*alone)
            gradients, value, residual = tuple(one[None] for one in gradients), value[None], residual[None]
        else:
            dims = tuple(None if argument is None else 0 for argument in arguments)
            gradients, (value, residual) = vmap(function, in_dims=dims)(*arguments)
        return Evaluated(value, gradients[0], gradients[1] if len(gradients) > 1 else None, residual)

    def _alone(self, candidates: Candidates) -> Evaluated:
        """The same for a single candidate, by plain autograd, which has less overhead per operation."""
        arguments = _arguments(candidates)
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
        observed: Update,
        weights: Update | None,
        consensus: Tensor | None,
        mapped: bool = True,
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Objective of one candidate; and as auxiliary output, the same and the residual."""
        targets = labels if logits is None else relaxed_targets(self.task.loss, logits)
        images = self.parametrization.images(dummies)
        update, inputs = client_update(self.model, images, targets, self.task, self.watch, mapped)
        distance = cosine_distance if self.distance == "cosine" else squared_distance
        residual = distance(update, observed, weights)
        if self.normal:
            mismatch = residual / self.scale
        else:
            mismatch = negative_log_likelihood(update, observed, self.task, weights)
        value = mismatch + self._layer_terms(inputs, observed) + self._image_terms(dummies, images, consensus)
        return value, (value.detach(), residual.detach())

    def _layer_terms(self, inputs: Mapping[str, Tensor], observed: Update) -> Tensor | float:
        """Regularization of the inputs of the network's layers."""
        regularization, head = self.regularization, self.head
        value: Tensor | float = 0.0
        if regularization.batch_norm and self.model.running:
            shown = {name: inputs[name] for name in self.model.running}
            value = value + regularization.batch_norm * batch_statistics(shown, self.model.running)
        if regularization.features and head is not None and head.layer is not None:
            revealed = revealed_features(observed[str(head.weight)], observed[str(head.bias)])
            value = (
                value + regularization.features * (inputs[head.layer].to(revealed).mean(0) - revealed).square().mean()
            )
        return value

    def _image_terms(self, dummies: Tensor, images: Tensor, consensus: Tensor | None) -> Tensor:
        regularization = self.regularization
        value = dummies.new_zeros(())
        if regularization.total_variation:
            standardised = self.parametrization.standardised(dummies, images)
            value = value + regularization.total_variation * total_variation(
                standardised, regularization.double_opponents
            )
        if regularization.norm:
            value = value + regularization.norm * dummies.square().mean()
        if regularization.spectrum:
            value = value + regularization.spectrum * 0.5 * self.parametrization.whitened(dummies).square().sum()
        if regularization.group_consistency and consensus is not None:
            value = value + regularization.group_consistency * (dummies - consensus).square().mean()
        for prior in self.priors:
            value = value + prior.strength * prior.value(images)
        return value


def _arguments(candidates: Candidates) -> tuple[Any, ...]:
    """What `GradientMatching._value` takes, of all candidates."""
    return tuple(getattr(candidates, field.name) for field in fields(candidates))


def _first(argument: Tensor | Update | None) -> Tensor | Update | None:
    if isinstance(argument, dict):
        return {name: tensor[0] for name, tensor in argument.items()}
    return None if argument is None else argument[0]
