# SPDX-License-Identifier: Apache-2.0
"""Photograph the head of an audit's report with a headless Chromium: fig/report.png.

recon audit --config audit.yaml --output runs/audit
python scripts/report_screenshot.py runs/audit/report.html
"""

import argparse
import shutil
import subprocess
import tempfile
from pathlib import Path

FIGURE = Path(__file__).parent.parent / "fig" / "report.png"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def main() -> None:
    """Take the picture."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("report", type=Path)
    parser.add_argument("--output", type=Path, default=FIGURE)
    parser.add_argument("--height", type=int, default=1380, help="pixels, from the top of the report")
    given = parser.parse_args()
    browser = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if browser is None:
        parser.error(f"no browser: install one of {', '.join(BROWSERS)}")
    with tempfile.TemporaryDirectory() as profile:
        command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        command += [f"--user-data-dir={profile}", f"--window-size=1000,{given.height}", "--virtual-time-budget=2000"]
        command += [f"--screenshot={given.output.resolve()}", given.report.resolve().as_uri()]
        subprocess.run(command, check=True, capture_output=True, timeout=200)


if __name__ == "__main__":
    main()
