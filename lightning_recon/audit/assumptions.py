# SPDX-License-Identifier: Apache-2.0
"""The assumptions of an audit, as its runs record them."""

from collections.abc import Mapping, Sequence
from typing import Any

from lightning_recon.audit.formatting import number
from lightning_recon.audit.run import Outcome


def assumptions_of(outcomes: Sequence[Outcome]) -> list[tuple[str, str]]:
    """List the assumptions of an audit.

    Args:
        outcomes: Finished cells with known true images.

    Returns:
        Names and values; none without cells.
    """

    def distinct(values: Sequence[object]) -> str:
        return ", ".join(dict.fromkeys(str(value) for value in values)) or "–"

    records = [outcome.record for outcome in outcomes]
    if not records:
        return []
    images = {image for outcome in outcomes for image in outcome.by_image(gain=False)}
    oracles = {outcome.attack: " and ".join(outcome.record["oracles"]) or "none" for outcome in outcomes}
    draws = distinct([record["summary"]["draws"] for record in records])
    deltas = [f"{number(r['privacy']['delta'])}, {r['privacy']['adjacency']}" for r in records]
    participation = distinct([number(record.get("participation", 1.0)) for record in records])
    return [
        (
            "Attacked images",
            f"{len(images)}, each under {draws} independent noise {'draw' if draws == '1' else 'draws'}",
        ),
        ("Target network and images", distinct([outcome.about or "not recorded" for outcome in outcomes])),
        ("Clipping norm C", distinct([r["privacy"]["max_grad_norm"] for r in records])),
        ("δ and adjacency", distinct(deltas)),
        ("Oracle information used", "; ".join(f"{name}: {oracle}" for name, oracle in oracles.items())),
        ("Public image statistics used", distinct([r.get("public_statistics") or "none" for r in records])),
        ("Denoiser of the refinement", distinct([denoiser_in_words(record) for record in records])),
        ("Area of the subject in an image", distinct([f"{100 * r['subject_fraction']:.0f} %" for r in records])),
        ("Batch normalization of the client", distinct([r.get("batchnorm") or "none" for r in records])),
        ("Noise of simulated clients", noise_in_words(records)),
        ("Probability that a client takes part in a round", participation),
    ]


def denoiser_in_words(record: Mapping[str, Any]) -> str:
    """Name and weights of the denoiser; earlier versions did not record it."""
    if "denoiser" not in record:
        return "not recorded"
    found = record["denoiser"]
    return "none" if found is None else f"{found['class_path'].split('.')[-1]} ({found['weights_sha256'][:12]})"


def noise_in_words(records: Sequence[Mapping[str, Any]]) -> str:
    """Whether anyone can draw the noise again; earlier versions did not record it."""
    noisy = [record for record in records if record["privacy"]["noise_multiplier"]]
    if not noisy:
        return "none"
    known = {record["privacy"].get("reproducible_noise") for record in noisy}
    words = {
        True: "reproducible (noise_seed): whoever knows the seed can draw it again and subtract it",
        False: "secret",
        None: "not recorded",
    }
    return "; ".join(text for value, text in words.items() if value in known)
