"""Sphinx builds the site from the whole repository, so that links hold on it and in the files."""

from importlib.metadata import version as version_of
from pathlib import Path

from sphinx.ext.napoleon import NumpyDocstring

import pyro_fcr

project = "pyro_fcr"
author = "the pyro_fcr developers"
version = release = version_of("pyro-fcr")

root_doc = "docs/index"
include_patterns = [
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "data/*.md",
    "docs/**",
    "notebooks/*.ipynb",
    "tests/benchmarks/README.md",
]
exclude_patterns = ["docs/_templates"]
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
]

nb_execution_mode = "off"  # a test compares the stored outputs with fresh ones
myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 4
autosummary_generate = True
autosummary_context = {"top_level": pyro_fcr.__all__}
autodoc_member_order = "bysource"
napoleon_attr_annotations = False  # types stand in signatures only
napoleon_google_docstring = False
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

html_theme = "sphinx_book_theme"
html_title = f"pyro_fcr {release}"
templates_path = [str(Path(__file__).parent / "_templates")]
html_theme_options = {"navbar_persistent": []}
html_additional_pages = {"index": "redirect.html"}  # the root of the site


def _returns(self, _section):
    """Read what is returned as prose: types stand in signatures only."""
    lines = self._dedent(self._consume_to_next_section())
    return [*self._format_block(":returns: ", lines), ""]


NumpyDocstring._parse_returns_section = _returns
