# SPDX-License-Identifier: Apache-2.0
"""Values that are sent without noise: tensors or parts of them that a filter skipped, buffers, integers, metrics."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from lightning_recon.verification.check import Check, std_p_value
from lightning_recon.verification.claims import Claims
from lightning_recon.verification.releases import Releases

_BUFFERS = ("running_mean", "running_var", "num_batches_tracked")
_MOST = 5  # names in a line


def unprotected_checks(releases: Releases, claims: Claims) -> list[Check]:
    """What carries no noise, and depends on the data."""
    return [parameters_check(releases), *beside_checks(releases, claims)]


def parameters_check(releases: Releases) -> Check:
    """Numbers of the parameters that no silent release has moved at all."""
    found = {name: count for name, count in releases.never_noised.items() if count}
    sizes = releases.sizes
    whole = [name for name, count in found.items() if count == sizes[name]]
    parts = [f"{count} of {sizes[name]} numbers of {name}" for name, count in found.items() if name not in whole]
    return Check(
        "unprotected parameters",
        "noise on every number",
        f"{sum(found.values())} of {sum(sizes.values())} numbers never moved",
        0.0 if found else 1.0,
        f"without noise: {_listed([*whole, *parts])}",
    )


def beside_checks(releases: Releases, claims: Claims) -> Iterator[Check]:
    """Buffers, and all other values beside the parameters, by what a verifier can see of their noise.

    A value that is the same in all silent releases has no noise. If it differs between releases of the network itself,
    it depends on the data, on randomness that is not noise, or on both.
    """
    names = list(dict.fromkeys(name for reply in releases.open for name in reply.beside))
    bare, noised = [], {}
    for name in names:
        silent = [one[name] for one in releases.beside if name in one]
        shown = [reply.beside[name] for reply in releases.open if name in reply.beside]
        if _all_same(silent):
            if not _all_same(shown):
                bare.append(name)
        elif silent[0].is_floating_point():
            noised[name] = torch.stack([one.double().flatten() for one in silent])
        else:
            bare.append(name)
    kinds = {
        "buffers": [name for name in bare if name.rpartition(".")[2] in _BUFFERS],
        "other values": [name for name in bare if name.rpartition(".")[2] not in _BUFFERS],
    }
    for kind, without in kinds.items():
        count = sum((name.rpartition(".")[2] in _BUFFERS) == (kind == "buffers") for name in names)
        yield Check(
            f"unprotected {kind}",
            "none depends on the data without noise",
            f"{len(without)} of {count}",
            0.0 if without else 1.0,
            f"sent raw: {_listed(without)}",
        )
    # A change of weights is the unit of the noise, and buffers and metrics are not multiplied by a learning rate.
    scale = claims.noise_std / abs(claims.update_factor)
    for name, rows in noised.items():
        measured = float((rows - rows.mean(dim=0)).square().sum() / (rows.numel() - rows.shape[1])) ** 0.5
        degrees = rows.numel() - rows.shape[1]
        yield Check(
            f"noise_std {name}",
            f"{scale:.4g}",
            f"{measured:.4g} ± {100 * (2 * degrees) ** -0.5:.2g} %",
            std_p_value(measured, scale, degrees, claims.mechanism.excess_kurtosis),
            f"{measured / scale:.4g} times the noise that is claimed for parameters",
        )


def _all_same(values: Sequence[Tensor]) -> bool:
    return all(torch.equal(values[0], value) for value in values[1:])


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MOST} more" if len(names) > _MOST else ""
    return ", ".join(names[:_MOST]) + more
