"""K members, their average, the limit K -> infinity (paper, section on ensembles).

    python ensemble.py --members 3 --data docstrings --size 300k --recipe member     # trains the missing members
    python ensemble.py RUN RUN ...                                                   # evaluates finished ones

Members share tokens and settings and differ in seed. The paper averages their logits; the average of their
probabilities stands beside it. The result goes to runs/ensembles/NAME/result.json.
"""
import contextlib
import copy
import dataclasses
import hashlib
import itertools
import json
import math
import os
from pathlib import Path

import torch
import torch.nn.functional as F

from fit import fit_power, fit_reciprocal, jackknife, t_interval
from model import GPT
from prepare import InputError, Parser, load_data, read_json, run_main, write_json
from train import (Run, TrainConfig, add_options, autocast, begin, bench, claim, config_from, device_windows, finish,
                   inputs_and_targets, make_optimizer, run_all, run_name, run_steps, use_device)

# what an ensemble's result says of all its members; null where they differ, tokens where they are not the same ones
SHARED_KEYS = ("data", "data_hash", "size", "params", "params_nonembedding", "tokens", "recipe", "epochs", "lr",
               "weight_decay", "subset_seed", "context", "batch_size", "doc_mask", "shuffle", "dtype", "synthetic",
               "synthetic_hash", "synthetic_weight", "tau_epochs")
ALL_SUBSETS = 8  # up to so many members the loss at K is the mean over every subset of K, above over random orders
STACK_BELOW = 20_000_000  # parameters of a member below which members train as one model on CUDA: not measured yet
EVAL_LOGITS = {"cpu": 2 ** 20, "cuda": 2 ** 28}  # logits of all members at a time: a CPU's cache, 1 GiB in fp32
VARIABLE = ("seed", "init_seed", "data_seed", "subset_seed")  # what members of one ensemble draw at random


# --------------------------------------------------------------------------------------------------------------------
# Members

def expand(names, out):
    """Run folders or names of a list in which an ensemble stands for its members."""
    runs = []
    for name in names:
        folders = [path for path in (Path(name), Path(out) / "ensembles" / name) if (path / "result.json").exists()]
        members = read_json(folders[0] / "result.json").get("members") if folders else None
        # an ensemble lies beside its members: RUNS/ensembles/NAME
        runs += [str(folders[0].parent.parent / member) for member in members] if members else [name]
    return runs


def run_folder(run, out):
    """The folder of a finished run, given by folder or by name under `out`. Raises InputError."""
    folder = Path(run) if (Path(run) / "result.json").exists() else Path(out) / run
    if not (folder / "result.json").exists():
        raise InputError(f"{run} is not a finished run (no result.json there or under {out}/); train it first")
    return folder


def load_run(run, out="runs"):
    """(result, model) of a finished run, given by folder or by name under `out`. Raises InputError."""
    folder = run_folder(run, out)
    try:
        return read_json(folder / "result.json"), GPT.load(folder / "model.pt")
    except (ValueError, OSError) as error:
        raise InputError(f"{error}; delete {folder} and train it again") from error


def load_members(names, out, device="cpu"):
    """(results, models, data) of runs that can be averaged; models that fill more than half of a GPU together stay on
    the CPU. Raises InputError where data, context, mask or precision differ, or where one is given twice."""
    loaded = [load_run(name, out) for name in names]
    results, models = [result for result, _ in loaded], [model.eval() for _, model in loaded]
    for i, result in enumerate(results):
        for key in ("data", "data_hash", "context", "doc_mask", "dtype"):
            if result[key] != results[0][key]:
                raise InputError(f"{result['name']} has {key} {result[key]}, {results[0]['name']} has "
                                 f"{results[0][key]}; members must agree in it")
        if result["name"] in [other["name"] for other in results[:i]]:
            raise InputError(f"{result['name']} is given twice; a member counts once")
    data = load_data(results[0]["data"])
    if data.fingerprint() != results[0]["data_hash"]:
        raise InputError(f"{data.folder} is not the data that {names[0]} was trained on ({data.fingerprint()}, "
                         f"not {results[0]['data_hash']}); prepare that again")
    device = torch.device(device)
    weights = sum(4 * model.parameter_count() for model in models)
    if device.type != "cuda" or weights < torch.cuda.get_device_properties(device).total_memory / 2:
        models = [model.to(device) for model in models]
    return results, models, data


