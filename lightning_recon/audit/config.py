# SPDX-License-Identifier: Apache-2.0
"""Options of an audit and of its report: attacks, privacy parameters to sweep, and interventions to compare."""

import math
from dataclasses import dataclass, field
from typing import Literal

from lightning_recon.errors import UserError
from lightning_recon.privacy.parameters import mechanism_named
from lightning_recon.ranges import COUNT, NOT_NEGATIVE, POSITIVE, PROBABILITY, SEED_32, SHARE, check_ranges

Sampled = Literal["shuffle", "fixed_size", "poisson"]
AXES = ("granularity", "batch_size", "rounds", "seeds")


@dataclass(frozen=True)
class AuditedAttack:
    """One attack of an audit.

    Args:
        configs: overlays of `recon fit` that select the attack, in their order; none for the audit's own config.
        min_rounds: skip the attack where clients take part in fewer rounds.
        max_noise_multiplier: skip the attack where z / sqrt(rounds) is larger.
    """

    configs: list[str] = field(default_factory=list)
    min_rounds: int = 1
    max_noise_multiplier: float | None = None

    def __post_init__(self) -> None:
        """Refuse numbers that are out of range."""
        check_ranges(
            "--audit.attacks: ",
            min_rounds=(self.min_rounds, COUNT),
            max_noise_multiplier=(self.max_noise_multiplier, NOT_NEGATIVE),
        )


@dataclass(frozen=True)
class Reference:
    """The privacy setting to which interventions are applied; a null entry takes the sweep's first value.

    Args:
        noise_multiplier: noise multiplier z; null takes the median of the sweep's values, the lower of two.
        granularity: unit of clipping, "sample" or "update".
        batch_size: images in a client's batch.
        rounds: rounds with the same batch.
    """

    noise_multiplier: float | None = None
    granularity: Literal["sample", "update"] | None = None
    batch_size: int | None = None
    rounds: int | None = None

    def __post_init__(self) -> None:
        """Refuse numbers that are out of range."""
        check_ranges(
            "--audit.reference.",
            noise_multiplier=(self.noise_multiplier, NOT_NEGATIVE),
            batch_size=(self.batch_size, COUNT),
            rounds=(self.rounds, COUNT),
        )


@dataclass(frozen=True)
class Change:
    """An intervention: a change of the reference setting, whose effect the report states in decibels.

    Args:
        noise_factor: factor by which the noise multiplier is multiplied.
        batch_factor: factor by which the batch size is multiplied.
        flags: further arguments of `recon fit` by name without dashes, such as model.client.privacy.per_layer.
        cost: the cost of the change in words, for the report.
    """

    noise_factor: float = 1.0
    batch_factor: int = 1
    flags: dict[str, bool | int | float | str] = field(default_factory=dict)
    cost: str = ""

    def __post_init__(self) -> None:
        """Refuse numbers that are out of range."""
        check_ranges(
            "--audit.interventions: ",
            noise_factor=(self.noise_factor, POSITIVE),
            batch_factor=(self.batch_factor, COUNT),
        )


@dataclass(frozen=True)
class Training:
    """A whole training under audit, in place of rounds about the same images.

    Args:
        images: number of images that each client holds, from which the batches of its rounds are drawn.
        epochs: passes over these images, which set the number of rounds; null: `audit.rounds` sets it.
        sampling: "shuffle": the batches of a data loader that shuffles the images in every epoch; "fixed_size": batches
            drawn anew in every round; "poisson": every image with the same probability, independently, as in DP-SGD.
    """

    images: int
    epochs: int | None = None
    sampling: Sampled = "shuffle"

    def __post_init__(self) -> None:
        """Refuse numbers that are out of range."""
        check_ranges("--audit.training.", images=(self.images, COUNT), epochs=(self.epochs, COUNT))

    def rounds(self, batch_size: int) -> int:
        """Rounds of the training in batches of this size."""
        return (self.epochs or 1) * math.ceil(self.images / batch_size)


