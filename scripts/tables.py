# SPDX-License-Identifier: Apache-2.0
"""Measure the tables under results/: most cells are one `recon fit` each, with one row per noise draw.

    python scripts/tables.py headline --root DIR            # writes results/headline.csv
    python scripts/tables.py --help                         # the tables there are

DIR is any folder of photographs; the committed tables were made with 64 ImageNet photographs in folders named after
WordNet ids. Finished cells are kept in --runs, where tables share them, and not measured again, so that a stopped
measurement goes on where it was. `--jobs 2` measures two cells at once; give each its core by OMP_NUM_THREADS=1.
"""

import argparse
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path

from measuring import Cell, measured, rows_of, write_table
from peer_variants import IDENTITY, OTHERS, PAPER, PUBLISHED, SPARSE, seed_paper

from lightning_recon.privacy.correlated_noise import sensitivity

RESULTS = Path(__file__).parent.parent / "results"

PHOTOGRAPHS = "--data.masks lightning_recon.data.NoMasks"
GRABCUT = "--data.masks lightning_recon.data.GrabCutMasks"
CONVNET = "--model.client.network convnet"
SAMPLE = "--model.client.privacy.granularity sample"
Z, ROUNDS = "--model.client.privacy.noise_multiplier", "--model.client.privacy.rounds"
CLOSED_FORM = "--trainer.max_steps 0"

LINEAR, DIGITAL = "--config attack/linear.yaml", "--config attack/digital.yaml"
FEEDBACK = "--config attack/feedback.yaml"
OURS = ("", "water_filling")  # no other attack is named


def fixed(number: float) -> str:
    """A number without an exponent, which every YAML reader parses as a number."""
    return f"{number:.12f}".rstrip("0").rstrip(".")


def cell(*options: str, z: float, attack: str | None = None, pictures: str = "root", **columns: object) -> Cell:
    """A cell with five noise draws: the paper's setting with further options; quickstart's for the bundled images.

    Where no attack is named it is our linear code.
    """
    config = "--config quickstart.yaml" if pictures == "bundled" else "--config imagenet.yaml"
    code = "" if any("attack/" in option for option in options) else LINEAR
    line = " ".join((config, code, *options, "--model.draws 5", f"{Z} {fixed(z)}"))
    return Cell(" ".join(line.split()), attack, pictures, tuple(columns.items()))


def small(batch: int, clients: int, *options: str) -> str:
    """64 x 64 images and a small network."""
    shape = f"{CONVNET} --data.image_size 64 --data.batch_size {batch} --data.clients {clients}"
    return " ".join((shape, *options))


def headline() -> Iterator[Cell]:
    """The paper's setting at nominal epsilon 10 and 2.5: its structure and ours, with the same victims and privacy."""
    for z in (2e-4, 8e-4):
        for attack, name in (*seed_paper(1, 2, 4), OURS):
            yield cell(attack, GRABCUT, z=z, attack=name)


def seed_sweep() -> Iterator[Cell]:
    """The paper's setting over its nominal epsilon at C = 10, and, without refinement, over C at epsilon 10."""
    for epsilon in (2.5, 5, 10, 20):
        for attack, name in (*seed_paper(1, 2, 4), OURS):
            yield cell(attack, GRABCUT, z=2 / (1000 * epsilon), attack=name)
    for bound in ("2.5", "5.0", "20.0"):
        for attack, name in (*seed_paper(1)[:1], *seed_paper(2)[:1], OURS):
            yield cell(
                attack, GRABCUT, f"--model.client.privacy.max_grad_norm {bound}", CLOSED_FORM, z=2e-4, attack=name
            )


def peers() -> Iterator[Cell]:
    """Published structures and ours under the paper's protection, in its setting."""
    for z in (2e-5, 2e-4, 8e-4):
        for attack, name in (*OTHERS, *seed_paper(1, 2, 4), OURS):
            yield cell(attack, GRABCUT, z=z, attack=name)


def peers_bundled() -> Iterator[Cell]:
    """The same on the bundled photographs."""
    for z in (2e-4, 8e-4):
        for attack, name in (*OTHERS, *seed_paper(1, 2, 4), OURS):
            yield cell(attack, z=z, attack=name, pictures="bundled")


