# SPDX-License-Identifier: Apache-2.0
"""The plan of an audit: a list of cells, each an independent `recon fit` with a unique name."""

import hashlib
import itertools
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from lightning_recon import __version__
from lightning_recon.audit.config import AuditedAttack, Reference, Sweep
from lightning_recon.command_line.config_files import read_config
from lightning_recon.command_line.shipped_configs import with_shipped_configs
from lightning_recon.errors import UserError
from lightning_recon.exchange import BatchSampling
from lightning_recon.plural import counted
from lightning_recon.privacy.parameters import mechanism_named


@dataclass(frozen=True)
class Cell:
    """One independent run of an audit.

    Args:
        name: Name of its folder: readable, and with a digest of everything that affects the results.
        attack: Name of the attack in this audit.
        noise_multiplier: z.
        granularity: "sample" or "update".
        batch_size: Images per client.
        rounds: Rounds with the same batch.
        seed: Seed of images and network.
        arguments: Command line of `recon fit` without the output folder.
    """

    name: str
    attack: str
    noise_multiplier: float
    granularity: str
    batch_size: int
    rounds: int
    seed: int
    arguments: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """All cells of an audit by their purpose; a cell may serve several purposes.

    Args:
        sweep: Cells of the sweep.
        reference: Cells of the reference setting; none without interventions.
        changes: Cells of each intervention.
    """

    sweep: list[Cell]
    reference: list[Cell]
    changes: dict[str, list[Cell]]

    @property
    def cells(self) -> list[Cell]:
        """Every cell once, in the order in which they run and appear in tables."""
        groups = [self.sweep, self.reference, *self.changes.values()]
        return list({cell.name: cell for group in groups for cell in group}.values())


