# The two commands are `make all` and `make test`; both set up .venv/ first. `make help` says the rest.

PYTHON ?= python3
LOCK ?= envs/cpu.txt
PIP_ARGS ?=
ARGS ?=

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help all test bench test-gemma-7b test-slurm slurm-profile slurm-cancel setup format lock clean-env

VENV := .venv
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
export PIP_DISABLE_PIP_VERSION_CHECK := 1
unexport PYTHONPATH PYTHONHOME

help:
	@echo 'make all        set up, run the default workflow, show its tables; again: does nothing and says so'
	@echo '                ARGS="--configfile workflow/presets/X.yaml" goes to snakemake'
	@echo 'make test       set up, then lint, format, types, the linter of Snakemake, and the tests'
	@echo 'make test-gemma-7b   every stage through the presets of Gemma-7B, on a narrow random model'
	@echo 'make test-slurm   the workflow through a real Slurm, which it installs and starts (Debian, as root)'
	@echo 'make slurm-profile   put profiles/slurm where snakemake --profile slurm looks (docs/running-on-slurm.md)'
	@echo "make slurm-cancel   cancel this checkout's Slurm jobs, as after a killed Snakemake"
	@echo 'make setup      only make .venv/ from $(LOCK)'
	@echo '                PYTHON=python3.12 takes another Python; LOCK=envs/cuda.txt is for a CUDA machine'
	@echo '                PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu" gets the small torch'
	@echo 'make bench      measure speed and memory beside what a user would otherwise run (20 minutes); docs/performance.md'
	@echo 'make format     format the code and the rules'
	@echo 'make lock       make the locks in envs/ again from envs/direct.txt'
	@echo 'make clean-env  remove .venv/'

# ---- environment

setup: $(VENV)/.installed

$(VENV)/.installed: $(LOCK) pyproject.toml
	@command -v $(PYTHON) > /dev/null || { echo "There is no '$(PYTHON)' here: install Python 3.11 or newer, or say make PYTHON=/path/to/python3"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; '$(PYTHON)' is $$($(PYTHON) -V 2>&1): say make PYTHON=/path/to/python3.11"; exit 1; }
	@echo "Setting up $(VENV)/ from $(LOCK) with $$($(PYTHON) -V): a few minutes the first time"
	@[ -x $(VENV)/bin/pip ] || $(PYTHON) -m venv --clear $(VENV) || { echo "No virtual environment could be made; on Debian and Ubuntu: apt-get install python3-venv"; exit 1; }
	@bash -c "$$INSTALL" setup $(LOCK) $(VENV)
	@touch $@

# One line every 20 s; pip's own words go to setup.log, whose end is shown if it fails.
define INSTALL
log=$$2/setup.log; total=$$(grep -c == "$$1"); : > "$$log"
{ while sleep 20 &> /dev/null; do state="$$(grep -c '^Collecting\|^Processing' "$$log") of $$total packages found"
  ! grep -q '^Installing collected' "$$log" || state="unpacking $$total packages"; echo "  $$state, $$SECONDS s gone"; done; } & beat=$$!
trap 'kill $$beat 2> /dev/null' EXIT
pip() { "$$venv/bin/pip" "$$@" >> "$$log" 2>&1 || { tail -n 25 "$$log"; echo "pip failed; all it said is in $$log"; exit 1; }; }
venv=$$2; pip install --progress-bar off $(PIP_ARGS) -r "$$1"; pip install --progress-bar off --no-deps -e .
echo "  installed in $$SECONDS s"
endef
export INSTALL

clean-env:
	@rm -rf $(VENV) && echo 'Removed $(VENV)/'

# ---- the workflow

all: setup
	@snakemake --profile profiles/local all $(ARGS) 2>&1 | bash -c "$$PROGRESS"
	@$(if $(filter -n --dry-run --configfile%,$(ARGS)),true,localized-unlearning summary --config config.yaml)

# Snakemake's lines without its scheduling chatter (all of it is in .snakemake/log), and with the time left: the
# pace of the later half of the finished steps, since the first ones (pretraining) are unlike the rest.
define PROGRESS
trap '' INT
clock() { printf '%d:%02d' $$(($$1 / 60)) $$(($$1 % 60)); }
at=(0)
while IFS= read -r line; do
  case $$line in
    '' | 'Select jobs to execute...' | 'Execute '*' jobs...' | 'Finished jobid: '* | '['???' '???' '*']') ;;
    'Assuming unrestricted shared'* | 'Using shell: '* | 'Provided cores: '* | 'Rules claiming more '*) ;;
    *' steps ('*'%) done')
      read -r n _ total _ <<< "$$line"
      at[n]=$$SECONDS; half=$$((n / 2)); left=
      if ((n >= 4 && n < total)); then
        left=", about $$(clock $$(((SECONDS - $${at[half]:-0}) * (total - n) / (n - half)))) left"
      fi
      echo "$$line, $$(clock $$SECONDS) gone$$left" ;;
    *) printf '%s\n' "$$line" ;;
  esac
