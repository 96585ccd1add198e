# Every target sets up what it needs; `make` alone lists them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
MAE_NAS_DATA ?= data
export MAE_NAS_DATA

.DEFAULT_GOAL := help
.PHONY: help install demo test test-slow check lint-conf bench bench-train \
	search-cifar10 search-cifar100 search-imagenet sweep-mask-ratio sweep-patch-size \
	train-cifar10 train-imagenet \
	table1-cifar10 table1-imagenet table3 table3-factors table2 figure2 labelfree report

help: ## list the targets
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-17s %s\n", $$1, $$2}'

install: $(VENV)/installed ## make .venv with everything in it

$(VENV)/installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "mae_nas needs Python 3.11 or newer; name one: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	@echo "installing PyTorch and the rest into $(VENV): some 6 GB, some minutes"
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@du -sh $(VENV)
	@touch $@

DEMO := runs/demo/$(shell date +%Y-%m-%d_%H-%M-%S)
demo: install ## digits: search a cell, train its network, export it: three minutes on a laptop
	$(BIN)/mae-nas search experiment=demo hydra.run.dir=$(DEMO)/search
	$(BIN)/mae-nas train genotype=$(DEMO)/search network=tiny recipe=quick name=demo efficiency.threads=1 hydra.run.dir=$(DEMO)/network
	$(BIN)/mae-nas export checkpoint=$(DEMO)/network format=onnx

test: install ## the default tests: CPU, no network, under six minutes on two cores
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist worksteal -m 'not slow and not gpu'

test-slow: install ## the long tests: kills, the wheel, learning
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist worksteal -m 'slow and not gpu'

check: install ## lint, format and types
	$(BIN)/ruff check src tests experiments
	$(BIN)/ruff format --check src tests experiments
	$(BIN)/basedpyright

lint-conf: install ## every file in conf/ composes, and names exactly its class's arguments
	$(BIN)/pytest tests/test_configs.py

bench: install ## a search step in several ways side by side, recorded
	$(BIN)/mae-nas bench search growth=true record=experiments/search_speed/records.jsonl $(ARGS)

bench-train: install ## a step of the training of a found network, beside the usual one, recorded
	$(BIN)/mae-nas bench train record=experiments/train_speed/records.jsonl $(ARGS)

# Reproductions. Each can be stopped and started again; images lie below MAE_NAS_DATA, see the README.
SCALE ?= smoke
PRESET ?= unnas
ARGS ?=
PARALLEL ?= 1
ifeq ($(filter smoke small full,$(SCALE)),)
$(error SCALE=$(SCALE): use smoke, small or full)
endif
SEARCH = $(BIN)/mae-nas search scale=$(SCALE)
RATIOS_smoke := 0.2,0.8
RATIOS_small := 0.2,0.4,0.6,0.8
RATIOS_full := 0.1,0.2,0.3,0.4,0.5,0.6,0.7,0.8
PATCHES_smoke := 4,8
PATCHES_small := 2,4,8,16
PATCHES_full := 2,4,8,16
SEEDS_smoke := 0
SEEDS_small := 0,1
SEEDS_full := 0,1,2,3,4
SWEEP = -m hydra.launcher.parallel=$(PARALLEL) experiment=cifar10 seed=$(SEEDS_$(SCALE))
# What a scale leaves out of a sweep, for the record of each of its jobs; $(1): RATIOS or PATCHES.
LEFT_OUT = $(if $(filter full,$(SCALE)),,'left_out=["$(1) $($(1)_$(SCALE)) of $($(1)_full)","SEEDS $(SEEDS_$(SCALE)) of $(SEEDS_full)"]')

search-cifar10: install ## the paper's search (SCALE=smoke|small|full, ARGS="more=overrides")
	$(SEARCH) experiment=cifar10 resume=auto hydra.run.dir=runs/cifar10-$(SCALE) $(ARGS)

search-cifar100: install ## the same search on CIFAR-100
	$(SEARCH) experiment=cifar100 resume=auto hydra.run.dir=runs/cifar100-$(SCALE) $(ARGS)

search-imagenet: install ## search on ImageNet (PRESET=unnas|pcdarts)
	$(SEARCH) experiment=imagenet_$(PRESET) resume=auto hydra.run.dir=runs/imagenet-$(PRESET)-$(SCALE) $(ARGS)

# Training: smoke tries the way, small is minutes to hours on a CPU, full the protocol of DARTS.
GENOTYPE ?= DARTS_V2
TRAIN_smoke := network=tiny recipe=quick trainer.max_steps=40
TRAIN_small := network=tiny network.width=16 recipe=quick
TRAIN_LEFT_OUT = $(if $(filter full,$(SCALE)),,'left_out=["$(TRAIN_$(SCALE)), not the published network and recipe"]')
TRAIN = $(BIN)/mae-nas train genotype=$(GENOTYPE) resume=auto $(TRAIN_LEFT_OUT)

train-cifar10: install ## the network of a genotype on CIFAR-10 (GENOTYPE=NAME or a run folder, SCALE=)
	$(TRAIN) data=cifar10 $(or $(TRAIN_$(SCALE)),network=cifar recipe=cifar) hydra.run.dir=runs/train-cifar10-$(subst /,_,$(GENOTYPE))-$(SCALE) $(ARGS)

train-imagenet: install ## the same on ImageNet
	$(TRAIN) data=imagenet $(or $(TRAIN_$(SCALE)),network=imagenet recipe=imagenet) hydra.run.dir=runs/train-imagenet-$(subst /,_,$(GENOTYPE))-$(SCALE) $(ARGS)

sweep-mask-ratio: install ## searches on CIFAR-10 over the mask ratio, with both decoders (PARALLEL=jobs at once)
	$(SEARCH) $(SWEEP) mask.ratio=$(RATIOS_$(SCALE)) decoder=hierarchical,simmim $(call LEFT_OUT,RATIOS) hydra.sweep.dir=runs/sweeps/mask-ratio-$(SCALE) $(ARGS)

# Evidence: what is claimed of the paper's tables, from records that experiments/CLAIM keeps; the
# sweeps of a claim stand in its claim.py, and each is printed before it starts.
EVIDENCE = $(BIN)/python experiments/evidence.py
CLAIM = $(EVIDENCE) run $(subst -,_,$@) $(ARGS) --scale $(SCALE) --parallel $(PARALLEL)

table1-cifar10: install ## Table 1 of the paper: networks of found, published and random cells, trained alike
	$(CLAIM)

table1-imagenet: install ## the same on ImageNet
	$(CLAIM)

table3: install ## Table 3 of the paper: skips with and without the hierarchical decoder
	$(CLAIM)

table3-factors: install ## what in the decoder sets the skips, and whether alpha hears the target
	$(CLAIM)

table2: install ## Table 2 of the paper: mask ratio and patch size, and what the cells are worth alone
	$(CLAIM)

figure2: install ## Figure 2 of the paper: what is rebuilt with the hierarchical decoder and without
	$(CLAIM)

labelfree: install ## no labels: a found network's features beside random ones' and ResNet-18's
	$(CLAIM)

report: install ## tables, pictures and the README's results, made again from the records
	$(EVIDENCE) report

sweep-patch-size: install ## searches on CIFAR-10 over the patch size
	$(SEARCH) $(SWEEP) mask.patch_size=$(PATCHES_$(SCALE)) $(call LEFT_OUT,PATCHES) hydra.sweep.dir=runs/sweeps/patch-size-$(SCALE) $(ARGS)
