# SPDX-License-Identifier: Apache-2.0
"""The cells of tables about what clients do: their networks, images, local training, compression and protection."""

from collections.abc import Iterator

from cells import (
    CLOSED_FORM,
    CONVNET,
    DIGITAL,
    FEEDBACK,
    GRABCUT,
    LINEAR,
    PHOTOGRAPHS,
    PRETRAINED,
    ROUNDS,
    SAMPLE,
    cell,
    fixed,
    small,
)
from measuring import Cell

FOUR = "--data.batch_size 4 --data.clients 4"
FROZEN = "--model.client.network pretrained.FoldedEfficientNetLite0 --model.client.normalization imagenet"


def expectations() -> Iterator[Cell]:
    """Flags of the data alone, against every setting of what the server expects: closed form, linear code."""
    for masks, kind in ((PHOTOGRAPHS, "photographs"), (f"{GRABCUT} --data.masks.work_size 192", "subjects")):
        for size, batch, clients, z in ((32, 4, 8, 0.003), (64, 1, 32, 0.03), (64, 4, 8, 0.003), (96, 16, 2, 0.003)):
            shape = f"{CONVNET} --data.image_size {size} --data.batch_size {batch} --data.clients {clients} {SAMPLE}"
            for flag in ("null", "true", "false"):
                own = "" if flag == "null" else f"--model.structure.subjects {flag}"
                yield cell(shape, masks, own, CLOSED_FORM, z=z, images=kind, server=flag)
    for actual in ("8", "16", "4"):
        other = "" if actual == "8" else f"--data.actual_batch_sizes [{actual}]"
        setting = f"{CONVNET} --data.image_size 64 --data.batch_size 8 --data.clients 4 {PHOTOGRAPHS} {SAMPLE}"
        yield cell(setting, other, CLOSED_FORM, z=0.003, images="photographs", server="null", actual_batch=actual)