def curve() -> Iterator[Cell]:
    """Every attack over the noise at one setting: 64 x 64 photographs, 16 per client, one clip for the update."""
    setting = small(16, 2, PHOTOGRAPHS)
    for z in (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2):
        for attack, name in (*OTHERS, *seed_paper(1, 2, 4, 8), OURS):
            yield cell(setting, attack, z=z, attack=name)
        yield cell(setting, FEEDBACK, f"{ROUNDS} 16 {CLOSED_FORM} --model.record false", z=z)


def sample64() -> Iterator[Cell]:
    """One image per client at 64 x 64, each sample clipped: plain pixels, the published structures and ours."""
    setting = small(1, 64, PHOTOGRAPHS, SAMPLE)
    few = "--model.structure.units 64"  # which need not separate victims here
    for z in (1, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001):
        yield cell(IDENTITY, setting, z=z, attack="identity")
        yield cell(f"{SPARSE} {few}", setting, z=z, attack="robbing_the_fed sparse")
        yield cell(f"{PAPER} {PUBLISHED} {few}", setting, z=z, attack="paper published")
        for attack, name in seed_paper(1, 2, 4, 8):
            yield cell(f"{attack} {few}", setting, z=z, attack=name)
        yield cell(setting, z=z, attack=OURS[1])


def moments() -> Iterator[Cell]:
    """The seed paper's structure with and without its moment refinement, at the noise where it finds something."""
    refined = (
        "--model.structure.moments true --model.optimizer torch.optim.Adam --model.optimizer.lr 0.005 "
        "--trainer.max_steps 2000"
    )
    setting = small(16, 1, PHOTOGRAPHS)
    for z in (1e-5, 1e-4, 1e-3):
        for attack, name in (*seed_paper(1), *seed_paper(2)[1:]):
            yield cell(setting, attack, z=z, attack=name, moments="not leaked")
            yield cell(setting, attack, refined, z=z, attack=name, moments="leaked and matched")


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


def aggregation() -> Iterator[Cell]:
    """Secure aggregation: sums of 1, 4 and 16 clients with 4 images each, with local and distributed noise."""
    for granularity, z in (("update", 0.001), ("sample", 0.03)):
        clip = f"--model.client.privacy.granularity {granularity}"
        for count, share in ((1, "full"), (4, "full"), (16, "full"), (4, "shared"), (16, "shared")):
            options = f"--model.client.aggregated {count} --model.client.noise_share {share} {CLOSED_FORM}"
            yield cell(small(4, 16, PHOTOGRAPHS, clip), options, z=z, aggregated=count, noise_share=share)


def ablation() -> Iterator[Cell]:
    """Ablation of each part: the paper's setting at 64 x 64, and one image per client at higher noise."""
    without = (
        ("", "water_filling"),
        ("--model.structure.cancel false", "without cancelling pairs"),
        ("--model.structure.units 1 --model.structure.directions 1", "without gating"),
        ("--model.structure.power_allocation flat", "without water-filling"),
        ("--model.structure.pilot_power 0.0", "without pilot"),
        ("--model.structure.nulls 0", "without nulls"),
        (CLOSED_FORM, "without refinement"),
    )
    for setting, z in (
        (small(16, 2, GRABCUT, "--data.masks.work_size 192"), 2e-4),
        (small(16, 2, GRABCUT, "--data.masks.work_size 192"), 2e-3),
        (small(1, 16, PHOTOGRAPHS, SAMPLE), 0.03),
    ):
        for options, name in without:
            yield cell(setting, options, z=z, attack=name)


def rounds() -> Iterator[Cell]:
    """The same images over 1 to 300 rounds: averaging and feedback; batches, and clients that miss rounds."""
    for z in (0.1, 0.6, 1):
        for count in (1, 4, 16, 64, 300):
            # Fewer images for the largest numbers of rounds, since every round needs a new gradient.
            yield from _both(small(1, 8 if count == 300 and z != 0.6 else 16, SAMPLE), count, z)
    yield from _both(small(16, 1, SAMPLE), 64, 0.1)
    yield from _both(small(16, 1), 64, 0.02)
    for share in ("0.9", "0.5"):
        missing = f"--model.client.participation {share}"
        yield from _both(small(1, 8, SAMPLE, missing), 64, 0.1, participation=share)


