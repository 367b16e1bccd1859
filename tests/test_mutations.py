"""Whatever is wrong with cells, schema or question: an answer, or an error that names it.

The same examples run every time. ``FCR_EXAMPLES=500`` runs so many of each kind instead, at random.
"""

import logging
import os
import warnings

import mutated_files
import mutations
import pytest
from hypothesis import HealthCheck, given, settings

from pyro_fcr import Schema

MANY = int(os.environ.get("FCR_EXAMPLES", "0"))


def examples(few):
    return settings(
        max_examples=MANY or few, derandomize=not MANY, deadline=None, database=None,
        suppress_health_check=list(HealthCheck), report_multiple_bugs=bool(MANY),
    )  # fmt: skip


@pytest.fixture(autouse=True)
def _quiet():
    logging.disable(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    logging.disable(logging.NOTSET)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("files")


@pytest.fixture(scope="module")
def fitted():
    return mutations.fitted()


def test_the_good_ones_are_good(fitted):
    mutations.check_registered(mutations.good_cells(), mutations.good_schema())
    for question, arguments in mutations.QUESTIONS.items():
        own = {} if question in ("predict", "dose_response", "effects") else {"adata": None}
        if question == "interval_coverage":
            own = {"adata": mutations.good_cells()[:8]}
        mutations.check_answer(getattr(fitted, question)(**own, **arguments))


@examples(100)
@given(mutations.changed_cells())
def test_cells(changed):
    adata, names = changed
    schema = mutations.good_schema()
    mutations.outcome(lambda: mutations.check_registered(adata, schema), names)


@examples(100)
@given(mutations.changed_schema())
def test_schemas(changed):
    arguments, names = changed
    adata = mutations.good_cells()
    odd = [*names, *map(str, arguments.values())]
    schema, _ = mutations.outcome(lambda: Schema(**arguments), odd)
    if schema is not None:
        mutations.outcome(lambda: mutations.check_registered(adata, schema), odd)


@examples(40)
@given(question=mutations.legal_question())
def test_legal_questions(fitted, question):
    name, arguments, names = question
    own = {"adata": mutations.good_cells()[:8]} if name == "interval_coverage" else {}
    said = [*names, *map(str, arguments.values())]
    answer, _ = mutations.outcome(lambda: getattr(fitted, name)(**own, **arguments), said)
    if answer is not None:
        mutations.check_answer(answer, name, arguments)


@examples(50)
@given(changed=mutated_files.changed_file())
def test_files_with_something_wrong(folder, changed):
    mutated_files.judge(folder, changed)


@examples(100)
@given(changed=mutations.changed_question())
def test_questions(fitted, changed):
    question, arguments, names = changed
    own = {"adata": mutations.good_cells()[:8]} if question == "interval_coverage" else {}
    said = [*names, *map(str, arguments.values())]
    answer, _ = mutations.outcome(lambda: getattr(fitted, question)(**own, **arguments), said)
    if answer is not None:
        mutations.check_answer(answer)
