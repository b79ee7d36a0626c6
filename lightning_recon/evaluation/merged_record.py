# SPDX-License-Identifier: Apache-2.0
"""One `results.json` of a run that attacked its clients in waves, from those of the waves."""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lightning_recon.evaluation.results import Record
from lightning_recon.evaluation.uncertainty import bootstrap_interval

# What depends on all images together, and so is not known from the waves.
_OF_ALL_IMAGES = (
    *("noise_law_psnr_p95", "noise_law_psnr_5_percent"),  # the second is the deprecated name
    *("gaussian_reference_psnr", "gaussian_reference_low", "gaussian_reference_high"),
)
_SUMS = ("clients", "victims", "detected", "collided", "false_detections", "low_shares", "seconds")
_LEAST, _MOST = ("gallery_size",), ("identification_chance", "identification_bound")
_MEANS_OVER_UPDATES = ("label_accuracy", "structure_share")
_MEANS = (
    *("lost_share", "lpips_mean", "file_decoded_fraction"),
    *("recognition_top1", "recognition_top5", "recognition_top1_mean_image", "recognition_top5_mean_image"),
)


def merged_record(waves: Sequence[Mapping[str, Any]], first_clients: Sequence[int], folders: Sequence[str]) -> Record:
    """Merge the records of waves.

    Args:
        waves: Content of their `results.json`, in the order of the clients, at least one.
        first_clients: Number of the first client of each among all.
        folders: Folder of each, relative to the run folder.

    Returns:
        A record for `write_results`. Scores are those of all victims together; the Gaussian reference and the
        percentile of the noise law, for which all images would be needed at once, are None.
    """
    first = waves[0]
    weights = [int(wave["summary"]["victims"]) for wave in waves]
    victims = [
        victim | {"client": victim["client"] + offset, "image": f"{folder}/{victim['image']}"}
        for wave, offset, folder in zip(waves, first_clients, folders, strict=True)
        for victim in wave["victims"]
    ]

    def mean(part: str, name: str) -> Any:  # noqa: ANN401 - a float, or None
        return _mean([(wave[part] or {}).get(name) for wave in waves], weights)

    record = dict(first) | {"victims": victims, "summary": _summary(waves, weights, victims)}
    record["baselines"] = {name: mean("baselines", name) for name in first["baselines"]}
    bounds = {name: mean("bounds", name) for name in first["bounds"]} | dict.fromkeys(_OF_ALL_IMAGES)
    if bounds.get("noise_law_psnr") is not None:
        # Mean squared errors add up, decibels do not.
        errors = [10 ** (-wave["bounds"]["noise_law_psnr"] / 10) for wave in waves]
        bounds["noise_law_psnr"] = _psnr(_mean(errors, weights))
    record["bounds"] = bounds
    record["subject_fraction"] = _mean([wave["subject_fraction"] for wave in waves], weights)
    record["mismatch"] = _mismatch([wave["mismatch"] or {} for wave in waves])
    record["skipped_pictures"] = [entry for wave in waves for entry in wave["skipped_pictures"]]
    return record


def _summary(
    waves: Sequence[Mapping[str, Any]], weights: Sequence[int], victims: Sequence[Mapping[str, Any]]
) -> Record:
    """The section `summary` of all waves."""
    parts = [wave["summary"] for wave in waves]

    def over(names: Sequence[str], combine: Callable[[list[Any]], Any]) -> Record:
        values = {name: [part.get(name) for part in parts] for name in names}
        return {name: None if None in found else combine(found) for name, found in values.items()}

    summary: Record = dict(parts[0]) | over(_SUMS, _sum) | over(_LEAST, min) | over(_MOST, max)
    summary |= over(_MEANS, lambda values: _mean(values, weights))
    clients = [int(part["clients"]) for part in parts]
    summary |= over(_MEANS_OVER_UPDATES, lambda values: _mean(values, clients))
    flags = [victim["identified"] for victim in victims if victim.get("identified") is not None]
    summary["identification"] = statistics.fmean(flags) if flags else None
    # A step moved the images of one wave, so that the number of steps by the second says nothing about all.
    summary["steps_per_second"] = None
    files = [victim for victim in victims if victim.get("bits_sent") is not None]
    for name, field in (("bits_sent_mean", "bits_sent"), ("capacity_bits_mean", "capacity_bits")):
        summary[name] = statistics.fmean(victim[field] for victim in files) if files else None
    return summary | _scores(victims)


def _scores(victims: Sequence[Mapping[str, Any]]) -> Record:
    """The fields that follow from the victims' scores."""
    psnr = [float(victim["psnr"]) for victim in victims]
    draws = sorted({victim["draw"] for victim in victims})
    by_image: dict[object, list[float]] = {}
    for victim in victims:
        by_image.setdefault((victim["client"], victim["index"]), []).append(float(victim["psnr"]))
    low, high = bootstrap_interval(by_image)
    of_draws = [statistics.fmean(float(one["psnr"]) for one in victims if one["draw"] == draw) for draw in draws]
    return {
        "psnr_mean": statistics.fmean(psnr),
        "psnr_mean_low": low,
        "psnr_mean_high": high,
        "psnr_worst": min(psnr),
        "psnr_std_over_draws": statistics.stdev(of_draws) if len(draws) > 1 else None,
        "psnr_median": statistics.median(psnr),
        "psnr_of_mean_mse": _psnr(statistics.fmean(10 ** (-value / 10) for value in psnr)),
        "ssim_mean": statistics.fmean(float(victim["ssim"]) for victim in victims),
        "bit_exact_share": statistics.fmean(bool(victim["bit_exact"]) for victim in victims),
    }


def _mismatch(waves: Sequence[Mapping[str, Any]]) -> Record | None:
    """What updates of any wave contradict: the numbers of updates are added up, what they show is averaged."""
    found: dict[str, Any] = {}
    for wave in waves:
        for name, entry in wave.items():
            known = found.get(name)
            if known is None or "updates" not in entry:
                found[name] = entry
                continue
            counts = [known["updates"], entry["updates"]]
            shown = known["found"]
            if not isinstance(shown, bool):
                shown = _mean([shown, entry["found"]], counts)
            found[name] = known | {"found": shown, "updates": sum(counts)}
    return found or None


def _sum(values: Sequence[float]) -> float:
    """The sum, as an integer where it is one."""
    total = sum(values)
    return int(total) if total == int(total) else total


def _mean(values: Sequence[Any], weights: Sequence[int]) -> Any:  # noqa: ANN401 - a float, or None
    """The weighted mean; None where a value is not known."""
    if None in values:
        return None
    return sum(weight * value for weight, value in zip(weights, values, strict=True)) / sum(weights)


def _psnr(mse: float) -> float:
    return -10 * math.log10(mse) if mse > 0 else 100.0
