# SPDX-License-Identifier: Apache-2.0
"""What an audit is asked to do: attacks, protections, and the changes of one protection whose worth is measured."""

from dataclasses import dataclass, field
from typing import Literal

from lightning_recon.errors import UserError
from lightning_recon.privacy.parameters import mechanism_named
from lightning_recon.ranges import COUNT, NOT_NEGATIVE, POSITIVE, PROBABILITY, SEED_32, SHARE, check_ranges

AXES = ("granularity", "batch_size", "rounds", "seeds")


@dataclass(frozen=True)
class AuditedAttack:
    """One attack of an audit.

    Args:
        configs: overlays of `recon fit` that make it, in their order; none for what the audit's own config says.
        min_rounds: it is left out where clients take part in fewer rounds.
        max_noise_multiplier: it is left out where the noise multiplier, divided by the root of the rounds, is larger.
    """

    configs: list[str] = field(default_factory=list)
    min_rounds: int = 1
    max_noise_multiplier: float | None = None

    def __post_init__(self) -> None:
        """Refuse numbers that are out of range."""
        check_ranges(
            "audit.attacks: ",
            min_rounds=(self.min_rounds, COUNT),
            max_noise_multiplier=(self.max_noise_multiplier, NOT_NEGATIVE),
        )


@dataclass(frozen=True)
class Reference:
    """The one protection of an audit that changes are tried on; what is null is the first that the sweep lists.

    Args:
        noise_multiplier: noise multiplier z; null: the middle one of the sweep's, the lower of two.
        granularity: what is clipped, "sample" or "update".
        batch_size: pictures in a client's batch.
        rounds: rounds with the same batch.
    """

    noise_multiplier: float | None = None
    granularity: Literal["sample", "update"] | None = None
    batch_size: int | None = None
    rounds: int | None = None

    def __post_init__(self) -> None:
        """Refuse numbers that are out of range."""
        check_ranges(
            "audit.reference.",
            noise_multiplier=(self.noise_multiplier, NOT_NEGATIVE),
            batch_size=(self.batch_size, COUNT),
            rounds=(self.rounds, COUNT),
        )


@dataclass(frozen=True)
class Change:
    """One change of the reference protection, whose worth the report states in decibels.

    Args:
        noise_factor: the noise multiplier becomes so many times as large.
        batch_factor: the batch becomes so many times as large.
        flags: further arguments of `recon fit` by name without dashes, such as model.client.privacy.per_layer.
        cost: what it costs, in words for the report.
    """

    noise_factor: float = 1.0
    batch_factor: int = 1
    flags: dict[str, bool | int | float | str] = field(default_factory=dict)
    cost: str = ""

    def __post_init__(self) -> None:
        """Refuse numbers that are out of range."""
        check_ranges(
            "audit.interventions: ", noise_factor=(self.noise_factor, POSITIVE), batch_factor=(self.batch_factor, COUNT)
        )


@dataclass(frozen=True)
class Sweep:
    """What an audit varies, and how its report judges.

    Args:
        attacks: attacks by the names that the report gives them.
        noise_multiplier: noise multipliers z (scale of the noise / clipping norm); or give epsilon.
        epsilon: accounted epsilons of all rounds together, from which the noise follows; or give noise_multiplier.
        granularity: what is clipped, each "sample" or the whole "update".
        batch_size: pictures in a client's batch.
        rounds: rounds that a client takes part in with the same batch.
        seeds: each one means other pictures, another untrained network and other noise.
        delta: delta at which epsilon is accounted.
        adjacency: neighbours of the epsilon that is asked for and named first: "add_remove" or "replace_one".
        mechanism: "gaussian", "laplace", or the class path of a `privacy.mechanism.Mechanism`.
        interventions: changes of one protection by the names that the report gives them, each attacked like the sweep.
        reference: the protection that is changed; null: the first of each list above, the middle one of the noises.
        sampling_rate: probability with which a round uses a record, if you announce Poisson sampling: the report then
            states beside every epsilon what it would be if the server honours that; null: it does not.
        population_size: how many people's data the protection is about, to judge delta by; null: not known.
        tolerance: PSNR in dB above a mean image that still counts as nothing seen.
        jobs: cells that run at a time on this machine.
    """

    attacks: dict[str, AuditedAttack]
    noise_multiplier: list[float] | None = None
    epsilon: list[float] | None = None
    granularity: list[Literal["sample", "update"]] = field(default_factory=lambda: ["update"])
    batch_size: list[int] = field(default_factory=lambda: [8])
    rounds: list[int] = field(default_factory=lambda: [1])
    seeds: list[int] = field(default_factory=lambda: [0])
    delta: float = 1e-5
    adjacency: Literal["add_remove", "replace_one"] = "add_remove"
    mechanism: str = "gaussian"
    interventions: dict[str, Change] = field(default_factory=dict)
    reference: Reference | None = None
    sampling_rate: float | None = None
    population_size: int | None = None
    tolerance: float = 0.5
    jobs: int = 1

    def __post_init__(self) -> None:
        """Refuse what is empty, contradictory or out of range."""
        mechanism_named(self.mechanism, imported=False)
        if self.noise_multiplier is not None and self.epsilon is not None:
            raise UserError(
                "audit.noise_multiplier and audit.epsilon both set the noise: give one (null for the other)"
            )
        if not (self.noise_multiplier or self.epsilon):
            raise UserError("no noise to audit: list some in audit.noise_multiplier or audit.epsilon")
        for name in ("attacks", *AXES):
            if not getattr(self, name):
                raise UserError(f"audit.{name} is empty: name at least one")
        for name, values, range_ in (
            ("noise_multiplier", self.noise_multiplier, NOT_NEGATIVE),
            ("epsilon", self.epsilon, POSITIVE),
            ("batch_size", self.batch_size, COUNT),
            ("rounds", self.rounds, COUNT),
            ("seeds", self.seeds, SEED_32),
        ):
            for value in values or []:
                check_ranges("audit.", **{name: (value, range_)})
        check_ranges(
            "audit.",
            delta=(self.delta, PROBABILITY),
            sampling_rate=(self.sampling_rate, SHARE),
            population_size=(self.population_size, COUNT),
            tolerance=(self.tolerance, POSITIVE),
            jobs=(self.jobs, COUNT),
        )
        for name, change in self.interventions.items():
            if change == Change(cost=change.cost):
                raise UserError(
                    f"audit.interventions: “{name}” changes nothing: give noise_factor, batch_factor or flags"
                )
