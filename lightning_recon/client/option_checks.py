# SPDX-License-Identifier: Apache-2.0
"""Which options of a client about sums, rounds and whole numbers fit together."""

from lightning_recon.errors import UserError
from lightning_recon.exchange import Compression, LocalTraining, NoiseShare, Quantization
from lightning_recon.privacy.integer_noise import LEAST_STD, IntegerMechanism
from lightning_recon.privacy.mechanism import Mechanism
from lightning_recon.privacy.parameters import Privacy


def check_sum(aggregated: int, noise_share: NoiseShare, dropout: float, mechanism: Mechanism) -> None:
    """Refuse sums whose guarantee is not known, or that no client is in.

    Raises:
        UserError: what does not fit, and what to set.
    """
    if noise_share == "distributed" and aggregated > 1 and not mechanism.closed_under_sums:
        raise UserError(
            f"--model.client.noise_share is distributed, but a sum of {mechanism.name} noises is none of the "
            "kind, and its epsilon is not known: set it to local, or --model.client.privacy.mechanism gaussian"
        )
    if dropout == 1 or (dropout > 0 and aggregated == 1):
        raise UserError(
            f"--model.client.client_dropout is {dropout}: give a probability below 1, and --model.client.aggregated 2 "
            "or more; a single client that answers on other images is --model.client.participation"
        )


def check_rounds(privacy: Privacy, local: LocalTraining | None) -> None:
    """Refuse mechanisms over rounds where they are not modelled.

    Args:
        privacy: of the clients.
        local: the announced training; None where the target network itself is trained.

    Raises:
        UserError: an option, and what to set.
    """
    option = "noise_bands" if privacy.noise_bands > 1 else "adaptive_clip" if privacy.adaptive_clip else None
    if option and local is None:
        raise UserError(
            f"--model.privacy.{option} is modelled for the updates that a server attacks: leave it out where a "
            "target network is trained"
        )
    if option and local is not None and privacy.granularity == "sample" and not local.is_plain_step:
        raise UserError(
            f"--model.client.privacy.{option} is not modelled for local steps of DP-SGD: leave it out, or set "
            "--model.client.privacy.granularity update"
        )


def check_quantization(
    quantization: Quantization | None,
    mechanism: Mechanism,
    noise_scale: float,
    per_layer: bool,
    compression: Compression | None,
) -> None:
    """Refuse a quantization that does not fit the noise.

    Args:
        quantization: what was announced; None: updates are real numbers.
        mechanism: of the noise.
        noise_scale: scale of each client's own noise.
        per_layer: whether each tensor is clipped on its own.
        compression: of each client's update.

    Raises:
        UserError: what does not fit, and what to set.
    """
    flag, integer = "--model.client.quantization", isinstance(mechanism, IntegerMechanism)
    if quantization is None:
        if integer:
            raise UserError(
                f"--model.client.privacy.mechanism is {mechanism.name}, whose noise is a whole number of steps: give "
                f"{flag}.clipping_range, or choose gaussian"
            )
        return
    if integer and noise_scale < LEAST_STD * quantization.step and noise_scale > 0:
        raise UserError(
            f"the noise of each client is {noise_scale / quantization.step:.3g} steps, and {mechanism.name} noise "
            f"needs {LEAST_STD} or more: raise {flag}.quantization_range, or lower {flag}.clipping_range"
        )
    if integer and per_layer:
        raise UserError(
            f"--model.client.privacy.per_layer is true, but {mechanism.name} noise is modelled for one clip: set it to "
            "false, or --model.client.privacy.mechanism gaussian"
        )
    if integer and compression is not None:
        raise UserError(
            f"--model.client.compression goes before or after noise on real numbers, and {mechanism.name} noise is on "
            "whole ones: leave one of them out"
        )
