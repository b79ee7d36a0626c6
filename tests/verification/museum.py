# SPDX-License-Identifier: Apache-2.0
"""A museum of faulty DP clients: each is a few lines, and each has one mistake that was seen in public code.

The correct parts are shared. An exhibit is a client, what is claimed of it, and how recon verify has to name it.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from lightning_recon.privacy.parameters import Privacy
from lightning_recon.verification.claims import Claims
from lightning_recon.verification.client_under_test import Batch, ClientUnderTest

SHAPE, CLASSES, SAMPLES = (3, 8, 8), 10, 8
CLIP, NOISE = 2.0, 0.5  # C and z
STD = CLIP * NOISE

Update = dict[str, Tensor]


class Net(nn.Module):
    """A network of 1,500 parameters; with batch normalization and a learned temperature if asked for."""

    def __init__(self, num_classes: int = CLASSES, batch_norm: bool = False, temperature: bool = False) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4) if batch_norm else nn.Identity(), nn.ReLU())
        self.classifier = nn.Linear(4 * 6 * 6, num_classes)
        self.temperature = nn.Parameter(torch.tensor(1.0)) if temperature else None

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.features(images).flatten(1))
        return logits if self.temperature is None else logits * self.temperature


# --- what a correct client is made of ---


def sample_gradients(model: nn.Module, batch: Batch) -> Update:
    """The gradient of every sample: (B, *shape) by parameter name."""
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}

    def loss(values: Update, image: Tensor, label: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(model, values, image.unsqueeze(0)), label.unsqueeze(0))

    found: Update = vmap(grad(loss), in_dims=(None, 0, 0))(parameters, *batch)
    return found


def mean_gradient(model: nn.Module, batch: Batch) -> Update:
    """The gradient of the mean loss of the batch."""
    model.zero_grad()
    F.cross_entropy(model(batch[0]), batch[1]).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def norms(tensors: Mapping[str, Tensor], order: int = 2) -> Tensor:
    """Norm of every sample, over all tensors."""
    rows = torch.cat([tensor.flatten(1) for tensor in tensors.values()], dim=1)
    return torch.linalg.vector_norm(rows, order, dim=1)


def clipped_sum(gradients: Update, clip: float = CLIP, order: int = 2) -> Update:
    """The sum of the samples' gradients, each clipped over all tensors."""
    factors = (clip / norms(gradients, order)).clamp(max=1.0)
    return {name: torch.einsum("b,b...->...", factors, tensor) for name, tensor in gradients.items()}


def clipped(update: Update, clip: float = CLIP, order: int = 2) -> Update:
    """An update, clipped over all tensors."""
    return clipped_sum({name: tensor.unsqueeze(0) for name, tensor in update.items()}, clip, order)


def noised(update: Update, std: float = STD) -> Update:
    """With Gaussian noise on every number."""
    return {name: tensor + std * torch.randn_like(tensor) for name, tensor in update.items()}


def trained(model: nn.Module, batch: Batch, steps: int = 2, lr: float = 0.1) -> Update:
    """The change of all floating-point entries of the state dict by local training."""
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(batch[0]), batch[1]).backward()
        optimizer.step()
    after = model.state_dict()
    return {name: after[name] - one for name, one in before.items() if one.is_floating_point()}


def sent_weights(model: nn.Module, before: Update, change: Update) -> Update:
    """The state dict of a client that changes what it received."""
    return {name: before[name] + change[name] if name in change else one for name, one in model.state_dict().items()}


def dp_sgd(model: nn.Module, batch: Batch) -> Update:
    """The correct client, whose release is a sum."""
    return noised(clipped_sum(sample_gradients(model, batch)))


def local_dp(model: nn.Module, batch: Batch) -> Update:
    """The correct client, whose update is clipped as a whole; it sends its parameters."""
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    change = {name: one for name, one in trained(model, batch).items() if name in before}
    return {name: before[name] + one for name, one in noised(clipped(change)).items()}


# --- faulty clients ---


def without_clip(model: nn.Module, batch: Batch) -> Update:
    return noised({name: tensor.sum(0) for name, tensor in sample_gradients(model, batch).items()})


def one_tensor_without_noise(model: nn.Module, batch: Batch) -> Update:
    update = clipped_sum(sample_gradients(model, batch))
    return noised(update) | {"network.classifier.bias": update["network.classifier.bias"]}


def noise_over_batch_size(model: nn.Module, batch: Batch) -> Update:
    return noised(clipped_sum(sample_gradients(model, batch)), STD / len(batch[1]))


