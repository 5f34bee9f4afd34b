# SPDX-License-Identifier: MIT
"""The training paper's method: its tables and figures, its claims, its choices."""
