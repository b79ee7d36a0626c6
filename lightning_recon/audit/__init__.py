# SPDX-License-Identifier: Apache-2.0
"""Audits: attacks under a sweep of privacy parameters, and a report for the people who choose them."""
