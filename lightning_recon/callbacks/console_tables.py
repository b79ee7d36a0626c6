# SPDX-License-Identifier: Apache-2.0
"""Tables on the terminal, and the protection under attack in one line."""

import math
from pathlib import Path
from typing import Any

import rich
from rich.table import Table
from rich.text import Text

from lightning_recon.callbacks.protection import privacy_of
from lightning_recon.client import VictimClient
from lightning_recon.console import plain, say
from lightning_recon.evaluation.formatting import covered, display_name
from lightning_recon.evaluation.results import Record
from lightning_recon.exchange import ServerPayload
from lightning_recon.networks.normalization import in_words
from lightning_recon.plural import counted

_MEAN = "reconstruction, mean over all victims"


def show_release(client: VictimClient, payload: ServerPayload) -> None:
    """Print, for every client, what it would release to this server."""
    table = Table(title="What each client would release", title_justify="left")
    for column in ("client", "gradient norm", "clip factor", "structure's share", "noise std", "noise norm"):
        table.add_column(column, justify="right")
    for index in range(client.task.clients):
        release = client.preview(payload, index)
        spread = f"{min(release.norms):.3g}" + (f" … {max(release.norms):.3g}" if len(release.norms) > 1 else "")
        factors = f"{min(release.clip_factors):.3g}"
        share, noise = f"{100 * release.structure_share:.3f} %", f"{release.noise_std:.3g}"
        table.add_row(str(index), spread, factors, share, noise, f"{release.noise_norm:.3g}")
    rich.print(table)
    if client.privacy.per_layer and client.privacy.max_grad_norm is not None:
        bound = client.privacy.max_grad_norm / math.sqrt(release.tensors)
        say(
            f"each of {release.tensors} tensors is clipped to {bound:.3g}; the structure's make up "
            f"{100 * release.structure_bound:.3g} % of the squared clipping norm, its share is that of what is sent"
        )
    task = client.task
    if not task.local.is_plain_step:
        say(f"each client trains: {task.local.in_words(task.batch_size)}, and sends the {task.local.update}")
    if task.granularity == "sample" and not task.local.is_plain_step:
        say("each local step is one of DP-SGD; norms, clip factors and noise above are those of the first step's sum")
    if task.compression is not None:
        say(f"each update is compressed: {task.compression.in_words}")
    if task.quantization is not None:
        say(f"secure aggregation: {task.quantization.in_words}")
    if client.aggregated > 1:
        say(f"the server gets the sum of {client.aggregated} of these at a time")
    say(privacy_line(privacy_of(client)))
    say(f"network {client.task.network}, normalization of its images: {in_words(client.task.normalization)}")


def show_capture(privacy: Record, capture: Record) -> None:
    """Print the epsilon of a captured update: declared, and accounted for one round and for all.

    Args:
        privacy: section of `results.json`.
        capture: section of `results.json`.
    """
    say(f"captured from {capture['source']}: {capture['convention']}; {privacy_line(privacy)}")
    once, together = _plain(capture["epsilon_one_round"]), _plain(privacy["epsilon_by_adjacency"])
    if any(value is not None for value in once.values()):
        table = Table(title=f"Epsilon at delta {privacy['delta']:g}", title_justify="left")
        for column in ("", "add_remove", "replace_one"):
            table.add_column(column, justify="right" if column else "left")
        rows = {"one round": once} | ({} if privacy["rounds"] == 1 else {f"all {privacy['rounds']} rounds": together})
        for name, found in rows.items():
            table.add_row(name, f"{found['add_remove']:.3g}", f"{found['replace_one']:.3g}")
        rich.print(table)
    declared = {name: value for name, value in _plain(capture["declared"]).items() if value is not None}
    values = ", ".join(f"{name} {value:g}" for name, value in declared.items())
    say(f"declared by the program: {values}" if values else "the program declares no epsilon")
    remarks: Any = capture["remarks"]
    for remark in remarks:
        say(f"remark: {remark}")


