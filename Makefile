# The two commands a newcomer needs; both set up .venv where it is missing.
#   make demo   train on bundled real cells and write demo/report.html
#   make test   lint, type-check and run all tests
# and for developers:
#   make bench      ratios of steps, loader, sizes and imports, about 15 minutes
#   make notebooks  execute the notebooks in place and keep their outputs, about 5 minutes
#   make docs       build the site into build/site, warnings are errors, half a minute
#   make dist       build and check the release, install it in a clean environment, run a short demo from it

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OUT ?= demo

.PHONY: demo test lint bench notebooks docs dist clean

demo: $(VENV)/.installed
	$(BIN)/pyro-fcr demo --out $(OUT)

test: lint
	$(BIN)/python -m pytest -n 2 --dist loadgroup

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.installed
	for name in step_speed loader scaling import_time; do \
	  $(BIN)/python tests/benchmarks/$$name.py || exit 1; \
	done

notebooks: $(VENV)/.installed
	$(BIN)/python notebooks/execute.py

docs: $(VENV)/.docs
	$(BIN)/python -m sphinx --quiet --fail-on-warning --keep-going -b html -c docs . build/site
	@echo build/site/docs/index.html

# The demo runs in a folder outside the source, from which only the installed package can be imported.
dist: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --editable '.[release]'
	rm -rf dist build/clean
	$(BIN)/python -m build --outdir dist
	$(BIN)/python -m twine check --strict dist/*
	$(PYTHON) -m venv build/clean
	build/clean/bin/python -m pip install --quiet --constraint constraints.txt dist/*.whl
	build/clean/bin/python -m pip check
	cd build/clean && bin/pyro-fcr demo --max-epochs 10 --out demo
	@ls dist

$(VENV)/.docs: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt --editable '.[docs]'
	touch $@

# Python compiles modules when they are first imported; pip would compile all of them here.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info
