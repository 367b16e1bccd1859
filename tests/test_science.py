"""The simulated suite: what is fitted, recorded, gone on with and summed up."""

import doctest
import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import science
from science_suite import figure, records, settings, tables
from science_suite import suite as suite_module
from science_suite.figure import draw_sweeps, mcc_by_conditions
from science_suite.records import Record
from science_suite.settings import SETTINGS, architecture_of, condition_sweep, n_conditions
from science_suite.suite import Suite, run_suite
from science_suite.tables import headlines, score_table, summary_table

from pyro_fcr.simulation import FCRDesign

TINY = FCRDesign(n_cells=900, n_genes=20, n_contexts=3, n_treatments=3, n_tx=2)
COUNTS = replace(TINY, likelihood="nb", mixing="additive", n_layers=0)
SUITE = Suite(settings={"T": TINY}, seeds=[3], fit={"max_epochs": 1})
METRICS = {"mcc_pearson", "mcc_within_pearson", "r2_within", "leak_within_max"}


@pytest.fixture
def judged(monkeypatch):
    """Record what would be fitted, in place of fitting."""
    calls = []

    def judge(design, model, *, seed, fit):
        calls.append((design, model, seed))
        score = {"metric": "mcc_pearson", "block": "z_tx", "floor": 0.5, "ceiling": 1.0}
        value = seed / 10 if seed < 10 else np.nan
        return {
            "n_conditions": n_conditions(design),
            "seconds": 1.0,
            "scores": [{**score, "value": value}],
        }

    monkeypatch.setattr(suite_module, "judge", judge)
    return calls


@pytest.mark.parametrize("model", ["fcr", "cvae"])
@pytest.mark.parametrize("design", [TINY, COUNTS], ids=["normal", "counts"])
def test_a_fit_is_judged_against_the_truth(design, model, tmp_path):
    suite = replace(SUITE, settings={"T": design}, models=[model])
    (row,) = run_suite(suite, tmp_path / "s.json").rows
    assert (row["setting"], row["model"], row["seed"]) == ("T", model, 3)
    assert row["n_conditions"] == 7
    assert row["epochs"] == 1
    assert row["seconds"] > 0
    table = score_table(Record.read(tmp_path / "s.json"))
    assert set(table["metric"]) >= METRICS
    r2 = table[table["metric"] == "r2_within"].set_index("block")
    assert set(r2.index) == {"z_x", "z_tx", "z_t"}
    assert (r2["ceiling"] > 0.9).all()
    assert (r2["floor"] < 0.1).all()


def test_the_latents_that_are_judged_belong_to_the_cells(tmp_path):
    easy = replace(TINY, n_cells=2_000, n_layers=0, mixing="additive")
    suite = Suite(settings={"T": easy}, seeds=[0], fit={"max_epochs": 3})
    table = score_table(run_suite(suite, tmp_path / "s.json"))
    r2 = table[table["metric"] == "r2_within"]
    assert r2["value"].mean() > r2["floor"].mean() + 0.2


def test_cells_and_fit_have_the_seed(tmp_path, monkeypatch):
    seeds = []

    def spy(real):
        def run(*args, seed, **kwargs):
            seeds.append(seed)
            return real(*args, seed=seed, **kwargs)

        return run

    for name in ("simulate", "fit_comparison"):
        monkeypatch.setattr(suite_module, name, spy(getattr(suite_module, name)))
    run_suite(SUITE, tmp_path / "s.json")
    assert seeds == [3, 3]


def test_the_architecture_holds_what_the_design_makes():
    fits = architecture_of(replace(COUNTS, n_x=3, n_t=1))
    assert (fits.n_x, fits.n_tx, fits.n_t) == (3, 2, 1)
    assert (fits.likelihood, fits.decoder) == ("nb", "additive")
    assert architecture_of(SETTINGS["A"]).decoder == "joint"
    assert architecture_of(SETTINGS["B"]).likelihood == "nb"


