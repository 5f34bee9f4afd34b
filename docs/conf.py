# SPDX-License-Identifier: MIT
"""Configuration of the documentation; `make docs` builds it.

The source directory is the repository's root, so that relative links between Markdown files mean the same here as on
GitHub, and example notebooks are pages without being copied.
"""

from __future__ import annotations

import os
import re
from typing import Any

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml

import art_wdro

project = "art-wdro"
author = "the art-wdro contributors"
version = release = art_wdro.__version__

root_doc = "docs/index"
include_patterns = [
    "docs/**",
    "examples/notebooks/*.ipynb",
    "tests/art_suite/README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "SECURITY.md",
]
exclude_patterns = [".*", "build", "dist", "runs", "*.egg-info", "docs/conf.py", "docs/draw_threat_model.py", "docs/_*"]
extensions = ["sphinx.ext.autodoc", "sphinx.ext.autosummary", "myst_nb"]

# Markdown and notebooks, executed anew
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4
myst_dmath_double_inline = False
nb_execution_mode = "cache"
nb_execution_cache_path = os.path.abspath(os.path.join(os.path.dirname(__file__), "../build/notebooks"))
nb_execution_timeout = 600
nb_execution_raise_on_error = True
nb_execution_show_tb = True
nb_merge_streams = True
nb_output_stderr = "remove"  # progress bars
nb_render_image_options = {"width": "100%"}

# docstrings
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints = "none"  # the parameters' text says types and shapes
autoclass_content = "both"
default_role = "code"
nitpicky = True
nitpick_ignore = [("py:exc", "EstimatorError")]  # ART's

html_theme = "furo"
html_title = "art-wdro"
html_static_path = ["_static"]
html_css_files = ["site.css"]
templates_path = ["_templates"]
html_additional_pages = {"index": "redirect.html"}
html_show_sphinx = False
html_show_copyright = False


def adapt(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Keep reST from reading the norms ||x|| in a docstring as substitutions, and link the pages that it names."""
    lines[:] = [re.sub(r"(`[^`]*`)|\|", lambda found: found[1] or r"\|", line) for line in lines]
    lines[:] = [re.sub(r"docs/(\w+)\.md", r":doc:`docs/\1.md </docs/\1>`", line) for line in lines]


def mathml(node: nodes.Element, as_block: bool = False) -> str:
    """Convert a formula; the bars of norms keep the height of a letter, or only the left one would grow."""
    return re.sub(
        r"<mo>([\u2016|])</mo>", r'<mo stretchy="false">\1</mo>', tex2mathml(node.astext(), as_block=as_block)
    )


def visit_math(self: Any, node: nodes.math) -> None:
    """Write a formula as MathML, which needs no script and no network."""
    self.body.append(mathml(node))
    raise nodes.SkipNode


def visit_math_block(self: Any, node: nodes.math_block) -> None:
    """Write a displayed formula as MathML."""
    self.body.append(f'<div class="math-block">{mathml(node, as_block=True)}</div>')
    raise nodes.SkipNode


def setup(app: Any) -> None:
    """Register what this file adds to Sphinx."""
    app.connect("autodoc-process-docstring", adapt)
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_math_block, None))


html_math_renderer = "mathml"
