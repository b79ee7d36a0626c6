# SPDX-License-Identifier: Apache-2.0
"""Verification of a DP implementation: what a client's releases show, beside what is claimed of them."""
