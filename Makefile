# `make` lists the targets. Every target sets up what it needs first, so each works on a fresh clone.

PYTHON := venv/bin/python
SEED ?= 0
SEEDS ?= 0 1 2
# stages of the shoot-out at a time: two cores do more with a program each than with both on one
JOBS ?= 2
DATA_SEED ?= 0
COUNT ?= 20000
KILLS ?= 20
METHOD ?= ppo
BENCH ?= scorer startup data update sampler step memory growth
# FLAGS goes to the driver (make demo FLAGS=--quick_test), TESTS to pytest (make test TESTS=tests/unit).
FLAGS ?=
TESTS ?= tests
# Tests of the data, the program language and the rewards.
COVERING := tests/unit tests/stages/test_00_01.py tests/stages/test_02_build_rewards.py tests/stages/test_damaged_data.py

.DEFAULT_GOAL := help
.PHONY: help setup demo shootout train_smoke train_quick train_full check test test-fast coverage fuzz campaign bench bench-page lint typecheck status tensorboard clean dev

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile

setup: ## make or update venv/ (quick when nothing changed)
	@./setup.sh

dev:
	@./setup.sh --extras dev

demo: setup ## SFT, GRPO and their comparison on the embedded model and data: make demo SEED=7 DATA_SEED=11
	$(PYTHON) 12_driver.py --method grpo --task finqa_mini --config configs/models/llama-tiny.yaml \
		--seed $(SEED) --data_seed $(DATA_SEED) $(FLAGS)

# SEED alone is of one run; SEEDS are of the comparison.
shootout: setup ## PPO, GRPO, RLOO and DPO from one SFT, over seeds: make shootout SEEDS="0 1 2"
	$(PYTHON) 12_driver.py --method all --seeds $(SEEDS) --task finqa_mini --config configs/models/llama-tiny.yaml \
		--data_seed $(DATA_SEED) --jobs $(JOBS) $(FLAGS)

# The small loop of reinforcement learning: continuations of made-up reviews that shall read as positive.
SENTIMENT = $(PYTHON) 12_driver.py --task sentiment --config configs/models/llama-tiny.yaml \
	--seed $(SEED) --data_seed $(DATA_SEED)

train_smoke: setup ## PPO on the sentiment task with all controls, a minute or two: make train_smoke SEED=42
	$(SENTIMENT) --method ppo --quick_test --max_minutes 0.5 $(FLAGS)

train_quick: setup ## the same with all records and ten steps
	$(SENTIMENT) --method ppo --steps 10 $(FLAGS)

train_full: setup ## the same with all thirty steps (of all methods: make train_full METHOD=all)
	$(SENTIMENT) --method $(METHOD) $(FLAGS)

check: setup ## what this machine has, what is missing, what `make demo` would run
	@$(PYTHON) 12_driver.py doctor

test: dev ## every test, the fast ones first
	$(PYTHON) -m pytest $(TESTS)

test-fast: dev ## tests that take seconds
	$(PYTHON) -m pytest -m "not slow" $(TESTS)

# Branches alone: the total that coverage reports counts statements too.
coverage: dev ## branch coverage of utils/finqa and utils/rewards by the tests that are fast, 95 % at least
	$(PYTHON) -m coverage run --branch --source=utils/finqa,utils/rewards -m pytest -m "not slow" $(COVERING)
	$(PYTHON) -m coverage report --show-missing
	@$(PYTHON) -m coverage json -q -o - | $(PYTHON) -c 'import json, sys; t = json.load(sys.stdin)["totals"]; \
		share = 100 * t["covered_branches"] / t["num_branches"]; \
		sys.exit(f"branches: {share:.1f} %, at least 95 are wanted" if share < 95 else print(f"branches: {share:.1f} %"))'

fuzz: setup ## mutated programs and completions through parser, executor and reward: make fuzz COUNT=1000000 SEED=1
	$(PYTHON) -m tools.fuzz --count $(COUNT) --seed $(SEED)

campaign: dev ## kill -9 at random moments of every trainer, --resume, compare bytes: make campaign KILLS=20 SEED=0
	$(PYTHON) -m tools.campaign --kills $(KILLS) --seed $(SEED) $(FLAGS)

bench: setup ## measure beside opponents: make bench BENCH="update sampler" FLAGS="--model 60M --dtype bf16"
	@for name in $(BENCH); do $(PYTHON) -m benchmarks.$$name $(FLAGS) || exit 1; done

bench-page: setup ## write docs/benchmarks.md from benchmarks/results/
	$(PYTHON) -m benchmarks.table --output docs/benchmarks.md

lint: dev ## ruff, format included, and a syntax check of the shell scripts
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	@for script in *.sh .ci/run; do bash -n "$$script" || exit 1; done

typecheck: dev ## mypy --strict on the scripts, utils and tools
	$(PYTHON) -m mypy $(wildcard *.py) utils tools benchmarks

status: dev ## write docs/status.md from docs/checklist_ids.txt and docs/status.yaml
	$(PYTHON) -m tools.make_status

tensorboard: setup ## curves of all runs that were started with --report_to tensorboard
	$(PYTHON) -m tensorboard.main --logdir outputs

clean: ## remove caches; runs, data and venv/ stay
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './venv/*' -type d -exec rm -rf {} +