def _both(setting: str, count: int, z: float, **columns: object) -> Iterator[Cell]:
    """Averaging and feedback on the same images, in closed form."""
    common = f"{setting} {ROUNDS} {count} --model.record false {CLOSED_FORM}"
    yield cell(common, PHOTOGRAPHS, z=z, **columns)
    yield cell(common, FEEDBACK, PHOTOGRAPHS, z=z, **columns)


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


def networks() -> Iterator[Cell]:
    """Target networks, untrained and pretrained, at 224 x 224: one clip with 16 images, per-sample clipping with 4."""
    for name in ("resnet18", "resnet50", "vit_b_16", "convnext_tiny"):
        yield cell(f"--model.client.network {name}", GRABCUT, CLOSED_FORM, z=2e-4)
        yield cell(f"--model.client.network {name}", PHOTOGRAPHS, SAMPLE, FOUR, CLOSED_FORM, z=2e-3)
    for mode in ("train", "eval"):
        yield cell(PRETRAINED, f"--model.client.batch_norm {mode}", GRABCUT, CLOSED_FORM, z=2e-4, pictures="labelled")
    yield cell(FROZEN, PHOTOGRAPHS, SAMPLE, FOUR, CLOSED_FORM, z=2e-3, pictures="labelled")


FOUR = "--data.batch_size 4 --data.clients 4"
PRETRAINED = "--model.client.network pretrained.EfficientNetLite0 --model.client.normalization imagenet"
FROZEN = "--model.client.network pretrained.FoldedEfficientNetLite0 --model.client.normalization imagenet"


def voices() -> Iterator[Cell]:
    """Head weights for a pretrained network with confident predictions: 64 photographs, 16 per client, one clip."""
    for mode in ("eval", "train"):
        for kind in ("fixed", "balanced", "flattened"):
            setting = f"{PRETRAINED} --model.client.batch_norm {mode} --data.clients 4 {PHOTOGRAPHS}"
            structure = f"--model.structure.head_weights {kind} {CLOSED_FORM}"
            yield cell(setting, structure, z=2e-4, pictures="labelled", voices=kind, batch_norm=mode)


def denoisers() -> Iterator[Cell]:
    """Refinement at 224 x 224 by our denoiser and by FFDNet, where FFDNET names the file of its weights."""
    setting = f"{PHOTOGRAPHS} {SAMPLE} {CONVNET} --data.batch_size 1 --data.clients 8 --model.record false"
    for z in (0.03, 0.01, 0.003):
        yield cell(setting, z=z, denoiser="ours")
        if "FFDNET" in os.environ:
            yield cell(setting, "--model.denoiser ffdnet.FFDNet", z=z, denoiser="FFDNet")


def honest() -> Iterator[Cell]:
    """An honest server's attacks over the noise, 300 evaluations each, and our structure; batch, FedAvg, ResNet-18."""
    one = f"--data.batch_size 1 --data.clients 10 {SAMPLE} {ALIKE}"
    budget = "--model.chunk_size 10 --trainer.max_steps 300"
    for z in (0, 1e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1):
        yield cell(CONVNET, one, PHOTOGRAPHS, z=z)
        draws = "--model.draws 5" if z else ""
        for name in ("likelihood", "inverting_gradients"):
            yield searched(name, CONVNET, one, budget, draws, z=z)
            if z == 1e-3:
                yield searched(name, CONVNET, one, budget, HALF, z=z, precision="bf16-mixed")
        if z in (0, 1e-3, 1e-2):
            yield searched("inverting_gradients_modern", CONVNET, one, budget, z=z)
            yield searched("see_through_gradients", CONVNET, one, budget, "--model.restarts 2", z=z)
            for name in ("dlg", "idlg") if z < 1e-2 else ("dlg",):
                yield searched(name, CONVNET, one, "--trainer.max_steps 15", z=z)  # each step evaluates 20 times
    several = f"{CONVNET} --data.batch_size 4 --data.clients 2 {ALIKE} --model.chunk_size 2 --trainer.max_steps 300"
    averaged = f"{several} --model.client.local.steps 4 --model.client.local.update gradient"
    for name in ("likelihood", "inverting_gradients"):
        yield searched(name, several, SAMPLE, z=0, client="batch")
        yield searched(name, averaged, z=0, client="FedAvg")
    yield searched("likelihood", averaged, "--model.labels oracle", z=0, client="FedAvg")
    rough = f"{RESNET} --data.batch_size 1 --data.clients 10 {ALIKE}"
    for name, options in (("likelihood", FIRST_ORDER), ("inverting_gradients", "")):
        yield searched(name, rough, options, "--trainer.max_steps 100", z=0, client="ResNet-18")


