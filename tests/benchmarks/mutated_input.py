"""Cells, schemas, questions and files with something wrong: answered, refused, or neither?

``python tests/benchmarks/mutated_input.py 500 500 300 200 500`` tries so many at random of cells,
schemas, questions, questions of legal arguments, and files.
"""

import logging
import sys
import tempfile
import warnings
from collections import Counter
from pathlib import Path

from hypothesis import HealthCheck, given, settings

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import mutated_files
import mutations

from pyro_fcr import Schema

MODEL = mutations.fitted()
FOLDER = Path(tempfile.mkdtemp(prefix="mutated"))


def cells(changed):
    adata, names = changed
    schema = mutations.good_schema()
    return mutations.outcome(lambda: mutations.check_registered(adata, schema), names)


def schemas(changed):
    arguments, names = changed
    said = [*names, *map(str, arguments.values())]
    schema, error = mutations.outcome(lambda: Schema(**arguments), said)
    if error is not None:
        return None, error
    adata = mutations.good_cells()
    return mutations.outcome(lambda: mutations.check_registered(adata, schema), said)


def questions(changed):
    question, arguments, names = changed
    own = {"adata": mutations.good_cells()[:8]} if question == "interval_coverage" else {}
    said = [*names, *map(str, arguments.values())]
    found = mutations.outcome(lambda: getattr(MODEL, question)(**own, **arguments), said)
    if found[1] is None:
        mutations.check_answer(found[0])
    return found


def legal(asked):
    question, arguments, _ = asked
    found = questions(asked)
    if found[1] is None:
        mutations.check_answer(found[0], question, arguments)
    return found


def files(changed):
    return mutated_files.judge(FOLDER, changed) or (None, None)


KINDS = {
    "cells": (cells, mutations.changed_cells()),
    "schemas": (schemas, mutations.changed_schema()),
    "questions": (questions, mutations.changed_question()),
    "legal questions": (legal, mutations.legal_question()),
    "files": (files, mutated_files.changed_file()),
}


def count(kind, n):
    """Try n examples of a kind; count what came of them, and list each failure once."""
    judge, examples = KINDS[kind]
    found, failures = Counter(), {}

    @settings(max_examples=n, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(examples)
    def one(changed):
        try:
            found["answered" if judge(changed)[1] is None else "refused by name"] += 1
        except AssertionError as error:
            text = str(error)
            found["foreign" if text.startswith("foreign") else "unnamed or silent"] += 1
            failures.setdefault(text[-160:], (text, str(changed[1:])[:400]))

    one()
    return found, list(failures.values())


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    for kind, n in zip(KINDS, map(int, sys.argv[1:] or (500, 500, 300)), strict=True):
        found, failures = count(kind, n)
        print(kind, dict(found))
        for text, changed in failures:
            print("   ", text.replace("\n", " ")[:300], "|", changed)