def test_a_suite_goes_on_where_it_was(judged, tmp_path, monkeypatch):
    suite = Suite(settings={"T": TINY, "C": COUNTS}, models=["fcr", "cvae"], seeds=[1, 2])
    whole, fails = suite_module.judge, iter([False] * 5 + [True])

    def interrupted(*args, **kwargs):
        if next(fails):
            raise KeyboardInterrupt
        return whole(*args, **kwargs)

    monkeypatch.setattr(suite_module, "judge", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_suite(suite, tmp_path / "s.json")
    kept = Record.read(tmp_path / "s.json")
    assert len(kept.rows) == len(judged) == 5
    assert {row["seed"] for row in kept.rows[:4]} == {1}  # a seed is done before the next
    monkeypatch.setattr(suite_module, "judge", whole)
    record = run_suite(suite, tmp_path / "s.json")
    assert len(judged) == 8
    assert len({(d.likelihood, model, seed) for d, model, seed in judged}) == 8
    assert record.rows[:5] == kept.rows
    assert run_suite(suite, tmp_path / "s.json").rows == record.rows
    assert len(judged) == 8
    assert not list(tmp_path.glob(".*"))


def test_a_suite_can_be_made_larger(judged, tmp_path):
    run_suite(SUITE, tmp_path / "s.json")
    more = replace(SUITE, settings={"C": COUNTS}, seeds=[3, 4])
    record = run_suite(more, tmp_path / "s.json")
    assert [(row["setting"], row["seed"]) for row in record.rows] == [("T", 3), ("C", 3), ("C", 4)]
    assert set(Record.read(tmp_path / "s.json").header["settings"]) == {"T", "C"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fit": {"max_epochs": 2}}, "begun with fit: max_epochs = 1, now it is 2"),
        ({"n_cells": 70}, "begun with setting T: n_cells = 900, now it is 70"),
    ],
)
def test_rows_of_different_fits_never_mix(judged, tmp_path, change, message):
    run_suite(SUITE, tmp_path / "s.json")
    before = (tmp_path / "s.json").read_text()
    with pytest.raises(ValueError, match=message):
        run_suite(replace(SUITE, **change), tmp_path / "s.json")
    assert (tmp_path / "s.json").read_text() == before


def test_rows_of_other_versions_are_not_gone_on_with(judged, tmp_path):
    run_suite(SUITE, tmp_path / "s.json")
    content = json.loads((tmp_path / "s.json").read_text())
    content["versions"]["torch"] = "1.0"
    (tmp_path / "s.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"versions: torch = 1\.0"):
        run_suite(SUITE, tmp_path / "s.json")


@pytest.mark.parametrize("text", ["{", "[]", '{"rows": []}'])
def test_the_file_of_another_is_left_alone(judged, tmp_path, text):
    (tmp_path / "s.json").write_text(text)
    with pytest.raises(ValueError, match=r"s\.json is no record of this benchmark"):
        run_suite(SUITE, tmp_path / "s.json")
    assert (tmp_path / "s.json").read_text() == text
    assert not judged


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"models": ["frc"]}, "no model 'frc'.*Did you mean 'fcr'"),
        ({"seeds": []}, "no seeds"),
        ({"settings": {}}, "no settings"),
        ({"n_cells": 0}, "n_cells is 0"),
        ({"fit": {"max_epochs": 0}}, "max_epochs is 0"),
    ],
)
def test_an_impossible_suite_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        replace(SUITE, **change)


def test_the_suite_says_how_many_cells(judged, tmp_path):
    run_suite(replace(SUITE, n_cells=123), tmp_path / "s.json")
    assert judged[0][0] == replace(TINY, n_cells=123)


def test_medians_leave_out_what_is_not_defined(judged, tmp_path):
    record = run_suite(replace(SUITE, seeds=[1, 2, 7, 10]), tmp_path / "s.json")
    (row,) = summary_table(Record.read(tmp_path / "s.json")).to_dict("records")
    assert (row["value"], row["lowest"], row["highest"]) == (0.2, 0.1, 0.7)
    assert (row["floor"], row["ceiling"], row["n_seeds"]) == (0.5, 1.0, 4)
    shown = headlines(summary_table(record))
    assert shown.loc[("T", "fcr"), "MCC z_tx"] == "0.20 [0.50, 1.00]"
    with pytest.raises(ValueError, match="no rows"):
        summary_table(Record({}, []))


@pytest.mark.parametrize("n_tx", [2, 4, 5])
def test_a_sweep_crosses_what_the_theory_asks_for(n_tx):
    designs = condition_sweep("A", replace(SETTINGS["A"], n_tx=n_tx))
    found = [n_conditions(design) for design in designs.values()]
    assert found == sorted(found)
    assert found[0] < 2 * n_tx + 1 <= 4 * n_tx + 2 < found[-1]
    assert 2 * n_tx + 1 in found
    assert all(design.n_tx == n_tx for design in designs.values())


