"""One regularized, epoched run (paper, sections 2 and 3).

    python train.py --size 300k --recipe regularized
    python train.py --size 300k --epochs 16 --lr 3e-3 --weight_decay 1.6 --seed 1
    python train.py --tune --size 300k --recipe regularized --seeds 3 --jobs 2

A run is a pure function of its TrainConfig, and its folder is the memo. Ask for a finished run:
nothing happens. Ask for an interrupted one: it goes on exactly where it was. runs/NAME/ holds
config.json, log.jsonl, model.pt and, written last, result.json: that makes the run a finished one.

Read Run.train_step() and run_steps() first; the rest serves them.
"""
import concurrent.futures
import contextlib
import copy
import dataclasses
import fcntl
import hashlib
import itertools
import json
import math
import multiprocessing
import os
import platform
import queue
import re
import resource
import shlex
import shutil
import socket
import subprocess
import sys
import sysconfig
import threading
import time
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from model import GPT, GPTConfig, Guide, LADDER, SCALE_OF, SIZES
from prepare import (PAPER_TOKENS, InputError, Parser, Progress, cannot_write, cut_windows,
                     hub_end_of_text, load_data, read_json, refuse, run_main, sha256_file,
                     write_atomically, write_json)

# labels of budgets, as multiples of the paper's smallest, 209,715,200 tokens over the scale
BUDGETS = {"200m": 1, "400m": 2, "800m": 4, "1.6b": 8}
SEEDS = ("seed", "init_seed", "data_seed")  # what runs of one setting differ in
ALL_SEEDS = (*SEEDS, "subset_seed")  # every seed that a run draws with
TEACHER_CACHE_BYTES = 2 ** 30  # teachers' states of all windows stay in memory if they fit in this
LOCK_SILENCE = 600  # seconds without a heartbeat after which another host's lock is abandoned

# (epochs, lr, weight_decay) for each of BUDGETS in turn, as far as it is tuned. Scale 1 has the
# paper's, from its released search. 1/1000 was searched with this kit (runs: results/1000.jsonl):
# standard and regularized settings are certified, students' were chosen among a few.
TUNED = {
    "standard": {
        "150m": [(8, 3e-3, 0.1), (16, 1e-2, 0.1), (32, 1e-2, 0.1), (64, 3e-3, 0.1)],
        "300m": [(8, 1e-3, 0.1), (8, 3e-3, 0.1), (16, 3e-3, 0.1), (16, 3e-3, 0.1)],
        "600m": [(4, 1e-3, 0.1), (4, 1e-3, 0.1), (8, 3e-3, 0.1), (8, 3e-3, 0.1)],
        "1.4b": [(4, 3e-4, 0.1), (4, 3e-4, 0.1), (4, 1e-3, 0.1), (4, 1e-3, 0.1)],
        "150k": [(16, 1e-2, 0.1)],
        "300k": [(16, 1e-2, 0.1)],
        "600k": [(16, 1e-2, 0.1)],
        "1.4m": [(8, 3e-3, 0.1)],
    },
    "regularized": {
        "150m": [(16, 3e-3, 0.8), (32, 3e-3, 0.8), (64, 3e-3, 0.4), (64, 3e-3, 0.1)],
        "300m": [(16, 3e-3, 1.6), (16, 3e-3, 0.8), (16, 3e-3, 0.4), (32, 1e-3, 0.4)],
        "600m": [(8, 1e-3, 3.2), (8, 1e-3, 1.6), (16, 3e-3, 0.4), (16, 1e-3, 0.8)],
        "1.4b": [(8, 1e-3, 3.2), (8, 1e-3, 3.2), (8, 1e-3, 1.6), (8, 1e-3, 0.8)],
        "150k": [(64, 3e-3, 1.6)],
        "300k": [(32, 3e-3, 1.6)],
        "600k": [(16, 3e-3, 1.6)],
        "1.4m": [(16, 3e-3, 1.6)],
    },
    # students of an ensemble; an epoch is one pass over the real tokens of a mixture
    "student": {
        "300m": [(16, 3e-3, 0.1)],
        "300k": [(12, 1e-2, 0.2)],
    },
    # students whose loss follows their teachers' prediction of the real text
    "kl_student": {
        "300k": [(32, 1e-2, 0.2)],
    },
}

# (epochs, lr, weight_decay) of continued pre-training: what the paper used for Llama 3.2 3B on 4.2B
# tokens of mathematics. It serves any size until one is tuned.
CONTINUED = (8, 3e-5, 0.1)


# --------------------------------------------------------------------------------------------------
# Configuration

def scale_of(size):
    """The scale of a size of the ladder; models from elsewhere count as of scale 1."""
    return SCALE_OF.get(size, 1)


def option(default, help, group, identity=True, choices=None, least=0, nargs=None):
    """A field of TrainConfig that is a command-line option, too.

    identity=False: it stays out of the run's name, because it does not change what is computed, or
    because another field records what does. least: the smallest number that is allowed.
    """
    metadata = dict(help=help, group=group, identity=identity, choices=choices, least=least,
                    nargs=nargs)
    return field(default=default, metadata=metadata)


@dataclass
class TrainConfig:
    """All that decides a run, and how it is carried out.

    resolve() fills what is left open and decides the result, such as epochs and dtype. Seeds stay
    open (see drawn_seed), and so do device and compile, which each machine decides for itself.
    """
    # What is learned. Each field here changes the run's name; init_from does by started_from below.
    data: str = option("docstrings", "data set, a folder of data/", "what")
    size: str = option("300k", "parameters, as the paper names its models", "what",
                       choices=tuple(SIZES))
    init_from: str = option("", "finished run, or Llama in Hugging Face's format, whose weights "
                            "training starts from; it decides the size", "what", identity=False)
    tokens: str = option(None, "unique tokens D: a number, or 200m, 400m, 800m, 1.6b over the "
                         "size's scale (default: 200m, or all of the data where they are fewer)",
                         "what")
    seed: int = option(0, "of the initial weights and of the data order", "what")
    init_seed: int = option(None, "of the initial weights alone (default: --seed)", "what")
    data_seed: int = option(None, "of the data order alone (default: --seed)", "what")
    subset_seed: int = option(None, "draws the documents that make up the tokens (default: the "
                              "first ones)", "what")

    # How it is learned: what the paper's recipes differ in, then what they share.
    recipe: str = option("regularized", "a label that fills the next three; with --init_from it "
                         "is cpt", "recipe", identity=False,
                         choices=(*TUNED, "member", "cpt"))
    epochs: int = option(None, "passes over the tokens (default: the recipe's)", "recipe", least=1)
    lr: float = option(None, "peak learning rate (default: the recipe's)", "recipe")
    weight_decay: float = option(None, "AdamW's; a step takes lr times it off the weights "
                                 "(default: the recipe's)", "recipe")
    context: int = option(None, "tokens a window (default: the scale's)", "recipe", least=2)
    batch_size: int = option(None, "windows a step (default: the scale's)", "recipe", least=1)
    shuffle: str = option("epoch", "epoch: windows anew each epoch; once: one order for all; "
                          "document: documents are packed into windows anew each epoch", "recipe",
                          choices=("epoch", "once", "document"))
    doc_mask: int = option(1, "1: attention stays inside a document; 0: plain causal", "recipe",
                           choices=(0, 1))

    # Distillation: sampled text beside the real one, or teachers whose prediction the loss follows.
    synthetic: str = option("", "data set of sampled tokens to mix in (distill.py makes it)",
                            "distillation")
    synthetic_weight: float = option(0.0, "share of synthetic windows in each epoch, below 1",
                                     "distillation")
    teacher: tuple = option((), "finished runs or ensembles; the loss follows their mean logits",
                            "distillation", identity=False, nargs="+")
    kl_weight: float = option(0.0, "share of the divergence from the teachers in the loss, up to 1",
                              "distillation")
    kl_temperature: float = option(1.0, "temperature of both predictions in the divergence",
                                   "distillation")
    kl_on: str = option("all", "windows whose loss has the divergence", "distillation",
                        choices=("all", "real", "sampled"))

    # How it is carried out. Only the precision changes more than rounding, so only it is identity.
    dtype: str = option("auto", "auto: bf16 on cuda, else fp32 (whose products are TF32 on cuda)",
                        "how", choices=("auto", "fp32", "bf16"))
    device: str = option("auto", "auto (cuda, then mps, then cpu) or a torch device", "how",
                         identity=False)
    compile: str = option("auto", "auto: 1 where there is a compiler; graphs: 1 with CUDA graphs, "
                          "for models whose kernels are shorter than their launch", "how",
                          identity=False, choices=("auto", "0", "1", "graphs"))
    threads: int = option(1, "CPU threads; runs side by side with one each beat one run with more",
                          "how", identity=False, least=1)
    micro_batch_size: int = option(0, "windows a forward pass, gradients accumulate; 0: as many as "
                                   "fit in memory", "how", identity=False)
    log_every: int = option(50, "steps between log lines", "how", identity=False, least=1)
    eval_every: int = option(0, "steps between validations; 0: once an epoch", "how",
                             identity=False)
    checkpoint_seconds: float = option(60.0, "seconds between checkpoints, taken at log lines",
                                       "how", identity=False)
    out: str = option("runs", "folder of the runs", "how", identity=False)
    study: str = option(None, "what the run is made for, a label (default: the last part of --out)",
                        "how", identity=False)

    # Not options: who wrote the synthetic text, and whether in "turns" or each token by their
    # "average", for the tables.
    sampled_from: tuple = field(default=(), metadata=dict(identity=False))
    teachers_take: str = field(default="", metadata=dict(identity=False))
    # Not options either, and all identity: resolve() fills in what the options above refer to.
    data_hash: str = ""  # Data.fingerprint(): other text under the same name is another run
    synthetic_hash: str = ""  # the same of the synthetic text
    teachers: tuple = ()  # their names alone, because their folders may move
    started_from: str = ""  # the name of --init_from's run, or a hash of the folder's files

    def __post_init__(self):
        # a command line and JSON give lists; identity() compares with defaults, which are tuples
        for name in ("teacher", "teachers", "sampled_from"):
            setattr(self, name, tuple(getattr(self, name)))


def add_options(parser, defaults=TrainConfig()):
    """One command-line option for each field of TrainConfig, with its help, in its group."""
    groups = {}
    for f in dataclasses.fields(TrainConfig):
        if "help" not in f.metadata:  # no option
            continue
        name = f.metadata["group"]
        if name not in groups:
            groups[name] = parser.add_argument_group(name)
        kind, default, action = f.type, getattr(defaults, f.name), "store"
        if f.metadata["nargs"]:  # the field is a tuple, each of its values a text
            kind, default, action = str, list(default), "extend"
        groups[name].add_argument(f"--{f.name}", type=kind, default=default, action=action,
                                  choices=f.metadata["choices"], nargs=f.metadata["nargs"],
                                  help=f.metadata["help"])


