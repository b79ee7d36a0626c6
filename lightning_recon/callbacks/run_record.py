# SPDX-License-Identifier: Apache-2.0
"""Collect the record of a run for `results.json`: protection, bounds, cost, and what the true images give."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn

from lightning_recon.attack import Attack, Reconstruction, ReconstructionAttack
from lightning_recon.callbacks.clipping_budget import share_record
from lightning_recon.callbacks.ground_truth import label_accuracy, truths_of
from lightning_recon.callbacks.mismatch import mismatch_record, sends_feedback
from lightning_recon.callbacks.protection import privacy_of
from lightning_recon.capture import CapturedClient
from lightning_recon.client import VictimClient
from lightning_recon.errors import UserError
from lightning_recon.evaluation.metrics import lpips_per_image
from lightning_recon.evaluation.results import Record, baselines_record, bounds_record
from lightning_recon.evaluation.run_record import RunRecord
from lightning_recon.evaluation.scoring import Scored, Truth
from lightning_recon.exchange import Task
from lightning_recon.exchange.local_training import SGD
from lightning_recon.files.digests import digest_of, sha256
from lightning_recon.structure.layer import structure_bytes
from lightning_recon.structure.layer_spec import channel_code_name
from lightning_recon.structure.local_weights import local_weights
from lightning_recon.structure.refinement import PlugAndPlay

_LPIPS_AT_ONCE = 64  # images


def run_record(
    trainer: Trainer,
    module: Attack,
    found: Sequence[Reconstruction],
    seconds: float,
    steps: int,
    capture: Record | None,
) -> RunRecord:
    """Collect everything but the victims' scores.

    Args:
        trainer: The trainer, with its data module if there is one.
        module: The attack.
        found: Reconstructions of every update and draw.
        seconds: Wall time of the attack.
        steps: Refinement steps.
        capture: Section `capture`, of a captured update.

    Raises:
        UserError: The exchange was recorded, so that the client and its protection are not known.
    """
    client, task, statistics, truths = module.client, module.task, module.statistics, truths_of(trainer)
    # A run that is scored again keeps what its own record says of these three.
    own: dict[str, Any] = {}
    if isinstance(client, VictimClient):
        normalised = client.batch_norm if client.normalises_batches else None
        own = {"seed": client.seed, "batchnorm": normalised, "participation": client.participation}
    elif not isinstance(client, CapturedClient):
        raise UserError("only a run with its own clients can be scored: use `recon replay` for a recorded exchange")
    local = local_weights(task)
    bounds = bounds_record(
        truths,
        noise_multiplier=task.update_multiplier,
        mechanism=task.mechanism,
        granularity=task.granularity,
        per_layer=task.per_layer,
        rounds=task.expected_rounds * task.releases_per_round,
        batch_size=task.batch_size,
        averaged=task.expected_rounds * (local.signal / local.noise) ** 2,
        share_in_batch=task.sampling.rate(task.batch_size),
        linear=task.local.optimizer == SGD and task.values_arrive,
    )
    masks = [truth.masks for truth in truths]
    return RunRecord(
        attack=module.name,
        privacy=privacy_of(client),
        bounds=bounds,
        clients=task.clients,
        batch_size=task.batch_size,
        seconds=seconds,
        steps=steps,
        structure_bytes=structure_bytes(module.payload) if module.payload is not None else 0,
        oracles=module.oracles,
        public_statistics=statistics.name,
        denoiser=denoiser_record(module) if steps else None,
        subject_fraction=float(torch.cat(masks).double().mean()) if masks else None,
        baselines=baselines_record(truths, statistics.mean) if truths else None,
        label_accuracy=label_accuracy(found, truths, module) if truths else None,
        channel_code=channel_code_name(module.payload) if module.payload is not None else None,
        capture=capture,
        victims=sum(len(truth.images) for truth in truths) or None,
        mismatch=mismatch_record(task, found, module.payload, sends_feedback(module)),
        local_training=local_training_record(task),
        compression=compression_record(task),
        quantization=quantization_record(task),
        client_dropout=task.client_dropout,
        skipped_pictures=list(getattr(getattr(trainer, "datamodule", None), "skipped_pictures", [])) if truths else [],
        **share_record(module, found),
        **own,
    )


def denoiser_record(module: Attack) -> Record | None:
    """The denoiser of the refinement and a digest of its weights; None where no denoiser refines."""
    if not isinstance(module, ReconstructionAttack) or not isinstance(module.objective, PlugAndPlay):
        return None
    return denoiser_of(module.denoiser)


def denoiser_of(denoiser: nn.Module) -> Record:
    """Class path of a denoiser, and a digest of its weights."""
    kind, weights = type(denoiser), denoiser.state_dict()
    digest = digest_of({name: sha256(tensor) for name, tensor in weights.items()})
    return {"class_path": f"{kind.__module__}.{kind.__qualname__}", "weights_sha256": digest}


def local_training_record(task: Task) -> Record:
    """The announced local training, in numbers and in words."""
    local = task.local
    steps, words = local.steps(task.batch_size), local.in_words(task.batch_size)
    return {**asdict(local), "plain_step": local.is_plain_step, "steps": steps, "words": words}


def compression_record(task: Task) -> Record | None:
    """The announced compression, in numbers and in words."""
    compression = task.compression
    return None if compression is None else {**asdict(compression), "words": compression.in_words}


def quantization_record(task: Task) -> Record | None:
    """The announced quantization of secure aggregation, in numbers and in words."""
    quantization = task.quantization
    return None if quantization is None else {**asdict(quantization), "words": quantization.in_words}


def mean_lpips(scored: Sequence[Scored], truths: Sequence[Truth]) -> float | None:
    """Mean learned perceptual distance; None where its network's weights are not on this machine.

    Args:
        scored: Reconstructions of every update and draw, matched with the true images.
        truths: The victims of each of them, in the same order.
    """
    known, images, originals = list[Tensor](), list[Tensor](), list[Tensor]()
    for number, (one, truth) in enumerate(zip(scored, truths, strict=True), start=1):
        images.append(one.images)
        originals.append(truth.images.cpu())
        # Several updates together: each call loads the network.
        if sum(map(len, images)) >= _LPIPS_AT_ONCE or number == len(scored):
            distances = lpips_per_image(torch.cat(images), torch.cat(originals))
            if distances is None:
                return None
            known.append(distances)
            images, originals = [], []
    return float(torch.cat(known).mean()) if known else None
