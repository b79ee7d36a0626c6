# SPDX-License-Identifier: Apache-2.0
"""Draw the figures under fig/ from real runs on the bundled photographs.

python scripts/make_figures.py
"""

import shutil
import tempfile
from pathlib import Path

from lightning_recon.cli import main as recon

FIGURES = Path(__file__).parent.parent / "fig"
OVERLAY = """
trainer:
  callbacks:
    - class_path: lightning_recon.callbacks.Comparison
      init_args:
        victims: 4
        structure: {class_path: lightning_recon.structure.SeedPaper}
"""


def comparison() -> None:
    """fig/comparison.png: the quickstart's run, four of its eight victims."""
    with tempfile.TemporaryDirectory() as scratch:
        overlay = Path(scratch) / "overlay.yaml"
        overlay.write_text(OVERLAY)
        configs = ["--config", "quickstart.yaml", "--config", str(overlay)]
        recon(["fit", *configs, "--trainer.default_root_dir", scratch])
        shutil.copy(Path(scratch) / "comparison.png", FIGURES / "comparison.png")


if __name__ == "__main__":
    FIGURES.mkdir(exist_ok=True)
    comparison()
