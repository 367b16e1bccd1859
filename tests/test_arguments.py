"""One vocabulary of arguments: whatever takes one of its words reads it before any work."""

import inspect
import json
from dataclasses import asdict, fields, is_dataclass

import numpy as np
import pandas as pd
import pytest

import pyro_fcr
from pyro_fcr import FCR, Architecture, Output, QueryError, Ramp, Schema, TrainingPlan, simulation
from pyro_fcr.comparison import fit_comparison
from pyro_fcr.data import split_cells
from pyro_fcr.evaluation import evaluate
from pyro_fcr.objective.objective import resolve_weights
from pyro_fcr.queries import Query
from pyro_fcr.training.plan import changed_plan
from pyro_fcr.values import VOCABULARY, Each, Flag, Number, Size, Text, checked

BAD = {
    Number: [True, "3", [3], None, np.nan, np.inf, np.array([3]), 1j],
    Flag: ["no", 1, None, [True]],
    Text: [["drug"], 1, "", None],
    Size: [True, "much", "2 cows", [3], None, np.nan, 0, "0GB", 2.5, np.array([3])],
}
METHODS = [
    "fit", "get_latent_representation", "add_latents_to", "label_blind_latents", "predict",
    "counterfactual", "posterior_predictive", "dose_response", "interval_coverage", "to_arviz",
    "effects", "elbo", "save",
]  # fmt: skip
CALLABLES = [
    *(getattr(FCR, name) for name in METHODS), FCR, evaluate, split_cells, fit_comparison,
    pyro_fcr.bootstrap, pyro_fcr.cross_fit, pyro_fcr.effects, pyro_fcr.rank_interactions,
    simulation.simulate, simulation.simulate_interactions, simulation.simulate_from_controls,
    pyro_fcr.metrics.independence_test, pyro_fcr.metrics.response_table,
    Schema, Architecture, TrainingPlan, Output, Query, Ramp, simulation.FCRDesign,
    simulation.EffectDesign, simulation.RandomInteractions,
]  # fmt: skip


def words_of(function):
    signature = inspect.signature(function)
    return [(function, name) for name in signature.parameters if name in VOCABULARY]


TAKEN = [pair for function in CALLABLES for pair in words_of(function)]


def enough(function, name, value):
    """Something for every argument that must be given, and one value to look at."""
    given = {
        p.name: "x" if isinstance(VOCABULARY.get(p.name), Text) else None
        for p in inspect.signature(function).parameters.values()
        if p.default is p.empty and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
    }
    if function is Schema:
        given |= {"treatment_key": "drug", "covariate_keys": "line"}
    if function is Ramp:
        given |= {"end": 1.0}
    return {**given, name: value}


@pytest.mark.parametrize(
    ("function", "name"), TAKEN, ids=lambda each: getattr(each, "__qualname__", each)
)
def test_a_wrong_value_is_named_before_any_work(function, name):
    rule = VOCABULARY[name]
    kind = rule.kind if isinstance(rule, Each) else rule
    parameter = inspect.signature(function).parameters[name]
    free = parameter.default is None or "None" in str(parameter.annotation)
    for value in BAD[type(kind)]:
        if value is None and free:
            continue
        if isinstance(rule, Each) and isinstance(value, list | np.ndarray):
            continue
        with pytest.raises(ValueError, match=f"^{name} is .*; expected .*") as error:
            function(**enough(function, name, value))
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("number", "good", "bad", "words"),
    [
        (Number(whole=True, least=1), [1, np.int8(3), np.uint64(9)], [0, 1.0, 2.5, np.float32(2)],
         "a whole number of 1 or more"),
        (Number(above=0), [1e-9, 3, np.float32(2)], [0, -1, np.nan], "a number above 0"),
        (Number(least=0, below=1), [0, 0.5], [1, -0.1], "a number from 0 to below 1"),
        (Number(above=0, below=1), [0.5], [0, 1], "a number between 0 and 1"),
        (Number(least=0, most=1), [0, 1, np.float64(0.1)], [1.1], "a number from 0 to 1"),
    ],
)  # fmt: skip
def test_ranges_and_their_words(number, good, bad, words):
    assert number.words == words
    for value in good:
        read = number.read("n", value)
        assert read == value
        assert type(read) is (int if number.whole else float)
    for value in bad:
        with pytest.raises(ValueError, match=f"n is .*; expected {words}."):
            number.read("n", value)


