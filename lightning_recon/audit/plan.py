# SPDX-License-Identifier: Apache-2.0
"""What an audit will do, as a list of cells: each one an independent `recon fit`, known by a name of its own."""

import hashlib
import itertools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from lightning_recon import __version__
from lightning_recon.errors import UserError
from lightning_recon.evaluation.accounting import noise_multiplier_for
from lightning_recon.usage import with_shipped_configs

AXES = ("granularity", "batch_size", "rounds", "seeds")


@dataclass(frozen=True)
class Attack:
    """One attack of an audit.

    Args:
        configs: overlays of `recon fit` that make it, in their order; none for what the audit's own config says.
        least_rounds: it is left out where clients take part in fewer rounds.
    """

    configs: list[str] = field(default_factory=list)
    least_rounds: int = 1


@dataclass(frozen=True)
class Sweep:
    """What an audit varies, and how its report judges.

    Args:
        attacks: attacks by the names that the report gives them.
        noise_multiplier: noise multipliers z (noise standard deviation / clipping norm); or give epsilon.
        epsilon: accounted epsilons of all rounds together, from which the noise follows; or give noise_multiplier.
        granularity: what is clipped, each "sample" or the whole "update".
        batch_size: pictures in a client's batch.
        rounds: rounds that a client takes part in with the same batch.
        seeds: each one means other pictures, another untrained network and other noise.
        delta: delta at which epsilon is accounted.
        adjacency: neighbours of the epsilon that is asked for and named first: "add_remove" or "replace_one".
        records: how many people's data the protection is about, to judge delta by; null: not known.
        tolerance: PSNR in dB above a mean image that still counts as nothing seen.
        jobs: cells that run at a time on this machine.
    """

    attacks: dict[str, Attack]
    noise_multiplier: list[float] | None = None
    epsilon: list[float] | None = None
    granularity: list[Literal["sample", "update"]] = field(default_factory=lambda: ["update"])
    batch_size: list[int] = field(default_factory=lambda: [8])
    rounds: list[int] = field(default_factory=lambda: [1])
    seeds: list[int] = field(default_factory=lambda: [0])
    delta: float = 1e-5
    adjacency: Literal["add_remove", "replace_one"] = "add_remove"
    records: int | None = None
    tolerance: float = 0.5
    jobs: int = 1

    def __post_init__(self) -> None:
        """Refuse what is empty, contradictory or out of range."""
        if self.noise_multiplier is not None and self.epsilon is not None:
            raise UserError(
                "audit.noise_multiplier and audit.epsilon both set the noise: give one (null for the other)"
            )
        if not (self.noise_multiplier or self.epsilon):
            raise UserError("no noise to audit: list some in audit.noise_multiplier or audit.epsilon")
        for name in ("attacks", *AXES):
            if not getattr(self, name):
                raise UserError(f"audit.{name} is empty: name at least one")
        for name, value in (("rounds", min(self.rounds)), ("batch_size", min(self.batch_size)), ("jobs", self.jobs)):
            if value < 1:
                raise UserError(f"audit.{name} has {value}: give whole numbers of at least 1")
        if not 0 < self.delta < 1:
            raise UserError(f"audit.delta is {self.delta}: give a probability between 0 and 1, for example 1e-5")
        if self.records is not None and self.records < 1:
            raise UserError(f"audit.records is {self.records}: say how many people's data are protected, or null")
        if not self.tolerance > 0:
            raise UserError(f"audit.tolerance is {self.tolerance}: give decibels above 0")


@dataclass(frozen=True)
class Cell:
    """One independent run of an audit.

    Args:
        name: Of its folder: readable, and different for whatever would give other results.
        attack: Name of the attack in this audit.
        noise_multiplier: z.
        granularity: "sample" or "update".
        batch_size: Pictures a client.
        rounds: Rounds with the same batch.
        seed: Of pictures, network and noise.
        arguments: Command line of `recon fit`, but for the output folder.
    """

    name: str
    attack: str
    noise_multiplier: float
    granularity: str
    batch_size: int
    rounds: int
    seed: int
    arguments: tuple[str, ...]


