# make         the paper in miniature: standard, regularized, ensemble, distilled, on two cores
# make test    every promise, offline
# make ladder  certified settings of both recipes at the four sizes of 1/1000: hours, can be stopped and repeated
# make ensembles  members, their limits, the grid around the member rule, the question of the data: hours, likewise
# Each stage is one plain command; runs are memoised, so any of them can be stopped and asked for again.
PYTHON ?= python3
JOBS ?= 2
PY = .venv/bin/python
SIZE = 300k
OUT = runs/miniature-$(SIZE)
# validation now and then: once an epoch, the default, is a tenth of the time of models this small
OPTIONS = --size $(SIZE) --out $(OUT) --eval_every 1000

.PHONY: miniature table data standard-% regularized-% ensemble student ladder ensembles test
# independent runs side by side, one thread each
miniature: .venv/installed
	@$(MAKE) --no-print-directory -j$(JOBS) table

table: student standard-0 standard-1 standard-2
	@$(PY) fit.py $(OUT) --csv $(OUT)/miniature.csv --figure $(OUT)/miniature.png > $(OUT)/miniature.txt
	@cat $(OUT)/miniature.txt

data: .venv/installed
	$(PY) prepare.py

standard-0 standard-1 standard-2: standard-%: data
	$(PY) train.py $(OPTIONS) --recipe standard --seed $*

regularized-0 regularized-1 regularized-2: regularized-%: data
	$(PY) train.py $(OPTIONS) --recipe regularized --seed $*

# two of them wait, to fill the second core while the student is sampled for and trained
standard-1 standard-2: | ensemble

# the members are the regularized runs at three seeds
ensemble: regularized-0 regularized-1 regularized-2
	$(PY) ensemble.py $(OPTIONS) --recipe regularized --members 3

student: ensemble
	$(PY) distill.py $(OPTIONS) --teacher $(OUT)/ensembles/*

ladder: data
	for size in 150k 300k 600k 1.4m; do for recipe in standard regularized; do \
	    $(PY) train.py --tune --size $$size --recipe $$recipe --seeds 3 --jobs $(JOBS) --eval_every 1000 \
	        --out runs/ladder/$$recipe || exit; done; done
	$(PY) fit.py results/1000/runs.csv runs/ladder --where tokens=209715 --where context=256 --where batch_size=4 \
	    --where kind=run --where synthetic_weight=0.0 --figure runs/ladder/ladder.png

MEMBERS = $(PY) ensemble.py --jobs $(JOBS) --eval_every 1000
# members of three recipes at every size; epochs and weight decay around the member rule; what members may differ in;
# many members that have memorized their text
ensembles: data
	for size in 150k 300k 600k 1.4m; do for recipe in standard regularized member; do \
	    $(MEMBERS) --size $$size --recipe $$recipe --members $$([ $$size = 300k ] && echo 5 || echo 3) \
	        --out runs/members || exit; done; done
	for epochs in 32 64 128; do for weight_decay in 1.6 0.8 0.4; do \
	    $(MEMBERS) --size 300k --recipe member --epochs $$epochs --weight_decay $$weight_decay --members 3 \
	        --out runs/members || exit; done; done
	for vary in seed,subset_seed init_seed data_seed; do \
	    $(MEMBERS) --size 300k --recipe member --vary $$vary --out runs/members \
	        --members $$([ $$vary = seed,subset_seed ] && echo 5 || echo 3) || exit; done
	$(MEMBERS) --size 600k --recipe member --tokens 52428 --epochs 32 --lr 3e-3 --weight_decay 0.8 --members 20 \
	    --out runs/crossover
	$(PY) fit.py runs/members --csv runs/members/members.csv

test: .venv/installed-test
	$(PY) -m pytest -q -n 2 test_all.py

.venv/bin/python:
	@$(PYTHON) -c "import sys; sys.version_info < (3, 11) and sys.exit('Python 3.11 or later is needed: make PYTHON=...')"
	$(PYTHON) -m venv .venv

.venv/installed: requirements.txt | .venv/bin/python
	$(PY) -m pip install -q -r requirements.txt
	@touch $@

.venv/installed-test: requirements-test.txt .venv/installed
	$(PY) -m pip install -q -r requirements-test.txt
	@touch $@
