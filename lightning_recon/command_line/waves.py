# SPDX-License-Identifier: Apache-2.0
"""`recon fit` with more clients than memory holds: an attack on one wave of clients after another.

A wave is a complete run in a folder of its own, with all that a run has: results, images, ranks that share its clients.
Lightning's epochs would share an optimizer, a checkpoint and a step counter between clients that have nothing to do
with each other. A wave that was interrupted starts again; the finished ones stay.
"""

import gc
from collections.abc import Callable, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch.distributed as dist
import yaml

from lightning_recon.callbacks.console_tables import show_results
from lightning_recon.command_line.wave_results import Progress, merge
from lightning_recon.command_line.wave_sizes import Wave, waves_of
from lightning_recon.data import ClientDataModule
from lightning_recon.errors import UserError
from lightning_recon.files.atomic import write_text
from lightning_recon.files.faults import readable
from lightning_recon.files.schema import WAVE, WaveRecord
from lightning_recon.files.serialization import read_json, read_yaml, write_json
from lightning_recon.interrupts import interrupt_in

WAVE_OPTIONS = {"clients", "clients_at_once", "first_client", "first_image", "actual_batch_sizes"}  # of the data module
DONE = "wave.json"
_MAY_CHANGE = ("clients", "clients_at_once")  # when a run is resumed: finished waves are checked one by one


def fit_in_waves(
    config: Mapping[str, Any],
    at_once: int,
    attack: Callable[[dict[str, Any]], ClientDataModule],
    main_process: bool,
    show: bool,
) -> None:
    """Attack all clients, wave by wave, and merge the results; finished waves are not attacked again.

    Args:
        config: Of the whole run.
        at_once: Clients in a wave.
        attack: Runs the config of one wave; returns its data module, which knows how many images were used.
        main_process: Whether this process writes what concerns all waves.
        show: Whether to print the table of results.
    """
    root, data = Path(config["trainer"]["default_root_dir"]), config["data"]["init_args"]
    waves, position = waves_of(int(data["clients"]), at_once), int(data["first_image"])
    progress = Progress(root, len(waves)) if main_process else None
    for wave in waves:
        place = {"first_client": wave.first_client, "clients": wave.clients, "first_image": position}
        done = finished_wave(root / wave.folder)
        if done is None:
            try:
                position = attack(config_of(config, wave, position)).next_image
            except (KeyboardInterrupt, SystemExit) as stop:  # Lightning turns the first into the second
                if (interrupt := interrupt_in(stop)) is not None:
                    how = "the same command" + (" with --ckpt_path last" if wave.number else "")
                    interrupt.__notes__ = [f"stopped in wave {wave.number + 1} of {len(waves)}: {how} resumes with it"]
                raise
            gc.collect()
            if main_process:
                # Not earlier: another rank, which starts with the first wave, would find a run in the folder.
                own = dict(config) | {"overwrite": False, "ckpt_path": None}
                write_text(root / "config.yaml", yaml.safe_dump(own, sort_keys=False))
                write_json(root / wave.folder / DONE, place | {"next_image": position})
            if dist.is_initialized():
                dist.barrier()
        elif not place.items() <= done.items():
            raise UserError(
                f"{root / wave.folder} holds other clients: use the config.yaml of that run, or --overwrite"
            )
        else:
            position = done["next_image"]
        if progress is not None:
            progress.report(wave, done is None)
    if progress is not None:
        progress.board.close()
        record = merge(root, waves)
        if show:
            show_results(record, root)


def finished_wave(folder: Path) -> WaveRecord | None:
    """What a finished wave recorded of itself; None if it is not finished."""
    if not (folder / DONE).exists():
        return None
    with readable(folder / DONE):
        return read_json(folder / DONE, WAVE)


def check_same_config(root: Path, config: Mapping[str, Any]) -> None:
    """Refuse to resume with other options than those of the run in the folder; there may be fewer clients now.

    Raises:
        UserError: A section differs.
    """
    with readable(root / "config.yaml"):
        before = read_yaml(root / "config.yaml")
    for name in ("seed_everything", "model", "data", "trainer"):
        now, then = ({**(one[name] or {})} if isinstance(one[name], dict) else one[name] for one in (config, before))
        for one in (now, then):
            if name == "data":
                one["init_args"] = {key: value for key, value in one["init_args"].items() if key not in _MAY_CHANGE}
        if now != then:
            raise UserError(f"--{name} is not that of the run in {root}: use the config.yaml of that run")


def config_of(config: Mapping[str, Any], wave: Wave, first_image: int) -> dict[str, Any]:
    """The config of one wave, which repeats it by itself.

    Only the first wave draws what people look at while the attack runs, and records what can be replayed, unless
    `--model.record` gives a number of clients.
    """
    own = deepcopy(dict(config))
    data = own["data"]["init_args"]
    data |= {"first_client": data["first_client"] + wave.first_client}
    data |= {"clients": wave.clients, "clients_at_once": wave.clients, "first_image": first_image}
    if len(sizes := data["actual_batch_sizes"] or []) > 1:
        data["actual_batch_sizes"] = sizes[wave.first_client : wave.first_client + wave.clients]
    root = Path(own["trainer"]["default_root_dir"])
    own["trainer"] |= {"default_root_dir": str(root / wave.folder), "enable_checkpointing": False}
    own["results"]["show"] = False
    own["overwrite"] = True  # what an interrupted attack on this wave left
    for name in ("ckpt_path", "weights_only"):  # of the command
        own.pop(name, None)
    model = own["model"]["init_args"]
    record = model.get("record", False)  # an attack of a user's own may have no such option
    if type(record) is int:
        model["record"] = min(wave.clients, max(0, record - wave.first_client)) or False
    elif record and wave.number:
        model["record"] = False
    if wave.number:
        own["trainer"]["logger"] = False
        own["comparison"] = {"structure": None, "title": None, "victims": 0, "noise_factor": None}
    return own
