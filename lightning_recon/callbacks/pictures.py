# SPDX-License-Identifier: Apache-2.0
"""Pictures of an attack beside the truth: grids in TensorBoard while it runs, and a comparison with a rival."""

from pathlib import Path

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor
from torchvision.utils import make_grid

from lightning_recon.attack import Reconstruction, Server
from lightning_recon.attack.conversation import converse
from lightning_recon.callbacks.truth import scored_one, truth_of, truths_of
from lightning_recon.capture import CapturedClient
from lightning_recon.console import say
from lightning_recon.errors import UserError
from lightning_recon.evaluation.comparison import caption, comparison_figure
from lightning_recon.evaluation.scoring import Attacked, score
from lightning_recon.structure import Structure

NOTE = "Two separate releases of the same pictures: same protection, independent noise."


class ImageGrid(Callback):
    """Shows each attacked batch in TensorBoard as it is refined: truth, first decoding, present state."""

    def __init__(self, every_n_steps: int = 20, clients: int = 4) -> None:
        """Choose how much to show.

        Args:
            every_n_steps: Steps between two grids.
            clients: At most so many updates are shown, the first draw of each: a client's batch, or under secure
                aggregation that of a group of clients.
        """
        self.every_n_steps = every_n_steps
        self.clients = clients
        self._shown = -1

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the first decoding."""
        self._show(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        """Show the present state now and then."""
        if trainer.global_step % self.every_n_steps == 0:
            self._show(trainer, pl_module)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the last state, if no step has."""
        if trainer.global_step != self._shown:
            self._show(trainer, pl_module)

    def _show(self, trainer: Trainer, module: LightningModule) -> None:
        truths = truths_of(trainer)
        if not isinstance(module, Server):
            return
        self._shown = trainer.global_step
        found = module.gathered()
        if not trainer.is_global_zero:
            return
        shown = [one for one in found if one.client < self.clients]
        if not truths:
            _show_alone(trainer, shown)
            return
        scored = [scored_one(one, truths, module) for one in shown]
        victims = [victim for one in scored for victim in one.victims]
        for logger in trainer.loggers:
            logger.log_metrics({"psnr": sum(v.psnr for v in victims) / len(victims)}, trainer.global_step)
            if not isinstance(logger, TensorBoardLogger):
                continue
            for found_one, one in zip(shown, scored, strict=True):
                if found_one.draw == 0:
                    truth, name = truth_of(truths, found_one.client, module), f"client_{found_one.client}"
                    rows = torch.cat([truth.images.cpu(), one.initial.cpu(), one.pictures.cpu()])
                    grid = make_grid(rows, nrow=len(one.victims))
                    logger.experiment.add_image(f"{name}/truth_decoded_refined", grid, trainer.global_step)


def _show_alone(trainer: Trainer, shown: list[Reconstruction]) -> None:
    """Show the attacker's pictures, first and present, where the truth is not known."""
    for logger in trainer.loggers:
        for one in shown:
            if isinstance(logger, TensorBoardLogger) and one.draw == 0 and len(one.pictures):
                grid = make_grid(torch.cat([one.initial.cpu(), one.pictures.cpu()]), nrow=len(one.pictures))
                logger.experiment.add_image(f"client_{one.client}/decoded_refined", grid, trainer.global_step)


class Comparison(Callback):
    """Attacks the first client (or group of clients) with a second structure too, and draws `comparison.png`.

    That takes a second, separate release of the same pictures, with noise of its own: the run's attack does not get it,
    it is not recorded, and the accounting of the run leaves it out.
    """

    def __init__(self, structure: Structure, title: str = "seed paper", victims: int = 8) -> None:
        """Choose the rival.

        Args:
            structure: The structure to compare with; same client, same protection, independent noise.
            title: Heading of its column.
            victims: At most so many rows are drawn.
        """
        self.structure = structure
        self.title = title
        self.victims = victims
        self._report = ""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse a captured update, which is one release and cannot become a second."""
        if isinstance(getattr(pl_module, "client", None), CapturedClient):
            raise UserError(
                "the comparison asks the client for a second release, which a captured update is not: give "
                "--trainer.callbacks null"
            )

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw photograph, subject, the rival's and our pictures of the first client."""
        truths = truths_of(trainer)
        if not isinstance(pl_module, Server) or not truths or not trainer.is_global_zero:
            return
        path = Path(trainer.default_root_dir) / "comparison.png"
        if pl_module.resumed and path.exists():
            return  # a resumed run asks no client again
        ours = scored_one(pl_module.reconstructions()[0], truths, pl_module)
        client = pl_module.client
        # A draw that the run has not had: the same noise twice would be no two releases.
        draw = pl_module.draws
        guess = converse(client, self.structure, self.structure.payload(client.task), 0, draw, None)
        mean = self.structure.statistics(client.task).mean
        truth = truth_of(truths, 0, pl_module)
        theirs = score(truth, Attacked(0, draw, guess.pictures, guess.pictures, guess.unresolved, guess.evident), mean)
        columns: list[tuple[str, Tensor, list[str] | None]] = [
            ("photograph", truth.photographs, None),
            ("what the client used", truth.images, None),
            (self.title, theirs.pictures, [caption(v.psnr, v.bit_exact) for v in theirs.victims]),
            ("lightning_recon", ours.pictures, [caption(v.psnr, v.bit_exact) for v in ours.victims]),
        ]
        shown = [(name, images[: self.victims], captions) for name, images, captions in columns]
        comparison_figure(shown, note=NOTE).save(path)
        means = [sum(v.psnr for v in one.victims) / len(one.victims) for one in (theirs, ours)]
        scores = f"{self.title} {means[0]:.1f} dB, lightning_recon {means[1]:.1f} dB"
        self._report = f"same client and protection: {scores}; {path}"

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Print the comparison once the progress bar is gone."""
        if self._report:
            say(self._report)
        self._report = ""
