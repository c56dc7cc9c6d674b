# make demo | reproduce | table4 | test | lowest | load | fuzz | fuzz-guided | crash | bench | lint       everything runs in .venv, which is made on first use
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
OUT    ?= runs/demo
# The version this project is developed and tested with. Named exactly, and installed first: a range would let the
# resolver take a newer build with gigabytes of CUDA libraries. On a GPU machine: make demo TORCH="torch".
TORCH  ?= torch==2.13.0

# Processes that run the tests; each wants about 2 GB.
WORKERS ?= 2

.PHONY: demo reproduce test lowest load fuzz fuzz-guided crash bench lint types clean-demo

$(BIN)/.installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$(TORCH)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[dev]"
	touch $@

demo: $(BIN)/.installed
	$(BIN)/python tools/demo.py output=$(OUT)

reproduce: $(BIN)/.installed
	$(BIN)/python tools/reproduce.py tables=all

# Two rules: of one with two targets, make would take figure6 for made once table6 is.
table%: $(BIN)/.installed
	$(BIN)/python tools/reproduce.py tables=[$@]

figure%: $(BIN)/.installed
	$(BIN)/python tools/reproduce.py tables=[$@]

test: $(BIN)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/ -n $(WORKERS) --dist loadfile

# The lower bounds of pyproject.toml as exact versions; `make test` has the newest. By pip's constraints, not another
# resolver's "lowest": so it is the declared bound that is tested, and pip's own configuration that is used.
LOWEST       := $(VENV)-lowest
LOWEST_TESTS := tests/agent tests/data_layer tests/evaluation tests/geometry tests/model_side tests/training \
	tests/test_commands.py tests/test_dependencies.py

$(LOWEST)/.installed: pyproject.toml $(BIN)/.installed
	$(PYTHON) -m venv --clear $(LOWEST)
	$(BIN)/python tests/lowest_versions.py > $(LOWEST)/constraints.txt
	$(LOWEST)/bin/python -m pip install --quiet --disable-pip-version-check "$(TORCH)"
	$(LOWEST)/bin/python -m pip install --quiet --disable-pip-version-check -e ".[dev]" -c $(LOWEST)/constraints.txt
	touch $@

lowest: $(LOWEST)/.installed
	OMP_NUM_THREADS=1 $(LOWEST)/bin/python -m pytest $(LOWEST_TESTS) -m "not slow" -n $(WORKERS) --dist loadfile

load: $(BIN)/.installed
	$(BIN)/python tests/load/campaign.py --output runs/load

# FUZZ: options of tests/fuzz/campaign.py, and of guided.py.
fuzz: $(BIN)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python tests/fuzz/campaign.py $(FUZZ)

# The same readers, guided by the lines that are reached: atheris, which has wheels for some versions of Python only.
fuzz-guided: $(BIN)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "atheris>=3,<4"
	OMP_NUM_THREADS=1 $(BIN)/python tests/fuzz/guided.py $(FUZZ)

# 200 hits on long-running commands, about an hour. CRASH="folder=DIR kills=20 commands=[evaluate]": see tests/crash/harness.py.
crash: $(BIN)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python tests/crash/harness.py $(CRASH)

bench: $(BIN)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python tools/bench.py $(PARTS)

lint: $(BIN)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(BIN)/.installed
	$(BIN)/mypy

clean-demo:
	rm -rf $(OUT)
