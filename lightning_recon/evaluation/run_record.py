# SPDX-License-Identifier: Apache-2.0
"""The record of a run, `results.json`: every victim of every draw counts, and what cannot be computed is null."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lightning_recon import __version__
from lightning_recon.evaluation.recognition import Recognition
from lightning_recon.evaluation.results import Record
from lightning_recon.evaluation.scoring import Scored, VictimScore, entries_without_truth
from lightning_recon.evaluation.uncertainty import bootstrap_interval
from lightning_recon.files.faults import readable
from lightning_recon.files.renamed_fields import record_with_both_names
from lightning_recon.files.results_schema import RESULTS
from lightning_recon.files.serialization import finite, parse_json, read_text, validated, write_json
from lightning_recon.reconstruction import Reconstruction

SCHEMA_VERSION = 1
PACKAGES = ("torch", "torchvision", "lightning", "torchmetrics", "opacus")


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """Everything about a run except its victims; None where a value is not known or does not exist.

    Args:
        attack: Name of the attack.
        privacy: From `privacy_record`.
        bounds: From `bounds_record`.
        clients: How many clients are attacked.
        batch_size: Images a client, as announced.
        seconds: Wall time of the attack.
        steps: Refinement steps; one step moves the optimised images of all victims once.
        structure_bytes: What the server's structure adds to one client's upload in one round.
        config: File in the run folder that repeats the run.
        oracles: Oracle information that the attack used; empty for an honest one.
        seed: Seed of the client's untrained weights and dropout; None if another program trained.
        public_statistics: Source of the attacker's prior knowledge; None if it used none.
        denoiser: From `denoiser_record`; None where no denoiser refined the images.
        subject_fraction: Share of the true images that their subjects cover.
        batchnorm: Mode of the target's batch normalisation; None if it has none.
        participation: Probability with which a client answered a round on the batch that is scored.
        detached_logits: Whether the server shipped the network's logits detached, so that the network's own gradient is
            zero; None if it added nothing to the network.
        payload_alarms: Which checks of the shipped model would have warned a client; None if it was not checked.
        baselines: From `baselines_record`.
        label_accuracy: Share of the true labels that the attacker recovered, a mean over updates and draws; None if
            it recovers none.
        channel_code: Name of the channel code that files were sent with; None if nothing was sent digitally.
        structure_share: Share of the clipping budget that the structure had, as the server estimates it; a mean over
            updates and draws; None where it cannot be estimated.
        low_shares: In how many updates, of all draws, it is significantly below 0.9; None likewise.
        recognition: Agreement of a classifier's predictions; None without a classifier.
        recognition_of_mean_image: The same for the public mean image instead of each reconstruction.
        gallery_size: Number of images among which originals were searched; None if they were not.
        identification_chance: Probability with which a guess without the releases identifies a victim; None likewise.
        identification_bound: Bound on the probability with which any attack identifies a victim among them; None where
            no bound is known.
        lpips_mean: Mean learned perceptual distance; None without the weights of its network.
        capture: Of a captured update: its source, and what its program declared.
        skipped_pictures: Images that could not be read.
        victims: Number of all clients' images; None where it is as announced, or not known.
        mismatch: What updates show that contradicts the announced training, and what of the training the structure was
            not designed for; None where there is nothing of this.
        local_training: The announced local training; None if it is not known.
        compression: The announced compression; None if there is none.
        quantization: The announced quantization of secure aggregation; None for sums of real numbers.
        client_dropout: Probability with which a client of a sum drops out of a round; None if it is not known.
    """

    attack: str
    privacy: Record
    bounds: Record
    clients: int
    batch_size: int
    seconds: float
    steps: int
    structure_bytes: int
    config: str = "config.yaml"
    oracles: Sequence[str] = ()
    seed: int | None = None
    public_statistics: str | None = None
    denoiser: Record | None = None
    subject_fraction: float | None = None
    batchnorm: str | None = None
    participation: float | None = None
    detached_logits: bool | None = None
    payload_alarms: Sequence[str] | None = None
    baselines: Record | None = None
    label_accuracy: float | None = None
    channel_code: str | None = None
    structure_share: float | None = None
    low_shares: int | None = None
    lpips_mean: float | None = None
    recognition: Recognition | None = None
    recognition_of_mean_image: Recognition | None = None
    gallery_size: int | None = None
    identification_chance: float | None = None
    identification_bound: float | None = None
    capture: Record | None = None
    skipped_pictures: Sequence[object] = ()
    victims: int | None = None
    mismatch: Record | None = None
    local_training: Record | None = None
    compression: Record | None = None
    quantization: Record | None = None
    client_dropout: float | None = None


def results_record(
    run: RunRecord, found: Sequence[Reconstruction], scored: Sequence[Scored], images: Sequence[str]
) -> Record:
    """The content of `results.json`.

    Args:
        run: Everything but the victims.
        found: Reconstructions of every client and draw, at least one.
        scored: The same after matching; empty where the true images are not known.
        images: File of each image, relative to the run folder, in the order of `scored`, or else of `found`.

    Returns:
        A record for `write_results`. `victims` has an entry for each victim and draw, or without the true images for
        each reconstruction, with None in place of scores.
    """
    victims = [asdict(victim) for one in scored for victim in one.victims]
    if not scored:
        victims = [entry for one in found for entry in entries_without_truth(one)]
    record: Record = {
        "schema_version": SCHEMA_VERSION,
        "attack": run.attack,
        "config": run.config,
        "versions": {"lightning_recon": __version__} | {package: version(package) for package in PACKAGES},
        "seed": run.seed,
        "privacy": run.privacy,
        "oracles": list(run.oracles),
        "detached_logits": run.detached_logits,
        "public_statistics": run.public_statistics,
        "denoiser": run.denoiser,
        "subject_fraction": run.subject_fraction,
        "batchnorm": run.batchnorm,
        "participation": run.participation,
        "client_dropout": run.client_dropout,
        "local_training": run.local_training,
        "compression": run.compression,
        "quantization": run.quantization,
        "mismatch": run.mismatch,
        "payload_alarms": None if run.payload_alarms is None else list(run.payload_alarms),
        "baselines": run.baselines or {"black_psnr": None, "mean_image_psnr": None},
        "bounds": run.bounds,
        "victims": [victim | {"image": image} for victim, image in zip(victims, images, strict=True)],
        "summary": summary_record(run, found, [victim for one in scored for victim in one.victims]),
    }
    if run.capture is not None:
        record["capture"] = run.capture
    record["skipped_pictures"] = list(run.skipped_pictures)
    return record_with_both_names(record)


def summary_record(run: RunRecord, found: Sequence[Reconstruction], victims: Sequence[VictimScore]) -> Record:
    """Averages over all victims and draws.

    Args:
        run: Everything but the victims.
        found: Reconstructions of every client and draw, at least one.
        victims: Scores of every client and draw; empty where the true images are not known.

    Returns:
        The `summary` section. `victims` counts each image once; `detected`, `collided` and `false_detections` are
        means over the draws, so that they compare with it.
    """
    draws, count = len({one.draw for one in found}), run.victims or run.clients * run.batch_size
    summary: Record = {
        "clients": run.clients,
        "draws": draws,
        "victims": count,
        "detected": _mean(sum(len(one.images) for one in found if one.evident), draws),
        **_scores(victims, run.label_accuracy, _unmatched(found, victims)),
        **_identification(victims, run),
        **_files(found, count * draws, run.channel_code),
        "seconds": run.seconds,
        "steps": run.steps,
        "steps_per_second": run.steps / run.seconds if run.steps and run.seconds else None,
        "structure_bytes": run.structure_bytes,
        "structure_share": run.structure_share,
        "low_shares": run.low_shares,
    }
    return summary | {"lpips_mean": run.lpips_mean}


def write_results(path: str | Path, record: Record) -> None:
    """Write `results.json` atomically; numbers that are not finite become null.

    Args:
        path: File to write; its folder is made where it is missing.
        record: From `results_record`.

    Raises:
        UserError: The folder cannot be written.
    """
    write_json(Path(path), finite(record))


def read_results(folder: Path) -> dict[str, Any] | None:
    """Content of a run's `results.json`, with renamed fields under both names.

    Args:
        folder: The run folder.

    Returns:
        The record; None if there is none, or one of another schema version.

    Raises:
        UserError: It is damaged or altered, or no record of a run.
    """
    path = folder / "results.json"
    if not path.exists():
        return None
    with readable(path):
        content = parse_json(read_text(path), path)
        if content.get("schema_version") != SCHEMA_VERSION:
            return None
        record: Any = validated(content, RESULTS)
    return record_with_both_names(record)


def _unmatched(found: Sequence[Reconstruction], victims: Sequence[VictimScore]) -> int:
    """Number of images, over all draws, that count as evident and are beyond the number of the true ones."""
    images = sum(len(one.images) for one in found if one.evident)
    return max(0, images - sum(victim.detected for victim in victims))


def _scores(victims: Sequence[VictimScore], label_accuracy: float | None, unmatched: int) -> Record:
    """The scores of the `summary` section; None without victims, whose true images are then not known."""
    draws = sorted({victim.draw for victim in victims})
    psnr = [victim.psnr for victim in victims]
    psnr_by_image: dict[object, list[float]] = {}
    for victim in victims:
        psnr_by_image.setdefault((victim.client, victim.index), []).append(victim.psnr)
    low, high = bootstrap_interval(psnr_by_image)
    psnr_by_draw = [statistics.fmean(v.psnr for v in victims if v.draw == draw) for draw in draws]
    known = bool(victims)
    return {
        "collided": _mean(sum(victim.collision for victim in victims), len(draws)) if known else None,
        "false_detections": _mean(sum(victim.false_detection for victim in victims) + unmatched, len(draws))
        if known
        else None,
        "psnr_mean": statistics.fmean(psnr) if known else None,
        "psnr_mean_low": low,
        "psnr_mean_high": high,
        "psnr_worst": min(psnr) if known else None,
        "lost_share": statistics.fmean(victim.lost for victim in victims) if known else None,
        "psnr_std_over_draws": statistics.stdev(psnr_by_draw) if len(draws) > 1 else None,
        "psnr_median": statistics.median(psnr) if known else None,
        "psnr_of_mean_mse": -10 * math.log10(statistics.fmean(10 ** (-v / 10) for v in psnr)) if known else None,
        "ssim_mean": statistics.fmean(victim.ssim for victim in victims) if known else None,
        "label_accuracy": label_accuracy,
        "bit_exact_share": statistics.fmean(victim.bit_exact for victim in victims) if known else None,
    }


def _identification(victims: Sequence[VictimScore], run: RunRecord) -> Record:
    """The fields of the `summary` section about identification and recognition; None without gallery and classifier."""
    baseline = run.recognition_of_mean_image
    flags = [victim.identified for victim in victims if victim.identified is not None]
    return {
        "identification": statistics.fmean(flags) if flags else None,
        "gallery_size": run.gallery_size,
        "identification_chance": run.identification_chance,
        "identification_bound": run.identification_bound,
        "recognition_top1": None if run.recognition is None else run.recognition.top1,
        "recognition_top5": None if run.recognition is None else run.recognition.top5,
        "recognition_top1_mean_image": None if baseline is None else baseline.top1,
        "recognition_top5_mean_image": None if baseline is None else baseline.top5,
    }


def _files(found: Sequence[Reconstruction], count: int, channel_code: str | None) -> Record:
    """The fields of the `summary` section about files that were sent with a channel code.

    Args:
        found: Reconstructions of every client and draw.
        count: How many victims there are, over all draws.
        channel_code: Name of the channel code; None if nothing was sent digitally.

    Returns:
        Its name, the fraction of the victims whose file was decoded, and means over those files.
    """
    files = [file for one in found for file in one.files or () if file is not None]
    return {
        "channel_code": channel_code,
        "file_decoded_fraction": None if channel_code is None else len(files) / count,
        "bits_sent_mean": statistics.fmean(file.bits for file in files) if files else None,
        "capacity_bits_mean": statistics.fmean(file.capacity for file in files) if files else None,
    }


def _mean(count: int, draws: int) -> float:
    """A count of all draws divided by their number, as an integer where it is one."""
    return count // draws if count % draws == 0 else count / draws
