# SPDX-License-Identifier: Apache-2.0
"""Draw the figures under fig/: photographs from real runs on the bundled ones, curves from the tables under results/.

pip install matplotlib
python scripts/make_figures.py                      # all of them
python scripts/make_figures.py psnr_against_z       # one of them
"""

import argparse
import json
import shutil
import tempfile
from pathlib import Path

import case_figure
import torch
from measuring import read_table
from peer_variants import LABELS, OTHERS, Variant, seed_paper
from PIL import Image
from torchvision.transforms.v2.functional import pil_to_tensor

from lightning_recon.callbacks.figures import Version, caption, comparison_figure
from lightning_recon.cli import main as recon
from lightning_recon.data import ClientDataModule, GrabCutMasks

ROOT = Path(__file__).parent.parent
FIGURES, RESULTS = ROOT / "fig", ROOT / "results"
OVERLAY = """
comparison:
  victims: 4
  noise_factor: null
"""

# The paper's setting on the sixteen bundled photographs, at nominal epsilon 5; of several variants the strongest.
PEERS: tuple[tuple[str, tuple[Variant, ...]], ...] = (
    *(
        (heading, tuple(variant for variant in OTHERS if variant[1].startswith(name) and variant[1] in LABELS))
        for heading, name in (("Curious Abandon Honesty", "curious"), ("Robbing the Fed", "robbing"))
    ),
    ("seed paper", seed_paper(1, 2, 4)),
    ("ours", (("", "digital"),)),
)
SIZE, BATCH, NOISE, SHOWN = 224, 16, 4e-4, (0, 1, 2, 3)

# Okabe and Ito's colours, distinguishable with any colour vision; lines also differ in dashes or markers.
CURVES = (
    # attack, column, label, colour, dashes, mark, width
    ("feedback", "psnr_mean", "ours, 16 rounds with feedback", "#009E73", "-", "D", 1.8),
    ("digital", "psnr_mean", "ours", "#0072B2", "-", "o", 2.8),
    ("water_filling", "psnr_mean", "ours, linear code", "#56B4E9", "-", "h", 1.8),
    ("water_filling", "psnr_initial", "the same without refinement", "#56B4E9", "--", "", 1.6),
    ("paper best", "psnr_mean", "seed paper, best at each z", "#D55E00", "-", "s", 1.8),
    ("paper published", "psnr_mean", "seed paper, as published", "#D55E00", ":", "", 1.6),
    ("robbing_the_fed best", "psnr_mean", "Robbing the Fed, best", "#E69F00", "-", "^", 1.8),
    ("curious_abandon_honesty best", "psnr_mean", "Curious Abandon Honesty, best", "#CC79A7", "-", "v", 1.8),
    ("water_filling", "gaussian_reference_psnr", "Gaussian reference of one round", "#000000", "--", "", 1.4),
    ("water_filling", "noise_law_psnr", "noise law: no prior, rows known", "#000000", ":", "", 1.6),
)
BASELINES = (("mean_image_psnr", "mean image"), ("black_psnr", "black image"))
LOWEST, EXACT, HIGHEST = 4, 64, 67  # 100 dB is drawn at EXACT
HONEST = (
    # attack, column, label, colour, dashes, mark, width
    ("likelihood", "psnr_mean", "ours: the channel's likelihood", "#009E73", "-", "D", 2.8),
    ("inverting_gradients", "psnr_mean", "Inverting Gradients", "#D55E00", "-", "s", 1.8),
    ("inverting_gradients_modern", "psnr_mean", "the same, modern variant", "#E69F00", "-", "^", 1.8),
    ("see_through_gradients", "psnr_mean", "See Through Gradients", "#CC79A7", "-", "v", 1.8),
    ("dlg", "psnr_mean", "DLG", "#666666", "-", "P", 1.4),
    ("idlg", "psnr_mean", "iDLG", "#666666", "--", "X", 1.4),
    ("water_filling", "psnr_mean", "our structure (malicious server), linear code", "#0072B2", "-", "o", 2.2),
    ("water_filling", "gaussian_reference_psnr", "Gaussian reference", "#000000", "--", "", 1.4),
    ("water_filling", "noise_law_psnr", "noise law: no prior, rows known", "#000000", ":", "", 1.6),
)
TRAININGS = (
    # training, epochs and noise multiplier in clients.csv, label
    ("one step", "1", 3e-4, "one step"),
    ("SGD, 4 steps", "1", 3e-4, "SGD, 4 steps"),
    ("SGD, 4 steps", "3", 3e-4, "SGD, 4 steps × 3 epochs"),
    ("momentum 0.9, 4 steps", "1", 3e-4, "SGD with momentum 0.9, 4 steps"),
    ("SGD, 16 steps", "5", 3e-4, "SGD, η = 0.1, 16 steps × 5 epochs"),
    ("Adam", "1", 3e-4, "Adam, one step"),
    ("Adam, 4 steps", "2", 3e-4, "Adam, 4 steps × 2 epochs"),
    ("AdamW", "1", 3e-4, "AdamW, one step"),
    ("AdamW, 4 steps", "2", 3e-4, "AdamW, 4 steps × 2 epochs"),
)
NO_NOISE = 2e-5  # where a logarithmic axis shows z = 0


