# SPDX-License-Identifier: Apache-2.0
"""The privacy cost of training a target network so far, logged as `epsilon`."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_recon.client.poisson_sampler import sampler_of
from lightning_recon.errors import UserError
from lightning_recon.privacy.gaussian import Gaussian
from lightning_recon.privacy.parameters import Privacy


class Accountant(Callback):
    """Accounts for the steps of one training, over interruptions too; `VictimClient` brings it along.

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
        self._resumed: dict[str, str | float] = {}

    def epsilon(self, steps: int) -> float | None:
        """Accounted epsilon of so many steps, at `privacy.delta`; None without a guarantee."""
        mechanism = self.state_dict()
        noise, rate = float(mechanism["noise_multiplier"]), float(mechanism["sample_rate"])
        return self.privacy.noise.training_epsilon(noise, rate, steps, self.privacy.delta, self.privacy.adjacency)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse to go on from steps of another mechanism, whose cost would not be known."""
        self.mechanism = {
            "mechanism": self.privacy.mechanism,
            "granularity": self.privacy.granularity,
            "noise_multiplier": 0.0 if self.privacy.max_grad_norm is None else self.privacy.noise_multiplier,
            "sample_rate": sampler_of(trainer).rate if self.privacy.granularity == "sample" else 1.0,
        }
        for name, value in self.mechanism.items():
            if self._resumed.get(name, value) != value:
                raise UserError(
                    f"{name} is {value}, but the checkpoint was trained with {self._resumed[name]}, and epsilon would "
                    "be of neither: use the config.yaml of that run, or start anew with the checkpoint as "
                    "--model.weights"
                )

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the cost of all steps so far."""
        if (epsilon := self.epsilon(trainer.global_step)) is not None:
            pl_module.log("epsilon", epsilon, prog_bar=True, sync_dist=trainer.world_size > 1)

    def state_dict(self) -> dict[str, Any]:
        """What the steps were, for the checkpoint."""
        return dict(self.mechanism or self._resumed)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Remember what the checkpoint's steps were.

        Args:
            state_dict: What `state_dict` gave.
        """
        # Checkpoints of earlier versions name no mechanism.
        self._resumed = {"mechanism": Gaussian.name, **state_dict} if state_dict else {}