@dataclass(frozen=True)
class Sweep:
    """Options of `recon audit`: what is swept, and how its report classifies the results.

    Args:
        attacks: attacks by their names in the report.
        noise_multiplier: noise multipliers z (scale of the noise / clipping norm); alternative to epsilon.
        epsilon: accounted epsilons over all rounds, which determine the noise; alternative to noise_multiplier.
        granularity: units of clipping, each "sample" or "update".
        batch_size: numbers of images in a client's batch.
        rounds: numbers of rounds in which a client takes part, with the same batch unless `training` is given.
        training: a whole training, in which every round is about a part of a client's images; null: rounds about the
            same images.
        seeds: each seed selects other images and another untrained network. The noise is secret, and drawn anew in
            every cell, unless a `noise_seed` is given.
        delta: delta of the accounted epsilon.
        adjacency: neighbouring relation of the epsilon that is requested and stated first, "add_remove" or
            "replace_one".
        mechanism: "gaussian", "laplace", or the class path of a `privacy.mechanism.Mechanism`.
        interventions: changes of the reference setting by their names in the report, each attacked like the sweep.
        reference: the setting to which interventions are applied; null takes the first entry of each list above and the
            median noise multiplier.
        sampling_rate: sampling probability of a record per round, if Poisson sampling is announced; the report then
            also states every epsilon with amplification by sampling. null: no sampling is announced.
        population_size: number of people whose data are protected, to which delta is compared; null: unknown.
        tolerance: gain in PSNR over the mean image, in dB, that still counts as no leakage.
        verification: verify.json of `recon verify`, whose result about the client's code the report quotes; null: none.
        jobs: number of cells that run in parallel on this machine.
    """

    attacks: dict[str, AuditedAttack]
    noise_multiplier: list[float] | None = None
    epsilon: list[float] | None = None
    granularity: list[Literal["sample", "update"]] = field(default_factory=lambda: ["update"])
    batch_size: list[int] = field(default_factory=lambda: [8])
    rounds: list[int] = field(default_factory=lambda: [1])
    training: Training | None = None
    seeds: list[int] = field(default_factory=lambda: [0])
    delta: float = 1e-5
    adjacency: Literal["add_remove", "replace_one"] = "add_remove"
    mechanism: str = "gaussian"
    interventions: dict[str, Change] = field(default_factory=dict)
    reference: Reference | None = None
    sampling_rate: float | None = None
    population_size: int | None = None
    tolerance: float = 0.5
    verification: str | None = None
    jobs: int = 1

    def __post_init__(self) -> None:
        """Refuse what is empty, contradictory or out of range."""
        mechanism_named(self.mechanism, imported=False)
        if self.noise_multiplier is not None and self.epsilon is not None:
            raise UserError(
                "--audit.noise_multiplier and --audit.epsilon both set the noise: give one (null for the other)"
            )
        if not (self.noise_multiplier or self.epsilon):
            raise UserError("no noise to audit: list some in --audit.noise_multiplier or --audit.epsilon")
        for name in ("attacks", *AXES):
            if not getattr(self, name):
                raise UserError(f"--audit.{name} is empty: name at least one")
        for name, values, range_ in (
            ("noise_multiplier", self.noise_multiplier, NOT_NEGATIVE),
            ("epsilon", self.epsilon, POSITIVE),
            ("batch_size", self.batch_size, COUNT),
            ("rounds", self.rounds, COUNT),
            ("seeds", self.seeds, SEED_32),
        ):
            for value in values or []:
                check_ranges("--audit.", **{name: (value, range_)})
        check_ranges(
            "--audit.",
            delta=(self.delta, PROBABILITY),
            sampling_rate=(self.sampling_rate, SHARE),
            population_size=(self.population_size, COUNT),
            tolerance=(self.tolerance, POSITIVE),
            jobs=(self.jobs, COUNT),
        )
        if self.training is not None:
            self._check_training(self.training)
        for name, change in self.interventions.items():
            if change == Change(cost=change.cost):
                raise UserError(
                    f"--audit.interventions: “{name}” changes nothing: give noise_factor, batch_factor or flags"
                )

    def rounds_of(self, batch_size: int) -> list[int]:
        """Numbers of rounds at a batch size: those of the training's epochs, if it has some, else as listed."""
        if self.training is not None and self.training.epochs is not None:
            return [self.training.rounds(batch_size)]
        return self.rounds

    def _check_training(self, training: Training) -> None:
        """Refuse what contradicts a training."""
        if max(self.batch_size) > training.images:
            raise UserError(
                f"--audit.batch_size is {max(self.batch_size)}, more than the {training.images} images of "
                "--audit.training: lower it"
            )
        if self.epsilon is not None and (training.sampling != "shuffle" or set(self.granularity) != {"sample"}):
            raise UserError(
                "audit.epsilon sets the noise of a training only where batches are shuffled and each sample is "
                "clipped: give audit.noise_multiplier"
            )
        if training.epochs is not None and self.rounds != [1]:  # [1] is the default
            raise UserError(
                f"--audit.rounds is {self.rounds}, but the epochs of --audit.training set the number of rounds: leave "
                "rounds out, or set --audit.training.epochs null"
            )
        if self.sampling_rate is not None:
            raise UserError(
                "--audit.training samples batches, and its report states epsilon with amplification by that: set "
                "--audit.sampling_rate null"
            )


@dataclass(frozen=True)
class ReportOptions:
    """Options of a report.

    Args:
        tolerance: gain in PSNR over the mean image, in dB, that still counts as no leakage.
        population_size: number of people whose data are protected, to which delta is compared; null: unknown.
        sampling_rate: sampling probability of a record per round, if Poisson sampling is announced; null: none is.
        verification: verify.json of `recon verify`, whose result about the client's code the report quotes; null: none.
    """

    tolerance: float = 0.5
    population_size: int | None = None
    sampling_rate: float | None = None
    verification: str | None = None

    def __post_init__(self) -> None:
        """Refuse numbers that are out of range."""
        check_ranges(
            "--",
            tolerance=(self.tolerance, POSITIVE),
            population_size=(self.population_size, COUNT),
            sampling_rate=(self.sampling_rate, SHARE),
        )
