# SPDX-License-Identifier: Apache-2.0
"""Files on disk: atomic writes, digests, schemas, locks and the run folder."""
