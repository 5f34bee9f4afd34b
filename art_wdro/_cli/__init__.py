# SPDX-License-Identifier: MIT
"""The commands of `art-wdro`, one file each."""
