# make run    a throw-away mail server under ./var that sends itself a message (ARGS=--once: then ends)
# make test   everything the tests need, then format, lint, types and all the tests
# make lint   format, lint and types only        make docs   the generated pages
.PHONY: install install-dev run test test-programs lint pytest docs clean

VENV := .venv/bin
# pytest's own, such as TESTS="tests/ms -k uidlist"
TESTS ?=

install: .venv/.pymx

install-dev: .venv/.pymx-dev

.venv/.pymx: pyproject.toml scripts/make-venv
	@sh scripts/make-venv
	@touch $@

.venv/.pymx-dev: pyproject.toml scripts/make-venv
	@sh scripts/make-venv '[dev]'
	@touch $@ .venv/.pymx

run: install
	@$(VENV)/python -m pymx.demo $(ARGS)

test: test-programs lint pytest

test-programs:
	@sh scripts/install-test-programs

lint: install-dev
	$(VENV)/ruff format --check .
	$(VENV)/ruff check .
	$(VENV)/mypy

# -rs: what this machine can't run is listed with its reason. Exit status 5, no test ran, is a failure too.
# A process for each CPU; the tests of a file stay together, they share servers. In one order, so that what failed once
# can be made to fail again; SEED=random tries another, as pytest by itself does.
SEED ?= 2611

pytest: install-dev
	$(VENV)/pytest -rs -n auto --dist loadfile --randomly-seed=$(SEED) $(TESTS)

docs: install
	$(VENV)/python -m pymx.config.document settings > docs/settings.md
	$(VENV)/python -m pymx.config.document toml > config/pymx.toml

clean:
	rm -rf .venv var .mypy_cache .ruff_cache .pytest_cache .hypothesis
