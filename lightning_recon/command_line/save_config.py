# SPDX-License-Identifier: Apache-2.0
"""Save the config of a run in its folder."""

from pathlib import Path

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback

from lightning_recon.files.atomic import write


class SaveConfig(SaveConfigCallback):
    """Writes config.yaml when a run is fitted; scoring or exporting the run later does not change it."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write nothing yet: if the attack fails before its first step, the config of an earlier run stays valid.

        Args:
            trainer: The trainer.
            pl_module: The model.
            stage: The trainer's stage.
        """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write config.yaml before the first step.

        Args:
            trainer: The trainer.
            pl_module: The model.
        """
        if trainer.is_global_zero and not self.already_saved:
            # The config is to repeat this run elsewhere, where nothing is replaced.
            config = self.config.clone()
            config.overwrite = False
            # The parser has checked these values; checking them again takes longer than writing them.
            text = self.parser.dump(config, skip_unset=False, skip_validation=True)
            path = Path(trainer.default_root_dir) / self.config_filename
            write(path, lambda partial: partial.write_text(text, encoding="utf-8"))
        self.already_saved = True

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write config.yaml of a run without steps.

        Args:
            trainer: The trainer.
            pl_module: The model.
        """
        self.on_train_start(trainer, pl_module)
