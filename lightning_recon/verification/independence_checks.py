# SPDX-License-Identifier: Apache-2.0
"""Whether the noise is independent: between coordinates, tensors, rounds, clients, and before and after a restart."""

from collections.abc import Callable, Iterator, Mapping
from itertools import combinations

import torch
from torch import Tensor

from lightning_recon.verification.check import Check, correlation_p_value, not_run
from lightning_recon.verification.releases import Releases

MOST = 1 << 20  # numbers of a tensor that are compared, of all releases together
FEW = 4  # a tensor with fewer numbers shows no correlation
CLAIM = "independent"

Pairs = dict[str, tuple[Tensor, int]]  # by tensor: correlations, and how many numbers each is taken over


def independence_checks(releases: Releases, restart_skipped: str, second_skipped: str) -> list[Check]:
    """All comparisons of the noise with itself.

    Args:
        releases: what was measured.
        restart_skipped: why the client was not restarted, if it was not.
        second_skipped: why there was no second client, if there was none.
    """
    noise, distinct = with_noise(releases.noise), with_noise(releases.distinct)
    skipped = "" if noise else "there is no noise"
    plan: dict[str, tuple[str, Callable[[], Check]]] = {
        "coordinates": (skipped, lambda: coordinates_check(distinct)),
        "tensors": (skipped or ("" if len(noise) > 1 else "there is one tensor"), lambda: tensors_check(distinct)),
        "rounds": (skipped, lambda: rounds_check(noise)),
        "clients": (
            skipped or ("" if releases.second else second_skipped),
            lambda: other_check("clients", noise, releases.second, "the same noise on each client: a common seed"),
        ),
        "restarts": (
            skipped or ("" if releases.restarted else restart_skipped),
            lambda: other_check(
                "restarts", noise, releases.restarted, "the noise repeats: a seed that is set at start"
            ),
        ),
    }
    return [not_run(f"independence {name}", CLAIM, why) if why else check() for name, (why, check) in plan.items()]


def with_noise(noise: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those tensors of several numbers that have noise in every release, in units of its standard deviation."""
    return {
        name: rows / rows.square().mean().sqrt()
        for name, rows in noise.items()
        if rows.shape[1] >= FEW and bool((rows.square().sum(dim=1) > 0).all())
    }


def coordinates_check(noise: Mapping[str, Tensor]) -> Check:
    """Correlation of the numbers of a tensor at any distance from each other, all distances by Fourier transform."""
    pairs: Pairs = {}
    distances: dict[str, tuple[str, int]] = {}
    for name, rows in noise.items():
        few = rows[: max(1, MOST // rows.shape[1])]
        size = few.shape[1]
        power = torch.fft.rfft(few.double()).abs().square().sum(dim=0)
        lags = torch.fft.irfft(power, n=size)
        correlations = lags[1 : 1 + size // 2] / lags[0]
        whole = len(correlations) - (size % 2 == 0)
        pairs[name], distances[name] = (correlations[:whole], few.numel()), (name, 1)
        if size % 2 == 0:  # half of the size away, each pair of numbers is met twice, from either side
            half = f"{name}, half"
            pairs[half], distances[half] = (correlations[whole:], few.numel() // 2 + 1), (name, size // 2)

    def cause(part: str, place: int) -> str:
        name, first = distances[part]
        return f"numbers of {name} at distance {first + place} are related"

    return _verdict("coordinates", pairs, cause)


def tensors_check(noise: Mapping[str, Tensor]) -> Check:
    """Correlation of the first numbers of any two tensors, which a seed set for every tensor makes equal."""
    pairs: Pairs = {}
    for (one, first), (other, second) in combinations(noise.items(), 2):
        length = min(first.shape[1], second.shape[1], max(1, MOST // len(first)))
        left, right = (rows[:, :length].flatten().double() for rows in (first, second))
        pairs[f"{one} and {other}"] = (left @ right / (left.norm() * right.norm())).reshape(1), len(left)
    return _verdict("tensors", pairs, lambda names, _: f"{names} share their noise: a seed for each tensor")


def rounds_check(noise: Mapping[str, Tensor]) -> Check:
    """Correlation of any two releases, tensor by tensor and over all tensors."""
    pairs, places = {}, torch.combinations(torch.arange(len(next(iter(noise.values()))))).T
    for name, rows in _and_together(noise):
        unit = rows / rows.norm(dim=1, keepdim=True)
        pairs[name] = (unit @ unit.T)[places[0], places[1]], rows.shape[1]
    what = "in {} releases {} and {} share their noise: the same seed in each round"
    return _verdict("rounds", pairs, lambda name, pair: what.format(name, *(1 + int(one) for one in places[:, pair])))


def other_check(what: str, noise: Mapping[str, Tensor], others: Mapping[str, Tensor], cause: str) -> Check:
    """Correlation of every release with every other one of another client, or of the same after a restart."""
    pairs: Pairs = {}
    again = with_noise(others)
    for (name, rows), (_, more) in zip(
        _and_together({name: noise[name] for name in again if name in noise}), _and_together(again), strict=True
    ):
        left, right = rows / rows.norm(dim=1, keepdim=True), more / more.norm(dim=1, keepdim=True)
        pairs[name] = (left @ right.T).flatten(), rows.shape[1]
    if not pairs:
        return not_run(f"independence {what}", CLAIM, "there is no noise")
    return _verdict(what, pairs, lambda name, _: f"{name}: {cause}")


def _and_together(noise: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Every tensor, in double precision, and all in one."""
    if noise:
        yield "all tensors", torch.cat(list(noise.values()), dim=1).double()
    for name, rows in noise.items():
        yield name, rows.double()


def _verdict(what: str, pairs: Pairs, cause: Callable[[str, int], str]) -> Check:
    """The strongest correlation, by its p-value, corrected for the number of all."""
    compared, lowest, shown = 0, 1.0, ("", 0, 0.0)
    for name, (correlations, count) in pairs.items():
        p_values = correlation_p_value(correlations, count)
        compared += len(p_values)
        place = int(p_values.argmin())
        if not shown[0] or float(p_values[place]) < lowest:
            lowest, shown = float(p_values[place]), (name, place, float(correlations[place]))
    name, place, correlation = shown
    measured = f"correlation {correlation:+.2g} at most, of {compared}"
    return Check(f"independence {what}", CLAIM, measured, min(1.0, compared * lowest), cause(name, place))
