# make demo, make test: everything they need is set up in .venv on the first call
PYTHON ?= python3
BIN := .venv/bin
# what the demo may use; tests and examples need all extras
EXTRAS := safetensors,report,mlflow,tensorboard,keras,serve
RUN := $(shell date +%Y%m%d-%H%M%S)
# where it is set, each of the hundreds of processes of a run compiles fedray anew
export PYTHONDONTWRITEBYTECODE :=

.PHONY: setup dev demo test quick chaos kills edge-faults attacks faults pairs bench soak messages docs package clean

setup: .venv/.ready

.venv/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[$(EXTRAS)]"
	touch $@

dev: .venv/.dev

.venv/.dev: .venv/.ready
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[all,dev]"
	touch $@

demo: setup
	$(BIN)/fedray run jobs/mnist_fedavg.yaml name=demo-$(RUN)

# three files at a time on two cores: a third of the time is waiting for processes
test: dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

# while one works: no cluster, nothing slow; under two minutes
quick: dev
	$(BIN)/ruff check .
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not ray and not slow and not chaos"

# every fault at every stage of a round; puts what came of it into docs/failures.md
chaos: dev
	$(BIN)/python -m pytest tests/chaos -m "chaos or not chaos" -k same_bits

# edge, door, EdgeGroup, aggregator, driver killed at every stage of an edge's part
edge-faults: dev
	$(BIN)/python -m pytest tests/edges -m "chaos or not chaos"

# a sweep is killed, and its Ray, at ten random moments
kills: dev
	FEDRAY_SWEEP_KILLS=10 $(BIN)/python -m pytest tests/test_sweep.py -k killed_goes_on

# every attack on the REST service for a minute
attacks: dev
	FEDRAY_ATTACK_S=60 $(BIN)/python -m pytest tests/test_service_attacks.py -rP

# every write fails with every error, the power is cut at each; counts for docs/failures.md
faults: dev
	FEDRAY_ALL_FAULTS=1 $(BIN)/python -m pytest tests/test_disk_faults.py

# every pair and every triple of values of all settings; `make test` plays a share
pairs: dev
	FEDRAY_PAIRS=3 $(BIN)/python -m pytest tests/test_pairs.py

bench: dev
	$(BIN)/python benchmarks/benchmark.py

soak: dev
	$(BIN)/python benchmarks/soak.py

# messages.md: every message that a user can meet, collected while the tests run
messages: export FEDRAY_MESSAGES = $(CURDIR)/.messages
messages: export PYTHONPATH = $(CURDIR)/tests/support/everywhere
messages: dev
	rm -rf .messages
	-$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder
	$(BIN)/python tests/support/messages.py .messages messages.md

# the page of all config keys, the tables of the service's settings and of attacks
docs: setup
	$(BIN)/fedray config --markdown > docs/configuration.md
	$(BIN)/python tests/support/settings_table.py
	$(BIN)/python tests/support/attacks_table.py

# wheel and sdist in dist/
package: dev
	$(BIN)/python -m build --outdir dist

clean:
	rm -rf .venv dist
