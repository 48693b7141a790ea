# Each target sets up what it needs by itself: `make quickstart` and `make test` work on a fresh clone.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.PHONY: setup quickstart smoke-all test test-fast gpu-test check docs bench chaos soak multinode-test nfs-test mirror-test slurm-test cpp-test release-test audit fuzz secrets wheelhouse image compose-test clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch==$$(sed -n 's/^torch==//p' constraints.txt)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,bench]'
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps rliable==1.2.0 # its definitions; asks for an old arch
	touch $@

# What the tests of pictures and pages need: a browser, and a software renderer for MiniWorld. And a compiler for
# scikit-fmm, which has no wheels: so it is not among the packages for development, which the quickstart installs too.
SYSTEM := chromium chromium-driver libegl1 libgl1 libglu1-mesa libopengl0 libgl1-mesa-dri g++
SUDO   := $(shell test "$$(id -u)" = 0 || echo sudo)

$(VENV)/.system: Makefile | $(STAMP)
	dpkg -s $(SYSTEM) >/dev/null 2>&1 || { $(SUDO) apt-get update -qq && \
	    $(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $(SYSTEM) >/dev/null; }
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt scikit-fmm \
	    || echo "scikit-fmm was not built (are there headers of Python?): tests of fast marching are skipped"
	touch $@

quickstart: $(STAMP)
	$(BIN)/idp run sweeps/quickstart.yaml

# Every sweep's smoke profile, end to end, in one storage; ends at the first that fails.
SMOKE := idp-storage/smoke

smoke-all: $(STAMP) $(VENV)/.system
	set -e; for sweep in sweeps/*.yaml; do \
	    echo "== $$sweep"; \
	    for verb in run table report figures; do \
	        $(BIN)/idp $$verb $$sweep --profile smoke --storage $(SMOKE); \
	    done; \
	done

# Side by side in two processes, which tests/conftest.py hands whole files (a third only makes those of Ray wait longer). Ray's
# workers would wait for the others.
SIDE_BY_SIDE := OMP_NUM_THREADS=1 RAY_worker_niceness=0 $(BIN)/python -m pytest -n 2 --no-loadscope-reorder

test: $(STAMP) $(VENV)/.system
	$(SIDE_BY_SIDE)

# For between two edits; what it leaves out is marked slow.
test-fast: $(STAMP)
	$(SIDE_BY_SIDE) -m "not slow"

# On a machine with a GPU: is it right there, does it keep its limits, how fast is it; all of it into gpu-test.json.
gpu-test: $(STAMP)
	$(BIN)/python -m benchmarks.gpu

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The documentation as a site, warnings as errors: build/site/index.html.
$(VENV)/.docs: pyproject.toml constraints.txt | $(STAMP)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	touch $@

docs: $(VENV)/.docs
	$(BIN)/python docs/pages.py

bench: $(STAMP)
	$(BIN)/python -m benchmarks.planner_core
	$(BIN)/python -m benchmarks.fixed_point
	$(BIN)/python -m benchmarks.datagen
	$(BIN)/python -m benchmarks.visual

# A small file system of its own, which can be filled and frozen, where we may mount one.
small_disk = mkdir -p $(1) && truncate -s $(2) $(1).img && mkfs.ext4 -q -F $(1).img && mount -o loop $(1).img $(1) \
    || echo "can't mount: no disk will be filled or frozen"
no_disk = umount $(1) 2>/dev/null; rm -rf $(1) $(1).img

# Twenty faults at random moments of a small real sweep.
CHAOS := /tmp/idp-chaos
chaos: $(STAMP)
	$(call small_disk,$(CHAOS),200M)
	$(BIN)/python tests/chaos.py --faults 20 --storage $(CHAOS)/storage; code=$$?; $(call no_disk,$(CHAOS)); exit $$code

# Thousands of small trials with faults all along, for so many minutes: memory, files and numbers stay as they are.
SOAK    := /tmp/idp-soak
MINUTES := 240
TRIALS  := 2000
soak: $(STAMP)
	$(call small_disk,$(SOAK),500M)
	$(BIN)/python tests/soak.py --minutes $(MINUTES) --trials $(TRIALS) --storage $(SOAK)/storage; code=$$?; \
	    $(call no_disk,$(SOAK)); exit $$code

# Four machines in one, by network namespaces (as root): one is cut off and one is killed in the middle of a sweep.
multinode-test: $(STAMP)
	$(BIN)/python tests/multinode.py

# Two clients of a real NFS with root_squash, its server restarted meanwhile, in an emulated machine (as root; minutes).
nfs-test: $(STAMP)
	$(BIN)/python tests/nfs.py

# Three machines that share a sweep through a bucket alone, one of them killed.
mirror-test: $(STAMP)
	IDP_MIRROR_TEST=1 $(BIN)/python -m pytest -rs tests/orchestrator/test_mirror.py

# The templates in a Slurm of one node, with GPUs that are counted and not there; as root, since Slurm is. In a world of
# its own: the cluster job ends with `ray stop`, which would end all of this user's clusters.
slurm-test: $(STAMP)
	dpkg -s slurm-wlm munge >/dev/null 2>&1 || { $(SUDO) apt-get update -qq && \
	    $(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends slurm-wlm munge >/dev/null; }
	$(SUDO) env IDP_SLURM_TEST=1 unshare --pid --fork --mount-proc bash -c '$(BIN)/python -m pytest -rs \
	    tests/orchestrator/test_slurm.py tests/orchestrator/test_slurm_jobs.py; exit $$?' # bash buries the orphans

# Known weaknesses of the versions that were tested, by PyPI's list; one that can't be looked up is a failure, too.
audit: $(STAMP)
	test -x $(VENV)/audit/bin/pip-audit || { $(PYTHON) -m venv $(VENV)/audit && \
	    $(VENV)/audit/bin/pip install --quiet --disable-pip-version-check 'pip-audit>=2.9'; }
	$(VENV)/audit/bin/pip-audit --strict --disable-pip --no-deps -r constraints.txt

# Wheel and sdist, each in an empty environment with all that they need; RELEASE="--python python3.13 --only wheel".
RELEASE := --python $(BIN)/python
release-test: $(STAMP)
	$(BIN)/python tests/release.py $(RELEASE)

# A planner compiled for C++, and a route by it with no Python: needs a C++ compiler and cmake, and a minute of them.
cpp-test: $(STAMP)
	IDP_CPP_TEST=1 $(BIN)/python -m pytest -rs tests/orchestrator/test_export_cpp.py

# Thousands of damaged files of every kind that is read: each taken for what it says, or refused with one clear message.
fuzz: $(STAMP)
	IDP_FUZZ_EXAMPLES=2000 $(BIN)/python -m pytest -k fuzzed

# The lab cluster (docs/administration.md).
COMPOSE := $(shell docker compose version >/dev/null 2>&1 && echo docker compose || echo docker-compose)

secrets:
	docker/secrets.sh

wheelhouse: $(STAMP)
	docker/wheelhouse.sh $(BIN)

image:
	DOCKER_BUILDKIT=1 COMPOSE_DOCKER_CLI_BUILD=1 $(COMPOSE) build head

# The whole stack in an engine of its own, as root: minutes, and some 10 GB in COMPOSE_SCRATCH meanwhile.
COMPOSE_SCRATCH := /tmp/idp-compose
compose-test: $(STAMP) wheelhouse
	$(BIN)/python tests/compose/run.py --scratch $(COMPOSE_SCRATCH)

clean:
	rm -rf $(VENV)
