# SPDX-License-Identifier: Apache-2.0
"""The attack in TensorBoard while it runs: images with their PSNR beside the true ones, and curves of the scores."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger, TensorBoardLogger

from lightning_recon.attack import Attack, GradientInversion, Reconstruction
from lightning_recon.callbacks.figures import Version, caption, comparison_figure
from lightning_recon.callbacks.ground_truth import scored_one, truth_of, truths_of
from lightning_recon.callbacks.protection import noise_of
from lightning_recon.display import window_of
from lightning_recon.evaluation.formatting import display_name
from lightning_recon.evaluation.metrics import bit_exact, psnr_per_image
from lightning_recon.evaluation.scoring import Scored, Truth
from lightning_recon.ranges import COUNT, COUNT_OR_NONE, check_ranges

_LEAST_TILE, _MOST_TILE = 128, 192  # pixels

# One chart with the attack and the mean image; TensorBoard shows it under "Custom scalars".
_LAYOUT = {"search": {"PSNR, dB": ["Multiline", ["^psnr$", "^mean_image_psnr$"]]}}


class ImageGrid(Callback):
    """Shows each attacked batch in TensorBoard at the start, after every power of two of steps, and at the end.

    Where the true images are known, it shows the photograph, what the client trained on, the first decoding and the
    present state, with PSNR under each, and the curves `psnr`, `ssim` and `mean_image_psnr`, means over the updates
    shown. `objective` is the attack's own.
    """

    def __init__(self, every_n_steps: int | None = None, clients: int = 4, columns: int = 8) -> None:
        """Choose how much to show.

        Args:
            every_n_steps: Further images every so many steps; null: none.
            clients: Show at most this many updates, the first draw of each: a client's batch, or under secure
                aggregation that of a group of clients.
            columns: Show at most this many victims of each, the first ones.
        """
        check_ranges(
            "--image_grid.",
            every_n_steps=(every_n_steps, COUNT),
            clients=(clients, COUNT_OR_NONE),
            columns=(columns, COUNT),
        )
        self.every_n_steps = every_n_steps
        self.clients = clients
        self.columns = columns
        self._shown = -1

    def due(self, step: int) -> bool:
        """Whether this step is shown: the start, powers of two, and multiples of `every_n_steps`."""
        return step & (step - 1) == 0 or (self.every_n_steps is not None and step % self.every_n_steps == 0)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the first decoding; a resumed run has shown its state when it stopped."""
        if trainer.global_step == 0:
            self._show(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        """Log the objective before this step, and show the state after it, when they are due."""
        step = trainer.global_step
        if isinstance(pl_module, Attack) and (self.due(step - 1) or (step - 1) % _every(trainer) == 0):
            _log_objective(trainer, pl_module, step - 1, last=False)
        if self.due(step):
            self._show(trainer, pl_module)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the last state, if no step has, and log the objective of what is handed over."""
        if trainer.global_step != self._shown:
            self._show(trainer, pl_module)
        if isinstance(pl_module, Attack):
            _log_objective(trainer, pl_module, trainer.global_step, last=True)

    def _show(self, trainer: Trainer, module: LightningModule) -> None:
        if not isinstance(module, Attack) or not trainer.loggers:
            return
        self._shown = trainer.global_step
        found = module.gathered()
        shown = [one for one in found if one.client < self.clients]
        if not trainer.is_global_zero or not shown:
            return
        truths = truths_of(trainer)
        scored = [scored_one(one, truths, module) for one in shown] if truths else [None] * len(shown)
        for logger in trainer.loggers:
            if truths:
                _log_scores(logger, trainer.global_step, [one for one in scored if one], shown, truths, module)
            for attacked, one in zip(shown, scored, strict=True):
                if attacked.draw == 0 and isinstance(logger, TensorBoardLogger):
                    truth = truth_of(truths, attacked.client, module) if truths else None
                    drawn = Drawn(f"client_{attacked.client}", _about(module), self.columns)
                    searched, depth = isinstance(module, GradientInversion), module.task.bit_depth
                    log_picture(logger, trainer.global_step, drawn, versions_of(attacked, truth, one, searched, depth))


@dataclass(frozen=True)
class Drawn:
    """How an image is presented in TensorBoard.

    Args:
        tag: Name under which it is logged.
        about: What it shows, in words.
        columns: Largest number of victims that are drawn.
    """

    tag: str
    about: str
    columns: int


def versions_of(
    found: Reconstruction, truth: Truth | None, scored: Scored | None, searched: bool = False, bit_depth: int = 8
) -> list[Version]:
    """The rows of an image in TensorBoard.

    Args:
        found: The attacker's reconstructions.
        truth: The true images; None if they are not known.
        scored: The reconstructions matched with them; None without them, where the attacker's order is kept.
        searched: Whether nothing is decoded at first, so that the search begins with a mean image.
        bit_depth: Bits of a value. Images of more than 8 are drawn relative to a window, that of the true images where
            they are known.
    """
    first = "mean image: before the search" if searched else "decoded: first estimate"
    if truth is None or scored is None:
        window = window_of(found.images, bit_depth)
        return [
            Version(first, found.initial).within(window),
            Version("refined: present state", found.images).within(window),
        ]
    window = window_of(truth.photographs, bit_depth)
    exact = bit_exact(scored.initial, truth.images, bit_depth).tolist()
    before = [caption(victim.psnr_initial, same) for victim, same in zip(scored.victims, exact, strict=True)]
    after = [caption(victim.psnr, victim.bit_exact) for victim in scored.victims]
    versions = [
        Version("photograph", truth.photographs),
        Version("subject: what the client trained on", truth.images),
        Version(first, scored.initial, before),
        Version("refined: present state", scored.images, after),
    ]
    return [one.within(window) for one in versions]


def log_picture(logger: TensorBoardLogger, step: int, drawn: Drawn, versions: Sequence[Version]) -> None:
    """Draw versions of the same victims below each other, and log them as one image.

    Args:
        logger: TensorBoard's.
        step: Steps taken so far.
        drawn: How the image is presented.
        versions: At least one; nothing is logged where they hold no image.
    """
    count, side = len(versions[-1].images), versions[-1].images.shape[-2]
    if not count:
        return
    note = f"step {step}; {drawn.about}"
    if count > drawn.columns:
        note += f"; the first {drawn.columns} of {count} victims"
    tile = side * -(-_LEAST_TILE // side)  # enlarged a whole number of times, without smoothing
    figure = comparison_figure(
        [one.first(drawn.columns) for one in versions], min(tile, _MOST_TILE), note=note, across="victims"
    )
    logger.experiment.add_image(drawn.tag, np.asarray(figure), step, dataformats="HWC")


def _about(module: Attack) -> str:
    return f"{display_name(module.name)}, z = {noise_of(module.task):g}"


def _every(trainer: Trainer) -> int:
    return max(1, int(getattr(trainer, "log_every_n_steps", 1)))


def _log_objective(trainer: Trainer, module: Attack, step: int, last: bool) -> None:
    """Log the attack's own objective after this step, if it has one."""
    if not trainer.is_global_zero or not trainer.loggers:
        return
    value = module.present_objective() if last else module.latest_objective
    if value is not None and bool(value.isfinite()):
        for logger in trainer.loggers:
            logger.log_metrics({"objective": float(value)}, step)


def _log_scores(
    logger: Logger,
    step: int,
    scored: Sequence[Scored],
    shown: Sequence[Reconstruction],
    truths: list[Truth],
    module: Attack,
) -> None:
    """Log PSNR and SSIM, and the PSNR of the public mean image on the same victims."""
    victims = [victim for one in scored for victim in one.victims]
    baseline: list[float] = []
    for one in shown:
        images = truth_of(truths, one.client, module).images
        baseline += psnr_per_image(module.mean_image.to(images).expand_as(images), images).tolist()
    metrics = {
        "psnr": sum(victim.psnr for victim in victims) / len(victims),
        "ssim": sum(victim.ssim for victim in victims) / len(victims),
        "mean_image_psnr": sum(baseline) / len(baseline),
    }
    logger.log_metrics(metrics, step)
    if step == 0 and isinstance(logger, TensorBoardLogger):
        logger.experiment.add_custom_scalars(_LAYOUT)
