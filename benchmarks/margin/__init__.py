# SPDX-License-Identifier: MIT
"""The margin trainer against the paper's method and its kin."""
