"""One JSON file of all fits that were judged, written anew after each, so that none is lost."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyro_fcr.files import atomic_write
from pyro_fcr.metrics import nan_to_null

Row = dict[str, Any]
_IDENTITY = ("setting", "model", "seed")


@dataclass(frozen=True)
class Record:
    """What a suite was told (``versions``, ``fit``, ``settings``), and a row per fit.

    A row holds ``setting``, ``model``, ``seed``, numbers, and ``scores``, the rows of
    :func:`pyro_fcr.metrics.identifiability_table`.

    >>> Record({"settings": {}}, [{"setting": "A", "model": "fcr", "seed": 0}]).has("A", "fcr", 0)
    True
    """

    header: Mapping[str, Any]
    rows: list[Row]

    @classmethod
    def read(cls, path: Path) -> "Record":
        """Read a file that :meth:`write` wrote; ValueError if it is no such record."""
        try:
            found = json.loads(path.read_text())
            return cls({k: found[k] for k in ("versions", "fit", "settings")}, found["rows"])
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(
                f"{path} is no record of this benchmark ({error!r}): move it, or write to another "
                "folder"
            ) from error

    def write(self, path: Path) -> None:
        """Write all rows; the file is whole at any time."""
        content = nan_to_null({**self.header, "rows": self.rows})
        with atomic_write(path) as draft:
            draft.write_text(json.dumps(content, indent=1, allow_nan=False))

    def has(self, *identity: Any) -> bool:
        """Tell whether a fit, given by setting, model and seed, is there already."""
        return any(tuple(row[key] for key in _IDENTITY) == identity for row in self.rows)

    def joined(self, header: Mapping[str, Any], *, path: Path) -> "Record":
        """Add the settings of another header; ValueError if the two cannot stand in one table."""
        wanted = json.loads(json.dumps(nan_to_null(dict(header))))
        known = self.header["settings"]
        for key in ("versions", "fit"):
            _check_same(key, self.header[key], wanted[key], path)
        for name in known.keys() & wanted["settings"].keys():
            _check_same(f"setting {name}", known[name], wanted["settings"][name], path)
        return Record({**wanted, "settings": {**known, **wanted["settings"]}}, self.rows)


def _check_same(what: str, old: Mapping[str, Any], new: Mapping[str, Any], path: Path) -> None:
    for key in {**old, **new}:
        if old.get(key) != new.get(key):
            raise ValueError(
                f"{path} was begun with {what}: {key} = {old.get(key)}, now it is {new.get(key)}; "
                "go on as it was begun, or write to another folder"
            )