# --------------------------------------------------------------------------------------------------------------------
# Averages

def choose_subsets(members, orders=64, seed=0):
    """The subsets of members whose averages are evaluated: all, or beyond ALL_SUBSETS each member alone and the heads
    of random orders."""
    if members <= ALL_SUBSETS:
        return [s for k in range(1, members + 1) for s in itertools.combinations(range(members), k)]
    generator = torch.Generator().manual_seed(seed)
    shuffled = [tuple(torch.randperm(members, generator=generator).tolist()) for _ in range(orders)]
    heads = [order[:k] for order in shuffled for k in range(2, members + 1)]
    return [(i,) for i in range(members)] + list({frozenset(head): head for head in heads}.values())


def running_sums(members, subsets):
    """Yields (subset, sum of its members' tensors), sharing the sums of equal beginnings."""
    stack, before = [], ()
    for subset in sorted(subsets):
        shared = len(os.path.commonprefix([before, subset]))
        del stack[shared:]
        for i in subset[shared:]:
            stack.append(stack[-1] + members[i] if stack else members[i])
        before = subset
        yield subset, stack[-1]


def chunk_losses(logits, targets, subsets):
    """Sums over positions of each subset's nats and of the members' divergence, in float64.

    logits: fp32 (P, V) of each member; targets: (P,). Returns {"logits": {subset: nats}, "probs": {subset: nats},
    "kl": the mean of KL(p_i || p_j) over pairs of members}.
    """
    K = len(logits)
    logs = torch.stack([member.log_softmax(-1) for member in logits])  # (K, P, V)
    target_logs = logs.gather(-1, targets.expand(K, -1)[..., None])[..., 0]  # (K, P)
    sums = {"logits": {}, "probs": {}, "kl": 0.0}
    # a member's logits and log-probabilities differ by a constant a position, so both have the same normalized mean
    for subset, total in running_sums(logs, subsets):
        own = target_logs[list(subset)]  # (k, P)
        nats = {"logits": (total / len(subset)).logsumexp(-1) - own.mean(0),
                "probs": math.log(len(subset)) - own.logsumexp(0)}
        for kind, values in nats.items():
            sums[kind][subset] = float(values.cpu().double().sum())
    if K > 1:
        cross = torch.einsum("ipv,jpv->pij", logs.exp(), logs).cpu().double().sum(0)  # sum over v of p_i log p_j
        sums["kl"] = float(K * cross.trace() - cross.sum()) / (K * (K - 1))
    return sums


def visitor(model, device):
    """The model on a device: itself, or a copy for as long as it is used."""
    there = model.embedding.weight.device.type == torch.device(device).type
    return model if there else copy.deepcopy(model).to(device)


def batch_losses(models, windows, subsets, dtype, positions):
    """chunk_losses over all predictions of some windows, `positions` at a time; members elsewhere visit the device."""
    tokens, targets = inputs_and_targets(windows)
    with autocast(dtype, tokens.device):
        states = []
        for model in models:
            # (P, C); the last position predicts nothing
            states.append(visitor(model, tokens.device).states(tokens)[:, :-1].flatten(0, 1))
    heads = [model.head.weight.to(tokens.device) for model in models]
    targets = targets[:, :-1].flatten()
    for start in range(0, len(targets), positions):  # fp32 from here on
        logits = [F.linear(x[start:start + positions].float(), head) for x, head in zip(states, heads)]
        yield chunk_losses(logits, targets[start:start + positions], subsets)


