# SPDX-License-Identifier: Apache-2.0
"""Differential privacy: the mechanism and its accounting."""
