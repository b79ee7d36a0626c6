# SPDX-License-Identifier: Apache-2.0
"""What an audit took for granted, read off its runs."""

from collections.abc import Sequence

from lightning_recon.audit.run import Outcome
from lightning_recon.audit.wording import number


def assumptions_of(outcomes: Sequence[Outcome]) -> list[tuple[str, str]]:
    """What this audit took for granted, as far as it is recorded.

    Args:
        outcomes: Finished cells whose truth was at hand.

    Returns:
        Names and values; none without cells.
    """

    def each(values: Sequence[object]) -> str:
        return ", ".join(dict.fromkeys(str(value) for value in values)) or "–"

    records = [outcome.record for outcome in outcomes]
    if not records:
        return []
    pictures = {picture for outcome in outcomes for picture in outcome.by_picture(gain=False)}
    oracles = {outcome.attack: " and ".join(outcome.record["oracles"]) or "nothing" for outcome in outcomes}
    draws = each([record["summary"]["draws"] for record in records])
    participation = each([number(record.get("participation", 1.0)) for record in records])
    return [
        (
            "Pictures attacked",
            f"{len(pictures)} different ones, each under {draws} independent noise draw(s)",
        ),
        ("Target network and pictures", each([outcome.about or "not recorded" for outcome in outcomes])),
        ("Clipping norm C", each([r["privacy"]["max_grad_norm"] for r in records])),
        ("δ and adjacency", each([f"{number(r['privacy']['delta'])}, {r['privacy']['adjacency']}" for r in records])),
        (
            "Told to the attacks beyond what an attacker knows",
            "; ".join(f"{name}: {told}" for name, told in oracles.items()),
        ),
        ("Public statistics that the attacks rely on", each([r.get("public_statistics") or "none" for r in records])),
        ("Share of a picture that its subject takes", each([f"{100 * r['subject_fraction']:.0f} %" for r in records])),
        ("Batch normalisation of the client", each([r.get("batchnorm") or "none" for r in records])),
        ("A client answers on the same pictures with probability", participation),
    ]
