# make             the paper in miniature: standard, regularized, ensemble, distilled, on two cores
# make test        every promise, offline
# make readme      the tables of README.md, LESSON.md and results/README.md anew, from results/
#
# The studies of 1/1000, half an hour to days on two cores; what each says is in results/README.md:
# make ladder      certified settings of both recipes at the four sizes
# make pilot       which context and batch size
# make ensembles   members, their limits, settings around the member rule, what members differ in
# make crossover   many members that have memorized their text
# make repetition  more epochs than are good, three sizes and three budgets
# make students    students of three teachers
# make distillation  what students of 1, 3, 5 and 8 teachers keep of an ensemble's gain
# make continued   continued pre-training: smaller batches, more epochs, an ensemble
# make downstream  accuracy against loss of the models that the others left in runs/
# make efficiency  both recipes at two to eight times the tokens: two to three days of one core
# make bench       tokens per second of this kit beside transformers' Llama; nothing else may run
#
# Each stage is one plain command; runs are memoized, so any of them can be stopped and asked for
# again. What a study leaves in runs/ is added to the committed results by
# python fit.py runs/NAME --save results/1000.jsonl
PYTHON ?= python3
JOBS ?= 2
PY = .venv/bin/python
SIZE = 300k
STUDY = miniature
OUT = runs/$(STUDY)-$(SIZE)
# validation now and then: once an epoch, the default, is a tenth of the time of models this small
EVERY = --eval_every 1000
OPTIONS = --size $(SIZE) --out $(OUT) --study $(STUDY) $(EVERY)
# of the two optima of 300k the one that takes half as long and is a little worse
MEMBER_300k = --epochs 16 --lr 1e-2 --weight_decay 0.4
STUDENT_300k = --epochs 16
MEMBER = --recipe regularized $(MEMBER_$(SIZE))

.PHONY: miniature table data standard regularized-0 regularized-1 regularized-2 \
	ensemble student ladder pilot ensembles \
	crossover repetition students distillation continued downstream efficiency readme bench test
# independent runs side by side, one thread each
miniature: .venv/installed
	@$(MAKE) --no-print-directory -j$(JOBS) table

table: student standard
	@$(PY) fit.py $(OUT) --save $(OUT)/miniature.jsonl --figure $(OUT)/miniature.png \
	    > $(OUT)/miniature.md
	@cat $(OUT)/miniature.md

data: .venv/installed
	$(PY) prepare.py

standard: data
	$(PY) train.py $(OPTIONS) --recipe standard

regularized-0 regularized-1 regularized-2: regularized-%: data
	$(PY) train.py $(OPTIONS) $(MEMBER) --seed $*

# the members are the regularized runs at three seeds
ensemble: regularized-0 regularized-1 regularized-2
	$(PY) ensemble.py $(OPTIONS) $(MEMBER) --members 3

