# `make` alone says what there is. Everything is written below build/ and .venv, but Debian packages and, while a lab is
# up, the link /usr/local/bin/skerry.
NAME ?= default
HOSTS ?= 1
HOST ?= h1
REVISION ?= 1
export REVISION
PYTHON := .venv/bin/python -P
LAB := $(PYTHON) -m lab
PYTEST := $(PYTHON) -m pytest
# On a terminal and in CI alike: what is printed appears at once.
export PYTHONUNBUFFERED := 1

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help up down stop start status shell setup packages venv guest debs lab lab-down lab-box test lab-test bench check docs fmt clean

help: ## say what there is
	@echo "make TARGET [NAME=lab] [HOSTS=n] [HOST=h1]"
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  \1\t\2/' | expand -t 14

up: setup ## bring up a cloud on this machine with HOSTS hosts and a first VM
	@$(LAB) up --name $(NAME) --hosts $(HOSTS)

down: ## remove it without a trace; what is slow to make stays in build/
	@if [ ! -f .venv/skerry.stamp ] && [ -d build/lab ]; then $(MAKE) --no-print-directory setup; fi
	@if [ -f .venv/skerry.stamp ]; then $(LAB) down --name $(NAME); else echo "down: nothing was ever brought up here"; fi

stop: ## switch it off and keep its state
	@$(LAB) stop --name $(NAME)

start: ## switch it on again
	@$(LAB) start --name $(NAME)

status: ## say what runs
	@$(LAB) status --name $(NAME)

shell: ## open a shell inside host HOST
	@$(LAB) shell --name $(NAME) --host $(HOST)

setup: packages venv

packages: ## install the Debian packages that are missing (lab/packages.txt says which and why)
	@echo "packages: Debian packages of lab/packages.txt"
	@sh lab/packages.sh

venv: packages ## make .venv from requirements.lock
	@echo "venv: .venv from requirements.lock"
	@sh lab/venv.sh

guest: setup ## make the guest image build/guest/tiny.tar
	@$(LAB) guest

lab: setup ## bring up real hosts with Vagrant: a controller and HOSTS machines (2) with systemd, KVM and LVM
	@$(LAB) metal-up --hosts $(if $(filter command% environment%,$(origin HOSTS)),$(HOSTS),2)

lab-down: setup ## remove them without a trace; the box stays in build/
	@$(LAB) metal-down

lab-box: setup ## make the Debian disk of the real hosts in build/box
	@$(LAB) box

debs: venv ## make Skerry's own Debian packages in build/packages (REVISION=2 for a newer build)
	@echo "debs: wheel and Debian packages"
	@sh systemd/packages/build.sh

test: setup ## the whole gate and suite, as CI runs it (the tools of `make check` run as tests of tests/gate)
	@echo "test: gate, and everything that needs no real host, two at a time"
	@$(PYTEST) -n 2 --dist worksteal -m "not host and not lab"
	@echo "test: real hosts in namespaces, one after the other"
	@$(PYTEST) -m "host and not lab"

lab-test: setup ## the long runs on real hosts: plugs pulled, daemons killed
	@$(PYTEST) -m lab

bench: setup ## measure against the budgets; writes build/bench.json
	@$(PYTHON) -m tests.bench

check: ## formatting, lint, types and import contracts
	@echo "check: ruff, mypy, pyright, import contracts"
	@.venv/bin/ruff format --check -q .
	@.venv/bin/ruff check -q .
	@.venv/bin/mypy
	@.venv/bin/pyright
	@.venv/bin/lint-imports

docs: ## make docs/reference anew from the code
	@$(PYTHON) -m controller.reference

fmt: ## format and mend what can be mended
	@.venv/bin/ruff format .
	@.venv/bin/ruff check --fix .

clean: down ## remove the lab and everything in build/
	rm -rf build
