# SPDX-License-Identifier: Apache-2.0
"""Local training: what a client's own epochs take from the weights that it received."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_recon.client.dp_sgd import private_gradient
from lightning_recon.client.noise_key import Generators
from lightning_recon.client.noise_source import NoiseSource
from lightning_recon.exchange import LocalTraining
from lightning_recon.losses import Loss, cross_entropy
from lightning_recon.networks.construction import copied
from lightning_recon.privacy.parameters import Privacy

MakeOptimizer = Callable[[Iterable[nn.Parameter]], Optimizer]
MiniBatches = Sequence[tuple[Tensor, Tensor]]  # images and labels, or other targets
# Sets the gradients of a model from the mini-batches of one optimizer step, whose index comes last.
SetGradients = Callable[[nn.Module, MiniBatches, int], None]


@dataclass(frozen=True)
class LocalRandomness:
    """What a client draws during local training, all of it from its secret key.

    Args:
        order: epoch, number of images -> order of the images, an int64 permutation.
        noise: optimizer step -> generators of its noise by the name of a tensor.
    """

    order: Callable[[int, int], Tensor]
    noise: Callable[[int], Generators]


@dataclass(frozen=True)
class LocalRound:
    """One client's local training in one round.

    Args:
        local: the announced training.
        make_optimizer: makes a fresh optimizer of the announced class and options.
        randomness: the client's own.
        announced: announced number of images, where batches are sampled and the number in a round is not public: DP-SGD
            divides by what follows from it, and takes the steps that follow from it where there is no image. None: the
            client's own number.
    """

    local: LocalTraining
    make_optimizer: MakeOptimizer
    randomness: LocalRandomness
    announced: int | None = None


def randomness_of(source: NoiseSource, client: int, draw: int, round: int) -> LocalRandomness:
    """The randomness of one client's local training in one round.

    Args:
        source: the client's secret key.
        client: index of the client.
        draw: index of the noise realization.
        round: index of the round.
    """

    def order(epoch: int, images: int) -> Tensor:
        return torch.from_numpy(source.generator("order", client, draw, round, epoch).permutation(images))

    return LocalRandomness(order, lambda step: source.generators(client, draw, round, step))


def weight_change(
    model: nn.Module, images: Tensor, labels: Tensor, training: LocalRound, set_gradients: SetGradients
) -> dict[str, Tensor]:
    """The weights before local training minus the weights after it, or this divided by the learning rate.

    Args:
        model: network, images to logits, in the mode in which it is trained; it stays as it is.
        images: (B, channels, height, width), floating point; B may be 0 where DP-SGD adds noise in every step.
        labels: (B,), int64, or other targets (B, ...).
        training: how.
        set_gradients: `mean_gradients`, or what `private_gradients` returns.

    Returns:
        By parameter name, as `LocalTraining.update` says.

    Source: McMahan et al. 2017 (arXiv 1602.05629), algorithm 1.
    """
    after = dict(trained(model, images, labels, training, set_gradients).named_parameters())
    divisor = training.local.divisor
    return {name: (old.detach() - after[name].detach()) / divisor for name, old in model.named_parameters()}


def trained(
    model: nn.Module, images: Tensor, labels: Tensor, training: LocalRound, set_gradients: SetGradients
) -> nn.Module:
    """A copy of the model after local training, running statistics of batch normalization included.

    Arguments as in `weight_change`.
    """
    local, step = training.local, 0
    own = copied(model).requires_grad_(True)
    optimizer = training.make_optimizer(own.parameters())
    for epoch in range(local.epochs):
        for batches in _steps(images, labels, training, epoch):
            for group in optimizer.param_groups:
                group["lr"] = local.learning_rate(step)
            optimizer.zero_grad()
            set_gradients(own, batches, step)
            optimizer.step()
            step += 1
    return own


def _steps(images: Tensor, labels: Tensor, training: LocalRound, epoch: int) -> Iterator[MiniBatches]:
    """The mini-batches of each optimizer step of an epoch."""
    local = training.local
    if local.shuffle:
        order = training.randomness.order(epoch, len(images)).to(images.device)
        images, labels = images[order], labels[order]
    parts = [torch.split(tensor, local.batch_size or len(images)) for tensor in (images, labels)]
    batches = list(zip(*parts, strict=True))[: local.batches(len(images))]
    if not len(images):  # as a Poisson sample may be empty
        batches = [(images, labels)] * local.batches(training.announced or 0)
    for first in range(0, len(batches), local.accumulate_grad_batches):
        yield batches[first : first + local.accumulate_grad_batches]


def mean_gradients(accumulate_grad_batches: int, loss: Loss = cross_entropy) -> SetGradients:
    """The gradients of ordinary training: the sum of mini-batches' mean losses, divided by a fixed number.

    Args:
        accumulate_grad_batches: this number, as in Lightning; the last step of an epoch may have fewer mini-batches.
        loss: mean loss of outputs and targets.
    """

    def set_gradients(model: nn.Module, batches: MiniBatches, step: int) -> None:
        for images, labels in batches:
            torch.autograd.backward(loss(model(images), labels) / accumulate_grad_batches)

    return set_gradients


def private_gradients(
    privacy: Privacy, expected: int, chunk_size: int, randomness: LocalRandomness, loss: Loss = cross_entropy
) -> SetGradients:
    """The gradients of DP-SGD: every sample's clipped, summed, with noise of scale zC, and divided by a fixed number.

    Args:
        privacy: clip and noise of each step.
        expected: what the sum over a mini-batch is divided by, see `LocalTraining.expected_batch_size`. Where a step
            has several mini-batches, their number multiplies it, and the noise is drawn once, as in Opacus.
        chunk_size: samples differentiated at once.
        randomness: of the noise.
        loss: mean loss of outputs and targets.

    Source: Abadi et al. 2016 (arXiv 1607.00133), algorithm 1.
    """

    def set_gradients(model: nn.Module, batches: MiniBatches, step: int) -> None:
        images, labels = (torch.cat(part) for part in zip(*batches, strict=True))
        gradient, _ = private_gradient(
            model,
            images,
            labels,
            privacy,
            expected=expected * len(batches),
            chunk_size=chunk_size,
            noise=randomness.noise(step),
            reduce=lambda tensor, how: tensor,
            loss=loss,
        )
        for name, parameter in model.named_parameters():
            parameter.grad = gradient[name]

    return set_gradients
