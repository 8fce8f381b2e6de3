# Every target does its own set-up: a virtual environment in .venv, made once and again when a pin changes.
PYTHON ?= python3
VENV ?= .venv
ifeq ($(OS),Windows_NT)
BIN := $(VENV)/Scripts
else
BIN := $(VENV)/bin
endif
STAMP := $(VENV)/.installed
export PYTHONUNBUFFERED = 1
export MPLBACKEND = Agg


.PHONY: run test check bench fuzz prepare readme results docs clean help

help:
	@echo 'make run    the whole road on synthetic patients: data, cleaning, training, report'
	@echo 'make test   notebooks, then pytest'
	@echo 'make check  notebooks are clean and exported, then make test'
	@echo 'make bench  every speed comparison, beside the libraries it is compared with'
	@echo 'make fuzz   10,000 damaged files: no crash, no hang, every file accounted for'
	@echo 'make readme README.md from nbs/index.ipynb'
	@echo 'make results RESULTS.md from the saved runs and the study notebooks'
	@echo 'make docs   all notebooks as pages in _docs, with a page of contents'

$(STAMP): settings.ini setup.py constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || (echo 'ich_fastai needs Python 3.10 or newer: make PYTHON=python3.11 ...'; exit 1)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check uv
	$(BIN)/uv pip install -q --python $(VENV) -c constraints.txt -e '.[dev]'
	@$(BIN)/python -c "open('$(STAMP)', 'w').close()"

run: $(STAMP)
	$(BIN)/ich demo

# one thread a process: two notebooks with two threads each on two cores wait for each other most of the time
test: export OMP_NUM_THREADS = 1
# without it every folder of notebooks would make its own copy of the synthetic set
test: export ICH_DATA ?= $(CURDIR)/data
test: $(STAMP)
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/nbdev_test --n_workers 2 --timing
	$(BIN)/python -m pytest -q -n 2 --dist loadfile tests

# the libraries that are compared with are needed for nothing else
bench: export OMP_NUM_THREADS = 1
bench: $(STAMP)
	$(BIN)/uv pip install -q --python $(VENV) -c constraints.txt -e '.[bench]'
	$(BIN)/python -m benchmarks

fuzz: export OMP_NUM_THREADS = 1
fuzz: $(STAMP)
	$(BIN)/python tests/fuzz.py 10000

check: $(STAMP)
	$(MAKE) prepare
	git diff --exit-code
	$(MAKE) test

prepare: $(STAMP)
	$(BIN)/nbdev_clean
	$(BIN)/nbdev_export

readme: $(STAMP)
	$(BIN)/python tools/readme.py

results: $(STAMP)
	$(BIN)/python -c "from ich_fastai.studies.results import write_results; print(write_results())"

docs: $(STAMP)
	$(BIN)/python tools/docs.py

clean:
	rm -rf $(VENV) build dist *.egg-info
