# SPDX-License-Identifier: Apache-2.0
"""Directive `results`: a table of a page, computed from `results/NAME.csv` when the pages are built.

    ```{results} peers
    :columns: z
    :values: psnr_mean
    :where: size=224
    :spread:
    seed paper | attack=paper
    ours, linear code | attack=water_filling
    ```

Each line of the body is a row: its label and the filter that selects its CSV rows. Without a body, `:rows:` names the
columns whose values make the rows. With `:columns:` one value is spread over the values of that column; without, each
of `:values:` is a column. A cell is the mean over the selected CSV rows, usually one for each noise draw; the value
`rows` counts them.
"""

import csv
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

RESULTS = Path(__file__).parents[2] / "results"
NAMES = {
    "z": "z",
    "psnr_mean": "PSNR, dB",
    "psnr_worst": "worst PSNR, dB",
    "psnr_of_mean_mse": "PSNR of the mean squared error, dB",
    "ssim_mean": "SSIM",
    "lpips_mean": "LPIPS",
    "mean_image_psnr": "mean image, dB",
    "gaussian_reference_psnr": "Gaussian reference, dB",
    "noise_law_psnr": "noise law, dB",
    "epsilon_accounted": "accounted ε",
    "epsilon_one_round": "accounted ε of one round",
    "epsilon_nominal": "nominal ε",
    "epsilon_if_hidden": "ε if batches were hidden",
    "half_found_in_round": "half are found by round",
    "last_found_in_round": "last found in round",
    "bit_exact": "bit-exact",
    "received_share": "files decoded",
    "label_accuracy": "labels recovered",
    "structure_bytes": "upload, MB",
    "resident_mib": "resident memory, MiB",
    "images_a_minute": "images a minute",
    "hours_for_50000": "hours for 50,000 images",
    "disk_mib": "disk, MiB",
    "cpu_ms_per_round": "processor time a round, ms",
    "times_faster": "times faster",
    "client_seconds_per_image": "seconds an image",
    "cpu_s": "processor seconds a victim-iteration",
    "cpu_s_to_level": "processor seconds to the level",
    "psnr_low": "95 % interval, low",
    "psnr_high": "95 % interval, high",
    "lost_share": "victims lost",
    "identification": "identified",
    "recognition_top1": "recognized, top 1",
    "recognition_top5": "recognized, top 5",
    "recognition_top1_mean_image": "top 1 of the mean image",
    "batch": "images a client",
    "rows": "models",
    "predicted_orthogonal": "theory, orthogonal candidates",
    "gamma": "bound γ",
    "epsilon": "true ε",
    "repeats": "verifications",
    "refuted_share": "with a refuted claim",
    "refuted_share_low": "95 % interval, low",
    "refuted_share_high": "95 % interval, high",
    "epsilon_claimed": "ε documented",
    "epsilon_one_add_remove": "ε, one release",
    "epsilon_one_replace_one": "ε, one release",
    "epsilon_training_add_remove": "ε, training",
    "epsilon_training_replace_one": "ε, training",
    "epsilon_if_hidden_add_remove": "amplified ε",
    "epsilon_if_hidden_replace_one": "amplified ε",
    "max_grad_norm": "C",
    "releases": "releases",
    "membership_advantage": "advantage",
    "members_found": "members found",
    "z_for_claim": "z for ε documented",
    "black_psnr": "black image, dB",
    "weight_ratio": "largest by smallest gradient weight",
}
FORMATS = {
    "ssim": ".3f",
    "lpips": ".3f",
    "epsilon": ".3g",
    "bit_exact": ".0%",
    "received_share": ".0%",
    "label_accuracy": ".0%",
    "accuracy": ".0%",
    "success": ".3f",
    "client_seconds": ".3g",
    "cpu_s": ".2g",
    "lost_share": ".0%",
    "failure_share": ".2%",
    "bound_mean": ".2f",
    "exceeded_share": ".1%",
    "refuted_share": ".2%",
    "repeats": ".0f",
    "identification": ".0%",
    "recognition": ".0%",
    "predicted_orthogonal": ".3f",
    "gamma": ".3f",
    "victim_iterations_per_s": ".3g",
    "z": ".3g",
    "releases": ".0f",
    "membership_advantage": ".1%",
    "members_found": ".1%",
    "half_found_in_round": ".0f",
    "last_found_in_round": ".0f",
}
Row = dict[str, str]


def read(name: str) -> tuple[str, list[Row]]:
    """First line and rows of a table.

    Args:
        name: file in `results/`, without its ending.
    """
    with (RESULTS / f"{name}.csv").open(newline="", encoding="utf-8") as file:
        return next(file).removeprefix("#").strip(), list(csv.DictReader(file))


