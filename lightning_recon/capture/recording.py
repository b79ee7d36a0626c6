# SPDX-License-Identifier: Apache-2.0
"""Record the update of any PyTorch training loop: `with record(model, folder): ...`."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from lightning_recon.capture.client import NETWORK
from lightning_recon.capture.tensor_check import NETWORK as OF_NETWORK
from lightning_recon.capture.tensor_check import check_trained
from lightning_recon.capture.training_watch import Accumulation, Watched, check_accumulation, watching
from lightning_recon.capture.update_file import ENDING, CapturedUpdate, Convention, Declared, save_captured
from lightning_recon.errors import UserError
from lightning_recon.exchange import LocalTraining, ServerPayload, Task, update_name
from lightning_recon.files.faults import readable
from lightning_recon.files.serialization import read_safetensors, write_tensors
from lightning_recon.losses import LossName
from lightning_recon.networks.normalization import Normalization
from lightning_recon.networks.wrappers import plain_name, unwrapped
from lightning_recon.privacy.parameters import Privacy
from lightning_recon.ranges import BIT_DEPTH, COUNT, check_ranges

# Fields of a task that the loop shows.
_SEEN = ("image_shape", "num_classes", "batch_size", "parameter_tensors", "local")


@contextmanager
def record(
    model: nn.Module,
    folder: str | Path,
    privacy: Privacy | None = None,
    *,
    network: str | None = None,
    normalization: Normalization = "auto",
    epochs: int = 1,
    shuffle: bool = False,
    accumulation: Accumulation | None = None,
    client: int = 0,
    clients: int = 1,
    round: int = 0,
    declared: Declared | None = None,
    task: Task | None = None,
    payload: ServerPayload | None = None,
    loss: LossName = "cross_entropy",
    bit_depth: int = 8,
    expected_batch_size: int | None = None,
) -> Iterator[Watched]:
    """Record what a client's training changes, and write it as a captured update when the block ends.

    Image size, classes, batch size, mini-batches, optimizer, its options and learning rates are read from the loop.
    Where an optimizer has stepped, the update is the change of the weights ("delta"); otherwise it is the gradient that
    the loop has left in the parameters, of the mean loss. Whatever the block does to weights or gradients, clipping and
    noise included, is in the update. Nothing is written where the block raises an exception.

    Without `payload` the server is honest: the weights of before the block are written as network.safetensors.

    Args:
        model: the model that the loop calls, images (B, C, H, W) in [0, 1] to logits (B, classes), in wrappers or not.
        folder: for one file for each client and round, and for the network's weights.
        privacy: how the block protects the update; None: it does not. With granularity "sample" the clipping norm is
            that of a sample's gradient, with "update" that of the update itself.
        network: name by which the attack builds the network; None: the class path of the model.
        normalization: how the network normalizes its images; "auto": not at all, for a class path.
        epochs: passes over the client's images in the block.
        shuffle: whether mini-batches are drawn anew in every epoch.
        accumulation: how gradients of several passes are accumulated for one step, which cannot be seen: "mean", each
            loss is divided by the number of passes; "sum", it is not, which cannot be announced. Needed only there.
        client: index of the client, from 0.
        clients: number of clients whose updates are recorded.
        round: index of the round, from 0; `privacy.rounds` is their number.
        declared: the privacy that the client's program declares.
        task: the announced task, instead of the one that follows from the loop and from `privacy`; the loop must agree.
        payload: what a malicious server has sent; the model is then its `TamperedNetwork`, and `task` is needed.
        loss: name of the loss by which the block trains, see `losses`; a `task` has its own. Under others than
            "cross_entropy" the model may also return maps, (B, channels, H, W).
        bit_depth: bits of a value of an image; a `task` has its own.
        expected_batch_size: expected number of images where a loader draws them at random, as Opacus' does; needed for
            per-sample clipping by Opacus, see `DPOptimizer.expected_batch_size`. None: those that the loop had.

    Yields:
        What was seen of the loop so far.

    Raises:
        UserError: the loop cannot be announced, differs from the task, has changed nothing, or leaves out parameters
            whose gradients the attack needs.
    """
    inner = unwrapped(model)
    if payload is not None and task is None:
        raise UserError("record() with a payload needs the task for which the payload was made: give task=")
    check_ranges("", bit_depth=(bit_depth, BIT_DEPTH), expected_batch_size=(expected_batch_size, COUNT))
    protection = task or privacy
    if expected_batch_size is None and protection and protection.granularity == "sample" and _is_of_opacus(model):
        raise UserError(
            "Opacus divides by the expected number of images, which its loader draws at random: give record() "
            "expected_batch_size=optimizer.expected_batch_size, or capture with capture.opacus.capture_steps"
        )
    before = {name: tensor.detach().clone() for name, tensor in inner.state_dict().items()}
    with watching(model, maps=(loss if task is None else task.loss) != "cross_entropy") as watched:
        yield watched
    if watched.stale:
        raise UserError(
            "the model held gradients of an earlier pass, to which others were added: call zero_grad() before the "
            "first backward pass"
        )
    convention, tensors, local = _released(inner, before, watched, epochs, shuffle, task)
    check_accumulation(watched, accumulation)
    images = _announced_images(watched.images(epochs), local, expected_batch_size)
    seen = _task_of(inner, watched, images, local, privacy or Privacy(max_grad_norm=None))
    seen = replace(
        seen,
        network=network or f"{type(inner).__module__}.{type(inner).__qualname__}",
        clients=clients,
        normalization=normalization,
        batch_norm=watched.batch_norm,
        loss=loss,
        bit_depth=bit_depth,
    )
    if task is not None:
        _check_announced(task, seen, structure=payload is not None)
    check_trained(_untrained(inner, watched), payload or ServerPayload(), (task or seen).per_layer)
    if payload is None:
        tensors = {OF_NETWORK + name: tensor for name, tensor in tensors.items()}
        keep_network(Path(folder), before)
    path = Path(folder) / f"{update_name(client, 0, round)}{ENDING}"
    sent = (payload or ServerPayload()).digest()
    source = f"PyTorch {torch.__version__.partition('+')[0]}"
    save_captured(path, CapturedUpdate(task or seen, tensors, convention, sent, client, round, 0, source, declared))


def _untrained(inner: nn.Module, watched: Watched) -> list[str]:
    """Names of the parameters that are frozen, or that the optimizer which stepped does not have."""
    groups = [group for optimizer in watched.optimizers for group in optimizer.param_groups]
    stepped = {id(parameter) for group in groups for parameter in group["params"]}
    return [
        plain_name(name)
        for name, parameter in inner.named_parameters()
        if not parameter.requires_grad or (groups and id(parameter) not in stepped)
    ]


def _is_of_opacus(model: nn.Module) -> bool:
    """Whether a model computes the gradient of every sample by Opacus."""
    # Not by isinstance: Opacus is an optional dependency.
    bases = [base for module in model.modules() for base in type(module).__mro__]
    return any(base.__module__.startswith("opacus.") and base.__name__ == "AbstractGradSampleModule" for base in bases)


def _announced_images(seen: int, local: LocalTraining, expected: int | None) -> int:
    """Number of images that a server of this loop would have announced."""
    if expected is not None and expected != seen and local.batch_size is not None:
        raise UserError(
            f"expected_batch_size is {expected}, but the loop went through {seen} images in several mini-batches, "
            f"and only those of one step can be drawn at random: give {seen}, or record one step"
        )
    return seen if expected is None else expected


def _released(
    inner: nn.Module, before: Mapping[str, Tensor], watched: Watched, epochs: int, shuffle: bool, task: Task | None
) -> tuple[Convention, dict[str, Tensor], LocalTraining]:
    """Convention and tensors of the update by the network's own names, and the training that led to it."""
    parameters = {plain_name(name): (name, parameter) for name, parameter in inner.named_parameters()}
    if not watched.learning_rates:
        if all(parameter.grad is None for _, parameter in parameters.values()):
            raise UserError("no optimizer stepped and no gradient was computed: train the model inside the block")
        gradients = {
            name: torch.zeros_like(one) if one.grad is None else one.grad.detach().clone()
            for name, (_, one) in parameters.items()
        }
        announced = task is not None and task.local.is_plain_step
        return "gradient_mean", gradients, task.local if task is not None and announced else LocalTraining()
    local = watched.local_training(epochs, shuffle)
    deltas = {name: one.detach() - before[full].to(one) for name, (full, one) in parameters.items()}
    step = replace(local, update="gradient")
    if task is not None and task.local.update == "gradient" and step.is_plain_step:
        # What the server announced as the gradient is the change divided by minus the learning rate.
        return "gradient_mean", {name: delta / -step.divisor for name, delta in deltas.items()}, step
    return "delta", deltas, local