def show_results(record: Record, root: Path) -> None:
    """Print the table of results, and where they are."""
    summary, baselines, bounds = (_plain(record[part]) for part in ("summary", "baselines", "bounds"))
    name = display_name(str(record["attack"]))
    if summary["psnr_mean"] is None:
        say(
            f"{name}: {summary['detected']} of {counted(summary['victims'], 'victim')} detected, "
            f"{counted(summary['draws'], 'noise draw')}, "
            f"{summary['seconds']:.0f} s; the true images are not known, so there are no scores"
        )
        show_capture(_plain(record["privacy"]), _plain(record["capture"]))
        say(f"images and results.json in {root}; tensorboard --logdir {root}")
        return
    title = f"{name}: {counted(summary['victims'], 'victim')}, {counted(summary['draws'], 'noise draw')}"
    table = Table(title=Text(plain(title)))
    table.title_justify = "left"
    table.add_column("")
    table.add_column("PSNR, dB", justify="right")
    victims: Any = record["victims"]
    initial = sum(victim["psnr_initial"] for victim in victims) / len(victims)
    rows = {
        _MEAN: summary["psnr_mean"],
        "  worst victim": summary["psnr_worst"],
        "  before refinement": initial,
        "  of the mean squared error": summary["psnr_of_mean_mse"],
        "black image": baselines["black_psnr"],
        "mean image": baselines["mean_image_psnr"],
        "noise law, no prior (of the mean squared error)": bounds["noise_law_psnr"],
        "Gaussian reference (of the mean squared error)": bounds["gaussian_reference_psnr"],
    }
    for name, value in rows.items():
        table.add_row(name, "–" if value is None else f"{value:.1f}")
        if name == _MEAN and summary["psnr_mean_low"] is not None:
            interval = f"{summary['psnr_mean_low']:.1f} … {summary['psnr_mean_high']:.1f}"
            table.add_row("  95 % bootstrap interval over images", interval)
    rich.print(table)
    say(
        f"SSIM {summary['ssim_mean']:.3f}; {counted(summary['detected'], 'victim')} detected, "
        f"{summary['collided']} collided, {summary['false_detections']} false; {summary['seconds']:.0f} s"
    )
    if line := _extraction_line(_plain(record["privacy"]), victims):
        say(line)
    if summary["identification"] is not None:
        bound = summary["identification_bound"]
        say(
            f"identified among {summary['gallery_size']} images: {100 * summary['identification']:.0f} % (chance "
            f"{100 * summary['identification_chance']:.3g} %"
            + (")" if bound is None else f", bound for every attack {100 * bound:.3g} %)")
        )
    if summary["recognition_top1"] is not None:
        baseline = summary.get("recognition_top1_mean_image")  # which older records lack
        say(
            f"recognised by the classifier: {100 * summary['recognition_top1']:.0f} % (among its five most probable "
            f"classes {100 * summary['recognition_top5']:.0f} %)"
            + ("" if baseline is None else f"; the mean image: {100 * baseline:.0f} %")
        )
    if line := _exact_line(summary):
        say(line)
    if summary["label_accuracy"] is not None:
        oracles: Any = record["oracles"]
        accuracy = f"{100 * summary['label_accuracy']:.0f} % correct"
        say(f"labels: {'given by an oracle' if 'labels' in oracles else accuracy}")
    if "capture" in record:
        show_capture(_plain(record["privacy"]), _plain(record["capture"]))
    else:
        say(privacy_line(_plain(record["privacy"])))
    say(f"images and results.json in {root}; tensorboard --logdir {root}")


def _extraction_line(privacy: dict[str, Any], victims: list[dict[str, Any]]) -> str:
    """How many of the images that batches are drawn from were found, and when; empty where none are drawn."""
    sampling = privacy.get("sampling")
    if sampling is None:
        return ""
    found = [victim for victim in victims if victim["detected"] and not victim["false_detection"]]
    line = f"found {100 * len(found) / len(victims):.0f} % of the images that batches were drawn from"
    if at := [victim["first_round"] + 1 for victim in found if victim.get("first_round") is not None]:
        line += f", the last one in round {max(at)} of {privacy['rounds']}"
    hidden = sampling["epsilon_if_hidden"]
    return line + ("" if hidden is None else f"; epsilon {hidden:.3g} if the server did not see who is in a batch")