def comparison() -> None:
    """fig/comparison.png: the quickstart's run, four of its eight victims."""
    with tempfile.TemporaryDirectory() as scratch:
        overlay = Path(scratch) / "overlay.yaml"
        overlay.write_text(OVERLAY)
        configs = ["--config", "quickstart.yaml", "--config", str(overlay)]
        recon(["fit", *configs, "--model.client.noise_seed", "0", "--trainer.default_root_dir", scratch])
        shutil.copy(Path(scratch) / "comparison.png", FIGURES / "comparison.png")


def peers() -> None:
    """fig/peers.png: the same victims and privacy parameters, reconstructed with each published structure."""
    data = ClientDataModule(image_size=SIZE, batch_size=BATCH, masks=GrabCutMasks(work_size=192), num_classes=16)
    data.prepare_data()
    data.setup()
    shown = list(SHOWN)
    columns = [Version("subject", data.client_batches[0].images[shown])]
    for heading, variants in PEERS:
        found = [(*attacked(options), name) for options, name in variants]
        _, version, name = max(found, key=lambda one: one[0])
        label = LABELS.get(name, "").replace("×", "x")  # the font of these figures has no multiplication sign
        columns.append(version._replace(name=f"{heading}, {label}" if len(variants) > 1 else heading))
    comparison_figure(columns).save(FIGURES / "peers.png")


def attacked(options: str) -> tuple[float, Version]:
    """Mean PSNR over all victims, and the images of those that are shown.

    Args:
        options: Options of the attack.
    """
    with tempfile.TemporaryDirectory() as scratch:
        setting = f"--config quickstart.yaml {options} --data.image_size {SIZE} --data.batch_size {BATCH}"
        noise = f"--model.client.privacy.noise_multiplier {NOISE:f} --trainer.default_root_dir {scratch}"
        alone = "--comparison.structure null --comparison.noise_factor null --model.client.noise_seed 0"
        recon(["fit", *setting.split(), *noise.split(), *alone.split()])
        record = json.loads((Path(scratch) / "results.json").read_text())
        victims = [record["victims"][victim] for victim in SHOWN]
        pictures = [pil_to_tensor(Image.open(Path(scratch) / victim["image"])) for victim in victims]
        captions = [caption(victim["psnr"], victim["bit_exact"]) for victim in victims]
        return record["summary"]["psnr_mean"], Version("", torch.stack(pictures).float() / 255, captions)