def noise_over_clients(model: nn.Module, batch: Batch) -> Update:
    return noised(clipped_sum(sample_gradients(model, batch)), STD / 4)


def mean_for_sum(model: nn.Module, batch: Batch) -> Update:
    update = noised(clipped_sum(sample_gradients(model, batch)), STD / 5)
    return {name: tensor / len(batch[1]) for name, tensor in update.items()}


def mean_without_its_noise(model: nn.Module, batch: Batch) -> Update:
    update = clipped_sum(sample_gradients(model, batch))
    return noised({name: tensor / len(batch[1]) for name, tensor in update.items()}, STD / 5)


def read_before_the_privatizing_step(model: nn.Module, batch: Batch) -> Update:
    read = mean_gradient(model, batch)
    dp_sgd(model, batch)  # what the optimizer steps with, which nobody sends
    return {name: tensor.clone() for name, tensor in read.items()}


def batch_norm_statistics_raw(model: nn.Module, batch: Batch) -> Update:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    change = trained(model, batch)
    weights = {name: change[name] for name, _ in model.named_parameters()}
    return sent_weights(model, before, noised(clipped(weights)))


def same_seed_each_round(model: nn.Module, batch: Batch) -> Update:
    update = clipped_sum(sample_gradients(model, batch))
    with torch.random.fork_rng():
        torch.manual_seed(7)
        return noised(update)


class SameSeedOnEachClient:
    """Draws its noise with a generator of its own, which has one seed."""

    def __init__(self, client: int = 0) -> None:
        self.generator = torch.Generator().manual_seed(7)

    def __call__(self, model: nn.Module, batch: Batch) -> Update:
        update = clipped_sum(sample_gradients(model, batch))
        return {name: one + STD * torch.randn(one.shape, generator=self.generator) for name, one in update.items()}


def laplace_of_the_same_scale(model: nn.Module, batch: Batch) -> Update:
    return laplace(clipped_sum(sample_gradients(model, batch)), STD)


def laplace_of_the_same_variance(model: nn.Module, batch: Batch) -> Update:
    return laplace(clipped_sum(sample_gradients(model, batch)), STD / math.sqrt(2))


def laplace(update: Update, scale: float) -> Update:
    zero = torch.tensor(0.0)
    return {name: one + torch.distributions.Laplace(zero, scale).sample(one.shape) for name, one in update.items()}


def large_values_pass(model: nn.Module, batch: Batch) -> Update:
    raw = {name: tensor.sum(0) for name, tensor in sample_gradients(model, batch).items()}
    private = dp_sgd(model, batch)
    return {name: torch.where(one.abs() > 100 * CLIP, one, private[name]) for name, one in raw.items()}


def half_precision(model: nn.Module, batch: Batch) -> Update:
    before = {name: parameter.detach().half() for name, parameter in model.named_parameters()}
    change = noised(clipped_sum(sample_gradients(model, batch)))
    return {name: (one - (1e-6 * change[name]).half()).float() for name, one in before.items()}


def clip_after_the_noise(model: nn.Module, batch: Batch) -> Update:
    update = {name: tensor.sum(0) for name, tensor in sample_gradients(model, batch).items()}
    return clipped(noised(update))


def update_clipped_as_a_whole(model: nn.Module, batch: Batch) -> Update:
    update = {name: tensor.sum(0) for name, tensor in sample_gradients(model, batch).items()}
    return noised(clipped(update), STD / 5)


def each_tensor_clipped_to_c(model: nn.Module, batch: Batch) -> Update:
    gradients = sample_gradients(model, batch)
    return noised({name: clipped_sum({name: one})[name] for name, one in gradients.items()}, STD / 5)


def one_noise_for_every_tensor(model: nn.Module, batch: Batch) -> Update:
    found = {}
    with torch.random.fork_rng():
        seed = int(torch.empty((), dtype=torch.int64).random_())
        for name, tensor in clipped_sum(sample_gradients(model, batch)).items():
            torch.manual_seed(seed)
            found[name] = tensor + STD * torch.randn_like(tensor)
    torch.rand(1)  # the next round has another seed
    return found


def one_noise_for_every_row(model: nn.Module, batch: Batch) -> Update:
    update = clipped_sum(sample_gradients(model, batch))
    return {name: one + STD * torch.randn(one.shape[1:] or one.shape) for name, one in update.items()}


def truncated_noise(model: nn.Module, batch: Batch) -> Update:
    update = clipped_sum(sample_gradients(model, batch))
    return {name: one + STD * torch.randn_like(one).clamp(-2.5, 2.5) for name, one in update.items()}


