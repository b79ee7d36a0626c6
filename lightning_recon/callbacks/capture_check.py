# SPDX-License-Identifier: Apache-2.0
"""What the audience learns about a captured update: whether it makes sense, and what its users are not told."""

import hashlib
import logging
from dataclasses import asdict, dataclass
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import nn

from lightning_recon.attack import Attack, GradientInversion, Reconstruction
from lightning_recon.attack.inversion.functional_model import functionalize
from lightning_recon.attack.inversion.target_network import network_of, shipped_network
from lightning_recon.callbacks.ground_truth import truths_of
from lightning_recon.capture import CapturedClient, Declared
from lightning_recon.data import ClientBatch
from lightning_recon.data.truth_file import check_truth
from lightning_recon.evaluation.results import Record, bounds_record, privacy_record
from lightning_recon.evaluation.scoring import Attacked
from lightning_recon.evaluation.unscored import unscored_record
from lightning_recon.exchange import Task
from lightning_recon.networks.classifier_head import find_head
from lightning_recon.networks.construction import is_class_path
from lightning_recon.networks.differentiability import math_attention
from lightning_recon.networks.normalization import announced, in_words, resolve
from lightning_recon.privacy.mechanism import ADJACENCIES
from lightning_recon.structure.layer import structure_bytes
from lightning_recon.structure.layer_spec import channel_code_name

# Where the program that made an update declares none.
DELTA = 1e-5

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Examined:
    """A captured update that stood up to inspection.

    Args:
        fingerprint: hash of the files.
        privacy: for `results.json`.
        capture: for `results.json`.
        network: what to say of the weights that an honest server shipped; None of another server.
    """

    fingerprint: str
    privacy: Record
    capture: Record
    network: str | None = None


def known_network(task: Task) -> nn.Module | None:
    """The target network with random weights; None if there is no such network here.

    The name comes from a file: a class path, which would run code of anyone's choice, counts as unknown.
    """
    if is_class_path(task.network):
        return None
    try:
        return shipped_network(task)
    except Exception:  # whatever a network that is not ours may raise
        return None


def _check(client: CapturedClient, module: Attack, network: nn.Module | None) -> None:
    """Hold every file against a network, and against its last layer's sign."""
    if network is None:
        client.check(module.make_payload(client), None)
        return
    shapes = {name: tuple(parameter.shape) for name, parameter in network.named_parameters()}
    with math_attention():
        model = functionalize(network, batch_statistics=client.task.batch_norm == "train")
        head = find_head(model, torch.rand(2, *client.task.image_shape, generator=torch.Generator().manual_seed(0)))
    client.check(module.make_payload(client), shapes, None if head is None else head.bias)


def examine(trainer: Trainer, module: Attack) -> Examined | None:
    """Look at every file of a captured update before it is attacked; None if the run has a client to ask.

    Args:
        trainer: its data module, if there is one, holds the pictures to score with.
        module: the attack.

    Raises:
        UserError: the first thing that is wrong with the update, or pictures that cannot be those behind it.
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
        told = announced(resolve(client.task.normalization, module.network or client.task.network, network))
        said = (
            f"network.safetensors beside the update fits {module.network or client.task.network}; normalisation of its "
            f"pictures: {in_words(told)}"
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
    declared = client.first.declared
    privacy = protection_of(client)
    z = 0.0 if client.task.max_grad_norm is None else client.task.noise_multiplier
    delta = declared.delta if declared and declared.delta else DELTA
    once: Record = {name: client.task.noise.epsilon(z, 1, delta, name) for name in ADJACENCIES}
    remarks += _promise(declared, client.task.rounds, once, privacy)
    capture: Record = {
        "source": client.first.source,
        "convention": client.first.convention,
        "declared": asdict(declared) if declared else None,
        "epsilon_one_round": once,
        "remarks": remarks,
    }
    return Examined(digest.hexdigest()[:12], privacy, capture, said)


def _promise(declared: Declared | None, rounds: int, once: Record, privacy: Record) -> list[str]:
    """What to say of a declared epsilon that is less than what the noise gives."""
    together: Any = privacy["epsilon_by_adjacency"]
    said = None if declared is None else declared.epsilon
    if said is None or together["add_remove"] is None or together["add_remove"] <= 1.01 * said:
        return []
    holds: Any = once["add_remove"]
    which = "its one round comes" if rounds == 1 else f"its {rounds} rounds together come"
    alone = "" if rounds == 1 else f" (one round alone: {holds:.4g})"
    return [
        f"the program declares epsilon {said:.4g}, and {which} to {together['add_remove']:.4g} under add/remove, "
        f"{together['replace_one']:.4g} under replace-one{alone}"
    ]


def protection_of(client: CapturedClient) -> Record:
    """The `privacy` section: what was announced, accounted at the declared delta."""
    task, declared = client.task, client.first.declared
    names = ("mechanism", "granularity", "per_layer", "max_grad_norm", "noise_multiplier", "rounds")
    group = ("batch_size", "aggregated")

    announced: dict[str, Any] = {name: getattr(task, name) for name in (*names, *group)}
    delta = declared.delta if declared and declared.delta else DELTA
    return privacy_record(**announced, noise_share=task.noise_share, delta=delta, adjacency="add_remove")


def record_without_truth(
    module: Attack,
    found: list[Reconstruction],
    images: list[list[str]],
    privacy: Record,
    cost: dict[str, Any],
) -> Record:
    """The whole of `results.json` where nobody knows what the clients trained on.

    Args:
        module: the attack.
        found: its pictures.
        images: their files, relative to the run folder.
        privacy: from `protection_of`.
        cost: seconds and steps, and what `share_record` says.
    """
    task, statistics = module.task, module.statistics
    attacked = [
        Attacked(one.client, one.draw, one.pictures, one.initial, one.unresolved, one.evident, one.files)
        for one in found
    ]
    return unscored_record(
        attack=module.name,
        config="config.yaml",
        privacy=privacy,
        oracles=module.oracles,
        public_statistics=statistics.name,
        attacked=attacked,
        images=images,
        clients=task.clients,
        batch_size=task.batch_size,
        bounds=bounds_record(
            [],
            statistics.variance,
            noise_multiplier=task.update_multiplier,
            mechanism=task.mechanism,
            granularity=task.granularity,
            per_layer=task.per_layer,
            rounds=task.rounds,
            batch_size=task.batch_size,
        ),
        structure_bytes=structure_bytes(module.payload) if module.payload is not None else 0,
        channel_code=channel_code_name(module.payload) if module.payload is not None else None,
        **cost,
    )
