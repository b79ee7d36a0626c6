# SPDX-License-Identifier: Apache-2.0
"""The report: careful words, everything inside one file, nothing that a hostile name could do."""

import base64
import csv
import html
import io
import json
import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from lightning_recon.audit.config import AuditedAttack, Sweep
from lightning_recon.audit.images import embedded
from lightning_recon.audit.load import Intervention, Runs
from lightning_recon.audit.plan import Cell, plan_of
from lightning_recon.audit.report import Judgement, remarks_of, write_report
from lightning_recon.audit.run import Outcome, read_outcome
from lightning_recon.audit.table import row_of, table_text, write_hparams
from lightning_recon.audit.wording import number
from lightning_recon.cli import main
from lightning_recon.errors import UserError
from lightning_recon.files.atomic import write_text

MakeRun = Callable[..., Path]
BROWSER = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
HOSTILE = '<script>document.title="owned"</script>"><img src=x onerror=alert(1)>'
MEASURE = """onload = () => {
    const page = f.contentDocument, labels = [...page.querySelectorAll('td.text, .grid td, .grid th')]
    const narrowest = Math.round(Math.min(...labels.map(one => one.getBoundingClientRect().width)))
    document.title = [page.title, page.images.length, page.documentElement.scrollWidth, narrowest].join('|')
}"""
VOID = {"meta", "img", "br", "wbr"}