def _exact_line(summary: dict[str, Any]) -> str:
    """How many images are bit-exact, and how many files were decoded; empty if none is and no file was sent."""
    count, share = summary["victims"] * summary["draws"], summary["file_decoded_fraction"]
    exact = round(count * summary["bit_exact_share"])
    if not exact and share is None:
        return ""
    line = f"bit-exact: {exact} of {counted(count, 'image')}"
    if share is None:
        return line
    line += f"; {counted(round(count * share), 'file')} decoded"
    if summary["bits_sent_mean"] is None:
        return line
    return (
        f"{line}, {summary['bits_sent_mean']:,.0f} bits each, of a channel capacity of "
        f"{summary['capacity_bits_mean']:,.0f} bits"
    )


def privacy_line(privacy: Record) -> str:
    """The protection in one line, nominal and accounted."""
    norm = privacy["max_grad_norm"]
    clip = "no clipping" if norm is None else f"clip {norm:g} per {privacy['granularity']}"
    clip += " and layer" if privacy["per_layer"] and norm is not None else ""
    dropping = privacy.get("client_dropout", 0.0)
    if (count := privacy.get("aggregated", 1)) != 1:
        shared = privacy["noise_share"] == "distributed"
        clip += f", sums of {count} clients, {'noise distributed over them' if shared else 'each with its full noise'}"
        clip += f" (each drops out with probability {dropping:g})" if dropping else ""
    if privacy["epsilon_accounted"] is None:
        unknown = "epsilon not accounted where clients drop out" if dropping else "no known epsilon"
        noisy = bool(privacy["noise_multiplier"]) and norm is not None
        return f"{clip}, {unknown if noisy else 'no noise'}: no privacy guarantee"
    rounds: Any = privacy["rounds"]
    participation: Any = privacy.get("participation")
    nominal = privacy["epsilon_nominal"]  # none of a mechanism other than the Gaussian one
    return (
        f"{clip}, noise multiplier {privacy['noise_multiplier']:g}, {counted(rounds, 'round')}: "
        + ("" if nominal is None else f"nominal epsilon {nominal:.3g}, ")
        + f"accounted epsilon {privacy['epsilon_accounted']:.3g}{covered(participation)} at delta "
        f"{privacy['delta']:g} ({privacy['adjacency']}, {privacy['accountant']}){_other_adjacency(privacy)}"
    )


def _other_adjacency(privacy: Record) -> str:
    """Epsilon for the adjacency that is not stated first: local differential privacy means replace-one."""
    known = _plain(privacy["epsilon_by_adjacency"])
    others = {name: value for name, value in known.items() if name != privacy["adjacency"] and value is not None}
    return "".join(f", {value:.3g} ({name})" for name, value in others.items())


def training_line(client: VictimClient, steps: int) -> str:
    """The privacy cost of training a target network, in one line.

    Args:
        client: The network that was trained.
        steps: Steps from the start, over interruptions and earlier trainings too.
    """
    if steps == 0:
        return "no training step was taken: nothing was released"
    privacy, epsilon = client.privacy, client.accountant.epsilon(steps)
    if epsilon is None:
        return f"{steps} training steps without noise: no privacy guarantee"
    rate = float(client.accountant.state_dict()["sample_rate"])
    sampling = f", sampling rate {rate:.3g}" if privacy.granularity == "sample" else ""
    return (
        f"{steps} training steps, clip {privacy.max_grad_norm:g} per {privacy.granularity}, noise multiplier "
        f"{privacy.noise_multiplier:g}{sampling}: accounted epsilon {epsilon:.3g} at delta {privacy.delta:g} "
        f"({privacy.adjacency} of one {'image' if privacy.granularity == 'sample' else 'update a step'})"
    )


def _plain(part: object) -> dict[str, Any]:
    return dict(part) if isinstance(part, dict) else {}