def config_from(args):
    """The resolved TrainConfig of parsed arguments. Raises InputError."""
    names = {f.name for f in dataclasses.fields(TrainConfig)}
    config = resolve(TrainConfig(**{k: v for k, v in vars(args).items() if k in names}))
    # --init_from decides size and recipe: to overrule a user's own words silently would mislead
    for name in ("size", "recipe"):
        asked, found = getattr(args, name), getattr(config, name)
        if name in args.given and asked != found:
            raise InputError(f"--{name} {asked} does not go with --init_from {config.init_from}, "
                             f"of {name} {found}; leave it out")
    return config


def drawn_seed(config, name):
    """The seed called `name`, one of ALL_SEEDS, that a config draws with; init_seed and data_seed
    follow --seed where they are not given."""
    value = getattr(config, name)
    if value is not None:
        return value
    if name == "subset_seed":
        return 0  # without one no subset is drawn; members that vary it count up from 0
    return config.seed


def seeds_drawn(config):
    """The seeds that a run draws with: runs of one setting that agree in all of them are copies."""
    names = ["data_seed", "subset_seed"]
    if not config.init_from:  # else its first weights are given
        names.append("init_seed")
    return tuple(drawn_seed(config, name) for name in names)


def member_configs(first, count, vary=("seed",)):
    """Resolved configs of `count` runs: the first, and those whose seeds are 1, 2, ... more.

    vary: names of the seeds to count up, some of ALL_SEEDS. Raises InputError where that changes
    nothing.
    """
    configs = []
    for i in range(count):
        seeds = {name: drawn_seed(first, name) + i for name in vary}
        configs.append(replace(first, **seeds))
        if first.init_from:  # resolve() has looked at the first alone
            check_init_seed(configs[-1])
    # copies would count as so many draws, and an ensemble of them would gain nothing
    if len(set(map(seeds_drawn, configs))) < count:
        raise InputError(f"runs that differ in {','.join(vary)} alone are copies here; leave out "
                         f"--init_seed and --data_seed, or vary them")
    return configs


def identity(config):
    """{field: value} of what a run computes: the identity fields that differ from their defaults.

    Defaults are left out, so a new option never renames old runs. So are init_seed and data_seed
    where they equal --seed, so one run has one name.
    """
    found = {}
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        # --seed 3 and --seed 3 --init_seed 3 are one run
        same_seed = f.name in ("init_seed", "data_seed") and value == config.seed
        if f.metadata.get("identity", True) and value != f.default and not same_seed:
            found[f.name] = value
    return found


def short_hash(value, digits=6):
    """A few hexadecimal digits that stand for a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:digits]


def setting_of(config):
    """A hash of identity() without the seeds: runs that agree in it differ in seeds alone."""
    setting = {k: v for k, v in identity(config).items() if k not in SEEDS}
    # longer than a name's: no readable fields stand before it
    return short_hash(setting, digits=8)


def run_name(config):
    """Readable and unique: key fields, then a hash of all that identifies the run."""
    mixed = f"-mix{config.synthetic_weight:g}" if config.synthetic else ""
    if config.teachers:
        mixed += f"-kl{config.kl_weight:g}"
    return (f"{config.data}-{config.size}-{config.tokens // 1000}k{mixed}-e{config.epochs}"
            f"-lr{config.lr:g}-wd{config.weight_decay:g}-s{config.seed}"
            f"-{short_hash(identity(config))}")


# --------------------------------------------------------------------------------------------------
# Data: windows on the device, and the order in which an epoch visits them
#
# Data are fixed and scarce, which makes this part simple: D tokens are cut once into consecutive
# windows of T tokens, all of them lie on the device, and an epoch is a permutation of the windows.
# No loader is needed, and every random choice follows from a seed and the number of the epoch.

def device_windows(tokens, context, device):
    """All windows of `tokens` as one int32 tensor on the device: (windows, context)."""
    return torch.from_numpy(cut_windows(tokens, context).astype(np.int32)).to(device)


def inputs_and_targets(windows):
    """int64 (B, T) each: every position predicts the next one, the last predicts nothing (-1)."""
    tokens = windows.long()  # stored as int32, half the memory
    return tokens, torch.nn.functional.pad(tokens[:, 1:], (0, 1), value=-1)


def synthetic_per_epoch(config, real):
    """Windows to mix with `real` ones an epoch, so that synthetic_weight of all are synthetic."""
    # s / (real + s) = weight, solved for s
    return round(real * config.synthetic_weight / (1 - config.synthetic_weight))


def epoch_order(config, epoch, real, synthetic=0):
    """The windows of one epoch in a random order: int64 (steps, batch_size).

    real, synthetic: how many windows of each there are; indices from `real` on are synthetic. Those
    are taken in turn, so none repeats before all were seen. A last incomplete batch is dropped.
    """
    mixed = synthetic_per_epoch(config, real)
    # epoch 0 takes the first `mixed` synthetic windows, epoch 1 the next, around and around
    turn = (epoch * mixed + np.arange(mixed)) % max(synthetic, 1)
    order = order_rng(config, epoch, 0).permutation(np.concatenate([np.arange(real), real + turn]))
    steps = len(order) // config.batch_size
    return order[:steps * config.batch_size].reshape(steps, config.batch_size)


def order_rng(config, epoch, stream):
    """The random numbers behind one epoch's order: stream 0 permutes windows, 1 packs documents.

    They depend on seed and epoch alone, so there is no generator to save with a checkpoint.
    """
    seed = drawn_seed(config, "data_seed")
    if config.shuffle == "once":
        epoch = 0
    return np.random.default_rng([seed, epoch, stream])


def pack_documents(tokens, end_of_text, rng, budget):
    """The documents of `tokens` in a random order, cut at `budget` tokens: (budget,). What precedes
    the first document stays in front."""
    # an end-of-text token opens each document, so piece 0 is what comes before the first of them
    documents = np.split(tokens, np.flatnonzero(np.asarray(tokens) == end_of_text))
    order = rng.permutation(len(documents) - 1) + 1
    # only as many documents as the budget needs: the pool may be far larger
    lengths = np.cumsum([len(documents[i]) for i in order])
    needed = order[:np.searchsorted(lengths, budget) + 1]
    return np.concatenate([documents[0], *(documents[i] for i in needed)])[:budget]


def budget_tokens(config, data):
    """The D unique tokens of a run, (D,): the first of the data set, or those of documents that
    subset_seed draws from all of it."""
    if config.subset_seed is None:
        return np.asarray(data.train[:config.tokens])
    rng = np.random.default_rng([config.subset_seed, 0, 2])  # a third stream beside order_rng's two
    return pack_documents(data.train, data.meta["end_of_text"], rng, config.tokens)


# --------------------------------------------------------------------------------------------------
# Schedule, optimizer, evaluation
#
# The same at every size and in every recipe; recipes differ in epochs, lr and weight decay alone.

def lr_at(step, steps, peak):
    """Learning rate of 0-based `step`: linear from 0 over the first 1% of steps, then a cosine that
    reaches 0 at `steps`."""
    # rounded down, as in the paper's code; a run of less than 100 steps has no warm-up
    warmup = steps // 100
    if step < warmup:
        return peak * step / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))


def make_optimizer(model, weight_decay):
    """The paper's AdamW: every Linear decays, the untied head too; embedding and norms do not."""
    # Weight decay pulls a matrix toward zero at every step. An embedding row is touched only when
    # its token occurs, and a norm's scale belongs at one: the paper decays neither.
    decayed, kept = [], []
    for module in model.modules():
        if module is model.head and model.config.tied:
            continue  # it is the embedding, which comes by itself
        if isinstance(module, torch.nn.Linear):
            decayed.append(module.weight)
        elif isinstance(module, (torch.nn.Embedding, torch.nn.RMSNorm)):
            kept.append(module.weight)
    # catches a new kind of layer, which would silently not be trained: give it a group above
    grouped, every = [id(p) for p in decayed + kept], [id(p) for p in model.parameters()]
    assert sorted(grouped) == sorted(every), "every parameter belongs to exactly one group"
    groups = [dict(params=decayed, weight_decay=weight_decay), dict(params=kept, weight_decay=0.0)]
    return torch.optim.AdamW(groups, betas=(0.9, 0.95), eps=1e-8, fused=True)


@torch.no_grad()
def evaluate(model, windows, batch_size, rank=0, world=1):
    """Mean nats per prediction over all windows in order, summed in float64.

    windows: int32 (windows, context), all of them. Process `rank` of `world` runs its share, and
    each gets the mean of all.
    """
    total, mine = 0.0, windows[rank::world]
    for start in range(0, len(mine), batch_size):
        tokens, targets = inputs_and_targets(mine[start:start + batch_size])
        missing = batch_size - len(tokens)
        if missing:  # a compiled model must meet one shape, so the last batch is filled up
            tokens = torch.cat([tokens, tokens[:1].expand(missing, -1)])
            ignored = torch.full_like(targets[:1], -1)
            targets = torch.cat([targets, ignored.expand(missing, -1)])
        # summed on the CPU, because mps has no float64
        total += float(model(tokens, targets).cpu().double().sum())
    # a window of T tokens has T - 1 predictions
    return add_up(total) / (len(windows) * (windows.shape[1] - 1))


# --------------------------------------------------------------------------------------------------
# The run: a step, the loop, the result

class Diverged(InputError):
    """A loss or gradient stopped being finite."""


def model_shape(config, data):
    """The GPTConfig of a run on its data set."""
    return GPTConfig(vocab_size=data.meta["vocab_size"], end_of_text=data.meta["end_of_text"],
                     context=config.context, doc_mask=bool(config.doc_mask), **SIZES[config.size])