def test_sizes_of_memory():
    given = {"1.5GB": 1_500_000_000, "2 mb": 2_000_000, "64": 64, 4096: 4096, np.int64(7): 7}
    for size, n_bytes in given.items():
        read = Size().read("memory", size)
        assert (read, type(read)) == (n_bytes, int)


def test_numpy_numbers_become_python_s_own():
    plan = TrainingPlan(max_epochs=np.int64(3), seed=np.arange(4)[3], learning_rate=np.float32(0.5))
    sizes = Architecture(n_tx=np.int32(2), dropout=np.float64(0.1))
    for settings in (plan, sizes):
        json.dumps(asdict(settings))
    assert (plan.seed, type(plan.seed), plan.learning_rate) == (3, int, 0.5)
    seen = {}

    @checked(error=QueryError)
    def ask(*, seed=0, n_cells=None, levels=(0.5,)):
        seen.update(seed=seed, n_cells=n_cells, levels=levels)

    ask(seed=np.uint8(7), levels=np.array([0.1, 0.9]))
    assert seen == {"seed": 7, "n_cells": None, "levels": (0.1, 0.9)}
    with pytest.raises(QueryError, match="levels is 1; expected a number between 0 and 1"):
        ask(levels=[0.5, 1])


@pytest.mark.parametrize(
    "name", [n for n, rule in VOCABULARY.items() if n.startswith(("n_", "max_")) or n == "seed"]
)
def test_numbers_of_things_are_whole(name):
    assert VOCABULARY[name].whole


def test_every_number_of_a_plan_is_in_the_vocabulary():
    for record in (TrainingPlan, Architecture, simulation.FCRDesign, simulation.EffectDesign):
        assert is_dataclass(record)
        for each in fields(record):
            if isinstance(each.default, bool | int | float):
                assert each.name in VOCABULARY, each.name


@pytest.mark.parametrize("weight", [-1, np.nan, "2", True, lambda progress: progress - 1])
def test_weights_are_numbers_of_0_or_more(weight):
    with pytest.raises(ValueError, match=r"weight 'kl' is .*; expected a number of 0 or more"):
        resolve_weights(["kl_z_x"], {"kl": weight})
    with pytest.raises(ValueError, match=r"end is -1; expected a number of 0 or more"):
        Ramp(-1)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        (
            {"treatment_key": ["drug"]},
            r"treatment_key is list \['drug'\]; expected the name of one",
        ),
        ({"covariate_keys": 3}, "covariate_keys is 3; expected the name of one or more columns"),
        ({"covariate_keys": ["line", None]}, "covariate_keys is None; expected the name"),
        ({"split_key": 1}, "split_key is 1; expected the name of one column"),
        ({"expression": ["counts"]}, r"Unknown expression \['counts'\]; expected counts or log1p"),
    ],
)
def test_names_of_columns_are_names(keys, words):
    with pytest.raises(ValueError, match=words):
        Schema(**{"treatment_key": "drug", "covariate_keys": "line", **keys})


def test_a_choice_may_be_spelt_out_as_an_object():
    assert Query(output=Output("mean")).answer == Query(output="mean").answer
    for wrong in ("median", None, ["mean"]):
        with pytest.raises(QueryError, match="Unknown output .*; expected draws, mean or summary"):
            Query(output=wrong)


@pytest.mark.parametrize(
    "value", ["kendall", pd.NA, np.nan, ["x"], {}, np.array(["x", "y"])], ids=repr
)
@pytest.mark.parametrize(
    ("choose", "name"),
    [
        (lambda value: pyro_fcr.metrics.mcc(np.eye(40, 2), np.eye(40, 2), method=value), "method"),
        (simulation.simulate_family, "family"),
        (lambda value: fit_comparison(value, None, None), "comparison"),
        (lambda value: TrainingPlan(alternate=value), "alternate"),
    ],
    ids=["mcc", "family", "comparison", "plan"],
)
def test_a_choice_is_one_of_its_names(choose, name, value):
    with pytest.raises(ValueError, match=f"Unknown {name} "):
        choose(value)


def test_a_setting_that_does_not_exist():

    with pytest.raises(ValueError, match="Unknown setting 'max_epoch'. Did you mean 'max_epochs'?"):
        changed_plan(None, {"max_epoch": 3})
    with pytest.raises(ValueError, match="plan is dict .*; expected a TrainingPlan"):
        changed_plan({"max_epochs": 3}, {})
