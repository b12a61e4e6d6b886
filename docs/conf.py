"""Configuration of the documentation: builds offline, and runs every example on its way."""

from __future__ import annotations

import html
import io
import re
import sys
from pathlib import Path
from typing import Any

import torch
from docutils import nodes
from matplotlib import rc_context
from matplotlib.mathtext import math_to_image
from sphinx.util import logging

import pytorchdia
import pytorchdia.simulate
import pytorchdia.simulate.season

sys.path.insert(0, str(Path(__file__).parent))
from examples import failures

torch.set_num_threads(1)  # the examples are small

project = "pytorchdia"
author = "The pytorchdia developers"
copyright = author
release = version = pytorchdia.__version__

extensions = [
    "matplotlib.sphinxext.plot_directive",
    "myst_parser",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.doctest",
]
source_suffix = {".md": "markdown", ".rst": "restructuredtext"}
exclude_patterns = ["_build"]

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autosummary_generate = False
numpydoc_show_class_members = False

plot_formats = ["png"]
plot_include_source = True
plot_html_show_formats = False
plot_html_show_source_link = False
plot_rcparams = {"figure.dpi": 110, "savefig.bbox": "tight"}
plot_apply_rcparams = True

html_theme = "furo"
html_title = f"pytorchdia {release}"
html_math_renderer = "mathtext"

nitpicky = True
nitpick_ignore_regex = [  # third parties; there is no inventory of theirs offline
    (r"py:.*", r"(torch|np|numpy|astropy|matplotlib|jaxtyping|pydantic|scipy|typer)\..*"),
    (r"py:.*", r"(abc|enum|collections|pathlib|typing)\..*"),
    (r"py:.*", r"(Tensor|Any|Path|Mapping|NDArray|FloatArray|FloatImage|OnStep|CCDData|Figure)"),
    (r"py:.*", r"Tiled"),
    (r"py:.*", r"tuple\[~.*"),  # cut in two at the comma of a type within a type
    (r"py:class", r"pytorchdia\.run\.settings\.\w+"),  # sections: their keys stand in season.md
    (r"py:(meth|attr)", r"(variance|rho|log_norm)"),  # in summaries, away from their class
]


def write_module_pages() -> None:
    """One page for each module that has public names; made anew when the list changes."""
    folder = Path(__file__).parent / "api" / "generated"
    folder.mkdir(parents=True, exist_ok=True)
    root = Path(pytorchdia.__file__).parent
    pages = {}
    for path in sorted(root.rglob("*.py")):
        name = ".".join(path.relative_to(root.parent).with_suffix("").parts)
        if path.stem != "__init__" and "__all__ =" in path.read_text():
            options = "   :members:\n   :show-inheritance:\n"
            pages[f"{name}.rst"] = f"{name}\n{'=' * len(name)}\n\n.. automodule:: {name}\n{options}"
    for old in folder.glob("*.rst"):
        if old.name not in pages:
            old.unlink()
    for name, text in pages.items():
        if not (folder / name).exists() or (folder / name).read_text() != text:
            (folder / name).write_text(text)


write_module_pages()


def math_image(node: nodes.Node, size: float) -> tuple[str, float]:
    """The formula as inline SVG in the colour of the text, and its depth below the line [pt]."""
    tex = " ".join(node.astext().split())
    buffer = io.StringIO()
    settings = {"mathtext.fontset": "stix", "svg.hashsalt": tex, "svg.fonttype": "path"}
    with rc_context({**settings, "savefig.bbox": "standard", "font.size": size}):
        depth = math_to_image(f"${tex}$", buffer, dpi=72, format="svg", color="#123456")
    svg = re.sub(r"<metadata>.*?</metadata>", "", buffer.getvalue(), flags=re.DOTALL)
    svg = svg[svg.index("<svg") :].strip().replace("#123456", "currentColor")
    label = html.escape(tex, quote=True)
    return svg.replace("<svg", f'<svg role="img" aria-label="{label}"', 1), depth


def visit_inline_math(self: Any, node: nodes.Node) -> None:
    svg, depth = math_image(node, 12.5)
    self.body.append(svg.replace("<svg", f'<svg style="vertical-align:{-depth:.2f}pt"', 1))
    raise nodes.SkipNode


def visit_display_math(self: Any, node: nodes.Node) -> None:
    svg, _ = math_image(node, 14.0)
    self.body.append(f'<div style="text-align:center;overflow-x:auto;margin:1em 0">{svg}</div>\n')
    raise nodes.SkipNode


def run_examples(app: Any, name: str, source: list[str]) -> None:
    """Run the ``>>>`` examples of a page; a wrong one is a warning, and so an error under -W."""
    for failure in failures(source[0], name):
        logging.getLogger(__name__).warning(failure, location=name)


ROOMS = (
    pytorchdia,
    pytorchdia.solvers,
    pytorchdia.preparation,
    pytorchdia.stars,
    pytorchdia.changes,
    pytorchdia.simulate,
    pytorchdia.simulate.season,
)


def public_name(app: Any, env: Any, node: Any, child: Any) -> Any:
    """Let ``pytorchdia.Huber`` point at ``pytorchdia.likelihood.Huber``, where it is described."""
    target = node.get("reftarget", "")
    for package in (
        pytorchdia,
        pytorchdia.solvers,
        pytorchdia.simulate,
        pytorchdia.simulate.season,
    ):
        name, _, rest = target.removeprefix(f"{package.__name__}.").partition(".")
        if target.startswith(f"{package.__name__}.") and name in package.__all__:
            home = ".".join(filter(None, [getattr(package, name).__module__, name, rest]))
            domain, kind = env.get_domain("py"), node["reftype"]
            return domain.resolve_xref(env, node["refdoc"], app.builder, kind, home, node, child)
    return None


def setup(app: Any) -> None:
    app.add_html_math_renderer("mathtext", (visit_inline_math, None), (visit_display_math, None))
    app.connect("source-read", run_examples)
    app.connect("missing-reference", public_name)