# by then nothing else is left to do, so it takes all threads
student: ensemble
	$(PY) distill.py $(OPTIONS) $(STUDENT_$(SIZE)) --mode kl --threads $(JOBS) \
	    --teacher $$(ls -td $(OUT)/ensembles/* | head -n 1)

ladder: data
	for size in 150k 300k 600k 1.4m; do for recipe in standard regularized; do \
	    $(PY) train.py --tune --size $$size --recipe $$recipe --seeds 3 --jobs $(JOBS) $(EVERY) \
	        --out runs/ladder/$$recipe --study ladder || exit; done; done
	@mkdir -p runs/ladder  # it is not there where the committed results have all that was asked for
	$(PY) fit.py $(wildcard results/1000.jsonl) runs/ladder --where study=ladder \
	    --figure runs/ladder/ladder.png

# context, batch size, lr, weight decay
pilot: data
	for row in "128 4 1e-2 0.2" "128 4 1e-2 0.4" \
	    "128 8 1e-2 0.2" "128 8 1e-2 0.4" "128 8 1e-2 0.8" \
	    "256 2 3e-3 0.4" "256 2 3e-3 0.8" "256 2 1e-2 0.2" "256 2 1e-2 0.4" \
	    "256 4 1e-2 0.2" "256 4 1e-2 0.4" "256 4 1e-2 0.8" \
	    "256 8 1e-2 0.4" "256 8 1e-2 0.8" "256 8 1e-2 1.6" "256 8 3e-2 0.2" \
	    "256 16 1e-2 0.8" "256 16 1e-2 1.6" "256 16 3e-2 0.4" "256 16 3e-2 0.8" \
	    "512 2 1e-2 0.2" "512 2 1e-2 0.4" "512 2 1e-2 0.8" \
	    "512 4 1e-2 0.4" "512 4 1e-2 0.8"; do set -- $$row; \
	    $(PY) train.py --size 300k --recipe regularized --epochs 16 $(EVERY) --out runs/pilot \
	        --context $$1 --batch_size $$2 --lr $$3 --weight_decay $$4 || exit; done
	$(PY) fit.py runs/pilot

MEMBERS = $(PY) ensemble.py --jobs $(JOBS) $(EVERY)
# members of three recipes at every size; epochs and weight decay around the member rule, all of
# them at 300k and a few elsewhere; what members may differ in
ensembles: data
	for size in 150k 300k 600k 1.4m; do for recipe in standard regularized member; do \
	    $(MEMBERS) --size $$size --recipe $$recipe --out runs/members \
	        --members $$([ $$size = 300k ] && echo 5 || echo 3) || exit; done; done
	for epochs in 32 64 128; do for weight_decay in 1.6 0.8 0.4; do \
	    $(MEMBERS) --size 300k --recipe member --epochs $$epochs --weight_decay $$weight_decay \
	        --members 3 --out runs/members || exit; done; done
	for row in "150k 64 0.8" "600k 16 0.8" "1.4m 16 0.8" "1.4m 16 0.4"; do \
	    set -- $$row; $(MEMBERS) --size $$1 --recipe member --epochs $$2 --weight_decay $$3 \
	        --members 3 --out runs/members || exit; done
	for vary in seed,subset_seed init_seed data_seed; do \
	    $(MEMBERS) --size 300k --recipe member --vary $$vary --out runs/members \
	        --members $$([ $$vary = seed,subset_seed ] && echo 5 || echo 3) || exit; done
	$(PY) fit.py runs/members --figure runs/members/members.png

crossover: data
	for members in 8 20; do \
	    $(MEMBERS) --size 600k --recipe member --tokens 52428 --epochs 32 --lr 3e-3 \
	        --weight_decay 0.8 --members $$members --out runs/crossover || exit; done
	$(PY) fit.py runs/crossover

repetition: data
	for size in 150k 300k 600k; do for tokens in 104857 209715 419430; do \
	    for epochs in 2 4 8 16 32; do \
	    $(PY) train.py --size $$size --tokens $$tokens --epochs $$epochs --recipe standard \
	        --lr 1e-2 --weight_decay 0.1 $(EVERY) --out runs/repetition || exit; done; done; done
	$(PY) fit.py runs/repetition

# epochs, share of synthetic text, weight decay, seed
students: data
	$(MEMBERS) --size 300k --recipe regularized --epochs 16 --lr 1e-2 --weight_decay 0.4 \
	    --members 3 --out runs/students
	for row in "12 0.5 0.2 0" "6 0.75 0.1 0" "6 0.75 0.1 1"; do set -- $$row; \
	    $(PY) distill.py --teacher $$(ls -td runs/students/ensembles/* | head -n 1) \
	        --size 300k --lr 1e-2 $(EVERY) \
	        --epochs $$1 --synthetic_weight $$2 --weight_decay $$3 --seed $$4 \
	        --out runs/students || exit; done
	$(PY) fit.py runs/students --where recipe=student

# Students by probabilities of ensembles and of one teacher of their own size; the same settings
# without a teacher; what else was tried with eight teachers: share of KL, epochs, their text (the
# last number of its rows: which one, in the order of sampling), real text that none has read. Last,
# students of members by the member rule, as the paper's are, and of their text alone.
STUDENT = --size 300k $(EVERY) --out runs/distillation
STUDENT_OF_MEMBERS = --size 300k $(EVERY) --lr 1e-2 --out runs/taught_by_members \
	--study distillation
# one pass over text that teachers wrote, and nothing else
ALONE = $(PY) train.py --size 300k $(EVERY) --tokens 4194304 --epochs 1 --lr 1e-2 \
	--weight_decay 0.1 --out runs/text_alone
distillation: data
	for members in 3 5 8; do \
	    $(MEMBERS) --size 300k --recipe regularized --members $$members \
	        --out runs/distillation || exit; \
	    for seed in 0 1 2; do \
	        $(PY) distill.py --mode kl $(STUDENT) --seed $$seed \
	            --teacher $$(ls -d runs/distillation/ensembles/*-k$$members-*) || exit; done; done
	one="--teacher $$(ls -d runs/distillation/*-e32-lr0.003-wd1.6-s0-*)"; \
	for seed in 1 2 3; do \
	    $(PY) distill.py --mode kl $(STUDENT) --seed $$seed $$one || exit; \
	    $(PY) distill.py $(STUDENT) --seed $$seed $$one --sample_tokens 4194304 || exit; \
	    $(ALONE) --seed $$seed --data \
	        $$(basename $$(ls -td data/sampled-docstrings-300k-k1-* | head -n 1)) || exit; done
	$(PY) train.py $(STUDENT) --epochs 32 --lr 1e-2 --weight_decay 0.2
	$(PY) distill.py --mode kl $(STUDENT) --kl_weight 0.9 \
	    --teacher $$(ls -d runs/distillation/ensembles/*-k3-*)
	eight="--teacher $$(ls -d runs/distillation/ensembles/*-k8-*)"; \
	for row in "0.9 32 0.2 0" "0.9 64 0.2 0" "0.9 64 0.2 1" "0.9 64 0.2 2" "0.9 128 0.2 0" \
	    "0.9 64 0.4 0" "0.9 64 0.1 0" "1 64 0.2 0"; do set -- $$row; \
	    $(PY) distill.py --mode kl $(STUDENT) $$eight --lr 1e-2 \
	        --kl_weight $$1 --epochs $$2 --weight_decay $$3 --seed $$4 || exit; done; \
	$(PY) distill.py --mode kl $(STUDENT) $$eight --kl_weight 0.9 --epochs 64 \
	    --kl_temperature 2 || exit; \
	for row in "150k 0" "150k 1" "150k 2" "600k 0" "600k 1" "600k 2"; do set -- $$row; \
	    $(PY) distill.py --mode kl $(STUDENT) --size $$1 $$eight --kl_weight 0.9 \
	        --epochs 64 --lr 1e-2 --weight_decay 0.2 --seed $$2 || exit; done; \
	for row in "1048575 0.5 12 0.2 members" "4194304 0.5 12 0.2 members" \
	    "4194304 0.5 12 0.2 ensemble" "4194304 0.5 24 0.2 ensemble" \
	    "4194304 0.5 48 0.2 ensemble" "1048575 0.75 6 0.1 members" "4194304 0.75 6 0.1 members" \
	    "1048575 0.9 6 0.1 members" "4194304 0.9 6 0.1 members" "4194304 0.9 6 0.1 ensemble" \
	    "10066320 0.9 6 0.1 members" "10066320 0.95 6 0.1 members" "209715 0.5 12 0.2 members" \
	    "209715 0.75 6 0.1 members" "209715 0.9 6 0.1 members"; do set -- $$row; \
	    for seed in 0 1 2; do \
	        $(PY) distill.py $(STUDENT) $$eight --lr 1e-2 --sample_tokens $$1 \
	            --synthetic_weight $$2 --epochs $$3 --weight_decay $$4 --sample_from $$5 \
	            --seed $$seed || exit; done; done; \
	for row in "1 16 0.75 1" "0.9 64 0.5 1" "0.9 16 0.9 3"; do set -- $$row; \
	    $(PY) distill.py --mode kl $(STUDENT) $$eight --kl_weight $$1 --epochs $$2 \
	        --weight_decay 0.1 --synthetic_weight $$3 --synthetic $$(basename \
	        $$(ls -trd data/sampled-docstrings-300k-k8-* | sed -n $${4}p)) \
	        || exit; done; \
	$(PY) results/unseen.py && \
	$(PY) distill.py --mode kl $(STUDENT) $$eight --kl_weight 1 --epochs 16 \
	    --weight_decay 0.1 --synthetic_weight 0.8 --synthetic unseen
	for members in 3 5 8; do \
	    $(MEMBERS) --size 300k --recipe member --members $$members \
	        --out runs/taught_by_members --study distillation || exit; done
	eight="--teacher $$(ls -d runs/taught_by_members/ensembles/*-k8-*)"; \
	for row in "0.5 32" "0.9 64"; do set -- $$row; \
	    $(PY) distill.py --mode kl $(STUDENT_OF_MEMBERS) $$eight --kl_weight $$1 --epochs $$2 \
	        --weight_decay 0.2 || exit; done; \
	for seed in 0 1 2; do \
	    for row in "0.5 12 0.2" "0.75 6 0.1" "0.9 6 0.1"; do set -- $$row; \
	        $(PY) distill.py $(STUDENT_OF_MEMBERS) $$eight --seed $$seed --epochs $$2 \
	            --weight_decay $$3 --sample_tokens 4194304 --synthetic_weight $$1 || exit; done; \
	    text=$$(basename $$(ls -td data/sampled-docstrings-300k-k8-* | head -n 1)); \
	    $(PY) distill.py --mode kl $(STUDENT_OF_MEMBERS) $$eight --seed $$seed --epochs 8 \
	        --weight_decay 0.1 --kl_weight 1 --synthetic $$text --synthetic_weight 0.9 || exit; \
	    $(ALONE) --seed $$seed --data $$text || exit; done; \
	for row in "0.5 12 0.1" "0.5 12 0.4" "0.9 6 0.05" "0.9 6 0.2"; do set -- $$row; \
	    $(PY) distill.py $(STUDENT_OF_MEMBERS) $$eight --epochs $$2 --weight_decay $$3 \
	        --sample_tokens 4194304 --synthetic_weight $$1 || exit; done; \
	for row in "300k 16 1e-2 0.1" "300k 8 1e-2 0.02" "300k 8 3e-3 0.1" "600k 8 1e-2 0.1"; do \
	    set -- $$row; $(PY) distill.py --mode kl $(STUDENT_OF_MEMBERS) $$eight --size $$1 \
	        --epochs $$2 --lr $$3 --weight_decay $$4 --kl_weight 1 --synthetic $$text \
	        --synthetic_weight 0.9 || exit; done
	$(PY) fit.py runs/distillation runs/taught_by_members

# Of each size: epochs of both recipes and the standard one's lr, all as at 209,715 tokens, but for
# 32 epochs of standard 150k and 300k, which want more of them when there is more text. The
# regularized recipe keeps its lr, and its weight decay halves as the steps of an epoch double. Then
# members at twice and four times the tokens, with the epochs that were best at the smallest budget.
# Last, what a higher and a lower lr do.
efficiency: data
	printf '%s\n' "150k 64 32 1e-2" "300k 32 32 1e-2" "600k 16 16 1e-2" "1.4m 16 8 3e-3" | \
	while read -r size epochs standard lr; do \
	    printf '%s\n' "419430 1.6 0.8 0.4" "838860 0.8 0.4 0.2" "1677721 0.4 0.2 0.1" | \
	    while read -r tokens more decay less; do \
	        place="$(EVERY) --out runs/efficiency --size $$size --tokens $$tokens"; \
	        regularized="$$place --recipe regularized --lr 3e-3"; \
	        standard_recipe="$$place --recipe standard --lr $$lr --weight_decay 0.1"; \
	        $(PY) ensemble.py $$regularized --epochs $$epochs --weight_decay $$decay \
	            --members 3 --jobs $(JOBS) || exit; \
	        for seed in 0 1 2; do \
	            $(PY) train.py $$standard_recipe --epochs $$standard --seed $$seed || exit; done; \
	        for other in $$more $$less; do \
	            $(PY) train.py $$regularized --epochs $$epochs --weight_decay $$other || exit; done; \
	        for other in $$((epochs / 2)) $$((epochs * 2)); do \
	            $(PY) train.py $$regularized --epochs $$other --weight_decay $$decay || exit; done; \
	        for other in $$((standard / 2)) $$((standard * 2)); do \
	            $(PY) train.py $$standard_recipe --epochs $$other || exit; done; \
	    done || exit; done
	for row in "150k 128" "300k 64" "600k 32" "1.4m 16"; do set -- $$row; \
	    for budget in "419430 0.4" "838860 0.2"; do set -- $$1 $$2 $$budget; \
	        $(PY) ensemble.py $(EVERY) --out runs/efficiency --size $$1 --epochs $$2 --tokens $$3 \
	            --weight_decay $$4 --recipe member --lr 3e-3 --members 3 --jobs $(JOBS) \
	            || exit; done; done
	for row in "300k 419430 32 0" "300k 419430 32 1" "300k 419430 32 2" "300k 838860 32 0" \
	    "150k 838860 64 0" "600k 838860 16 0" "600k 1677721 16 0"; do set -- $$row; \
	    $(PY) train.py $(EVERY) --out runs/efficiency --size $$1 --tokens $$2 --epochs $$3 \
	        --recipe regularized --lr 1e-2 --weight_decay 0.2 --seed $$4 || exit; done
	$(PY) train.py $(EVERY) --out runs/efficiency --size 300k --tokens 838860 --epochs 64 \
	    --recipe regularized --lr 1e-3 --weight_decay 0.2
	@# the standard recipe's lr, at the sizes that are its best on more text
	for row in "300k 419430 32 3e-2" "1.4m 419430 8 1e-2" "1.4m 419430 8 1e-3" \
	    "1.4m 838860 8 1e-2" "1.4m 838860 8 1e-3" "1.4m 1677721 8 1e-2" \
	    "1.4m 1677721 8 1e-3"; do set -- $$row; \
	    $(PY) train.py $(EVERY) --out runs/efficiency --size $$1 --tokens $$2 --epochs $$3 \
	        --recipe standard --lr $$4 --weight_decay 0.1 || exit; done
	@# whether weight decay 0.1 regularizes, once an epoch has eight times the steps
	$(PY) train.py $(EVERY) --out runs/efficiency --size 600k --tokens 1677721 --epochs 16 \
	    --recipe regularized --lr 1e-2 --weight_decay 0.025
	@# what ensembles reach with four and eight times the text takes the standard recipe more
	for tokens in 3355443 6710886; do \
	    $(PY) train.py $(EVERY) --out runs/efficiency --size 1.4m --tokens $$tokens --epochs 8 \
	        --recipe standard --lr 3e-3 --weight_decay 0.1 || exit; done
	$(PY) fit.py runs/efficiency

# Continued pre-training: on mathematics, after other docstrings. Rows: tokens, epochs, lr, batch
# size, seed. Those of more than 131,072 tokens are the default recipe's law over D.
continued: data
	$(PY) results/continued.py data/continued
	$(PY) prepare.py --source data/continued/general.jsonl --name general
	$(PY) prepare.py --source data/continued/mathematics.jsonl --name mathematics \
	    --tokenizer data/general/tokenizer.tiktoken
	$(PY) train.py --data general --size 300k --tokens 1677721 --epochs 4 --lr 1e-2 \
	    --weight_decay 0.2 $(EVERY) --out runs/continued
	from="--data mathematics --init_from $$(ls -d runs/continued/general-*-s0-*) $(EVERY) \
	    --out runs/continued --weight_decay 0.1"; \
	for row in "131072 1 1e-3 16 0" "131072 1 3e-3 16 0" "131072 1 1e-2 16 0" \
	    "131072 1 1e-3 4 0" "131072 1 3e-3 4 0" "131072 1 1e-2 4 0" \
	    "131072 1 1e-3 1 0" "131072 1 3e-3 1 0" "131072 1 1e-2 1 0" \
	    "131072 1 3e-3 16 1" "131072 1 3e-3 4 1" "131072 1 1e-3 1 1" \
	    "131072 1 3e-3 16 2" "131072 1 3e-3 4 2" "131072 1 1e-3 1 2" \
	    "131072 4 1e-3 4 0" "131072 8 1e-3 4 0" "131072 16 1e-3 4 0" \
	    "131072 4 3e-3 4 0" "131072 8 3e-3 4 0" "131072 16 3e-3 4 0" \
	    "262144 1 3e-3 16 0" "262144 1 3e-3 16 1" "262144 1 3e-3 16 2" \
	    "524288 1 3e-3 16 0" "524288 1 3e-3 16 1" "524288 1 3e-3 16 2" "524288 1 1e-2 16 0" \
	    "1048576 1 3e-3 16 0" "1048576 1 3e-3 16 1" "1048576 1 3e-3 16 2" \
	    "1048576 1 1e-2 16 0" \
	    "2284775 1 3e-3 16 0" "2284775 1 1e-2 16 0" "2284775 1 1e-2 16 1"; do set -- $$row; \
	    $(PY) train.py $$from --tokens $$1 --epochs $$2 --lr $$3 --batch_size $$4 --seed $$5 || \
	        exit; done; \
	for row in "4 1e-3" "8 1e-3" "4 3e-3" "8 3e-3"; do set -- $$row; \
	    $(PY) ensemble.py $$from --tokens 131072 --epochs $$1 --lr $$2 --batch_size 4 \
	        --members 5 --vary data_seed --jobs $(JOBS) || exit; done
	@# two more base models: what the choice of one does to all of this
	for seed in 1 2; do \
	    $(PY) train.py --data general --size 300k --tokens 1677721 --epochs 4 --lr 1e-2 \
	        --weight_decay 0.2 $(EVERY) --out runs/continued --seed $$seed || exit; \
	    from="--data mathematics --init_from $$(ls -d runs/continued/general-*-s$$seed-*) $(EVERY) \
	        --out runs/continued --weight_decay 0.1 --seed $$seed"; \
	    for row in "131072 3e-3 16" "262144 3e-3 16" "524288 3e-3 16" "131072 1e-3 1"; do \
	        set -- $$row; $(PY) train.py $$from --tokens $$1 --epochs 1 --lr $$2 --batch_size $$3 || \
	            exit; done; \
	    for lr in 1e-3 3e-3; do \
	        $(PY) ensemble.py $$from --tokens 131072 --epochs 4 --lr $$lr --batch_size 4 \
	            --members 5 --vary data_seed --jobs $(JOBS) || exit; done; done
	@# and one of 1.4m: what the number of parameters does
	$(PY) train.py --data general --size 1.4m --tokens 1677721 --epochs 4 --lr 3e-3 \
	    --weight_decay 0.2 $(EVERY) --out runs/continued_larger
	from="--data mathematics --init_from $$(ls -d runs/continued_larger/general-*) $(EVERY) \
	    --out runs/continued_larger --weight_decay 0.1"; \
	for row in "131072 1e-3 16" "131072 3e-3 16" "262144 1e-3 16" "262144 3e-3 16" \
	    "524288 1e-3 16" "524288 3e-3 16" "131072 3e-4 1" "131072 1e-3 1"; do set -- $$row; \
	    $(PY) train.py $$from --tokens $$1 --epochs 1 --lr $$2 --batch_size $$3 || exit; done; \
	for lr in 1e-3 3e-3; do \
	    $(PY) ensemble.py $$from --tokens 131072 --epochs 4 --lr $$lr --batch_size 4 \
	        --members 5 --vary data_seed --jobs $(JOBS) || exit; done
	$(PY) fit.py runs/continued runs/continued_larger

# Accuracy against loss of all runs and ensembles of docstrings that are in runs/
downstream: data
	$(PY) train.py --size 300k --recipe standard --epochs 1 $(EVERY) --out runs/single_epoch
	for result in runs/*/docstrings-*/result.json runs/*/ensembles/docstrings-*/result.json; do \
	    $(PY) eval.py $$(dirname $$result) --tasks continuation --study downstream \
	        --save runs/downstream.jsonl || exit; done
	$(PY) fit.py downstream runs/downstream.jsonl --columns error=error_mutual_info \
	    --figure runs/downstream.png

readme: .venv/installed
	$(PY) results/readme.py

bench: .venv/installed-test
	$(PY) results/bench.py 1.5m 6m
	$(PY) results/sampling.py
	$(PY) results/fits.py

# two workers, a core each: a second thread of one would wait for the other's core
test: .venv/installed-test
	OMP_NUM_THREADS=1 $(PY) -m pytest -q -n 2 test_all.py

.venv/bin/python:
	@$(PYTHON) -c "import sys; sys.version_info < (3, 11) and \
	    sys.exit('Python 3.11 or later is needed: make PYTHON=...')"
	$(PYTHON) -m venv .venv

.venv/installed: requirements.txt | .venv/bin/python
	$(PY) -m pip install -q -r requirements.txt
	@touch $@

.venv/installed-test: requirements-test.txt .venv/installed
	$(PY) -m pip install -q -r requirements-test.txt
	@touch $@
