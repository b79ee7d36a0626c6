# SPDX-License-Identifier: Apache-2.0
"""The privacy cost of training a target network so far, logged as `epsilon`."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch.optim import Optimizer

from lightning_recon.client.poisson_sampler import sampler_of
from lightning_recon.errors import UserError
from lightning_recon.privacy.gaussian import Gaussian
from lightning_recon.privacy.parameters import Privacy


class Accountant(Callback):
    """Accounts for all steps of a client's network, over interruptions and trainings; `VictimClient` brings it along.

    Under granularity "sample" the record is one image, drawn by Poisson sampling; under "update" it is each step's
    whole update, so the steps compose plainly and nothing is guaranteed for single images.
    """

    def __init__(self, privacy: Privacy) -> None:
        """Say what a step is protected by.

        Args:
            privacy: clip and noise of every step.
        """
        self.privacy = privacy
        self.mechanism: dict[str, str | float] = {}
        self.earlier_steps = 0
        self._steps = 0
        self._resumed: dict[str, str | float] = {}
        self._resumed_at = 0

    def epsilon(self, steps: int) -> float | None:
        """Accounted epsilon at `privacy.delta`; None without a guarantee.

        Args:
            steps: of all trainings, see `total`.
        """
        mechanism = self.state_dict()
        noise, rate = float(mechanism["noise_multiplier"]), float(mechanism["sample_rate"])
        return self.privacy.noise.training_epsilon(noise, rate, steps, self.privacy.delta, self.privacy.adjacency)

    def total(self, steps: int) -> int:
        """Steps of all trainings of the client, `steps` of them in the present one."""
        return self.earlier_steps + steps

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """A training begins; if it is a resumed one, its checkpoint is read next."""
        if stage == "fit":
            self._resumed = {}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Number the steps after those of earlier trainings; a new trainer counts from 0 again."""
        if not self._resumed:
            self.earlier_steps = self._steps - trainer.global_step

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse to go on from steps of another mechanism, whose cost would not be known."""
        mechanism: dict[str, str | float] = {
            "mechanism": self.privacy.mechanism,
            "granularity": self.privacy.granularity,
            "noise_multiplier": 0.0 if self.privacy.max_grad_norm is None else self.privacy.noise_multiplier,
            "sample_rate": sampler_of(trainer).rate if self.privacy.granularity == "sample" else 1.0,
        }
        own = self.mechanism if self._steps and self.privacy.noise_scale > 0 else {}
        for origin, before in (("the checkpoint was", self._resumed), ("this client's network was", own)):
            for name, value in mechanism.items():
                if before.get(name, value) != value:
                    raise UserError(
                        f"{name} is {value}, but {origin} trained with {before[name]}, and epsilon would be of "
                        "neither: train with the options of before (config.yaml), or start anew with the checkpoint as "
                        "--model.weights"
                    )
        self.mechanism = mechanism  # not before: a second attempt is refused like the first

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Count the step, before the weights show it."""
        self._steps = self.total(trainer.global_step + 1)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count the steps of the checkpoint where none was left to do."""
        self._steps = self.total(trainer.global_step)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the cost of all steps so far."""
        if (epsilon := self.epsilon(self.total(trainer.global_step))) is not None:
            pl_module.log("epsilon", epsilon, prog_bar=True, sync_dist=trainer.world_size > 1)

    def state_dict(self) -> dict[str, Any]:
        """What the steps were, for the checkpoint."""
        earlier = {"earlier_steps": self.earlier_steps} if self.earlier_steps else {}
        return dict(self.mechanism or self._resumed) | earlier

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Remember how many steps the training of the checkpoint had taken; `load_state_dict` comes next."""
        self._resumed_at = checkpoint["global_step"]

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Remember what the checkpoint's steps were.

        Args:
            state_dict: What `state_dict` gave.
        """
        # Checkpoints of earlier versions name no mechanism.
        self._resumed = {"mechanism": Gaussian.name, **state_dict} if state_dict else {}
        # Going back to a checkpoint takes back no step that this object has released since.
        self.earlier_steps = max(state_dict.get("earlier_steps", 0), self._steps - self._resumed_at)
