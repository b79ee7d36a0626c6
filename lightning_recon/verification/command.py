# SPDX-License-Identifier: Apache-2.0
"""The command `recon verify`."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import rich
from jsonargparse import ArgumentParser

from lightning_recon.api.verification import verify
from lightning_recon.command_line.config_files import read_config
from lightning_recon.command_line.option_errors import explaining
from lightning_recon.command_line.options import options_of
from lightning_recon.command_line.shipped_configs import configs_in
from lightning_recon.console import say
from lightning_recon.errors import UserError
from lightning_recon.networks.construction import build_network
from lightning_recon.ranges import CHANNELS, SIDE, SIZE, check_ranges
from lightning_recon.verification.options import VerifyOptions
from lightning_recon.verification.report import Verification

OUTPUT = "runs/verify"


def verify_command(args: Sequence[str]) -> bool:
    """Run `recon verify`.

    Args:
        args: command line after the subcommand.

    Returns:
        Whether no claim was refuted.

    Raises:
        UserError: a mistake in the options or in the client, or files cannot be written.
    """
    with explaining(verify_options, ["verify", *args]):
        parser = ArgumentParser(prog="recon verify", exit_on_error=False, allow_abbrev=False)
        parser.add_argument("--config", "-c", action="append", help="file with a section verify; may be repeated")
        parser.add_argument("--output", default=OUTPUT, help="folder for verify.json and verify.xml (JUnit)")
        parser.add_class_arguments(VerifyOptions, "verify")
        sections = json.dumps(merged_sections(configs_in(args)))
        words = ["--help" if word in ("--help_all", "--help-all") else word for word in args]
        chosen = parser.parse_args([*(["--verify", sections] if sections != "{}" else []), *words])
    options, output = parser.instantiate(chosen).verify, Path(chosen.output)
    found = verified(options)
    found.save(output)
    console = rich.get_console()
    if not console.quiet:
        console.print(found.table())
    for remark in found.remarks():
        say(remark)
    say(f"{found.summary}: {output / 'verify.json'}, {output / 'verify.xml'}")
    return found.holds


def verified(options: VerifyOptions) -> Verification:
    """Build the network and verify the client.

    Raises:
        UserError: see `verify`.
    """
    size, channels = options.image_size, options.channels
    check_ranges(
        "--verify.",
        num_classes=(options.num_classes, SIZE),
        image_size=(size, SIDE),
        channels=(channels, CHANNELS),
    )
    return verify(
        options.client,
        build_network(options.network, options.num_classes, seed=options.seed, channels=channels),
        options.claims,
        image_shape=(channels, size, size),
        client_arguments=options.client_arguments,
        restart=options.restart,
        releases=options.releases,
        false_alarms=options.false_alarms,
        seed=options.seed,
    )


def merged_sections(names: Sequence[str]) -> dict[str, Any]:
    """The sections `verify` of configs, in which later ones override earlier ones entry by entry.

    Raises:
        UserError: a file cannot be read, or has other settings.
    """
    found: dict[str, Any] = {}
    for name in names:
        content = read_config(name)
        section = content.pop("verify", None)
        if content or not isinstance(section, dict):
            raise UserError(
                f"config {name} is not of recon verify: write all settings below `verify:`, as in recon configs verify"
            )
        found = _merged(found, section)
    return found


def verify_options() -> dict[str, Any]:
    """The options of `recon verify`, for error messages and completion."""
    single = {"config": str, "output": str, "help": bool, "help_all": bool, "quiet": bool}
    return single | {"verify": options_of(VerifyOptions)}


def _merged(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    both = {name: _merged(first[name], value) for name, value in second.items() if _sections(first.get(name), value)}
    return first | second | both


def _sections(*values: object) -> bool:
    return all(isinstance(value, dict) for value in values)
