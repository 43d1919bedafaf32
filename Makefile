# One command for people and for CI. Everything runs in .venv, which is made on first use.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=
# An index of CPU builds of torch, for machines without a GPU; empty: the usual one, whose builds for Linux have CUDA.
TORCH_INDEX ?=

.PHONY: serve test test-fast faults check clients links docs pins clean

$(VENV)/.torch: constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(if $(TORCH_INDEX),$(BIN)/pip install --quiet -c constraints.txt --no-deps --index-url $(TORCH_INDEX) torch)
	touch $@

$(VENV)/.serve: $(VENV)/.torch pyproject.toml
	$(BIN)/pip install --quiet -c constraints.txt -e .
	touch $@

$(VENV)/.dev: $(VENV)/.torch pyproject.toml
	$(BIN)/pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@ $(VENV)/.serve

serve: $(VENV)/.serve  ## serve the demo on http://127.0.0.1:8000
	$(BIN)/peftserve serve $(ARGS)

# One thread of torch for each of two workers. tests/conftest.py orders the files.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test: $(VENV)/.dev  ## the whole test suite
	$(PYTEST) $(ARGS)

test-fast: $(VENV)/.dev  ## what a change needs: no real server, no benchmarks, nothing that is marked slow
	$(PYTEST) -m "not slow" --ignore tests/end_to_end --ignore tests/benchmarks $(ARGS)

faults: $(VENV)/.dev  ## what a server has to outlive, for as long as ARGS="--minutes N --seed S --only PART" says
	$(BIN)/python -m tests.faults $(ARGS)

# Other people's clients, in an environment of their own.
.clients/.done: benchmarks/clients/requirements.txt
	test -x .clients/bin/python || $(PYTHON) -m venv .clients
	.clients/bin/pip install --quiet -r benchmarks/clients/requirements.txt
	touch $@

clients: .clients/.done  ## what the tests of other people's clients need

links:  ## the git-ignored links through which mypy and pyright see the package
	mkdir -p .links/peftserve
	for name in server kernels adapters __init__.py; do ln -sfn ../../$$name .links/peftserve/$$name; done

check: $(VENV)/.dev links  ## lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy -p peftserve

docs: $(VENV)/.dev  ## the generated parts of the documentation: settings, routes, imports
	$(BIN)/python -m docs.generate

pins: $(VENV)/.dev  ## constraints.txt anew, with the newest versions that fit together; see CONTRIBUTING.md
	$(BIN)/python docs/pins.py

clean:
	rm -rf $(VENV) .clients .links build dist *.egg-info
