# SPDX-License-Identifier: Apache-2.0
"""The commands that run an attack: LightningCLI with one folder per run and one-line messages for mistakes."""

import io
from collections.abc import Sequence
from contextlib import redirect_stdout, suppress
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger

# Classes that may be given by their bare names on the command line.
from lightning_recon.attack import Attack, GradientInversion, ReconstructionAttack  # noqa: F401
from lightning_recon.callbacks import Comparison, ImageGrid, ResultsWriter, RunSummary
from lightning_recon.callbacks.progress import progress_bars
from lightning_recon.callbacks.truth_writer import TruthWriter
from lightning_recon.client import VictimClient
from lightning_recon.command_line.cli_arguments import check_checkpoint, writable
from lightning_recon.command_line.commands import OPTIONS, RUNS
from lightning_recon.command_line.config_files import check_settings, with_current_names
from lightning_recon.command_line.option_errors import explaining
from lightning_recon.command_line.options import options_of
from lightning_recon.command_line.parser import TITLES, Parser
from lightning_recon.command_line.save_config import SaveConfig
from lightning_recon.command_line.shipped_configs import (
    configs_first,
    configs_in,
    with_shipped_configs,
)
from lightning_recon.command_line.trainer_options import (
    buildable,
    check_finite,
    check_seed,
    check_strategy,
    check_trainer,
    checkpoints_wanted,
    trainer_errors,
    write_whole_checkpoints,
)
from lightning_recon.command_line.wave_sizes import check_images, clients_at_once, waves_of
from lightning_recon.command_line.waves import WAVE_OPTIONS, check_same_config, finished_wave, fit_in_waves
from lightning_recon.console import is_quiet
from lightning_recon.data import CapturedPictures, ClientDataModule, GrabCutMasks, NoMasks, SamMasks  # noqa: F401
from lightning_recon.errors import UserError
from lightning_recon.exchange import RecordedClient
from lightning_recon.files.run_folder import LAST, WAVES, RunFolder, check_free
from lightning_recon.structure import CuriousAbandonHonesty, Feedback, RobbingTheFed, SeedPaper, WaterFilling  # noqa: F401


