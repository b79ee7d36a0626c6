# SPDX-License-Identifier: Apache-2.0
"""The classes of attacks that an annex lists: which ones an audit executed, which not, and why."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lightning_recon.audit.run import Outcome

Status = Literal["executed", "bounded, not run", "not run", "out of scope"]
Record = Mapping[str, Any]


@dataclass(frozen=True)
class AttackClass:
    """A class of attacks.

    Args:
        name: Of the class.
        taxonomy: Its class in NIST AI 100-2 E2025.
        status: "executed"; "bounded, not run": a bound in the report holds for every attack of the class; "not run": it
            belongs to this audit's subject, but no cell covers it; "out of scope".
        attacks: Names of the attacks of this audit.
        why: The reason for the status.
    """

    name: str
    taxonomy: str
    status: Status
    attacks: tuple[str, ...]
    why: str


# Name; whether a run is of the class; what to do where none is.
_RECONSTRUCTION: tuple[tuple[str, Callable[[Record], bool], str], ...] = (
    (
        "reconstruction by a malicious server, which modifies the model",
        lambda record: bool(record["summary"].get("structure_bytes")) and not record.get("capture"),
        "no structure was among the attacks",
    ),
    (
        "reconstruction by an honest-but-curious server (gradient inversion)",
        lambda record: not record["summary"].get("structure_bytes"),
        "no gradient inversion was among the attacks",
    ),
    (
        "reconstruction from several rounds about the same images",
        lambda record: int(record["privacy"]["rounds"]) > 1 and not record["privacy"].get("sampling"),
        "audit.rounds lists one round only",
    ),
    (
        "extraction of a data set over a training in changing batches",
        lambda record: bool(record["privacy"].get("sampling")),
        "audit.training was not set",
    ),
    (
        "reconstruction from a sum of clients (secure aggregation)",
        lambda record: int(record["privacy"].get("aggregated", 1)) > 1,
        "no cell adds up clients",
    ),
    (
        "reconstruction from an update captured from another program",
        lambda record: bool(record.get("capture")),
        "no captured update was attacked",
    ),
    (
        "identification of a client's image among others",
        lambda record: record["summary"].get("identification") is not None,
        "no gallery was compared",
    ),
)


def attack_classes_of(outcomes: Sequence[Outcome]) -> list[AttackClass]:
    """The classes of attacks with their status in this audit.

    Args:
        outcomes: All finished cells, those of tested changes included.
    """
    reconstruction = "privacy: data reconstruction"
    classes = []
    for name, matches, otherwise in _RECONSTRUCTION:
        matching = [outcome for outcome in outcomes if matches(outcome.record)]
        attacks = tuple(dict.fromkeys(outcome.attack for outcome in matching))
        status: Status = "executed" if attacks else "not run"
        why = f"{len(matching)} of {len(outcomes)} cells" if attacks else otherwise
        classes.append(AttackClass(name, reconstruction, status, attacks, why))
    advantages = [outcome.record["privacy"].get("membership_advantage") for outcome in outcomes]
    bounded = any(one is not None and one < 1 for one in advantages)
    membership: Status = "bounded, not run" if bounded else "not run"
    reason = "the report states bounds on advantage and true-positive rates of every such attack, where there is noise"
    return [
        *classes,
        AttackClass(
            "a server that knows how clients inspect the model", reconstruction, "not run", (),
            "the checks of lightning_recon.defense warn of the shipped attacks; a server that adapts can pass them",
        ),
        AttackClass(
            "membership inference", "privacy: membership inference", membership, (),
            reason if bounded else "no bound is known for these cells",
        ),
        AttackClass(
            "inference of labels and of properties", "privacy: property inference", "out of scope", (),
            "labels are scored only where an attack recovers them; differential privacy of a record does not protect "
            "properties of a data set",
        ),
        AttackClass(
            "attacks on the trained model (inversion, extraction)", "privacy: reconstruction, model extraction",
            "out of scope", (), "this audit attacks updates, not what is published after training",
        ),
        AttackClass(
            "poisoning and evasion", "poisoning, evasion", "out of scope", (),
            "they attack what a model does, not whose images it was trained on",
        ),
    ]  # fmt: skip
