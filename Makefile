# Every target works in a fresh clone with nothing installed but Python 3.11 or 3.12 and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CONFIG ?= scenes
REDRAFT_VLLM_ENV ?= .venv-vllm
TEST_PROCESSES ?= 2
# uv sees local wheels only through this variable. Where there are none, it picks torch's build for this host:
# CPU where there is no GPU, CUDA where there is one.
export UV_FIND_LINKS := $(or $(UV_FIND_LINKS),$(PIP_FIND_LINKS))
TORCH := $(if $(UV_FIND_LINKS),,--torch-backend auto)

.PHONY: run test test-slow test-vllm lint bench results trials ui clean install

run: install  ## the whole loop on the scene world: about a quarter of an hour on two cores
	$(BIN)/redraft run --config $(CONFIG)

test: install  ## all tests but those that need a GPU, a vLLM server or many minutes; a file's tests stay together
	$(BIN)/pytest -n $(TEST_PROCESSES) --dist loadfile

test-slow: install
	$(BIN)/pytest -m slow

test-vllm: install $(REDRAFT_VLLM_ENV)/.installed  ## a real vLLM on the CPU, in an environment of its own: 3.5 GB
	REDRAFT_VLLM_ENV=$(abspath $(REDRAFT_VLLM_ENV)) $(BIN)/pytest -m vllm

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: install  ## writes tests/results/benchmarks/*.json, and the README's table from them; wants a machine of its own
	$(BIN)/python -m tests.benchmarks.bench_drafting --out tests/results/benchmarks/drafting.json
	$(BIN)/python -m tests.benchmarks.bench_decode --out tests/results/benchmarks/decode.json
	$(BIN)/python -m tests.benchmarks.bench_pairs --out tests/results/benchmarks/pairs.json
	$(BIN)/python -m tests.benchmarks.bench_ingest --out tests/results/benchmarks/ingest.json
	$(BIN)/python -m tests.benchmarks.bench_expert --out tests/results/benchmarks/expert.json
	$(BIN)/python -m tests.benchmarks.bench_prompt_cache --out tests/results/benchmarks/prompt_cache.json
	$(BIN)/python -m tests.benchmarks.bench_train_step --out tests/results/benchmarks/train_step.json
	$(BIN)/python -m tests.benchmarks.bench_memory_planner --out tests/results/benchmarks/memory_planner.json
	$(BIN)/python -m tests.benchmarks.bench_corruption --out tests/results/benchmarks/corruption.json
	$(BIN)/python -m tests.benchmarks.bench_assembly --out tests/results/benchmarks/assembly.json
	$(BIN)/python -m tests.benchmarks.bench_reading --out tests/results/benchmarks/reading.json
	$(BIN)/python -m tests.benchmarks.parity --out tests/results/parity.json
	$(BIN)/python -m tests.benchmarks.table --readme README.md

results: install  ## the experiments over three seeds: 40 minutes of processor time a seed, and 20 for RD-15; a seed that is there is not repeated
	$(BIN)/redraft experiment RD-2 RD-3 RD-5 RD-7 RD-15 prompt-attention approximate-decoding --out tests/results/experiments --readme README.md

trials: install  ## the learning rates that were tried on the dev scenes of seed 0: an hour
	$(BIN)/redraft experiment trials --seeds 0 --out tests/results/experiments

ui: install
	$(BIN)/redraft ui

clean:
	rm -rf $(VENV) .venv-vllm build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml infra/constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet "$$(grep '^uv==' infra/constraints.txt)"
	$(BIN)/uv pip install --quiet --python $(BIN)/python -c infra/constraints.txt $(TORCH) -e '.[dev]'
	touch $@

$(REDRAFT_VLLM_ENV)/.installed: infra/vllm/install.sh infra/vllm/constraints.txt infra/vllm/torchvision_ops.py
	PYTHON=$(PYTHON) infra/vllm/install.sh $(REDRAFT_VLLM_ENV)