class Page(HTMLParser):
    """Checks that tags nest, and collects attributes and visible text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.text += data


def outcome(folder: Path, attack: str | None = None) -> Outcome:
    found = read_outcome(folder, attack)
    assert found is not None
    return found


def written(folder: Path, *outcomes: Outcome, trials: Sequence[Intervention] = (), **options: object) -> str:
    runs = Runs(list(outcomes), list(trials))
    write_report(folder / "report.html", folder / "results.csv", runs, **options)  # type: ignore[arg-type]
    return (folder / "report.html").read_text(encoding="utf-8")


@pytest.fixture
def sweep(make_run: MakeRun) -> list[Outcome]:
    """Two attacks, four noises: recognisable, coarse, undecided, nothing."""
    clear, coarse, wide, nothing = ((26.0, 27.0),), ((3.0, 3.0),), ((-2.0, -2.0),), ((0.1, 0.1),)
    curves = {
        "ours": {
            2e-4: (clear[0], (25.0, 25.0)),
            0.1: (coarse[0], (3.1, 3.0)),
            0.3: (wide[0], (2.5, 2.5)),
            0.6: nothing * 2,
        },
        "weak": {2e-4: (coarse[0], (3.1, 3.0)), 0.1: nothing * 2, 0.3: nothing * 2, 0.6: ((0.0, 0.0),) * 2},
    }
    folders = [
        make_run(f"{attack}{z}", attack, z=z, gains=gains, ssim=0.9 if gains[0][0] > 20 else 0.2)
        for attack, curve in curves.items()
        for z, gains in curve.items()
    ]
    return [outcome(folder) for folder in folders]


def test_the_verdict_says_what_was_measured(sweep: list[Outcome], tmp_path: Path) -> None:
    text = Page(written(tmp_path, *sweep)).text
    assert (
        "4 protections were audited: pictures came back recognisable under 1; more than a mean image, but not a "
        "recognisable picture, under 1; no attack beat a mean image by more than 0.5 dB under 1; these pictures are "
        "too few to say under 1." in text
    )
    # 2e-4: what the paper's formula calls 10 is an accounted 1.25e7; 0.6 is 8.
    assert (
        "At accounted ε = about 13 million, δ = 1e-5 (the seed paper's formula calls this noise ε = 10), z = 0.0002: "
        "subjects are recognisable." in text
    )
    assert "“ours” reaches 37.8 dB, 25.8 dB above a mean image" in text
    assert (
        "At accounted ε = 8, δ = 1e-5, z = 0.6: no attack in this audit beats a mean image by more than 0.5 dB" in text
    )
    assert "z = 0.3 (accounted ε = 19.1). With the whole 95 % interval over pictures and draws: z = 0.6 (acc" in text
    assert "exceeded up to z = 0.1" in text
    told = json.loads((tmp_path / "report.json").read_text())
    assert told["settings"][0]["smallest_noise"] == {"exceeded": 0.1, "mean": 0.3, "sure": 0.6}
    assert len(told["cells"]) == 8


def test_where_pictures_came_back_bit_for_bit_it_says_how_many_and_what_that_proves(
    make_run: MakeRun, tmp_path: Path
) -> None:
    quiet, names = ((88.0, 88.0), (88.0, 30.0), (20.0, 20.0)), ["cat/a", "cat/b", "cat/c"]
    found = {
        2e-4: (("digital", ((True, True), (True, False), (False, False))), ("linear", ((False, False),) * 3)),
        0.1: (("linear", ((False, False),) * 3),),
        0.3: (("linear", ((False, False),) * 3),),
    }
    outcomes = [
        outcome(make_run(f"{attack}{z}", attack, z=z, gains=quiet, names=names, exact=exact))
        for z, runs in found.items()
        for attack, exact in runs
    ]
    text = Page(written(tmp_path, *outcomes)).text
    # Levels part the protections; what came back bit for bit is one of them, and counted beside.
    assert (
        "3 protections were audited: pictures came back recognisable under 3. Under 1 of them, pictures came back"
        in text
    )
    # Clopper and Pearson's interval of 2 of 3.
    assert (
        "z = 0.0002, 3 pictures a client: 2 of 3 pictures came back bit for bit in at least one of 2 noise draws (1 in "
        "every one), by “digital code (ours)”. So few prove little: of such pictures, 9 to 99 % would (95 % interval)."
    ) in text
    # 1 - 0.025 ** (1 / 3).
    assert (
        "At z = 0.1 and 0.3, not one of 3 pictures came back bit for bit from any attack; seen on so few, up to 71 % of"
    ) in text
    assert "the clearest single picture came back bit for bit" in text
    assert text.count("bit-exact") == 2  # captions of the first draw
    told = json.loads((tmp_path / "report.json").read_text())
    assert len(told["settings"][0]["bit_exact"]) == 2


def test_the_report_never_promises(sweep: list[Outcome], tmp_path: Path) -> None:
    text = Page(written(tmp_path, *sweep)).text
    for phrase in (" safe", "DP is broken", "privacy is broken", "impossible to", "guarantees that"):
        assert phrase not in text


def test_where_nothing_was_detected_it_says_so(make_run: MakeRun, tmp_path: Path) -> None:
    blind = outcome(make_run("blind", gains=((0.0,), (0.0,)), detected=False, z=3.0))
    text = Page(written(tmp_path, blind)).text
    assert "no attack in this audit detected any of 2 pictures" in text
    # Clopper and Pearson's: 1 - 0.025 ** (1 / 2).
    assert "No attack detected any of the 2 pictures there; seen on so few, up to 84 % of such pictures might" in text
    assert "12.0 dB, not detected" in text


def test_one_file_that_loads_nothing(sweep: list[Outcome], tmp_path: Path) -> None:
    page = Page(written(tmp_path, *sweep))
    sources = [attributes["src"] for _, attributes in page.tags if "src" in attributes]
    assert len(sources) == 1 + (2 + 8) * 2  # the chart; photographs, what the client used, eight cells with two victims
    assert all(str(source).startswith("data:image/") for source in sources)
    assert not {"script", "link", "iframe", "object", "embed", "base"} & {tag for tag, _ in page.tags}
    assert not [
        name for _, attributes in page.tags for name in attributes if name in ("href", "srcset") or name[:2] == "on"
    ]
    policy = [attributes["content"] for tag, attributes in page.tags if "content" in attributes and tag == "meta"]
    assert any("default-src 'none'" in str(content) for content in policy)


def test_hostile_names_are_only_text(make_run: MakeRun, tmp_path: Path) -> None:
    name = f"{HOSTILE}/x.jpg"
    folder = make_run("hostile", HOSTILE, names=[name, "cat/b.jpg"])
    cell = plan_of(Sweep({HOSTILE: AuditedAttack()}, [0.1]), [], tmp_path).cells[0]
    content = written(tmp_path, outcome(folder), failed=[(cell, HOSTILE)])
    page = Page(content)
    assert page.text.count(HOSTILE) >= 4  # under the photograph, attack in table and grid, reason
    assert not [tag for tag, attributes in page.tags if tag == "script" or "onerror" in attributes]


def test_names_that_tex_or_a_terminal_would_read_are_only_text(make_run: MakeRun, tmp_path: Path) -> None:
    names = ["a/$\\frac$.jpg", "b/\x1b[31m\udcff.jpg"]
    folder = make_run("odd", "$\\frac$ \x1b[31m_x", names=names)
    text = Page(written(tmp_path, outcome(folder))).text
    assert "$\\frac$ \\x1b[31m_x" in text
    assert "b/\\x1b[31m\\xff.jpg" in text
    chart = re.search(r"data:image/svg\+xml;base64,([^\"]+)", (tmp_path / "report.html").read_text())
    assert chart is not None
    assert "$\\frac$ \\x1b[31m_x" in base64.b64decode(chart[1]).decode()


def test_what_is_left_out_is_counted(make_run: MakeRun, tmp_path: Path) -> None:
    folder = make_run("many", gains=((20.0, 20.0),) * 8)
    (folder / "images" / "001.png").unlink()
    (folder / "images" / "002.png").write_bytes((folder / "images" / "002.png").read_bytes()[:40])
    Image.new("1", (9000, 9000)).save(folder / "images" / "003.png")  # more pixels than are opened
    record = json.loads((folder / "results.json").read_text())
    record["skipped_pictures"] = [{"name": f"cat/{n}.jpg", "reason": "truncated"} for n in range(7)]
    (folder / "results.json").write_text(json.dumps(record))
    one = outcome(folder)
    text = Page(written(tmp_path, one, replace(one, name="again"))).text
    assert "Shown: the first 6 of 8 victims, the first of 2 noise draws." in text
    assert "6 pictures are missing: no file, or none that can be read." in text  # three of each run
    assert "7 pictures of the data set could not be used and were not attacked: cat/0.jpg (truncated); " in text
    assert "; and 2 more." in text
    whole = Page(written(tmp_path, outcome(make_run("whole", gains=((20.0,), (21.0,)))))).text
    assert "Shown:" not in whole
    assert "not attacked" not in whole
    assert "missing:" not in whole


def test_an_honest_server_is_called_one(make_run: MakeRun, tmp_path: Path) -> None:
    usual = outcome(make_run("usual"))
    summary = usual.record["summary"] | {"structure_bytes": 0}
    honest = replace(usual, attack="inverting_gradients", record={**usual.record, "summary": summary})
    assert "A malicious server attacked clients" in Page(written(tmp_path, usual)).text
    text = Page(written(tmp_path, honest)).text
    assert "An honest but curious server, which ships the model as it is, attacked clients" in text
    assert "“Inverting Gradients” reaches" in text
    assert "and honest but curious ones attacked clients" in Page(written(tmp_path, usual, honest)).text


def test_hostile_changes_and_alarms_are_only_text(make_run: MakeRun, tmp_path: Path) -> None:
    before = outcome(make_run("before", names=["cat/a", "cat/b"], data={"root": f"/x/{HOSTILE.replace('/', '')}"}))
    after = outcome(make_run("after", names=["cat/a", "cat/b"], alarms=[HOSTILE]))
    page = Page(written(tmp_path, before, after, trials=[Intervention(HOSTILE, HOSTILE, (before,), (after,))]))
    assert page.text.count(HOSTILE) >= 3  # name, cost, alarm
    assert not [tag for tag, attributes in page.tags if tag == "script" or "onerror" in attributes]


def test_what_a_change_buys_stands_in_the_page_and_beside_it(make_run: MakeRun, tmp_path: Path) -> None:
    names = ["cat/a", "cat/b"]
    before = outcome(make_run("before", gains=((20.0,), (21.0,)), names=names, alarms=["energy_share"]))
    after = outcome(make_run("after", z=1.0, gains=((10.0,), (11.0,)), names=names, alarms=[]), "ours")
    after = replace(after, change="ten times the noise")
    text = Page(
        written(tmp_path, before, after, trials=[Intervention("ten times the noise", "time", (before,), (after,))])
    ).text
    assert "1 protection was audited" in text  # what was tried is no part of the sweep
    assert "“ten times the noise” has the largest effect: the strongest attack loses 10.0 dB" in text
    assert "32.5 → 22.5" in text
    assert "1 of 2 runs" in text
    assert "That is no protection against a server that adapts" in text
    told = json.loads((tmp_path / "report.json").read_text())
    assert told["changes"][0]["bought_db"]["mean"] == 10.0
    assert told["payload_check"] == [
        {"attack": "ours", "refused": 1, "runs": 2, "checks": ["one layer that takes nearly all of the gradient"]}
    ]
    rows = list(csv.DictReader(io.StringIO((tmp_path / "results.csv").read_text())))
    assert [(row["change"], row["alarms"]) for row in rows] == [("", "energy_share"), ("ten times the noise", "none")]


def test_without_a_truth_nothing_is_judged(make_run: MakeRun, tmp_path: Path) -> None:
    folder = make_run("captured", originals=False)
    record = json.loads((folder / "results.json").read_text())
    for part in ("victims", "baselines", "summary"):
        entries = record[part] if part == "victims" else [record[part]]
        for entry in entries:
            entry |= {name: None for name in entry if "psnr" in name or name in ("ssim_mean", "index", "detected")}
    record |= {"seed": None, "participation": None, "subject_fraction": None}
    record["capture"] = {
        "source": HOSTILE,
        "epsilon_one_round": {"add_remove": 4.0, "replace_one": 8.0},
        "remarks": ["odd"],
    }
    (folder / "results.json").write_text(json.dumps(record))
    main(["report", str(folder), "--output", str(tmp_path / "report.html")])
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert page.text.count("nothing can be scored there") == 1
    assert "there is no PSNR, and no verdict" in page.text
    assert HOSTILE in page.text
    assert "recognisable under" not in page.text
    assert len([1 for tag, _ in page.tags if tag == "img"]) == 4
    (row,) = csv.DictReader(io.StringIO((tmp_path / "report.csv").read_text()))
    assert (row["psnr_mean"], row["gain_mean"], row["epsilon_accounted"]) == ("", "", "91.8173")
    # Beside a run that can be judged, it is judged.
    text = Page(written(tmp_path, outcome(folder), outcome(make_run("known")))).text
    assert "1 protection was audited" in text
    assert "nothing can be scored there" in text


def test_sampling_is_stated_only_where_it_was_announced(sweep: list[Outcome], tmp_path: Path) -> None:
    assert "if sampling" not in Page(written(tmp_path, *sweep)).text
    text = Page(written(tmp_path, *sweep, judgement=Judgement(sampling_rate=0.01))).text
    assert "a malicious server need not sample at all" in text
    theory = json.loads((tmp_path / "report.json").read_text())["settings"][0]["theory"]
    for row in theory:
        assert row["epsilon_sampled"] <= row["epsilon"]
        assert 0.1 < row["gamma_sampled"] <= 1
    strong = theory[-1]
    assert strong["epsilon"] == pytest.approx(8.0, abs=0.01)
    assert strong["epsilon_sampled"] < 4
    # One round: with probability 0.01 the bound without sampling holds, else there is only guessing.
    assert strong["gamma_sampled"] == pytest.approx(0.99 * 0.1 + 0.01 * strong["gamma"], abs=0.02)


def test_settings_that_read_alike_are_told_apart(make_run: MakeRun, tmp_path: Path) -> None:
    runs = [outcome(make_run(name, data={"root": f"/{name}/photos"})) for name in ("a", "b")]
    text = Page(written(tmp_path, *runs)).text
    assert "2 protections were audited" in text
    assert text.count("; source ") == 2
    assert "/photos" not in text


def test_pictures_are_read_from_the_run_alone(make_run: MakeRun, tmp_path: Path) -> None:
    folder = make_run("one")
    assert embedded(folder, "images/000.png").startswith("data:image/png;base64,")
    shutil.copy(folder / "images" / "000.png", folder.parent / "other.png")
    for name in ("../other.png", str(folder.parent / "other.png"), "images/none.png", "results.json"):
        assert embedded(folder, name) == ""


def test_the_same_cells_make_the_same_files(sweep: list[Outcome], tmp_path: Path) -> None:
    contents = []
    for place in ("a", "b"):
        written(tmp_path / place, *sweep)
        contents.append({path.name: path.read_bytes() for path in (tmp_path / place).iterdir()})
    assert contents[0] == contents[1]
    assert set(contents[0]) == {"report.html", "report.json", "results.csv"}
    assert not any(str(tmp_path).encode() in content for content in contents[0].values())


def test_a_row_per_cell(sweep: list[Outcome], tmp_path: Path) -> None:
    written(tmp_path, *sweep)
    rows = list(csv.DictReader(io.StringIO((tmp_path / "results.csv").read_text())))
    assert len(rows) == len(sweep)
    first = rows[0]
    assert (first["attack"], first["status"], first["epsilon_nominal"]) == ("ours", "finished", "10")
    assert float(first["epsilon_add_remove"]) == pytest.approx(1.252e7, rel=1e-3)
    assert float(first["epsilon_replace_one"]) == pytest.approx(5.004e7, rel=1e-3)
    assert float(first["gain_low"]) < float(first["gain_mean"]) == 25.75 < float(first["gain_high"])
    assert first["seconds"] == "3.25"
    wanted = {
        "mu",
        "rero_gamma_0.1",
        "noise_law_psnr",
        "gaussian_reference_psnr",
        "channel_nats",
        "oracles",
        "ssim_mean",
    }
    assert wanted | {"black_psnr", "mean_image_psnr", "detected", "collided", "false_detections"} <= set(first)


def test_failed_cells_have_a_row_and_a_line(sweep: list[Outcome], tmp_path: Path) -> None:
    cell = plan_of(Sweep({"theirs": AuditedAttack()}, [0.1]), [], tmp_path).cells[0]
    page = Page(written(tmp_path, *sweep, failed=[(cell, "no voice")]))
    assert "1 cell failed" in page.text
    assert "no voice" in page.text
    *_, last = csv.DictReader(io.StringIO((tmp_path / "results.csv").read_text()))
    assert (last["status"], last["attack"], last["psnr_mean"]) == ("failed", "theirs", "")


def test_an_audit_without_any_result_is_still_a_page(tmp_path: Path) -> None:
    cell: Cell = plan_of(Sweep({"theirs": AuditedAttack()}, [0.1]), [], tmp_path).cells[0]
    assert "No cell of this audit has finished." in Page(written(tmp_path, failed=[(cell, "why")])).text


@pytest.mark.parametrize(("delta", "records", "warned"), [(1e-5, None, False), (0.5, None, True), (1e-5, 50_000, False),
                                                          (1e-5, 100_000, True)])  # fmt: skip
def test_a_delta_of_one_over_n_is_called_out(
    make_run: MakeRun, delta: float, records: int | None, warned: bool
) -> None:
    remarks = remarks_of([outcome(make_run("one", delta=delta))], Judgement(population_size=records))
    assert bool(remarks) is warned


def test_what_a_program_did_not_say_stands_beside_the_scores(make_run: MakeRun, tmp_path: Path) -> None:
    one = outcome(make_run("one"))
    capture = {"source": "flwr 1.42", "remarks": ["the program declares epsilon 8"]}
    told = replace(one, record={**one.record, "capture": capture})
    assert "one was made by flwr 1.42. The program declares epsilon 8." in written(tmp_path, told)
    assert "was made by" not in written(tmp_path, one)


def test_numbers_are_written_as_people_read_them() -> None:
    assert [number(value) for value in (None, 0, 8.0, 0.333, 970.4, 3540, 1.25e7, 2e-4)] == [
        "–", "0", "8", "0.333", "970", "3540", "1.2e7", "2e-4"
    ]  # fmt: skip


def test_tensorboard_has_the_sweep(sweep: list[Outcome], tmp_path: Path) -> None:
    for _ in range(2):  # an earlier view is replaced
        write_hparams(tmp_path, [row_of(one) for one in sweep[:2]])
    runs = sorted(path for path in (tmp_path / "hparams").iterdir() if path.is_dir())
    assert [path.name for path in runs] == ["ours0.0002", "ours0.1"]
    events = EventAccumulator(str(runs[0]))
    events.Reload()
    assert events.Scalars("audit/psnr_mean")[0].value == pytest.approx(37.75)
    content = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    row = HParamsPluginData.FromString(content).session_start_info.hparams
    assert set(row) == {"attack", "z", "epsilon"}  # whatever else is the same in all cells
    assert row["z"].number_value == 2e-4


def test_a_full_disk_is_one_line_and_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_text(tmp_path / "results.csv", "whole")

    def full(self: Path, *_: object, **__: object) -> int:
        with self.open("w"):  # as much as fits
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(UserError, match="No space left on device"):
        write_text(tmp_path / "results.csv", "half")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("results.csv", "whole")]


def test_text_of_a_table() -> None:
    assert table_text([{"a": 1 / 3, "b": None}, {"a": 12345678, "c": "x,y"}]) == 'a,b,c\n0.333333,,\n12345678,,"x,y"\n'


@pytest.mark.skipif(BROWSER is None, reason="no chromium here")
def test_a_browser_shows_it(make_run: MakeRun, tmp_path: Path) -> None:
    written(tmp_path, outcome(make_run("hostile", HOSTILE, names=[f"{HOSTILE}/x.jpg", "cat/b.jpg"])))
    page = tmp_path / "report.html"
    shot = tmp_path / "shot.png"
    command = [str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    command += ["--window-size=1000,1400", f"--screenshot={shot}", "--virtual-time-budget=2000", page.as_uri()]
    subprocess.run(command, check=True, capture_output=True, timeout=200)
    assert shot.stat().st_size > 20_000  # a blank page of this size takes a tenth
    # As on a phone: 400 pixels, in a frame, since a window has a least width.
    frame = f'<iframe id="f" style="width:400px;height:900px" srcdoc="{html.escape(page.read_text())}"></iframe>'
    (tmp_path / "frame.html").write_text(f"<meta charset=utf-8>{frame}<script>{MEASURE}</script>")
    command[-3:] = ["--dump-dom", "--virtual-time-budget=2000", (tmp_path / "frame.html").as_uri()]
    dom = subprocess.run(command, check=True, capture_output=True, text=True, timeout=200).stdout
    found = re.search(r"<title>(.*?)</title>", dom)
    assert found is not None
    title, images, width, narrowest = found[1].split("|")
    assert title == "Reconstruction audit"  # no script has changed it
    assert int(images) == 1 + (2 + 1) * 2
    assert int(width) <= 400  # nothing runs off: what is wider scrolls by itself
    assert int(narrowest) >= 100  # no label is broken letter by letter
