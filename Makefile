# make demo, make test: everything from nothing, in .venv. PYTHON names an interpreter of 3.11 or newer.
PYTHON ?= python3
BIN := .venv/bin
PIP_INSTALL := -m pip install --quiet --disable-pip-version-check
# tests run in several processes, each file in one of them, where its fixtures are made once; WORKERS= runs all in one
WORKERS ?= -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder
LLAMA := llama-cpp-python==0.3.36

export PARITY_PYTHON := $(CURDIR)/.venv-parity/bin/python
export LLAMA_PYTHON := $(CURDIR)/.venv-llama/bin/python

.PHONY: demo test lint parity bench types
.DELETE_ON_ERROR:

demo: .venv/.run
	@$(BIN)/localmoe demo

test: .venv/.dev
	@$(BIN)/python -m pytest $(WORKERS) $(PYTEST)

lint: .venv/.dev types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@cd build/types && ../../$(BIN)/mypy --config-file ../../pyproject.toml --cache-dir ../../.mypy_cache -p localmoe

# Against Hugging Face transformers and llama.cpp; each script starts what it needs of PARITY_PYTHON and LLAMA_PYTHON.
parity: .venv/.dev .venv-parity/.ready .venv-llama/.ready
	@for script in tests/parity/*.py; do echo "$$script"; PYTHONPATH=$(CURDIR) $(BIN)/python "$$script" || failed=1; done; exit $${failed:-0}

# MODEL=model.gguf; BENCH="-p 512 -n 128 -d 0,4096"
bench: .venv/.dev .venv-llama/.ready
	@test -n "$(MODEL)" || { echo "error: which model? make bench MODEL=model.gguf" >&2; exit 2; }
	@$(BIN)/python benchmarks/compare.py "$(MODEL)" $(BENCH)

# mypy sees the packages as they are installed: converters and tui inside localmoe.
types:
	@rm -rf build/types && mkdir -p build/types/localmoe
	@cd build/types/localmoe && ln -s ../../../localmoe/* ../../../converters ../../../tui .

.venv/.run: pyproject.toml
	@$(call make_venv,.venv)
	@echo "installing localmoe into .venv" >&2
	@$(BIN)/python $(PIP_INSTALL) -e .
	@touch $@

.venv/.dev: pyproject.toml
	@$(call make_venv,.venv)
	@echo "installing localmoe and its development tools into .venv" >&2
	@$(BIN)/python $(PIP_INSTALL) -e '.[dev]'
	@touch $@

.venv-parity/.ready: pyproject.toml
	@$(call make_venv,.venv-parity)
	@echo "installing transformers and mergekit into .venv-parity" >&2
	@$(PARITY_PYTHON) -c 'import tomllib; \
	extras = tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]; \
	print(*extras["parity"], sep="\n")' > .venv-parity/requirements.txt
	@$(PARITY_PYTHON) $(PIP_INSTALL) -r .venv-parity/requirements.txt
	@touch $@

.venv-llama/.ready:
	@$(call make_venv,.venv-llama)
	@echo "building llama.cpp into .venv-llama: about 6 minutes on two cores" >&2
	@$(LLAMA_PYTHON) $(PIP_INSTALL) $(LLAMA)
	@touch $@

# A virtual environment in $(1), unless it is there already; a half-made one has no pip and is made again.
define make_venv
test -x $(1)/bin/pip || { \
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "error: $(PYTHON) is not Python 3.11 or newer: name one with make PYTHON=python3.12" >&2; exit 2; }; \
	$(PYTHON) -m venv $(1); }
endef