def psnr_against_z() -> None:
    """fig/psnr_against_z.png: every attack, the noise law, the Gaussian reference and the trivial baselines."""
    import matplotlib.pyplot as plt

    rows = read_table(RESULTS / "curve.csv")
    multipliers = sorted({float(row["z"]) for row in rows})
    alike = {"granularity": "update", "size": "64", "batch": "16", "rounds": "1", "attack": "digital"}
    rows += [row for row in read_table(RESULTS / "digital.csv") if alike.items() <= row.items()]
    for attack in ("paper", "robbing_the_fed", "curious_abandon_honesty"):
        rows += strongest(rows, attack)
    plt.rcParams.update({"font.size": 11, "axes.spines.top": False, "axes.spines.right": False})
    figure, axes = plt.subplots(figsize=(8.8, 6.0), layout="constrained")
    for attack, column, label, colour, dashes, mark, width in CURVES:
        found = [(z, min(value, EXACT)) for z, value in curve(rows, attack, column)]
        axes.plot(
            *zip(*found, strict=True), label=label, color=colour, linestyle=dashes, marker=mark, linewidth=width,
            markersize=5, zorder=3 if mark else 4,
        )  # fmt: skip
    for name, z, value in best_names(rows, "paper"):
        axes.annotate(name, (z, value), (4, 5), textcoords="offset points", color="#D55E00", fontsize=7.5)
    axes.axhline(EXACT, color="#0072B2", linewidth=1, linestyle=(0, (1, 3)), zorder=1)
    axes.text(3.2e-3, EXACT + 0.5, "bit-exact", color="#0072B2", fontsize=9.5)
    for column, label in BASELINES:
        found = curve(rows, "water_filling", column)
        axes.axhline(found[0][1], color="#888888", linewidth=1, zorder=1)
        axes.text(found[0][0], found[0][1] + 0.5, label, color="#666666", fontsize=9.5)
    axes.axvline(2e-4, color="#888888", linewidth=0.8, linestyle=(0, (1, 3)), zorder=1)
    axes.text(1.9e-4, EXACT - 0.7, "the paper's\nnominal ε = 10", color="#666666", fontsize=9.5, va="top", ha="right")
    axes.set(xscale="log", xlim=(0.85 * multipliers[0], 1.2 * multipliers[-1]), ylim=(LOWEST, HIGHEST))
    setting = "64 × 64 photographs, 16 a client, one clip for the whole update"
    axes.set(xlabel=f"noise multiplier z   ({setting})", ylabel="PSNR, mean over all victims (dB)")
    axes.grid(axis="y", color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
    epsilon = {float(row["z"]): float(row["epsilon_accounted"]) for row in rows if row["rounds"] == "1"}
    above = axes.secondary_xaxis("top")
    above.set_xticks(multipliers, [power_of_ten(epsilon[z]) for z in multipliers])
    above.minorticks_off()
    above.set_xlabel("accounted ε of one round (δ = 1e-5, add/remove; replace-one is about four times as large)")
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=10)
    figure.savefig(FIGURES / "psnr_against_z.png", dpi=160)


def honest() -> None:
    """fig/honest.png: attacks of an honest server over the noise, with our structure, theory and the mean image."""
    import matplotlib.pyplot as plt

    rows = [row for row in read_table(RESULTS / "honest.csv") if not row["client"] and not row["precision"]]
    plt.rcParams.update({"font.size": 11, "axes.spines.top": False, "axes.spines.right": False})
    figure, axes = plt.subplots(figsize=(8.8, 6.0), layout="constrained")
    for attack, column, label, colour, dashes, mark, width in HONEST:
        found = [(z or NO_NOISE, value) for z, value in curve(rows, attack, column)]
        axes.plot(
            *zip(*found, strict=True), label=label, color=colour, linestyle=dashes, marker=mark, linewidth=width,
            markersize=5, zorder=3 if mark else 4,
        )  # fmt: skip
    (_, mean_image), *_ = curve(rows, "water_filling", "mean_image_psnr")
    axes.axhline(mean_image, color="#888888", linewidth=1, zorder=1)
    axes.text(NO_NOISE, mean_image - 2.2, "mean image", color="#666666", fontsize=9.5)
    multipliers = sorted({float(row["z"]) for row in rows})
    axes.set(xscale="log", xlim=(0.8 * NO_NOISE, 1.2 * multipliers[-1]), ylim=(LOWEST, 103))
    axes.set_xticks([z or NO_NOISE for z in multipliers], [f"{z:g}" for z in multipliers])
    axes.minorticks_off()
    setting = "32 × 32 photographs, one a client, clipped alone, small convolutional network"
    axes.set(xlabel=f"noise multiplier z   ({setting})", ylabel="PSNR, mean over all victims (dB)")
    axes.grid(axis="y", color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=10)
    figure.savefig(FIGURES / "honest.png", dpi=160)


