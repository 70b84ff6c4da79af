# Two commands: `make quickstart` runs the main job, `make test` passes all checks.
PYTHON ?= python3
VENV   ?= .venv
TORCH  ?= torch==2.13.0
BIN    := $(VENV)/bin

.PHONY: quickstart test lint types layers unit audit secrets docs site clean

quickstart: $(VENV)/.installed
	$(BIN)/prerank run recipes/quickstart.toml

test: lint types layers unit

lint: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(VENV)/.dev
	$(BIN)/mypy

layers: $(VENV)/.dev
	$(BIN)/lint-imports

unit: $(VENV)/.dev
	$(BIN)/pytest

# Strict: a package that no advisory service knows fails, else "nothing found" would mean nothing.
# Builds such as torch's +cpu are looked up as the release that they are a build of.
audit: $(VENV)/.dev
	mkdir -p build
	$(BIN)/pip list --format=freeze --exclude-editable | sed 's/+.*//' > build/installed.txt
	$(BIN)/pip-audit --strict --no-deps --disable-pip --progress-spinner off -r build/installed.txt

secrets: $(VENV)/.dev
	git ls-files -z | xargs -0 $(BIN)/detect-secrets-hook --exclude-files '^benchmarks/results/.*'

docs: $(VENV)/.dev
	$(BIN)/python docs/generate.py

site: docs
	$(BIN)/mkdocs build --strict

# torch first and by its exact version: a bare `torch` may pull gigabytes of CUDA packages.
$(VENV)/.installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet "$(TORCH)"
	$(BIN)/pip install --quiet --editable .
	touch $@

$(VENV)/.dev: $(VENV)/.installed
	$(BIN)/pip install --quiet --editable ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache
