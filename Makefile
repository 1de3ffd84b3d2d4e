# Every command of this repository; CI calls nothing else. `make` alone lists them.

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# The first Python that is new enough; 3.11 is the one that constraints.txt was made with.
PYTHON ?= $(shell for python in python3.11 python3.12 python3.13 python3; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	&& echo $$python && break; done)
# The Kubernetes of the tests, in namespaces of its own.
CLUSTER := PYTHONPATH=tests $(BIN)/python -m cluster
# More arguments for pytest, for example ARGS='-k graph -x'.
ARGS ?=

# Of the tests, each a pytest of its own: the long ones first, the short ones fill what is left.
PARTS := test-live test-children test-stages test-others test-trainer test-cli

# Ranks and threads would otherwise ask for more cores than there are; no test may use a network.
export OMP_NUM_THREADS ?= 1
export TOKENIZERS_PARALLELISM ?= false
test test-all $(PARTS) test-architectures test-chosen: export HF_HUB_OFFLINE := 1

.PHONY: help venv check fmt lint types imports test generate verify models demo arithmetic critic
.PHONY: test-all $(PARTS) test-architectures test-chosen
.PHONY: end-to-end cluster-build cluster-up cluster-down

help: ## List these commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

venv: $(STAMP) ## Make .venv with everything that development, tests and the demo need

$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo 'no Python 3.11 or newer found; name one: make PYTHON=...' >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
		--constraint constraints.txt --editable '.[dev]'
	@touch $@

check: verify lint types imports ## Everything that `make test` does but for the tests

fmt: venv ## Format the code and mend what can be mended
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lint: venv ## Look for mistakes of code and spelling
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell

types: venv ## Check the types (mypy, strict)
	$(BIN)/mypy

imports: venv ## Check who imports whom
	$(BIN)/lint-imports

test: verify lint types imports cluster-build $(if $(ARGS),test-chosen,test-all) ## Everything, as CI does; as root also whole runs on two nodes (installs Debian packages)

# Four at a time: training keeps two processors busy, and the tests of the live operator mostly wait.
test-all: cluster-build
	$(MAKE) --no-print-directory --keep-going --jobs=4 --output-sync=target $(PARTS)
	$(CLUSTER) test -- $(NODE_TESTS)

test-trainer: venv
	$(BIN)/pytest $(TRAINER_TESTS) $(addprefix --ignore=,$(STAGE_TESTS))

test-stages: venv
	$(BIN)/pytest $(STAGE_TESTS)

test-live: venv
	$(BIN)/pytest $(LIVE_TESTS) $(addprefix --ignore=,$(CHILD_TESTS))

test-children: venv
	$(BIN)/pytest $(CHILD_TESTS)

test-architectures: venv ## Of the tests: each architecture against transformers, each field of the stages by hand
	$(BIN)/pytest -n 2 $(TRAINER_TESTS)/models/test_matrix.py $(TRAINER_TESTS)/fields -m 'not ignores_a_field'

test-cli: venv
	$(BIN)/pytest $(CLI_TESTS)

test-others: venv
	$(BIN)/pytest $(WITHOUT_NODES) $(addprefix --ignore=,$(TRAINER_TESTS) $(LIVE_TESTS) $(CLI_TESTS))

test-chosen: cluster-build
	$(BIN)/pytest $(WITHOUT_NODES) $(ARGS)

TRAINER_TESTS := tests/rlhf_trainer
# Those of the trainer's tests that run whole stages.
STAGE_TESTS := $(addprefix $(TRAINER_TESTS)/,ablations fields ppo stages)
CLI_TESTS := tests/rlhf_cli
LIVE_TESTS := tests/rlhf_operator/live
# Those of the live operator's tests that bring about what keeps its children from coming or going.
CHILD_TESTS := $(patsubst %,$(LIVE_TESTS)/test_%.py,admission deletions hidden_children injected \
	kept_attempts missing_rights refusals troubleshooting)
WITHOUT_NODES := --ignore=tests/end_to_end --ignore=tests/cluster/test_nodes.py

# What a clean checkout must show on nodes; the rest of end_to_end takes longer.
NODE_TESTS := tests/cluster/test_nodes.py tests/end_to_end/test_quickstart.py \
	tests/end_to_end/test_stages.py

end-to-end: cluster-build ## Train on two nodes (root): whole runs, killed pods, lost nodes, an alert that fires
	$(CLUSTER) test -- tests/end_to_end $(ARGS)

cluster-build: venv ## Build what the test cluster and the images need; the rest works offline
	$(CLUSTER) build

cluster-up: venv ## Start a two-node Kubernetes on this machine (root); prints the KUBECONFIG
	@$(CLUSTER) up

cluster-down: venv ## End that Kubernetes and leave nothing behind
	$(CLUSTER) down

generate: venv ## Make the CRD, the chart's parts and the pages that come from the code anew
	$(BIN)/python -m rlhf_api all
	$(BIN)/python -m rlhf_chart all

verify: venv ## Fail if a generated file is stale
	$(BIN)/python -m rlhf_api all --check
	$(BIN)/python -m rlhf_chart all --check

models: venv ## Measure every architecture against transformers, and write docs/models.md
	PYTHONPATH=tests $(BIN)/python -m model_page models

critic: venv ## Measure the critic with each remedy and without (35 runs), and write docs/critic.*
	$(BIN)/python benchmarks/critic_stability.py --json docs/critic.json --plot docs/critic.png \
		--page docs/critic.md docs/adr/0007-rewards-are-scaled-as-a-whole.md

demo: venv ## Train SFT, reward model and PPO on Chinese shop reviews, and judge the result
	$(BIN)/python examples/zh_reviews.py prepare
	$(BIN)/rlhf run examples/zh-reviews.yaml --workdir runs/
	$(BIN)/python examples/zh_reviews.py judge runs/zh-reviews

arithmetic: venv ## Train on careless sums with a reward that checks them, and count the right ones
	$(BIN)/python examples/arithmetic.py prepare
	$(BIN)/rlhf run examples/arithmetic.yaml --workdir runs/
	$(BIN)/python examples/arithmetic.py judge runs/arithmetic