def searched(name: str, *options: str, z: float, **columns: object) -> Cell:
    """An honest server's attack, 32 x 32, C = 1; one noise draw for each client, unless options ask for more."""
    presets = f"--config imagenet.yaml --config attack/{name}.yaml"
    line = " ".join((presets, *options, PHOTOGRAPHS, f"{Z} {fixed(z)}"))
    return Cell(" ".join(line.split()), columns=tuple(columns.items()))


# As small as images of published comparisons, 64 classes, and a clip that every gradient of these networks exceeds.
ALIKE = (
    "--data.image_size 32 --data.num_classes 64 --model.client.num_classes 64 "
    "--model.client.privacy.max_grad_norm 1.0 --model.record false"
)
HALF = "--trainer.precision bf16-mixed"
RESNET = "--model.client.network resnet18 --model.client.batch_norm eval"
FIRST_ORDER = (
    "--model.basis spectrum --model.schedule cosine --model.optimizer torch.optim.Adam --model.optimizer.lr 0.2"
)


def labels() -> Iterator[Cell]:
    """Labels recovered from the last layer's gradient, 1 to 16 images per client, both granularities."""
    for granularity in ("sample", "update"):
        for batch, clients in ((1, 64), (4, 16), (16, 4)):
            clip = f"--model.client.privacy.granularity {granularity} --model.draws 5"
            setting = f"{CONVNET} --data.batch_size {batch} --data.clients {clients} {ALIKE} {clip}"
            for z in (0, 1e-3, 1e-2, 3e-2, 1e-1, 0.3):
                yield searched("likelihood", setting, CLOSED_FORM, z=z)


def digital() -> Iterator[Cell]:
    """Digital codes and the linear code, in closed form: 64 x 64, one image clipped alone, and batches."""
    for z in (0.1, 0.05, 0.03, 0.02, 0.01, 0.005, 0.003, 0.001):
        yield from _coded(small(1, 64, PHOTOGRAPHS, SAMPLE), z)
    for z in (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 2.5e-3, 3e-3, 1e-2):
        yield from _coded(small(16, 2, PHOTOGRAPHS), z)


def digital_paper() -> Iterator[Cell]:
    """The same in the paper's setting, with 64 photographs."""
    for z in (2e-4, 8e-4):
        yield from _coded(f"{GRABCUT} --data.clients 4", z)


def digital_rounds() -> Iterator[Cell]:
    """The same, and feedback, over many rounds of one image clipped alone."""
    for z in (0.1, 0.03, 0.02):
        common = f"{small(1, 16, SAMPLE)} {ROUNDS} 64"
        yield from _coded(f"{common} {PHOTOGRAPHS}", z)
        yield cell(FEEDBACK, common, PHOTOGRAPHS, CLOSED_FORM, "--model.record false", z=z)


def _coded(setting: str, z: float) -> Iterator[Cell]:
    """The digital and the linear code for the same clients."""
    for attack in (DIGITAL, LINEAR):
        yield cell(attack, setting, CLOSED_FORM, "--model.record false", z=z)


def margins() -> Iterator[Cell]:
    """Digital codes designed for other than the actual noise, and with different margins; closed form."""
    one, batch = small(1, 16, PHOTOGRAPHS, SAMPLE), small(16, 2, PHOTOGRAPHS)
    for setting, z in ((one, 0.01), (one, 0.005), (batch, 0.001)):
        common = f"{DIGITAL} {setting} {CLOSED_FORM} --model.record false"
        for factor in (0.5, 0.8, 0.9, 0.95, 0.98, 1, 1.02, 1.05, 1.1, 1.25, 2):
            assumed = f"--model.structure.assumed_noise {fixed(factor * z)}"
            yield cell(common, assumed, z=z, assumed_over_true=factor)
        for margin in ("0.0", "0.1", "0.4", "0.8"):
            yield cell(common, f"--model.structure.margin_db {margin}", z=z, margin_db=margin)


