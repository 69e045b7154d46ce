# Two commands do all their own set-up: `make report` and `make test`.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: report gallery test slow lint types check docs pages release screenshots clean

report: $(VENV)/.run  ## write a report on the bundled model and print its path
	$(BIN)/interp report --out interp-report.html --force

gallery: $(VENV)/.run  ## write every study, the report and a page that links them
	$(BIN)/interp study --all --out interp-gallery --force

test: $(VENV)/.test  ## the fast tests
	$(BIN)/python -m pytest -m "not slow" -n auto --dist loadfile

slow: $(VENV)/.test  ## the slow tests
	$(BIN)/python -m pytest -m slow -n 2 --dist loadfile

docs: $(VENV)/.docs  ## the documentation as a site, in build/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build
	@echo build/site/index.html

pages: $(VENV)/.test  ## the pages of docs/ that are made from the code, again
	$(BIN)/python docs/site/generate.py

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

$(VENV)/.docs: pyproject.toml constraints.txt constraints-docs.txt constraints-test.txt | $(VENV)/bin/python
	$(PIP) --constraint constraints-docs.txt --constraint constraints-test.txt --editable ".[docs]"
	touch $@ $(VENV)/.run

$(VENV)/.test: pyproject.toml constraints.txt constraints-docs.txt constraints-test.txt | $(VENV)/bin/python
	$(PIP) --constraint constraints-docs.txt --constraint constraints-test.txt --editable ".[docs,test]"
	touch $@ $(VENV)/.run $(VENV)/.docs

release: $(VENV)/.test  ## the archives, checked, and installed into an empty environment
	$(BIN)/python -m pip install --quiet --disable-pip-version-check build twine
	$(BIN)/python tests/release.py

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis

screenshots: $(VENV)/.test  ## the README's pictures, again
	$(BIN)/python docs/screenshots.py
	$(BIN)/python docs/screenshots_studies.py