class ReconCLI(LightningCLI):
    """LightningCLI that keeps config, events, checkpoints and results in `trainer.default_root_dir`."""

    def __init__(self, command: Sequence[str], args: ArgsType, **kwargs: Any) -> None:  # noqa: ANN401 - Lightning's
        """Parse, build everything, and run the subcommand.

        Args:
            command: The words typed after `recon`, for the record.
            args: Command line, beginning with the subcommand; or a config.
            **kwargs: Further arguments of LightningCLI.
        """
        self.command = command
        self.given_subcommand = args[0] if isinstance(args, list) else None
        super().__init__(args=args, **kwargs)

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override] # static in Lightning, called on the instance
        """The given subcommand only: setting up the options of all four takes most of the parsing time."""
        return {name: skipped for name, skipped in super().subcommands().items() if name == self.given_subcommand}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the callbacks of every run.

        Args:
            parser: The parser of a subcommand.
        """
        parser.add_lightning_class_args(ImageGrid, "image_grid")
        parser.add_lightning_class_args(ResultsWriter, "results")
        parser.add_lightning_class_args(Comparison, "comparison")
        parser.set_defaults({"trainer.default_root_dir": "runs/recon"})
        parser.add_argument(
            "--overwrite",
            type=bool,
            nargs="?",
            const=True,
            default=False,
            help="fit: replace the run that trainer.default_root_dir holds, once the new one has been set up",
        )
        # Help lists the options of this program before the many options of Lightning's Trainer.
        groups: Any = parser.groups
        for name, title in TITLES.items():
            groups[name].title = title
        order: Any = parser._action_groups
        order.sort(key=lambda group: group.title == TITLES["trainer"])

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse, and check the checkpoint before Lightning trusts it.

        Args:
            parser: The parser of all subcommands.
            args: The command line, or a config.
        """
        super().parse_arguments(parser, args)
        subcommand = self.config.get("subcommand")
        config = self.config[subcommand] if subcommand else self.config
        check_finite(config)
        check_seed(config.get("seed_everything"))
        check_trainer(config.trainer)
        root, checkpoint = Path(config.trainer.default_root_dir), config.get("ckpt_path")
        in_waves = subcommand == "fit" and checkpoint == "last" and any(root.glob(f"{WAVES}/*/wave.json"))
        if checkpoint and not in_waves:
            check_checkpoint(root / LAST if checkpoint == "last" else Path(checkpoint))
        self.fits = subcommand in (None, "fit")
        self.folder = RunFolder(root, bool(config.overwrite), checkpoint, self.fits)
        if self.fits:
            check_free(root, self.folder.overwrite, checkpoint)

    def before_instantiate_classes(self) -> None:
        """Refuse to run without images, unless the updates are recorded or captured."""
        arguments = self._get(self.config, "model").get("init_args", {})
        client = arguments.get("client") or {}
        recorded = client.get("class_path", "").rpartition(".")[2] == RecordedClient.__name__
        if self._get(self.config, "data") is None and arguments.get("update") is None and not recorded:
            raise UserError(
                "there are no images: give --data, for instance by a config such as quickstart.yaml, or "
                "--model.update with a captured update"
            )
        # Lightning passes this to `save_hyperparameters`; left to it, it would validate every value once more.
        text = self.parser.dump(self.config, skip_link_targets=False, skip_unset=False, skip_validation=True)
        whole = yaml.safe_load(text)
        self.config_dump = whole[self.subcommand] if self.subcommand else whole

    def instantiate_classes(self) -> None:
        """Build data, model and trainer; a value that a constructor refuses is reported in one line."""
        with buildable():
            super().instantiate_classes()

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:  # noqa: ANN401 - Lightning's signature
        """Build the trainer; unless a logger is configured, TensorBoard's events go to the run folder.

        Only `fit` logs, saves its config and creates the folder; the other commands read an existing run.
        """
        root, options = self.folder.root, self._get(self.config_init, "trainer")
        callbacks: list[Callback] = [*progress_bars(options), RunSummary(self.command)]
        if checkpoints_wanted(options):
            # One file, overwritten, which `--ckpt_path last` finds independently of the logger.
            folder = (root / LAST).parent
            callbacks.append(
                ModelCheckpoint(folder, save_last=True, every_n_train_steps=20, enable_version_counter=False)
            )
        client = getattr(self.model, "client", None)
        if isinstance(client, VictimClient):  # one that trains a network brings its own callbacks
            callbacks.append(client.noise_source)
        self.trainer_defaults["callbacks"] = callbacks
        if self.fits:
            writable(root)
        else:
            kwargs["logger"] = False
        if is_quiet():
            kwargs["enable_progress_bar"] = False
        with trainer_errors():
            if self.fits and options.get("logger") is None:
                kwargs["logger"] = TensorBoardLogger(root, name="", version="", default_hp_metric=False)
            trainer = super().instantiate_trainer(**kwargs)
        check_strategy(trainer.strategy)
        write_whole_checkpoints(trainer)
        # Before `results.json`, with which a cell of an audit counts as finished.
        trainer.callbacks.insert(0, TruthWriter())  # type: ignore[attr-defined]
        if self.subcommand != "validate":
            # First, so that the replaced run is removed before any other callback writes.
            trainer.callbacks.insert(0, self.folder.held_by(trainer))  # type: ignore[attr-defined]
        return trainer

    def _run_subcommand(self, subcommand: str) -> None:
        """Run the subcommand while no other process can write to the folder."""
        if subcommand == "validate":
            super()._run_subcommand(subcommand)
            return
        with self.folder:
            at_once = self._clients_at_once() if subcommand == "fit" else None
            if at_once is None:
                super()._run_subcommand(subcommand)
            else:
                self._fit_in_waves(at_once)

    def _clients_at_once(self) -> int | None:
        """Clients in a wave; None if all are attacked at once."""
        if not isinstance(self.datamodule, ClientDataModule) or not isinstance(self.model, Attack):
            return None
        if not self.config_dump["data"]["init_args"].keys() >= WAVE_OPTIONS:  # a data module of somebody else
            return None
        if self.folder.checkpoint:  # what the run was begun as
            begun = finished_wave(self.folder.root / waves_of(1, 1)[0].folder)
            return None if begun is None else begun["clients"]
        ranks = self.trainer.num_devices, self.trainer.num_nodes
        at_once = clients_at_once(self.datamodule, self.model.client, self.model.draws, *ranks)
        return None if at_once == self.datamodule.clients else at_once

    def _fit_in_waves(self, at_once: int) -> None:
        """Attack one wave of clients after another, see `waves`."""
        main_process, root = self.trainer.is_global_zero, self.folder.root
        assert isinstance(self.datamodule, ClientDataModule)
        check_images(self.datamodule)  # before anything is replaced
        self.model = self.datamodule = None  # every wave has its own
        if self.folder.checkpoint:
            check_same_config(root, self.config_dump)
        elif main_process:
            self.folder.begin()

        def attack(config: dict[str, Any]) -> ClientDataModule:
            wave = run_cli(config, run=False, command=self.command)
            with wave.folder:
                wave.trainer.fit(wave.model, datamodule=wave.datamodule)
            assert isinstance(wave.datamodule, ClientDataModule)
            return wave.datamodule

        fit_in_waves(self.config_dump, at_once, attack, main_process, self._get(self.config, "results")["show"])