class Run:
    """A run in memory: model, optimizer, all windows of its data, and how far it has come.

    `members` are the runs that train as this one: itself, or several that ensemble.py stacks.
    """

    def __init__(self, config, folder):
        self.config, self.folder, self.members = config, folder, [self]
        self.step, self.seconds = 0, 0.0
        self.device = use_device(config.device, config.threads)
        self.rank, self.world = join_processes()
        if config.batch_size % self.world:
            raise InputError(f"--batch_size {config.batch_size} cannot be shared by {self.world} "
                             f"processes evenly; make it a multiple of {self.world}")

        # all windows are one tensor on the device, real ones first: (windows, context)
        data = load_data(config.data)
        self.tokens, self.end_of_text = budget_tokens(config, data), data.meta["end_of_text"]
        self.train = device_windows(self.tokens, config.context, self.device)
        self.val = device_windows(data.val, config.context, self.device)
        self.real, self.synthetic = len(self.train), 0
        if config.synthetic:
            sampled = load_data(config.synthetic).train
            sampled = device_windows(sampled, config.context, self.device)
            self.train, self.synthetic = torch.cat([self.train, sampled]), len(sampled)

        # the model, with fresh weights or with those of another
        if config.init_from:
            self.model = continued_model(config, data).to(self.device)
        else:
            fresh = GPT(model_shape(config, data), drawn_seed(config, "init_seed"))
            self.model = fresh.to(self.device)
        self.optimizer = make_optimizer(self.model, config.weight_decay)

        # an epoch is one pass over the real tokens; synthetic windows make it longer
        windows = self.real + synthetic_per_epoch(config, self.real)
        self.steps_per_epoch = windows // config.batch_size
        self.steps = config.epochs * self.steps_per_epoch
        self.tokens_seen = self.steps * config.batch_size * config.context

        # what a student follows: its teachers, whose weights stay as they are
        self.teachers = load_models(config.teacher, config.out, self.device)
        if self.teachers:
            # their heads side by side, over their number: times their states side by side, one
            # product makes the mean logits, (V, sum of C)
            heads = [teacher.head.weight.detach().to(self.device) for teacher in self.teachers]
            self.teacher_head = torch.cat(heads, dim=1) / len(heads)
        share = {"all": (1, 1), "real": (1, 0), "sampled": (0, 1)}[config.kl_on]
        # the divergence's weight in the loss of a real and of a sampled window, (2,)
        self.kl_share = config.kl_weight * torch.tensor(share, device=self.device)
        self.teacher_cache = None  # their states in all windows, once guide() has asked for them

        # how and where it runs
        self.machine = describe_machine(self)
        self.parallel = self.model  # what trains: with several processes a wrapper around it
        if self.world > 1:
            # it averages gradients over processes. Rotary tables, its only buffers, are the same in
            # all and need no exchange; gradients need no second copy in buckets
            self.parallel = torch.nn.parallel.DistributedDataParallel(
                self.model, forward_sync_buffers=False, gradient_as_bucket_view=True)

    def order(self, epoch):
        """The windows of each step of an epoch, on the device: (steps, batch_size)."""
        if self.config.shuffle == "document":  # other neighbors in a window every epoch
            rng = order_rng(self.config, epoch, 1)
            packed = pack_documents(self.tokens, self.end_of_text, rng, len(self.tokens))
            self.train[:self.real] = device_windows(packed, self.config.context, self.device)
        order = epoch_order(self.config, epoch, self.real, self.synthetic)
        return torch.from_numpy(order).to(self.device)

    def trainable(self):
        """The model to call in training, compiled if it is to be.

        self.model stays as it is, since compiling would put a prefix before its weights' names.
        """
        if not self.machine["compile"]:
            return self.parallel
        mode = "reduce-overhead" if self.machine["compile"] == "graphs" else "default"
        return torch.compile(self.parallel, dynamic=False, mode=mode)

    def train_step(self, forward, order):
        """One optimizer step on the windows `order`, of which each process takes its share.

        order: int64 (batch_size,). Returns this process's part of the mean loss, in nats per
        prediction, and the norm of the gradient before clipping, () each, still on the device.
        """
        config, loss = self.config, 0.0
        # a window's last token predicts nothing
        predictions = config.batch_size * (config.context - 1)
        if self.machine["compile"] == "graphs":  # else this would load the compiler for nothing
            # the last step's outputs are done with: their memory may be written over
            torch.compiler.cudagraph_mark_step_begin()
        # a batch that does not fit in memory goes through in parts, whose gradients add up
        parts = order[self.rank::self.world].split(self.machine["micro_batch_size"])
        for i, part in enumerate(parts):
            tokens, targets = inputs_and_targets(self.train[part])
            # processes exchange gradients once a step, in the last pass: an exchange is slow
            exchange = contextlib.nullcontext()
            if self.world > 1 and i + 1 < len(parts):
                exchange = self.parallel.no_sync()
            with exchange:
                with autocast(config.dtype, self.device):
                    guide = self.guide(tokens, part)
                    total = forward(tokens, targets, guide, total=True).sum()
                    part_loss = total / predictions
                # times world, because DDP averages gradients where those of a sum are wanted
                (part_loss * self.world).backward()
            loss += part_loss.detach()
        # clipping to norm 1, as the paper does, keeps one bad batch from throwing the weights off
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.apply_gradients()
        return loss, norm

    @torch.no_grad()
    def guide(self, tokens, windows):
        """What the teachers say of some windows, a Guide; None without teachers.

        tokens: (B, T), what stands in the windows with the indices `windows`, (B,).
        """
        if not self.teachers:
            return None
        if self.teacher_cache is None and self.teacher_cache_bytes() > 0:
            # in batches of one size, so that a resumed run remembers the same to the last bit
            batches = self.train.split(self.config.batch_size)
            if self.rank == 0:  # one line for all processes
                batches = Progress("asked the teachers about", batches, "batches")
            # filled in place: parts and their whole would take twice the memory
            shape = *self.train.shape, self.teacher_head.shape[1]
            cache = torch.empty(shape, device=self.device)
            for part, batch in zip(cache.split(self.config.batch_size), batches):
                part.copy_(self.teacher_states(batch.long()))
            self.teacher_cache = cache
        if self.teacher_cache is None:
            states = self.teacher_states(tokens)
        else:
            states = self.teacher_cache[windows]
        sampled = (windows >= self.real).long()  # (B,): 0 real, 1 sampled, as in kl_share
        return Guide(states, self.teacher_head, self.kl_share[sampled][:, None],
                     self.config.kl_temperature)

    def teacher_states(self, tokens):
        """The inputs of the teachers' heads, side by side: (B, T, sum of C)."""
        states = []
        for teacher in self.teachers:
            visitor = on_device(teacher, self.device)
            states.append(compile_on_cuda(visitor.states, self.device)(tokens))
        return torch.cat(states, dim=2)

    def teacher_cache_bytes(self):
        """Bytes that the teachers' states in all windows would take; 0 where they are not kept.

        Teachers say the same of a window in every epoch, so a student whose windows stay and are
        few asks them once.
        """
        width = sum(teacher.config.width for teacher in self.teachers)
        # 4 bytes a number: what the last norm gives is fp32, under autocast as well
        size = 4 * self.train.numel() * width
        if self.config.shuffle == "document" or size > TEACHER_CACHE_BYTES:
            return 0
        return size

    def apply_gradients(self):
        """AdamW's step at the schedule's learning rate."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr_at(self.step, self.steps, self.config.lr)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def evaluate(self, windows):
        """Mean nats per prediction over windows, by the present weights.

        On a CPU a validation is too short to earn a compilation; CUDA needs one, for FlexAttention.
        """
        model, batch = self.model, self.machine["micro_batch_size"]
        if self.device.type == "cuda":
            # few windows a pass: every chunk of their logits adds to the code to be compiled
            model, batch = self.trainable(), min(batch, 8)
        with autocast(self.config.dtype, self.device):
            return evaluate(model, windows, batch, self.rank, self.world)

    def evaluate_members(self):
        """Validation loss of each member."""
        return [member.evaluate(member.val) for member in self.members]

    def cost(self):
        """What the run takes, known before it starts: parameters, steps, tokens, FLOPs."""
        flops = self.model.flops_per_token() * self.tokens_seen
        # The forward pass is a third of training, and all that a teacher does: at every step, or
        # once where its states are kept. (MFU counts the student alone.)
        asked = self.train.numel() if self.teacher_cache_bytes() else self.tokens_seen
        flops += sum(teacher.flops_per_token() / 3 for teacher in self.teachers) * asked
        return {"name": run_name(self.config), "params": self.model.parameter_count(),
                "params_nonembedding": self.model.parameter_count(embeddings=False),
                "steps": self.steps, "tokens_seen": self.tokens_seen, "flops": flops}

    def memory_bytes(self, windows, compiled):
        """Estimate of the bytes that training takes with so many windows a pass."""
        # on CUDA compiled code keeps less than eager code
        compiled = bool(compiled) and self.device.type == "cuda"
        tokens = windows * self.config.context
        more = sum(p.nbytes for teacher in self.teachers for p in teacher.parameters()
                   if p.device.type == self.device.type)
        guide_width = sum(teacher.config.width for teacher in self.teachers)
        if self.world > 1:  # DDP's buckets hold the gradients once more
            more += 4 * self.model.parameter_count()
        return (self.model.training_bytes(tokens, self.config.dtype, compiled, guide_width)
                + self.train.nbytes + self.val.nbytes + more + self.teacher_cache_bytes())

    def save(self):
        """Write resume.pt: where the run is, its weights and optimizer, and how long its log is."""
        if self.rank == 0:
            state = {"step": self.step, "seconds": self.seconds, "machine": self.machine,
                     "log_bytes": (self.folder / "log.jsonl").stat().st_size,
                     "model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
            write_atomically(self.folder / "resume.pt", lambda file: torch.save(state, file))

    def title(self):
        """What to call the run in a line of progress."""
        return self.folder.name


def run_steps(run, heartbeat):
    """Take all remaining steps of a run, with log lines, validations and checkpoints.

    heartbeat: called at every step, see claim(). Between log lines nothing waits for the device:
    the sum of losses stays there, and so does the first step at which one was not finite.
    Checkpoints are taken at log lines, where that sum starts at 0 anyway, so none has to hold it.
    """
    config, forward = run.config, run.trainable()
    # by default once an epoch: overfitting shows from one pass to the next
    eval_every = config.eval_every or run.steps_per_epoch
    rate = run.world * matmul_rate(config.dtype, run.device)
    order, loss_sum = None, 0.0
    bad_step = torch.tensor(-1, device=run.device)  # none yet
    logged_step = run.step  # of the last log line
    logged_at = saved_at = time.monotonic()  # of the last log line and the last checkpoint
    # a resumed run counts the seconds of before, too
    started, printed_at = logged_at - run.seconds, 0.0  # 0.0: the first log line is printed
    while run.step < run.steps:
        epoch, place = divmod(run.step, run.steps_per_epoch)
        if order is None or place == 0:  # a resumed run may begin inside an epoch
            order = run.order(epoch)
        loss, norm = run.train_step(forward, order[place])  # () each, or (members,)
        loss_sum = loss_sum + loss
        # a tensor on the device, looked at when the next log line waits for it anyway
        bad = (bad_step < 0) & ~torch.isfinite(loss + norm)  # only the first is kept
        bad_step = torch.where(bad, run.step, bad_step)
        run.step += 1
        heartbeat()

        last = run.step == run.steps
        validate = run.step % eval_every == 0 and not last  # finish() evaluates the last
        if not (validate or last or run.step % config.log_every == 0):
            continue

        # A log line. First the check, so that no checkpoint holds weights that are not finite.
        refuse_bad_steps(run, bad_step)
        count = (run.step - logged_step) * config.batch_size * config.context
        # tokens a second of all members; refuse_bad_steps() has just waited for the device
        speed = len(run.members) * count / (time.monotonic() - logged_at)
        losses = [add_up(total) / (run.step - logged_step) for total in loss_sum.reshape(-1)]
        vals = run.evaluate_members() if validate else []
        run.seconds = time.monotonic() - started
        mfu = speed * run.members[0].model.flops_per_token() / rate
        log_members(run, losses, vals, speed, mfu)
        if last or time.monotonic() - printed_at > 10:
            printed_at = time.monotonic()
            print_progress(run, losses, vals, speed, mfu)
        # crash-only: whatever ends this process, the same command goes on from here
        if time.monotonic() - saved_at > config.checkpoint_seconds:
            run.save()
            saved_at = time.monotonic()
        loss_sum, logged_step, logged_at = 0.0, run.step, time.monotonic()


def refuse_bad_steps(run, bad_step):
    """Raises Diverged if a member has had a loss or gradient that is not finite; this waits for the
    device. bad_step: the first such step of each member, -1 for none."""
    for member, step in zip(run.members, bad_step.reshape(-1).tolist()):
        if step >= 0:
            kept = "nothing was saved"
            if (member.folder / "resume.pt").exists():
                kept = "its last good checkpoint stays"
            raise Diverged(f"the loss or its gradient is not finite from step {step} on in "
                           f"{member.folder} ({kept}); try a lower --lr than {run.config.lr:g}")


def train(config):
    """Train the run that a resolved TrainConfig describes, or go on with it.

    Returns its result.json as a dict. Raises InputError: InUse while another process is at it,
    Diverged when its loss is not finite.
    """
    folder = Path(config.out) / run_name(config)
    _, world = join_processes()
    # torchrun's processes look at slightly different moments, and all must decide alike
    if add_up((folder / "result.json").exists()):
        result = read_run(folder, config.out)
        # labels are no part of what a run is, so that the same one is not trained twice
        other = ""
        if result["recipe"] != config.recipe:
            other = f", and labeled {result['recipe']}"
        if result.get("study", config.study) != config.study:
            other += f", of study {result['study']}"
        say(f"{folder} is finished{other}")
        return result
    folder.mkdir(parents=True, exist_ok=True)
    with explain_out_of_memory(config), claim_for_all(folder) as heartbeat:
        # someone else may have finished it before the claim
        if (folder / "result.json").exists():
            return read_json(folder / "result.json")
        run = Run(config, folder)
        begin(run)
        run_steps(run, heartbeat)
        result = finish(run)
        if world > 1:  # all wait until the first has written: gloo aborts those whom others leave
            dist.barrier()
    return result


def begin(run, **more):
    """Write the configuration, go on from a checkpoint, open the log with what ran where."""
    if run.rank == 0:
        write_json(run.folder / "config.json", asdict(run.config))
    load_checkpoint(run)
    # enough to tell, years later, why two runs of one name differ
    versions = {"python": platform.python_version(), "torch": torch.__version__,
                "numpy": np.__version__}
    write_row(run, versions=versions, machine=run.machine, git=git_state(), step=run.step,
              steps=run.steps, **more)


def finish(run):
    """The result of a run whose steps are done; published with its weights, result.json last."""
    config = run.config
    # train loss on the first tokens, as many as there are for validation: the gap between the two
    # losses shows overfitting
    sample = device_windows(run.tokens[:len(run.val) * config.context], config.context, run.device)
    val_loss, train_loss = run.evaluate(run.val), run.evaluate(sample)
    if not math.isfinite(val_loss + train_loss):  # the last update has no step after it that tells
        raise Diverged(f"the weights of {run.folder} are not finite after the last step (no result "
                       f"was saved); try a lower --lr than {config.lr:g}")
    write_row(run, step=run.step, val_loss=val_loss, train_loss=train_loss)
    # AdamW's weights are a moving average of its updates, over the last 1 / (lr x weight_decay)
    # steps (arXiv 2405.13698). This memory, tau, is given in epochs, at the peak learning rate.
    decay_per_epoch = config.lr * config.weight_decay * run.steps_per_epoch
    tau = 1 / decay_per_epoch if decay_per_epoch else None
    speed = run.tokens_seen / run.seconds
    rate = run.world * matmul_rate(config.dtype, run.device)
    result = {"kind": "run", "setting": setting_of(config), "identity": identity(config),
              **asdict(config), **run.cost(), "val_loss": val_loss, "train_loss": train_loss,
              "seconds": run.seconds, "tau_epochs": tau, "tokens_per_second": speed,
              "mfu": speed * run.model.flops_per_token() / rate, "machine": run.machine}
    if config.synthetic:  # how many there are to draw on; fewer or more may have been seen
        result["synthetic_tokens"] = run.synthetic * config.context
    if run.rank == 0:
        # in this order: a kill between the lines leaves a run that is not finished
        write_atomically(run.folder / "model.pt", run.model.save)
        write_json(run.folder / "result.json", result)
        (run.folder / "resume.pt").unlink(missing_ok=True)
    return result


# --------------------------------------------------------------------------------------------------
# Filling a configuration, and refusing what cannot run
#
# All that can be wrong is found here, before the first step, and ends in one line.

def resolve(config):
    """A copy with all filled in that depends on size, recipe, data and device. Raises InputError
    for what cannot run. To resolve it once more changes nothing."""
    first, config = not config.data_hash, replace(config)
    config.study = config.study or Path(config.out).absolute().name  # "." has no name of its own
    check_ranges(config)
    data = load_data(config.data)
    config.data, config.data_hash = data.folder.name, data.fingerprint()
    # before the rest, because it decides the size
    if config.init_from:
        fill_start(config, data)
    elif config.recipe == "cpt":
        raise InputError("--recipe cpt continues the training of a model; name it with --init_from")
    rung = LADDER[scale_of(config.size)]
    config.context = config.context or rung["context"]
    asked = config.batch_size
    config.batch_size = asked or rung["batch_size"]
    assumed = fill_settings(config, data)
    # a model from elsewhere has no rung: a batch may be a large part of little text
    if not asked and config.size not in SCALE_OF:
        assumed.append(f"a batch is {config.batch_size} windows of {config.context:,} tokens, as "
                       f"at scale 1; --batch_size takes another")
    if assumed and first:  # distill.py resolves its student twice
        say("; ".join(assumed))
    check_data(config, data)
    if config.synthetic:
        sampled = load_data(config.synthetic)
        config.synthetic, config.synthetic_hash = sampled.folder.name, sampled.fingerprint()
        check_synthetic(config, data, sampled)
        request = sampled.meta.get("identity", {})
        config.sampled_from = tuple(name for name, _ in request.get("teachers", ()))
        config.teachers_take = request.get("teachers_take", "")
    if config.teacher:
        check_teachers(config, data)

    # the device last: what is wrong with the rest is said before a GPU is started
    device = use_device(config.device, config.threads)
    if config.compile == "graphs" and device.type != "cuda":
        raise InputError(f"--compile graphs needs CUDA, not {device.type}; use --compile 1")
    if config.dtype == "auto":
        config.dtype = "bf16" if device.type == "cuda" else "fp32"
    return config


def tuned_settings(recipe):
    """{(size, tokens): (epochs, lr, weight_decay)} of all that is tuned for a recipe.

    `member` has no table: it doubles the epochs and halves the weight decay of the best single
    model (paper, section on ensembles), up to 128 epochs and down to 0.1.
    """
    found = {}
    if recipe == "member":
        for place, (epochs, lr, weight_decay) in tuned_settings("regularized").items():
            found[place] = (min(2 * epochs, 128), lr, max(weight_decay / 2, 0.1))
    for size, rows in TUNED.get(recipe, {}).items():
        for multiple, settings in zip(BUDGETS.values(), rows):
            found[size, PAPER_TOKENS * multiple // SCALE_OF[size]] = settings
    return found


def named_parameters(size):
    """The parameters that a size is named for, 1,400,000 of 1.4m; None if it is not."""
    number = re.fullmatch(r"([\d.]+)([kmb])", size)
    if number is None:
        return None
    return round(float(number[1]) * {"k": 10 ** 3, "m": 10 ** 6, "b": 10 ** 9}[number[2]])


def nearest_settings(recipe, size, tokens, steps_per_epoch):
    """(settings, where they are from) when nobody tuned a recipe at this size and budget.

    settings: (epochs, lr, weight_decay) of the nearest tuned size and budget. Sizes of one rung,
    such as 300m, 30m, 3m and 300k, are nearest. The weight decay is scaled so that AdamW's memory
    in epochs, 1 / (lr x weight_decay x steps_per_epoch), stays what it was there, since it varies
    little over the paper's optima. The standard recipe keeps its 0.1, continued pre-training has
    one setting for all.
    """
    if recipe == "cpt":
        return CONTINUED, "the paper's model of 3B at 4.2B tokens"

    def stands_for(size):  # parameters that it would have at scale 1: the same on all of a rung
        named = named_parameters(size)
        if named is None:
            raise InputError(f"size {size} is not named for its parameters, as 50k would be; "
                             "rename it, or give --epochs, --lr and --weight_decay")
        return named * SCALE_OF[size]

    def distance(place):
        other, other_tokens = place
        # the rung first (tokens per parameter are alike on a rung), then the scale, then the budget
        relative = tokens * SCALE_OF[size] / (other_tokens * SCALE_OF[other])
        return (abs(math.log(stands_for(other) / stands_for(size))),
                abs(math.log(SCALE_OF[other] / SCALE_OF[size])),
                abs(math.log(relative)))

    tuned = tuned_settings(recipe)
    other, other_tokens = min(tuned, key=distance)
    epochs, lr, weight_decay = tuned[other, other_tokens]
    if recipe != "standard":
        # half the steps an epoch take twice the weight decay for the same memory in epochs
        rung = LADDER[SCALE_OF[other]]
        there = other_tokens // rung["context"] // rung["batch_size"]
        # two digits: it is a guess, and stands in the run's name
        weight_decay = float(f"{weight_decay * there / steps_per_epoch:.2g}")
    return (epochs, lr, weight_decay), f"{other} at {other_tokens:,} tokens"


def budget_of(text, scale):
    """D as a number of tokens, from a number or a label of BUDGETS. Raises InputError."""
    label = str(text).lower()
    if label in BUDGETS:
        return PAPER_TOKENS * BUDGETS[label] // scale
    try:
        tokens = int(label.replace("_", ""))
    except ValueError:
        raise InputError(f"--tokens {text} is neither a number nor one of "
                         f"{', '.join(BUDGETS)}") from None
    if tokens < 1:
        raise InputError(f"--tokens {text} is out of range; it must be at least 1")
    return tokens


def fill_settings(config, data):
    """Fill tokens, epochs, lr and weight decay where they are not given. Returns a sentence each
    for what was assumed beyond the tuned settings, and for what cannot work."""
    scale, assumed = scale_of(config.size), []
    # own text is often smaller than the paper's budget; who asked for no number gets all of it
    default = config.tokens is None
    config.tokens = budget_of("200m" if default else config.tokens, scale)
    if default and len(data.train) < config.tokens:
        config.tokens = len(data.train)
        assumed.append(f"the budget is all {config.tokens:,} train tokens of {config.data}")
    # the default data set is known to hold several budgets
    elif default and len(data.train) > config.tokens and config.data != TrainConfig.data:
        assumed.append(f"the budget is the first {config.tokens:,} of {len(data.train):,} train "
                       f"tokens of {config.data}; --tokens takes more")

    # what is given stays, what is missing comes from the table of tuned settings, or near it
    names = ("epochs", "lr", "weight_decay")
    missing = [name for name in names if getattr(config, name) is None]
    if missing:
        settings = tuned_settings(config.recipe).get((config.size, config.tokens))
        step, rung = config.context * config.batch_size, LADDER[scale]
        budget = f"{config.tokens:,} tokens"
        if step != rung["context"] * rung["batch_size"]:  # AdamW's memory is counted in steps
            settings, budget = None, f"{budget} in steps of {step:,}"
        if settings is None:
            steps = max(1, config.tokens // config.context // config.batch_size)
            settings, where = nearest_settings(config.recipe, config.size, config.tokens, steps)
            found = dict(zip(names, settings))
            values = ", ".join(f"{name} {found[name]:g}" for name in missing)
            # with a learning rate of the user's own, the memory may be another
            kept = ""
            if {"lr", "weight_decay"} <= set(missing) and config.recipe not in ("standard", "cpt"):
                kept = ", with AdamW's memory in epochs kept"
            assumed.append(f"{config.recipe} {config.size} is not tuned at {budget}: {values} "
                           f"come from {where}{kept}; --tune searches around them")
        for name, value in zip(names, settings):
            if name in missing:
                setattr(config, name, value)
    return assumed + odd_settings(config, data)


def odd_settings(config, data):
    """A sentence each where N is not what the size is named for, and where the weight decay leaves
    nothing to learn."""
    found = []
    # N counts the rows of the vocabulary, so with another one a size is no longer the ladder's
    named, vocabulary = named_parameters(config.size), data.meta["vocab_size"]
    if named and not config.init_from:
        with torch.device("meta"):  # shapes without memory
            # N does not depend on the context, which is not checked yet
            count = GPT(model_shape(replace(config, context=1), data)).parameter_count()
        if not 0.8 < count / named < 1.25:
            found.append(f"{config.size} has {count:,} parameters with the vocabulary of "
                         f"{vocabulary:,} of {config.data}, not those it is named for")
    share = config.lr * config.weight_decay
    if share >= 1:  # as where weight decay was scaled to an epoch of only a step or two
        found.append(f"lr x weight_decay is {share:.3g}: each step takes that share of the weights "
                     f"away, and nothing is learned; lower --weight_decay")
    return found


def check_ranges(config):
    """Raises InputError for a number out of its range."""
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        if f.type in (int, float) and value is not None:
            least = f.metadata["least"]
            # written so that a nan is refused, too
            if not least <= value < math.inf:
                raise InputError(f"--{f.name} {value} is out of range; it must be at least {least}")
    for name in ALL_SEEDS:
        if (getattr(config, name) or 0) >= 2 ** 63:  # more than torch's generators take
            raise InputError(f"--{name} {getattr(config, name)} is out of range; it must be below "
                             f"2^63")
    if config.synthetic_weight >= 1 or bool(config.synthetic) != (config.synthetic_weight > 0):
        raise InputError("--synthetic and --synthetic_weight go together; the weight is below 1")
    if config.kl_weight > 1 or bool(config.teacher) != (config.kl_weight > 0):
        raise InputError("--teacher and --kl_weight go together; the weight is at most 1")
    if not config.kl_temperature:
        raise InputError("--kl_temperature 0 is out of range; it must be above 0")
    if config.kl_temperature != 1 and not config.teacher:
        raise InputError("--kl_temperature goes with --teacher")
    if config.kl_on != "all" and not (config.teacher and config.synthetic):
        raise InputError(f"--kl_on {config.kl_on} goes with --teacher and --synthetic")


def check_data(config, data):
    """Raises InputError where the data are too few for the tokens or for one batch."""
    if config.tokens > len(data.train):
        raise InputError(f"--tokens {config.tokens:,} is more than the {len(data.train):,} train "
                         f"tokens of {config.data}; lower it or prepare more text")
    # fewer windows than one batch would make an epoch of no step
    windows = config.tokens // config.context
    if windows < config.batch_size or len(data.val) < config.context:
        raise InputError(f"{config.tokens:,} train and {len(data.val):,} validation tokens do not "
                         f"fill one batch of {config.batch_size} windows of {config.context}; "
                         f"lower --batch_size or --context")


def tokenizer_of(data):
    """What data sets of one tokenizer agree in: tokens, split, and which token starts a text."""
    hashes = data.meta["sha256"]
    split = hashes.get("tokenizer.json")  # which sets from before each had one lack
    return hashes["tokenizer.tiktoken"], split, data.meta["end_of_text"]


def check_synthetic(config, data, sampled):
    """Raises InputError where sampled text does not go with the real one."""
    if tokenizer_of(data) != tokenizer_of(sampled):
        raise InputError(f"{config.synthetic} was sampled with another tokenizer than that of "
                         f"{config.data}; sample from teachers that were trained on it")
    if len(sampled.train) < config.context:
        raise InputError(f"{config.synthetic} does not fill one window of {config.context} tokens; "
                         f"sample more")
    check_share(config)


def check_share(config):
    """Raises InputError where the synthetic share of an epoch is less than a window."""
    if not synthetic_per_epoch(config, config.tokens // config.context):
        raise InputError(f"--synthetic_weight {config.synthetic_weight:g} is no whole window an "
                         f"epoch; raise it")


def check_teachers(config, data):
    """Fill in the teachers' names. Raises InputError where they do not go with the student."""
    runs = expand(config.teacher, config.out)
    results = [read_run(run, config.out) for run in runs]
    for result in results:
        if result["data_hash"] != config.data_hash:
            raise InputError(f"{result['name']} was trained on other data than {config.data}; its "
                             f"prediction is of other tokens")
        if result["context"] < config.context:
            raise InputError(f"{result['name']} has context {result['context']}; give --context "
                             f"{result['context']}, or less")
    # sorted, so that any order on the command line makes one run: sums round by their order
    named = sorted(zip([result["name"] for result in results], runs))
    config.teachers = tuple(name for name, _ in named)
    config.teacher = tuple(run for _, run in named)
    if len(set(config.teachers)) < len(runs):
        raise InputError("a teacher is given twice; it counts once")


