# SPDX-License-Identifier: MIT
"""The networks to measure on, and how each was trained."""