done
endef
export PROGRESS

# ---- benchmark: ours beside what a user would otherwise run; writes docs/performance.md at the end, or nothing

BENCH_MODEL := results/gemma-3-270m-cpu/base_model
BENCH_ARGS ?=

bench: setup $(VENV)/bench/.installed
	@[ -d $(BENCH_MODEL) ] || snakemake -c1 $(BENCH_MODEL) --configfile workflow/presets/gemma-3-270m-cpu.yaml
	@python -m benchmarks --model $(BENCH_MODEL) $(BENCH_ARGS)

$(VENV)/bench/.installed: envs/bench.txt | setup
	@rm -rf $(VENV)/bench
	@echo "Setting up $(VENV)/bench/ from envs/bench.txt"
	@pip install --quiet --no-deps --target $(VENV)/bench $(PIP_ARGS) -r envs/bench.txt
	@touch $@

# ---- checks

test: setup
	@echo '== ruff check';         ruff check --quiet
	@echo '== ruff format';        ruff format --check --quiet src tests benchmarks || { echo 'run: make format'; exit 1; }
	@echo '== mypy';               mypy --no-error-summary
	@echo '== snakefmt';           snakefmt --check Snakefile workflow 2>&1 || { echo 'run: make format'; exit 1; }
	@echo '== snakemake --lint';   snakemake --lint
	@echo '== pytest';             pytest -q

# Apart from `make test`: some three hundred jobs, on a random model of Gemma-7B's architecture.
test-gemma-7b: setup
	@pytest -q -rs --durations=0 tests/gemma_7b

# Apart from `make test`: it installs Slurm and runs for some ten minutes.
test-slurm: setup
	@pytest -q -rs --durations=0 tests/slurm

slurm-profile: setup
	@localized-unlearning install-profile

slurm-cancel:
	@squeue --user "$$(id -un)" --noheader --format='%i|%Z' | awk -F'|' -v here="$(CURDIR)" '$$2 == here { print $$1 }' | xargs -r scancel

format: setup
	@ruff check --quiet --fix src tests benchmarks || true
	@ruff format src tests benchmarks
	@snakefmt Snakefile workflow

# ---- the locks: direct.txt installed into an empty environment, written down; every header is kept

lock:
	@bash -c "$$MAKE_LOCK" lock $(PYTHON) $(PIP_ARGS)

define MAKE_LOCK
set -euo pipefail
new=$$(mktemp -d); trap 'rm -rf "$$new"' EXIT
"$$1" -m venv "$$new/venv"; shift
"$$new/venv/bin/pip" install -q "$$@" -r envs/direct.txt
"$$new/venv/bin/pip" freeze --exclude-editable | sed -E 's/^(torch==[^+]+)\+.*/\1/' > "$$new/pins"
if grep -n ' @ ' "$$new/pins"; then echo 'a pin names a path'; exit 1; fi
for name in cpu cuda; do
  { sed -n '/^[#-]/p;/^$$/p' envs/$$name.txt; cat "$$new/pins"; } > "$$new/$$name.txt"
  { sed '/- pip:/q' envs/$$name.yaml; grep '^--' envs/$$name.txt | sed 's/^/      - /' || true; sed 's/^/      - /' "$$new/pins"; } > "$$new/$$name.yaml"
done
mv "$$new"/*.txt "$$new"/*.yaml envs/
echo "$$(wc -l < "$$new/pins") pins in envs/"
endef
export MAKE_LOCK