# --------------------------------------------------------------------------------------------------
# Continued pre-training: weights of another model, a fresh optimizer and schedule (paper, section
# on continued pre-training)

def is_hub_folder(name):
    """Whether a folder is a model in Hugging Face's format. A run's config.json has no
    model_type."""
    path = Path(name) / "config.json"
    return path.exists() and "model_type" in read_json(path)


def load_start(config):
    """(folder, model, result) of --init_from; result is None where the folder is of Hugging Face's
    format. Raises InputError, or ValueError for files that hold no such model."""
    if is_hub_folder(config.init_from):
        folder = Path(config.init_from)
        return folder, GPT.from_pretrained(folder), None
    runs = expand([config.init_from], config.out)
    if len(runs) > 1:
        raise InputError(f"--init_from {config.init_from} is an ensemble; give one run, such as "
                         f"{runs[0]}")
    result = read_run(runs[0], config.out)
    return run_folder(runs[0], config.out), load_models(runs, config.out)[0], result


def fill_start(config, data):
    """Fill in what --init_from decides: size, recipe, what the run starts from, and the context
    where it is open. Raises InputError for data and options that do not go with it."""
    check_init_seed(config)
    config.recipe = "cpt"
    folder, model, result = load_start(config)
    if result is None:
        own, theirs = data.folder / "tokenizer.json", folder / "tokenizer.json"
        if not theirs.exists():
            raise InputError(f"{folder} has no tokenizer.json; save the tokenizer there, and "
                             f"prepare the text with --tokenizer {folder}")
        # source: what --tokenizer would take; same: whether the data were made with it
        source, same = folder, own.exists() and own.read_text() == theirs.read_text()
        # its tokenizer_config.json says which token starts a text, and may have changed
        same = same and hub_end_of_text(folder) == data.meta["end_of_text"]
        digest = hashlib.sha256()  # other weights in the same folder make another run
        for file in [folder / "config.json", *sorted(folder.glob("*.safetensors"))]:
            digest.update(sha256_file(file).encode())
        config.started_from = digest.hexdigest()[:12]
        millions = model.parameter_count() / 1e6
        config.size = f"llama-{millions:.3g}m" if millions < 1000 else f"llama-{millions:.0f}m"
    else:
        read = load_data(result["data"])  # which alone knows the run's tokenizer
        if read.fingerprint() != result["data_hash"]:
            raise InputError(f"{read.folder} is not the data that {result['name']} was trained "
                             f"on; prepare that again")
        source, same = read.folder, tokenizer_of(data) == tokenizer_of(read)
        config.started_from, config.size = result["name"], result["size"]

    if not same:
        raise InputError(f"{config.data} was made with another tokenizer than {config.init_from} "
                         f"reads; prepare it with --tokenizer {source}")
    most, known = model.config.context, model.config.vocab_size
    if data.meta["vocab_size"] > known:
        raise InputError(f"{config.data} has {data.meta['vocab_size']} different tokens, "
                         f"{config.init_from} knows {known}")
    if config.context is None:
        config.context = min(LADDER[scale_of(config.size)]["context"], most)
    if config.context > most:
        raise InputError(f"--context {config.context} is more than the {most} of "
                         f"{config.init_from}")


