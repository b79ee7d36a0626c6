# SPDX-License-Identifier: Apache-2.0
"""Lower bounds on epsilon that the releases of a client prove, from the scores of canaries."""
