# SPDX-License-Identifier: MIT
"""Networks and data by their names and files."""
