PY ?= python3
BIN := .venv/bin
CORES := strategies/algorithms/*,strategies/arrays.py,strategies/combine.py,strategies/dp/*,strategies/encodings.py,strategies/fixed_point.py,strategies/guards.py,strategies/he/messages.py,strategies/he/packing.py,strategies/he/trust.py,strategies/keystream.py,strategies/ledger.py,strategies/option.py,strategies/options.py,strategies/round.py,strategies/secagg/client.py,strategies/secagg/client_state.py,strategies/secagg/fields.py,strategies/secagg/graph.py,strategies/secagg/grouped.py,strategies/secagg/helper.py,strategies/secagg/keys.py,strategies/secagg/masking.py,strategies/secagg/messages.py,strategies/secagg/one_shot.py,strategies/secagg/one_shot_keys.py,strategies/secagg/one_shot_messages.py,strategies/secagg/server.py,strategies/secagg/shamir.py,ota/build/gates.py,ota/build/line.py,ota/delta/*,ota/device/acceptance.py,ota/device/decision.py,ota/device/conditions.py,ota/device/effects.py,ota/device/handlers.py,ota/device/machine.py,ota/device/opsets.py,ota/device/probation.py,ota/device/profile.py,ota/observe/baseline.py,ota/observe/summary.py,ota/release/approval.py,ota/release/manifest.py,ota/release/method.py,ota/release/software.py,ota/rollout/*,server/round_privacy.py

.DEFAULT_GOAL := help
.PHONY: help venv demo test test-slow coverage check fmt goldens bench docs clean

help:  ## list the commands
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

venv: .venv/.installed  ## make .venv with everything installed
.venv/.installed: pyproject.toml setup.py constraints.txt
	test -x $(BIN)/python || $(PY) -m venv .venv
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[all,dev]'
	@touch $@

demo: venv  ## the whole loop on this machine, in .demo
	$(BIN)/wildflower demo --dir .demo

test: venv  ## the ordinary suite; holds the cores at 100 % branch coverage
	$(BIN)/coverage erase
	$(BIN)/pytest -q -n 2 --dist loadfile --cov --cov-report= -m "not slow"
	$(BIN)/coverage report --include='$(CORES)' --fail-under=100

test-slow: venv  ## the slow suite; SAMPLE=seconds draws a sample that fits
	$(BIN)/pytest -q -m slow $(if $(SAMPLE),--sample=$(SAMPLE))

coverage: venv  ## both suites, child processes too; holds the whole at 95 %
	$(BIN)/coverage erase
	COVERAGE_PATCH=subprocess $(BIN)/pytest -q -n 2 --dist loadfile --cov --cov-report=
	$(BIN)/coverage report --fail-under=95

check: venv  ## format, lint, types, import contracts, doctests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy tests benchmarks
	PYTHONPATH=src $(BIN)/lint-imports
	$(BIN)/pytest -q src/wildflower README.md docs -p no:randomly

fmt: venv  ## let ruff format and fix
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

goldens: venv  ## rewrite golden files and the diagrams in docs/
	$(BIN)/pytest -q -m "not slow" --update-goldens

bench: venv  ## every benchmark, quickly
	for name in $$(ls benchmarks/*.py | xargs -n1 basename | sed 's/.py//' | grep -v '^_'); do $(BIN)/python -m benchmarks.$$name --quick || exit 1; done

docs: venv  ## the pages in docs/, their examples run
	$(BIN)/pytest -q README.md docs tests/test_docs.py

clean:  ## remove what the other commands made
	rm -rf .venv .demo .coverage* .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache *.egg-info build dist
	find . -name __pycache__ -prune -exec rm -rf {} +