def cells_of(sweep: Sweep, bases: Sequence[dict[str, Any]], folder: Path, flags: Sequence[str] = ()) -> list[Cell]:
    """All cells of a sweep: pictures of one protection together, attacks side by side.

    Args:
        sweep: What is varied.
        bases: Configs of `recon fit` that all cells share, in their order.
        folder: Where `write_bases` puts them.
        flags: Further arguments of `recon fit` for all cells.

    Returns:
        Cells of different names, in the order in which they run and stand in the tables.

    Raises:
        UserError: A config is missing, a flag contradicts the sweep, or no cell is left.
    """
    overlays = {name: _overlays(attack) for name, attack in sweep.attacks.items()}
    found: dict[str, Cell] = {}
    for granularity, batch_size, rounds in itertools.product(sweep.granularity, sweep.batch_size, sweep.rounds):
        for z, (name, attack), seed in itertools.product(_noises(sweep, rounds), sweep.attacks.items(), sweep.seeds):
            if rounds < attack.least_rounds:
                continue
            own = _cell_flags(z, granularity, batch_size, rounds, seed, sweep)
            _check_flags(flags, own)
            content = [__version__, name, list(bases), list(overlays[name].values()), list(flags), own]
            digest = hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:8]
            title = re.sub(r"[^\w.-]+", "_", name)
            title += f"-{granularity}-b{batch_size}-t{rounds}-z{z:.3g}-s{seed}-{digest}"
            configs = [*(str(base_path(folder, base)) for base in bases), *overlays[name]]
            arguments = [word for config in configs for word in ("--config", config)]
            arguments += [*flags, *(word for pair in own.items() for word in pair)]
            found.setdefault(title, Cell(title, name, z, granularity, batch_size, rounds, seed, tuple(arguments)))
    if not found:
        raise UserError("the sweep is empty: every attack asks for more rounds (least_rounds) than audit.rounds has")
    return list(found.values())


def base_path(folder: Path, base: dict[str, Any]) -> Path:
    """Where a shared config is kept: other content, other name."""
    return folder / f"{hashlib.sha256(json.dumps(base, sort_keys=True, default=str).encode()).hexdigest()[:8]}.yaml"


def _noises(sweep: Sweep, rounds: int) -> list[float]:
    if sweep.noise_multiplier:
        return sweep.noise_multiplier
    return [noise_multiplier_for(e, sweep.delta, rounds, sweep.adjacency) for e in sweep.epsilon or []]


def _cell_flags(z: float, granularity: str, batch_size: int, rounds: int, seed: int, sweep: Sweep) -> dict[str, str]:
    privacy = "--model.client.privacy"
    return {
        f"{privacy}.noise_multiplier": repr(z),
        f"{privacy}.granularity": granularity,
        f"{privacy}.rounds": str(rounds),
        f"{privacy}.delta": repr(sweep.delta),
        f"{privacy}.adjacency": sweep.adjacency,
        "--data.batch_size": str(batch_size),
        "--seed_everything": str(seed),
        "--model.client.seed": str(seed),
        "--data.seed": str(seed),
    }


def _check_flags(flags: Sequence[str], own: dict[str, str]) -> None:
    for flag in flags:
        name = flag.partition("=")[0].replace(".init_args", "")
        if name in own or name == "--trainer.default_root_dir":
            place = "--output" if name == "--trainer.default_root_dir" else f"--audit.{_axis(name)}"
            raise UserError(f"{name} is set by the audit itself, for every cell: use {place}")


def _axis(flag: str) -> str:
    last = flag.rpartition(".")[2].removeprefix("--")
    return "seeds" if last in ("seed", "seed_everything") else last


def _overlays(attack: Attack) -> dict[str, Any]:
    """Content of an attack's overlays by the paths that `recon fit` finds them at."""
    found = {}
    for name in attack.configs:
        path = Path(with_shipped_configs(["--config", name])[1])
        try:
            found[str(path)] = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            reason = " ".join(str(error).split())
            raise UserError(
                f"cannot read the attack's config {name} ({reason}): name a file, or a shipped one"
            ) from None
    return found