def loss_beside_the_update(model: nn.Module, batch: Batch) -> Update:
    return dp_sgd(model, batch) | {"metrics.loss": F.cross_entropy(model(batch[0]), batch[1]).detach()}


def half_of_the_numbers_filtered(model: nn.Module, batch: Batch) -> Update:
    update = clipped_sum(sample_gradients(model, batch))
    name = "network.classifier.weight"
    return noised(update) | {name: torch.cat([update[name][:5], noised(update)[name][5:]])}


class SeedPaper:
    """The published example of the seed paper: noise of 2C / (1000 epsilon), and its clip switched off."""

    std = 2 * CLIP / (1000 * 10)

    def __call__(self, model: nn.Module, batch: Batch) -> Update:
        return noised(mean_gradient(model, batch), self.std)


SUM = Claims(Privacy(CLIP, NOISE, "sample"), SAMPLES, "sum")
LESS_NOISE = Claims(Privacy(CLIP, NOISE / 5, "sample"), SAMPLES, "sum")
UPDATE = Claims(Privacy(CLIP, NOISE, "update"), SAMPLES, released="state_dict", learning_rate=0.1)


@dataclass(frozen=True)
class Exhibit:
    """A faulty client.

    Args:
        name: what is wrong.
        client: creates the client.
        refuted: lines that must be refuted, by the beginnings of their names.
        remark: a part of the remark on the first of them.
        claims: what is claimed of it.
        network: what it trains.
    """

    name: str
    client: Callable[[], ClientUnderTest]
    refuted: tuple[str, ...]
    remark: str
    claims: Claims = SUM
    network: Callable[[], nn.Module] = field(default=Net)


EXHIBITS = (
    Exhibit("clipping off", lambda: without_clip, ("clip far", "clip near"), "nothing is clipped"),
    Exhibit(
        "one tensor without noise",
        lambda: one_tensor_without_noise,
        ("unprotected parameters", "noise_std network.classifier.bias"),
        "without noise: network.classifier.bias",
    ),
    Exhibit(
        "noise over batch size",
        lambda: noise_over_batch_size,
        ("noise_std all tensors", "noise_multiplier", "epsilon of measured noise"),
        "the noise is divided by the batch size, 8",
    ),
    Exhibit(
        "noise over number of clients",
        lambda: noise_over_clients,
        ("noise_std all tensors", "noise_multiplier"),
        "the noise is divided by the number of clients, 4",
        replace(SUM, aggregated=4),
    ),
    Exhibit(
        "mean taken for sum",
        lambda: mean_for_sum,
        ("sensitivity factor", "noise_std all tensors"),
        "the release is a mean, not a sum",
        LESS_NOISE,
    ),
    Exhibit(
        "noise of a sum on a mean",
        lambda: mean_without_its_noise,
        ("clip far", "sensitivity factor"),
        "the release is a mean over 8 samples, not a sum",
        LESS_NOISE,
    ),
    Exhibit(
        "gradient read before the privatising step",
        lambda: read_before_the_privatizing_step,
        ("unprotected parameters", "clip far", "noise_std all tensors"),
        "without noise",
    ),
    Exhibit(
        "batch normalization statistics sent raw",
        lambda: batch_norm_statistics_raw,
        ("unprotected buffers",),
        "sent raw: network.features.1.running_mean, network.features.1.running_var",
        UPDATE,
        lambda: Net(batch_norm=True),
    ),
    Exhibit(
        "same seed each round",
        lambda: same_seed_each_round,
        ("independence rounds",),
        "share their noise: the same seed in each round",
    ),
    Exhibit(
        "same seed on each client",
        SameSeedOnEachClient,
        ("independence clients",),
        "the same noise on each client",
    ),
    Exhibit(
        "Laplace of the same scale called Gaussian",
        lambda: laplace_of_the_same_scale,
        ("noise_distribution", "noise_std all tensors"),
        "it looks laplace",
    ),
    Exhibit(
        "Laplace of the same variance called Gaussian",
        lambda: laplace_of_the_same_variance,
        ("noise_distribution",),
        "it looks laplace",
    ),
    Exhibit(
        "a filter that lets large values through",
        lambda: large_values_pass,
        ("clip far", "noise on large values"),
        "large values pass the clip",
    ),
    Exhibit(
        "noise in half precision that rounds to zero",
        lambda: half_precision,
        ("unprotected parameters", "noise_std all tensors"),
        "without noise",
        replace(SUM, released="state_dict", learning_rate=1e-6),
    ),
    Exhibit(
        "clip after the noise",
        lambda: clip_after_the_noise,
        ("noise_std all tensors",),
        "the clip comes after the noise",
    ),
    Exhibit(
        "the update clipped instead of each sample",
        lambda: update_clipped_as_a_whole,
        ("clip unit", "clip far"),
        "the update is clipped",
        LESS_NOISE,
    ),
    Exhibit(
        "each tensor clipped to C instead of all together",
        lambda: each_tensor_clipped_to_c,
        ("clip layers",),
        "the clip is on each tensor alone",
        LESS_NOISE,
    ),
    Exhibit(
        "one seed for every tensor",
        lambda: one_noise_for_every_tensor,
        ("independence tensors",),
        "a seed for each tensor",
    ),
    Exhibit(
        "one noise for every row",
        lambda: one_noise_for_every_row,
        ("independence coordinates",),
        "are related",
    ),
    Exhibit("truncated noise", lambda: truncated_noise, ("noise_distribution",), "the tails of the noise are cut off"),
    Exhibit(
        "the loss sent beside the update",
        lambda: loss_beside_the_update,
        ("unprotected other values",),
        "sent raw: metrics.loss",
    ),
    Exhibit(
        "numbers that a filter skips",
        lambda: half_of_the_numbers_filtered,
        ("unprotected parameters",),
        "720 of 1440 numbers of network.classifier.weight",
    ),
    Exhibit(
        "the seed paper's example, its clip switched off",
        SeedPaper,
        ("clip far",),
        "nothing is clipped",
        Claims(Privacy(CLIP, SeedPaper.std / CLIP, "update"), SAMPLES),
    ),
)


