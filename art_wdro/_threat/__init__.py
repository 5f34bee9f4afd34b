# SPDX-License-Identifier: MIT
"""What the attacker may do: norms, geometry of the W_p ball, the knapsack over least distances."""
