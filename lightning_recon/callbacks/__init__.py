# SPDX-License-Identifier: Apache-2.0
"""Lightning callbacks that score, log and write results; they know the true images, which no attack sees."""

from lightning_recon.callbacks.comparison import Comparison
from lightning_recon.callbacks.image_grid import ImageGrid
from lightning_recon.callbacks.results_writer import ResultsWriter
from lightning_recon.callbacks.summary import RunSummary

__all__ = ["Comparison", "ImageGrid", "ResultsWriter", "RunSummary"]
