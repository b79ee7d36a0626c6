# SPDX-License-Identifier: Apache-2.0
"""Gradient inversion: an honest server optimises dummy images until their gradient matches the update."""
