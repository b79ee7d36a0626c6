# SPDX-License-Identifier: Apache-2.0
"""The `recon` command: LightningCLI, with runs kept in one folder and mistakes answered in one line."""

import io
import logging
import os
import sys
import warnings
from collections.abc import Sequence
from contextlib import redirect_stdout, suppress
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, RichProgressBar
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import TensorBoardLogger

# Classes that may be given by their bare names on the command line.
from lightning_recon import __version__
from lightning_recon.attack import GradientInversion, ReconstructionAttack  # noqa: F401
from lightning_recon.callbacks import Comparison, ImageGrid, ResultsWriter, RunSummary
from lightning_recon.callbacks.originals import Originals
from lightning_recon.data import CapturedPictures, ClientDataModule, GrabCutMasks, NoMasks, SamMasks  # noqa: F401
from lightning_recon.errors import UserError
from lightning_recon.exchange import RecordedClient
from lightning_recon.storage import readable
from lightning_recon.structure import Feedback, RobbingTheFed, SeedPaper, TrapWeights, WaterFilling  # noqa: F401
from lightning_recon.usage import check_checkpoint, configs_first, user_error, with_shipped_configs, writable
from lightning_recon.victim import VictimClient  # noqa: F401

DESCRIPTION = """Measure what a server can see of its users' pictures through clipping and noise.

fit attacks the configured clients; validate only shows what they would release; test scores a finished run again;
predict exports its pictures. `recon replay RUN --output DIR` repeats a run's reconstruction from its exchange alone.
`recon audit --config audit.yaml --output DIR` attacks under many protections and writes a report;
`recon report RUN... --output FILE` writes it from finished runs."""

REPLAY = "Repeat a run's reconstruction from what crossed the wire, where the pictures no longer exist."

LAST = Path("checkpoints", "last.ckpt")


class ReconCLI(LightningCLI):
    """LightningCLI whose run folder, `trainer.default_root_dir`, holds config, events, checkpoints and results."""

    def __init__(self, command: Sequence[str], **kwargs: Any) -> None:  # noqa: ANN401 - Lightning's arguments
        """Parse, build everything, and run the subcommand.

        Args:
            command: What was typed after `recon`, for the record.
            **kwargs: Arguments of LightningCLI.
        """
        self.command = command
        super().__init__(**kwargs)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the callbacks that every run has.

        Args:
            parser: The parser of a subcommand.
        """
        parser.add_lightning_class_args(ImageGrid, "image_grid")
        parser.add_lightning_class_args(ResultsWriter, "results")
        parser.add_lightning_class_args(Comparison, "comparison")
        parser.set_defaults({"trainer.default_root_dir": "runs/recon"})

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse, and check the checkpoint before Lightning trusts it.

        Args:
            parser: The parser of all subcommands.
            args: The command line, or a config.
        """
        super().parse_arguments(parser, args)
        subcommand = self.config.get("subcommand")
        if subcommand and (checkpoint := self.config[subcommand].get("ckpt_path")):
            root = Path(self.config[subcommand].trainer.default_root_dir)
            check_checkpoint(root / LAST if checkpoint == "last" else Path(checkpoint))

    def before_instantiate_classes(self) -> None:
        """Refuse to run without pictures where somebody needs them: recorded and captured updates need none."""
        arguments = self._get(self.config, "model").get("init_args", {})
        client = arguments.get("client") or {}
        recorded = client.get("class_path", "").rpartition(".")[2] == RecordedClient.__name__
        if self._get(self.config, "data") is None and arguments.get("update") is None and not recorded:
            raise UserError(
                "there are no pictures: give --data, for instance by a config such as quickstart.yaml, or "
                "--model.update with an update that was captured"
            )

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:  # noqa: ANN401 - Lightning's signature
        """Build the trainer; unless a logger is configured, TensorBoard's events go to the run folder itself."""
        root = Path(self._get(self.config_init, "trainer.default_root_dir"))
        writable(root)
        last = root / LAST
        self.trainer_defaults["callbacks"] = [
            # One file, overwritten: `--ckpt_path last` finds it whatever the logger.
            ModelCheckpoint(last.parent, save_last=True, every_n_train_steps=20, enable_version_counter=False),
            StepBar(),
            Originals(),
            RunSummary(self.command),
        ]
        if self._get(self.config_init, "trainer.logger") is None:
            kwargs["logger"] = TensorBoardLogger(root, name="", version="", default_hp_metric=False)
        return super().instantiate_trainer(**kwargs)


class SaveConfig(SaveConfigCallback):
    """Keeps the config of the run itself: scoring or exporting it later leaves config.yaml alone."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Nothing yet: the attack may still fail before its first step, and an earlier run's config stay valid.

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
        super().setup(trainer, pl_module, "fit")

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write config.yaml of a run without steps.

        Args:
            trainer: The trainer.
            pl_module: The model.
        """
        super().setup(trainer, pl_module, "fit")