@torch.no_grad()
def subset_losses(models, windows, subsets, dtype="fp32"):
    """Nats per prediction over all windows: {"logits": {subset: loss}, "probs": {subset: loss}, "kl"}.

    logits: one softmax of the mean logits (the paper's); probs: the mean of the members' probabilities. Memory is
    bounded by a batch's states and a chunk's logits; where those do not fit both are halved. Raises InputError.
    """
    totals = {"logits": dict.fromkeys(subsets, 0.0), "probs": dict.fromkeys(subsets, 0.0), "kl": 0.0}
    limit = EVAL_LOGITS["cuda" if windows.is_cuda else "cpu"]
    positions, size, start = max(8, limit // (len(models) * models[0].config.vocab_size)), 8, 0
    while start < len(windows):
        try:
            parts = list(batch_losses(models, windows[start:start + size], subsets, dtype, positions))
        except torch.OutOfMemoryError:
            if size == positions == 1:
                raise InputError("the members do not fit in the device's memory; use --device cpu") from None
            size, positions = max(1, size // 2), max(1, positions // 2)
            print(f"out of memory: going on with {size} window(s) and {positions} position(s) at a time", flush=True)
            continue
        for part in parts:
            totals["kl"] += part["kl"]
            for kind in ("logits", "probs"):
                for subset, nats in part[kind].items():
                    totals[kind][subset] += nats
        start += size
    predictions = len(windows) * (windows.shape[1] - 1)
    return {"kl": totals["kl"] / predictions,
            **{kind: {s: nats / predictions for s, nats in totals[kind].items()} for kind in ("logits", "probs")}}


def mean_by_k(losses, without=None):
    """{K: loss}, the mean over subsets of that size; optionally over those without one member."""
    sizes = {}
    for subset, loss in losses.items():
        if without not in subset:
            sizes.setdefault(len(subset), []).append(loss)
    return {k: sum(sizes[k]) / len(sizes[k]) for k in sorted(sizes)}


# --------------------------------------------------------------------------------------------------------------------
# The limit

def law_of_members(losses, fit_law, least, drawn=True):
    """A law over K of {subset: loss}, its limit E with a jackknife over members: {"A", "E", ("b",) "se", "interval"}.

    Members are the random draws here and the losses at all K share them, so the spread of the limit is that over
    fits with one member left out: it says how far other draws would move it, not whether the law holds. None with
    fewer than `least` members; no interval with just so many, with too few random orders for most K without a member,
    or where members are chosen, not drawn.
    """
    def fit_to(by_k):
        return fit_law(list(by_k), list(by_k.values()))

    K = max(map(len, losses))
    if K < least:
        return None
    law, left = fit_to(mean_by_k(losses)), [mean_by_k(losses, i) for i in range(K)]
    enough = drawn and K > least and min(map(len, left)) >= max(least, K - 3)
    se = jackknife([fit_to(by_k)["E"] for by_k in left]) if enough else None
    return {**law, "se": se, "interval": None if se is None else t_interval(law["E"], se, K)}


def evaluate_ensemble(names, out, device, orders=64):
    """The result of an ensemble of finished runs: losses by K of both averages, the laws and their limit."""
    results, models, data = load_members(names, out, device)
    windows = device_windows(data.val, results[0]["context"], device)
    losses = subset_losses(models, windows, choose_subsets(len(models), orders), results[0]["dtype"])
    alone = [losses["logits"][(i,)] for i in range(len(models))]
    for result, loss in zip(results, alone):
        if not math.isfinite(loss):
            raise InputError(f"{result['name']} has no finite loss; leave it out or train it again")

    def values(key):  # an older run lacks newer options and was made as their defaults say
        found = [result.get(key, getattr(TrainConfig, key, None)) for result in results]
        as_seed = key in ("init_seed", "data_seed")
        return [result["seed"] if value is None and as_seed else value for value, result in zip(found, results)]

    def differ(key):
        return len(set(map(str, values(key)))) > 1
    shared = {key: None if differ(key) else values(key)[0] for key in SHARED_KEYS}
    if differ("subset_seed"):  # together they have seen more than each one's D
        shared["tokens"] = None
    vary = [f.name for f in dataclasses.fields(TrainConfig)
            if f.metadata.get("identity", True) and f.name != "seed" and differ(f.name)]
    if {"init_seed", "data_seed"} <= set(vary):  # which is what --seed sets
        vary = ["seed"] + [name for name in vary if name not in ("init_seed", "data_seed")]
    laws = {name: law_of_members(losses[kind], fit_law, least, set(vary) <= set(VARIABLE))
            for name, kind, fit_law, least in (
                ("law", "logits", fit_reciprocal, 2), ("free_law", "logits", fit_power, 3),
                ("probs_law", "probs", fit_reciprocal, 2), ("free_probs_law", "probs", fit_power, 3))}
    return {**shared, "members": [os.path.relpath(run_folder(name, out), out) for name in names],
            "vary": "+".join(vary), "member_losses": alone, "kl": losses["kl"],
            "loss_by_k": {kind: list(mean_by_k(losses[kind]).values()) for kind in ("logits", "probs")}, **laws,
            "limit": laws["law"] and laws["law"]["E"], "limit_interval": laws["law"] and laws["law"]["interval"]}


# --------------------------------------------------------------------------------------------------------------------
# All members at once: K models too small to fill a device as one model, whose weights have a leading member dimension

class StackedLinear(torch.nn.Linear):
    """K Linears: weight (K, out, in); the rows of x (K B, T, in) are those of the members in turn."""
    def forward(self, x):
        y = torch.bmm(x.reshape(len(self.weight), -1, x.shape[-1]), self.weight.mT)
        return y.view(*x.shape[:-1], -1)


class StackedEmbedding(torch.nn.Embedding):
    """K tables (K, V, C) for tokens (K B, T)."""
    def forward(self, tokens):
        K, V, C = self.weight.shape
        first = V * torch.arange(K, device=tokens.device).repeat_interleave(len(tokens) // K)
        return F.embedding(tokens + first[:, None], self.weight.view(K * V, C))


class StackedRMSNorm(torch.nn.RMSNorm):
    """K scales (K, C) for x (K B, T, C)."""
    def forward(self, x):
        K, C = self.weight.shape
        return (F.rms_norm(x.view(K, -1, C), (C,), eps=self.eps) * self.weight[:, None]).view_as(x)


def stack_models(models):
    """One GPT that computes what all of them do: its batch is theirs, one after another."""
    kinds = {torch.nn.Linear: StackedLinear, torch.nn.Embedding: StackedEmbedding, torch.nn.RMSNorm: StackedRMSNorm}
    stacked = copy.deepcopy(models[0])
    for module in stacked.modules():
        module.__class__ = kinds.get(type(module), type(module))
    for name, parameter in stacked.named_parameters():
        parameter.data = torch.stack([model.get_parameter(name).detach() for model in models])
    return stacked


class Stack(Run):
    """Runs at one step that differ in seeds or subset alone, trained as one model by one optimizer.

    Each keeps its own folder, log, data order, clipping and checkpoints, from which it can also go
    on alone.
    """

    def __init__(self, runs):
        vars(self).update(vars(runs[0]))  # schedule, step and machine are those of all
        self.members, self.seconds = runs, sum(run.seconds for run in runs)
        self.model = self.parallel = stack_models([run.model for run in runs])
        self.optimizer = make_optimizer(self.model, self.config.weight_decay)
        for together, apart in self.parameter_pairs():
            states = [run.optimizer.state[p] for run, p in zip(runs, apart)]
            if states[0]:  # resumed: the moments are stacked, too
                self.optimizer.state[together] = {
                    "step": states[0]["step"].clone(),
                    "exp_avg": torch.stack([state["exp_avg"] for state in states]),
                    "exp_avg_sq": torch.stack([state["exp_avg_sq"] for state in states])}

    def parameter_pairs(self):
        """(stacked parameter, the members' own), in the order of make_optimizer's groups."""
        def ordered(optimizer):
            return [p for group in optimizer.param_groups for p in group["params"]]
        return zip(ordered(self.optimizer), zip(*(ordered(run.optimizer) for run in self.members)))

    @torch.no_grad()
    def update_members(self):
        """Give the members their weights, AdamW's moments, their step and their share of time."""
        for together, apart in self.parameter_pairs():
            state = self.optimizer.state[together]
            for i, (run, p) in enumerate(zip(self.members, apart)):
                p.copy_(together[i])
                run.optimizer.state[p] = {"step": state["step"].clone(),
                                          "exp_avg": state["exp_avg"][i].clone(),
                                          "exp_avg_sq": state["exp_avg_sq"][i].clone()}
        for run in self.members:
            run.step, run.seconds = self.step, self.seconds / len(self.members)

    def order(self, epoch):
        """The windows of each step and member of an epoch: (steps, K, batch_size)."""
        return torch.stack([run.order(epoch) for run in self.members], 1)

    def train_step(self, forward, order):
        """One step of each member on its own windows, order (K, batch_size): losses (K,) and
        norms (K,)."""
        config, K = self.config, len(self.members)
        windows = torch.cat([run.train[own] for run, own in zip(self.members, order)])
        tokens, targets = inputs_and_targets(windows)
        predictions = config.batch_size * (config.context - 1)
        with autocast(config.dtype, self.device):
            losses = forward(tokens, targets).view(K, -1).sum(1) / predictions
        losses.sum().backward()  # no member's loss depends on another's weights
        gradients = [p.grad for p in self.model.parameters()]  # (K, ...) each
        norms = torch.stack([g.flatten(1).norm(dim=1) for g in gradients]).norm(dim=0)
        for g in gradients:  # what clip_grad_norm_ does, to each member by itself
            g.mul_((1 / (norms + 1e-6)).clamp(max=1.0).view(K, *[1] * (g.dim() - 1)))
        self.apply_gradients()
        return losses.detach(), norms

    def evaluate_members(self):
        self.update_members()
        return super().evaluate_members()

    def save(self):
        self.update_members()
        for run in self.members:
            run.save()

    def title(self):
        return f"{len(self.members)} members at once, {self.folder.name} the first"


def train_together(configs):
    """What train() does, for several runs that differ in seeds or subset alone.

    Runs at one step go as one model. After a kill between two members' checkpoints they are not at
    one step; stacked in other company a run rounds differently.
    """
    folders = [Path(config.out) / run_name(config) for config in configs]
    with contextlib.ExitStack() as claims:
        beats, runs = [], []
        for config, folder in zip(configs, folders):
            folder.mkdir(parents=True, exist_ok=True)
            beats.append(claims.enter_context(claim(folder)))
        for config, folder in zip(configs, folders):
            if not (folder / "result.json").exists():
                runs.append(Run(config, folder))
        for run in runs:
            begin(run, stacked=len(runs))
        try:
            for step in sorted({run.step for run in runs}):
                stack = Stack([run for run in runs if run.step == step])
                run_steps(stack, lambda: [beat() for beat in beats])
                stack.update_members()
                for run in stack.members:
                    finish(run)
        except torch.OutOfMemoryError:
            raise InputError(f"{len(runs)} members do not fit in the device's memory at once; use "
                             f"--stack 0") from None


def train_members(configs, jobs, stack):
    """Train what is not finished, `jobs` processes at once; or as one model where stack is "1", or
    "auto" on CUDA and the members are small. Raises InputError where a member diverges."""
    missing = []
    for config in configs:
        if not (Path(config.out) / run_name(config) / "result.json").exists():
            missing.append(config)
    if len(missing) > 1 and stack == "auto":
        device = use_device(configs[0].device, configs[0].threads)
        if device.type == "cuda":
            small = Run(configs[0], None).model.parameter_count() < STACK_BELOW
            stack = "1" if small else "0"
    if len(missing) > 1 and stack == "1":
        print(f"{len(missing)} members train as one model; --stack 0 trains them apart", flush=True)
        train_together(missing)
        return
    losses = run_all(missing, jobs)
    for config, loss in zip(missing, losses):
        if not math.isfinite(loss):
            raise InputError(f"{run_name(config)} diverged; try a lower --lr than {config.lr:g}")


def bench_stack(configs, steps):
    """Tokens per second of the members as one model and of one by itself: what stacking brings."""
    runs = [Run(config, None) for config in configs]
    stacked, alone = bench(Stack(runs), steps), bench(Run(configs[0], None), steps)
    return {"members": len(runs), "params": alone["params"],
            "stacked": stacked["tokens_per_second"], "one_by_one": alone["tokens_per_second"],
            "ratio": stacked["tokens_per_second"] / alone["tokens_per_second"],
            "peak_memory": stacked["peak_memory"], "machine": alone["machine"]}


# --------------------------------------------------------------------------------------------------------------------

def member_configs(first, count, vary):
    """Resolved configs of `count` members: the first and those whose seeds named in `vary` are 1, 2, ... more. Raises
    InputError where that changes nothing."""
    def start(name, config=first):
        value = getattr(config, name)
        return value if value is not None else 0 if name == "subset_seed" else config.seed
    configs = [dataclasses.replace(first, **{name: start(name) + i for name in vary}) for i in range(count)]
    if len({tuple(start(name, config) for name in VARIABLE[1:]) for config in configs}) < count:
        raise InputError(f"members that differ in {','.join(vary)} alone are copies here; leave out --init_seed and "
                         f"--data_seed, or name them in --vary")
    return configs


def print_ensemble(result):
    """Loss at every K of both averages, the laws and their limits."""
    print(" K   logit mean   probability mean")
    for k, (logits, probs) in enumerate(zip(result["loss_by_k"]["logits"], result["loss_by_k"]["probs"]), 1):
        print(f"{k:2d}   {logits:10.4f}   {probs:10.4f}")
    # probability means fall more slowly than 1 / K, so their limit is that of a free exponent where there is one
    for name in ("law", "free_law", "free_probs_law" if result["free_probs_law"] else "probs_law"):
        law = result[name]
        if law:
            what, power = ("probability" if "probs" in name else "logit") + " mean", "^{b:.2f}" if "b" in law else ""
            known = "; 95% {:.4f} to {:.4f}, jackknife over members" if law["interval"] else "; no interval"
            print(f"inf  {law['E']:10.4f}   {what}: {law['A']:.3f} / K{power.format(**law)} + {law['E']:.4f}"
                  + known.format(*law["interval"] or ()))
    if len(result["members"]) > 1:
        print(f"members differ in {result['vary']} and diverge by {result['kl']:.4f} nats (mean KL over pairs)")


def main():
    parser = Parser("The loss of an ensemble at every K and its limit.")
    parser.add_argument("runs", nargs="*", metavar="RUN", help="finished runs; or give --members and train options")
    parser.add_argument("--members", type=int, default=0, help="members with seeds from --seed on, trained if missing")
    parser.add_argument("--vary", default="seed", help=f"what differs between members: some of {','.join(VARIABLE)}")
    parser.add_argument("--orders", type=int, default=64, help=f"random orders of more than {ALL_SUBSETS} members")
    parser.add_argument("--jobs", type=int, default=1, help="members trained at once, each in a process of its own")
    parser.add_argument("--stack", choices=("auto", "0", "1"), default="auto", help="1: missing members train as one "
                        f"model in this process; auto: on CUDA below {STACK_BELOW:,} parameters")
    parser.add_argument("--bench", type=int, default=0, metavar="STEPS", nargs="?", const=50,
                        help="time so many steps of the members stacked and of one alone; writes nothing")
    parser.add_argument("--dry_run", action="store_true", help="list the members and which are finished; no run")
    parser.add_argument("--json", action="store_true", help="print the result as the last line")
    add_options(parser)
    args = parser.parse_args()
    vary = args.vary.split(",")
    if bool(args.runs) == bool(args.members) or args.members < 0:
        raise InputError("give either finished runs or --members K with train options")
    if args.runs and (args.bench or args.dry_run):
        raise InputError("--bench and --dry_run go with --members")
    if not set(vary) <= set(VARIABLE) or min(args.orders, args.jobs) < 1:
        raise InputError(f"--vary takes some of {','.join(VARIABLE)}; --orders and --jobs are at least 1")
    if "RANK" in os.environ:
        raise InputError("this script runs without torchrun and starts its own processes (--jobs)")

    names, device = expand(args.runs, args.out), use_device(args.device, args.threads)
    if args.members:
        configs = member_configs(config_from(args), args.members, vary)
        names = [run_name(config) for config in configs]
        if args.bench:
            return print(json.dumps(bench_stack(configs, args.bench)))
        if args.dry_run:
            finished = {name: (Path(args.out) / name / "result.json").exists() for name in names}
            for name in names:
                print(f"{name}: {'finished' if finished[name] else 'to be trained'}")
            return print(json.dumps(finished)) if args.json else None
        train_members(configs, args.jobs, args.stack)
    result = evaluate_ensemble(names, args.out, device, args.orders)
    digest = hashlib.sha256("\n".join(sorted(result["members"])).encode()).hexdigest()[:6]
    folder = Path(args.out) / "ensembles" / f"{result['data']}-{result['size'] or 'mixed'}-k{len(names)}-{digest}"
    result["name"] = folder.name
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "result.json", result)
    print(folder)
    print_ensemble(result)
    if args.json:
        print(json.dumps(result))


if __name__ == "__main__":
    run_main(main)
