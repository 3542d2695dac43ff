# Two commands for a fresh machine: `make lab` and `make test`. Each makes its own virtual environment.
PYTHON ?= python3
LAB_VENV := .venv
TEST_VENV := .venv

.PHONY: lab test check clean

# A virtual environment is rebuilt when what it should hold has changed.
$(LAB_VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(LAB_VENV)
	$(LAB_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable .
	touch $@

$(TEST_VENV)/installed-test: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(TEST_VENV)
	$(TEST_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[test]'
	touch $@

lab: $(LAB_VENV)/installed
	$(LAB_VENV)/bin/twoscale lab --out lab

test: $(TEST_VENV)/installed-test
	$(TEST_VENV)/bin/ruff format --check .
	$(TEST_VENV)/bin/ruff check .
	$(TEST_VENV)/bin/mypy
	$(TEST_VENV)/bin/python -m pytest -n 2 --dist worksteal

clean:
	rm -rf $(LAB_VENV) lab build dist
