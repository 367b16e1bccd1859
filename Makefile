# The two commands a newcomer needs; both set up .venv where it is missing.
#   make demo   train on bundled real cells and write demo/report.html
#   make test   lint, type-check and run all tests

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OUT ?= demo

.PHONY: demo test lint clean

demo: $(VENV)/.installed
	$(BIN)/pyro-fcr demo --out $(OUT)

test: lint
	$(BIN)/python -m pytest -n 2

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info
