# make demo: install, run the two-stage recipe on the embedded model, end with a video.   make test: the tests.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
# Without a GPU, torch is pinned to the CPU build that the tests were run with.
CONSTRAINTS ?= $(shell command -v nvidia-smi >/dev/null 2>&1 || echo constraints/cpu.txt)
PIP_INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check $(addprefix -c ,$(CONSTRAINTS))

.PHONY: demo test check lint clean

demo: $(VENV)/installed
	$(BIN)/ltxgen +recipe=ltx23_two_stage model=ltx23_tiny request=demo stages.base.steps=8
	@echo "The weights of this model are random: it shows that everything runs, not what LTX-2.3 can do."

test: $(VENV)/installed-dev
	$(BIN)/python -m pytest -n logical --maxprocesses 4 --dist loadfile

check: lint test

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) build dist .ruff_cache .mypy_cache

$(VENV)/installed: pyproject.toml $(wildcard constraints/*.txt)
	$(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) $(if $(CONSTRAINTS),$(shell grep -h '^torch' $(CONSTRAINTS)))
	$(PIP_INSTALL) -e .
	@touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(PIP_INSTALL) -e '.[dev]'
	@touch $@
