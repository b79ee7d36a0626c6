# SPDX-License-Identifier: Apache-2.0
"""A run and its result in TensorBoard: text, and a row in the HParams table."""

import shlex
from collections.abc import Sequence
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from lightning_recon.attack import Attack
from lightning_recon.callbacks.protection import describe_protection, noise_of, privacy_of
from lightning_recon.callbacks.results_writer import ResultsWriter
from lightning_recon.evaluation.formatting import display_name, in_words
from lightning_recon.evaluation.results import Record
from lightning_recon.evaluation.wording import verdict
from lightning_recon.printable import printable


class RunSummary(Callback):
    """Logs protection and command at the start, and verdict and hyperparameters at the end; after `ResultsWriter`."""

    def __init__(self, command: Sequence[str] = ()) -> None:
        """Keep the command that started the run.

        Args:
            command: Arguments of `recon`; empty if they are not known.
        """
        self.command = tuple(command)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log what is attacked, and by which command."""
        if isinstance(pl_module, Attack):
            for logger in _boards(trainer):
                text = run_text(pl_module.name, privacy_of(pl_module.client), self.command)
                logger.experiment.add_text("run", text, trainer.global_step)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the verdict, and the row of this run."""
        if not isinstance(pl_module, Attack):
            return
        writer = next((one for one in trainer.callbacks if isinstance(one, ResultsWriter)), None)  # type: ignore[attr-defined]
        record = None if writer is None else writer.record
        step = trainer.global_step
        for logger in _boards(trainer):
            if record is not None:
                logger.experiment.add_text("verdict", verdict_text(record), step)
            privacy: Any = privacy_of(pl_module.client)
            # Three columns, so that the scores are visible beside them: everything else is in results.json.
            row = {"attack": display_name(pl_module.name), "z": noise_of(pl_module.task)}
            row |= {"epsilon": privacy["epsilon_accounted"]} if privacy["epsilon_accounted"] is not None else {}
            logger.log_hyperparams(row, scores_of(record) or {"steps": step}, step)


def scores_of(record: Record | None) -> dict[str, float]:
    """The columns of HParams that hold results: those that `record` has, PSNR first."""
    summary: Any = {} if record is None else record["summary"]
    names = ("psnr_mean", "ssim_mean", "bit_exact_share", "detected")
    return {name: float(summary[name]) for name in names if summary.get(name) is not None}


def run_text(attack: str, privacy: Record, command: Sequence[str]) -> str:
    """What is attacked, in Markdown.

    Args:
        attack: Its name in `results.json`.
        privacy: Section of `results.json`.
        command: Arguments of `recon`; empty if they are not known.
    """
    gamma: Any = privacy["rero_gamma"]
    lines = [f"**Attack:** {_plain(display_name(attack))}", f"**Protection:** {describe_protection(privacy)}"]
    lines += [
        f"**Reconstruction robustness:** an attack that succeeds with probability {kappa} without the releases "
        f"succeeds with at most {value:.3g} after seeing them"
        for kappa, value in gamma.items()
        if value is not None
    ]
    membership: Any = privacy.get("membership_tpr") or {}
    lines += [
        f"**Membership:** an attack that calls {100 * float(rate):g} % of the absent images present finds at most "
        f"{100 * value:.3g} % of those that are present"
        for rate, value in membership.items()
        if value is not None
    ]
    if command:
        typed = printable(shlex.join(["recon", *command]))
        lines.append(f"**Command:**\n\n    {typed}")
    return "\n\n".join(lines)


def verdict_text(record: Record) -> str:
    """The result in Markdown, with bounds and reference values.

    Args:
        record: Content of `results.json`.
    """
    bounds: Any = record["bounds"] or {}
    lines = [f"**Verdict:** {verdict(record)}"]
    if bounds.get("channel_bits") is not None:
        lines.append(
            f"**Bound:** no attack learns more than {in_words(bounds['channel_bits'])} bits about an "
            "image from these releases"
        )
    for name, said in (
        ("gaussian_reference_psnr", "the best code for a Gaussian source with the second moments of these images"),
        ("noise_law_psnr", "decoding without an image prior"),
    ):
        if bounds.get(name) is not None:
            lines.append(f"**Reference:** {said} has {bounds[name]:.1f} dB (of the mean squared error)")
    return "\n\n".join(lines)


def _plain(text: str) -> str:
    """Text in which Markdown finds no markup."""
    return "".join(f"\\{char}" if char in "\\`*_{}[]<>()#+-.!|" else char for char in text)


def _boards(trainer: Trainer) -> list[TensorBoardLogger]:
    return [one for one in trainer.loggers if isinstance(one, TensorBoardLogger)] if trainer.is_global_zero else []