def plan_of(sweep: Sweep, bases: Sequence[dict[str, Any]], folder: Path, flags: Sequence[str] = ()) -> Plan:
    """List the cells of an audit, grouped by privacy setting.

    Args:
        sweep: Options of the audit.
        bases: Configs of `recon fit` that all cells share, in their order.
        folder: Folder in which the bases are kept, see `base_path`.
        flags: Further arguments of `recon fit` for all cells.

    Returns:
        Cells with unique names; cells that would give the same results are merged.

    Raises:
        UserError: A config is missing, a flag contradicts the sweep, or no cell is left.
    """
    overlays = {name: _overlays(attack) for name, attack in sweep.attacks.items()}

    def cells(
        z: float, granularity: str, batch_size: int, rounds: int, more: Mapping[str, str] = MappingProxyType({})
    ) -> list[Cell]:
        found = []
        for (name, attack), seed in itertools.product(sweep.attacks.items(), sweep.seeds):
            max_noise_multiplier = math.inf if attack.max_noise_multiplier is None else attack.max_noise_multiplier
            if rounds < attack.min_rounds or z > math.sqrt(rounds) * max_noise_multiplier:
                continue
            own = _cell_flags(z, granularity, batch_size, rounds, seed, sweep)
            _check_flags([*flags, *more], own)
            own |= more
            content = [__version__, name, list(bases), list(overlays[name].values()), list(flags), own]
            digest = hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:8]
            title = re.sub(r"[^\w.-]+", "_", name) + f"-{granularity}-b{batch_size}-t{rounds}-z{z:.3g}"
            configs = [*(str(base_path(folder, base)) for base in bases), *overlays[name]]
            arguments = [word for config in configs for word in ("--config", config)]
            arguments += [*flags, *(word for pair in own.items() for word in pair)]
            place = name, z, granularity, batch_size, rounds, seed
            found.append(Cell(f"{title}-s{seed}-{digest}", *place, tuple(arguments)))
        return found

    found = []
    for granularity, batch_size in itertools.product(sweep.granularity, sweep.batch_size):
        for rounds in sweep.rounds_of(batch_size):
            for z in _noises(sweep, batch_size, rounds):
                found += cells(z, granularity, batch_size, rounds)
    if not found:
        raise UserError(
            "the sweep is empty: every attack needs more rounds (min_rounds) or less noise (max_noise_multiplier) "
            "than the audit has"
        )
    chosen = sweep.reference or Reference()
    granularity, batch = chosen.granularity or sweep.granularity[0], chosen.batch_size or sweep.batch_size[0]
    rounds = chosen.rounds or sweep.rounds_of(batch)[0]
    noises = sorted(_noises(sweep, batch, rounds))
    z = noises[(len(noises) - 1) // 2] if chosen.noise_multiplier is None else chosen.noise_multiplier
    reference = cells(z, granularity, batch, rounds) if sweep.interventions else []
    if sweep.interventions and not reference:
        raise UserError(
            f"no attack of this audit runs with {counted(rounds, 'round')} at z = {z:.3g}: give another "
            "--audit.reference.rounds or .noise_multiplier"
        )
    epochs = sweep.training is not None and sweep.training.epochs is not None and chosen.rounds is None
    changes = {}
    for name, change in sweep.interventions.items():
        size = batch * change.batch_factor
        after = sweep.rounds_of(size)[0] if epochs else rounds
        changes[name] = cells(z * change.noise_factor, granularity, size, after, _words(change.flags))
    return Plan(list({cell.name: cell for cell in found}.values()), reference, changes)


def base_path(folder: Path, base: dict[str, Any]) -> Path:
    """The path of a shared config, named by a digest of its content."""
    return folder / f"{hashlib.sha256(json.dumps(base, sort_keys=True, default=str).encode()).hexdigest()[:8]}.yaml"


def _words(flags: dict[str, bool | int | float | str]) -> dict[str, str]:
    """Flags as words of a command line, with values in YAML."""
    return {f"--{name}": value if isinstance(value, str) else json.dumps(value) for name, value in flags.items()}


def _noises(sweep: Sweep, batch_size: int, rounds: int) -> list[float]:
    if sweep.noise_multiplier:
        return sweep.noise_multiplier
    mechanism, releases = mechanism_named(sweep.mechanism), rounds
    if sweep.training is not None:
        releases = BatchSampling(sweep.training.sampling, sweep.training.images).most_rounds(batch_size, rounds)
    return [mechanism.noise_multiplier_for(e, sweep.delta, releases, sweep.adjacency) for e in sweep.epsilon or []]


def _cell_flags(z: float, granularity: str, batch_size: int, rounds: int, seed: int, sweep: Sweep) -> dict[str, str]:
    privacy, training = "--model.client.privacy", sweep.training
    sampled = {}
    if training is not None:
        sampled = {"--data.local_images": str(training.images), "--model.client.sampling": training.sampling}
    return {
        f"{privacy}.noise_multiplier": repr(z),
        f"{privacy}.granularity": granularity,
        f"{privacy}.rounds": str(rounds),
        f"{privacy}.delta": repr(sweep.delta),
        f"{privacy}.adjacency": sweep.adjacency,
        f"{privacy}.mechanism": sweep.mechanism,
        "--data.batch_size": str(batch_size),
        "--seed_everything": str(seed),
        "--model.client.seed": str(seed),
        "--data.seed": str(seed),
        **sampled,
    }


def _check_flags(flags: Sequence[str], own: dict[str, str]) -> None:
    for flag in flags:
        name = flag.partition("=")[0].replace(".init_args", "")
        if name in own or name == "--trainer.default_root_dir":
            place = "--output" if name == "--trainer.default_root_dir" else f"--audit.{_axis(name)}"
            raise UserError(f"{name} is set by the audit for every cell: use {place}")


def _axis(flag: str) -> str:
    last = flag.rpartition(".")[2].removeprefix("--")
    if last in ("local_images", "sampling"):
        return "training"
    return "seeds" if last in ("seed", "seed_everything") else last


def _overlays(attack: AuditedAttack) -> dict[str, Any]:
    """The content of an attack's overlays by their paths."""
    found = {}
    for name in attack.configs:
        path = with_shipped_configs(["--config", name])[1]
        found[str(Path(path))] = read_config(path)
    return found
