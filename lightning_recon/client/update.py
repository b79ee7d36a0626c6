# SPDX-License-Identifier: Apache-2.0
"""One client's update before noise, and what it would look like to the client who wonders what it gives away."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from torch import Tensor, nn

from lightning_recon.client.gradients import clipped_sum, mean_gradient
from lightning_recon.client.local_training import LocalRound, mean_gradients, private_gradients, weight_change
from lightning_recon.exchange import LocalTraining
from lightning_recon.losses import Loss, cross_entropy
from lightning_recon.privacy.clipping import tensor_norms
from lightning_recon.privacy.parameters import Privacy
from lightning_recon.structure.server_layer import TamperedNetwork

STRUCTURE = "structure."  # names of the parameters that the server added begin with it


@dataclass(frozen=True)
class Clipped:
    """An update after the clip and before the noise: never leaves the client.

    Args:
        gradient: by parameter name; the sum of the samples' clipped gradients, or the update clipped once. To be read
            only: zeros are views of a single number.
        norms: norm by parameter name before the clip, of each sample or of the update (one entry); Euclidean or L1,
            whichever the clip bounds; none of DP-SGD in local steps.
        has_noise: whether the noise is in it already, because DP-SGD adds it in every local step.
        zeros: names of the tensors that are zero because the server silences the network.
    """

    gradient: dict[str, Tensor]
    norms: list[dict[str, float]]
    has_noise: bool = False
    zeros: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Release:
    """What a client would release, in numbers: for `recon validate`, never sent.

    Args:
        norms: norm of the gradient before the clip, of each sample or of the update (one number); Euclidean or L1,
            whichever the clip bounds.
        clip_factors: factor by which the clip scales each of them, in (0, 1].
        structure_share: part of the server's structure in the squared Euclidean norm, or in the L1 norm, after the
            clip, in [0, 1].
        structure_bound: upper limit of that part: 1 under one clip; under per-layer clipping the structure's share of
            the tensors; 0 without a structure.
        noise_std: standard deviation of the noise on each number.
        noise_norm: expected Euclidean norm of the noise, `noise_std` times the square root of `parameters`.
        parameters: how many numbers the update holds.
        tensors: how many parameter tensors they are in.
    """

    norms: list[float]
    clip_factors: list[float]
    structure_share: float
    structure_bound: float
    noise_std: float
    noise_norm: float
    parameters: int
    tensors: int


def clipped_update(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    privacy: Privacy,
    chunk_size: int,
    training: LocalRound | None = None,
    loss: Loss = cross_entropy,
    zeros: Mapping[str, Tensor] | None = None,
) -> Clipped:
    """Gradient of the loss, or the update of a client's local training, clipped as the privacy setting says.

    Args:
        model: network, images to logits, in the mode in which it is to be differentiated.
        images: (B, channels, height, width), floating point; B may be 0 in local steps of DP-SGD.
        labels: what the loss takes: class indices (B,), int64, or other targets (B, ...).
        privacy: what is clipped, and to which norm; and the noise of each local step under granularity "sample".
        chunk_size: under granularity "sample", samples differentiated at once.
        training: local training; None: one step of plain SGD.
        loss: mean loss of outputs and targets.
        zeros: gradients that are zero because the server silences the network, see `zero_gradients`; the model need not
            have these parameters. None: those of the model.

    Raises:
        UserError: a gradient holds NaN or infinity, or the network mixes samples that are to be clipped alone.
    """
    clip = privacy.clip
    local = LocalTraining() if training is None else training.local
    if training is None or local.is_plain_step:
        zeros = zero_gradients(model) if zeros is None else zeros
        if privacy.granularity == "sample":
            gradient, norms, _ = clipped_sum(model, loss, images, labels, clip, chunk_size, zeros)
            return Clipped({**zeros, **gradient}, norms, zeros=frozenset(zeros))
        names = [name for name, _ in model.named_parameters() if name not in zeros]
        gradient, _ = mean_gradient(model, loss, images, labels, names=names)
    elif privacy.granularity == "sample":
        expected = local.expected_batch_size(training.announced or len(images))
        private = private_gradients(privacy, expected, chunk_size, training.randomness, loss)
        return Clipped(weight_change(model, images, labels, training, private), [], has_noise=True)
    else:
        zeros = {}
        gradient = weight_change(model, images, labels, training, mean_gradients(local.accumulate_grad_batches, loss))
    whole = dict.fromkeys(zeros, 0.0) | tensor_norms(gradient, clip.order)
    factors = clip.factors(whole)
    gradient = {name: tensor.mul_(factors[name]) for name, tensor in gradient.items()}
    return Clipped({**zeros, **gradient}, [whole], zeros=frozenset(zeros))


def nothing(model: nn.Module) -> Clipped:
    """The update of a client without images in a round, as a Poisson sample may be empty: zeros, and then noise."""
    zeros = {name: _zero(parameter) for name, parameter in model.named_parameters()}
    return Clipped(zeros, [], zeros=frozenset(zeros))


def summed(updates: Iterator[Clipped]) -> Clipped:
    """Sum of several clients' clipped updates, made one by one; each keeps its own bound, the sum has none of its own.

    Args:
        updates: at least one; the memory of the first is reused.
    """
    total = next(updates)
    for update in updates:
        gradient = total.gradient | {name: update.gradient[name].clone() for name in total.zeros - update.zeros}
        for name in gradient.keys() - total.zeros - update.zeros:
            gradient[name].add_(update.gradient[name])
        total = replace(total, gradient=gradient, norms=total.norms + update.norms, zeros=total.zeros & update.zeros)
    return total


def zero_gradients(model: nn.Module) -> dict[str, Tensor]:
    """Gradients of the network's parameters if the server silences the network, by name; else none.

    They are views of a single number, which take no memory, and the parameters are those of `model.network`.
    """
    if not (isinstance(model, TamperedNetwork) and model.silences_network):
        return {}
    return {name: _zero(one) for name, one in model.named_parameters() if not name.startswith(STRUCTURE)}


def _zero(parameter: Tensor) -> Tensor:
    return parameter.detach().new_zeros(()).expand(parameter.shape)


def release_of(clipped: Clipped, privacy: Privacy) -> Release:
    """Describe an update in numbers.

    Args:
        clipped: the update before noise.
        privacy: the setting that it was clipped under.
    """
    before, after, structure, clip = [], [], 0.0, privacy.clip
    for norms in clipped.norms:
        factors = clip.factors(norms)
        kept = {name: norm * factors[name] for name, norm in norms.items()}
        before.append(clip.norm(norms.values()))
        after.append(clip.norm(kept.values()))
        structure += sum(norm**clip.order for name, norm in kept.items() if name.startswith(STRUCTURE))
    parameters = sum(tensor.numel() for tensor in clipped.gradient.values())
    shipped = sum(name.startswith(STRUCTURE) for name in clipped.gradient)
    return Release(
        norms=before,
        clip_factors=[a / b if b > 0 else 1.0 for a, b in zip(after, before, strict=True)],
        structure_share=structure / max(sum(norm**clip.order for norm in after), 1e-300),
        structure_bound=shipped / len(clipped.gradient) if privacy.per_layer else float(shipped > 0),
        noise_std=privacy.noise_std,
        noise_norm=privacy.noise_std * math.sqrt(parameters),
        parameters=parameters,
        tensors=len(clipped.gradient),
    )
