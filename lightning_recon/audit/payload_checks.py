# SPDX-License-Identifier: Apache-2.0
"""Whether a client that inspects the received model would have refused it."""

from collections.abc import Sequence
from dataclasses import dataclass

from lightning_recon.audit.run import Outcome

# What the checks of `defense.inspect_model` find, in plain words.
CHECKS = {
    "repeated_rows": "units that all compute the same linear function",
    "constant_inputs": "inputs that are the same for every image",
    "energy_share": "one layer that has nearly all of the gradient's energy",
    "false_gradient": "a gradient that is not the derivative of the loss",
    "silent_layer": "a layer with a large gradient that does not change the output",
    "linear_gradient": "a gradient that is linear in the image",
}


@dataclass(frozen=True)
class PayloadCheck:
    """Results of inspecting the models that one attack sent.

    Args:
        attack: Name of the attack.
        refused: Number of runs in which a check raises an alarm.
        runs: Number of inspected runs.
        checks: The checks that raise an alarm in any of them, in plain words.
    """

    attack: str
    refused: int
    runs: int
    checks: tuple[str, ...]


def payload_checks_of(outcomes: Sequence[Outcome]) -> list[PayloadCheck]:
    """Collect the alarms of `defense.inspect_model` by attack; nothing where no model was inspected.

    Args:
        outcomes: Finished runs.
    """
    found = []
    for attack in dict.fromkeys(outcome.attack for outcome in outcomes):
        recorded = [outcome.record.get("payload_alarms") for outcome in outcomes if outcome.attack == attack]
        inspected = [alarms for alarms in recorded if alarms is not None]
        names = dict.fromkeys(CHECKS.get(name, name) for alarms in inspected for name in alarms)
        if inspected:
            refused = sum(bool(alarms) for alarms in inspected)
            found.append(PayloadCheck(attack, refused, len(inspected), tuple(names)))
    return found
