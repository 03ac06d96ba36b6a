# `make demo` and `make test` each set up all they need: a virtual environment in .venv, with pinned versions.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test lint bench slow setup clean
.DELETE_ON_ERROR:

demo: $(READY)
	$(BIN)/erasekit demo --out demo-output

test: $(READY)
	$(BIN)/python -m pytest -n auto --dist worksteal

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check src
	$(BIN)/pyright

# The quick ones; those that draw hundreds of pictures are named in docs/.
BENCHES := startup closed_form emoji_features erasepro_knobs many_concepts suggest training_speed

bench: $(READY)
	for name in $(BENCHES); do echo "== $$name"; $(BIN)/python benchmarks/$$name.py || exit 1; done

slow: $(READY)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[ray]'
	$(BIN)/python -m pytest -m slow

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) demo-output build dist .pytest_cache .ruff_cache .hypothesis
