"""One regularized, epoched run. A run is a pure function of its TrainConfig, and its folder is the memo.

    python train.py --data docstrings --size 300k --recipe regularized
    python train.py --data docstrings --size 300k --epochs 16 --lr 3e-3 --weight_decay 1.6 --seed 1
    python train.py --tune --size 300k --recipe regularized --seeds 3 --jobs 2      # the best settings, certified

Ask for a finished run: nothing happens. Ask for an interrupted one: it resumes exactly. runs/NAME/ holds config.json,
log.jsonl, model.pt and, written last, result.json, which is what "finished" means.
"""
import argparse
import concurrent.futures
import contextlib
import csv
import dataclasses
import fcntl
import hashlib
import json
import math
import os
import platform
import queue
import resource
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from model import GPT, GPTConfig, LADDER, SCALE_OF, SIZES
from prepare import (PAPER_TOKENS, InputError, Parser, cut_windows, load_data, read_json, run_main, write_atomically,
                     write_json)

BUDGETS = {"200m": 1, "400m": 2, "800m": 4, "1.6b": 8}  # labels at scale 1, as multiples of the paper's 209,715,200
NOMINAL_PEAK = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "4090": 165e12}  # dense bf16 FLOP/s, data sheets
SEEDS = ("seed", "init_seed", "data_seed")  # what runs of one setting differ in
LOCK_SILENCE = 600  # seconds without a heartbeat after which another host's lock counts as abandoned

# (epochs, lr, weight_decay) for each budget label in turn. Scale 1: the paper's tuned settings (its released search).
# 1/1000: measured with this kit, see certificates and, of the student, students.csv in results/1000.
TUNED = {
    "standard": {"150m": [(8, 3e-3, .1), (16, 1e-2, .1), (32, 1e-2, .1), (64, 3e-3, .1)],
                 "300m": [(8, 1e-3, .1), (8, 3e-3, .1), (16, 3e-3, .1), (16, 3e-3, .1)],
                 "600m": [(4, 1e-3, .1), (4, 1e-3, .1), (8, 3e-3, .1), (8, 3e-3, .1)],
                 "1.4b": [(4, 3e-4, .1), (4, 3e-4, .1), (4, 1e-3, .1), (4, 1e-3, .1)],
                 "150k": [(16, 1e-2, .1)], "300k": [(16, 1e-2, .1)],
                 "600k": [(16, 1e-2, .1)], "1.4m": [(8, 3e-3, .1)]},
    "regularized": {"150m": [(16, 3e-3, .8), (32, 3e-3, .8), (64, 3e-3, .4), (64, 3e-3, .1)],
                    "300m": [(16, 3e-3, 1.6), (16, 3e-3, .8), (16, 3e-3, .4), (32, 1e-3, .4)],
                    "600m": [(8, 1e-3, 3.2), (8, 1e-3, 1.6), (16, 3e-3, .4), (16, 1e-3, .8)],
                    "1.4b": [(8, 1e-3, 3.2), (8, 1e-3, 3.2), (8, 1e-3, 1.6), (8, 1e-3, .8)],
                    "150k": [(64, 3e-3, 1.6)], "300k": [(32, 3e-3, 1.6)],
                    "600k": [(16, 3e-3, 1.6)], "1.4m": [(16, 3e-3, 1.6)]},
    # students of an ensemble; an epoch is a pass over the real tokens of a mixture (paper, section on distillation)
    "student": {"300m": [(16, 3e-3, .1)], "300k": [(12, 1e-2, .2)]},
}


# --------------------------------------------------------------------------------------------------------------------
# Configuration

def option(default, help, group, identity=True, choices=None, least=0):
    """A field of TrainConfig. identity=False: it says how or where to run and does not change what is computed."""
    return field(default=default, metadata=dict(help=help, group=group, identity=identity, choices=choices,
                                                least=least))


@dataclass
class TrainConfig:
    """All that decides a run, and how it is carried out; each field is a command-line option of every script that
    trains. resolve() fills what is None or "auto"."""
    data: str = option("docstrings", "data set, a folder of data/", "what")
    size: str = option("300k", "parameters, as the paper names its models", "what", choices=tuple(SIZES))
    tokens: str = option("200m", "unique tokens D: a number, or 200m, 400m, 800m, 1.6b over the size's scale", "what")
    seed: int = option(0, "of the initial weights and of the data order", "what")
    init_seed: int = option(None, "of the initial weights alone (default: --seed)", "what")
    data_seed: int = option(None, "of the data order alone (default: --seed)", "what")
    subset_seed: int = option(None, "which documents of the pool make up the tokens (default: its first ones)", "what")
    recipe: str = option("regularized", "a label that fills the next three", "recipe", identity=False,
                         choices=("standard", "regularized", "member", "student"))
    epochs: int = option(None, "passes over the tokens (default: the recipe's)", "recipe", least=1)
    lr: float = option(None, "peak learning rate (default: the recipe's)", "recipe")
    weight_decay: float = option(None, "AdamW's, times the learning rate (default: the recipe's)", "recipe")
    context: int = option(None, "tokens a window (default: the scale's)", "recipe", least=2)
    batch_size: int = option(None, "windows a step (default: the scale's)", "recipe", least=1)
    shuffle: str = option("epoch", "epoch: windows anew each epoch; once: one order for all; document: documents are "
                          "packed into windows anew each epoch", "recipe", choices=("epoch", "once", "document"))
    doc_mask: int = option(1, "1: attention stays inside a document; 0: plain causal", "recipe", choices=(0, 1))
    synthetic: str = option("", "data set of sampled tokens to mix in (distill.py makes it)", "distillation")
    synthetic_weight: float = option(0.0, "share of synthetic windows in each epoch, below 1", "distillation")
    dtype: str = option("auto", "auto: bf16 on cuda, else fp32", "how", choices=("auto", "fp32", "bf16"))
    device: str = option("auto", "auto (cuda, then mps, then cpu) or a torch device", "how", identity=False)
    compile: str = option("auto", "auto: 1 where there is a compiler; graphs: 1 with CUDA graphs, for models whose "
                          "kernels are shorter than their launch", "how", identity=False,
                          choices=("auto", "0", "1", "graphs"))
    threads: int = option(1, "CPU threads; runs side by side with one each beat one run with more", "how",
                          identity=False, least=1)
    micro_batch_size: int = option(0, "windows a forward pass, gradients accumulate; 0: as many as fit in memory",
                                   "how", identity=False)
    log_every: int = option(50, "steps between log lines", "how", identity=False, least=1)
    eval_every: int = option(0, "steps between validations; 0: once an epoch", "how", identity=False)
    checkpoint_seconds: float = option(60.0, "seconds between checkpoints, taken at log lines", "how", identity=False)
    force_resume: int = option(0, "1: resume though device, threads or compile mode differ (not bit-exact)", "how",
                               identity=False)
    out: str = option("runs", "folder of the runs", "how", identity=False)
    study: str = option(None, "what the run is made for, a label (default: the last part of --out)", "how",
                        identity=False)
    data_hash: str = ""  # of train.bin, and of the synthetic one: filled by resolve()
    synthetic_hash: str = ""


