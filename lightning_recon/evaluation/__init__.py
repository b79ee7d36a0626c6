# SPDX-License-Identifier: Apache-2.0
"""Scores against the true images, and bounds and baselines to compare them with."""
