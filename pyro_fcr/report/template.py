"""Fill the templates of the pages."""

from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined


def render(name: str, **contents: Any) -> str:
    """Fill a template of this package; text is escaped."""
    environment = Environment(
        loader=FunctionLoader(_source),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name).render(**contents)


def _source(name: str) -> str:
    return resources.files("pyro_fcr.report").joinpath(name).read_text("utf-8")


def named(sentences: Mapping[str, str] | Sequence[str]) -> list[tuple[str, str]]:
    """Give sentences with their names, empty where they have none."""
    if isinstance(sentences, Mapping):
        return [(str(name), str(text)) for name, text in sentences.items()]
    return [("", str(text)) for text in sentences]