def add_options(parser, defaults=TrainConfig()):
    """One command-line option for each field of TrainConfig, in groups, with the fields' help and defaults."""
    groups = {}
    for f in dataclasses.fields(TrainConfig):
        if not f.metadata:
            continue
        name = f.metadata["group"]
        groups[name] = groups.get(name) or parser.add_argument_group(name)
        groups[name].add_argument(f"--{f.name}", type=f.type, default=getattr(defaults, f.name),
                                  choices=f.metadata["choices"], help=f.metadata["help"])


def config_from(args):
    """The resolved TrainConfig of parsed arguments."""
    names = {f.name for f in dataclasses.fields(TrainConfig)}
    return resolve(TrainConfig(**{name: value for name, value in vars(args).items() if name in names}))


def recipe_settings(recipe, size, budget):
    """(epochs, lr, weight_decay) of a recipe. `member` doubles the epochs and halves the weight decay of the best
    single model (paper, section on ensembles), up to 128 epochs and down to 0.1. Raises InputError if not tuned."""
    table = TUNED["regularized" if recipe == "member" else recipe].get(size, [])
    if budget is None or budget >= len(table):
        raise InputError(f"no tuned {recipe} settings for size {size} at these tokens; "
                         f"give --epochs, --lr and --weight_decay")
    epochs, lr, weight_decay = table[budget]
    return (min(2 * epochs, 128), lr, max(weight_decay / 2, 0.1)) if recipe == "member" else (epochs, lr, weight_decay)


