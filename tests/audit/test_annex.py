# SPDX-License-Identifier: Apache-2.0
"""The annex and the audit card: what was executed, what not, and a hash of what the result rests on."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lightning_recon.audit.run import Outcome
from lightning_recon.exchange import BatchSampling
from lightning_recon.files.digests import DIGEST, digest_of

from .pages import Page, outcome, written

MakeRun = Callable[..., Path]


def annex(folder: Path, *outcomes: Outcome) -> dict[str, Any]:
    written(folder, *outcomes)
    content: dict[str, Any] = json.loads((folder / "annex.json").read_text())
    return content


def status(content: dict[str, Any]) -> dict[str, str]:
    return {one["name"]: one["status"] for one in content["attack_classes"]}


def test_only_what_ran_is_executed(make_run: MakeRun, tmp_path: Path) -> None:
    single = status(annex(tmp_path, outcome(make_run("single"))))
    executed = {name for name, found in single.items() if found == "executed"}
    assert executed == {"reconstruction by a malicious server, which modifies the model"}
    assert single["membership inference"] == "bounded, not run"
    assert single["attacks on the trained model (inversion, extraction)"] == "out of scope"

    more = annex(
        tmp_path,
        outcome(make_run("rounds", rounds=3, identified=[True, False])),
        outcome(make_run("training", rounds=4, sampling=BatchSampling("shuffle", 4))),
    )
    executed = {name for name, found in status(more).items() if found == "executed"}
    assert {name.split(" ")[0] for name in executed} == {"reconstruction", "extraction", "identification"}
    assert len(executed) == 4
    assert status(more)["reconstruction from a sum of clients (secure aggregation)"] == "not run"


def test_an_honest_server_is_another_class(make_run: MakeRun, tmp_path: Path) -> None:
    folder = make_run("honest")
    record = json.loads((folder / "results.json").read_text())
    record["summary"]["structure_bytes"] = 0
    (folder / "results.json").write_text(json.dumps(record))
    executed = {name for name, found in status(annex(tmp_path, outcome(folder))).items() if found == "executed"}
    assert executed == {"reconstruction by an honest-but-curious server (gradient inversion)"}


def test_the_guarantee_is_stated_for_both_adjacencies(make_run: MakeRun, tmp_path: Path) -> None:
    content = annex(tmp_path, outcome(make_run("run", z=0.6)))
    (one,) = content["mechanisms"]
    assert one["epsilon_all_rounds"]["add_remove"] == pytest.approx(8.0, rel=0.01)
    assert one["epsilon_all_rounds"]["replace_one"] > 19
    assert content["unit_of_privacy"] == ["one image: the gradient of each image is clipped alone"]
    assert content["implementation"]["status"] == "not run"


def test_what_is_not_known_is_not_claimed(make_run: MakeRun, tmp_path: Path) -> None:
    known = annex(tmp_path, outcome(make_run("known")))
    assert known["noise"] == "not recorded"  # as in records of earlier versions
    assert known["trust_model"].startswith("A client clips its update and adds noise before it leaves the device")
    bare = annex(tmp_path, outcome(make_run("bare", z=0.0, originals=False)))
    assert bare["noise"] == "none"
    assert bare["inputs"]["images"] is None
    assert "Cells without clip or noise have no guarantee." in bare["trust_model"]
    assert "one client's updates" not in bare["trust_model"]
    assert status(bare)["membership inference"] == "not run"
    assert "an unknown number of images" in (tmp_path / "audit-card.md").read_text()
    some = annex(tmp_path, outcome(make_run("some", sums={"participation": 0.5})))
    assert "Where clients do not take part in every round, ε is that of one client's updates" in some["trust_model"]


def test_clipping_norms_are_kept_apart(make_run: MakeRun, tmp_path: Path) -> None:
    folders = [make_run("one"), make_run("two")]
    record = json.loads((folders[1] / "results.json").read_text())
    record["privacy"]["max_grad_norm"] = 2.0
    (folders[1] / "results.json").write_text(json.dumps(record))
    assert [one["max_grad_norm"] for one in annex(tmp_path, *map(outcome, folders))["mechanisms"]] == [1.0, 2.0]


def test_the_hash_follows_config_record_and_images(make_run: MakeRun, tmp_path: Path) -> None:
    folder = make_run("run", data={})
    before = annex(tmp_path, outcome(folder))
    assert before[DIGEST] == digest_of(before)
    assert annex(tmp_path, outcome(folder)) == before
    assert before["inputs"]["images"] == 2
    hashes = {before["inputs"]["sha256"]}
    for name in ("config.yaml", "truth/000-used.png", "results.json"):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content + b"\n")
        hashes.add(annex(tmp_path, outcome(folder))["inputs"]["sha256"])
        (folder / name).write_bytes(content)
    assert len(hashes) == 4
    assert annex(tmp_path, outcome(folder)) == before


def test_page_and_card_say_the_same_and_promise_nothing(sweep: list[Outcome], tmp_path: Path) -> None:
    content = annex(tmp_path, *sweep)
    page = Page((tmp_path / "report.html").read_text()).text
    card = (tmp_path / "audit-card.md").read_text()
    for text in (page, card):
        assert content["inputs"]["sha256"] in text
        assert content["result"]["headline"] in text
        assert "anonym" not in text.lower()
        for name, found in status(content).items():
            assert name in text or found == "executed"
    assert "anonym" not in (tmp_path / "annex.json").read_text().lower()
    for one in content["guidance"]:
        assert all(checked in page for checked in one["to_be_checked"])
    assert len(card.splitlines()) < 60  # a page
    assert all(line.count(" | ") == 4 for line in card.splitlines() if line.startswith("| one clip"))
