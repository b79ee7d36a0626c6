# SPDX-License-Identifier: Apache-2.0
"""The command `recon replay`: repeat a reconstruction from recorded payloads and updates, and compare the results."""

from collections.abc import Sequence
from pathlib import Path

import torch
from jsonargparse import ArgumentParser

from lightning_recon.callbacks.reconstruction_file import RECONSTRUCTIONS, finished
from lightning_recon.command_line.lightning_cli import run_cli
from lightning_recon.command_line.option_errors import explaining
from lightning_recon.command_line.replay_config import replay_config
from lightning_recon.console import say
from lightning_recon.errors import UserError
from lightning_recon.files.run_folder import check_free
from lightning_recon.plural import counted


def replay_command(args: Sequence[str]) -> None:
    """Run `recon replay`.

    Args:
        args: Command line after the command.

    Raises:
        UserError: For every mistake, and for a run that cannot be replayed.
    """
    options = {"output": str, "overwrite": bool, "trust_config": bool, "help": bool, "quiet": bool}
    with explaining(lambda: options, ["replay", *args]):
        parser = ArgumentParser(prog="recon replay", exit_on_error=False, allow_abbrev=False)
        parser.add_argument("run")
        parser.add_argument("--output", required=True)
        parser.add_argument("--overwrite", action="store_true")
        parser.add_argument("--trust_config", type=bool, default=False)
        chosen = parser.parse_args(list(args))
    replay(chosen.run, chosen.output, chosen.overwrite, chosen.trust_config)


def replay(run: str, output: str, overwrite: bool = False, trust_config: bool = False) -> None:
    """Repeat a run's reconstruction from its recorded payloads and updates, without the images.

    Args:
        run: Folder of a finished run, with config.yaml and exchange/.
        output: Folder for the reconstructions and their images.
        overwrite: Whether to replace a run in that folder.
        trust_config: Whether to run code outside this package that config.yaml names.
    """
    folder, target = Path(run), Path(output)
    if target.resolve() == folder.resolve():
        raise UserError(f"--output {output} is the run itself: name another folder")
    check_free(target, overwrite, None, "--output")
    config = replay_config(folder, target, trust_config) | {"overwrite": overwrite}
    cli = run_cli(config, run=False, command=["replay", run, "--output", output])
    with cli.folder:
        cli.trainer.fit(cli.model)
    if cli.trainer.is_global_zero:
        say(f"reconstructions in {output}: {sameness(folder, target)}")


def sameness(run: Path, again: Path) -> str:
    """Whether the reconstructions of a replay equal those of the run, in words.

    Args:
        run: Folder of the run.
        again: Folder of the replay.
    """
    if not (run / f"{RECONSTRUCTIONS}.safetensors").is_file():
        return f"{run} has none to compare them with"
    own, repeated = finished(run)[0], finished(again)[0]
    unrecorded = len(own) - len(repeated)  # `--model.record` may keep the first clients alone
    own = {name: images for name, images in own.items() if name in repeated}
    if own.keys() != repeated.keys() or any(own[name].shape != repeated[name].shape for name in own):
        return f"others than those of {run}, in their number or size: it was recorded with other clients or draws"
    distance = max((float((own[name] - repeated[name]).abs().max()) for name in own if own[name].numel()), default=0.0)
    if all(torch.equal(own[name], repeated[name]) for name in own):
        rest = f"; {counted(unrecorded, 'update was', 'updates were')} not recorded" if unrecorded else ""
        return f"equal to those of {run}, bit for bit{rest}"
    return (
        f"not equal to those of {run} bit for bit, pixels differ by up to {distance:.2g} of 1: other hardware, another "
        "version, or files that were changed"
    )
