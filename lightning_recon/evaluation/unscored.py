# SPDX-License-Identifier: Apache-2.0
"""The record of a run whose pictures nobody can judge: `results.json` with null where a truth would be needed."""

from collections.abc import Sequence
from dataclasses import fields
from importlib.metadata import version

from lightning_recon import __version__
from lightning_recon.evaluation.files import file_fields, files_record
from lightning_recon.evaluation.results import PACKAGES, SCHEMA_VERSION, Record
from lightning_recon.evaluation.scoring import Attacked, VictimScore
from lightning_recon.files.renamed_fields import record_with_both_names

_UNKNOWN = ("collided", "false_detections", "psnr_mean", "psnr_std_over_draws", "psnr_median", "psnr_of_mean_mse")


def unscored_record(
    *,
    attack: str,
    config: str,
    privacy: Record,
    oracles: Sequence[str],
    public_statistics: str,
    attacked: Sequence[Attacked],
    images: Sequence[Sequence[str]],
    clients: int,
    batch_size: int,
    bounds: Record,
    seconds: float,
    steps: int,
    structure_bytes: int,
    channel_code: str | None = None,
    detached_logits: bool | None = None,
    structure_share: float | None = None,
    low_shares: int | None = None,
) -> Record:
    """Everything that a run without a truth comes to: the fields of `results_record`.

    Args:
        attack: Name of the attack.
        config: File in the run folder that repeats the run.
        privacy: From `privacy_record`.
        oracles: What the attack was told that no attacker knows.
        public_statistics: Where the attacker's prior knowledge came from.
        attacked: The attacker's pictures, of every client and draw.
        images: Their files, relative to the run folder.
        clients: How many clients there are.
        batch_size: Pictures a client.
        bounds: From `bounds_record`, without truths.
        seconds: Wall time of the attack.
        steps: Refinement steps.
        structure_bytes: What the server's structure adds to one client's upload in one round.
        channel_code: Name of the channel code that files were sent with; None if nothing was sent digitally.
        detached_logits: Whether the server shipped the network's logits detached; None if it added nothing to it.
        structure_share: Share of the clipping budget that the structure had; None where that cannot be told.
        low_shares: In how many updates it is low; None likewise.

    Returns:
        A record for `write_json`. `victims` has an entry for each picture, in the attacker's own order;
        `summary.detected` counts the pictures that the attacker vouches for.
    """
    nothing: Record = dict.fromkeys(field.name for field in fields(VictimScore))
    victims = [
        nothing | {"client": one.client, "draw": one.draw, "image": name} | file_fields(file)
        for one, names in zip(attacked, images, strict=True)
        for name, file in zip(names, one.files or [None] * len(names), strict=True)
    ]
    draws = len({one.draw for one in attacked})
    detected = sum(len(one.pictures) for one in attacked if one.evident)
    record = {
        "schema_version": SCHEMA_VERSION,
        "attack": attack,
        "config": config,
        "versions": {"lightning_recon": __version__} | {package: version(package) for package in PACKAGES},
        "seed": None,
        "privacy": privacy,
        "oracles": list(oracles),
        "detached_logits": detached_logits,
        "public_statistics": public_statistics,
        "subject_fraction": None,
        "batchnorm": None,
        "participation": None,
        "payload_alarms": None,
        "baselines": {"black_psnr": None, "mean_image_psnr": None},
        "bounds": bounds,
        "victims": victims,
        "summary": {
            "clients": clients,
            "draws": draws,
            "victims": clients * batch_size,
            "detected": detected // draws if detected % draws == 0 else detected / draws,
            **dict.fromkeys((*_UNKNOWN, "ssim_mean", "label_accuracy", "bit_exact_share")),
            **files_record(victims, clients * batch_size * draws, channel_code),
            "seconds": seconds,
            "steps": steps,
            "steps_per_second": steps / seconds if steps and seconds else None,
            "structure_bytes": structure_bytes,
            "structure_share": structure_share,
            "low_shares": low_shares,
        },
    }
    return record_with_both_names(record)
