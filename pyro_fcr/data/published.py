"""Published screens by name: read from a file of the published layout, or fetched once.

Addresses are those of pertpy 1.0.3 and of the scPerturb record on Zenodo. No checksum is published
beside them that we know of, so none is checked: the columns are.
"""

import os
import shutil
import urllib.request
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import anndata as ad
import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from pyro_fcr.data.errors import SchemaError, listed
from pyro_fcr.data.io import read_cells
from pyro_fcr.data.spelling import did_you_mean
from pyro_fcr.files import atomic_write, locate

_SECONDS: Final = 60.0  # that a server may take to answer
_PERTPY: Final = "https://scverse-exampledata.s3.eu-west-1.amazonaws.com/pertpy/"
_SCPERTURB: Final = "https://zenodo.org/records/13350497/files/"
_MATRIX: Final = "_TimeCourse_UMI_matrix.csv.gz"
_GEO: Final = "https://www.ncbi.nlm.nih.gov/geo/query/acc.cgi?acc=GSE147405"
_NEEDED: Final = ("perturbation", "cell_line", "dose_value", "time")


@dataclass(frozen=True)
class Published:
    """A published file.

    Parameters
    ----------
    name
        Name of the function that reads it.
    file
        Name in the folder of downloads.
    addresses
        Where the same file, or that of which it is a copy, is published; the first is fetched.
    """

    name: str
    file: str
    addresses: tuple[str, ...]

    def find(self, path: str | Path | None) -> Path:
        """Return the file: the given one, the one that was fetched before, or fetch it.

        Raises
        ------
        OSError
            It cannot be fetched; says what to fetch by hand, and where to put it.
        """
        if path is not None:
            return locate(path)
        place = downloads() / self.file
        if not place.exists():
            self._fetch(place)
        return place

    def _fetch(self, place: Path) -> None:
        try:
            with (
                urllib.request.urlopen(self.addresses[0], timeout=_SECONDS) as answer,
                atomic_write(place) as draft,
                draft.open("wb") as file,
            ):
                shutil.copyfileobj(answer, file)
        except OSError as error:
            others = " or ".join(self.addresses)
            raise OSError(
                f"{self.name}: {self.addresses[0]} cannot be fetched ({error}). Fetch {others} by "
                f"hand and save it as {place}, or pass its path: datasets.{self.name}(path)."
            ) from error


SCIPLEX3: Final = Published(
    "sciplex3",
    "srivatsan_2020_sciplex3.h5ad",
    (
        f"{_PERTPY}srivatsan_2020_sciplex3.h5ad",
        f"{_SCPERTURB}SrivatsanTrapnell2020_sciplex3.h5ad",
    ),
)
MCFARLAND2020: Final = Published(
    "mcfarland2020",
    "mcfarland_2020.h5ad",
    (f"{_PERTPY}mcfarland_2020.h5ad", f"{_SCPERTURB}McFarlandTsherniak2020.h5ad"),
)


def downloads() -> Path:
    """Return the folder of downloads: ``$PYRO_FCR_DATA``, or ``~/.cache/pyro_fcr``."""
    return locate(os.environ.get("PYRO_FCR_DATA") or "~/.cache/pyro_fcr")


def sciplex3(
    path: str | Path | AnnData | None = None,
    *,
    treatments: Iterable[str] | None = None,
    cell_lines: Iterable[str] | None = None,
) -> AnnData:
    """Load sci-Plex 3: 188 drugs at four doses in A549, K562 and MCF7 (Srivatsan et al. 2020).

    Parameters
    ----------
    path
        The file as scPerturb or pertpy publish it. None takes the one in the folder of downloads
        (``$PYRO_FCR_DATA``, or ``~/.cache/pyro_fcr``), and fetches it if there is none.
    treatments
        Drugs to keep, beside control; None keeps all.
    cell_lines
        Cell lines to keep; None keeps all.

    Returns
    -------
    Raw counts; ``obs`` as published, and ``treatment`` (``"control"`` for vehicle), ``dose`` (in
    the unit of ``dose_unit``, 0 for control) for a :class:`pyro_fcr.Schema` with ``cell_line`` as
    context. Cells whose drug is not known are left out. The paper of FCR does not say which drugs,
    doses and genes of it are its "sciPlex": choose them yourself.

    Raises
    ------
    OSError
        There is no file and it cannot be fetched; says what to fetch by hand, and where to put it.
    pyro_fcr.SchemaError
        The file lacks a column, or a drug or cell line that is asked for.
    """
    adata = path if isinstance(path, AnnData) else read_cells(SCIPLEX3.find(path))
    return _screen(adata, "sciplex3", treatments, cell_lines)


def mcfarland2020(
    path: str | Path | AnnData | None = None,
    *,
    treatments: Iterable[str] | None = None,
    cell_lines: Iterable[str] | None = None,
    times: Iterable[object] | None = None,
) -> AnnData:
    """Load MIX-Seq: pools of 24 to 99 cell lines under drugs and CRISPR (McFarland et al. 2020).

    The paper of FCR takes its "multiPlex" sets from it. multiPlex-Tram is trametinib:
    ``mcfarland2020(treatments=["Trametinib"])``. Which experiments are multiPlex-5 and multiPlex-9
    it does not say: choose treatments, lines and times yourself.

    Parameters
    ----------
    path
        The file as scPerturb or pertpy publish it; None as in :func:`sciplex3`.
    treatments, cell_lines
        What to keep, beside control; None keeps all.
    times
        Values of ``time`` to keep; None keeps all.

    Returns
    -------
    As of :func:`sciplex3`.

    Raises
    ------
    OSError
        There is no file and it cannot be fetched.
    pyro_fcr.SchemaError
        The file lacks a column or a level that is asked for.
    """
    adata = path if isinstance(path, AnnData) else read_cells(MCFARLAND2020.find(path))
    return _screen(adata, "mcfarland2020", treatments, cell_lines, times)


