# SPDX-License-Identifier: Apache-2.0
"""The `recon` command: LightningCLI, with runs kept in one folder and mistakes answered in one line."""

import logging
import os
import pickle
import sys
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentError, ArgumentParser
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, RichProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
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

REPLAY = "Repeat a run's reconstruction from what crossed the wire, where the pictures no longer exist."

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


class SaveConfig(SaveConfigCallback):
    """Keeps the config of the run itself: scoring or exporting it later leaves config.yaml alone."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write config.yaml before the fit.

        Args:
            trainer: The trainer.
            pl_module: The model.
            stage: The trainer's stage.
        """
        if stage == "fit":
            super().setup(trainer, pl_module, stage)


def run_cli(args: Sequence[str] | dict[str, Any], run: bool = True) -> ReconCLI:
    """Parse the arguments, build everything, and run the subcommand.

    Args:
        args: Command line without the program's name, or a config.
        run: Whether to run; otherwise there is no subcommand and the objects are only built.
    """
    return ReconCLI(
        LightningModule,
        LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        seed_everything_default=0,
        auto_configure_optimizers=False,
        save_config_callback=SaveConfig,
        save_config_kwargs={"overwrite": True},
        trainer_defaults={
            "callbacks": [
                ModelCheckpoint(save_last=True, every_n_train_steps=20, auto_insert_metric_name=False),
                RichProgressBar(),
            ],
            "max_epochs": 1,
            "num_sanity_val_steps": 0,
            "enable_model_summary": False,
        },
        parser_kwargs={"version": __version__, "description": DESCRIPTION, "exit_on_error": False},
        args=args if isinstance(args, dict) else list(args),
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
    config = yaml.safe_load((folder / "config.yaml").read_text())
    kept = {name: config[name] for name in ("seed_everything", "model", "data", "trainer", "image_grid", "results")}
    recording = {"folder": str(folder / "exchange")}
    kept["model"]["init_args"]["client"] = {"class_path": "lightning_recon.exchange.RecordedClient", "init_args": recording}
    kept["trainer"]["default_root_dir"] = output
    cli = run_cli(kept, run=False)
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


def quieten() -> None:
    """Silence what libraries say of themselves and a user can do nothing about."""
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
    for message in (
        "LightningCLI's args parameter is intended",  # the arguments are the command line's, with config names resolved
        "`isinstance\\(treespec, LeafSpec\\)` is deprecated",  # Lightning 2.6 with newer torch
        ".*does not have many workers",  # the attack's loader yields step numbers
        "The number of training batches",  # logging more often than there are steps is meant
    ):
        warnings.filterwarnings("ignore", message=message)


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
    quieten()
    try:
        if given[:1] == ["replay"]:
            parser = ArgumentParser(prog="recon replay", description=REPLAY, exit_on_error=False)
            parser.add_argument("run", help="folder of a finished run, with config.yaml and exchange/")
            parser.add_argument("--output", required=True, help="folder for the reconstructions and their images")
            chosen = parser.parse_args(given[1:])
            replay(chosen.run, chosen.output)
        else:
            run_cli(given)
    except Exception as error:
        mistake = user_error(error)
        if mistake is None or os.environ.get("LIGHTNING_RECON_DEBUG"):
            raise
        print(f"recon: error: {mistake}", file=sys.stderr)
        sys.exit(2)

