# The two commands: make demo, make test. `make` alone lists all of them.
SHELL := /bin/bash
PYTHON ?= python3.11
BIN := .venv/bin
PORT ?= 3000
MLFLOW_PORT ?= 5000
PREFECT_PORT ?= 4200
GRAFANA_PORT ?= 3001
# The container engine: docker where it runs, else podman; and what the images compute on: cpu or gpu.
ENGINE ?= $(shell docker info >/dev/null 2>&1 && echo docker || echo podman)
DEVICE ?= cpu

export STATE_DIR ?= $(CURDIR)/state
export MLFLOW_TRACKING_URI ?= sqlite:///$(STATE_DIR)/mlflow.db
export PREFECT_HOME ?= $(STATE_DIR)/prefect
export SERVING_PORT ?= $(PORT)
export PATH := $(CURDIR)/$(BIN):$(PATH)
# Nothing here reports its use to anybody.
export DO_NOT_TRACK := 1
# What runs here is asked directly, also where the network is reached through a proxy.
export no_proxy := 127.0.0.1,localhost,$(no_proxy)
export MLFLOW_DISABLE_TELEMETRY := true
export BENTOML_DO_NOT_TRACK := True

.DEFAULT_GOAL := help

.PHONY: help
help:  ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: demo
demo: .venv/installed  ## Train, register, serve and ask once; DATA=folder or archive of pictures
	@$(BIN)/python -m infra.demo $(if $(DATA),"data=$(DATA)")

# Two tests at a time: most of them wait more than they compute. Each has one thread for PyTorch, whose threads take each
# other's turns where there are more of them than cores.
AT_ONCE = --numprocesses 2 --no-loadscope-reorder
test test-quick: export OMP_NUM_THREADS ?= 1
.PHONY: test
test: .venv/installed  ## Run all tests; CIFAR10_IMAGES=folder or archive adds those on real pictures
	@$(BIN)/pytest $(AT_ONCE)

.PHONY: test-quick
test-quick: .venv/installed  ## Run the tests that take seconds
	@$(BIN)/pytest $(AT_ONCE) -m "not slow"

.PHONY: serve
serve: .venv/installed  ## Serve the champion until Ctrl-C; PORT=3000
	@$(BIN)/python -m serving

.PHONY: bento
bento: .venv/installed  ## Build a Bento that holds a model; MODEL=models:/NAME@champion or an ONNX file
	@$(BIN)/python -m serving.model.registry copy=bento.onnx model=$(MODEL)
	@$(BIN)/bentoml build; built=$$?; rm -f bento*.onnx; exit $$built

.PHONY: mlflow
mlflow: .venv/installed  ## Open MLflow's page; MLFLOW_PORT=5000
	@$(BIN)/python -m serving.port host=127.0.0.1 port=$(MLFLOW_PORT) setting=MLFLOW_PORT
	@# MLflow's server does not wait for others that create the database at the same time.
	@$(BIN)/python -c "from serving.model.registry import connect; connect('$(MLFLOW_TRACKING_URI)')"
	@echo "MLflow: http://127.0.0.1:$(MLFLOW_PORT)"
	@# Artifacts go where they go without a server, so that each run is read with and without it; jobs are for evaluating
	@# language models.
	@MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false $(BIN)/mlflow server --host 127.0.0.1 --port $(MLFLOW_PORT) --workers 1 \
	    --backend-store-uri $(MLFLOW_TRACKING_URI) \
	    --default-artifact-root $(STATE_DIR)/mlartifacts --artifacts-destination $(STATE_DIR)/mlartifacts

.PHONY: prefect
prefect: .venv/installed  ## Open Prefect's page and API; PREFECT_PORT=4200
	@$(BIN)/python -m serving.port host=127.0.0.1 port=$(PREFECT_PORT) setting=PREFECT_PORT
	@echo "Prefect: http://127.0.0.1:$(PREFECT_PORT)"
	@# The page asks the server that it comes from.
	@PREFECT_SERVER_UI_API_URL=/api \
	    PREFECT_SERVER_LOGS_STREAM_OUT_ENABLED=true PREFECT_SERVER_LOGS_STREAM_PUBLISHING_ENABLED=true \
	    $(BIN)/prefect server start --host 127.0.0.1 --port $(PREFECT_PORT)

.PHONY: worker
worker: export PREFECT_API_URL ?= http://127.0.0.1:$(PREFECT_PORT)/api
worker: .venv/installed  ## Deploy the flows and run what is asked of them; needs make prefect
	@infra/deploy.sh local process
	@$(BIN)/python -m infra.worker pool=local type=process

# pip's settings, where PIP_CONFIG_FILE names them, and this machine's certificates are lent to the build and not kept.
BUILD = $(ENGINE) build --build-arg DEVICE=$(DEVICE) --build-arg BASE_DIGEST=$(BASE_DIGEST) \
	--build-arg GIT_COMMIT=$(shell git rev-parse HEAD) \
	$(if $(PIP_CONFIG_FILE),--secret id=pip$(comma)src=$(PIP_CONFIG_FILE)) \
	$(if $(CERTIFICATES),--secret id=ca$(comma)src=$(CERTIFICATES))
CERTIFICATES = $(or $(SSL_CERT_FILE),$(wildcard /etc/ssl/certs/ca-certificates.crt))
comma := ,
.PHONY: images
# For podman, whose own format has no health checks.
images: export BUILDAH_FORMAT = docker
images:  ## Build the images of training and serving; DEVICE=gpu, SCALE=1, ENGINE=podman, BASE_DIGEST=sha256:...
	$(BUILD) --file Dockerfile.serve --tag localhost/cifar10-serve .
	$(BUILD) --build-arg SCALE=$(SCALE) --build-arg GIT_DIRTY=$(if $(shell git status --porcelain),true,false) \
		--file Dockerfile.train --tag localhost/cifar10-train .