def resolve(config):
    """Fill defaults that depend on size, recipe and data, and refuse what cannot run (InputError)."""
    config, scale = dataclasses.replace(config), SCALE_OF[config.size]
    config.study = config.study or Path(config.out).name
    for name in ("context", "batch_size"):
        if getattr(config, name) is None:
            setattr(config, name, LADDER[scale][name])
    try:
        label = str(config.tokens).lower()
        config.tokens = PAPER_TOKENS * BUDGETS[label] // scale if label in BUDGETS else int(label.replace("_", ""))
    except ValueError:
        raise InputError(f"--tokens {config.tokens} is neither a number nor one of {', '.join(BUDGETS)}") from None

    given = [config.epochs, config.lr, config.weight_decay]
    if None in given:
        budget = [PAPER_TOKENS * times // scale for times in BUDGETS.values()]
        budget = budget.index(config.tokens) if config.tokens in budget else None
        tuned = recipe_settings(config.recipe, config.size, budget)
        config.epochs, config.lr, config.weight_decay = (t if g is None else g for t, g in zip(tuned, given))
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        if f.type in (int, float) and value is not None and not f.metadata["least"] <= value < math.inf:
            raise InputError(f"--{f.name} {value} is out of range; it must be at least {f.metadata['least']}")
    if config.synthetic_weight >= 1 or bool(config.synthetic) != (config.synthetic_weight > 0):
        raise InputError("--synthetic and --synthetic_weight go together, and the weight is below 1")

    device, data = use_device(config.device, config.threads), load_data(config.data)
    if config.compile == "graphs" and device.type != "cuda":
        raise InputError(f"--compile graphs needs CUDA, not {device.type}; use --compile 1")
    config.dtype = ("bf16" if device.type == "cuda" else "fp32") if config.dtype == "auto" else config.dtype
    config.data, config.data_hash = data.folder.name, data.fingerprint()
    if config.tokens > len(data.train):
        raise InputError(f"--tokens {config.tokens:,} is more than the {len(data.train):,} train tokens of "
                         f"{config.data}; lower it or prepare more text")
    if config.tokens // config.context < config.batch_size or len(data.val) < config.context:
        raise InputError(f"{config.tokens:,} train and {len(data.val):,} validation tokens do not fill one batch of "
                         f"{config.batch_size} windows of {config.context}; lower --batch_size or --context")
    if config.synthetic:
        sampled = load_data(config.synthetic)
        config.synthetic, config.synthetic_hash = sampled.folder.name, sampled.fingerprint()
        if sampled.meta["sha256"]["tokenizer.tiktoken"] != data.meta["sha256"]["tokenizer.tiktoken"]:
            raise InputError(f"{config.synthetic} was sampled with another tokenizer than that of {config.data}")
        if len(sampled.train) < config.context:
            raise InputError(f"{config.synthetic} does not fill one window of {config.context} tokens; sample more")
        if not synthetic_per_epoch(config, config.tokens // config.context):
            raise InputError(f"--synthetic_weight {config.synthetic_weight:g} is no whole window an epoch; raise it")
    return config


def identity(config):
    """What a run computes: every such field that differs from its default, so that a new option never renames old
    runs. A seed that equals --seed is not given apart: one run has one name."""
    return {f.name: value for f in dataclasses.fields(TrainConfig) if f.metadata.get("identity", True)
            and (value := getattr(config, f.name)) != f.default
            and not (f.name in ("init_seed", "data_seed") and value == config.seed)}


def setting_of(config):
    """A hash of what a run computes but for its seeds: runs that agree in it differ in seed alone."""
    setting = {name: value for name, value in identity(config).items() if name not in SEEDS}
    return hashlib.sha256(json.dumps(setting, sort_keys=True).encode()).hexdigest()[:8]


def run_name(config):
    """Readable and unique: key fields, then a hash of all that identifies the run."""
    digest = hashlib.sha256(json.dumps(identity(config), sort_keys=True).encode()).hexdigest()[:6]
    mixed = f"-mix{config.synthetic_weight:g}" if config.synthetic else ""
    return (f"{config.data}-{config.size}-{config.tokens // 1000}k{mixed}-e{config.epochs}-lr{config.lr:g}"
            f"-wd{config.weight_decay:g}-s{config.seed}-{digest}")


# --------------------------------------------------------------------------------------------------------------------
# One process at a time

class InUse(InputError):
    """Another process works in the run folder."""


@contextlib.contextmanager
def claim(folder):
    """Hold a run folder for this process; yields the heartbeat, to be called at every step.

    The file `lock` names the holder, and the kernel frees it when its process dies, however. For hosts that share the
    folder but not their locks its modification time is the heartbeat: after LOCK_SILENCE seconds of silence another
    host takes over. Raises InUse when someone else works there, or has taken over.
    """
    host = socket.gethostname()
    me = f"process {os.getpid()} on {host}"
    with open(folder / "lock", "a+") as lock:
        held = False
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            held = True
        lock.seek(0)
        owner, silence = lock.read(), time.time() - os.stat(lock.fileno()).st_mtime
        if held or owner and not owner.endswith(f" on {host}") and silence < LOCK_SILENCE:
            raise InUse(f"{folder} is in use by {owner}; wait for it or stop it, then run the same command again")
        lock.truncate(0)
        lock.write(me)
        lock.flush()
        for leftover in folder.glob(".*.tmp"):  # of a killed process
            leftover.unlink()
        beaten = time.monotonic()

        def still_mine():
            lock.seek(0)
            return lock.read() == me

        def heartbeat():
            nonlocal beaten
            if time.monotonic() - beaten > LOCK_SILENCE / 20:
                if not still_mine():
                    raise InUse(f"{folder} is in use by another host, taken over after {LOCK_SILENCE} s of silence")
                os.utime(lock.fileno())
                beaten = time.monotonic()
        try:
            yield heartbeat
        finally:
            if still_mine():
                lock.truncate(0)


# --------------------------------------------------------------------------------------------------------------------
# Data: windows on the device, and the order in which an epoch visits them

def device_windows(tokens, context, device):
    """All windows of `tokens` as one int32 tensor on the device: (windows, context)."""
    return torch.from_numpy(cut_windows(tokens, context).astype(np.int32)).to(device)


def inputs_and_targets(windows):
    """int64 (B, T) each: every position predicts the next one, the last predicts nothing (-1)."""
    tokens = windows.long()
    return tokens, torch.nn.functional.pad(tokens[:, 1:], (0, 1), value=-1)


def synthetic_per_epoch(config, real):
    """Synthetic windows mixed with `real` windows an epoch, so that they are synthetic_weight of all."""
    return round(real * config.synthetic_weight / (1 - config.synthetic_weight))


def pack_documents(tokens, end_of_text, rng, budget=None):
    """The documents of `tokens` in a random order, cut at `budget` tokens. What precedes the first stays in front."""
    documents = np.split(tokens, np.flatnonzero(np.asarray(tokens) == end_of_text))
    order = rng.permutation(len(documents) - 1) + 1
    lengths = np.cumsum([len(documents[i]) for i in order])
    needed = order[:np.searchsorted(lengths, budget or lengths[-1]) + 1]
    return np.concatenate([documents[0], *(documents[i] for i in needed)])[:budget]


def budget_tokens(config, data):
    """The D unique tokens of a run: the first of the pool, or those of documents drawn by subset_seed."""
    if config.subset_seed is None:
        return np.asarray(data.train[:config.tokens])
    rng = np.random.default_rng([config.subset_seed, 0, 2])
    return pack_documents(data.train, data.meta["end_of_text"], rng, config.tokens)


def order_rng(config, epoch, stream):
    """The random numbers of one epoch's data order; stream 0 permutes windows, 1 packs documents (2 draws subsets)."""
    seed = config.seed if config.data_seed is None else config.data_seed
    return np.random.default_rng([seed, 0 if config.shuffle == "once" else epoch, stream])


def epoch_order(config, epoch, real, synthetic=0):
    """Windows of one epoch, permuted: int64 (steps, batch_size). Indices from `real` on are synthetic windows, which
    are taken in turn, so that none repeats before all have been seen. A last incomplete batch is dropped."""
    mixed = synthetic_per_epoch(config, real)
    turn = (epoch * mixed + np.arange(mixed)) % max(synthetic, 1)
    order = order_rng(config, epoch, 0).permutation(np.concatenate([np.arange(real), real + turn]))
    return order[:len(order) // config.batch_size * config.batch_size].reshape(-1, config.batch_size)


# --------------------------------------------------------------------------------------------------------------------
# Optimization

def lr_at(step, steps, peak):
    """Learning rate of 0-based `step`: linear from 0 over the first 1% of steps, then a cosine to 0 at `steps`."""
    warmup = steps // 100
    if step < warmup:
        return peak * step / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))


def make_optimizer(model, weight_decay):
    """AdamW as the paper's: every Linear decays, the untied head too; embedding and norms do not."""
    decayed = [module.weight for module in model.modules() if isinstance(module, torch.nn.Linear)]
    kept = [module.weight for module in model.modules() if isinstance(module, (torch.nn.Embedding, torch.nn.RMSNorm))]
    grouped, every = [id(p) for p in decayed + kept], [id(p) for p in model.parameters()]
    assert sorted(grouped) == sorted(every), "every parameter belongs to exactly one group"
    groups = [dict(params=decayed, weight_decay=weight_decay), dict(params=kept, weight_decay=0.0)]
    return torch.optim.AdamW(groups, betas=(0.9, 0.95), eps=1e-8, fused=True)


@torch.no_grad()
def evaluate(model, windows, batch_size, rank=0, world=1):
    """Mean nats per prediction over all windows in order, summed in float64; each process takes its share. The last
    batch is filled up with ignored windows, so that a compiled model meets one shape."""
    total, mine = 0.0, windows[rank::world]
    for start in range(0, len(mine), batch_size):
        tokens, targets = inputs_and_targets(mine[start:start + batch_size])
        missing = batch_size - len(tokens)
        if missing:
            tokens = torch.cat([tokens, tokens[:1].expand(missing, -1)])
            targets = torch.cat([targets, torch.full_like(targets[:1], -1).expand(missing, -1)])
        total += float(model(tokens, targets).cpu().double().sum())  # on the CPU: not every device has float64
    return add_up(total) / (len(windows) * (windows.shape[1] - 1))


# --------------------------------------------------------------------------------------------------------------------
# The machine

def join_processes():
    """(rank, world): this process among those that torchrun started, joined by gloo and NCCL; else (0, 1)."""
    world = int(os.environ.get("WORLD_SIZE", 1))
    if world > 1 and not dist.is_initialized():
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    return (dist.get_rank(), world) if world > 1 else (0, 1)


def add_up(value):
    """The sum of a number over all processes, in float64 on the CPU: the devices take no part in it."""
    total = torch.tensor(float(value), dtype=torch.float64)
    if dist.is_initialized():
        dist.all_reduce(total)
    return float(total)


def use_device(name, threads=1):
    """The torch device of a name; `auto` is cuda, then mps, then cpu. Sets the CPU threads of this process, too:
    torch's default, all cores, is far slower for small models and for runs side by side. Raises InputError."""
    if threads < 1:
        raise InputError(f"--threads {threads} is out of range; it must be at least 1")
    torch.set_num_threads(threads)
    # strong weight decay can drive a whole layer to zero, whose denormal numbers slow a CPU down eightfold
    torch.set_flush_denormal(True)
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    ordered = threads > 1 and name == "cpu"  # compiled, threads would add in any order
    if torch.are_deterministic_algorithms_enabled() != ordered:  # the switch itself takes a second
        torch.use_deterministic_algorithms(ordered)
    try:
        # under torchrun each process has its own
        device = torch.device(f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if name == "cuda" else name)
        torch.ones(1, device=device).cpu()  # an absent device fails here
        if device.type == "cuda":
            torch.cuda.set_device(device)
        return device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(f"--device {name} cannot be used here ({str(error).splitlines()[0]})") from None


def use_compile(choice, device):
    """Whether to compile: True, False or "graphs"; `auto` says in one line what it lacks where it does not.
    Raises InputError where what was asked for cannot be."""
    # what inductor needs: a C++ compiler and Python's headers for a CPU, a C compiler for CUDA (Triton)
    compilers = {"cpu": os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++"),
                 "cuda": os.environ.get("CC", "gcc")}
    if choice == "0" or choice != "auto" and device.type not in compilers:
        return choice == "1"
    lacking = compilers.get(device.type, "compiler for it")
    if device.type in compilers and shutil.which(lacking):
        lacking = "Python.h"
        if device.type == "cuda" or Path(sysconfig.get_path("include"), "Python.h").exists():
            return choice if choice == "graphs" else True
    if choice != "auto":
        raise InputError(f"--compile {choice} needs {lacking}, which is not here; use --compile 0")
    print(f"running eager on {device.type}: no {lacking}")
    return False


def fitting_micro_batch(model, config, device, share):
    """The largest divisor of `share` windows with which training takes at most 70% of the memory there is."""
    memory = (torch.cuda.get_device_properties(device).total_memory if device.type == "cuda"
              else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    sizes = [size for size in range(1, share + 1) if share % size == 0]
    return max([1] + [size for size in sizes
                      if model.training_bytes(size * config.context, config.dtype) < 0.7 * memory])


def autocast(dtype, device):
    """The precision of matrix products and attention, "fp32" or "bf16"; parameters and loss stay fp32."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=dtype == "bf16")


def matmul_rate(dtype, device):
    """FLOP/s of a large square matrix product here, the best of five: what MFU is measured against."""
    n = 8192 if device.type == "cuda" else 1024
    a = torch.randn(n, n, device=device, dtype=torch.bfloat16 if dtype == "bf16" else torch.float32)
    best = math.inf
    for _ in range(5):
        start = time.perf_counter()
        float((a @ a)[0, 0])  # reading one number waits for the device
        best = min(best, time.perf_counter() - start)
    return 2 * n ** 3 / best


def processor_name():
    """The CPU as the system calls it: runs on two kinds of processors round differently."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def git_state():
    """Commit of this code, marked if files were changed; None outside a repository."""
    try:
        describe = subprocess.run(["git", "describe", "--always", "--dirty", "--abbrev=40"], text=True,
                                  cwd=Path(__file__).parent, capture_output=True)
        return describe.stdout.strip() or None
    except OSError:  # no git here
        return None


# --------------------------------------------------------------------------------------------------------------------
# The run

class Run:
    """Everything that a run needs at hand, and its checkpoint: model, optimizer, windows, log and step. What trains
    several runs as one (ensemble.py) is a Run, too, whose members are those."""

    def __init__(self, config, folder):
        self.config, self.folder, self.step, self.seconds, self.members = config, folder, 0, 0.0, [self]
        self.loss_sum, self.logged = torch.tensor(0.0), 0  # of the steps since the last log line, and its step
        self.device = use_device(config.device, config.threads)
        self.rank, self.world = join_processes()
        if config.batch_size % self.world:
            raise InputError(f"--batch_size {config.batch_size} cannot be shared by {self.world} processes evenly")
        data = load_data(config.data)
        self.tokens, self.end_of_text = budget_tokens(config, data), data.meta["end_of_text"]
        self.train = device_windows(self.tokens, config.context, self.device)
        self.val = device_windows(data.val, config.context, self.device)
        self.real, self.synthetic = len(self.train), 0
        if config.synthetic:
            sampled = device_windows(load_data(config.synthetic).train, config.context, self.device)
            self.train, self.synthetic = torch.cat([self.train, sampled]), len(sampled)

        shape = GPTConfig(vocab_size=data.meta["vocab_size"], end_of_text=data.meta["end_of_text"],
                          context=config.context, doc_mask=bool(config.doc_mask), **SIZES[config.size])
        seed = config.seed if config.init_seed is None else config.init_seed
        self.model = GPT(shape, seed).to(self.device)
        self.optimizer = make_optimizer(self.model, config.weight_decay)
        self.steps_per_epoch = (self.real + synthetic_per_epoch(config, self.real)) // config.batch_size
        self.steps = config.epochs * self.steps_per_epoch
        self.tokens_seen = self.steps * config.batch_size * config.context
        compiled = use_compile(config.compile, self.device)
        blocked = "FlexAttention" if compiled and self.device.type == "cuda" else "SDPA, dense mask"
        share = config.batch_size // self.world
        micro = config.micro_batch_size or fitting_micro_batch(self.model, config, self.device, share)
        if compiled == "graphs" and micro < share:  # a graph's gradients cannot outlive its next replay
            raise InputError(f"--compile graphs needs the batch in one pass, not {micro} of {share}; use --compile 1")
        # how floating point is carried out: a resume elsewhere would not be exact
        name = torch.cuda.get_device_name() if self.device.type == "cuda" else torch.backends.cpu.get_cpu_capability()
        self.machine = {"device": self.device.type, "device_name": name, "processor": processor_name(),
                        "threads": config.threads, "torch": str(torch.__version__), "compile": compiled,
                        "attention": blocked if config.doc_mask else "SDPA, causal", "micro_batch_size": micro,
                        "processes": self.world}
        self.parallel = self.model  # what trains: in several processes it averages their gradients
        if self.world > 1:
            self.parallel = torch.nn.parallel.DistributedDataParallel(self.model)

    def forward(self):
        """The model to call: compiled under a second name, so that saved weights keep theirs."""
        if not self.machine["compile"]:
            return self.parallel
        mode = "reduce-overhead" if self.machine["compile"] == "graphs" else "default"
        return torch.compile(self.parallel, dynamic=False, mode=mode)

    def evaluate(self, windows):
        """Mean nats per prediction of the model as it is. A validation is too short to earn its own compilation on a
        CPU; CUDA needs it for FlexAttention."""
        with autocast(self.config.dtype, self.device):
            return evaluate(self.forward() if self.device.type == "cuda" else self.model, windows,
                            self.machine["micro_batch_size"], self.rank, self.world)

    def evaluate_members(self):
        """Validation loss of each member."""
        return [member.evaluate(member.val) for member in self.members]

    def order(self, epoch):
        """The windows of each step of an epoch, on the device: (steps, batch_size). Packs documents if configured."""
        if self.config.shuffle == "document":
            packed = pack_documents(self.tokens, self.end_of_text, order_rng(self.config, epoch, 1))
            self.train[:self.real] = device_windows(packed, self.config.context, self.device)
        return torch.from_numpy(epoch_order(self.config, epoch, self.real, self.synthetic)).to(self.device)

    def cost(self):
        """What the run takes, known before it starts."""
        return {"name": run_name(self.config), "params": self.model.parameter_count(),
                "params_nonembedding": self.model.parameter_count(embeddings=False), "steps": self.steps,
                "tokens_seen": self.tokens_seen, "flops": self.model.flops_per_token() * self.tokens_seen}

    def save(self):
        """Checkpoint everything; called by all processes at once, written by the first."""
        sums = [add_up(self.loss_sum if rank == self.rank else 0.0) for rank in range(self.world)]
        if self.rank:
            return
        state = {"step": self.step, "seconds": self.seconds, "machine": self.machine, "loss_sums": sums,
                 "logged": self.logged, "log_bytes": (self.folder / "log.jsonl").stat().st_size,
                 "model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        write_atomically(self.folder / "resume.pt", lambda file: torch.save(state, file))

    def begin(self, **more):
        """Write the configuration, go on from a checkpoint, and open the log with what ran where."""
        if self.rank == 0:
            write_json(self.folder / "config.json", asdict(self.config))
        self.resume()
        versions = {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__}
        self.log(versions=versions, machine=self.machine, git=git_state(),
                 step=self.step, steps=self.steps, **more)

    def resume(self):
        """Go on from resume.pt if there is one; the log is cut back to it."""
        path = self.folder / "resume.pt"
        if not path.exists():
            return None if self.rank else (self.folder / "log.jsonl").write_bytes(b"")
        try:
            state = torch.load(path, map_location=self.device, weights_only=True)
        except Exception as error:  # torch raises a dozen kinds for damaged files
            raise InputError(f"{path} is damaged ({type(error).__name__}); delete it to start the run anew") from error
        if state["machine"] != self.machine and not self.config.force_resume:
            raise InputError(f"{path} was written with {state['machine']}, this is {self.machine}: "
                             f"resuming would not be exact; use the same or --force_resume 1")
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.seconds = state["step"], state["seconds"]
        self.loss_sum = torch.tensor((state["loss_sums"] + [0.0] * self.world)[self.rank])
        self.logged = state["logged"]
        if self.rank == 0:
            with open(self.folder / "log.jsonl", "r+b") as log:
                log.truncate(state["log_bytes"])

    def log(self, **row):
        if self.rank == 0:
            with open(self.folder / "log.jsonl", "a") as log:
                log.write(json.dumps(row) + "\n")

    def say(self, text):
        if self.rank == 0:
            print(f"{self.folder.name}: {text}", flush=True)

    def train_step(self, forward, order):
        """One optimizer step on the windows `order`, of which each process takes its share.

        Returns this process's part of the mean loss and the gradient's norm, both still on the device.
        """
        config, loss = self.config, 0.0
        torch.compiler.cudagraph_mark_step_begin()  # without CUDA graphs this does nothing
        parts = order[self.rank::self.world].split(self.machine["micro_batch_size"])
        for i, part in enumerate(parts):
            tokens, targets = inputs_and_targets(self.train[part])
            # processes exchange gradients, which then are the mean over processes, in the last pass alone
            alone = self.world > 1 and i + 1 < len(parts)
            with self.parallel.no_sync() if alone else contextlib.nullcontext():
                with autocast(config.dtype, self.device):
                    part_loss = forward(tokens, targets).sum() / (config.batch_size * (config.context - 1))
                (part_loss * self.world).backward()
            loss += part_loss.detach()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.apply_gradients()
        return loss, norm

    def apply_gradients(self):
        """AdamW's step at the schedule's learning rate."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr_at(self.step, self.steps, self.config.lr)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


@contextlib.contextmanager
def memory_noted(config):
    """Turns a device's lack of memory into an InputError."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise InputError(f"{config.size} with windows of {config.context} does not fit in the device's memory; "
                         f"halve --micro_batch_size (the log's first line and --dry_run have it)") from None


def train(config):
    """Train the run that a resolved TrainConfig describes, or go on with it; returns its result.json as a dict."""
    folder = Path(config.out) / run_name(config)
    result_path = folder / "result.json"
    rank, world = join_processes()
    if result_path.exists():
        if rank == 0:
            print(f"{folder} is finished")
        return read_json(result_path)
    folder.mkdir(parents=True, exist_ok=True)
    with sigterm_noted() as stopped, claim(folder) if rank == 0 else contextlib.nullcontext(int) as heartbeat:
        if result_path.exists() and world == 1:  # someone else has just finished it
            return read_json(result_path)
        with memory_noted(config):
            run = Run(config, folder)
            run.begin()
            loop(run, heartbeat, stopped)
            result = finish(run)
        if world > 1:  # nobody leaves before the first has written: gloo aborts who is left
            dist.barrier()
    return result


@contextlib.contextmanager
def sigterm_noted():
    """Yields a list that a SIGTERM, as a preempted node gets, makes non-empty; ends the process if nobody else did."""
    stopped = []
    previous = signal.signal(signal.SIGTERM, lambda *_: stopped.append(True))
    try:
        yield stopped
    finally:
        signal.signal(signal.SIGTERM, previous)
    if stopped:  # after the last step
        sys.exit(128 + signal.SIGTERM)


def loop(run, heartbeat, stopped):
    """All remaining steps of a run, of each member if it has several, with log lines, validations, checkpoints."""
    config, forward, count = run.config, run.forward(), len(run.members)
    flops = run.members[0].model.flops_per_token()
    rate = run.world * matmul_rate(config.dtype, run.device)
    eval_every = config.eval_every or run.steps_per_epoch
    # each member's first step with a loss or gradient that is not finite, kept on the device: no step waits for it
    bad_step = torch.full(run.loss_sum.shape, -1, device=run.device)
    epoch, saved, printed = None, time.monotonic(), 0.0
    started, tick, ticked = time.monotonic() - run.seconds, time.monotonic(), run.step
    while run.step < run.steps:
        if run.step // run.steps_per_epoch != epoch:
            epoch = run.step // run.steps_per_epoch
            order = run.order(epoch)
        loss, norm = run.train_step(forward, order[run.step % run.steps_per_epoch])  # () or (members,) each
        bad_step = torch.where((bad_step < 0) & ~torch.isfinite(loss + norm), run.step, bad_step)
        run.loss_sum = run.loss_sum.to(run.device) + loss
        run.step += 1
        heartbeat()
        validate = run.step % eval_every == 0 and run.step < run.steps  # the end has its own, in finish()
        log_line = run.step % config.log_every == 0 or validate or run.step == run.steps
        preempted = add_up(len(stopped)) and run.step < run.steps  # all processes stop together
        if not log_line and not preempted:
            continue

        # a log line, or the end of a preempted run: the only places where the device is waited for
        for member, bad in zip(run.members, bad_step.view(-1).tolist()):
            if bad >= 0:
                raise InputError(f"the loss or its gradient is not finite from step {bad} on; the last good "
                                 f"checkpoint stays in {member.folder}; try a lower --lr than {config.lr:g}")
        run.seconds = time.monotonic() - started
        if log_line:
            speed = count * (run.step - ticked) * config.batch_size * config.context / (time.monotonic() - tick)
            losses = [add_up(total) / (run.step - run.logged) for total in run.loss_sum.view(-1)]
            vals = run.evaluate_members() if validate else []
            run.loss_sum, run.logged = torch.zeros_like(run.loss_sum), run.step
            run.seconds = time.monotonic() - started
            for i, member in enumerate(run.members):
                member.log(step=run.step, epoch=run.step / run.steps_per_epoch,
                           lr=run.optimizer.param_groups[0]["lr"], loss=losses[i],
                           **({"val_loss": vals[i]} if validate else {}), tokens_per_second=speed / count,
                           mfu=speed * flops / rate, seconds=run.seconds / count)
            if time.monotonic() - printed > 10 or run.step == run.steps:
                printed, left = time.monotonic(), (run.steps - run.step) * run.seconds / run.step
                run.say(f"step {run.step}/{run.steps} loss {np.mean(losses):.4f}"
                        + (f" val {np.mean(vals):.4f}" if validate else "")
                        + f" | {speed:,.0f} tokens/s, MFU {speed * flops / rate:.0%} | {left:.0f} s left")
        if preempted or add_up(time.monotonic() - saved > config.checkpoint_seconds):
            run.save()
            saved = time.monotonic()
        if preempted:
            run.say(f"stopped by SIGTERM at step {run.step}; the same command goes on from there")
            add_up(0.0)  # nobody leaves before the first has written
            sys.exit(128 + signal.SIGTERM)
        tick, ticked = time.monotonic(), run.step


def finish(run):
    """The result of a run whose steps are done: its losses and cost. Published with the weights, result.json last."""
    config = run.config
    fixed = device_windows(run.tokens[:len(run.val) * config.context], config.context, run.device)
    val_loss, train_loss = run.evaluate(run.val), run.evaluate(fixed)
    run.log(step=run.step, val_loss=val_loss, train_loss=train_loss)
    decay_per_epoch = config.lr * config.weight_decay * run.steps_per_epoch
    speed, rate = run.tokens_seen / run.seconds, run.world * matmul_rate(config.dtype, run.device)
    result = {"kind": "run", "setting": setting_of(config), **asdict(config), **run.cost(), "val_loss": val_loss, "train_loss": train_loss, "seconds": run.seconds,
              "tau_epochs": 1 / decay_per_epoch if decay_per_epoch else None,  # AdamW's memory
              "tokens_per_second": speed, "mfu": speed * run.model.flops_per_token() / rate, "machine": run.machine}
    if run.rank == 0:
        write_atomically(run.folder / "model.pt", run.model.save)
        write_json(run.folder / "result.json", result)
        (run.folder / "resume.pt").unlink(missing_ok=True)
    return result


def bench(run, steps):
    """Speed and memory of `steps` optimizer steps, compilation apart; nothing is written.

    MFU: GPT.flops_per_token() x tokens/s over the rate of a large matrix product here, and over the device's nominal
    dense bf16 peak where that is known.
    """
    def timed(count):
        start = time.perf_counter()
        for step in range(count):
            loss, _ = run.train_step(forward, order[step % len(order)])
        float(loss.sum())  # waits for the device
        return time.perf_counter() - start

    config, forward, order = run.config, run.forward(), run.order(0)
    first = timed(1)
    timed(3)
    # the best of five parts: a neighbour can only slow a part down
    part, tokens = max(1, steps // 5), len(run.members) * config.batch_size * config.context  # of all processes
    speed = part * tokens / min(timed(part) for _ in range(5))
    cuda = run.device.type == "cuda"
    device = torch.cuda.get_device_name() if cuda else platform.processor() or platform.machine()
    peak = next((flops for name, flops in NOMINAL_PEAK.items() if name in device), None)
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss
    memory = torch.cuda.max_memory_allocated() if cuda else unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    flops = speed * run.members[0].model.flops_per_token() / run.world
    return {**run.cost(), "tokens_per_second": speed, "mfu": flops / matmul_rate(config.dtype, run.device),
            "mfu_nominal": flops / peak if peak else None, "peak_memory": memory, "device_name": device,
            "compile_seconds": first - tokens / speed, "machine": run.machine}


# --------------------------------------------------------------------------------------------------------------------
# The search for locally optimal hyperparameters (paper, section on the regularized recipe)

# the paper's grid and a little beyond
GRID = {"epochs": (1, 2, 4, 8, 16, 32, 64, 128, 256),
        "lr": (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1),
        "weight_decay": (0.0, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6)}


def neighbours(config, axes):
    """[(step, config)]: what lies one step of the grid away along the axes. Raises InputError off the grid."""
    found = []
    for axis in axes:
        value, grid = getattr(config, axis), GRID[axis]
        if value not in grid:
            raise InputError(f"--{axis} {value:g} is not on the search's grid: {', '.join(f'{v:g}' for v in grid)}")
        for step, i in (("down", grid.index(value) - 1), ("up", grid.index(value) + 1)):
            if 0 <= i < len(grid):
                found.append((f"{axis} {step}", dataclasses.replace(config, **{axis: grid[i]})))
    return found


def read_memo(path):
    """{run name: validation loss} of the runs that a committed table holds; a search need not train those again."""
    if not path.exists():
        return {}
    with open(path, newline="") as file:
        return {row["name"]: float(row["val_loss"]) for row in csv.DictReader(file) if row["kind"] == "run"}


def train_elsewhere(config, device):
    """Train in a process of its own, on one CUDA device if named: its loss, infinite if that was not finite, or None
    while another process is at it."""
    folder = Path(config.out) / run_name(config)
    try:
        if folder.exists():
            with claim(folder):  # cheaper to ask here than in a new process
                pass
    except InUse:
        return None
    given = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)
             if f.metadata and getattr(config, f.name) not in (None, f.default)}
    options = [part for name, value in given.items() for part in (f"--{name}", str(value))]
    env = {**os.environ, **({"CUDA_VISIBLE_DEVICES": device} if device else {})}
    done = subprocess.run([sys.executable, __file__, *options], env=env, stderr=subprocess.PIPE, text=True)
    if done.returncode == 0:
        return read_json(folder / "result.json")["val_loss"]
    if "is not finite" in done.stderr:
        return math.inf
    if "is in use by" in done.stderr:
        return None
    raise InputError(f"{folder.name} failed: {(done.stderr.strip() or 'killed').splitlines()[-1]}")


def settle(configs, jobs, memo):
    """Validation loss of each resolved config: from its folder or the memo, else trained, `jobs` at once. Processes
    and machines that ask for the same runs share them: who claims a run trains it, the others wait for its result."""
    def known(config):
        path = Path(config.out) / run_name(config) / "result.json"
        return read_json(path)["val_loss"] if path.exists() else memo.get(run_name(config))

    def attempt(config):
        device = free.get()
        try:
            loss = known(config)
            loss = train_elsewhere(config, device) if loss is None else loss
            if loss is not None:
                memo[run_name(config)] = loss
        finally:
            free.put(device)

    count, free = torch.cuda.device_count(), queue.Queue()
    devices = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(count)))).split(",")
    for job in range(jobs):  # several jobs may share a device
        free.put(devices[job % count] if count > 1 else None)
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        while missing := [config for config in configs if known(config) is None]:
            list(pool.map(attempt, missing))
            if all(known(config) is None for config in missing):
                time.sleep(2)  # all of them are being trained elsewhere
    return [known(config) for config in configs]


