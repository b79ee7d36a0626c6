# SPDX-License-Identifier: Apache-2.0
"""`recon replay`: a run's reconstruction once more, from what crossed the wire, and whether it is the same."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import ArgumentParser

from lightning_recon.callbacks.results import PICTURES, finished
from lightning_recon.console import say
from lightning_recon.errors import UserError
from lightning_recon.lightning_cli import run_cli
from lightning_recon.mistakes import explaining
from lightning_recon.storage import readable


def replay_command(args: Sequence[str]) -> None:
    """Run `recon replay`.

    Args:
        args: Command line after the command.

    Raises:
        UserError: For every mistake on it, and a run that cannot be replayed.
    """
    with explaining(lambda: {"output": str, "help": bool, "quiet": bool}, ["replay", *args]):
        parser = ArgumentParser(prog="recon replay", exit_on_error=False, allow_abbrev=False)
        parser.add_argument("run")
        parser.add_argument("--output", required=True)
        chosen = parser.parse_args(list(args))
    replay(chosen.run, chosen.output)


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
    cli = run_cli(kept, run=False)
    cli.trainer.fit(cli.model)
    if cli.trainer.is_global_zero:
        say(f"reconstructions in {output}: {sameness(folder, Path(output))}")


def sameness(run: Path, again: Path) -> str:
    """Whether a replay came to the reconstructions of the run, in words.

    Args:
        run: Folder of the run.
        again: Folder of the replay.
    """
    if not (run / f"{PICTURES}.safetensors").is_file():
        return f"{run} has none to compare them with"
    own, repeated = finished(run)[0], finished(again)[0]
    if own.keys() != repeated.keys() or any(own[name].shape != repeated[name].shape for name in own):
        return f"others than those of {run}, in their number or size: it was recorded with other clients or draws"
    distance = max((float((own[name] - repeated[name]).abs().max()) for name in own if own[name].numel()), default=0.0)
    if all(torch.equal(own[name], repeated[name]) for name in own):
        return f"equal to those of {run}, bit for bit"
    return (
        f"not equal to those of {run} bit for bit, pixels differ by up to {distance:.2g} of 1: other hardware, another "
        "version, or files that were changed"
    )
