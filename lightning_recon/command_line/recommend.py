# SPDX-License-Identifier: Apache-2.0
"""The command `recon recommend`: the noise for a wanted risk, and the risks that remain under a given noise."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import rich
from jsonargparse import ArgumentParser
from rich.table import Table

from lightning_recon.command_line.option_errors import explaining
from lightning_recon.command_line.options import options_of
from lightning_recon.console import say
from lightning_recon.errors import UserError
from lightning_recon.evaluation.formatting import ADJACENCIES
from lightning_recon.privacy.mechanism import Mechanism
from lightning_recon.privacy.noise_for_risk import RISKS, Risk, noise_multiplier_for_risks, risk_limit
from lightning_recon.privacy.parameters import mechanism_named
from lightning_recon.ranges import COUNT, POSITIVE, PROBABILITY, check_ranges


@dataclass(frozen=True)
class RecommendOptions:
    """Options of `recon recommend`.

    Args:
        noise_multiplier: state the risks under this noise, instead of computing it from limits; null: compute it.
        rounds: releases of the same data; limits are on all of them together.
        max_grad_norm: clipping norm, to state the standard deviation of the noise; null: it is not stated.
        mechanism: "gaussian", "laplace", "skellam", "discrete_gaussian", or a class path.
        delta: delta of the stated epsilon.
        adjacency: whether a record is missing from neighbouring data, "add_remove", or replaced, "replace_one".
    """

    noise_multiplier: float | None = None
    rounds: int = 1
    max_grad_norm: float | None = None
    mechanism: str = "gaussian"
    delta: float = 1e-5
    adjacency: Literal["add_remove", "replace_one"] = "add_remove"

    def __post_init__(self) -> None:
        """Refuse numbers out of range."""
        check_ranges(
            "--",
            noise_multiplier=(self.noise_multiplier, POSITIVE),
            rounds=(self.rounds, COUNT),
            max_grad_norm=(self.max_grad_norm, POSITIVE),
            delta=(self.delta, PROBABILITY),
        )

    @property
    def noise(self) -> Mechanism:
        """The mechanism itself."""
        return mechanism_named(self.mechanism, imported=False)


def recommend_options() -> dict[str, Any]:
    """The options of `recon recommend`, for error messages and completion."""
    return {"risk": str, "help": bool, "quiet": bool} | options_of(RecommendOptions)


def recommend(args: Sequence[str]) -> None:
    """Run `recon recommend`.

    Args:
        args: command line after the command.

    Raises:
        UserError: a mistake in the options, or no noise keeps the risks within their limits.
    """
    with explaining(recommend_options, ["recommend", *args]):
        parser = ArgumentParser(prog="recon recommend", exit_on_error=False, allow_abbrev=False)
        parser.add_argument("--risk", nargs="+", default=[], type=str, help="limits, such as advantage=0.1")
        parser.add_class_arguments(RecommendOptions)
        chosen = parser.parse_args(list(args))
    limits = [risk_limit(text) for text in chosen.risk]
    options = RecommendOptions(**{field.name: chosen[field.name] for field in fields(RecommendOptions)})
    z = options.noise_multiplier
    if bool(limits) == (z is not None):
        raise UserError(
            "give either --risk with limits, such as advantage=0.1, or --noise_multiplier to state its risks"
        )
    if z is None:
        z = noise_multiplier_for_risks(limits, options.noise, options.rounds, options.delta, options.adjacency)
        kept = " and ".join(f"{in_words(risk, options)} to at most {number_of(risk, limit)}" for risk, limit in limits)
        say(f"to keep {kept}, {rounds_in_words(options.rounds)}:")
    noise = f"noise multiplier z = {z:.6g}, {options.noise.name} noise"
    if options.max_grad_norm is not None:
        std = z * options.max_grad_norm * options.noise.noise_std
        noise += f" of standard deviation {std:.6g} on every number of the clipped sum or update"
    say(noise)
    rich.print(table_of(options, z))
    say("No attack does better, whatever it knows otherwise. Members are the records in the data: what is clipped, an")
    say("image or a whole update. The advantage is the share of members found less that of others accused wrongly.")


def table_of(options: RecommendOptions, noise_multiplier: float) -> Table:
    """All risks under a noise multiplier: of all rounds together first, then of a single one.

    Args:
        options: mechanism, rounds, delta and adjacency.
        noise_multiplier: z, > 0.
    """
    table = Table("any attack, at most")
    counts = [options.rounds] if options.rounds == 1 else [options.rounds, 1]
    for count in counts:
        table.add_column(rounds_in_words(count), justify="right")
    for risk in RISKS:
        found = [risk.of(options.noise, noise_multiplier, count, options.delta, options.adjacency) for count in counts]
        table.add_row(in_words(risk, options), *("–" if one is None else number_of(risk, one) for one in found))
    return table


def in_words(risk: Risk, options: RecommendOptions) -> str:
    """What a risk is, for the table."""
    if risk.measure == "epsilon":
        return f"ε at δ = {options.delta:g} ({ADJACENCIES[options.adjacency]})"
    if risk.measure == "mu":
        return "μ (Gaussian differential privacy)"
    if risk.measure == "advantage":
        return "membership advantage"
    if risk.measure == "tpr":
        return f"members found at {number_of(risk, risk.at or 0)} false positives"
    return f"reconstruction (blind guess: {number_of(risk, risk.at or 0)})"


def number_of(risk: Risk, value: float) -> str:
    """A value of a risk: probabilities in per cent."""
    return f"{value:.4g}" if risk.measure in ("epsilon", "mu") else f"{100 * value:.3g} %"


def rounds_in_words(rounds: int) -> str:
    """How many releases a number is about."""
    return "one round" if rounds == 1 else f"all {rounds} rounds together"
