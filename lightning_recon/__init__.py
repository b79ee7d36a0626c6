# SPDX-License-Identifier: Apache-2.0
"""Measure what a server can see of its users' pictures through clipping and noise."""

__version__ = "0.1.0"
