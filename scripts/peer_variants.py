# SPDX-License-Identifier: Apache-2.0
"""The published structures that tables and figures compare with ours: options of `recon fit`, and names in the tables.

Each has several variants. Which one is strongest depends on the noise, so tables measure all of them, and figures show
the strongest at each noise level.
"""

PUBLISHED = "--model.structure.fallback false"  # no row is given up for the mean image
PAPER = "--config attack/paper.yaml"
TRAPS = "--config attack/curious_abandon_honesty.yaml"
SPARSE = "--config attack/robbing_the_fed.yaml --model.structure.variant sparse"
CUMULATIVE = "--config attack/robbing_the_fed.yaml --model.structure.variant cumulative"
# The row is the image: a single bin that every image activates, without any decision.
IDENTITY = f"{SPARSE} --model.structure.row_selection upstream {PUBLISHED} --model.structure.units 1"

# Options and name in the table.
Variant = tuple[str, str]

OTHERS: tuple[Variant, ...] = (
    (f"{CUMULATIVE} --model.structure.row_selection upstream {PUBLISHED}", "robbing_the_fed published"),
    (CUMULATIVE, "robbing_the_fed cumulative"),
    (SPARSE, "robbing_the_fed sparse"),
    (f"{SPARSE} --model.structure.units 1024", "robbing_the_fed sparse 1024"),
    (f"{TRAPS} {PUBLISHED}", "curious_abandon_honesty published"),
    (TRAPS, "curious_abandon_honesty"),
    (f"{TRAPS} --model.structure.units 200", "curious_abandon_honesty 200"),
    (f"{PAPER} {PUBLISHED}", "paper published"),
)
# Names in figures of the variants by which an attack may be represented.
LABELS = {
    "robbing_the_fed cumulative": "cumulative",
    "robbing_the_fed sparse": "sparse",
    "robbing_the_fed sparse 1024": "sparse, 1024 bins",
    "curious_abandon_honesty": "1000 units",
    "curious_abandon_honesty 200": "200 units",
    "paper": "all pixels",
    "paper raw": "all pixels, no filter",
    **{
        f"paper {size}x{size}{filtered}": f"{size}×{size} pooling{', no filter' if filtered else ''}"
        for size in (2, 4, 8)
        for filtered in ("", " raw")
    },
}


def seed_paper(*poolings: int) -> tuple[Variant, ...]:
    """The seed paper's structure with and without its interval filter, at each width of its average pooling.

    Args:
        poolings: 1 for no pooling.

    Returns:
        Variants such as "paper", "paper raw", "paper 2x2" and "paper 2x2 raw".
    """
    found = []
    for size in poolings:
        options = PAPER if size == 1 else f"{PAPER} --model.structure.pooling {size}"
        name = "paper" if size == 1 else f"paper {size}x{size}"
        found += [(options, name), (f"{options} --model.structure.interval_filter false", f"{name} raw")]
    return tuple(found)