def batch_size() -> Iterator[Cell]:
    """Isolation and quality in closed form for 1 to 64 images per client, both clips, at low and at medium noise."""
    for granularity in ("sample", "update"):
        for z in (0.001, 0.01):
            for batch in (1, 2, 4, 8, 16, 32, 64):
                clip = f"--model.client.privacy.granularity {granularity}"
                yield cell(small(batch, max(1, 32 // batch), PHOTOGRAPHS, clip), CLOSED_FORM, z=z)


def networks() -> Iterator[Cell]:
    """Target networks, untrained and pretrained, at 224 x 224: one clip with 16 images, per-sample clipping with 4."""
    for name in ("resnet18", "resnet50", "vit_b_16", "convnext_tiny"):
        yield cell(f"--model.client.network {name}", GRABCUT, CLOSED_FORM, z=2e-4)
        yield cell(f"--model.client.network {name}", PHOTOGRAPHS, SAMPLE, FOUR, CLOSED_FORM, z=2e-3)
    for mode in ("train", "eval"):
        yield cell(PRETRAINED, f"--model.client.batch_norm {mode}", GRABCUT, CLOSED_FORM, z=2e-4, pictures="labelled")
    yield cell(FROZEN, PHOTOGRAPHS, SAMPLE, FOUR, CLOSED_FORM, z=2e-3, pictures="labelled")


def voices() -> Iterator[Cell]:
    """Head weights for a pretrained network with confident predictions: 64 photographs, 16 per client, one clip."""
    for mode in ("eval", "train"):
        for kind in ("fixed", "balanced", "flattened"):
            setting = f"{PRETRAINED} --model.client.batch_norm {mode} --data.clients 4 {PHOTOGRAPHS}"
            structure = f"--model.structure.head_weights {kind} {CLOSED_FORM}"
            yield cell(setting, structure, z=2e-4, pictures="labelled", voices=kind, batch_norm=mode)


def clients() -> Iterator[Cell]:
    """Local training of 16 images a client at 64 x 64, one clip of the weight change, three noise draws."""
    sgd = "--model.client.local.update delta --model.client.local.optimizer torch.optim.SGD"
    slow = f"--model.client.local.batch_size 4 {sgd} --model.client.local.optimizer.lr 0.01"
    fast = f"--model.client.local.batch_size 1 {sgd} --model.client.local.optimizer.lr 0.1"
    momentum = f"{slow} --model.client.local.optimizer.momentum 0.9"
    one, several = ("one step", 1, ""), ("SGD, 4 steps", 3, slow)
    others = (("SGD, 4 steps", 1, slow), ("SGD, 16 steps", 5, fast), ("momentum 0.9, 4 steps", 1, momentum))
    for network, trainings in ((RESNET, (one, several, *others)), (PRETRAINED, (one, several))):
        for training, epochs, options in trainings:
            for attack, code in ((LINEAR, "linear"), (DIGITAL, "digital")):
                yield _trained(network, f"{attack} {options}", training, epochs, 3e-4, code)
    for name in ("Adam", "AdamW"):
        optimizer = (
            f"{DIGITAL} --model.client.local.optimizer torch.optim.{name} --model.client.local.optimizer.lr 0.001"
        )
        for z in (1e-4, 3e-4, 1e-3):
            for network in (RESNET, PRETRAINED) if name == "Adam" and z < 1e-3 else (RESNET,):
                yield _trained(network, optimizer, name, 1, z, "digital")
                batches = "--model.client.local.batch_size 4"
                yield _trained(network, f"{optimizer} {batches}", f"{name}, 4 steps", 2, z, "digital")


RESNET = "--model.client.network resnet18"
TRAINED = (
    f"--data.image_size 64 --data.batch_size 16 --data.clients 2 {PHOTOGRAPHS} {CLOSED_FORM} "
    "--model.client.privacy.max_grad_norm 1.0 --model.record false"
)


def _trained(network: str, options: str, training: str, epochs: int, z: float, code: str) -> Cell:
    """A cell of the table of local training."""
    passes = f"--model.client.local.epochs {epochs}" if epochs > 1 else ""
    pictures = "labelled" if network == PRETRAINED else "root"
    columns = {"training": training, "epochs": epochs, "code": code}
    return cell(options, network, TRAINED, passes, z=z, pictures=pictures, draws=3, **columns)


def compression() -> Iterator[Cell]:
    """Updates of 16 images a client at 64 x 64 that are compressed after the noise: one step, three noise draws."""
    for method, share in (
        ("none", None), ("float16", None), ("int8", None), ("qsgd", None), ("top_k", 0.1), ("top_k", 0.01),
        ("random_k", 0.1), ("sign", None),
    ):  # fmt: skip
        options = "" if method == "none" else f"--model.client.compression.method {method}"
        options += "" if share is None else f" --model.client.compression.share {share}"
        for attack, code in ((LINEAR, "linear"), (DIGITAL, "digital")):
            kept = 1.0 if share is None else share
            yield cell(attack, RESNET, TRAINED, options, z=2e-4, draws=3, method=method, share=kept, code=code)


def aggregation() -> Iterator[Cell]:
    """Secure aggregation: sums of 1, 4 and 16 clients with 4 images each, with local and distributed noise."""
    for granularity, z in (("update", 0.001), ("sample", 0.03)):
        clip = f"--model.client.privacy.granularity {granularity}"
        for count, share in ((1, "full"), (4, "full"), (16, "full"), (4, "shared"), (16, "shared")):
            options = f"--model.client.aggregated {count} --model.client.noise_share {share} {CLOSED_FORM}"
            yield cell(small(4, 16, PHOTOGRAPHS, clip), options, z=z, aggregated=count, noise_share=share)


def rounds() -> Iterator[Cell]:
    """The same images over 1 to 300 rounds: averaging and feedback; batches, and clients that miss rounds."""
    for z in (0.1, 0.6, 1):
        for count in (1, 4, 16, 64, 300):
            # Fewer images for the largest numbers of rounds, since every round needs a new gradient.
            yield from _both(small(1, 8 if count == 300 and z != 0.6 else 16, SAMPLE), count, z)
    yield from _both(small(16, 1, SAMPLE), 64, 0.1)
    yield from _both(small(16, 1), 64, 0.02)
    for share in ("0.9", "0.5", "0.25"):
        missing = f"--model.client.participation {share}"
        yield from _both(small(1, 8, SAMPLE, missing), 64, 0.1, participation=share)


def _both(setting: str, count: int, z: float, **columns: object) -> Iterator[Cell]:
    """Averaging and feedback on the same images, in closed form."""
    common = f"{setting} {ROUNDS} {count} --model.record false {CLOSED_FORM}"
    yield cell(common, PHOTOGRAPHS, z=z, **columns)
    yield cell(common, FEEDBACK, PHOTOGRAPHS, z=z, **columns)


def per_layer() -> Iterator[Cell]:
    """Per-tensor clipping against one clip: with and without spreading over many tensors."""
    clips = (
        ("", "one clip"),
        ("--model.client.privacy.per_layer true", "per layer"),
        ("--model.client.privacy.per_layer true --model.structure.spread false", "per layer, not spread"),
    )
    for setting, z in (
        (small(1, 16, PHOTOGRAPHS, SAMPLE), 0.1),
        (small(1, 16, PHOTOGRAPHS, SAMPLE), 0.01),
        (small(16, 2, PHOTOGRAPHS), 0.001),
    ):
        for options, name in clips:
            yield cell(setting, options, CLOSED_FORM, z=z, clip=name)


def mismatch() -> Iterator[Cell]:
    """A structure designed for a quarter to four times the actual noise; closed form."""
    for setting, z in (
        (small(1, 32, PHOTOGRAPHS, SAMPLE), 0.1),
        (small(1, 32, PHOTOGRAPHS, SAMPLE), 0.01),
        (small(16, 2, PHOTOGRAPHS), 0.001),
    ):
        for factor in (0.25, 0.5, 1, 2, 4):
            assumed = f"--model.structure.assumed_noise {fixed(factor * z)}"
            yield cell(setting, assumed, CLOSED_FORM, z=z, assumed_over_true=factor)
