# Each target makes its own environment when there is none; nothing else has to be set up.
PYTHON ?= python3.11
VENV ?= .venv
BIN = $(VENV)/bin
PIP = $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test test-all mutants wheel test-wheel lint bench docs figures clean

demo: $(VENV)/.demo
	$(BIN)/tokenry demo

test: $(VENV)/.dev
	$(BIN)/pytest -n auto --dist worksteal

# What takes minutes more: the documentation, and the wheel in fresh environments.
test-all: test lint docs test-wheel

# One small fault at a time in the files changed since a commit: which ones does no test notice?
mutants: $(VENV)/.dev
	$(BIN)/python tests/mutants.py --since $(SINCE)

wheel: | $(VENV)/bin/python
	rm -rf dist
	$(BIN)/python -m pip install --quiet --disable-pip-version-check build
	$(BIN)/python -m build --quiet --wheel

# The wheel is tried in fresh environments, without the clone.
test-wheel: wheel
	$(BIN)/python tests/wheel.py dist/*.whl 3.11 3.12 3.13

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

# The peers live in an environment of their own: their pins are not ours.
bench: $(VENV)/.dev .venv-peers/.peers .venv-kvpress/.peers
	$(BIN)/python benchmarks/fused.py
	TOKENRY_PEER_PYTHON=.venv-peers/bin/python $(BIN)/python benchmarks/constraints.py
	TOKENRY_PEER_PYTHON=.venv-peers/bin/python $(BIN)/python benchmarks/bytes.py
	$(BIN)/python benchmarks/exactness.py
	$(BIN)/python benchmarks/speculation.py
	$(BIN)/python benchmarks/cache.py decode
	$(BIN)/python benchmarks/cache.py quality
	TOKENRY_PEER_PYTHON=.venv-kvpress/bin/python $(BIN)/python benchmarks/cache.py budgets
	$(BIN)/python benchmarks/prefill.py
	$(BIN)/python benchmarks/compress.py
	$(BIN)/python benchmarks/preference_step.py
	$(BIN)/python benchmarks/policy_step.py --lora

docs: $(VENV)/.docs
	$(BIN)/python docs/build.py
	$(BIN)/mkdocs build --strict

$(VENV)/bin/python:
	@command -v $(PYTHON) >/dev/null || { echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade "pip>=24.1"

$(VENV)/.demo: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) -e ".[train,app,plots]"
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) -e ".[dev]"
	@touch $@

# The tables are made from the roles, for which every module is imported, whatever extra it needs.
$(VENV)/.docs: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) -e ".[dev,docs]"
	@touch $@

.venv-peers/.peers: | $(VENV)/bin/python
	$(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	.venv-peers/bin/python -m pip install --quiet --disable-pip-version-check genlm-control==0.4.1 genlm-bytes==0.2.0 'outlines==1.3.*'
	@touch $@

# kvpress wants an older transformers than genlm does.
.venv-kvpress/.peers: | $(VENV)/bin/python
	$(PYTHON) -m venv .venv-kvpress
	.venv-kvpress/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	.venv-kvpress/bin/python -m pip install --quiet --disable-pip-version-check kvpress==0.5.5 gguf
	@touch $@

clean:
	rm -rf $(VENV) .venv-peers .venv-kvpress site dist demo/report.html demo/run