def cook2020(folder: str | Path, *, after_removal: bool = False) -> AnnData:
    """Load EMT in 4 cell lines x 3 inducers over time (Cook and Vanderhyden 2020, GSE147405).

    Conditions were pooled before sequencing, so that lane is not treatment.

    Parameters
    ----------
    folder
        Folder with the files of GEO: for each line and inducer that is to be read,
        ``GSE147405_<line>_<inducer>_TimeCourse_UMI_matrix.csv.gz`` (genes x cells) and
        ``..._metadata.csv.gz`` (a row per cell, with ``Time``).
    after_removal
        Whether to keep cells from which the inducer was taken away again (``8h_rm`` and the like);
        their dose is the longest time with it.

    Returns
    -------
    Raw counts of the genes that all files have; ``obs`` as published, with ``cell_line``,
    ``treatment`` (``"control"`` at ``0d``) and ``dose`` (days of treatment, 0 for control).

    Raises
    ------
    OSError
        The folder has no such files; says what to fetch.
    pyro_fcr.SchemaError
        A file lacks its metadata, cells or column.
    """
    files = sorted(locate(folder).glob(f"GSE147405_*{_MATRIX}"))
    if not files:
        raise FileNotFoundError(
            f"{folder} has no GSE147405_*{_MATRIX}. Fetch these and the ..._metadata.csv.gz beside "
            f"them from {_GEO} and put them there."
        )
    parts = {
        file.name.removesuffix(_MATRIX): _time_course(file, after_removal=after_removal)
        for file in files
    }
    return ad.concat(parts, join="inner", index_unique="-")


def _screen(
    adata: AnnData,
    name: str,
    treatments: Iterable[str] | None,
    cell_lines: Iterable[str] | None,
    times: Iterable[object] | None = None,
) -> AnnData:
    """Return the chosen cells of a screen in scPerturb's layout, with treatment and dose."""
    for key in _NEEDED:
        if key not in adata.obs:
            raise SchemaError(
                f"{name}: obs has no column {key!r}; columns: {listed(adata.obs)}."
                f"{did_you_mean(key, map(str, adata.obs))} Take the file as scPerturb or pertpy "
                "publish it"
            )
    label = adata.obs["perturbation"].astype(object).where(adata.obs["perturbation"].notna())
    keep = label.notna().to_numpy() & ~label.isin(["None", "nan", ""]).to_numpy()
    control = (label == "control").to_numpy()
    if not control.any():
        raise SchemaError(f"{name}: no cell has the perturbation 'control', which is the vehicle")
    chosen = {"perturbation": treatments, "cell_line": cell_lines, "time": times}
    for key, wanted in chosen.items():
        if wanted is not None:
            own = _is_one_of(adata.obs[key], wanted, name)
            keep &= own | control if key == "perturbation" else own
    found = adata[keep].copy()
    found.obs["treatment"] = pd.Categorical(label[keep].astype(str))
    dose = pd.to_numeric(found.obs["dose_value"].astype(object), errors="coerce")
    found.obs["dose"] = np.where(control[keep], 0.0, dose)
    return found


def _is_one_of(values: pd.Series, wanted: Iterable[object], name: str) -> np.ndarray:
    texts, asked = values.astype(str), [str(each) for each in wanted]
    known = sorted(set(texts))
    if missing := [each for each in asked if each not in known]:
        raise SchemaError(
            f"{name}: no cell has {values.name} {missing[0]!r}; known: {listed(known)}."
            f"{did_you_mean(missing[0], known)}"
        )
    return texts.isin(asked).to_numpy()


def _time_course(file: Path, *, after_removal: bool) -> AnnData:
    """Read a matrix of genes x cells and its metadata."""
    line, *_, inducer = file.name.removesuffix(_MATRIX).removeprefix("GSE147405_").split("_")
    beside = file.with_name(file.name.replace("UMI_matrix", "metadata"))
    if not beside.exists():
        raise SchemaError(f"{file.name} has no {beside.name} beside it; fetch it from {_GEO}")
    counts, obs = pd.read_csv(file, index_col=0), pd.read_csv(beside, index_col=0)
    if "Time" not in obs:
        raise SchemaError(f"{beside.name} has no column 'Time'; columns: {listed(obs)}")
    if len(lost := counts.columns.difference(obs.index)):
        raise SchemaError(f"{beside.name} has no row for {len(lost)} cells, such as {lost[0]!r}")
    obs = obs.loc[counts.columns].copy()
    time = obs["Time"].astype(str)
    removed = time.str.endswith("_rm")
    days = time.str.removesuffix("_rm").map(_days).astype(float)
    obs["cell_line"], obs["dose"] = line, days.where(~removed, days[~removed].max())
    obs["treatment"] = np.where(obs["dose"] == 0, "control", inducer)
    matrix = sparse.csr_matrix(counts.to_numpy().T.astype(np.float32))
    adata = AnnData(matrix, obs=obs, var=pd.DataFrame(index=counts.index.astype(str)))
    return adata if after_removal else adata[~removed.to_numpy()].copy()


_HOURS: Final[Mapping[str, float]] = {"h": 1.0, "d": 24.0}


def _days(time: str) -> float:
    """Return ``8h`` or ``3d`` in days."""
    if time[-1:] not in _HOURS or not time[:-1].replace(".", "", 1).isdigit():
        raise SchemaError(f"Time {time!r} cannot be read; expected hours or days, as 8h or 3d")
    return float(time[:-1]) * _HOURS[time[-1]] / 24
