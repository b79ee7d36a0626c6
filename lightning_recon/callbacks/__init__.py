# SPDX-License-Identifier: Apache-2.0
"""The audience: callbacks that know the truth, the loggers and the run folder, and tell the attack nothing."""

from lightning_recon.callbacks.comparison import Comparison
from lightning_recon.callbacks.image_grid import ImageGrid
from lightning_recon.callbacks.results_writer import ResultsWriter
from lightning_recon.callbacks.summary import RunSummary

__all__ = ["Comparison", "ImageGrid", "ResultsWriter", "RunSummary"]