def _task_of(inner: nn.Module, watched: Watched, images: int, local: LocalTraining, privacy: Privacy) -> Task:
    """The task that a server of this loop would have announced."""
    if privacy.noise_bands > 1 or privacy.adaptive_clip is not None:
        raise UserError("give record() a task= where noise is correlated over rounds, or the clipping norm adapts")
    if watched.image_shape is None or watched.num_classes is None:
        raise UserError("no images went through the model while it was recorded: call it inside the block")
    return Task(
        image_shape=watched.image_shape,
        num_classes=watched.num_classes,
        batch_size=images,
        clients=1,
        network="custom",
        granularity=privacy.granularity,
        per_layer=privacy.per_layer,
        max_grad_norm=privacy.max_grad_norm,
        noise_multiplier=privacy.noise_multiplier,
        rounds=privacy.rounds,
        parameter_tensors=len(list(inner.parameters())),
        parameters=sum(parameter.numel() for parameter in inner.parameters()),
        mechanism=privacy.mechanism,
        local=local,
    )


def _check_announced(task: Task, seen: Task, structure: bool) -> None:
    """Refuse a loop that differs from what was announced."""
    # The order of mini-batches, and what was dropped, cannot be seen.
    same = replace(seen.local, shuffle=task.local.shuffle, drop_last=task.local.drop_last)
    found = replace(seen, local=same)
    for name in _SEEN:
        if name == "parameter_tensors" and structure:
            continue  # the task counts those of the network alone
        if getattr(task, name) != getattr(found, name):
            raise UserError(
                f"{name} is {getattr(task, name)} in the task, but the loop had {getattr(found, name)}: announce what "
                "the client does, and make the payload for it"
            )


def keep_network(folder: Path, before: Mapping[str, Tensor]) -> None:
    """Write the weights that the server sent beside the updates that answer them.

    Args:
        folder: of the updates.
        before: state dict.

    Raises:
        UserError: the folder holds other weights.
    """
    state, path = {plain_name(name): tensor for name, tensor in before.items()}, folder / f"{NETWORK}{ENDING}"
    if path.exists():
        with readable(path):
            earlier, _ = read_safetensors(path)
        if earlier.keys() != state.keys() or any(not torch.equal(earlier[name], state[name].cpu()) for name in state):
            raise UserError(
                f"{path} holds other weights than the model had before this training: use a folder for each model that "
                "the server sends"
            )
        return
    write_tensors(folder, NETWORK, state)