class StepBar(RichProgressBar):
    """Progress in steps: without a limit to them, epochs are not counted."""

    def _get_train_description(self, current_epoch: int) -> str:
        return "Refining  " if self.trainer.max_epochs == -1 else super()._get_train_description(current_epoch)


def run_cli(args: Sequence[str] | dict[str, Any], run: bool = True, command: Sequence[str] | None = None) -> ReconCLI:
    """Parse the arguments, build everything, and run the subcommand.

    Args:
        args: Command line without the program's name, or a config.
        run: Whether to run; otherwise there is no subcommand and the objects are only built.
        command: What was typed after `recon`, for the record. Default: the arguments, unless they are a config.
    """
    return ReconCLI(
        command=command if command is not None else () if isinstance(args, dict) else args,
        model_class=LightningModule,
        datamodule_class=None,  # optional: recorded and captured updates come without pictures
        subclass_mode_model=True,
        subclass_mode_data=True,
        seed_everything_default=0,
        auto_configure_optimizers=False,
        save_config_callback=SaveConfig,
        save_config_kwargs={"overwrite": True},
        trainer_defaults={
            "max_epochs": -1,  # steps say how far an attack is: one that has ended goes on when given more
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
    with readable(folder / "config.yaml"):
        try:
            config = yaml.safe_load((folder / "config.yaml").read_text())
        except yaml.YAMLError as error:
            raise ValueError(str(error)) from error
        kept = {name: config[name] for name in ("seed_everything", "model", "trainer", "image_grid", "results")}
        recorded = {"folder": str(folder / "exchange")}
        own: dict[str, Any] = kept["model"]["init_args"]
        if "network" in own and own["network"] is None:
            own["network"] = (own["client"] or {}).get("init_args", {}).get("network")
        own["client"] = {"class_path": "lightning_recon.exchange.RecordedClient", "init_args": recorded}
        own["update"] = None
        kept["trainer"]["default_root_dir"] = output
    cli = run_cli(kept, run=False, command=["replay", run, "--output", output])
    cli.trainer.fit(cli.model)


def resolved(arguments: Sequence[str]) -> dict[str, Any]:
    """The whole config that `recon fit` would run with.

    Args:
        arguments: Command line of `recon fit` without the subcommand.
    """
    printed = io.StringIO()
    with redirect_stdout(printed), suppress(SystemExit):
        run_cli(configs_first(with_shipped_configs(["fit", *arguments, "--print_config"])))
    config: dict[str, Any] = yaml.safe_load(printed.getvalue())
    return config


def quieten() -> None:
    """Silence what libraries say of themselves and a user can do nothing about."""
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.seed"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        "LightningCLI's args parameter is intended",  # the arguments are the command line's, with config names resolved
        "`isinstance\\(treespec, LeafSpec\\)` is deprecated",  # Lightning 2.6 with newer torch
        ".*does not have many workers",  # the attack's loader yields step numbers
        "The number of training batches",  # logging more often than there are steps is meant
        "Your `IterableDataset` has `__len__` defined",  # the loader of step numbers has no workers
        "Checkpoint directory .* exists and is not empty",  # as it is when a run is resumed or repeated
        "The dirpath has changed from",  # a run folder may be moved
        "You're resuming from a checkpoint that ended before the epoch ended",  # every step carries its own state
        "Using ModelCheckpoint with manual optimization",  # the state after a step is the one to go on from
    ):
        warnings.filterwarnings("ignore", message=message)


def main(args: Sequence[str] | None = None) -> None:
    """Entry point of the `recon` command.

    Args:
        args: Command line without the program's name; None for that of the process.
    """
    typed = sys.argv[1:] if args is None else list(args)
    given = configs_first(with_shipped_configs(typed))
    quieten()
    try:
        if given[:1] == ["replay"]:
            parser = ArgumentParser(prog="recon replay", description=REPLAY, exit_on_error=False)
            parser.add_argument("run", help="folder of a finished run, with config.yaml and exchange/")
            parser.add_argument("--output", required=True, help="folder for the reconstructions and their images")
            chosen = parser.parse_args(given[1:])
            replay(chosen.run, chosen.output)
        elif given[:1] in (["audit"], ["report"]):
            from lightning_recon.audit import command  # drawing is no business of the other commands

            if given[0] == "report":
                command.report(given[1:])
            elif not command.audit(given[1:], resolved):
                sys.exit(1)
        else:
            run_cli(given, command=typed)
    except Exception as error:
        mistake = user_error(error)
        if mistake is None or os.environ.get("LIGHTNING_RECON_DEBUG"):
            raise
        print(f"recon: error: {mistake}", file=sys.stderr)
        sys.exit(2)