def descend(center, axes, jobs, memo):
    """Coordinate descent from `center`, one axis after another, until no neighbour is better; on the config's seed."""
    since, turn = 0, 0  # axes without a better neighbour since the last move
    while since < len(axes):
        near = [center, *(place for _, place in neighbours(center, [axes[turn % len(axes)]]))]
        losses = settle(near, jobs, memo)
        best = near[losses.index(min(losses))]
        since, turn, center = (0, turn, best) if best is not center else (since + 1, turn + 1, center)
    return center


def certify(center, axes, seeds, jobs, memo):
    """(certificate, better neighbour or None) of a setting: it and its neighbours, losses over seeds, margins.

    The center and every neighbour within four standard deviations of it get `seeds` seeds; a difference of means
    within two standard errors is a tie. Raises InputError if the center itself diverges.
    """
    def over_seeds(configs):
        losses = settle([dataclasses.replace(c, seed=c.seed + i) for c in configs for i in range(seeds)], jobs, memo)
        return [losses[i:i + seeds] for i in range(0, len(losses), seeds)]

    def spread(groups):  # pooled over settings; a run that diverged says nothing about noise
        several = [values for values in groups if len(values) > 1 and np.isfinite(values).all()]
        return float(np.sqrt(np.mean([np.var(values, ddof=1) for values in several]))) if several else None

    steps = neighbours(center, axes)
    own, *first = settle([center, *(place for _, place in steps)], jobs, memo)
    losses, = over_seeds([center])
    if not np.isfinite(losses).all():
        raise InputError(f"lr {center.lr:g} with weight decay {center.weight_decay:g} diverges on some seed; "
                         f"start the search at a lower --lr")
    sd = spread([losses])
    near = [i for i, loss in enumerate(first) if sd is not None and loss < np.mean(losses) + 4 * sd]
    several = dict(zip(near, over_seeds([steps[i][1] for i in near])))
    sd, rows = spread([losses, *several.values()]), []
    for i, (step, place) in enumerate(steps):
        values = several.get(i, [first[i]])
        row = {"step": step, **{axis: getattr(place, axis) for axis in GRID}, "losses": values, "margin": None,
               "verdict": "diverges"}
        if np.isfinite(values).all():
            margin = float(np.mean(values) - (np.mean(losses) if i in several else own))
            tie = 2 * sd * math.sqrt(2 / seeds) if i in several else 0.0
            row |= {"margin": margin, "verdict": "better" if margin < -tie else "tie" if margin <= tie else "worse"}
        rows.append({**row, "losses": [value if math.isfinite(value) else None for value in values]})
    found = {"recipe": center.recipe, "axes": axes, "loss": float(np.mean(losses)), "losses": losses, "sd": sd,
             "neighbours": rows, "git": git_state(), "name": run_name(center), **asdict(center)}
    better = [(row["margin"], i) for i, row in enumerate(rows) if row["verdict"] == "better"]
    return found, steps[min(better)[1]][1] if better else None


