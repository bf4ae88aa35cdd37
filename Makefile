# make bench | test | check | format | perf; each makes .venv first and uses it again the next time.

VENV   := .venv
STAMP  := $(VENV)/.installed
BUDGET ?= quick
SEEDS  ?= 1
# Other libraries, timed beside ours.
PEERS  := .venv-peers
RESULTS ?= results
# Code blocks in Markdown are set for people.
FORMAT := $(VENV)/bin/ruff format --extend-exclude '*.md'
# Test processes beside each other; each test has one thread.
WORKERS ?= $(shell n=$$(nproc 2>/dev/null || echo 1); [ $$n -gt 4 ] && echo 4 || echo $$n)

.PHONY: bench test check format perf
.DELETE_ON_ERROR:

bench: $(STAMP)
	$(VENV)/bin/rlflow matrix core --budget $(BUDGET) --seeds $(SEEDS) --results $(RESULTS)

test: $(STAMP)
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(VENV)/bin/python -m pytest -n $(WORKERS) $(ARGS)

check: $(STAMP)
	$(FORMAT) --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy

format: $(STAMP)
	$(FORMAT) .
	$(VENV)/bin/ruff check --fix .

perf: $(STAMP) $(PEERS)/.installed
	$(VENV)/bin/python tests/benchmarks/perf_control.py --peer $(PEERS)/bin/python $(ARGS)
	$(VENV)/bin/python tests/benchmarks/perf_reasoning.py --peer $(PEERS)/bin/python $(ARGS)
	$(VENV)/bin/python -m tests.benchmarks.perf_image

$(PEERS)/.installed: tests/benchmarks/peers/requirements.txt $(STAMP)
	$(VENV)/bin/python -m venv --clear $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet --requirement $<
	@touch $@

$(STAMP): pyproject.toml constraints.txt scripts/environment.sh
	scripts/environment.sh $(VENV)
	@touch $@
