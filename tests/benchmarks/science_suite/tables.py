"""Tables of a record: all scores, medians over seeds, and the few numbers to look at first."""

import pandas as pd

from science_suite.records import Record

_HEADLINES = {
    ("mcc_pearson", "z_tx"): "MCC z_tx",
    ("mcc_within_pearson", "z_tx"): "MCC z_tx within",
    ("r2_within", "z_x"): "R2 z_x within",
    ("r2_within", "z_tx"): "R2 z_tx within",
    ("r2_within", "z_t"): "R2 z_t within",
    ("leak_within_max", "all"): "largest leak within",
}


def score_table(record: Record) -> pd.DataFrame:
    """Return all scores, a row per fit, metric and block; ValueError if there are none.

    Columns are ``setting, model, seed, n_conditions, metric, block, value, floor, ceiling``.

    >>> score = {"metric": "r2", "block": "z_x", "value": 0.5, "floor": 0.0, "ceiling": 1.0}
    >>> row = {"setting": "A", "model": "fcr", "seed": 3, "n_conditions": 31, "scores": [score]}
    >>> score_table(Record({}, [row]))[["seed", "block", "value"]].values.tolist()
    [[3, 'z_x', 0.5]]
    """
    if not record.rows:
        raise ValueError("the record has no rows: no fit was made")
    keys = ("setting", "model", "seed", "n_conditions")
    rows = [
        {**{key: row[key] for key in keys}, **score}
        for row in record.rows
        for score in row["scores"]
    ]
    return pd.DataFrame(rows).astype(dict.fromkeys(("value", "floor", "ceiling"), float))


def summary_table(record: Record) -> pd.DataFrame:
    """Return medians over seeds of value, floor and ceiling, in the order of the record.

    Columns are ``setting, model, n_conditions, metric, block, value, floor, ceiling``, then
    ``lowest`` and ``highest`` (of the value) and ``n_seeds``.

    >>> score = {"metric": "r2", "block": "z_x", "floor": 0.0, "ceiling": 1.0}
    >>> row = {"setting": "A", "model": "fcr", "n_conditions": 31}
    >>> values = enumerate([0.2, 0.3, 0.9])
    >>> rows = [{**row, "seed": s, "scores": [{**score, "value": value}]} for s, value in values]
    >>> summary_table(Record({}, rows))[["value", "lowest", "n_seeds"]].values.tolist()
    [[0.3, 0.2, 3.0]]
    """
    keys = ["setting", "model", "n_conditions", "metric", "block"]
    groups = score_table(record).groupby(keys, sort=False)
    table = groups[["value", "floor", "ceiling"]].median()
    table["lowest"], table["highest"] = groups["value"].min(), groups["value"].max()
    table["n_seeds"] = groups["seed"].nunique()
    return table.reset_index()


def headlines(summary: pd.DataFrame) -> pd.DataFrame:
    """Return the few numbers to look at first as ``value [floor, ceiling]``, a row per model.

    >>> row = {"setting": "A", "model": "fcr", "metric": "mcc_pearson", "block": "z_tx"}
    >>> row |= {"value": 0.8, "floor": 0.6, "ceiling": 1.0}
    >>> headlines(pd.DataFrame([row])).loc[("A", "fcr"), "MCC z_tx"]
    '0.80 [0.60, 1.00]'
    """
    shown = summary.assign(floor=summary["floor"].round(2) + 0.0)  # no -0.00
    rows = shown.assign(
        name=[_HEADLINES.get(key) for key in zip(summary["metric"], summary["block"], strict=True)],
        text=[
            f"{row.value:.2f} [{row.floor:.2f}, {row.ceiling:.2f}]" for row in shown.itertuples()
        ],
    ).dropna(subset=["name"])
    wide = rows.set_index(["setting", "model", "name"])["text"].unstack("name")
    order = list(dict.fromkeys(zip(rows["setting"], rows["model"], strict=True)))
    return wide.loc[order, [name for name in _HEADLINES.values() if name in wide]]