def tune(config, axes, seeds, jobs, memo):
    """The certificate of a locally optimal setting: descends on one seed, then moves on while a neighbour is better
    over `seeds` of them (each move lowers the mean, so this ends)."""
    center = descend(config, axes, jobs, memo)
    while center is not None:
        found, center = certify(center, axes, seeds, jobs, memo)
    return found


def certificate_folder(config, axes, seeds):
    """Where the certificate of a search goes: all that it does not move is in the name."""
    fixed = {key: value for key, value in identity(config).items() if key not in axes}
    digest = hashlib.sha256(json.dumps([fixed, axes, seeds], sort_keys=True).encode()).hexdigest()[:6]
    name = f"{config.data}-{config.size}-{config.tokens // 1000}k-{config.recipe}-{digest}"
    return Path(config.out) / "certificates" / name


def print_certificate(found):
    """The certificate as a table: the center, then its neighbours with their margins."""
    sd = f", sd {found['sd']:.4f} pooled" if found["sd"] is not None else ""
    print(f"{found['recipe']} {found['size']} at {found['tokens']:,} tokens: {len(found['losses'])} seed(s){sd}\n"
          f"{'step':<20} {'epochs':>6} {'lr':>8} {'weight decay':>12} {'loss':>8} {'seeds':>5} {'margin':>8}")
    for row in [{**found, "step": "center", "margin": 0.0, "verdict": ""}] + found["neighbours"]:
        means = ("", "") if row["margin"] is None else (f"{np.mean(row['losses']):.4f}", f"{row['margin']:+.4f}")
        print(f"{row['step']:<20} {row['epochs']:>6} {row['lr']:>8g} {row['weight_decay']:>12g} "
              f"{means[0]:>8} {len(row['losses']):>5} {means[1]:>8} {row['verdict']}")


