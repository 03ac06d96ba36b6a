# `make demo` and `make test` each set up all they need: a virtual environment in .venv, with pinned versions.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DEMO_READY := $(VENV)/.demo-ready
PIP := $(BIN)/python -m pip install --quiet --no-compile -c constraints.txt

.PHONY: demo test lint bench slow previous setup clean
.DELETE_ON_ERROR:

demo: $(DEMO_READY)
	$(BIN)/erasekit demo --out demo-output

test: $(READY)
	$(BIN)/python -m pytest -n auto --dist worksteal

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check src
	$(BIN)/pyright

# The quick ones, about ten minutes on two cores; those that draw hundreds of pictures are named in docs/.
BENCH := $(BIN)/python benchmarks
bench: $(READY)
	$(BENCH)/startup.py --out build/startup.json
	$(BENCH)/closed_form.py --shapes sd14 --only erasepro erasepro100 rece speed --out build/closed_form.json
	$(BENCH)/emoji_features.py --out build/emoji_features.json
	$(BENCH)/ablation_erasepro.py
	$(BENCH)/suggest.py
	$(BENCH)/erasepro_knobs.py --targets 6 --out build/erasepro_knobs.json
	$(BENCH)/training_speed.py --out build/training_speed.json

slow: $(READY)
	$(PIP) -e '.[ray]'
	$(BIN)/python -m pytest -m slow

# The minor versions before those of constraints.txt, over everything that touches a model.
PREVIOUS := diffusers==0.41.0 transformers==5.22.2
previous: $(READY)
	$(BIN)/python -m pip install --quiet --upgrade --no-deps --target build/previous $(PREVIOUS)
	PYTHONPATH=build/previous $(BIN)/python -m pytest -n auto --dist worksteal tests/backbones tests/methods tests/adapters tests/guidances \
		tests/test_export.py tests/test_export_keys.py tests/test_api.py tests/test_io.py tests/test_edit.py

setup: $(READY)

# Bytecode is made when a module is first imported: making all of it at once takes longer.
$(READY): pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) -e '.[dev]'
	touch $(DEMO_READY) $@

$(DEMO_READY): pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) -e .
	touch $@

# A half-made environment would be taken for a whole one by the next call.
$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$(PYTHON) is no Python 3.11 or later: name one, as in make PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

clean:
	rm -rf $(VENV) demo-output build dist .pytest_cache .ruff_cache .hypothesis
