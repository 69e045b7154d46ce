# Two commands do all their own set-up: `make report` and `make test`.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: report gallery test slow lint types check screenshots clean

report: $(VENV)/.run  ## write a report on the bundled model and print its path
	$(BIN)/interp report --out interp-report.html --force

gallery: $(VENV)/.run  ## write every study, the report and a page that links them
	$(BIN)/interp study --all --out interp-gallery --force

test: $(VENV)/.test  ## the fast tests
	$(BIN)/python -m pytest -m "not slow" -n auto --dist loadfile

slow: $(VENV)/.test  ## the slow tests
	$(BIN)/python -m pytest -m slow -n 2 --dist loadfile

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.test
	$(BIN)/mypy

check: lint types test slow  ## everything CI runs

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.run: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) --editable .
	touch $@

$(VENV)/.test: pyproject.toml constraints.txt constraints-test.txt | $(VENV)/bin/python
	$(PIP) --constraint constraints-test.txt --editable ".[test]"
	touch $@ $(VENV)/.run

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis

screenshots: $(VENV)/.test  ## the README's pictures, again
	$(BIN)/python docs/screenshots.py
	$(BIN)/python docs/screenshots_studies.py
