# Two commands for a fresh machine: `make lab` and `make test`. Either makes the virtual environment it needs;
# after the first time neither installs anything again until what it should hold has changed.
PYTHON ?= python3
VENV ?= .venv
OUT ?= lab

PIP_INSTALL = $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

# The engine's benchmark has an environment of its own, with the runtimes that it is compared with. LiteRT's converter wants
# an older typing_extensions than the command line here, so this package comes without its dependencies.
BENCH_VENV ?= build/bench-engine
BENCH_NEEDS = torch numpy onnx safetensors msgspec rich jinja2 pooch requests pillow platformdirs \
	onnxruntime openvino nncf ai-edge-litert litert-torch
BENCH_INSTALL = $(BENCH_VENV)/bin/python -m pip install --quiet --disable-pip-version-check

.PHONY: lab test bench-engine clean

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
	$(PIP_INSTALL) --editable '.[torch]'
	touch $@

# On top of the other, so that `make lab` has nothing left to do after `make test`, and needs no network.
$(VENV)/installed-test: $(VENV)/installed
	$(PIP_INSTALL) --editable '.[test]'
	touch $@

bench-engine: $(BENCH_VENV)/installed
	$(BENCH_VENV)/bin/python -m benchmarks.engine $(BENCH)

$(BENCH_VENV)/installed: benchmarks/engine-constraints.txt
	@echo "installing into $(BENCH_VENV) (once; a few minutes)"
	$(PYTHON) -m venv $(BENCH_VENV)
	$(BENCH_INSTALL) --constraint benchmarks/engine-constraints.txt $(BENCH_NEEDS)
	$(BENCH_INSTALL) --no-deps --editable .
	touch $@

clean:
	rm -rf .venv lab build dist
