# SPDX-License-Identifier: Apache-2.0
"""The protection under attack: of a simulated client, a captured update, or a recorded exchange."""

from dataclasses import asdict
from typing import Any

from lightning_recon.capture import CapturedClient
from lightning_recon.client import VictimClient
from lightning_recon.evaluation.formatting import ADJACENCIES, covered, in_words
from lightning_recon.evaluation.results import Record, privacy_record
from lightning_recon.exchange import Client, Task
from lightning_recon.privacy.gaussian import Gaussian

DELTA = 1e-5  # where the program that made an update declares none


def privacy_of(client: Client) -> Record:
    """The `privacy` section of `results.json`.

    Args:
        client: Who answers. A captured update is accounted at the delta that its program declared; a captured update
            without a declared delta, and a recording, which does not state one, at 1e-5.
    """
    task = client.task
    own = (
        "batch_size",
        "aggregated",
        "noise_share",
        "releases_per_round",
        "sampling",
        "client_dropout",
        "participation",
    )
    announced: dict[str, Any] = {name: getattr(task, name) for name in own}
    if isinstance(client, VictimClient):
        privacy = privacy_record(**asdict(client.privacy), **announced)
        return privacy | {"reproducible_noise": client.reproducible_noise}
    names = ("noise_bands", "mechanism", "granularity", "per_layer", "max_grad_norm", "noise_multiplier", "rounds")
    announced |= {name: getattr(task, name) for name in names}
    announced["adaptive_clip"] = task.adaptive_clip and asdict(task.adaptive_clip)
    declared = client.first.declared if isinstance(client, CapturedClient) else None
    delta = declared.delta if declared and declared.delta else DELTA
    return privacy_record(**announced, delta=delta, adjacency="add_remove") | {"reproducible_noise": None}


def noise_of(task: Task) -> float:
    """The announced noise multiplier; 0 without clipping, where noise gives no guarantee."""
    return 0.0 if task.max_grad_norm is None else task.noise_multiplier


def describe_protection(privacy: Record, epsilon: str = "ε", delta: str = "δ") -> str:
    """A protection and its accounted epsilon in a few words; give other names for fonts without Greek letters."""
    found: Any = privacy
    if found["max_grad_norm"] is None:
        return f"no clipping, no finite {epsilon}"
    clip = f"clip {found['max_grad_norm']:g} of each {'image' if found['granularity'] == 'sample' else 'update'}"
    clip += ", each tensor by itself" if found["per_layer"] else ""
    if found["aggregated"] != 1:
        clip += f", sums of {found['aggregated']} clients"
    rounds = "one round" if found["rounds"] == 1 else f"{found['rounds']} rounds together"
    kind = found["mechanism"]
    clip += "" if kind == Gaussian.name else f", {kind} noise"
    clip += "" if found.get("noise_bands", 1) == 1 else f", noise correlated over {found['noise_bands']} rounds"
    clip += ", the clip adapted over rounds" if found.get("adaptive_clip") else ""
    if found["epsilon_accounted"] is None:
        return f"{clip}, {'no noise' if not found['noise_multiplier'] else 'no known bound'}, no finite {epsilon}"
    whose = covered(found.get("participation"))
    return (
        f"{clip}, noise multiplier z = {found['noise_multiplier']:g}, {rounds}: accounted {epsilon} = "
        f"{in_words(found['epsilon_accounted'])}{whose} at {delta} = {found['delta']:g} "
        f"({ADJACENCIES[found['adjacency']]})"
    )
