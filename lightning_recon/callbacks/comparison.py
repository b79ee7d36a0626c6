# SPDX-License-Identifier: Apache-2.0
"""`comparison.png`: the first victims and their reconstructions, optionally those by a second structure too."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from lightning_recon.attack import Attack, Reconstruction, ReconstructionAttack
from lightning_recon.attack.protocol import run_protocol
from lightning_recon.callbacks.figures import Version, caption, comparison_figure
from lightning_recon.callbacks.ground_truth import scored_one, truth_of, truths_of
from lightning_recon.callbacks.image_grid import Drawn, ImageGrid, log_picture, versions_of
from lightning_recon.callbacks.protection import describe_protection, noise_of, privacy_of
from lightning_recon.client import VictimClient
from lightning_recon.console import say, warn
from lightning_recon.display import window_of
from lightning_recon.errors import UserError
from lightning_recon.evaluation.formatting import display_name
from lightning_recon.evaluation.scoring import Scored, Truth, score
from lightning_recon.files.atomic import write
from lightning_recon.ranges import COUNT_OR_NONE, POSITIVE, check_ranges
from lightning_recon.structure import Structure
from lightning_recon.structure.base import Decoded

NOTE = "Every reconstruction is from a release of its own: the same images, independent noise."


class Comparison(Callback):
    """Draws `comparison.png`: the first client's images beside those of a second structure or the mean image.

    A second structure, and the same attack under more noise, take further, separate releases of the same images, with
    independent noise: the run's attack does not see them, they are not recorded, and the run's accounting does not
    count them. Structures are compared with structures only: an honest server's attack is compared with the mean
    image, and so is a captured update, of which there is no second release.
    """

    def __init__(
        self,
        structure: Structure | None = None,
        title: str | None = None,
        victims: int = 8,
        noise_factor: float | None = None,
    ) -> None:
        """Choose what to compare with.

        Args:
            structure: A second structure, for the same client and protection. Default: none; the public mean image
                takes its place.
            title: Heading of the second structure's column. Default: its name.
            victims: Draw at most this many rows; 0: no comparison.
            noise_factor: A last column shows the same attack under this multiple of the noise, and TensorBoard its
                refinement, since the run's own noise may leave nothing to refine. Default: no such column.
        """
        check_ranges("--comparison.", victims=(victims, COUNT_OR_NONE), noise_factor=(noise_factor, POSITIVE))
        self.structure = structure
        self.title = title
        self.victims = victims
        self.noise_factor = noise_factor
        self._report = ""

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw photograph, subject, second structure or mean image, and the attack's images of the first client."""
        truths = truths_of(trainer)
        if not isinstance(pl_module, Attack) or not truths or not trainer.is_global_zero or not self.victims:
            return
        if self is not _chosen(trainer):
            return
        path = Path(trainer.default_root_dir) / "comparison.png"
        asks = self._second_structure(pl_module) is not None or self._harder(pl_module) is not None
        if pl_module.resumed and path.exists() and asks:
            return  # a resumed run asks no client again
        truth = truth_of(truths, 0, pl_module)
        ours = scored_one(pl_module.reconstructions()[0], truths, pl_module)
        compared = [self._second(pl_module, truth) or _baseline(pl_module, truth), (display_name(pl_module.name), ours)]
        compared += self._under_more_noise(trainer, pl_module, truth)
        versions = [Version("photograph", truth.photographs), Version("what the client used", truth.images)]
        versions += [_version(name, scored) for name, scored in compared]
        note = f"{describe_protection(privacy_of(pl_module.client), 'epsilon', 'delta')}. {NOTE if asks else ''}"
        window = window_of(truth.photographs, pl_module.task.bit_depth)
        figure = comparison_figure([one.first(self.victims).within(window) for one in versions], note=note)
        write(path, lambda partial: figure.save(partial, format="png"))
        means = [f"{name} {_mean_psnr(scored):.1f} dB" for name, scored in compared]
        self._report = f"first client: {', '.join(means)}; {path}"

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Print the comparison after the progress bar has been closed."""
        if self._report:
            say(self._report)
        self._report = ""

    def _second_structure(self, module: Attack) -> Structure | None:
        """The second structure, if there is one that may be compared with the attack."""
        if not isinstance(module, ReconstructionAttack) or not isinstance(module.client, VictimClient):
            return None
        return None if self.structure is None or self.structure.name == module.name else self.structure

    def _second(self, module: Attack, truth: Truth) -> tuple[str, Scored] | None:
        """Name and scores of the second structure; None if there is none, or it cannot be shipped here."""
        structure = self._second_structure(module)
        if structure is None:
            return None
        name, client, draw = self.title or display_name(structure.name), module.client, module.draws
        try:
            decoded = run_protocol(client, structure, structure.payload(client.task), 0, draw, None)
        except UserError as error:  # the run itself is fine, and must not be lost
            warn(f"no comparison with {name}: {error.for_command_line}")
            return None
        found = _unrefined(decoded, draw)
        return name, score(truth, found, structure.statistics(client.task).mean, client.task.bit_depth)

    def _harder(self, module: Attack) -> VictimClient | None:
        """The same clients under more noise, where the attack is one that can be repeated."""
        if self.noise_factor is None or not isinstance(module, ReconstructionAttack):
            return None
        if not isinstance(module.client, VictimClient) or noise_of(module.task) == 0:
            return None
        noise, adaptive = self.noise_factor * noise_of(module.task), module.task.adaptive_clip
        if adaptive is not None and noise >= adaptive.noise_limit:
            return None
        return module.client.under_noise(noise)

    def _under_more_noise(self, trainer: Trainer, module: Attack, truth: Truth) -> list[tuple[str, Scored]]:
        """The last column, with its refinement in TensorBoard; empty without `noise_factor` or a decoding."""
        harder = self._harder(module)
        if harder is None or not isinstance(module, ReconstructionAttack):
            return []
        try:
            states = list(_search(module, harder, trainer.global_step))
        except UserError as error:
            warn(f"no attack under more noise: {error.for_command_line}")
            return []
        if not states:
            return []
        times = f"{self.noise_factor:g} times the noise"
        drawn = Drawn(f"client_0/{self.noise_factor:g}_times_the_noise", f"z = {noise_of(harder.task):g}, {times}", 8)
        grid = next((one for one in trainer.callbacks if isinstance(one, ImageGrid)), ImageGrid())  # type: ignore[attr-defined]
        mean, depth = module.structure.statistics(harder.task).mean, harder.task.bit_depth
        for step, state in enumerate(states):
            scored = score(truth, state, mean, depth)
            if grid.due(step) or step == len(states) - 1:
                for logger in trainer.loggers:
                    if isinstance(logger, TensorBoardLogger):
                        log_picture(logger, step, drawn, versions_of(state, truth, scored, bit_depth=depth))
                    logger.log_metrics({"psnr_under_more_noise": _mean_psnr(scored)}, step)
        return [(times, scored)]


def _search(module: ReconstructionAttack, harder: VictimClient, steps: int) -> Iterator[Reconstruction]:
    """The attack on the first client under more noise, before refinement and after each step."""
    structure, draw = module.structure, module.draws + 1  # a draw of neither the run nor the second structure
    decoded = run_protocol(harder, structure, structure.payload(harder.task), 0, draw, None)
    first = _unrefined(decoded, draw)
    if decoded.refinement is None:
        yield first
        return
    device, transform = module.device, structure.statistics(harder.task).transform
    objective = decoded.refinement.to(device).objective(
        decoded.images.to(device), transform.to(device), module.denoiser.to(device)
    )
    for step, images in enumerate(objective.iterates(steps)):
        yield first if step == 0 else replace(first, images=images.cpu())


def _unrefined(decoded: Decoded, draw: int) -> Reconstruction:
    """The first client's reconstruction before refinement."""
    return Reconstruction(0, draw, decoded.images, decoded.images, decoded.unresolved, decoded.evident)


def _chosen(trainer: Trainer) -> Callback:
    """The callback that draws: every run has one, which one among `trainer.callbacks` of an older config replaces."""
    found = [one for one in trainer.callbacks if isinstance(one, Comparison)]  # type: ignore[attr-defined]
    return next((one for one in found if one.structure is not None), found[-1])


def _baseline(module: Attack, truth: Truth) -> tuple[str, Scored]:
    """The baseline without an attack: the public mean image for every victim."""
    nothing = truth.images[:0].cpu()
    found = Reconstruction(0, 0, nothing, nothing, 0)
    return "mean image", score(truth, found, module.mean_image, module.task.bit_depth)


def _version(name: str, scored: Scored) -> Version:
    return Version(name, scored.images, [caption(victim.psnr, victim.bit_exact) for victim in scored.victims])


def _mean_psnr(scored: Scored) -> float:
    return sum(victim.psnr for victim in scored.victims) / len(scored.victims)