def clients() -> Iterator[Cell]:
    """Local training of 16 images a client at 64 x 64: SGD over steps and epochs, one clip of the weight change."""
    setting = f"--data.image_size 64 --data.batch_size 16 --data.clients 2 {PHOTOGRAPHS} {CLOSED_FORM}"
    setting += " --model.client.privacy.max_grad_norm 1.0 --model.record false"
    sgd = "--model.client.local.update delta --model.client.local.optimizer torch.optim.SGD"
    trainings = (
        ("one step", 1, ""),
        ("SGD, 4 steps", 1, f"--model.client.local.batch_size 4 {sgd} --model.client.local.optimizer.lr 0.01"),
        ("SGD, 4 steps", 3, f"--model.client.local.batch_size 4 {sgd} --model.client.local.optimizer.lr 0.01"),
        ("SGD, 16 steps", 5, f"--model.client.local.batch_size 1 {sgd} --model.client.local.optimizer.lr 0.1"),
        (
            "momentum 0.9, 4 steps",
            1,
            f"--model.client.local.batch_size 4 {sgd} --model.client.local.optimizer.lr 0.01 "
            "--model.client.local.optimizer.momentum 0.9",
        ),
    )
    for network, pictures in (("--model.client.network resnet18", "root"), (PRETRAINED, "labelled")):
        for training, epochs, options in trainings:
            if pictures == "labelled" and (training, epochs) not in (("one step", 1), ("SGD, 4 steps", 3)):
                continue
            passes = f"--model.client.local.epochs {epochs}" if options else ""
            for attack, code in ((LINEAR, "linear"), (DIGITAL, "digital")):
                yield cell(
                    attack, network, setting, options, passes, z=3e-4, pictures=pictures, training=training,
                    epochs=epochs, code=code,
                )  # fmt: skip
    for name in ("Adam", "AdamW"):
        optimizer = f"--model.client.local.optimizer torch.optim.{name} --model.client.local.optimizer.lr 0.001"
        for training, epochs, batches in ((name, 1, ""), (f"{name}, 4 steps", 2, "--model.client.local.batch_size 4")):
            passes = f"{batches} --model.client.local.epochs {epochs}" if batches else ""
            for z in (1e-4, 3e-4, 1e-3):
                yield cell(
                    DIGITAL, "--model.client.network resnet18", setting, optimizer, passes, z=z, training=training,
                    epochs=epochs, code="digital",
                )  # fmt: skip


def compression() -> Iterator[Cell]:
    """Updates of 16 images a client at 64 x 64 that are compressed after the noise: one step, one clip."""
    setting = f"--data.image_size 64 --data.batch_size 16 --data.clients 2 {PHOTOGRAPHS} {CLOSED_FORM}"
    setting += " --model.client.network resnet18 --model.client.privacy.max_grad_norm 1.0 --model.record false"
    for method, share in (
        ("none", None), ("float16", None), ("int8", None), ("qsgd", None), ("top_k", 0.1), ("top_k", 0.01),
        ("random_k", 0.1), ("sign", None),
    ):  # fmt: skip
        options = "" if method == "none" else f"--model.client.compression.method {method}"
        options += "" if share is None else f" --model.client.compression.share {share}"
        for attack, code in ((LINEAR, "linear"), (DIGITAL, "digital")):
            kept = 1.0 if share is None else share
            yield cell(attack, setting, options, z=2e-4, method=method, share=kept, code=code)