def test_the_figure_of_a_sweep_shows_medians_and_the_threshold(tmp_path):
    rows = [
        {"n_conditions": n, "value": v, "floor": 0.6, "ceiling": 1.0}
        for n, values in {3: (0.5, 0.6, 0.9), 9: (0.7, 0.8, 0.9)}.items()
        for v in values
    ]
    ax = mcc_by_conditions(pd.DataFrame(rows), n_latent=4)
    lines = {line.get_label(): line for line in ax.lines}
    assert lines["2 n + 1 = 9"].get_xdata()[0] == 9
    assert lines["median over seeds"].get_ydata().tolist() == [0.6, 0.8]
    with pytest.raises(ValueError, match="no column 'floor'"):
        mcc_by_conditions(pd.DataFrame(rows).drop(columns="floor"), n_latent=4)


def test_a_sweep_is_drawn_a_file_per_setting(tmp_path):
    score = {"block": "z_tx", "floor": 0.5, "ceiling": 1.0, "value": 0.7}
    scores = [{**score, "metric": name} for name in ("mcc_pearson", "mcc_within_pearson")]
    settings = {f"{name} {size}": {"n_tx": 4} for name in "AB" for size in ("1x2", "4x4")}
    rows = [
        {"setting": name, "model": "fcr", "seed": 0, "n_conditions": n, "scores": scores}
        for name, n in zip(settings, (3, 17, 3, 17), strict=True)
    ]
    files = draw_sweeps(Record({"settings": settings}, rows), tmp_path)
    assert [file.name for file in files] == ["conditions_A.png", "conditions_B.png"]
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in files)


@pytest.mark.parametrize("module", [figure, records, settings, suite_module, tables])
def test_docstring_examples_run(module):
    result = doctest.testmod(module)
    assert result.attempted
    assert result.failed == 0


def test_the_program_writes_and_goes_on(tmp_path, capsys):
    arguments = ["--settings", "A", "--cells", "1500", "--max-epochs", "1", "--first-seed", "7",
                 "--seeds", "1", "--out", str(tmp_path / "b")]  # fmt: skip
    science.main(arguments)
    assert "R2 z_tx within" in capsys.readouterr().out
    first = json.loads((tmp_path / "b" / "science.json").read_text())
    assert [(row["model"], row["seed"]) for row in first["rows"]] == [("fcr", 7)]
    assert first["settings"]["A"]["n_cells"] == 1500
    science.main([*arguments, "--models", "fcr,cvae"])
    again = json.loads((tmp_path / "b" / "science.json").read_text())
    assert again["rows"][0] == first["rows"][0]  # with its seconds: it was not fitted again
    assert [row["model"] for row in again["rows"]] == ["fcr", "cvae"]
    table = pd.read_csv(tmp_path / "b" / "science.csv")
    assert set(table["model"]) == {"fcr", "cvae"}
    assert {"value", "floor", "ceiling", "lowest", "highest", "n_seeds"} <= set(table)


def test_the_program_sweeps_conditions(tmp_path, monkeypatch, capsys):
    score = {"block": "z_tx", "floor": 0.5, "ceiling": 1.0, "value": 0.7}
    scores = [{**score, "metric": name} for name in ("mcc_pearson", "mcc_within_pearson")]

    def judge(design, model, *, seed, fit):
        n = (design.n_treatments - 1) * design.n_contexts + 1
        return {"n_conditions": n, "seconds": 1.0, "scores": scores}

    monkeypatch.setattr(suite_module, "judge", judge)
    science.main(["--conditions", "--settings", "B", "--seeds", "2", "--out", str(tmp_path)])
    assert "conditions_B.png" in capsys.readouterr().out
    record = json.loads((tmp_path / "conditions.json").read_text())
    assert {row["n_conditions"] for row in record["rows"]} == {3, 5, 7, 9, 10, 13, 17, 21}
    assert {row["seed"] for row in record["rows"]} == {0, 1}
    assert (tmp_path / "conditions_B.png").stat().st_size > 1_000
    assert len(pd.read_csv(tmp_path / "conditions.csv")) == 16


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--settings", "C"], "--settings 'C'"),
        (["--models", "fcrr"], "Did you mean 'fcr'"),
        (["--cells", "0"], "n_cells is 0"),
        (["--max-epochs", "0"], "max_epochs is 0"),
        (["--device", "gpu"], "Unknown --device 'gpu'"),
    ],
)
def test_the_program_says_what_is_wrong(tmp_path, capsys, arguments, message):
    with pytest.raises(SystemExit) as end:
        science.main(["--out", str(tmp_path / "b"), *arguments])
    assert end.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "b").exists()