def clients() -> None:
    """fig/clients.png: leakage by optimizer and epochs, with the structure of before and the one for local training."""
    import matplotlib.pyplot as plt

    versions = [
        ("a structure for one step of SGD", "#E69F00", read_table(RESULTS / "clients_before.csv")),
        ("a structure for the announced training", "#0072B2", read_table(RESULTS / "clients.csv")),
    ]
    plt.rcParams.update({"font.size": 11, "axes.spines.top": False, "axes.spines.right": False})
    figure, panels = plt.subplots(1, 2, figsize=(11, 5.4), layout="constrained", sharey=True)
    quantities = (
        ("linear", "psnr_mean", 1, "linear code: PSNR (dB)"),
        ("digital", "bit_exact", 100, "digital code: bit-exact images (%)"),
    )
    for axes, (code, column, scale, title) in zip(panels, quantities, strict=True):
        for offset, (version, colour, rows) in zip((-0.2, 0.2), versions, strict=True):
            for place, (training, epochs, z, _) in enumerate(TRAININGS):
                values = [
                    scale * float(row[column]) for row in rows
                    if (row["training"], row["epochs"], row["code"], float(row["z"])) == (training, epochs, code, z)
                    and row["network"] == "resnet18"
                ]  # fmt: skip
                if values:
                    mean = sum(values) / len(values)
                    label = version if place == 0 else None
                    axes.barh(place + offset, mean, 0.38, color=colour, label=label)
                    axes.text(mean, place + offset, f" {mean:.3g}", va="center", fontsize=9)
        axes.set_title(title, fontsize=11)
        axes.margins(x=0.12)
    panels[0].set_yticks(range(len(TRAININGS)), [label for *_, label in TRAININGS])
    panels[0].invert_yaxis()
    handles, labels = panels[1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False, fontsize=10)
    figure.savefig(FIGURES / "clients.png", dpi=150)


def case_studies() -> None:
    """fig/case_studies.png: what our attacks show under privacy parameters that released programs document."""
    case_figure.draw(FIGURES / "case_studies.png")


def curve(rows: list[dict[str, str]], attack: str, column: str) -> list[tuple[float, float]]:
    """Noise multipliers, ascending, and the mean of a column over the noise draws of an attack at each."""
    values: dict[float, list[float]] = {}
    for row in rows:
        if row["attack"] == attack:
            values.setdefault(float(row["z"]), []).append(float(row[column]))
    return [(z, sum(found) / len(found)) for z, found in sorted(values.items())]


def strongest(rows: list[dict[str, str]], attack: str) -> list[dict[str, str]]:
    """The rows of an attack's strongest variant at each noise multiplier, as those of one attack.

    Args:
        rows: Rows of `curve.csv`.
        attack: The word with which the names of its variants begin.

    Returns:
        Copies of these rows, named "ATTACK best", whose column `variant` names the variant.
    """
    names = sorted({row["attack"] for row in rows if row["attack"].split(" ")[0] == attack and row["attack"] in LABELS})
    curves = {name: dict(curve(rows, name, "psnr_mean")) for name in names}
    best = {z: max(names, key=lambda name: curves[name][z]) for z in curves[names[0]]}
    return [
        {**row, "attack": f"{attack} best", "variant": row["attack"]}
        for row in rows
        if best.get(float(row["z"])) == row["attack"]
    ]


def best_names(rows: list[dict[str, str]], attack: str) -> list[tuple[str, float, float]]:
    """Where the strongest variant of an attack changes: its name, the noise multiplier, and the PSNR there.

    Where all of them return the mean image, none is named.
    """
    found: list[tuple[str, float, float]] = []
    mean_image = dict(curve(rows, f"{attack} best", "mean_image_psnr"))
    variants = {float(row["z"]): row["variant"] for row in rows if row["attack"] == f"{attack} best"}
    for z, value in curve(rows, f"{attack} best", "psnr_mean"):
        name = LABELS[variants[z]]
        if name not in [one for one, _, _ in found] and value - mean_image[z] > 0.1:
            found.append((name, z, value))
    return found


def power_of_ten(number: float) -> str:
    """Two digits in the notation of formulas; plain below a thousand."""
    if number < 1000:
        return f"{number:.0f}"
    mantissa, exponent = f"{number:.0e}".split("e")
    return f"${mantissa}\\cdot10^{{{int(exponent)}}}$"


DRAWN = {drawn.__name__: drawn for drawn in (comparison, peers, psnr_against_z, honest, clients, case_studies)}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("figures", nargs="*", metavar="FIGURE", help=f"{', '.join(DRAWN)}; all when none is named")
    chosen = parser.parse_args().figures or list(DRAWN)
    FIGURES.mkdir(exist_ok=True)
    for name in chosen:
        DRAWN[name]()
