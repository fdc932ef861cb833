# The two commands are `make all` and `make test`; both set up .venv/ first. `make help` says the rest.

PYTHON ?= python3
LOCK ?= envs/cpu.txt
PIP_ARGS ?=
ARGS ?=
PRESET ?=
TESTS ?=
# Two workers of one thread each; a finished workflow is shared by the tests of its file (tests/conftest.py).
PARALLEL ?= -n 2 --dist loadfile --no-loadscope-reorder

# A setting that there is not would be ignored, and the default run started.
SETTINGS := PYTHON LOCK PIP_ARGS ARGS PRESET TESTS PARALLEL BENCH_ARGS
UNKNOWN := $(strip $(foreach v,$(.VARIABLES),$(if $(filter command,$(firstword $(origin $v))),$(filter-out $(SETTINGS),$v))))
$(if $(UNKNOWN),$(error make knows no setting $(UNKNOWN): it has $(SETTINGS); a config of your own is ARGS="--configfile your.yaml"))

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help all preset preflight docs test coverage test-quick check bench test-gemma-7b test-slurm slurm-profile slurm-cancel setup format lock clean-env

VENV := .venv
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
export PIP_DISABLE_PIP_VERSION_CHECK := 1
unexport PYTHONPATH PYTHONHOME

help:
	@echo 'make all        set up, run the default workflow, show its tables; again: does nothing and says so'
	@echo '                PRESET=gemma-3-270m-cpu runs a preset (localized-unlearning presets lists them);'
	@echo '                ARGS="--dry-run" goes to snakemake'
	@echo 'make preflight PRESET=gemma-7b   what a run takes and what it lacks, before it is started'
	@echo 'make test       set up, then lint, format, types, import rules, the linter of Snakemake, and all tests'
	@echo 'make test-quick the tests of a minute; TESTS=tests/unit/test_data.py takes a file or a folder'
	@echo 'make coverage   all tests, with the lines and branches that they do not reach'
	@echo 'make check      what make test does before its tests'
	@echo 'make test-gemma-7b   every stage through the presets of Gemma-7B, on a narrow random model'
	@echo 'make test-slurm   the workflow through a real Slurm, which it installs and starts (Debian, as root)'
	@echo 'make slurm-profile   put profiles/slurm where snakemake --profile slurm looks (docs/running-on-slurm.md)'
	@echo "make slurm-cancel   cancel this checkout's Slurm jobs, as after a killed Snakemake"
	@echo 'make setup      only make .venv/ from $(LOCK)'
	@echo '                PYTHON=python3.12 takes another Python; LOCK=envs/cuda.txt is for a CUDA machine'
	@echo '                PIP_ARGS="--index-url https://my.mirror/simple" goes to pip'
	@echo 'make bench      measure speed and memory beside what a user would otherwise run (20 minutes); docs/performance.md'
	@echo 'make docs       build the documentation site in site/'
	@echo 'make format     format the code and the rules'
	@echo 'make lock       make the locks in envs/ again from envs/direct.txt'
	@echo 'make clean-env  remove .venv/'

# ---- environment

setup: $(VENV)/.installed

$(VENV)/.installed: $(LOCK) pyproject.toml
	@tools/setup.sh $(PYTHON) $(LOCK) $(VENV) $(PIP_ARGS)
	@touch $@

clean-env:
	@rm -rf $(VENV) && echo 'Removed $(VENV)/'

# ---- the workflow

OVERLAY = $(if $(PRESET),--configfile workflow/presets/$(PRESET).yaml)
LAYERS = $(if $(PRESET),--preset $(PRESET))

# An unknown preset ends here, with the names that there are.
preset: setup
	@$(if $(PRESET),localized-unlearning presets $(PRESET) > /dev/null)

all: preset
	@snakemake --profile profiles/local all $(ARGS) $(OVERLAY) 2>&1
	@$(if $(filter -n --dry-run --configfile%,$(ARGS)),true,localized-unlearning report $(LAYERS) && localized-unlearning summary $(LAYERS))

