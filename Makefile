# SPDX-License-Identifier: LGPL-2.1-or-later

# The distribution's Python comes first: its python3-* packages serve no other.
PYTHON := $(shell for p in /usr/bin/python3 python3 python3.14 python3.13 python3.12 python3.11; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo "$$p"; break; }; done)

# These reach packaging/run through the environment, whole, so that no shell splits a path or a prompt.
export REPO N AGENT MACHINE I ARGS

.DEFAULT_GOAL := help
.PHONY: help run stop attach ctl test test-quick lint bench deb clean python

help:
	@echo 'ccorch: run a team of coding agents the way Linux runs services'
	@echo
	@echo 'Try it (installs what is missing after asking, uses nobody'"'"'s account):'
	@echo '  make run                    five demo agents at work in a sample repository'
	@echo '      REPO=path                 in your own repository (each agent gets its own branch)'
	@echo '      N=5                       how many agents'
	@echo '      AGENT=demo|claude         which agent (demo needs no account)'
	@echo '      MACHINE=vm                in a virtual machine, which needs no privilege'
	@echo '  make attach I=NAME          look at one of them (detach: Ctrl-b d)'
	@echo '  make ctl ARGS="..."         run ccorchctl in there, e.g. ARGS="instance list"'
	@echo '  make stop                   end it all; branches that hold work stay'
	@echo
	@echo 'Work on it:'
	@echo '  make test-quick             lint, unit and bus tests: no machine needed'
	@echo '  make test                   everything, in booted machines too'
	@echo '  make test TIERS="unit vm"   only these tiers'
	@echo '  make lint                   ruff, mypy and the rules of the house'
	@echo '  make bench                  measure launch overhead, memory, hook latency'
	@echo '  make deb                    build the Debian package into build/'
	@echo '  make clean                  remove build/ and caches of tools'

python:
	@test -n '$(PYTHON)' || \
		{ echo 'ccorch needs Python 3.11 or newer; on Debian 12 and later: apt install python3' >&2; exit 1; }

run stop attach ctl: python
	@$(PYTHON) packaging/run $@

test: python
	@$(PYTHON) packaging/test run $(TIERS)

test-quick: python
	@$(PYTHON) packaging/test quick

lint: python
	@$(PYTHON) packaging/test run lint

bench: python
	@$(PYTHON) packaging/test bench

deb: python
	@$(PYTHON) packaging/deb.py

clean:
	rm -rf build .pytest_cache .mypy_cache .ruff_cache .coverage .coverage.*
	find ccorchd ccorchctl web tests packaging -name __pycache__ -type d -prune -exec rm -rf {} +
