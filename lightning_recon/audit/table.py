# SPDX-License-Identifier: Apache-2.0
"""The audit as a table: a row per cell, with averages over its victims."""

import csv
import io
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from lightning_recon.audit.aggregate import Interval, interval_of
from lightning_recon.audit.plan import Cell
from lightning_recon.audit.run import Outcome
from lightning_recon.evaluation.formatting import display_name
from lightning_recon.files.renamed_fields import fields_with_both_names
from lightning_recon.printable import printable
from lightning_recon.privacy.mechanism import ADJACENCIES
from lightning_recon.privacy.risk import FALSE_POSITIVE_RATES

Value = str | float | None
HPARAMS = "hparams"
_VARIED = ("granularity", "per_layer", "batch_size", "rounds", "aggregated", "change", "seed")

_SUMMARY = (
    *("clients", "draws", "victims", "detected", "collided", "false_detections"),
    *("psnr_mean", "psnr_std_over_draws", "psnr_median", "psnr_of_mean_mse", "ssim_mean", "bit_exact_share"),
    *("psnr_worst", "lost_share", "identification", "gallery_size", "identification_bound"),
    *("file_decoded_fraction", "bits_sent_mean", "structure_bytes", "seconds"),
)
_BOUNDS = (
    *("channel_nats", "noise_law_psnr", "noise_law_psnr_p95", "unbiased_psnr"),
    *("gaussian_reference_psnr", "gaussian_reference_low", "gaussian_reference_high"),
)
_PRIVACY = (
    *("mechanism", "granularity", "per_layer", "max_grad_norm", "noise_multiplier", "batch_size", "rounds"),
    *("aggregated", "noise_share", "delta", "adjacency", "epsilon_nominal", "epsilon_accounted", "mu"),
    "membership_advantage",
)


def row_of(outcome: Outcome) -> dict[str, Value]:
    """The row of a finished cell.

    Args:
        outcome: The cell.

    Returns:
        Values by column; psnr and gain (PSNR above that of a mean image) in dB with the ends of their confidence
        intervals over images, epsilon for both adjacencies of all rounds together and of one.
    """
    record = outcome.record
    privacy, summary, baselines = record["privacy"], record["summary"], record["baselines"] or {}
    bounds = record["bounds"] or {}
    single, together = (
        {adjacency: outcome.epsilon(rounds, adjacency) for adjacency in ADJACENCIES}
        for rounds in (1, int(privacy["rounds"]))
    )
    alarms = record.get("payload_alarms")
    row: dict[str, Value] = {"cell": outcome.name, "status": "finished", "change": outcome.change or None}
    row |= {"attack": outcome.attack, "structure": record["attack"], "seed": record.get("seed")}
    row |= {"oracles": " ".join(record["oracles"]) or "none"}
    row |= {name: privacy.get(name) for name in _PRIVACY}
    row |= {f"epsilon_{adjacency}": value for adjacency, value in together.items()}
    row |= {f"epsilon_{adjacency}_one_round": value for adjacency, value in single.items()}
    membership = privacy.get("membership_tpr") or dict.fromkeys(map(str, FALSE_POSITIVE_RATES))
    row |= {f"membership_tpr_{rate}": value for rate, value in membership.items()}
    row |= {f"rero_gamma_{kappa}": value for kappa, value in privacy["rero_gamma"].items()}
    row |= {name: bounds.get(name) for name in _BOUNDS}
    row |= {name: baselines.get(name) for name in ("black_psnr", "mean_image_psnr")}
    row |= {name: summary.get(name) for name in _SUMMARY[:-2]}
    row |= _scores(outcome)
    row |= {name: record.get(name) for name in ("public_statistics", "subject_fraction", "batchnorm", "participation")}
    row["reproducible_noise"] = privacy.get("reproducible_noise")
    row["payload_alarms"] = None if alarms is None else " ".join(alarms) or "none"
    return fields_with_both_names(row | {name: summary.get(name) for name in _SUMMARY[-2:]})


def _scores(outcome: Outcome) -> dict[str, Value]:
    """Intervals of PSNR and gain; None where the true images are not known."""
    names = ("psnr_low", "psnr_high", "psnr_best", "gain_mean", "gain_low", "gain_high")
    if not outcome.scored:
        return dict.fromkeys(names)
    psnr, gains = interval_of(outcome.by_image(gain=False)), outcome.by_image(gain=True)
    baseline = outcome.record["baselines"]["mean_image_psnr"]
    gain = interval_of(gains) if gains else Interval(psnr.mean - baseline, None, None, psnr.pictures)
    best = max(float(victim["psnr"]) for victim in outcome.record["victims"])
    return dict(zip(names, (psnr.low, psnr.high, best, gain.mean, gain.low, gain.high), strict=True))


def failed_row(cell: Cell) -> dict[str, Value]:
    """The row of a cell that failed: its parameters."""
    return {
        "cell": cell.name,
        "status": "failed",
        "attack": cell.attack,
        "seed": cell.seed,
        "granularity": cell.granularity,
        "noise_multiplier": cell.noise_multiplier,
        "batch_size": cell.batch_size,
        "rounds": cell.rounds,
    }


def table_text(rows: Sequence[Mapping[str, Value]]) -> str:
    """Rows as CSV: floats with six significant digits, empty where there is no value.

    Args:
        rows: At least one; the columns are those of all rows, in order of appearance.
    """
    full = max(rows, key=len)
    columns = list(dict.fromkeys([*full, *(name for row in rows for name in row)]))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([_written(row.get(name)) for name in columns] for row in rows)
    return text.getvalue()


def write_hparams(folder: Path, rows: Sequence[Mapping[str, Value]]) -> None:
    """Write TensorBoard's HParams view of the sweep.

    Args:
        folder: Folder of the audit; an earlier view in it is replaced.
        rows: Rows of finished cells.
    """
    shutil.rmtree(folder / HPARAMS, ignore_errors=True)
    # Few columns, so that scores and attack are visible side by side: of the rest only what differs between the cells.
    first = {"attack": "attack", "z": "noise_multiplier", "epsilon": "epsilon_accounted"}
    others = [name for name in _VARIED if len({str(row[name]) for row in rows}) > 1]
    metrics = ("psnr_mean", "gain_mean", "psnr_best", "ssim_mean", "detected")
    with SummaryWriter(str(folder / HPARAMS)) as writer:
        for row in rows:
            chosen = {name: row[column] for name, column in first.items() if row[column] is not None}
            chosen |= {name: row[name] for name in others if row[name] is not None}
            chosen["attack"] = display_name(str(row["attack"]))
            measured = {f"audit/{name}": row[name] for name in metrics if row[name] is not None}
            writer.add_hparams(chosen, measured, run_name=str(row["cell"]))


def _written(value: Value) -> str:
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else printable(str(value))
