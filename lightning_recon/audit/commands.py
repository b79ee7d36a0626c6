# SPDX-License-Identifier: Apache-2.0
"""The commands `recon audit` and `recon report`."""

import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import ArgumentParser

from lightning_recon.audit.config import ReportOptions, Sweep
from lightning_recon.audit.load import read_audit, read_runs, write_plan
from lightning_recon.audit.plan import Cell, Plan, base_path, plan_of
from lightning_recon.audit.remarks import remarks_of
from lightning_recon.audit.report import check_replaceable, write_report
from lightning_recon.audit.run import cell_folder, is_finished
from lightning_recon.audit.runner import Runner, failure
from lightning_recon.audit.table import write_hparams
from lightning_recon.audit.verification_file import read_verification
from lightning_recon.client import Privacy
from lightning_recon.command_line.config_files import read_config
from lightning_recon.command_line.option_errors import explaining
from lightning_recon.command_line.options import options_of
from lightning_recon.console import say
from lightning_recon.deprecated import Place, modernized_option
from lightning_recon.errors import UserError
from lightning_recon.files.atomic import write_text
from lightning_recon.files.locking import claimed
from lightning_recon.plural import counted

_FIT = ("--data", "--model", "--trainer", "--image_grid", "--results", "--comparison")


def audit(args: Sequence[str], resolve: Callable[[Sequence[str]], dict[str, Any]]) -> bool:
    """Run `recon audit`.

    Args:
        args: Command line after the subcommand.
        resolve: Returns the complete config of `recon fit` for its command line.

    Returns:
        Whether all cells finished.

    Raises:
        UserError: A mistake in the options, found before the first cell runs; or files cannot be written.
    """
    configs, flags, own = split(args)
    sections, bases = read_configs(configs)
    given = ["audit", *(word for name in configs for word in ("--config", name)), *own]
    with explaining(audit_options, given):
        parser = ArgumentParser(prog="recon audit", exit_on_error=False, allow_abbrev=False)
        parser.add_argument("--config", help="config of an audit, or of recon fit; may be repeated")
        parser.add_argument("--output", required=True, help="folder for cells, results.csv and report.html")
        parser.add_class_arguments(Sweep, "audit")
        whole = ["--help" if word in ("--help_all", "--help-all") else word for word in own]
        chosen = parser.parse_args([*(["--audit", json.dumps(sections)] if sections else []), *whole])
    chosen = parser.instantiate(chosen)
    sweep, output = chosen.audit, Path(chosen.output)
    read_verification(sweep.verification)  # before hours of work
    check_replaceable(output / "report.html", output / "results.csv")
    plan = plan_of(sweep, bases, output / "configs", flags)
    cells = plan.cells
    runner = Runner(output, sweep.jobs)
    for base in bases:
        write_text(base_path(output / "configs", base), yaml.safe_dump(base, sort_keys=False))
    check_plan(plan, resolve, sweep.epsilon is not None, sweep.training is not None)
    write_plan(output, plan, sweep.interventions)
    try:
        runner.run(cells)
    except KeyboardInterrupt as stop:
        stop.add_note("stopped; run the same command again to continue")
        raise

    runs, reasons = read_audit(output), {cell: failure(cell_folder(output, cell.name)) for cell in cells}
    failed = [(cell, reason) for cell, reason in reasons.items() if reason]
    options = ReportOptions(sweep.tolerance, sweep.population_size, sweep.sampling_rate, sweep.verification)
    with claimed(output / "locks" / "report"):
        rows = write_report(output / "report.html", output / "results.csv", runs, options, failed)
        write_hparams(output, rows)
    for remark in remarks_of(runs.outcomes, options):
        say(f"warning: {remark}")
    if others := finished_beside(output, plan):
        say(
            f"warning: {counted(others, 'finished cell')} of other settings in {output / 'cells'} "
            f"{'are' if others > 1 else 'is'} not in this report: audit all settings in one command, or give their "
            "folders to recon report"
        )
    done = f"{len(runs.outcomes)} of {len(cells)} cells finished: {output / 'report.html'}, {output / 'results.csv'}; "
    say(f"{done}tensorboard --logdir {output / 'hparams'}")
    return not failed


def finished_beside(output: Path, plan: Plan) -> int:
    """Number of finished cells in an audit's folder that are not of its plan, but of an earlier one."""
    planned = {cell.name for cell in plan.cells}
    folders = [folder for folder in (output / "cells").iterdir() if folder.name not in planned]
    return sum(is_finished(folder) for folder in folders)


def report(args: Sequence[str]) -> None:
    """Run `recon report`.

    Args:
        args: Command line after the subcommand.
    """
    known = options_of(ReportOptions) | {"output": str, "help": bool, "quiet": bool}
    with explaining(lambda: known, ["report", *args]):
        parser = ArgumentParser(prog="recon report", exit_on_error=False, allow_abbrev=False)
        parser.add_argument("runs", nargs="+", help="folders of finished runs, or of an audit")
        parser.add_argument("--output", required=True, help="HTML file; CSV, JSON, annex and card go beside it")
        parser.add_class_arguments(ReportOptions)
        chosen = parser.parse_args([modernized_option(word, "records", "population_size") for word in args])
    page = Path(chosen.output)
    if page.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"--output {page} is not an HTML file: give a name that ends in .html")
    runs = read_runs([Path(run) for run in chosen.runs])
    options = ReportOptions(chosen.tolerance, chosen.population_size, chosen.sampling_rate, chosen.verification)
    write_report(page, page.with_suffix(".csv"), runs, options)
    say(f"report of {counted(len(runs.outcomes), 'run')}: {page}")


