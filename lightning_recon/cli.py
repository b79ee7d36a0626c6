# SPDX-License-Identifier: Apache-2.0
"""The `recon` command: LightningCLI, with runs kept in one folder and mistakes answered in one line."""

import os
import pickle
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentError, auto_cli
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, RichProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger

# Classes that may be given by their bare names on the command line.
from lightning_recon import __version__
from lightning_recon.attack import ReconstructionAttack  # noqa: F401
from lightning_recon.callbacks import Comparison, ImageGrid, ResultsWriter  # noqa: F401
from lightning_recon.data import ClientDataModule, GrabCutMasks, NoMasks, SamMasks  # noqa: F401
from lightning_recon.errors import UserError
from lightning_recon.exchange import RecordedClient  # noqa: F401
from lightning_recon.structure import SeedPaper, WaterFilling  # noqa: F401
from lightning_recon.victim import VictimClient  # noqa: F401

DESCRIPTION = """Measure what a server can see of its users' pictures through clipping and noise.

fit attacks the configured clients; validate only shows what they would release; test scores a finished run again;
predict exports its pictures. `recon replay RUN --output DIR` repeats a run's reconstruction from its exchange alone."""

CONFIGS = [Path(__file__).parent / "configs", Path(__file__).parent.parent / "configs"]


class ReconCLI(LightningCLI):
    """LightningCLI whose run folder is `trainer.default_root_dir`: config, events, checkpoints and results side by side."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the callbacks that every run has.

        Args:
            parser: The parser of a subcommand.
        """
        parser.add_lightning_class_args(ImageGrid, "image_grid")
        parser.add_lightning_class_args(ResultsWriter, "results")
        parser.set_defaults({"trainer.default_root_dir": "runs/recon"})

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:  # noqa: ANN401 - Lightning's signature
        """Build the trainer; unless a logger is configured, TensorBoard's events go to the run folder itself."""
        root = self._get(self.config_init, "trainer.default_root_dir")
        if self.subcommand in ("fit", "test", "predict", "validate") or self.subcommand is None:
            writable(Path(root))
        if self._get(self.config_init, "trainer.logger") is None:
            kwargs["logger"] = TensorBoardLogger(root, name="", version="", default_hp_metric=False)
        return super().instantiate_trainer(**kwargs)


def run_cli(args: Sequence[str] | None, run: bool = True) -> ReconCLI:
    """Parse the arguments, build everything, and run the subcommand.

    Args:
        args: Command line without the program's name; None for that of the process.
        run: Whether to run; otherwise there is no subcommand and the objects are only built.
    """
    return ReconCLI(
        LightningModule,
        LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        seed_everything_default=0,
        auto_configure_optimizers=False,
        save_config_kwargs={"overwrite": True},
        trainer_defaults={
            "callbacks": [
                ModelCheckpoint(save_last=True, every_n_train_steps=20, auto_insert_metric_name=False),
                RichProgressBar(),
            ],
            "max_epochs": 1,
        },
        parser_kwargs={"version": __version__, "description": DESCRIPTION, "exit_on_error": False},
        args=None if args is None else list(args),
        run=run,
    )


def replay(run: str, output: str) -> None:
    """Repeat a run's reconstruction from what crossed the wire, where the pictures no longer exist.

    Args:
        run: Folder of a finished run, with config.yaml and exchange/.
        output: Folder for the reconstructions and their images.
    """
    folder = Path(run)
    if not (folder / "config.yaml").exists():
        raise UserError(f"{folder} holds no config.yaml: name the folder of a finished run")
    recorded = ["--model.client", "lightning_recon.exchange.RecordedClient"]
    recorded += ["--model.client.folder", str(folder / "exchange")]
    cli = run_cli(["--config", str(folder / "config.yaml"), *recorded, "--trainer.default_root_dir", output], run=False)
    cli.trainer.fit(cli.model)


def writable(folder: Path) -> None:
    """Check, before any work is done, that a run folder can be written.

    Raises:
        UserError: If it cannot.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"cannot write to {folder} ({error.strerror}): choose another --trainer.default_root_dir") from None


def with_shipped_configs(args: Sequence[str]) -> list[str]:
    """Replace names of configs that are no files here by those that ship with the package.

    Args:
        args: Command line.

    Returns:
        The same with `--config imagenet.yaml`, `-c` or `--config=` pointing to the shipped file where it exists.
    """
    found = []
    for place, argument in enumerate(args):
        flag, separator, name = argument.rpartition("=") if argument.startswith(("--config=", "-c=")) else ("", "", "")
        if not separator and place and args[place - 1] in ("--config", "-c"):
            name = argument
        name = name.removeprefix("configs/") if name and not Path(name).exists() else ""
        shipped = [folder / name for folder in CONFIGS if name and (folder / name).is_file()]
        found.append(f"{flag}{separator}{shipped[0]}" if shipped else argument)
    return found


def user_error(error: BaseException) -> UserError | None:
    """The `UserError` that an exception is, was caused by, or replaced; None if the fault is not the user's."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, UserError):
            return seen
        seen = seen.__cause__ or seen.__context__
    if isinstance(error, pickle.UnpicklingError):
        return UserError("--ckpt_path names a file that is no checkpoint of this program: give one from checkpoints/")
    if isinstance(error, ArgumentError):
        return UserError(" ".join(str(error).split()))
    return None


def main(args: Sequence[str] | None = None) -> None:
    """Entry point of the `recon` command.

    Args:
        args: Command line without the program's name; None for that of the process.
    """
    given = with_shipped_configs(sys.argv[1:] if args is None else args)
    try:
        if given[:1] == ["replay"]:
            auto_cli(replay, args=given[1:], prog="recon replay")
        else:
            run_cli(given)
    except Exception as error:
        mistake = user_error(error)
        if mistake is None or os.environ.get("LIGHTNING_RECON_DEBUG"):
            raise
        print(f"recon: error: {mistake}", file=sys.stderr)
        sys.exit(2)