def run_cli(args: Sequence[str] | dict[str, Any], run: bool = True, command: Sequence[str] | None = None) -> ReconCLI:
    """Parse the arguments, build everything, and run the subcommand.

    Args:
        args: Command line without the program's name, or a config.
        run: Whether to run; otherwise there is no subcommand and the objects are only built.
        command: The words typed after `recon`, for the record; default: the arguments, unless they are a config.
    """
    parser_texts: dict[str, Any] = {"prog": "recon"}
    if not isinstance(args, dict):
        parser_texts[args[0]] = {"usage": f"recon {args[0]} {OPTIONS}", "description": RUNS[args[0]]}
        args = with_current_names(args)
        check_settings([name for name in configs_in(args) if not name.lstrip().startswith("{")], roots())
    with explaining(roots, [] if isinstance(args, dict) else args):
        return ReconCLI(
            command=command if command is not None else () if isinstance(args, dict) else args,
            model_class=LightningModule,
            datamodule_class=None,  # optional: recorded and captured updates need no images
            subclass_mode_model=True,
            subclass_mode_data=True,
            seed_everything_default=0,
            auto_configure_optimizers=False,
            parser_class=Parser,
            save_config_callback=SaveConfig,
            trainer_defaults={
                "max_epochs": -1,  # the number of steps limits an attack; a finished one resumes when given more
                "num_sanity_val_steps": 0,
                "enable_model_summary": False,
            },
            parser_kwargs=parser_texts,
            args=args if isinstance(args, dict) else list(args),
            run=run,
        )


def roots() -> dict[str, Any]:
    """The options of `recon fit` and the other run commands, for messages and completion; see `options.options_of`."""
    groups = {"trainer": Trainer, "image_grid": ImageGrid, "results": ResultsWriter, "comparison": Comparison}
    single = {"config": str, "print_config": str, "seed_everything": bool | int, "ckpt_path": str | None}
    single |= {"weights_only": bool | None, "overwrite": bool, "help": bool, "help_all": bool, "quiet": bool}
    single |= {"verbose": bool, "return_predictions": bool | None}
    return {
        "model": LightningModule,
        "data": LightningDataModule | None,
        **{name: options_of(owner) for name, owner in groups.items()},
        **single,
    }


def resolved(arguments: Sequence[str]) -> dict[str, Any]:
    """The complete config with which `recon fit` would run.

    Args:
        arguments: Command line of `recon fit` without the subcommand.
    """
    printed = io.StringIO()
    with redirect_stdout(printed), suppress(SystemExit):
        run_cli(configs_first(with_shipped_configs(["fit", *arguments, "--print_config"])))
    config: dict[str, Any] = yaml.safe_load(printed.getvalue())
    return config