def check_init_seed(config):
    """Raises InputError where --init_from goes with a seed of fresh weights, which has no effect:
    runs that differ in it would be copies."""
    if config.init_seed not in (None, config.seed):
        raise InputError("--init_seed decides nothing in a run with --init_from; vary data_seed")


def continued_model(config, data):
    """A GPT with the weights of --init_from, and this run's context, mask and vocabulary."""
    _, loaded, _ = load_start(config)
    rows = data.meta["vocab_size"]
    shape = replace(loaded.config, context=config.context, doc_mask=bool(config.doc_mask),
                    end_of_text=data.meta["end_of_text"], vocab_size=rows)
    model, weights = GPT(shape), loaded.state_dict()
    # some models have more rows than their tokenizer has tokens, for speed: no text needs those
    for name in ("embedding.weight", "head.weight"):
        weights[name] = weights[name][:rows]
    model.load_state_dict(weights)
    return model


# --------------------------------------------------------------------------------------------------
# Log and checkpoints
#
# A checkpoint is taken at a log line and holds the length of the log. So a killed run goes on with
# the same numbers, and its log has the rows of a run that nobody killed, and a header a start.

def say(text):
    """Print a line, in the first process alone."""
    if os.environ.get("RANK", "0") == "0":
        print(text, flush=True)