def matches(row: Row, condition: str) -> bool:
    """Whether a row fulfils a filter such as `size=224 & z=0.001|0.01 & options~--config`.

    Args:
        row: row of the CSV file.
        condition: comparisons joined by `&`: `=` equals one of several values, `~` contains, `!~` does not contain.
    """
    for part in filter(None, (one.strip() for one in condition.split("&"))):
        if "!~" in part:
            column, value = part.split("!~")
            fulfilled = value not in row[column]
        elif "~" in part:
            column, value = part.split("~")
            fulfilled = value in row[column]
        else:
            column, value = part.split("=", 1)
            fulfilled = any(_equal(row[column], one) for one in value.split("|"))
        if not fulfilled:
            return False
    return True


def _equal(left: str, right: str) -> bool:
    try:
        return float(left) == float(right)
    except ValueError:
        return left == right


def cell(rows: list[Row], column: str, spread: bool = False) -> str:
    """Mean of a column, with the standard deviation where wanted; a dash where there is no number.

    Args:
        rows: selected rows.
        column: the column.
        spread: whether to append the standard deviation over the rows.
    """
    if column == "rows":
        return str(len(rows))
    numbers = [float(row[column]) for row in rows if row.get(column)]
    if not numbers:
        return "–"
    mean = statistics.fmean(numbers)
    if column.endswith("_bytes"):
        return f"{mean / 1e6:.3g}"
    form = next((form for start, form in FORMATS.items() if column.startswith(start)), ".1f")
    text = format(mean, form).replace("%", " %")
    return f"{text} ± {statistics.stdev(numbers):{form}}" if spread and len(numbers) > 1 else text


def table(
    rows: list[Row],
    cases: list[tuple[str, str]],
    values: list[str],
    columns: str | None,
    spread: bool,
    head: str = "",
    order: Callable[[str], Any] = float,
) -> list[list[str]]:
    """Cells of a table, the first line its header.

    Args:
        rows: rows of the CSV file, already filtered.
        cases: label and filter of each row of the table.
        values: columns to average; a single one if `columns` is given.
        columns: the column whose values become the columns of the table.
        spread: whether to append standard deviations.
        head: text of the first header cell.
        order: sorts the values of `columns`.
    """
    picked = [(label, [row for row in rows if matches(row, condition)]) for label, condition in cases]
    if values != ["rows"] and (empty := [label for label, selected in picked if not selected]):
        raise ValueError(f"no row of the CSV file belongs to {empty[0]!r}")
    if columns is None:
        body = [[label, *(cell(selected, value, spread) for value in values)] for label, selected in picked]
        return [[head, *(NAMES.get(value, value.replace("_", " ")) for value in values)], *body]
    kinds = sorted({row[columns] for _, selected in picked for row in selected}, key=order)
    body = [
        [label, *(cell([row for row in selected if row[columns] == kind], values[0], spread) for kind in kinds)]
        for label, selected in picked
    ]
    return [[head, *(f"{NAMES.get(columns, columns.replace('_', ' '))} = {kind}" for kind in kinds)], *body]


class ResultsTable(SphinxDirective):
    """See the head of this file."""

    has_content = True
    required_arguments = 1
    option_spec: ClassVar[dict[str, Any]] = {
        "rows": directives.unchanged,
        "columns": directives.unchanged,
        "values": directives.unchanged_required,
        "where": directives.unchanged,
        "head": directives.unchanged,
        "spread": directives.flag,
        "text": directives.flag,  # the values of `columns` are words
    }

    def run(self) -> list[nodes.Node]:
        """The table and, below it, the command and the versions that made it."""
        name = self.arguments[0]
        self.env.note_dependency(str(RESULTS / f"{name}.csv"))
        made_by, rows = read(name)
        rows = [row for row in rows if matches(row, self.options.get("where", ""))]
        if self.content:
            cases = [
                (label.strip(), condition) for label, _, condition in (line.partition("|") for line in self.content)
            ]
        else:
            keys = [key.strip() for key in self.options["rows"].split(",")]
            kinds = dict.fromkeys(tuple(row[key] for key in keys) for row in rows)
            cases = [
                (", ".join(filter(None, kind)), " & ".join(f"{key}={one}" for key, one in zip(keys, kind, strict=True)))
                for kind in kinds
            ]
        values = [value.strip() for value in self.options["values"].split(",")]
        head = self.options.get("head", "" if self.content else ", ".join(NAMES.get(key, key) for key in keys))
        order: Callable[[str], Any] = str if "text" in self.options else float
        try:
            lines = table(rows, cases, values, self.options.get("columns"), "spread" in self.options, head, order)
        except (ValueError, KeyError) as mistake:
            raise self.error(f"results/{name}.csv: {mistake}") from mistake
        command, *versions = made_by.split(";")
        shown = ["| " + " | ".join(line) + " |" for line in lines]
        shown.insert(1, "|" + "---|" * len(lines[0]))
        source = f"`results/{name}.csv`, made by `{command.strip()}`"
        below = f"{source}{' with' if versions else ''}{';'.join(versions)}."
        wrapped = ["::::{container} results", *shown, "", ":::{container} made-by", below, ":::", "::::"]
        return self.parse_text_to_nodes("\n".join(wrapped))


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directive."""
    app.add_directive("results", ResultsTable)
    return {"parallel_read_safe": True}
