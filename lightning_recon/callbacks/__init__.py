# SPDX-License-Identifier: Apache-2.0
"""The audience: callbacks that know the truth, the loggers and the run folder, and tell the attack nothing."""

from lightning_recon.callbacks.compared import Comparison
from lightning_recon.callbacks.pictures import ImageGrid
from lightning_recon.callbacks.results import ResultsWriter
from lightning_recon.callbacks.summary import RunSummary

__all__ = ["Comparison", "ImageGrid", "ResultsWriter", "RunSummary"]