def write_row(run, **row):
    """Append one JSON object to the run's log."""
    path = run.folder / "log.jsonl"
    if run.rank == 0:
        # a disk may be full here as well as at a checkpoint
        try:
            with open(path, "a") as log:
                log.write(json.dumps(row) + "\n")
        except OSError as error:
            raise cannot_write(path, error) from error


def log_members(run, losses, vals, speed, mfu):
    """Log the mean loss since the last line, in the log of each member; vals: none or one each."""
    count = len(run.members)  # stacked members share the time
    for i, member in enumerate(run.members):
        row = {"step": run.step, "epoch": run.step / run.steps_per_epoch,
               "lr": run.optimizer.param_groups[0]["lr"], "loss": losses[i]}
        if vals:
            row["val_loss"] = vals[i]
        write_row(member, **row, tokens_per_second=speed / count, mfu=mfu,
                  seconds=run.seconds / count)


def print_progress(run, losses, vals, speed, mfu):
    """Print one line of progress; speed: tokens/s of all members together."""
    # the mean of the losses over members, where several train as one
    val = f" val {np.mean(vals):.4f}" if vals else ""
    # at the speed of now: the first step, which waits for the compiler, says nothing of the others
    tokens = (run.steps - run.step) * run.config.batch_size * run.config.context
    left = len(run.members) * tokens / speed
    say(f"{run.title()}: step {run.step}/{run.steps} loss {np.mean(losses):.4f}{val} | "
        f"{speed:,.0f} tokens/s, MFU {mfu:.0%} | {left:.0f} s left")


def load_checkpoint(run):
    """Go on from resume.pt if there is one, with the log cut back to it. Raises InputError."""
    path, log = run.folder / "resume.pt", run.folder / "log.jsonl"
    if not path.exists():
        if run.rank == 0:
            log.write_bytes(b"")
        return
    try:
        state = torch.load(path, map_location=run.device, weights_only=True)
        # what torch can load may be anything
        if not {"machine", "log_bytes", "model", "optimizer", "step", "seconds"} <= set(state):
            raise ValueError("no checkpoint")
    except torch.OutOfMemoryError:
        raise  # the file may be whole: explain_out_of_memory() says what to do
    except Exception as error:  # torch raises a dozen kinds for damaged files
        raise InputError(f"{path} is damaged ({type(error).__name__}); delete it to start the run "
                         f"anew") from error
    # Jobs that share a GPU have less memory each. A run begun in smaller passes goes on in those,
    # which fit as well: passes of another size would round differently.
    smaller = state["machine"].get("micro_batch_size", 0)
    if not run.config.micro_batch_size and 0 < smaller < run.machine["micro_batch_size"]:
        run.machine["micro_batch_size"] = smaller
    if state["machine"] != run.machine:
        differ = [key for key in run.machine if state["machine"].get(key) != run.machine[key]]
        changes = ", ".join(f"{key} {state['machine'].get(key)}, here {run.machine[key]}"
                            for key in differ)
        raise InputError(f"{path} was written elsewhere ({changes}): going on would not be exact; "
                         f"use the same, or delete it to start the run anew")
    # a log is written without waiting for the disk, so a power cut may have cost it lines
    if not log.exists() or log.stat().st_size < state["log_bytes"]:
        raise InputError(f"{log} lacks lines that {path} counts on; delete {path} to start the run "
                         f"anew")
    run.model.load_state_dict(state["model"])
    run.optimizer.load_state_dict(state["optimizer"])
    run.step, run.seconds = state["step"], state["seconds"]
    # log lines after the checkpoint are taken back: they will be written again
    if run.rank == 0:
        with open(log, "r+b") as file:  # in place: "wb" would empty it
            file.truncate(state["log_bytes"])


def git_state():
    """Commit of this code, marked if files were changed; None outside a repository."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True)
    except OSError:  # no git here
        return None
    return done.stdout.strip() or None


# --------------------------------------------------------------------------------------------------
# Finished runs, as members of an ensemble or as teachers

def expand(names, out):
    """A list of runs from names of runs and ensembles: an ensemble stands for its members."""
    runs = []
    for name in names:
        members = None
        # A folder goes before a name. Resolved, because the parent's parent is needed below, which
        # a relative path or a link may not have.
        for folder in (Path(name).resolve(), Path(out) / name, Path(out) / "ensembles" / name):
            if (folder / "result.json").exists():
                members = read_json(folder / "result.json").get("members")
                break
        if members:
            # Their names are relative, and an ensemble lies beside its members:
            # RUNS/ensembles/NAME. Seen from here, because results name their teachers, and no
            # machine's folders.
            runs += [os.path.relpath(folder.parent.parent / member) for member in members]
        else:
            runs.append(name)
    return runs


def run_folder(run, out):
    """The folder of a finished run, given by folder or by name under `out`. Raises InputError."""
    for folder in (Path(run), Path(out) / run):
        if (folder / "result.json").exists():
            return folder
    raise InputError(f"{run} is not a finished run (no result.json there or under {out}/); "
                     f"train it first")


def read_run(run, out):
    """The result of a finished run, given by folder or by name under `out`. Raises InputError."""
    path = run_folder(run, out) / "result.json"
    result = read_json(path)
    if result.get("kind") != "run":
        raise InputError(f"{path} is no result of train.py (its kind is not \"run\"); give the "
                         f"folder of a run")
    for key in ("name", "recipe", "size", "data", "data_hash", "context", "val_loss"):
        if key not in result:
            raise InputError(f"{path} lacks {key}; delete its folder and train it again")
    return result


def load_models(names, out, device="cpu"):
    """The models of finished runs, ready to evaluate. Raises InputError for a damaged file.

    Models that do not fit together (fit_together) stay on the CPU; on_device() then takes one at a
    time to the GPU.
    """
    models = []
    for name in names:
        folder = run_folder(name, out)
        try:
            models.append(GPT.load(folder / "model.pt").eval())
        except (ValueError, OSError) as error:
            # a finished run is never trained again, so the folder has to go first
            raise InputError(f"{error}; delete {folder} and train it again") from error

    refuse_copies(names, models)
    device = torch.device(device)
    if device.type == "cuda" and not fit_together(models, device):
        return models
    return [model.to(device) for model in models]


def refuse_copies(names, models):
    """Raises InputError where two models have the same weights, whatever their settings say."""
    states = [model.state_dict() for model in models]
    for (one, ours), (other, theirs) in itertools.combinations(zip(names, states), 2):
        # most differ in the first matrix already, where all() stops
        if ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key])
                                                for key in ours):
            raise InputError(f"{one} and {other} have the same weights; a member counts once")


def fit_together(models, device):
    """Whether models take less than half of a GPU's memory, in fp32."""
    weights = 4 * sum(model.parameter_count() for model in models)  # bytes
    return weights < torch.cuda.get_device_properties(device).total_memory / 2


def on_device(model, device):
    """The model itself if it lives on this kind of device, else a copy that does."""
    if model.embedding.weight.device.type == torch.device(device).type:
        return model
    # a copy, because .to() would move the model itself and it would stay there
    return copy.deepcopy(model).to(device)


# --------------------------------------------------------------------------------------------------
# One process at a time in a folder
#
# Several searches, on one machine or on a shared disk, may ask for the same run at the same time.

class InUse(InputError):
    """Another process works in the run folder."""


@contextlib.contextmanager
def claim(folder):
    """Hold a run folder for this process; yields heartbeat(), to be called at every step.

    The file `lock` names the holder, and the kernel frees it however its process dies. Hosts may
    share a folder without sharing locks. For them the file's time of change is the sign of life,
    and after LOCK_SILENCE seconds without one another host takes over. Raises InUse.
    """
    host = socket.gethostname()
    me = f"process {os.getpid()} on {host}"
    with open(folder / "lock", "a+") as lock:  # "a+" makes the file, but keeps what is in it
        # of processes on this host the kernel knows whether one holds it
        free = True
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            free = False
        lock.seek(0)
        owner = lock.read()
        silence = time.time() - os.stat(lock.fileno()).st_mtime
        # of another host's only the name in the file and its age tell
        elsewhere = owner and not owner.endswith(f" on {host}")
        if not free or (elsewhere and silence < LOCK_SILENCE):
            raise InUse(f"{folder} is in use by {owner or 'another process'}; wait for it or stop "
                        f"it, then run the same command again")
        lock.truncate(0)
        lock.write(me)
        lock.flush()
        for leftover in folder.glob(".*.tmp"):  # half-written by a killed process
            leftover.unlink()
        last_beat = time.monotonic()

        def heartbeat():
            nonlocal last_beat
            # seldom, because a shared disk is slow; often enough to miss a few
            if time.monotonic() - last_beat > LOCK_SILENCE / 20:
                lock.seek(0)
                if lock.read() != me:
                    raise InUse(f"{folder} is in use by another host, which took over after "
                                f"{LOCK_SILENCE} s without a sign of this one")
                os.utime(lock.fileno())
                last_beat = time.monotonic()

        try:
            yield heartbeat
        finally:
            lock.seek(0)
            if lock.read() == me:  # else another host took over
                lock.truncate(0)


