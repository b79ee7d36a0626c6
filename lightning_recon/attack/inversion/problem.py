# SPDX-License-Identifier: Apache-2.0
"""The inverse problem: what an honest server derives from the network and the task before it looks at an update."""

import math
from functools import cached_property

import torch
from torch import Tensor, nn

from lightning_recon.attack.inversion.classifier_head import Head, find_head
from lightning_recon.attack.inversion.classifier_labels import (
    public_images,
    public_predictions,
    read_labels,
    recovered_targets,
)
from lightning_recon.attack.inversion.compilation import CompiledObjective, compilation_pays
from lightning_recon.attack.inversion.distances import announced_std
from lightning_recon.attack.inversion.fisher_information import information
from lightning_recon.attack.inversion.forward_model import Update, client_update
from lightning_recon.attack.inversion.functional_model import functionalize
from lightning_recon.attack.inversion.label_order import ordered_labels
from lightning_recon.attack.inversion.objective import Candidates, Evaluated, GradientMatching
from lightning_recon.attack.inversion.observations import Observation
from lightning_recon.attack.inversion.parametrization import Parametrization
from lightning_recon.attack.inversion.settings import InversionSettings
from lightning_recon.attack.likelihood_ratio import is_evident
from lightning_recon.errors import UserError
from lightning_recon.exchange import Task
from lightning_recon.networks.differentiability import twice_differentiable
from lightning_recon.priors.image_statistics import PublicStatistics
from lightning_recon.priors.regularizers import Regularization

_PROBES = 4  # public images on which the classifier is located
_MAX_CHUNK = 16  # candidates evaluated side by side
_CPU_CHUNK = 2**21  # numbers of candidates and parameters that a CPU evaluates side by side without becoming slower


