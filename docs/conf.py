# SPDX-License-Identifier: Apache-2.0
"""How the pages are built: `sphinx-build -W -n -b html docs OUT`, without the network."""

project = "lightning_recon"
author = copyright = "The lightning_recon authors"

extensions = ["myst_parser"]
# Anchors of headings down to this level, so that `page.md#heading` is checked like a page.
myst_heading_anchors = 3
source_suffix = {".md": "markdown"}
nitpicky = True

html_theme = "furo"
html_title = "lightning_recon"
html_copy_source = False
html_static_path = ["_static"]
html_css_files = ["wide.css"]