@contextlib.contextmanager
def claim_for_all(folder):
    """claim() by the first of torchrun's processes, for all of them: each raises InUse."""
    rank, _ = join_processes()
    heartbeat = lambda: None  # of the others, who hold nothing
    refused = None
    with contextlib.ExitStack() as held:
        if rank == 0:
            try:
                heartbeat = held.enter_context(claim(folder))
            except InUse as error:
                refused = error
        # The others wait here for the first. Further on they would wait for one that has gone, and
        # gloo would abort them with a page of its own.
        if add_up(refused is not None):
            raise refused or InUse(f"{folder} is in use")
        yield heartbeat


# --------------------------------------------------------------------------------------------------
# The machine
#
# What depends on where the run happens: processes, devices, compilers, memory, speed.

def join_processes():
    """(rank, world): this process among those that torchrun started, joined by gloo and NCCL."""
    world = int(os.environ.get("WORLD_SIZE", 1))
    if world == 1:
        return 0, 1
    if not dist.is_initialized():
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    return dist.get_rank(), world


def add_up(value):
    """The sum of a number over all processes, in float64 on the CPU."""
    # on the CPU it goes over gloo, and no device has to be waited for
    total = torch.tensor(float(value), dtype=torch.float64)
    if dist.is_initialized():
        dist.all_reduce(total)
    return float(total)


def use_device(name, threads=1):
    """The torch device of a name; `auto` is cuda, then mps, then cpu. Raises InputError.

    It also sets what holds for the whole process: CPU threads (torch's default, all cores, is far
    slower for small models and for runs side by side), denormal numbers as zero, one order of sums
    where a CPU has several threads, and TF32 on CUDA.
    """
    if threads < 1:
        raise InputError(f"--threads {threads} is out of range; it must be at least 1")
    torch.set_num_threads(threads)
    # strong weight decay can drive a layer to zero, whose denormal numbers are eight times slower
    torch.set_flush_denormal(True)
    if name == "auto":
        name = "mps" if torch.backends.mps.is_available() else "cpu"
        if torch.cuda.is_available():
            name = "cuda"
    # compiled code would else let threads add in any order
    ordered = threads > 1 and name.startswith("cpu")
    if torch.are_deterministic_algorithms_enabled() != ordered:  # the switch itself takes a second
        torch.use_deterministic_algorithms(ordered)
    if name == "cuda":  # under torchrun each process has a device of its own
        name = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
    try:
        device = torch.device(name)
        torch.ones(1, device=device).cpu()  # an absent device fails here
        if device.type == "cuda":
            torch.cuda.set_device(device)
            # what is asked for in fp32 runs on tensor cores, in TF32
            torch.set_float32_matmul_precision("high")
    except (RuntimeError, AssertionError, ImportError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"--device {name} cannot be used here ({reason})") from None
    return device


def missing_for_compile(device):
    """What torch.compile lacks on a device, in words; None if it lacks nothing."""
    if device.type == "cuda":  # Triton starts a C compiler
        compiler = os.environ.get("CC", "gcc")
    elif device.type == "cpu":  # TorchInductor writes C++
        compiler = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
    else:
        return "compiler for it"
    if not shutil.which(compiler):
        return compiler
    # what they compile is loaded as a Python module
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        return "Python.h"
    return None


def use_compile(choice, device):
    """Whether to compile: True, False or "graphs". `auto` says so where it does not. Raises
    InputError where what was asked for cannot be."""
    if choice == "0":
        return False
    lacking = missing_for_compile(device)
    # 1 may try a device, such as mps, whose compiler is not known here
    if lacking is None or (choice == "1" and device.type not in ("cpu", "cuda")):
        return "graphs" if choice == "graphs" else True
    if choice != "auto":
        raise InputError(f"--compile {choice} needs {lacking}, which is not here; use --compile 0")
    say(f"running eager on {device.type}: no {lacking}")
    return False


def compile_on_cuda(function, device):
    """The function, compiled on CUDA, where attention inside documents is slow without; else as it
    is, because on a CPU an evaluation is too short to earn a compilation."""
    if device.type == "cuda" and missing_for_compile(device) is None:
        return torch.compile(function, dynamic=False)
    return function


def fitting_micro_batch(run, share, compiled):
    """The largest divisor of `share` windows whose training takes at most 70% of the memory."""
    if run.device.type == "cuda":
        memory = torch.cuda.get_device_properties(run.device).total_memory
        # less than all of it where several jobs share a device: see train_quietly
        memory *= torch.cuda.get_per_process_memory_fraction(run.device)
    else:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    # large passes keep a device busy, so the largest that fits; a divisor, so that all passes have
    # one shape and are compiled once
    for size in range(share, 1, -1):
        if share % size == 0 and run.memory_bytes(size, compiled) < 0.7 * memory:
            return size
    return 1


def describe_machine(run):
    """How floating point is carried out: a resume where any of it differs would not be exact."""
    config, device = run.config, run.device
    compiled = use_compile(config.compile, device)
    share = config.batch_size // run.world
    # more windows a pass than there are would only overstate the memory
    micro = min(config.micro_batch_size, share) or fitting_micro_batch(run, share, compiled)
    if compiled == "graphs" and micro < share:  # a graph's gradients cannot outlive its next replay
        raise InputError(f"--compile graphs needs the batch in one pass, not {micro} of {share}; "
                         f"use --compile 1")
    attention = "SDPA, causal"
    if config.doc_mask:
        flex = compiled and device.type == "cuda"
        attention = "FlexAttention" if flex else "SDPA, dense mask"
    name = torch.backends.cpu.get_cpu_capability()
    if device.type == "cuda":
        name = torch.cuda.get_device_name()
    return {"device": device.type, "device_name": name, "processor": processor_name(),
            "threads": config.threads, "torch": str(torch.__version__), "compile": compiled,
            "attention": attention, "micro_batch_size": micro, "processes": run.world}


def processor_name():
    """The CPU as the system calls it, noted because two kinds of processors round differently."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        lines = []
    for line in lines:
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def autocast(dtype, device):
    """The precision of matrix products and attention, "fp32" or "bf16"; parameters and loss stay
    fp32."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=dtype == "bf16")


def matmul_rate(dtype, device):
    """FLOP/s of a large square matrix product here, the best of five: an MFU of 1."""
    # measured, not taken from a data sheet, so that MFU has a meaning on any machine
    n = 8192 if device.type == "cuda" else 512
    product_dtype = torch.bfloat16 if dtype == "bf16" else torch.float32
    a = torch.randn(n, n, device=device, dtype=product_dtype)
    best = math.inf
    for _ in range(5):
        start = time.perf_counter()
        float((a @ a)[0, 0])  # reading one number waits for the device
        best = min(best, time.perf_counter() - start)
    # each of n x n results takes n multiplications and n additions
    return 2 * n ** 3 / best


