# SPDX-License-Identifier: MIT
"""What lies in memory and on disk: arrays of a whole data set, files that are whole or not there, checkpoints."""
