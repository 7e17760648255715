"""How Sphinx builds the site: ``make docs``."""

from __future__ import annotations

import os
import re
import sys
import tomllib
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parent
sys.path.insert(0, str(HERE))

import generate  # noqa: E402

import exmap  # noqa: E402

METADATA = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
REPOSITORY = METADATA["urls"]["Repository"]

project = "exmap"
author = "The exmap maintainers"
copyright = f"2026, {author}"  # noqa: A001 (Sphinx calls it so)
release = version = exmap.__version__
language = "en"
smartquotes_action = "qe"  # quotes and ellipses; "--" is that of options

extensions = [
    "myst_nb",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinxcontrib.bibtex",
]
exclude_patterns = ["_build", "results/README.md"]
templates_path = ["_templates"]
root_doc = "index"
highlight_language = "none"  # of blocks that do not say: mostly commands

# Markdown, and notebooks with the outputs that they were saved with: the tests execute them, not the site.
source_suffix = {".rst": "restructuredtext", ".md": "myst-nb", ".ipynb": "myst-nb"}  # autosummary writes the first
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 4
nb_execution_mode = "off"
nb_mime_priority_overrides = [("html", "text/html", 0)]
nb_merge_streams = True

# The reference of the interface, from docstrings.
autosummary_generate = True
autosummary_imported_members = True
autodoc_typehints = "none"
autodoc_member_order = "bysource"
numpydoc_show_class_members = False
numpydoc_class_members_toctree = False
numpydoc_xref_param_type = False

bibtex_bibfiles = ["references.bib"]
bibtex_reference_style = "author_year"

html_theme = "pydata_sphinx_theme"
html_title = f"exmap {release}"
html_baseurl = os.environ.get("READTHEDOCS_CANONICAL_URL", METADATA["urls"]["Documentation"])
html_static_path = ["_static"]
html_css_files = ["exmap.css"]
html_js_files = ["exmap.js"]
html_context = {"default_mode": "auto"}
html_show_sourcelink = False
html_copy_source = False
html_theme_options = {
    "github_url": REPOSITORY,
    "header_links_before_dropdown": 7,
    "navbar_persistent": ["search-button"],
    "navigation_with_keys": False,
    "secondary_sidebar_items": ["page-toc"],
    "show_prev_next": True,
    "footer_start": ["copyright"],
    "footer_end": ["theme-version"],
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
}
copybutton_prompt_text = r"\$ |>>> |\.\.\. "
copybutton_prompt_is_regexp = True


def _fill_in(app: Any, page: str, source: list[str]) -> None:
    """Fill in what is generated, call pages by their titles, and send links that leave the docs to the repository."""
    folder = (HERE / page).parent
    text = generate.generated(source[0])
    text = re.sub(r"\]\((\.\./[^)#\s]+)", lambda link: f"]({_target(folder, link[1])}", text)
    source[0] = re.sub(r"\[[\w./-]+\.md\]\((?!https?:)", "[](", text)


def _target(folder: Path, link: str) -> str:
    """Return where a relative link of a page leads: files outside of the docs lie in the repository, or have a page."""
    target = Path(os.path.normpath(folder / link))
    own = HERE / "project" / target.name.lower()
    if target.parent == ROOT and own.exists():
        return os.path.relpath(own, folder)
    if target.is_relative_to(HERE) or not target.exists():  # a link to nothing is left, and is a warning
        return link
    kind = "tree" if target.is_dir() else "blob"
    return f"{REPOSITORY}/{kind}/main/{target.relative_to(ROOT)}"


def setup(app: Any) -> dict[str, bool]:
    """Connect the hook."""
    app.connect("source-read", _fill_in)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