@contextlib.contextmanager
def explain_out_of_memory(config):
    """Where the device's memory is too small, raise an InputError that says what to do."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise InputError(f"{config.size} with windows of {config.context} does not fit in the "
                         f"device's memory; halve --micro_batch_size (--dry_run prints it)"
                         ) from None


def bench(run, steps):
    """Speed (tokens/s) and peak memory (bytes) of about `steps` optimizer steps, without the time
    to compile; nothing is written.

    MFU is GPT.flops_per_token() x tokens/s over the rate of a large matrix product here.
    """
    config, forward, order = run.config, run.trainable(), run.order(0)

    def time_steps(count):
        start = time.perf_counter()
        for step in range(count):
            loss, _ = run.train_step(forward, order[step % len(order)])
        float(loss.sum())  # waits for the device
        return time.perf_counter() - start

    time_steps(4)  # the first compiles, and a device needs a moment to reach its pace
    # the best of five parts: other work on the machine can only slow a part down
    part = max(1, steps // 5)
    tokens = part * len(run.members) * config.batch_size * config.context  # of all processes
    speed = tokens / min(time_steps(part) for _ in range(5))
    if run.device.type == "cuda":
        memory = torch.cuda.max_memory_allocated()
    else:
        # getrusage counts in bytes on macOS, in KiB on Linux
        unit = 1 if sys.platform == "darwin" else 1024
        memory = unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    flops = speed * run.members[0].model.flops_per_token() / run.world
    return {**run.cost(), "tokens_per_second": speed, "peak_memory": memory,
            "mfu": flops / matmul_rate(config.dtype, run.device), "machine": run.machine}


def plan(run):
    """What a run will take, before it starts: cost(), bytes of memory, the least time in
    seconds."""
    config, cost, windows = run.config, run.cost(), run.machine["micro_batch_size"]
    memory = run.memory_bytes(windows, run.machine["compile"])
    # at the rate of a large matrix product, which no real step reaches
    rate = run.world * matmul_rate(config.dtype, run.device)
    return {**cost, "micro_batch_size": windows, "memory_bytes": memory,
            "seconds_at_least": cost["flops"] / rate}


# --------------------------------------------------------------------------------------------------
# Several runs at once
#
# A search, a ladder, an ensemble: each is a list of runs to ask for. Small models cannot fill a
# machine one by one, so several train side by side.

def run_all(configs, jobs, memo=None):
    """Validation loss of each resolved config; infinite for a run that diverged.

    A loss comes from the run's folder, from memo {run name: loss}, or from training it, `jobs` at
    once; memo keeps what was trained. Processes and machines that ask for the same runs share them:
    who claims a run trains it, the others wait for its result.
    """
    memo = {} if memo is None else memo
    # a slot stands for one of the jobs, so that jobs can be spread over devices
    slots = queue.Queue()
    for job in range(jobs):
        slots.put(job)

    def find(config):
        folder = Path(config.out) / run_name(config)
        if (folder / "result.json").exists():
            return read_run(folder, config.out)["val_loss"]
        return memo.get(run_name(config))

    failed = threading.Event()

    def attempt(config):
        job = slots.get()
        try:
            # another process may have finished it since the list was made
            loss = find(config)
            if loss is None and not failed.is_set():
                loss = train_apart(config, job, jobs)
        except Exception:
            failed.set()  # so that no other run begins before the error is told
            raise
        finally:
            slots.put(job)
        if loss is not None:
            memo[run_name(config)] = loss

    # threads only wait; each run trains in a process of its own. Runs that others hold come back
    # without a loss, so the loop asks again.
    waiting = False
    with concurrent.futures.ThreadPoolExecutor(jobs) as threads:
        while missing := [config for config in configs if find(config) is None]:
            list(threads.map(attempt, missing))
            if all(find(config) is None for config in missing):
                if not waiting:
                    say(f"waiting for {len(missing)} run(s) that other processes train, "
                        f"{run_name(missing[0])} the first")
                waiting = True
                time.sleep(2)
    return [find(config) for config in configs]


def place_job(device, job, jobs):
    """(device of a job, how many jobs share it): several CUDA devices take the jobs in turn, unless
    the user named one."""
    devices = torch.cuda.device_count()
    if devices > 1 and device in ("auto", "cuda"):
        return f"cuda:{job % devices}", math.ceil(jobs / devices)
    return device, jobs


def train_apart(config, job, jobs):
    """Train in a process of its own: its loss, infinite if it diverged, None while another process
    is at it."""
    name = run_name(config)
    device, sharing = place_job(config.device, job, jobs)
    config = replace(config, device=device)
    try:
        folder = Path(config.out) / name
        if folder.exists():
            with claim(folder):  # raises InUse here, before a process has loaded torch for nothing
                pass
        # One process a run, thrown away with all that torch and its compiler remember. An exception
        # comes back as itself, and a killed process takes no other with it.
        spawn = multiprocessing.get_context("spawn")  # a fork would share CUDA's state
        with concurrent.futures.ProcessPoolExecutor(1, spawn, max_tasks_per_child=1) as process:
            return process.submit(train_quietly, config, sharing).result()
    except InUse:
        return None
    except BrokenProcessPool:
        raise InputError(f"{name} was killed, for want of memory perhaps; nothing is lost: run the "
                         f"same command again") from None
    except InputError as error:
        raise InputError(f"{name} failed: {error}") from None


def train_quietly(config, sharing):
    """The validation loss of train(), infinite if it diverged. `sharing` jobs share the device."""
    device = use_device(config.device, config.threads)
    # each gets its share of the memory, or the first would choose passes too large for the rest
    if device.type == "cuda":
        torch.cuda.set_per_process_memory_fraction(1 / sharing, device)
    try:
        result = train(config)
    except Diverged as error:  # a fact about the setting, not a failure of the search
        say(f"{run_name(config)}: {error}")
        return math.inf
    say(f"{result['name']}: val_loss {result['val_loss']:.4f}")
    return result["val_loss"]


# --------------------------------------------------------------------------------------------------
# The search for locally optimal hyperparameters (paper, section on the regularized recipe)
#
# What it finds is a claim about the table of runs: no step of the grid from here lowers the loss.
# fit.py checks that claim on the table, and prints the certificate.

# the paper's grid and a little beyond; a step multiplies by 2, or by about 3 for the learning rate
GRID = {"epochs": (1, 2, 4, 8, 16, 32, 64, 128, 256),
        "lr": (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1),
        "weight_decay": (0.0, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6)}


def snap_to_grid(config, axes, given):
    """The config with the settings that were filled in moved to the nearest place of the grid.

    Those of students and of nearest_settings() may lie between two places. `given` names the
    options that the user gave: they must be on the grid. Raises InputError where one is not.
    """
    for axis in axes:
        value, grid = getattr(config, axis), GRID[axis]
        if value not in grid and axis not in given:
            # by ratio, as the grid's steps are; its 0 has none
            place = min(filter(None, grid), key=lambda g: abs(math.log(g / value)))
            say(f"the search starts at {axis} {place:g}, the place of its grid nearest to "
                f"{value:g}")
            config = replace(config, **{axis: place})
    neighbors(config, axes)  # refuses the rest before any training
    return config


def neighbors(config, axes):
    """The configs one step of the grid away, up or down along one of the axes. Raises InputError
    off the grid."""
    found = []
    for axis in axes:
        value, grid = getattr(config, axis), GRID[axis]
        if value not in grid:
            places = ", ".join(f"{place:g}" for place in grid)
            raise InputError(f"--{axis} {value:g} is not on the search's grid: {places}")
        i = grid.index(value)
        for place in (i - 1, i + 1):
            if 0 <= place < len(grid):
                found.append(replace(config, **{axis: grid[place]}))
    return found


def tune(config, axes, seeds, jobs, memo):
    """A locally optimal setting, as a config: over `seeds` seeds no neighbor is better by more than
    a tie (see better_neighbor).

    The descent goes by one seed; then the setting moves on while a neighbor is better over all
    seeds. Each move lowers the mean, so this ends.
    """
    center = descend(config, axes, jobs, memo)
    # one seed may have been lucky: look again with all of them
    while better := better_neighbor(center, axes, seeds, jobs, memo):
        center = better
    return center


def descend(center, axes, jobs, memo):
    """Coordinate descent on the config's seed: one axis after another, until no step is better."""
    turn, stuck = 0, 0  # stuck: axes in a row without a better neighbor
    while stuck < len(axes):
        # one axis at a time, as the paper does: far fewer runs than the whole grid
        near = [center, *neighbors(center, [axes[turn % len(axes)]])]
        losses = run_all(near, jobs, memo)
        best = near[losses.index(min(losses))]
        if best is center:
            turn, stuck = turn + 1, stuck + 1
        else:  # the same axis again, while it leads down
            center, stuck = best, 0
    return center


def better_neighbor(center, axes, seeds, jobs, memo):
    """The best neighbor if it is better than a tie over the seeds, else None.

    Neighbors less than four standard deviations above the center get all the seeds; a difference of
    means within two standard errors is a tie. Raises InputError if the center itself diverges.
    """
    def losses_of(config):
        return run_all(member_configs(config, seeds), jobs, memo)

    steps = neighbors(center, axes)
    # every neighbor on one seed at least: a certificate lists them all
    first = run_all(steps, jobs, memo)
    own = losses_of(center)
    if not np.isfinite(own).all():
        raise InputError(f"lr {center.lr:g} with weight decay {center.weight_decay:g} diverges on "
                         f"some seed; start the search at a lower --lr")
    if seeds == 1:  # no spread to judge by; descend() has compared this seed already
        return None
    # a neighbor far above the center on one seed will not fall below it over several
    reach = np.mean(own) + 4 * np.std(own, ddof=1)
    near = [step for step, loss in zip(steps, first) if loss < reach]
    found = [losses_of(step) for step in near]
    # the noise of one run, pooled over settings; one that diverges says nothing about it
    finite = [losses for losses in [own, *found] if np.isfinite(losses).all()]
    sd = math.sqrt(np.mean([np.var(losses, ddof=1) for losses in finite]))
    # two standard errors of the difference between two means of `seeds` runs
    tie = 2 * sd * math.sqrt(2 / seeds)
    margins = [np.mean(losses) - np.mean(own) for losses in found]
    if margins and min(margins) < -tie:
        return near[margins.index(min(margins))]
    return None


def read_memo(path):
    """{run name: validation loss} of committed results, which a search need not train again."""
    if not path.exists():
        return {}
    # the loss is enough for a search; an ensemble needs weights, so it asks for the run itself
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return {row["name"]: row["val_loss"] for row in rows if row["kind"] == "run"}


# --------------------------------------------------------------------------------------------------
# Command line

def search(config, args):
    """--tune: print the optimum that was found and return it."""
    axes = ["epochs", "lr"]  # the standard recipe fixes its weight decay
    if config.recipe != "standard":
        axes.append("weight_decay")
    if "over" in args.given:
        axes = args.over.split(",")
    if not set(axes) <= set(GRID):
        raise InputError(f"--over takes some of {','.join(GRID)}, not {args.over}")
    if min(args.seeds, args.jobs) < 1:
        raise InputError("--seeds and --jobs must be at least 1")
    member_configs(config, args.seeds)  # refuses copies before any training
    if "RANK" in os.environ:
        raise InputError("--tune runs without torchrun: it starts processes of its own (--jobs)")
    committed = Path(__file__).parent / "results" / f"{scale_of(config.size)}.jsonl"
    memo = read_memo(committed)
    config = snap_to_grid(config, axes, args.given)
    center = tune(config, axes, args.seeds, args.jobs, memo)
    # all of these are trained by now: this only looks them up
    losses = run_all(member_configs(center, args.seeds), 1, memo)
    print(f"{config.recipe} {config.size} at {config.tokens:,} tokens: epochs {center.epochs}, lr "
          f"{center.lr:g}, weight decay {center.weight_decay:g}, loss {np.mean(losses):.4f} over "
          f"{len(losses)} seed(s)")
    sources = [str(source) for source in (committed, Path(config.out)) if source.exists()]
    for axis in axes:
        if getattr(center, axis) in (GRID[axis][0], GRID[axis][-1]):
            print(f"{axis} {getattr(center, axis):g} is an end of the search's grid: what lies "
                  "beyond was not tried")
    if args.seeds == 1:
        print("one seed certifies nothing, it may have been lucky; --seeds 3 does")
    else:
        # not of this recipe alone: its neighbors may have been run under another's name
        print(f"its certificate: python fit.py {shlex.join(sources)} --where data={center.data} "
              f"--where size={center.size} --where tokens={center.tokens} --table Certificates")
    return {"name": run_name(center), **asdict(center), "loss": np.mean(losses), "losses": losses}


def main():
    parser = Parser("Train one run, or go on with it; a finished one is left as it is. Or search, "
                    "plan, measure.")
    add_options(parser)
    group = parser.add_argument_group("search")
    group.add_argument("--tune", action="store_true", help="search locally optimal settings")
    group.add_argument("--over", help="axes of the search (default: epochs,lr,weight_decay; "
                       "standard: epochs,lr)")
    group.add_argument("--seeds", type=int, default=1, help="seeds of the optimum and of its near "
                       "ties")
    group.add_argument("--jobs", type=int, default=1, help="runs at once, each in a process of its "
                       "own")
    parser.add_argument("--dry_run", action="store_true",
                        help="print parameters, steps, FLOPs, memory, time; no run")
    parser.add_argument("--bench", type=int, metavar="STEPS", nargs="?", const=50,
                        help="time so many steps and print JSON; writes nothing")
    parser.add_argument("--json", action="store_true", help="print the result as the last line")
    args = parser.parse_args()
    if args.tune:
        refuse(args, ["dry_run", "bench"], "beside --tune")
    else:
        refuse(args, ["over", "seeds", "jobs"], "without --tune")
    if args.bench is not None and (args.bench < 1 or args.dry_run):
        raise InputError("--bench takes 1 step or more, and goes without --dry_run")
    config = config_from(args)
    if args.dry_run or args.bench:
        # a run without a folder: it cannot write anything
        with explain_out_of_memory(config):
            run = Run(config, None)
            result = bench(run, args.bench) if args.bench else plan(run)
        if not args.json and not args.bench:
            say("\n".join(f"{key}: {value}" for key, value in result.items()))
    elif args.tune:
        result = search(config, args)
    else:
        result = train(config)
        say(f"{result['name']}: val_loss {result['val_loss']:.4f} "
            f"train_loss {result['train_loss']:.4f}")
    if args.json or args.bench:
        say(json.dumps(result))
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    run_main(main)
