# SPDX-License-Identifier: Apache-2.0
"""Scoring by someone who knows the truth, and the yardsticks that stand beside every score."""