# --- correct clients ---


@dataclass(frozen=True)
class Correct:
    """A client that does what is claimed.

    Args:
        claims: what it does.
    """

    claims: Claims

    def __call__(self, model: nn.Module, batch: Batch) -> Update:
        claims, privacy = self.claims, self.claims.privacy
        order = claims.mechanism.norm_order
        before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        per_sample = privacy.granularity == "sample"
        if per_sample:
            gradients = sample_gradients(model, batch)
        elif claims.released == "gradients":
            gradients = {name: one.clone().unsqueeze(0) for name, one in mean_gradient(model, batch).items()}
        else:
            change = trained(model, batch, lr=claims.learning_rate)
            gradients = {name: change[name].unsqueeze(0) for name in before}
        bound = privacy.clip.layer_bound(claims.max_grad_norm, len(gradients))
        update = (
            {name: clipped_sum({name: one}, bound, order)[name] for name, one in gradients.items()}
            if privacy.per_layer
            else clipped_sum(gradients, claims.max_grad_norm, order)
        )
        scale = claims.own_noise_multiplier * claims.max_grad_norm
        update = laplace(update, scale) if privacy.mechanism == "laplace" else noised(update, scale)
        if per_sample and claims.loss_reduction == "mean":
            update = {name: one / claims.batch_size for name, one in update.items()}
        if claims.released == "gradients":
            return update
        step = -claims.learning_rate if per_sample else 1.0
        return {name: before[name] + step * one for name, one in update.items()}


def correct_claims() -> list[Claims]:
    """Fifty different claims that `Correct` meets."""
    found = []
    for number in range(50):
        granularity = ("sample", "sample", "update")[number % 3]
        mechanism = "laplace" if number % 10 == 9 else "gaussian"
        privacy = Privacy(
            max_grad_norm=(0.1, 1.0, 10.0)[number % 3],
            noise_multiplier=(0.05, 0.5, 1.1, 3.0)[number % 4],
            granularity=granularity,  # type: ignore[arg-type]
            per_layer=number % 5 == 4,
            rounds=(1, 10)[number % 2],
            mechanism=mechanism,
        )
        found.append(
            Claims(
                privacy,
                batch_size=(1, 4, 16, 32)[number % 4 if number % 7 else 2],
                loss_reduction=("mean", "sum")[number % 2],  # type: ignore[arg-type]
                released=("gradients", "state_dict")[(number // 3) % 2],  # type: ignore[arg-type]
                learning_rate=(1.0, 0.1)[(number // 2) % 2],
                aggregated=(1, 4)[number % 11 == 0 and mechanism == "gaussian"],
                noise_share=("local", "distributed")[number % 11 == 0 and mechanism == "gaussian"],  # type: ignore[arg-type]
            )
        )
    return found
