# SPDX-License-Identifier: Apache-2.0
"""The cells of a sweep: how many, what they are called, and what is refused."""

from pathlib import Path
from typing import Any

import pytest

from lightning_recon.audit.config import AuditedAttack, Change, Reference, Sweep, Training
from lightning_recon.audit.plan import Cell, Plan, plan_of
from lightning_recon.errors import UserError
from lightning_recon.privacy.gaussian_accounting import gaussian_epsilon, mu_of

BASE = {"trainer": {"max_steps": 1}}


def planned(flags: tuple[str, ...] = (), base: dict[str, Any] = BASE, **options: Any) -> Plan:  # noqa: ANN401
    options = {"attacks": {"ours": AuditedAttack()}, "noise_multiplier": [0.1]} | options
    return plan_of(Sweep(**options), [base], Path("configs"), flags)


def cells(**options: Any) -> list[Cell]:  # noqa: ANN401
    return planned(**options).cells


def test_every_combination_is_one_cell() -> None:
    found = cells(
        attacks={"ours": AuditedAttack(), "the paper": AuditedAttack(["attack/paper.yaml"])},
        noise_multiplier=[0.1, 1.0, 0.1],  # named twice: done once
        granularity=["sample", "update"],
        batch_size=[1, 8],
        rounds=[1, 4],
        seeds=[0, 1, 2],
    )
    assert len(found) == len({cell.name for cell in found}) == 2 * 2 * 2 * 2 * 2 * 3
    assert all(Path(cell.name).name == cell.name for cell in found)


def test_an_attack_may_ask_for_rounds() -> None:
    attacks = {"ours": AuditedAttack(), "feedback": AuditedAttack(["attack/feedback.yaml"], min_rounds=2)}
    found = cells(attacks=attacks, rounds=[1, 2])
    assert [(cell.attack, cell.rounds) for cell in found] == [("ours", 1), ("ours", 2), ("feedback", 2)]
    with pytest.raises(UserError, match="empty"):
        cells(attacks={"feedback": attacks["feedback"]}, rounds=[1])


def test_an_attack_may_be_left_out_where_the_noise_of_all_rounds_is_large() -> None:
    attacks = {"ours": AuditedAttack(), "digital": AuditedAttack(["attack/digital.yaml"], max_noise_multiplier=0.1)}
    found = cells(attacks=attacks, rounds=[1, 16], noise_multiplier=[0.2, 0.5])
    assert [(c.noise_multiplier, c.rounds) for c in found if c.attack == "digital"] == [(0.2, 16)]
    assert len(found) == 5


@pytest.mark.parametrize("adjacency", ["add_remove", "replace_one"])
def test_epsilon_is_that_of_all_rounds(adjacency: Any) -> None:  # noqa: ANN401
    for cell in cells(noise_multiplier=None, epsilon=[1.0, 8.0], rounds=[1, 100], adjacency=adjacency):
        reached = gaussian_epsilon(mu_of(cell.noise_multiplier, cell.rounds, adjacency), 1e-5)
        assert min(abs(reached - epsilon) for epsilon in (1.0, 8.0)) < 1e-6
    assert cells(noise_multiplier=None, epsilon=[8.0])[0].noise_multiplier == pytest.approx(0.600, abs=5e-4)


def test_whatever_changes_results_changes_the_name() -> None:
    variants = [
        cells(),
        cells(base=BASE | {"data": {"init_args": {"image_size": 32}}}),
        cells(flags=("--data.root", "photos")),
        cells(attacks={"ours": AuditedAttack(["attack/robbing_the_fed.yaml"])}),
        cells(delta=1e-6),
    ]
    names = [found[0].name for found in variants]
    assert len(set(names)) == len(names)
    # ... and nothing else does
    assert cells(jobs=4, tolerance=1.0, population_size=100, rounds=[1, 2])[0].name == names[0]


def test_a_cell_is_a_command_of_recon_fit() -> None:
    (cell,) = cells(flags=("--data.root", "photos"), attacks={"paper": AuditedAttack(["attack/paper.yaml"])}, seeds=[3])
    words = list(cell.arguments)
    assert [words[place + 1].endswith(".yaml") for place, word in enumerate(words) if word == "--config"] == [True] * 2
    for flag, value in {"--data.root": "photos", "--seed_everything": "3", "--data.batch_size": "8"}.items():
        assert words[words.index(flag) + 1] == value


def words(cell: Cell, flag: str) -> list[str]:
    """All values that a cell's command line gives a flag; the last one counts."""
    return [cell.arguments[place + 1] for place, word in enumerate(cell.arguments) if word == flag]


def test_a_change_is_cells_of_its_own() -> None:
    changes = {
        "twice the noise": Change(noise_factor=2.0),
        "a larger batch": Change(batch_factor=4, flags={"data.clients": 1}),
        "per layer": Change(flags={"model.client.privacy.per_layer": True}, cost="nothing"),
        "z = 1": Change(noise_factor=5.0),
    }
    found = planned(
        noise_multiplier=[0.05, 0.2, 1.0, 6.0], batch_size=[2, 4], rounds=[1, 3], seeds=[0, 1], interventions=changes
    )
    assert {(cell.noise_multiplier, cell.batch_size, cell.rounds) for cell in found.reference} == {(0.2, 2, 1)}
    assert {cell.name for cell in found.reference} <= {cell.name for cell in found.sweep}
    assert [len(group) for group in found.changes.values()] == [2] * 4  # two seeds
    assert {cell.noise_multiplier for cell in found.changes["twice the noise"]} == {0.4}
    larger = found.changes["a larger batch"][0]
    assert (larger.batch_size, words(larger, "--data.clients")) == (8, ["1"])
    assert words(found.changes["per layer"][0], "--model.client.privacy.per_layer") == ["true"]
    # What the sweep attacks anyway is attacked once.
    assert found.changes["z = 1"] == [cell for cell in found.sweep if cell.noise_multiplier == 1.0][:2]
    assert len(found.cells) == len({cell.name for cell in found.cells}) == 2 * (4 * 2 * 2) + 3 * 2


