# Two commands for a fresh machine: `make lab` and `make test`. Each makes the virtual environment that it needs, and
# installs again only when pyproject.toml or constraints.txt have changed.
PYTHON ?= python3
# Images of containers often set it. Every process would then compile PyTorch's modules anew, and tests start hundreds.
unexport PYTHONDONTWRITEBYTECODE
VENV ?= .venv
OUT ?= lab
TESTS ?= tests
# Cases of long sweeps: a fixed sample, or all.
SWEEP ?= sample
# Processes that run tests. Four keep two cores busy, since tests wait for other processes.
WORKERS ?= 4

# Modules are compiled when they are first imported: compiling all of them takes 40 s, and most are never imported.
PIP_INSTALL = $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-compile \
	--constraint constraints.txt

# The engine's benchmark has its own environment, with the runtimes that it is compared with. LiteRT's converter needs an
# older typing_extensions than the command line does, so twoscale is installed there without its dependencies.
BENCH_VENV ?= build/bench-engine
BENCH_NEEDS = torch numpy onnx safetensors msgspec rich jinja2 pooch requests pillow platformdirs \
	onnxruntime openvino nncf ai-edge-litert litert-torch executorch torchao
BENCH_INSTALL = $(BENCH_VENV)/bin/python -m pip install --quiet --disable-pip-version-check

OLDEST_VENV ?= build/oldest
OLDEST_INSTALL = $(OLDEST_VENV)/bin/python -m pip install --quiet --disable-pip-version-check

DOCS_VENV ?= build/docs
DOCS_INSTALL = $(DOCS_VENV)/bin/python -m pip install --quiet --disable-pip-version-check

.PHONY: fuzz lab test test-all test-oldest docs release bench-browser bench-engine bench-engine-large bench-large bench-chips clean

lab: $(VENV)/installed
	$(VENV)/bin/twoscale lab --out $(OUT)

# The gate: formatting, lint, types and every test, with a sample of the long sweeps (tests/sweep.py).
# Types are checked beside the tests, since mypy keeps one core busy for a minute. (Not by `make -j`: the tests run make
# themselves, which would warn about a job server that is not theirs.)
test: $(VENV)/installed-test
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy & types=$$!; \
	$(VENV)/bin/python -m pytest -n $(WORKERS) --dist worksteal --sweep $(SWEEP) $(TESTS); tests=$$?; \
	wait $$types && exit $$tests

$(VENV)/installed: pyproject.toml constraints.txt
	@echo "installing into $(VENV) (once; a few minutes)"
	$(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) --editable '.[torch]'
	touch $@

# Includes what `make lab` needs, so that it needs no network after `make test`.
$(VENV)/installed-test: pyproject.toml constraints.txt
	@echo "installing into $(VENV) (once; a few minutes)"
	$(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) --editable '.[test]'
	touch $(VENV)/installed $@

# Everything: the gate with whole sweeps, the documentation, the oldest dependencies, and the distributions in fresh
# environments.
test-all: SWEEP = all
test-all: test docs test-oldest release

# The tests with the oldest version of each dependency that pyproject.toml allows. scripts/oldest.py reads them there.
test-oldest: $(OLDEST_VENV)/installed
	$(OLDEST_VENV)/bin/python -m pytest -n $(WORKERS) --dist worksteal $(TESTS)

$(OLDEST_VENV)/installed: pyproject.toml constraints.txt scripts/oldest.py
	@echo "installing into $(OLDEST_VENV) (once; a few minutes)"
	$(PYTHON) -m venv $(OLDEST_VENV)
	$(PYTHON) scripts/oldest.py > $(OLDEST_VENV)/constraints.txt
	$(OLDEST_INSTALL) --constraint $(OLDEST_VENV)/constraints.txt --editable '.[test]'
	touch $@

# The documentation site, in build/site. Warnings are errors: links, anchors, and names of the reference.
docs: $(DOCS_VENV)/installed
	NO_MKDOCS_2_WARNING=1 $(DOCS_VENV)/bin/mkdocs build --strict --quiet
	@echo "open build/site/index.html, or run $(DOCS_VENV)/bin/mkdocs serve"

# The reference is read from the source, so this environment needs no torch.
$(DOCS_VENV)/installed: pyproject.toml constraints.txt
	@echo "installing into $(DOCS_VENV) (once; a minute)"
	$(PYTHON) -m venv $(DOCS_VENV)
	$(DOCS_INSTALL) --constraint constraints.txt --editable '.[docs]'
	touch $@

# Builds the sdist and the wheel, checks both in fresh environments, and prints the commands that publish them.
release: $(VENV)/installed-test
	$(VENV)/bin/python scripts/release.py

# Mutated files through every loader: 20,000, about half an hour; benchmarks/results/fuzz.json.
fuzz: $(VENV)/installed-test
	$(VENV)/bin/python -m benchmarks.fuzz $(FUZZ)

# With every instruction set, then with better ones hidden: about ten minutes, after the networks are prepared once.
bench-engine: $(BENCH_VENV)/installed
	$(BENCH_VENV)/bin/python -m benchmarks.engine --isa all $(BENCH)

# ResNet-50 and MobileNetV2 at 224×224: a few minutes, after the networks are prepared once.
bench-engine-large: $(BENCH_VENV)/installed
	$(BENCH_VENV)/bin/python -m benchmarks.engine --cases large $(BENCH)

# In headless Chromium, which needs clang with wasm-ld, Chromium and npm: minutes.
bench-browser: $(BENCH_VENV)/installed
	$(BENCH_VENV)/bin/python -m benchmarks.browser $(BENCH)

# Quantizing networks for 224×224 images, beside NNCF and ONNX Runtime: a quarter of an hour; an interrupted run goes on.
bench-large: $(BENCH_VENV)/installed
	$(BENCH_VENV)/bin/python -m benchmarks.large $(BENCH)

# Instructions on microcontrollers, under QEMU; needs gcc-arm-none-eabi and qemu-system-arm (Debian's names).
bench-chips: $(VENV)/installed
	$(VENV)/bin/python -m benchmarks.chips

$(BENCH_VENV)/installed: benchmarks/engine-constraints.txt
	@echo "installing into $(BENCH_VENV) (once; a few minutes)"
	$(PYTHON) -m venv $(BENCH_VENV)
	$(BENCH_INSTALL) --constraint benchmarks/engine-constraints.txt $(BENCH_NEEDS)
	$(BENCH_INSTALL) --no-deps --editable .
	touch $@

clean:
	rm -rf .venv lab build dist
