# Two commands for a fresh machine: `make lab` and `make test`. Either makes the virtual environment it needs;
# after the first time neither installs anything again until what it should hold has changed.
PYTHON ?= python3
VENV ?= .venv
OUT ?= lab

PIP_INSTALL = $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: lab test clean

lab: $(VENV)/installed
	$(VENV)/bin/twoscale lab --out $(OUT)

test: $(VENV)/installed-test
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	$(VENV)/bin/python -m pytest -n 2 --dist worksteal

$(VENV)/installed: pyproject.toml constraints.txt
	@echo "installing into $(VENV) (once; a few minutes)"
	$(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) --editable .
	touch $@

# On top of the other, so that `make lab` has nothing left to do after `make test`, and needs no network.
$(VENV)/installed-test: $(VENV)/installed
	$(PIP_INSTALL) --editable '.[test]'
	touch $@


clean:
	rm -rf .venv lab build dist