# What a run takes and what it lacks, before it is started: make preflight PRESET=gemma-7b
preflight: preset
	@localized-unlearning preflight $(LAYERS)

# ---- benchmark: ours beside what a user would otherwise run; writes docs/performance.md at the end, or nothing

BENCH_MODEL := results/gemma-3-270m-cpu/base0/base_model
BENCH_ARGS ?=

bench: setup $(VENV)/bench/.installed
	@[ -d $(BENCH_MODEL) ] || snakemake -c1 $(BENCH_MODEL) --configfile workflow/presets/gemma-3-270m-cpu.yaml
	@python -m benchmarks --model $(BENCH_MODEL) $(BENCH_ARGS)
	@python -m benchmarks.methods --model $(BENCH_MODEL)

$(VENV)/bench/.installed: envs/bench.txt | setup
	@rm -rf $(VENV)/bench
	@echo "Setting up $(VENV)/bench/ from envs/bench.txt"
	@pip install --quiet --no-deps --target $(VENV)/bench $(PIP_ARGS) -r envs/bench.txt
	@touch $@

# ---- documentation: site/ from docs/, without a network once its tools are there

docs: $(VENV)/docs/.installed
	@NO_MKDOCS_2_WARNING=1 $(VENV)/docs/bin/mkdocs build --quiet
	@python tools/site.py site && echo 'open site/index.html in a browser; its search needs a server: python3 -m http.server -d site'

$(VENV)/docs/.installed: envs/docs.txt | setup
	@echo "Setting up $(VENV)/docs/ from envs/docs.txt: 60 MB to fetch"
	@$(PYTHON) -m venv --clear $(VENV)/docs
	@$(VENV)/docs/bin/pip install --quiet --no-compile $(PIP_ARGS) -r envs/docs.txt
	@touch $@

# ---- checks

test: check
	@echo '== pytest';             pytest $(PARALLEL) --durations=15 $(TESTS)

# The same tests with the lines and branches that they reach; counting them takes a third more time.
coverage: setup
	@pytest $(PARALLEL) --cov --cov-report=term:skip-covered $(TESTS)

# What a change is tried with many times an hour: no Snakemake, nothing over some five seconds.
test-quick: setup
	@pytest $(PARALLEL) -m 'not slow and not workflow' --durations=15 $(TESTS)

check: setup
	@echo '== ruff check';         ruff check --quiet
	@echo '== ruff format';        ruff format --check --quiet src tests benchmarks || { echo 'run: make format'; exit 1; }
	@echo '== mypy';               mypy --no-error-summary
	@echo '== import rules';       ! grep -q importlinter pyproject.toml || said=$$(lint-imports) || { echo "$$said"; exit 1; }
	@echo '== shellcheck';         shellcheck tools/*.sh .ci/run
	@echo '== snakefmt';           snakefmt --check Snakefile workflow 2>&1 || { echo 'run: make format'; exit 1; }
	@echo '== snakemake --lint';   snakemake --lint

# Apart from `make test`: some three hundred jobs, on a random model of Gemma-7B's architecture.
test-gemma-7b: setup
	@pytest -q -rs --durations=0 tests/gemma_7b

# Apart from `make test`: it installs Slurm and runs for some ten minutes.
test-slurm: setup
	@pytest -q -rs --durations=0 tests/slurm

slurm-profile: setup
	@localized-unlearning install-profile

slurm-cancel:
	@tools/slurm-cancel.sh

format: setup
	@ruff check --quiet --fix src tests benchmarks || true
	@ruff format src tests benchmarks
	@snakefmt Snakefile workflow

# Versions that envs/direct.txt does not name stay, unless PIP_ARGS="--upgrade" or "--upgrade-package NAME" says otherwise.
lock: setup
	@tools/lock.sh $(PIP_ARGS)