def test_the_reference_can_be_named() -> None:
    attacks = {"ours": AuditedAttack(), "feedback": AuditedAttack(min_rounds=2)}
    named = Reference(noise_multiplier=0.3, granularity="sample", batch_size=2, rounds=4)
    found = planned(attacks=attacks, interventions={"more": Change(noise_factor=2.0)}, reference=named)
    place = (0.3, "sample", 2, 4)
    assert [(c.attack, c.noise_multiplier, c.granularity, c.batch_size, c.rounds) for c in found.reference] == [
        ("ours", *place),
        ("feedback", *place),
    ]
    assert [cell.attack for cell in found.changes["more"]] == ["ours", "feedback"]
    silent = planned(interventions={"x": Change(batch_factor=2)}, reference=Reference(noise_multiplier=0.0))
    assert [cell.noise_multiplier for cell in silent.reference] == [0.0]
    assert planned(reference=named).reference == []  # no change, nothing to compare
    by_epsilon = planned(
        epsilon=[1.0, 8.0, 32.0], noise_multiplier=None, interventions={"more": Change(noise_factor=2.0)}
    )
    assert [round(cell.noise_multiplier, 2) for cell in by_epsilon.reference] == [0.6]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"epsilon": [8.0]}, "both set the noise"),
        ({"noise_multiplier": None}, "no noise"),
        ({"noise_multiplier": []}, "no noise"),
        ({"attacks": {}}, "attacks is empty"),
        ({"rounds": []}, "rounds is empty"),
        ({"rounds": [0]}, "rounds is 0"),
        ({"seeds": []}, "seeds is empty"),
        ({"jobs": 0}, "jobs is 0"),
        ({"delta": 1.0}, "delta is 1.0"),
        ({"tolerance": 0.0}, "tolerance is 0.0"),
        ({"population_size": 0}, "population_size is 0"),
        ({"sampling_rate": 0.0}, "sampling_rate is 0.0"),
        ({"interventions": {"x": Change()}}, "“x” changes nothing"),
        ({"interventions": {"x": Change(flags={"model.client.privacy.rounds": 3})}}, "use --audit.rounds"),
        (
            {
                "interventions": {"x": Change(noise_factor=2.0)},
                "attacks": {"x": AuditedAttack(min_rounds=2)},
                "rounds": [2],
                "reference": Reference(rounds=1),
            },
            "another --audit.reference.rounds",
        ),
        ({"attacks": {"x": AuditedAttack(max_noise_multiplier=1e-6)}}, r"less noise \(max_noise_multiplier\)"),
        ({"attacks": {"x": AuditedAttack(["no/such.yaml"])}}, "no/such.yaml"),
        ({"flags": ("--model.client.privacy.noise_multiplier=1",)}, "use --audit.noise_multiplier"),
        ({"flags": ("--model.init_args.client.init_args.privacy.rounds", "3")}, "use --audit.rounds"),
        ({"flags": ("--seed_everything", "3")}, "use --audit.seeds"),
        ({"flags": ("--trainer.default_root_dir", "x")}, "use --output"),
    ],
)
def test_nonsense_is_refused_in_one_line(options: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says) as told:
        cells(**options)
    assert "\n" not in str(told.value)


def test_a_training_sets_rounds_and_sampling() -> None:
    found = cells(batch_size=[4, 5], training=Training(images=16, epochs=3))
    assert [(cell.batch_size, cell.rounds) for cell in found] == [(4, 12), (5, 12)]
    words = found[0].arguments
    assert words[words.index("--data.local_images") + 1] == "16"
    assert words[words.index("--model.client.sampling") + 1] == "shuffle"
    (listed,) = cells(batch_size=[4], rounds=[7], training=Training(images=16, sampling="poisson"))
    assert listed.rounds == 7


def test_the_noise_of_a_shuffled_training_is_that_of_its_epochs() -> None:
    (cell,) = cells(
        noise_multiplier=None, epsilon=[4.0], batch_size=[4], granularity=["sample"], training=Training(16, epochs=5)
    )
    assert gaussian_epsilon(mu_of(cell.noise_multiplier, 5, "add_remove"), 1e-5) == pytest.approx(4.0)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"batch_size": [17]}, "more than the 16 images"),
        ({"sampling_rate": 0.1}, "sampling_rate null"),
        (
            {"rounds": [1, 2], "training": Training(16, epochs=2)},
            r"--audit.rounds is \[1, 2\], but the epochs of --audit.training set the number of rounds",
        ),
        ({"noise_multiplier": None, "epsilon": [1.0]}, "give audit.noise_multiplier"),
    ],
)
def test_a_training_refuses_what_contradicts_it(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        cells(**({"training": Training(16, sampling="poisson"), "batch_size": [4]} | options))


def test_a_training_is_set_for_all_cells() -> None:
    with pytest.raises(UserError, match=r"audit\.training"):
        planned(("--model.client.sampling", "poisson"), batch_size=[4], training=Training(16))
