# Each target does all its own set-up: Python 3.11 or newer, git and make are all a machine needs.
#
#   make demo         a first look: scenes are made, a detector learns them, a page shows what it found
#   make test         the tests, in two processes; TESTS="tests/data -k coco" runs some of them
#   make test-quick   without those marked slow: about two minutes; TESTS=tests/models for the room at hand
#   make lint         style and types
#   make bench        makes the speed tables of benchmarks/results anew, on this machine: hours; those of detectors and
#                     their operators once more limited to AVX2 (results/avx2), those of predictions and training steps
#                     to AVX-512 without bf16 (results/avx512); and holds them against their goals
#   make fuzz         MINUTES=5 of looking for files that break a reader
#
# PYTHON=... chooses the interpreter, VENV=... the folder of the environment.

VENV ?= .venv
BIN := $(VENV)/bin
# The interpreters to try, in this order; one is taken if it is new enough and can make environments.
PYTHON ?= python3 python3.13 python3.12 python3.11 python3.14 python
SUITABLE := import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))

# An idle process takes tests from the other one, neighbours first: fixtures of a module are seldom made twice.
TWO_WORKERS := -n 2 --dist worksteal

.DEFAULT_GOAL := help
.PHONY: help demo test test-quick lint bench fuzz build clean

help:
	@sed -n 's/^#   //p' Makefile

demo: $(VENV)/.installed
	$(BIN)/twostage demo $(if $(OUT),--out "$(OUT)")

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest $(TWO_WORKERS) $(TESTS)

test-quick: $(VENV)/.installed-test
	$(BIN)/python -m pytest $(TWO_WORKERS) -m "not slow" $(TESTS)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The instruction set of most laptops and desktops.
AVX2 := ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2
# That of servers before bf16.
AVX512 := ONEDNN_MAX_CPU_ISA=AVX512_CORE

bench: $(VENV)/.installed-dev
	@for file in benchmarks/bench_*.py; do \
		name=$${file#benchmarks/bench_}; name=$${name%.py}.md; echo "== $$file"; \
		$(BIN)/python $$file --out benchmarks/results/$$name || exit 1; \
		case "$$(uname -m) $$name" in "x86_64 inference.md"|"x86_64 training_step.md"|"x86_64 startup.md"|"x86_64 small.md"|\
		"x86_64 masks.md"|"x86_64 roi_align.md"|"x86_64 nms.md"|"x86_64 first_step.md") \
			echo "== $$file, limited to AVX2"; \
			$(AVX2) $(BIN)/python $$file --out benchmarks/results/avx2/$$name || exit 1 ;; \
		esac; \
		case "$$(grep -cm1 avx512 /proc/cpuinfo 2>/dev/null) $$name" in "1 inference.md"|"1 training_step.md") \
			echo "== $$file, limited to AVX-512 without bf16"; \
			$(AVX512) $(BIN)/python $$file --out benchmarks/results/avx512/$$name || exit 1 ;; \
		esac; \
	done
	@$(BIN)/python benchmarks/goals.py --out benchmarks/results/goals.md

fuzz: $(VENV)/.installed-test
	$(BIN)/python -m pip install --quiet atheris
	$(BIN)/python benchmarks/fuzz.py --minutes $(or $(MINUTES),5)

build: $(VENV)/.installed-dev
	$(BIN)/python -m build --wheel --outdir $(or $(OUT),dist)

clean:
	rm -rf $(VENV) dist .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(VENV)/.made:
	@for python in $(PYTHON); do \
		if $$python -c '$(SUITABLE)' 2>/dev/null; then \
			echo "Making an environment in $(VENV) with $$python"; \
			$$python -m venv --clear "$(VENV)" && touch $@ && exit 0; exit 1; \
		fi; \
	done; \
	echo "No suitable Python found among: $(PYTHON)" >&2; \
	echo "Needed: Python 3.11 or newer with its venv module (Debian, Ubuntu: apt install python3-venv)." >&2; \
	echo "Another one is chosen by: make PYTHON=/path/to/python3.12 ..." >&2; \
	exit 1

# A stamp is renewed when the project file changes, and keeps what is installed otherwise.
$(VENV)/.installed: pyproject.toml | $(VENV)/.made
	@echo "Installing twostage into $(VENV) (PyTorch is large: some minutes, once)"
	$(BIN)/python -m pip install --quiet --editable .
	@touch $@

$(VENV)/.installed-test: pyproject.toml | $(VENV)/.made
	@echo "Installing twostage and its tests' needs into $(VENV) (PyTorch is large: some minutes, once)"
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	@touch $@ $(VENV)/.installed

$(VENV)/.installed-dev: pyproject.toml | $(VENV)/.made
	@echo "Installing twostage and its developers' needs into $(VENV) (PyTorch is large: some minutes, once)"
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@ $(VENV)/.installed $(VENV)/.installed-test
