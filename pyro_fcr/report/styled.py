"""Numbers as text, and tables as HTML in which some of them stand out."""

import math
from collections.abc import Callable, Mapping
from typing import Any, Final, Literal

import pandas as pd
from markupsafe import Markup, escape
from pandas.io.formats.style import Styler

DASH: Final = "–"


def count(value: float | None) -> str:
    """Write a whole number; a dash where there is none."""
    return DASH if value is None else f"{int(value):,}"


def fixed(digits: int) -> Callable[[float | None], str]:
    """Return what writes a number with so many digits; a dash where it is undefined."""

    def write(value: float | None) -> str:
        known = value is not None and math.isfinite(value)
        return f"{value:.{digits}f}".replace("-", "−") if known else DASH

    return write


def percent(share: float) -> str:
    """Write a share in percent; a dash where it is undefined."""
    return f"{100 * share:.1f} %" if math.isfinite(share) else DASH


def duration(seconds: float | None) -> str:
    """Write seconds as people say them; a dash where there are none."""
    if seconds is None:
        return DASH
    if seconds < 100:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def p_value(value: float, smallest: float) -> str:
    """Write a p-value; the smallest that a test can show is a bound."""
    return f"≤ {smallest:.2g}" if value <= smallest * (1 + 1e-9) else f"{value:.2g}"


def shade(rgb: str, most: float, least: float = 0.0) -> Callable[[float], str]:
    """Return what colours a cell by its share, from 0 to 1."""

    def color(share: float) -> str:
        strength = least + (most - least) * min(max(share, 0.0), 1.0)
        return f"background:rgba({rgb},{strength:.2f})" if strength else ""

    return color


def code(name: object, words: str = "", *, emphasised: bool = False) -> Markup:
    """Return a name as code, with words in small letters below it."""
    label = Markup("<code>{}</code>").format(name)
    label = Markup("<em>{}</em>").format(label) if emphasised else label
    return label + (Markup("<small>{}</small>").format(words) if words else "")


def html(
    frame: pd.DataFrame | Styler,
    kind: str,
    *,
    name: str,
    formats: Mapping[Any, Any] | Callable[..., str] | None = None,
) -> Markup:
    """Turn a table into HTML; all text but markup made by :func:`code` is escaped.

    Parameters
    ----------
    frame
        The table, with shades and classes where some cells stand out.
    kind
        Its class in the page.
    name
        Name that its cells have in the page, of letters.
    formats
        What writes the numbers of each column, or of all.
    """
    style = frame.style if isinstance(frame, pd.DataFrame) else frame
    style = style.format(formats, na_rep=DASH, escape="html")
    axes: tuple[tuple[Literal[0, 1], pd.Index], ...] = ((0, style.index), (1, style.columns))
    for axis, labels in axes:
        for level in range(labels.nlevels):
            style = style.format_index(escape, axis=axis, level=level)
    attributes = f'class="{kind}"'
    return Markup(style.to_html(table_uuid=name, table_attributes=attributes))
