# SPDX-License-Identifier: Apache-2.0
"""The result of a single run in one sentence, which states only what was measured."""

from typing import Any

from lightning_recon.evaluation.results import Record

RECOGNISABLE_GAIN = 6.0  # dB above a mean image: a quarter of its squared error
RECOGNISABLE_SSIM = 0.5
TOLERANCE = 0.5  # dB above a mean image that still count as no reconstruction


def verdict(record: Record) -> str:
    """Summarise one run.

    Args:
        record: Content of `results.json`.

    Returns:
        How much was reconstructed, compared with the mean image; without the true images, how many the attack detected.
    """
    summary: Any = record["summary"]
    baselines: Any = record["baselines"]
    if summary["psnr_mean"] is None:
        return (
            f"the attack detected {summary['detected']:g} of {summary['victims']} victims; the true images are not "
            "known here, so nothing is scored."
        )
    psnr, ssim, gain = summary["psnr_mean"], summary["ssim_mean"], summary["psnr_mean"] - baselines["mean_image_psnr"]
    scores = f"PSNR {psnr:.1f} dB on average, {gain:+.1f} dB against a mean image, SSIM {ssim:.2f}"
    if summary.get("identification") is not None:
        scores += (
            f"; {100 * summary['identification']:.0f} % identified among {summary['gallery_size']} images, "
            f"{100 * summary['identification_chance']:.3g} % by a guess"
        )
    exact = summary.get("bit_exact_share") or 0.0
    if exact:
        return f"{100 * exact:.0f} % of the images were reconstructed bit for bit ({scores})."
    if gain >= RECOGNISABLE_GAIN and ssim >= RECOGNISABLE_SSIM:
        return f"the reconstructions are recognisable ({scores})."
    if gain > TOLERANCE:
        return f"the reconstructions are better than a mean image, but not recognisable ({scores})."
    return f"the reconstructions are no better than a mean image ({scores})."
