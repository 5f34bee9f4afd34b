# SPDX-License-Identifier: MIT
"""The border with ART and with the user: the classifier, its preprocessing, arguments, inputs and labels."""
