"""What all pages share: templates, style, and how figures travel to the browser.

Everything shown may be other people's text: templates escape all of it, and figures travel as
JSON with ``<`` escaped.
"""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined, TemplateNotFound
from markupsafe import Markup, escape
from plotly.offline import get_plotlyjs

from prerank.evaluation import summary
from prerank.evaluation.plots import Plot

PACKAGE = "prerank.evaluation"


class Figures:
    """Numbers the figures of one page in the order in which its template asks for them."""

    def __init__(self) -> None:
        self._jsons: list[str] = []

    def add(self, plot: Plot) -> dict[str, Any]:
        """Take a figure; return the id and the height of its place."""
        self._jsons.append(plot.json)
        return {"id": f"plot-{len(self._jsons)}", "height": plot.figure.layout.height}

    def json(self) -> Markup:
        """Return all figures as a JSON list that is safe inside a script element."""
        joined = f"[{','.join(self._jsons)}]"
        return Markup(joined.replace("<", "\\u003c").replace(">", "\\u003e"))


def asset(name: str, package: str = PACKAGE) -> str:
    """Return the text of a file of ``package``: a template, a style, a script."""
    return (files(package) / name).read_text(encoding="utf-8")


@cache
def plotly_script() -> str:
    """Return plotly.js, as it may stand inside a script element."""
    text: str = get_plotlyjs()
    return text.replace("</script", "<\\/script")


def prose(text: str) -> Markup:
    """Return a sentence, escaped; what stands between backticks as code."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))


@cache
def environment(*packages: str) -> Environment:
    """Return the template environment; templates of ``packages`` come before the shared ones."""

    def read(name: str) -> str:
        for package in (*packages, PACKAGE):
            if (files(package) / name).is_file():
                return asset(name, package)
        raise TemplateNotFound(name)

    made = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, loader=FunctionLoader(read)
    )
    made.filters["number"], made.filters["prose"] = summary.number, prose
    return made


def render_alone(template: str, *, package: str = PACKAGE, **values: Any) -> str:
    """Return a page that needs nothing else: style, figures and scripts stand inside."""
    figures = Figures()
    return (
        environment(package)
        .get_template(template)
        .render(
            **values,
            plot=figures.add,
            figures=figures.json,
            style=Markup(asset("page.css")),
            script=Markup(asset("figures.js")),
            plotly=Markup(plotly_script()),
        )
    )