.PHONY: env
env:  ## Write infra/.env: random passwords for make up
	@if [[ -e infra/.env ]]; then \
	    echo "error: infra/.env is there already; the databases in the volumes know no other passwords" >&2; exit 2; fi
	@umask 077 && grep -oE '[A-Z0-9_]+:\?' infra/compose.yaml | tr -d ':?' | sort -u | while read -r name; do \
	    echo "$$name=$$(od -An -N24 -tx1 /dev/urandom | tr -d ' \n')"; done > infra/.env
	@echo "wrote infra/.env; Grafana's user is admin, its password GRAFANA_PASSWORD in there"

SBOM = $(BIN)/python -W ignore -m cyclonedx_py requirements --output-reproducible --pyproject pyproject.toml
.PHONY: sbom
sbom: .venv/installed  ## List the Python packages of the images as CycloneDX files: state/sbom/
	@mkdir -p $(STATE_DIR)/sbom
	@for lock in serve serve-gpu train train-gpu; do \
	    $(SBOM) requirements/$$lock.txt --output-file $(STATE_DIR)/sbom/$$lock.cdx.json || exit; done
	@echo "wrote $(STATE_DIR)/sbom/*.cdx.json"

COMPOSE ?= $(if $(filter docker,$(ENGINE)),docker compose,podman-compose)
STACK = $(COMPOSE) -f infra/compose.yaml $(if $(filter gpu,$(DEVICE)),-f infra/compose.gpu.yaml)
RUNS = --filter label=cifar10-classifier=run
.PHONY: up
up: export ENGINE_SOCKET ?= $(if $(filter docker,$(ENGINE)),/var/run/docker.sock,/run/podman/podman.sock)
up: export ENGINE_GROUP ?= $(shell stat --dereference --format %g $(ENGINE_SOCKET) 2>/dev/null || echo 0)
# podman-compose keeps a container whose image has been built anew; docker compose makes one of the new image.
up:  ## Start the whole stack in containers; needs make env and make images; DEVICE=gpu
	@if [[ $(ENGINE) = podman && -n "$$(infra/outdated.sh podman)" ]]; then $(MAKE) --no-print-directory down; fi
	@$(STACK) up --detach
	@infra/outdated.sh $(ENGINE) | while read -r name; do echo "still of an older image: $$name"; done
	@echo "service: http://127.0.0.1:$(PORT)/ui, once there is a champion; Grafana: http://127.0.0.1:$(GRAFANA_PORT)"
	@echo "MLflow:  http://127.0.0.1:$(MLFLOW_PORT)     Prefect: http://127.0.0.1:$(PREFECT_PORT)"
	@echo "train one: $(STACK) exec worker prefect deployment run retrain/container --watch"

.PHONY: down
down:  ## Cancel the runs, saying which, and stop the stack; the volumes stay, and a run goes on from its checkpoint
	@$(STACK) stop worker upkeep
	@$(STACK) logs --since 3m worker upkeep 2>&1 | grep stopping: || true
	@$(STACK) down
	@$(ENGINE) ps --quiet $(RUNS) | xargs --no-run-if-empty $(ENGINE) stop
	@$(ENGINE) container prune --force $(RUNS)

OF ?= state
.PHONY: backup
backup:  ## Copy runs, models and flow runs to BACKUP=FOLDER; OF=stack: those of the containers
	@STACK="$(STACK)" infra/backup.sh backup "$(OF)" "$(BACKUP)"

.PHONY: restore
restore:  ## Put a backup back where nothing is; BACKUP=FOLDER OF=stack
	@STACK="$(STACK)" infra/backup.sh restore "$(OF)" "$(BACKUP)"

.PHONY: check
check: .venv/installed  ## Lint, check the format and the types
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

.PHONY: format
format: .venv/installed  ## Put the code into its format
	@$(BIN)/ruff check --fix . && $(BIN)/ruff format .

LOCK = $(BIN)/pip-compile --quiet --strip-extras --allow-unsafe --no-header --no-emit-index-url --no-emit-find-links --no-emit-trusted-host
.PHONY: lock
lock: .venv/installed  ## Write the lock files anew from requirements/*.in
	$(LOCK) requirements/dev.in -o requirements/dev.txt
	$(LOCK) requirements/train.in -c requirements/dev.txt -o requirements/train.txt
	$(LOCK) requirements/train-gpu.in -c requirements/dev.txt -o requirements/train-gpu.txt
	$(LOCK) requirements/serve.in -c requirements/dev.txt -o requirements/serve.txt
	$(LOCK) requirements/serve-gpu.in -c requirements/dev.txt -o requirements/serve-gpu.txt
	$(LOCK) requirements/scale.in -c requirements/dev.txt -o requirements/scale.txt

.PHONY: scale
scale: .venv/installed  ## Install what few need: Optuna (flows.search), Ray, Kubernetes
	@$(BIN)/pip install --quiet --disable-pip-version-check --requirement requirements/scale.txt

.PHONY: clean
clean:  ## Remove the environment and all state: models, runs, caches
	rm -rf .venv state .podman_cache

$(STATE_DIR):
	@mkdir -p $@

.venv/installed: requirements/dev.txt | $(STATE_DIR)
	@command -v $(PYTHON) >/dev/null || { echo "error: $(PYTHON) is not installed; set PYTHON=a Python 3.11" >&2; exit 2; }
	@echo "installing into .venv (7 GB, a few minutes)"
	@$(PYTHON) -m venv .venv
	@$(BIN)/pip install --quiet --disable-pip-version-check --requirement requirements/dev.txt
	@touch $@