class InverseProblem:
    """Network, parametrization and objective of the search, and what they say of an update."""

    def __init__(
        self,
        network: nn.Module,
        task: Task,
        statistics: PublicStatistics,
        settings: InversionSettings,
        device: torch.device,
        steps: int = 0,
    ) -> None:
        """Prepare the objective.

        Args:
            network: As the server shipped it, on the device.
            task: The announced training parameters.
            statistics: Public statistics of images.
            settings: How to search.
            device: Where to compute.
            steps: Of the search, by which `compile: auto` is decided.
        """
        self.task, self.statistics, self.settings, self.device = task, statistics, settings, device
        self.model = functionalize(network, task.batch_norm == "train")
        self.parametrization = Parametrization(settings.basis, statistics, device)
        self.head: Head | None = None
        self.predictions: Tensor | None = None
        if settings.labels != "oracle":
            self._refuse_maps()
        if settings.labels == "counted" or settings.regularization.features:
            self._inspect_classifier()
        if settings.basis == "balanced":
            self.parametrization.balance(self.information)
        self.matching = GradientMatching(
            self.model,
            task,
            self.parametrization,
            settings.distance,
            settings.regularization,
            self.head,
            [prior.eval().requires_grad_(False).to(device) for prior in settings.priors],
        )
        compiled = settings.compile
        if compiled == "auto":
            compiled = compilation_pays(settings, task, steps, device, self._numbers * _MAX_CHUNK <= _CPU_CHUNK)
        self._evaluate = CompiledObjective(self.matching, settings.compile is True) if compiled else self.matching

    def _refuse_maps(self) -> None:
        """Refuse to recover targets for every pixel, which is not modelled."""
        with torch.no_grad(), twice_differentiable(self.task.network):
            # Several images, since batch normalisation may need them.
            outputs = self.model.network(public_images(self.statistics, 0, _PROBES).to(self.device))
        if outputs.dim() > 2:
            raise UserError(
                "the network has outputs for every pixel, and an honest server's attack does not recover such targets: "
                "set --model.labels oracle, which takes the true ones"
            )

    def _inspect_classifier(self) -> None:
        """Locate the network's classifier and, to count labels, predict public images."""
        images = public_images(self.statistics, self.settings.seed).to(self.device)
        with twice_differentiable(self.task.network):
            self.head = find_head(self.model, images[:_PROBES])
            if self.settings.labels == "counted" and self.task.loss == "cross_entropy":
                batch_size = min(self.task.sharers, self.task.local.batch_size or self.task.sharers)
                self.predictions = public_predictions(self.model, images, batch_size)

    @cached_property
    def information(self) -> float:
        """Fisher information of an update about one coefficient of an image."""
        with twice_differentiable(self.task.network):
            return information(self.model, self.task, self.parametrization)

    @property
    def chunk_size(self) -> int:
        """How many candidates are evaluated side by side: as many as asked for, else as many as suit the device."""
        if self.settings.chunk_size is not None:
            return self.settings.chunk_size
        if self.device.type != "cpu":
            return _MAX_CHUNK
        return max(1, min(_MAX_CHUNK, _CPU_CHUNK // self._numbers))

    @cached_property
    def _numbers(self) -> int:
        """Numbers of one candidate and of the parameters that an evaluation touches."""
        # Activations hold about 16 numbers for each number of an image, in a network small enough for this to matter.
        activations = 16 * self.task.victims * math.prod(self.task.image_shape)
        return activations + sum(parameter.numel() for parameter in self.model.parameters.values())

    def evaluate(self, candidates: Candidates) -> Evaluated:
        """Objective and gradients of candidates."""
        with twice_differentiable(self.task.network):
            return self._evaluate(candidates)

    def check_differentiable(self, candidates: Candidates) -> None:
        """Evaluate once by `torch.func`, which refuses operations that plain autograd differentiates wrongly."""
        with twice_differentiable(self.task.network):
            self.matching.by_transforms(candidates)

    def observe(self, update: Update, labels: Tensor | None, index: int, draw: int, in_order: bool) -> Observation:
        """An update with its labels: those given by an oracle, or recovered from the update.

        Args:
            update: Mean over the rounds.
            labels: Given labels, (victims,), int64; None to recover them as the settings say.
            index: Of the update, for messages.
            draw: Of the noise; warnings are given for the first draw only.
            in_order: Whether to assign recovered labels to the client's local steps.
        """
        shown = True
        if labels is None and self.settings.labels == "joint":
            labels = torch.zeros(self.task.victims, dtype=torch.int64)
        elif labels is None and self.task.loss != "cross_entropy":
            labels = recovered_targets(update, self.head, self.task)
        elif labels is None:
            assert self.predictions is not None
            labels, shown = read_labels(update, self.head, self.task, self.predictions, index, warn=draw == 0)
            if in_order and self.task.local.batches(self.task.batch_size) > 1:
                labels = self._in_order(labels, update)
        return Observation(update, labels.to(self.device), shown)

    def _in_order(self, labels: Tensor, update: Update) -> Tensor:
        """The labels in the order of the client's local steps, found by the likelihood whatever the distance."""
        parametrization = Parametrization("balanced", self.statistics, self.device)
        parametrization.balance(information(self.model, self.task, parametrization))
        matching = GradientMatching(self.model, self.task, parametrization, "likelihood", Regularization(spectrum=1.0))
        with twice_differentiable(self.task.network):
            return ordered_labels(labels.to(self.device), update, matching, self.settings.seed, self.chunk_size)

    def is_evident(self, observation: Observation, images: Tensor, targets: Tensor) -> bool:
        """Whether an update shows these images under the announced clip and noise, whatever the search's distance.

        Args:
            observation: The update.
            images: (victims, C, H, W).
            targets: Labels (victims,), int64; or probabilities (victims, classes), if they were optimised.
        """
        mean = self.statistics.mean.to(images).expand_as(images)
        with twice_differentiable(self.task.network):
            of_images, of_mean = (client_update(self.model, one, targets, self.task)[0] for one in (images, mean))
        searched = self._degrees_of_freedom() + (targets.numel() if targets.is_floating_point() else 0)
        return is_evident(observation.update, of_images, of_mean, announced_std(self.task), searched)

    def _degrees_of_freedom(self) -> float:
        """Effective number of free parameters of one candidate's images: all, but for those that the prior decides."""
        count = self.task.victims * self.parametrization.std.numel()
        if self.settings.distance != "likelihood" or not self.settings.regularization.spectrum:
            return count
        ratio = self.information * self.parametrization.std.square() / self.settings.regularization.spectrum
        return self.task.victims * float((ratio / (1 + ratio)).sum())
