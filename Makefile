# make demo | reproduce | table4 | test | load | bench | lint       everything runs in .venv, which is made on first use
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
OUT    ?= runs/demo
# The version this project is developed and tested with. Named exactly, and installed first: a range would let the
# resolver take a newer build with gigabytes of CUDA libraries. On a GPU machine: make demo TORCH="torch".
TORCH  ?= torch==2.13.0

# Processes that run the tests; each wants about 2 GB.
WORKERS ?= 2

.PHONY: demo reproduce test load bench lint types clean-demo

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

load: $(BIN)/.installed
	$(BIN)/python tests/load/campaign.py --output runs/load

# FUZZ: options of tests/fuzz/campaign.py.
fuzz: $(BIN)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python tests/fuzz/campaign.py $(FUZZ)

bench: $(BIN)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python tools/bench.py $(PARTS)

lint: $(BIN)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(BIN)/.installed
	$(BIN)/mypy

clean-demo:
	rm -rf $(OUT)