def split(args: Sequence[str]) -> tuple[list[str], list[str], list[str]]:
    """Split a command line of `recon audit`.

    Args:
        args: Command line after the subcommand.

    Returns:
        Paths of configs; arguments of `recon fit`; arguments of the audit itself.
    """
    configs: list[str] = []
    flags: list[str] = []
    own: list[str] = []
    waiting: list[str] | None = None
    for argument in args:
        name, given, value = argument.partition("=")
        if waiting is not None:
            waiting.append(argument)
            waiting = None
        elif name in ("--config", "-c"):
            if given:
                configs.append(value)
            else:
                waiting = configs
        elif name == "--seed_everything" or name.startswith(tuple(f"{part}." for part in _FIT)) or name in _FIT:
            flags.append(argument)
            waiting = None if given else flags
        else:
            own.append(argument)
    return configs, flags, own


def read_configs(names: Sequence[str]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Read configs, each of which may have a section `audit` beside those of `recon fit`.

    Args:
        names: Files.

    Returns:
        The section `audit`, in which later files override earlier ones entry by entry; and the rest, file by file.

    Raises:
        UserError: A file cannot be read.
    """
    sections: dict[str, Any] = {}
    classes: dict[Place, str] = {}
    bases = []
    for name in names:
        content = read_config(name, classes)
        section = content.pop("audit", None) or {}
        if not isinstance(section, dict):
            raise UserError(
                f"config {name}: audit is not a section: write its settings below it, as in recon configs audit"
            )
        sections |= section
        if content:
            bases.append(content)
    return sections, bases


def audit_options() -> dict[str, Any]:
    """The options of `recon audit`, for error messages and completion."""
    single = {"config": str, "output": str, "help": bool, "help_all": bool, "quiet": bool}
    return single | {"audit": options_of(Sweep)} | {name.removeprefix("--"): Any for name in _FIT}


def check_plan(
    plan: Plan,
    resolve: Callable[[Sequence[str]], dict[str, Any]],
    by_epsilon: bool = False,
    trained: bool = False,
) -> None:
    """Check before the first cell what would make all cells, or all of one attack or intervention, fail.

    Args:
        plan: The cells.
        resolve: Returns the complete config of `recon fit` for its command line.
        by_epsilon: Whether the noise follows from `audit.epsilon`.
        trained: Whether `audit.training` is given.

    Raises:
        UserError: A config is wrong, privacy parameters are out of range, a requested GPU is missing, or the noise
            would have another epsilon than the requested one.
    """
    configs: dict[str, dict[str, Any]] = {}
    for cell in plan.cells:
        if cell.attack not in configs:
            configs[cell.attack] = resolve(cell.arguments)
    changed = [cells[0] for cells in plan.changes.values() if cells[0] not in plan.sweep]
    for config in [*configs.values(), *(resolve(cell.arguments) for cell in changed)]:
        accelerator = config["trainer"]["accelerator"]
        if accelerator in ("gpu", "cuda") and not (torch.cuda.is_available() or torch.backends.mps.is_available()):
            raise UserError(
                f"trainer.accelerator is {accelerator}, but there is no GPU here: use --trainer.accelerator auto"
            )
    for cell in plan.cells:
        with suppress(LookupError, TypeError):  # a client class of the user
            privacy = configs[cell.attack]["model"]["init_args"]["client"]["init_args"]["privacy"]
            own = {"noise_multiplier": cell.noise_multiplier, "granularity": cell.granularity, "rounds": cell.rounds}
            Privacy(**(privacy | own))
    for cell in [*plan.sweep, *plan.reference] if by_epsilon else []:
        with suppress(LookupError, TypeError):
            _check_releases(cell, configs[cell.attack]["model"]["init_args"]["client"]["init_args"], trained)


def _check_releases(cell: Cell, client: dict[str, Any], trained: bool) -> None:
    """Refuse a client whose rounds are not one release each under independent noise, which `plan_of` accounts for.

    Args:
        cell: The cell.
        client: Its client's options.
        trained: Whether `audit.training` sets the sampling, which `plan_of` then accounts for.
    """
    epochs, bands, sampling = client["local"]["epochs"], client["privacy"]["noise_bands"], client["sampling"]
    option, instead = "", "1"
    if cell.granularity == "sample" and epochs > 1:
        option = f"local.epochs {epochs}, each of which releases every sample once more"
    elif cell.rounds > 1 and bands > 1:
        option = f"privacy.noise_bands {bands}, which correlates the noise of {cell.rounds} rounds"
    elif cell.granularity == "sample" and sampling != "all" and not trained:
        option, instead = f"sampling {sampling}, under which an image is in some of the rounds only", "all"
    elif client["noise_share"] == "distributed" and client["client_dropout"] > 0:
        option, instead = f"client_dropout {client['client_dropout']}, which takes noise out of sums", "0"
    if option:
        raise UserError(
            "audit.epsilon sets independent noise for one release in each round, and the clients of "
            f"“{cell.attack}” have --model.client.{option}: set it to {instead}, or give audit.noise_multiplier"
        )
