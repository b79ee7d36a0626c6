# SPDX-License-Identifier: Apache-2.0
"""Check a captured update before the attack, and compare its declared epsilon with the accounted one."""

import hashlib
import logging
from dataclasses import asdict, dataclass
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import nn

from lightning_recon.attack import Attack, GradientInversion
from lightning_recon.attack.inversion.classifier_head import find_head
from lightning_recon.attack.inversion.functional_model import functionalize
from lightning_recon.attack.inversion.target_network import network_of, shipped_network
from lightning_recon.callbacks.ground_truth import truths_of
from lightning_recon.callbacks.protection import noise_of, privacy_of
from lightning_recon.capture import CapturedClient, Declared
from lightning_recon.data import ClientBatch
from lightning_recon.data.truth_file import check_truth
from lightning_recon.evaluation.results import Record
from lightning_recon.exchange import Task
from lightning_recon.networks.construction import is_class_path
from lightning_recon.networks.differentiability import math_attention
from lightning_recon.networks.normalization import announced, in_words, resolve
from lightning_recon.privacy.mechanism import ADJACENCIES

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Examined:
    """The result of checking a captured update.

    Args:
        fingerprint: hash of the files.
        capture: for `results.json`.
        network: a line about the weights that an honest server shipped; None for another server.
    """

    fingerprint: str
    capture: Record
    network: str | None = None


def known_network(task: Task) -> nn.Module | None:
    """The target network with random weights; None if there is no such network here.

    The name comes from a file: a class path, which would run arbitrary code, counts as unknown.
    """
    if is_class_path(task.network):
        return None
    try:
        return shipped_network(task)
    except Exception:  # whatever a network that is not ours may raise
        return None


def _check(client: CapturedClient, module: Attack, network: nn.Module | None) -> None:
    """Check every file against the shapes of a network, and against the sign of its last layer's gradient."""
    if network is None:
        client.check(module.make_payload(client), None)
        return
    shapes = {name: tuple(parameter.shape) for name, parameter in network.named_parameters()}
    with math_attention():
        model = functionalize(network, batch_statistics=client.task.batch_norm == "train")
        head = find_head(model, torch.rand(2, *client.task.image_shape, generator=torch.Generator().manual_seed(0)))
    # Of softmax minus one-hot alone the sign is known.
    known = head if client.task.loss == "cross_entropy" else None
    client.check(module.make_payload(client), shapes, None if known is None else known.bias)


def examine(trainer: Trainer, module: Attack) -> Examined | None:
    """Check every file of a captured update before it is attacked; None if the update is not a captured one.

    Args:
        trainer: its data module, if there is one, holds the true images.
        module: the attack.

    Raises:
        UserError: the first fault of the update, or true images that cannot have caused it.
    """
    client = module.client
    if not isinstance(client, CapturedClient):
        return None
    if truths := truths_of(trainer):
        check_truth([batch for batch in truths if isinstance(batch, ClientBatch)], client.task)
    known, said = known_network(client.task), None
    _check(client, module, known)
    if isinstance(module, GradientInversion):
        network = network_of(client, client, module.network)
        normalization = announced(resolve(client.task.normalization, module.network or client.task.network, network))
        said = (
            f"network.safetensors beside the update fits {module.network or client.task.network}; normalization of its "
            f"images: {in_words(normalization)}"
        )
        if known is None:
            known = network
            _check(client, module, known)
    remarks = list(client.remarks)
    if known is None:
        unknown = f"no network {client.task.network!r} is known here: only the structure's tensors were checked"
        log.warning("%s", unknown)
        remarks.append(unknown)
    digest = hashlib.sha256()
    for path in client.files.values():
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    declared, privacy = client.first.declared, privacy_of(client)
    delta: Any = privacy["delta"]
    z, releases = noise_of(client.task), client.task.releases_per_round
    once: Record = {name: client.task.noise.epsilon(z, releases, delta, name) for name in ADJACENCIES}
    if declared is None or declared.delta != 0 or client.task.mechanism != "gaussian":
        remarks += _promise(declared, client.task.rounds, once, privacy)  # Gaussian noise has no epsilon at delta 0
    capture: Record = {
        "source": client.first.source,
        "convention": client.first.convention,
        "declared": asdict(declared) if declared else None,
        "epsilon_one_round": once,
        "remarks": remarks,
    }
    return Examined(digest.hexdigest()[:12], capture, said)


def _promise(declared: Declared | None, rounds: int, once: Record, privacy: Record) -> list[str]:
    """A remark where the declared epsilon is less than the accounted one; else nothing."""
    together: Any = privacy["epsilon_by_adjacency"]
    said = None if declared is None else declared.epsilon
    if said is None or together["add_remove"] is None or together["add_remove"] <= 1.01 * said:
        return []
    holds: Any = once["add_remove"]
    which = "its one round has" if rounds == 1 else f"its {rounds} rounds together have"
    alone = "" if rounds == 1 else f" (one round alone: {holds:.4g})"
    return [
        f"the program declares epsilon {said:.4g}, and {which} {together['add_remove']:.4g} under add/remove, "
        f"{together['replace_one']:.4g} under replace-one{alone}"
    ]
