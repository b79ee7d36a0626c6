# SPDX-License-Identifier: Apache-2.0
"""`recon fit` with more clients than memory holds: an attack on one wave of clients after another.

A wave is a complete run in a folder of its own, with all that a run has: results, images, ranks that share its clients.
Lightning's epochs would share an optimizer, a checkpoint and a step counter between clients that have nothing to do
with each other. A wave that was interrupted starts again; the finished ones stay.
"""

import csv
import gc
import io
import os
import time
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist
import yaml
from torch.utils.tensorboard import SummaryWriter

from lightning_recon.callbacks.console_tables import show_results
from lightning_recon.callbacks.truth_writer import INDEX
from lightning_recon.client import VictimClient
from lightning_recon.console import say
from lightning_recon.data import ClientDataModule
from lightning_recon.errors import UserError
from lightning_recon.evaluation.merged_record import merged_record
from lightning_recon.evaluation.run_record import read_results, write_results
from lightning_recon.files.atomic import write_text
from lightning_recon.files.faults import readable
from lightning_recon.files.run_folder import WAVES
from lightning_recon.files.schema import ORIGINALS, WAVE, WaveRecord
from lightning_recon.files.serialization import read_json, read_yaml, write_json
from lightning_recon.interrupts import interrupt_in

WAVE_OPTIONS = {"clients", "clients_at_once", "first_client", "first_image", "actual_batch_sizes"}  # of the data module
DONE = "wave.json"
TABLE = "waves.csv"
RUNNING = "running"  # TensorBoard's events of all waves
_BYTES_PER_VALUE = 100  # memory for each value of an image and draw: an upper estimate
_SHARE_OF_MEMORY = 0.5
_LIMIT = Path("/sys/fs/cgroup/memory.max")
_MAY_CHANGE = ("clients", "clients_at_once")  # when a run is resumed: finished waves are checked one by one
_COLUMNS = ("victims", "psnr_mean", "ssim_mean", "bit_exact_share", "detected", "seconds")


@dataclass(frozen=True)
class Wave:
    """Clients that are attacked together.

    Args:
        number: Of the wave, from 0.
        first_client: Number of its first client.
        clients: How many there are.
    """

    number: int
    first_client: int
    clients: int

    @property
    def folder(self) -> str:
        """Its folder, relative to the run folder."""
        return f"{WAVES}/{self.number:05d}"


def clients_at_once(data: ClientDataModule, client: object, draws: int, ranks: int = 1, nodes: int = 1) -> int:
    """How many clients a wave has.

    Args:
        data: The data module.
        client: Of the attack.
        draws: Noise draws of each client.
        ranks: Processes on this machine, each of which holds the images of the wave.
        nodes: Number of machines. Their memory may differ, so that nothing is chosen from it.

    Raises:
        UserError: Clients of different waves would have to meet.
    """
    group = client.aggregated if isinstance(client, VictimClient) else 1
    meet = isinstance(client, VictimClient) and client.participation < 1
    wanted = data.clients_at_once
    if wanted is None and (meet or nodes > 1):
        return data.clients
    if wanted is None:
        images = max(data.batch_sizes) * draws
        values = data.image_format.channels * data.image_format.pixels
        wanted = max(1, int(_SHARE_OF_MEMORY * memory() / ranks / (images * values * _BYTES_PER_VALUE)))
        wanted = max(group, wanted - wanted % group)
    if wanted >= data.clients:
        return data.clients
    if wanted % group:
        raise UserError(
            f"--data.clients_at_once is {wanted}, and updates of {group} clients are summed: give a multiple of {group}"
        )
    if meet:
        raise UserError(
            "clients that do not take part in a round answer on the images of others, which may be in another wave: "
            f"set --data.clients_at_once to {data.clients}, or --model.client.participation to 1"
        )
    return wanted


def memory() -> int:
    """Memory that this process may use, in bytes: the machine's, or less in a container or a job of a cluster."""
    if not hasattr(os, "sysconf"):  # Windows
        return 8 << 30
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        return min(machine, int(_LIMIT.read_text()))
    except (OSError, ValueError):  # no such file, or "max"
        return machine


def waves_of(clients: int, at_once: int) -> list[Wave]:
    """All waves of a run."""
    starts = range(0, clients, at_once)
    return [Wave(number, first, min(at_once, clients - first)) for number, first in enumerate(starts)]


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


class Progress:
    """Results so far: in the terminal, as a table, and in TensorBoard."""

    def __init__(self, root: Path, waves: int) -> None:
        """Begin.

        Args:
            root: The run folder.
            waves: How many waves there are.
        """
        self.root, self.waves, self.began = root, waves, time.monotonic()
        self.rows: list[dict[str, Any]] = []
        self.attacked = 0
        self.board = SummaryWriter(str(root / RUNNING))

    def report(self, wave: Wave, attacked: bool) -> None:
        """Report a finished wave.

        Args:
            wave: The wave.
            attacked: Whether it was attacked just now, and not before an interruption.
        """
        summary = results_of(self.root / wave.folder)["summary"]
        row = {"wave": wave.number, "first_client": wave.first_client, "clients": wave.clients}
        self.rows.append(row | {name: summary.get(name) for name in _COLUMNS})
        text = io.StringIO()
        writer = csv.DictWriter(text, list(self.rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        write_text(self.root / TABLE, text.getvalue())
        images = sum(one["victims"] for one in self.rows)
        mean = sum(one["psnr_mean"] * one["victims"] for one in self.rows) / images
        self.board.add_scalar("running_psnr", mean, images)
        self.board.flush()
        self.attacked += attacked
        seconds = time.monotonic() - self.began
        left = seconds / max(1, self.attacked) * (self.waves - len(self.rows))
        ahead = f", about {left:.0f} s left" if attacked and left else ""
        say(f"wave {len(self.rows)} of {self.waves}: {mean:.1f} dB over the {images} images so far{ahead}")


def results_of(folder: Path) -> dict[str, Any]:
    """The record of a finished wave.

    Raises:
        UserError: There is none.
    """
    record = read_results(folder)
    if record is None:
        raise UserError(f"{folder} holds no results.json: remove that folder, and resume with --ckpt_path last")
    return record


def check_images(data: ClientDataModule) -> None:
    """Refuse a source that has too few images, before the first wave.

    Raises:
        UserError: As does a source that cannot be opened.
    """
    source, wanted = data.image_source(), sum(data.batch_sizes)
    if len(source) - data.first_image < wanted:
        raise UserError(
            f"{source.origin} has {max(0, len(source) - data.first_image)} images for these clients, {wanted} are "
            "needed: lower --data.batch_size or --data.clients"
        )


def merge(root: Path, waves: Sequence[Wave]) -> dict[str, Any]:
    """Write `results.json` and the index of the true images of all waves."""
    records, originals = [], []
    for wave in waves:
        folder = root / wave.folder
        records.append(results_of(folder))
        with readable(folder / INDEX):
            for entry in read_json(folder / INDEX, ORIGINALS)["victims"]:
                shifted: dict[str, Any] = dict(entry) | {"client": entry["client"] + wave.first_client}
                for kind in ("photograph", "used"):
                    if kind in shifted:
                        shifted[kind] = f"{wave.folder}/{shifted[kind]}"
                originals.append(shifted)
    merged = merged_record(records, [wave.first_client for wave in waves], [wave.folder for wave in waves])
    write_json(root / INDEX, {"victims": originals})
    write_results(root / "results.json", merged)
    return dict(merged)
