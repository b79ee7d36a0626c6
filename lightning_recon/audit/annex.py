# SPDX-License-Identifier: Apache-2.0
"""The annex of a report for regulators and auditors: what was tested, under which assumptions, and what it shows."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lightning_recon import __version__
from lightning_recon.audit.assumptions import noise_in_words
from lightning_recon.audit.attack_classes import attack_classes_of
from lightning_recon.audit.formatting import setting_name
from lightning_recon.audit.run import Outcome, Setting
from lightning_recon.audit.standards import STANDARDS
from lightning_recon.audit.summary import Summary
from lightning_recon.audit.verification_file import VerificationRecord
from lightning_recon.evaluation.formatting import ONE_STREAM, covered

FORMAT = "annex 1"
_UNITS = {
    "sample": "one image: the gradient of each image is clipped alone",
    "update": "one update: all that a client contributes to a round is clipped together",
}

LIMITS = (
    "The result holds for the images, networks, parameters and attacks named here. Another attack may recover more.",
    "Of the numbers in the report, only epsilon, the risks of membership, gamma and the information in nats hold for "
    "every attack, and only if the client's code does what its parameters say.",
    "Clients follow the protocol. A client that is compromised, or that colludes with the server, is not examined.",
    "Only updates were attacked. What the trained model itself reveals after publication was not.",
    "The attacks aimed at images alone, not at names, labels or other data beside them.",
    "This annex states what was tested. It is no certificate, no legal assessment, and no statement that data are "
    "outside the scope of data protection law.",
)


def annex_of(
    outcomes: Sequence[Outcome],
    changed: Sequence[Outcome],
    summary: Summary | None,
    verification: VerificationRecord | None,
) -> dict[str, Any]:
    """The content of `annex.json`, which a page of the report shows too.

    Args:
        outcomes: Finished cells of the sweep, or single runs.
        changed: Finished cells of tested changes.
        summary: The executive summary; None if the true images are not known.
        verification: Result of `recon verify` for the client's code; None if there is none.
    """
    cells = [*outcomes, *changed]
    records = [outcome.record for outcome in cells]
    granularities = sorted({str(record["privacy"]["granularity"]) for record in records})
    images = {image for outcome in cells for image in _images(outcome)}
    hashes = [_hashes(outcome) for outcome in cells]
    return {
        "format": FORMAT,
        "result": None if summary is None else {"light": summary.light, "headline": summary.headline},
        "unit_of_privacy": [_UNITS[name] for name in granularities],
        "trust_model": _trust_model(cells),
        "mechanisms": _mechanisms(outcomes),
        "attack_classes": [asdict(one) for one in attack_classes_of(cells)],
        "oracles": sorted({oracle for record in records for oracle in record["oracles"]}),
        "implementation": _implementation(verification),
        "seeds": sorted({int(record["seed"]) for record in records if record["seed"] is not None}),
        "noise": noise_in_words(records),
        "versions": {"report": f"lightning_recon {__version__}", "runs": _versions(records)},
        "inputs": {
            "images": len(images) if all(outcome.originals for outcome in cells) else None,
            "sha256": _digest([f"{one['cell']} {one['config']} {one['results']} {one['images']}" for one in hashes]),
            "cells": hashes,
        },
        "limits": list(LIMITS),
        "guidance": [asdict(one) for one in STANDARDS],
    }


def _trust_model(outcomes: Sequence[Outcome]) -> str:
    """Who sees what."""
    records = [outcome.record for outcome in outcomes]
    summed = {int(record["privacy"].get("aggregated", 1)) > 1 for record in records}
    seen = "each client's update" if summed == {False} else "sums of clients' updates"
    if summed == {True, False}:
        seen = "each client's update, or in some cells their sum only"
    shared = any(record["privacy"].get("noise_share") in ("distributed", "shared") for record in records)
    where = "A client clips its update and adds noise before it leaves the device (local differential privacy)"
    if shared:
        where = (
            "Where noise is distributed, a client adds a share of it, and the guarantee is that of the sum: it relies "
            "on the other clients and on secure aggregation. Elsewhere a client adds all the noise itself"
        )
    absent = any(covered(record.get("participation")) for record in records)
    stream = f" Where clients do not take part in every round, {ONE_STREAM}." if absent else ""
    bare = any(outcome.noise == 0 for outcome in outcomes)
    without = " Cells without clip or noise have no guarantee." if bare else ""
    return (
        f"{where}. The server sees {seen}, and is the attacker.{without}{stream} The channel between client and server "
        "is taken to be authentic and confidential."
    )


def _mechanisms(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """One entry for each mechanism that was audited, with its guarantee over all rounds."""
    found: dict[tuple[Setting, float, float | None], dict[str, Any]] = {}
    for outcome in outcomes:
        privacy = outcome.record["privacy"]
        found.setdefault(
            (outcome.setting, outcome.noise, privacy["max_grad_norm"]),
            {
                "setting": setting_name(outcome.setting),
                "data": outcome.about,
                "mechanism": privacy.get("mechanism", "gaussian"),
                "max_grad_norm": privacy["max_grad_norm"],
                "noise_multiplier": outcome.noise,
                "per_layer": privacy["per_layer"],
                "rounds": privacy["rounds"],
                "delta": privacy["delta"],
                "epsilon_all_rounds": privacy.get("epsilon_by_adjacency"),
                "accountant": privacy.get("accountant"),
                "membership_advantage": privacy.get("membership_advantage"),
                "membership_tpr": privacy.get("membership_tpr"),
                "rero_gamma": privacy["rero_gamma"],
            },
        )
    return sorted(found.values(), key=lambda one: (one["setting"], one["data"], one["noise_multiplier"]))


def _implementation(verification: VerificationRecord | None) -> dict[str, Any]:
    """Whether the client's code was tested against its parameters, and with which result."""
    if verification is None:
        return {"status": "not run", "why": "no result of recon verify was given (option verification)"}
    verdicts = [line["verdict"] for line in verification["lines"]]
    return {
        "status": "executed",
        "holds": verification["holds"],
        "claims": verification["claims"],
        "lines": {verdict: verdicts.count(verdict) for verdict in sorted(set(verdicts))},
        "refuted": [line["name"] for line in verification["lines"] if line["verdict"] == "refuted"],
        "false_alarms": verification["false_alarms"],
        "versions": verification["versions"],
    }


def _versions(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """Packages with the versions that the runs recorded; several where runs differ."""
    found = {f"{name} {version}" for record in records for name, version in (record.get("versions") or {}).items()}
    return sorted(found)


def _images(outcome: Outcome) -> list[tuple[str, str]]:
    """Source and name of each image."""
    return [(outcome.pictures, str(entry["name"])) for entry in outcome.originals.values()]


def _hashes(outcome: Outcome) -> dict[str, str]:
    """SHA-256 of what a cell was made from and of its record; of its first images, whose files it keeps."""
    folder = outcome.folder
    kept = {
        str(entry[kind]) for entry in outcome.originals.values() for kind in ("used", "photograph") if kind in entry
    }
    return {
        "cell": outcome.name,
        "config": _digest_of_file(folder / "config.yaml"),
        "results": _digest_of_file(folder / "results.json"),
        "images": _digest([f"{name} {_digest_of_file(folder / name)}" for name in sorted(kept)]),
    }


def _digest_of_file(path: Path) -> str:
    """Of a missing file the word "missing"."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return "missing"


def _digest(lines: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