# --------------------------------------------------------------------------------------------------------------------

def main():
    parser = Parser("Train one run, or go on with it; a finished one is left as it is. Or search, plan, measure.")
    add_options(parser)
    search = parser.add_argument_group("search")
    search.add_argument("--tune", action="store_true", help="search locally optimal settings, write their certificate")
    search.add_argument("--over", help="axes of the search (default: epochs,lr,weight_decay; standard: epochs,lr)")
    search.add_argument("--start", choices=(*TUNED, "member"), help="recipe to start it at (default: --recipe)")
    search.add_argument("--seeds", type=int, default=1, help="seeds of the optimum and of its near ties")
    search.add_argument("--jobs", type=int, default=1, help="runs at once, each in a process of its own")
    parser.add_argument("--dry_run", action="store_true", help="print parameters, steps, FLOPs, memory, time; no run")
    parser.add_argument("--bench", type=int, default=0, metavar="STEPS", nargs="?", const=50,
                        help="time so many steps and print JSON; writes nothing")
    parser.add_argument("--json", action="store_true", help="print the result as the last line")
    args = parser.parse_args()
    axes = (args.over or "epochs,lr" + ",weight_decay" * (args.recipe != "standard")).split(",")
    if not set(axes) <= set(GRID) or min(args.seeds, args.jobs) < 1:
        raise InputError(f"--over takes some of {','.join(GRID)}; --seeds and --jobs are at least 1")
    if args.tune and "RANK" in os.environ or args.start and not args.tune:
        raise InputError("--tune runs without torchrun and starts its own processes (--jobs); --start goes with it")
    config = config_from(args if args.start is None else argparse.Namespace(**{**vars(args), "recipe": args.start}))
    config, first = dataclasses.replace(config, recipe=args.recipe), os.environ.get("RANK", "0") == "0"
    if args.tune and not args.dry_run:
        memo = read_memo(Path(__file__).parent / "results" / str(SCALE_OF[config.size]) / "runs.csv")
        result, folder = tune(config, axes, args.seeds, args.jobs, memo), certificate_folder(config, axes, args.seeds)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "certificate.json", result)
        print_certificate(result)
        print(folder / "certificate.json")
    elif args.bench:
        with memory_noted(config):
            args.json, result = True, bench(Run(config, None), args.bench)
    elif args.dry_run:
        with memory_noted(config):
            run = Run(config, None)
        windows = run.machine["micro_batch_size"]
        result = {**run.cost(), "micro_batch_size": windows,
                  "memory_bytes": run.model.training_bytes(windows * config.context, config.dtype)}
        # at the rate of a large matrix product, which no real step reaches
        result["seconds_at_least"] = result["flops"] / matmul_rate(config.dtype, run.device)
        print("\n".join(f"{key}: {value}" for key, value in result.items()))
    else:
        result = train(config)
        if first:
            print(f"{result['name']}: val_loss {result['val_loss']:.4f} train_loss {result['train_loss']:.4f}")
    if args.json and first:
        print(json.dumps(result))
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    run_main(main)
