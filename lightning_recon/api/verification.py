# SPDX-License-Identifier: Apache-2.0
"""Verify a client: send it probes, test its claims on its releases, and reach verdicts."""

import math
import sys
from collections.abc import Callable, Mapping
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn

import lightning_recon
from lightning_recon.api.user_model import count_classes
from lightning_recon.errors import UserError
from lightning_recon.networks.construction import copied
from lightning_recon.ranges import PROBABILITY, SEED, Range, check_ranges
from lightning_recon.verification.check import Check
from lightning_recon.verification.claims import Claims
from lightning_recon.verification.client_under_test import ClientUnderTest, client_named
from lightning_recon.verification.clipping_checks import clipping_checks
from lightning_recon.verification.epsilon_checks import epsilon_checks
from lightning_recon.verification.independence_checks import independence_checks
from lightning_recon.verification.noise_checks import noise_checks
from lightning_recon.verification.probe_series import Probes
from lightning_recon.verification.probes import Canaries
from lightning_recon.verification.releases import Releases, collect
from lightning_recon.verification.report import Verification
from lightning_recon.verification.restart import restarted_replies
from lightning_recon.verification.sensitivity_checks import sensitivity_checks
from lightning_recon.verification.unprotected_values import unprotected_checks
from lightning_recon.verification.verdicts import decide

_RELEASES = Range("a whole number from 4 to 100000", 4, 100_000, whole=True)
_ROWS = 32  # canaries where the update is clipped as a whole, of which each release has one at most
_RESTART_NEEDS_A_NAME = "give the client as module:attribute, so that it can be started again"
_NO_SECOND = "give second_client, which creates another client"
_NO_CLASS = "name a class, which is created for each client, in place of a function"


@torch.inference_mode(False)
def verify(
    client: ClientUnderTest | str,
    network: nn.Module,
    claims: Claims,
    image_shape: tuple[int, int, int] = (3, 32, 32),
    client_arguments: Mapping[str, Any] | None = None,
    second_client: Callable[[], ClientUnderTest] | None = None,
    restart: bool = True,
    releases: int = 32,
    false_alarms: float = 0.001,
    seed: int = 0,
) -> Verification:
    """Verify that a client does what is claimed of its privacy.

    The client is sent the network, silenced, with two linear layers of the server's, and a batch. It has to train the
    model that it is given on that batch, with the cross-entropy of its logits as the loss.

    Args:
        client: a function of model and batch that returns the privatized gradients or the state dict, by parameter
            name; or its name, `module:attribute`, which may be that of a class of such objects.
        network: any network, images to logits, that the client can train.
        claims: what is claimed.
        image_shape: channels, height and width of the images, which hold one pixel for each sample of a batch at least.
        client_arguments: keyword arguments of a class that `client` names.
        second_client: creates another client of the same program, to compare its noise; a class that `client` names is
            created again by itself.
        restart: whether a client that is given by name is started again in a new process, to compare its noise.
        releases: how many releases of noise alone are asked for. Of canaries there are twice as many, in four probes.
        false_alarms: limit on the probability that any claim of a correct client is refuted.
        seed: which canaries are in a batch. The client's random state is left alone.

    Raises:
        UserError: the client failed, or it and the network, the shape of the images or the claims do not fit.

    Example:
        >>> import torch
        >>> import lightning_recon as lr
        >>> from lightning_recon.verification.opacus_step import OpacusStep
        >>> network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 8 * 8, 10))
        >>> claims = lr.Claims(lr.Privacy(max_grad_norm=1.0, noise_multiplier=0.5, granularity="sample"), batch_size=8)
        >>> found = lr.verify(OpacusStep(noise_multiplier=0.25), network, claims, (3, 8, 8), releases=8)
        >>> [line.check.name for line in found.refuted][0]
        'noise_std all tensors'
    """
    check_ranges(
        "--verify.", releases=(releases, _RELEASES), false_alarms=(false_alarms, PROBABILITY), seed=(seed, SEED)
    )
    network = copied(network).cpu()
    classes = count_classes(network, image_shape, torch.device("cpu"))
    rows = claims.batch_size if claims.privacy.granularity == "sample" else _ROWS
    canaries = Canaries(min(rows, math.prod(image_shape) - 1), classes, tuple(image_shape))
    probes = Probes(network, canaries, claims, releases, seed)
    first, second, restarted, why = _clients(client, client_arguments or {}, second_client, restart, probes)
    found = collect(first, second, restarted, probes)
    alone = "" if second else _NO_CLASS if isinstance(client, str) else _NO_SECOND
    lines = decide(checks_of(found, claims, canaries, why, alone), false_alarms)
    asked = releases + 3 + 4 * max(2, releases // 2) + (probes.few if second else 0) + len(restarted)
    return Verification(tuple(lines), claims, false_alarms, asked, _versions())


def checks_of(
    releases: Releases, claims: Claims, canaries: Canaries, restart_skipped: str, second_skipped: str
) -> list[Check]:
    """All tests on what was released.

    Args:
        releases: what was released.
        claims: what is claimed.
        canaries: geometry of the canaries.
        restart_skipped: why the client was not restarted, if it was not.
        second_skipped: why there was no second client, if there was none.
    """
    return [
        *noise_checks(releases, claims),
        *independence_checks(releases, restart_skipped, second_skipped),
        *unprotected_checks(releases, claims),
        *clipping_checks(releases, claims, canaries),
        *sensitivity_checks(releases, claims, canaries),
        *epsilon_checks(releases, claims, canaries),
    ]


def _clients(
    client: ClientUnderTest | str,
    arguments: Mapping[str, Any],
    second: Callable[[], ClientUnderTest] | None,
    restart: bool,
    probes: Probes,
) -> tuple[ClientUnderTest, Callable[[], ClientUnderTest] | None, list[Mapping[str, Tensor]], str]:
    """The first client, how to create the second, replies after a restart, and why there are none of these."""
    if not isinstance(client, str):
        if arguments:
            raise UserError("client_arguments are those of a class that client names: leave them out")
        return client, second, [], _RESTART_NEEDS_A_NAME
    name = client
    first = client_named(name, 0, arguments)
    if second is None and not hasattr(first, "__name__"):  # an instance; a function has no state of a client's own
        second = lambda: client_named(name, 1, arguments)  # noqa: E731
    if not restart:
        return first, second, [], "switched off"
    try:
        return first, second, restarted_replies(name, arguments, probes.silent(), probes.few), ""
    except UserError as error:
        return first, second, [], str(error)


def _versions() -> dict[str, str]:
    """Versions of the programs whose code may have taken part."""
    loaded = [name for name in ("torch", "opacus", "flwr") if name in sys.modules]
    return {"lightning_recon": lightning_recon.__version__, **{name: version(name) for name in loaded}}