def mechanisms() -> Iterator[Cell]:
    """Mechanisms beside Gaussian noise at equal variance: sums of integers, and 16 rounds; 64 x 64, closed form."""
    quantization = "--model.client.quantization"
    fine = f"{quantization}.clipping_range 16.0 {quantization}.quantization_range 1048576"
    for code in (LINEAR, DIGITAL):
        sums = f"{code} {small(4, 4, PHOTOGRAPHS, SAMPLE)} --model.client.aggregated 4 {CLOSED_FORM}"
        for mechanism, options in (
            ("gaussian", ""),
            ("gaussian, SecAgg+", f"{quantization}.clipping_range 8.0"),
            ("gaussian, SecAgg+, 1 of 5 drops out", f"{quantization}.clipping_range 8.0 {DROPOUT}"),
            ("gaussian, sums of 8 bits", f"{quantization}.clipping_range 2.0 {EIGHT_BITS}"),
            ("skellam", f"--model.client.privacy.mechanism skellam {fine}"),
            ("discrete_gaussian", f"--model.client.privacy.mechanism discrete_gaussian {fine}"),
        ):
            yield cell(sums, options, z=0.003, mechanism=mechanism, aggregated=4)
    common = f"{small(1, 16, PHOTOGRAPHS, SAMPLE)} {ROUNDS} 16 {CLOSED_FORM} --model.record false"
    adaptive = "--model.client.privacy.adaptive_clip.clipbound_learning_rate 0.2"
    for attack in (LINEAR, FEEDBACK):
        yield cell(attack, common, z=0.1, mechanism="gaussian")
        yield cell(attack, common, adaptive, z=0.1, mechanism="gaussian, adaptive clip")
    for bands in (4, 16):
        # The z of correlated noise with the epsilon, and so the variance after whitening, of independent noise at 0.1.
        z = 0.1 * sensitivity(bands, 16) / 4
        options = f"--model.client.privacy.noise_bands {bands}"
        yield cell(common, options, z=z, mechanism=f"gaussian, correlated over {bands}")


DROPOUT = "--model.client.client_dropout 0.2"
EIGHT_BITS = "--model.client.quantization.quantization_range 256 --model.client.quantization.modulus_range 256"


CELLS: dict[str, Callable[[], Iterator[Cell]]] = {
    table.__name__: table
    for table in (
        headline, seed_sweep, peers, peers_bundled, curve, sample64, moments, expectations, batch_size, aggregation,
        ablation, rounds, mismatch, per_layer, networks, voices, denoisers, honest, labels, digital, digital_paper,
        digital_rounds, margins, clients, compression, mechanisms,
    )
}  # fmt: skip
# Tables whose cells are not attacks: separate scripts make their rows.
SCRIPTS = {
    "noise_law": "The noise law, checked: rows that hold one victim, before any prior, filter or clamp.",
    "encoding_cost": "Seconds that a structure's layer takes at the client, and its upload.",
    "dp_accuracy": "The target's accuracy under DP-SGD against the share of attacked rounds.",
}


def main() -> None:
    """Measure one table."""
    about = {name: table.__doc__ for name, table in CELLS.items()} | SCRIPTS
    lines = "".join(f"\n  {name}: {text}" for name, text in about.items())
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, epilog=f"tables:{lines}", formatter_class=formatter)
    parser.add_argument("table", choices=[*CELLS, *SCRIPTS], metavar="TABLE", help="one of the tables below")
    parser.add_argument("--root", type=Path, required=True, help="folder of photographs")
    parser.add_argument("--gallery", type=Path, help="folder of further photographs, for identification")
    parser.add_argument("--runs", type=Path, default=Path("runs/tables"), help="where the runs are kept")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where the table is written")
    parser.add_argument("--jobs", type=int, default=1, help="cells that are measured at once")
    chosen = parser.parse_args()
    path = chosen.results / f"{chosen.table}.csv"
    if chosen.table in SCRIPTS:
        rows = list(import_module(chosen.table).rows(chosen.root))
    else:
        cells = list(CELLS[chosen.table]())
        measure = partial(measured, root=chosen.root, runs=chosen.runs, gallery=chosen.gallery)
        with ProcessPoolExecutor(chosen.jobs, get_context("spawn")) as pool:
            folders = list(pool.map(measure, cells))
        rows = [row for place, folder in zip(cells, folders, strict=True) for row in rows_of(folder, place)]
    write_table(path, f"python scripts/tables.py {chosen.table} --root DIR", rows)
    print(path)


if __name__ == "__main__":
    main()
