# SPDX-License-Identifier: Apache-2.0
"""What a single run saw of its victims, in one sentence: only what was measured."""

from typing import Any

from lightning_recon.evaluation.results import Record

RECOGNISABLE_GAIN = 6.0  # dB above a mean image: a quarter of its squared error
RECOGNISABLE_SSIM = 0.5
TOLERANCE = 0.5  # dB above a mean image that still count as nothing seen


def verdict(record: Record) -> str:
    """The verdict on one run.

    Args:
        record: Content of `results.json`.

    Returns:
        How much came back, beside what needs no attack; without the truth, how many pictures the attack handed over.
    """
    summary: Any = record["summary"]
    baselines: Any = record["baselines"]
    if summary["psnr_mean"] is None:
        return (
            f"the attack vouches for {summary['detected']:g} of {summary['victims']} pictures; the truth is not known "
            "here, so nothing is scored."
        )
    psnr, ssim, gain = summary["psnr_mean"], summary["ssim_mean"], summary["psnr_mean"] - baselines["mean_image_psnr"]
    scores = f"PSNR {psnr:.1f} dB on average, {gain:+.1f} dB against a mean image, SSIM {ssim:.2f}"
    exact = summary.get("bit_exact_share") or 0.0
    if exact:
        return f"{100 * exact:.0f} % of the pictures came back bit for bit ({scores})."
    if gain >= RECOGNISABLE_GAIN and ssim >= RECOGNISABLE_SSIM:
        return f"the pictures are recognisable ({scores})."
    if gain > TOLERANCE:
        return f"more than a mean image came back, but no recognisable pictures ({scores})."
    return f"nothing better than a mean image came back ({scores})."
