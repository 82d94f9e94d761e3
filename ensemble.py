"""K members, their average, the limit K -> infinity (paper, section on ensembles).

    python ensemble.py --members 3 --data docstrings --size 300k --recipe member
    python ensemble.py RUN RUN ...

The first trains the members that are missing, the second takes finished runs. Members share tokens
and settings and differ in seed. The paper averages their logits; the average of their probabilities
stands beside it. The result goes to runs/ensembles/NAME/result.json.

Read chunk_losses() and law_of_members() first; the rest serves them.
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
from prepare import InputError, Parser, load_data, refuse, run_main, write_json
from train import (ALL_SEEDS, SEEDS, Run, TrainConfig, add_options, autocast, begin, bench, claim,
                   compile_on_cuda, config_from, device_windows, expand, finish, inputs_and_targets,
                   load_models, make_optimizer, member_configs, model_shape, on_device, run_all,
                   read_run, run_folder, run_name, run_steps, use_device)

# Up to so many members the loss at K is the mean over every subset of K members, 2^8 - 1 in all.
# Of more members there are too many subsets, and it is the mean over random ones.
ALL_SUBSETS = 8

# fp32 logits held at a time, of all members: 4 MiB, for a CPU's cache, and 1 GiB on a GPU.
EVAL_LOGITS = {"cpu": 2 ** 20, "cuda": 2 ** 28}

# Members below so many parameters train as one model on CUDA: a guess, not measured yet.
STACK_BELOW = 20_000_000


# --------------------------------------------------------------------------------------------------
# Averages

def choose_subsets(members, orders=64):
    """The subsets of members whose averages are evaluated, as tuples of indices.

    All of them or, of more than ALL_SUBSETS members, each alone and the first 2, 3, ... of each of
    `orders` random orders.
    """
    # The loss at K is a mean over many choices of K members, because a single choice would mix luck
    # with the effect of K.
    indices = range(members)
    subsets = []
    if members <= ALL_SUBSETS:
        for k in range(1, members + 1):
            subsets.extend(itertools.combinations(indices, k))
        return subsets

    generator = torch.Generator().manual_seed(0)
    beginnings = {}  # {set: one of its orders}: the order inside does not matter to an average
    for _ in range(orders):
        order = tuple(torch.randperm(members, generator=generator).tolist())
        for k in range(2, members + 1):
            beginnings[frozenset(order[:k])] = order[:k]
    return [(i,) for i in indices] + list(beginnings.values())


def running_sums(members, subsets):
    """Yields (subset, sum of its members' tensors), sharing the sums of equal beginnings."""
    # Sorted, subsets with equal beginnings are neighbors: (0, 1) and (0, 1, 2) share one sum, so
    # most subsets cost one addition. The stack holds the sums of all beginnings of the last subset.
    stack = []
    before = ()
    for subset in sorted(subsets):
        shared = len(os.path.commonprefix([before, subset]))  # of any two sequences
        del stack[shared:]  # at most K sums are alive at a time
        for i in subset[shared:]:
            if stack:
                stack.append(stack[-1] + members[i])
            else:
                stack.append(members[i])
        before = subset
        yield subset, stack[-1]


def chunk_losses(logits, targets, subsets):
    """Sums over P positions of each subset's nats and of the members' divergence, in float64.

    logits: a list of K members' fp32 (P, V); targets: (P,). Returns {"logits": {subset: nats},
    "probs": {subset: nats}, "kl": the mean of KL(p_i || p_j) over ordered pairs of members, 0 for
    one member}.
    """
    K = len(logits)
    # A member's logits and log-probabilities differ by one constant a position, which the softmax
    # cancels. So the mean of log-probabilities serves as the mean of logits, and one tensor is
    # enough for both averages and the divergence.
    logs = torch.stack([member.log_softmax(-1) for member in logits])  # (K, P, V)
    target_logs = logs.gather(-1, targets.expand(K, -1)[..., None])[..., 0]  # (K, P)
    # Room for all results at once: small tensors made in between the large ones, and kept, would
    # leave glibc's heap in pieces that fit no other sum, up to a gigabyte of them.
    logits_nats = logs.new_empty(len(subsets), len(targets))
    probs_nats = logs.new_empty(len(subsets), len(targets))
    order = []
    for row, (subset, total) in enumerate(running_sums(logs, subsets)):
        k = len(subset)
        own = target_logs[list(subset)]  # (k, P)
        # nats are -log p of the target: p of the mean of logits, normalized anew; then p = 1/k sum
        # of the members' p
        logits_nats[row] = (total / k).logsumexp(-1) - own.mean(0)
        probs_nats[row] = math.log(k) - own.logsumexp(0)
        order.append(subset)

    sums = {"kl": 0.0}
    for average, nats in (("logits", logits_nats), ("probs", probs_nats)):
        # in one piece to the CPU: to wait for a device at each subset would cost more than the sums
        rows = nats.cpu().double()
        sums[average] = {subset: float(row.sum()) for subset, row in zip(order, rows)}
    if K > 1:
        # KL(p_i || p_j) is sum over v of p_i log p_i - p_i log p_j: an entry of the diagonal less
        # one of the same row, (K, K)
        cross = torch.einsum("ipv,jpv->pij", logs.exp(), logs).cpu().double().sum(0)
        sums["kl"] = float(K * cross.trace() - cross.sum()) / (K * (K - 1))
    return sums


def logits_by_chunk(models, states_of, dtype, device, chunk):
    """Yields (slice, each model's logits, fp32 (p, V)) for `chunk` of P positions at a time.

    states_of(model): what its head reads at all positions, (P, C). dtype: "fp32" or "bf16", the
    precision of training, so that a model alone has the loss of its run.
    """
    # Each model runs once up to the input of its head. These states are small; the logits are not.
    head_dtype = torch.bfloat16 if dtype == "bf16" else torch.float32
    heads = []
    with autocast(dtype, device):
        for model in models:
            visitor = on_device(model, device)
            heads.append((states_of(visitor).to(head_dtype), visitor.head.weight.to(head_dtype)))
    for start in range(0, len(heads[0][0]), chunk):
        part = slice(start, start + chunk)
        yield part, [F.linear(states[part], weights).float() for states, weights in heads]


def batch_losses(models, windows, subsets, dtype, positions):
    """Yields chunk_losses() of all predictions of some windows (B, T), `positions` at a time."""
    tokens, targets = inputs_and_targets(windows)
    targets = targets[:, :-1].flatten()  # the last position predicts nothing
    device = tokens.device

    def states_of(model):
        return compile_on_cuda(model.states, device)(tokens)[:, :-1].flatten(0, 1)  # (P, C)

    for part, logits in logits_by_chunk(models, states_of, dtype, device, positions):
        yield chunk_losses(logits, targets[part], subsets)


@torch.no_grad()
def subset_losses(models, windows, subsets, dtype="fp32"):
    """Nats per prediction over all windows: {"logits": {subset: loss}, "probs": ..., "kl"}.

    "logits" is one softmax of the mean logits, as in the paper, "probs" the mean of the members'
    probabilities; "kl" as in chunk_losses(). windows: (W, T). It needs memory for the states of a
    batch and the logits of a chunk; where they do not fit, both are halved. Raises InputError where
    that does not help.
    """
    limit = EVAL_LOGITS["cpu"]
    if windows.is_cuda:
        limit = EVAL_LOGITS["cuda"]
    batch = 8  # windows, whose states are held at a time
    if models[0].embedding.weight.device.type != windows.device.type:
        batch = 32  # models that wait on the CPU are copied for each batch
    # positions whose logits are held at a time, a small number where the vocabulary is large
    positions = max(8, limit // (len(models) * models[0].config.vocab_size))

    # float64 sums over all predictions, divided once at the end
    totals = {"logits": dict.fromkeys(subsets, 0.0), "probs": dict.fromkeys(subsets, 0.0)}
    kl = 0.0
    start = 0
    while start < len(windows):
        some = windows[start:start + batch]
        try:
            # a whole batch before anything is added, so that it can be repeated in smaller parts
            parts = list(batch_losses(models, some, subsets, dtype, positions))
        except torch.OutOfMemoryError:
            # what the device has left depends on who else uses it, so it is tried, not computed
            if batch == positions == 1:
                raise InputError("the members do not fit in the device's memory; "
                                 "use --device cpu") from None
            batch = max(1, batch // 2)
            positions = max(1, positions // 2)
            print(f"out of memory: going on with {batch} window(s) and {positions} position(s) "
                  f"at a time", flush=True)
            continue
        for part in parts:
            kl += part["kl"]
            for average, total in totals.items():
                for subset, nats in part[average].items():
                    total[subset] += nats
        start += batch

    predictions = len(windows) * (windows.shape[1] - 1)
    losses = {"kl": kl / predictions}
    for average, total in totals.items():
        losses[average] = {subset: nats / predictions for subset, nats in total.items()}
    return losses


def mean_by_k(losses, without=None):
    """{K: loss}, the mean over the subsets of K members; without: over those that lack this member,
    an index."""
    # Over all subsets every member has the same weight at every K, over random ones nearly. So the
    # losses differ by K, not by the luck of who is in.
    sizes = {}
    for subset, loss in losses.items():
        if without not in subset:  # None is in no subset
            sizes.setdefault(len(subset), []).append(loss)
    return {k: sum(sizes[k]) / len(sizes[k]) for k in sorted(sizes)}


# --------------------------------------------------------------------------------------------------
# The limit

def law_of_members(losses, fit_law, least, drawn=True):
    """The law over K of {subset: loss}: {"A", "E", "b" if it is free, "se", "interval"}.

    E is the limit K -> infinity in nats, "se" its standard error by the jackknife over members,
    "interval" its 95% interval. Members are the random draws here, and the losses at all K share
    them, so residuals of the fit say nothing of the luck of the draw. The spread of fits with one
    member left out says how far other draws would move the limit, not whether the law holds.

    fit_law: fit_reciprocal or fit_power, of fit.py; least: the members that it needs. None with
    fewer. There is no interval with exactly so many, where members were chosen, not drawn, or where
    random orders leave too few values of K without some member.
    """
    K = max(map(len, losses))
    if K < least:
        return None

    def fit_to(by_k):
        return fit_law(list(by_k), list(by_k.values()))

    law = {**fit_to(mean_by_k(losses)), "se": None, "interval": None}
    # Fit once more without each member in turn. The losses are known, so no model runs again.
    left_out = [mean_by_k(losses, without=i) for i in range(K)]
    fewest = min(map(len, left_out))  # values of K to fit without some member
    # without a member K - 1 values of K are left; random orders may cover up to two fewer
    if drawn and K > least and fewest >= max(least, K - 3):
        law["se"] = jackknife([fit_to(by_k)["E"] for by_k in left_out])
        law["interval"] = t_interval(law["E"], law["se"], K)
    return law


# --------------------------------------------------------------------------------------------------
# The result of an ensemble

# Keys of a run's result that are no options, and still follow from its configuration alone.
DERIVED = ("setting", "params", "params_nonembedding", "tau_epochs")


def identity_fields():
    """Names of the fields of TrainConfig that decide what a run computes."""
    return [field.name for field in dataclasses.fields(TrainConfig)
            if field.metadata.get("identity", True)]


def fill_defaults(result):
    """A run's result with a value for every option, also those that are newer than the run."""
    # An older run lacks newer options and was made as their defaults say.
    defaults = json.loads(json.dumps(dataclasses.asdict(TrainConfig())))  # lists, not tuples
    full = {**defaults, **result}
    # --seed sets both, so a run that was given it alone leaves the two null.
    for name in ("init_seed", "data_seed"):
        if full[name] is None:
            full[name] = full["seed"]
    return full


def members_agree(results, key):
    """Whether a key has the same value in all results; to lack it is a value of its own."""
    return all(result.get(key) == results[0].get(key) for result in results)


def differing_fields(results):
    """Names of the identity options in which members differ; "seed" stands for both seeds that it
    sets."""
    vary = []
    for name in identity_fields():
        # --seed decides nothing by itself: what counts are the two seeds that it sets
        if name != "seed" and not members_agree(results, name):
            vary.append(name)
    if "init_seed" in vary and "data_seed" in vary:
        vary = ["seed"] + [name for name in vary if name not in SEEDS]
    return vary


def shared_facts(results):
    """The facts of the setting that members share, null where they differ.

    A fact is what the configuration decides: an option that identifies a run, the name of its
    recipe, or what follows from these. What a seed, a clock or a machine decides (name, losses,
    seconds) is no fact of an ensemble, even where members agree in it or where there is only one.
    """
    options = [name for name in identity_fields() if name not in SEEDS]
    facts = dict.fromkeys([*options, "recipe", *DERIVED])
    # Null is said, not left out: whoever reads a result finds every fact of it.
    for key in facts:
        if members_agree(results, key):
            facts[key] = results[0].get(key)
    # the same as a run's result has it, so that a query by identity finds ensembles, too
    identities = [result.get("identity") or {} for result in results]
    facts["identity"] = {key: value for key, value in identities[0].items()
                         if key not in SEEDS and members_agree(identities, key)}
    if not members_agree(results, "subset_seed"):
        facts["tokens"] = None  # together they have seen more than the D tokens of each
    return facts


def evaluate_ensemble(names, out, device):
    """The result of an ensemble of finished runs, given by folder or by name under `out`.

    It has what members share, the loss at every K of both averages, the laws and the limit, in nats
    per prediction. Raises InputError for runs that cannot be averaged.
    """
    results, models, data = load_members(names, out, device)
    # all that may not differ, such as the context, was compared: the first speaks for all
    windows = device_windows(data.val, results[0]["context"], device)
    subsets = choose_subsets(len(models))
    losses = subset_losses(models, windows, subsets, results[0]["dtype"])
    alone = [losses["logits"][(i,)] for i in range(len(models))]
    for result, loss in zip(results, alone):
        # one such member would make every average that it is in useless
        if not math.isfinite(loss):
            raise InputError(f"{result['name']} has no finite loss; "
                             f"leave it out or train it again")

    vary = differing_fields(results)
    # only members that were drawn, not chosen, say how far other draws would move the limit
    drawn = set(vary) <= set(ALL_SEEDS)
    logits, probs = losses["logits"], losses["probs"]
    # The paper's exponent of K is about 1, so we fit A / K + E. The law with a free exponent, which
    # the paper fits, stands beside it as a test.
    law = law_of_members(logits, fit_reciprocal, 2, drawn)
    limit = interval = None
    if law:
        limit, interval = law["E"], law["interval"]
    return {
        "kind": "ensemble",
        **shared_facts(results),
        "members": [os.path.relpath(run_folder(name, out), out) for name in names],
        "vary": "+".join(vary),
        "member_losses": alone,
        "kl": losses["kl"],
        "loss_by_k": {"logits": list(mean_by_k(logits).values()),
                      "probs": list(mean_by_k(probs).values())},
        "law": law,
        "free_law": law_of_members(logits, fit_power, 3, drawn),
        "probs_law": law_of_members(probs, fit_reciprocal, 2, drawn),
        "free_probs_law": law_of_members(probs, fit_power, 3, drawn),
        "limit": limit,
        "limit_interval": interval,
    }


def ensemble_name(result):
    """A readable name for the folder, the same for the same members in any order."""
    # a hash of the members, because a list of their names would be too long for a folder
    members = "\n".join(sorted(result["members"]))
    digest = hashlib.sha256(members.encode()).hexdigest()[:6]
    size = result["size"] or "mixed"
    return f"{result['data']}-{size}-k{len(result['members'])}-{digest}"


# --------------------------------------------------------------------------------------------------
# Members on disk

def read_members(names, out):
    """(results with their defaults filled in, data) of runs that can be averaged.

    Raises InputError where data, context, mask or precision differ, where a run is given twice, and
    where the data are no longer those that the runs have seen.
    """
    results = [fill_defaults(read_run(name, out)) for name in names]
    first = results[0]
    seen = {}
    # An average needs models that predict the same tokens from the same ones; sizes may differ.
    for result in results:
        for key in ("data", "data_hash", "context", "doc_mask", "dtype"):
            if result[key] != first[key]:
                raise InputError(f"{result['name']} has {key} {result[key]}, {first['name']} has "
                                 f"{first[key]}; members must agree in it")
        # What is computed, whatever the name. --seed decides nothing where both of its seeds do,
        # and init_seed nothing where the first weights are given.
        idle = ["seed", "init_seed"] if result["started_from"] else ["seed"]
        work = str([result[name] for name in identity_fields() if name not in idle])
        name, twin = result["name"], seen.get(work)
        if twin:
            same = "is given twice" if name == twin else f"computes what {twin} does"
            raise InputError(f"{name} {same}; a member counts once")
        seen[work] = name
    # A data set may have been prepared anew under the same name, with other tokens.
    data = load_data(first["data"])
    if data.fingerprint() != first["data_hash"]:
        raise InputError(f"{data.folder} is not the data that {names[0]} was trained on "
                         f"({data.fingerprint()}, not {first['data_hash']}); prepare that again")
    return results, data


def load_members(names, out, device="cpu"):
    """(results, models, data) of runs that can be averaged. Raises InputError."""
    results, data = read_members(names, out)
    return results, load_models(names, out, device), data


# --------------------------------------------------------------------------------------------------
# All members at once: K small models as one, whose weights have a leading dimension of members
#
# A small model's kernels take less time than their launch, so a GPU mostly waits. K models as one
# have kernels of K times the work. Not measured on a GPU yet; on a CPU it does not pay.

class StackedLinear(torch.nn.Linear):
    """K Linears: weight (K, out, in); the rows of x (K B, T, in) belong to the members in turn."""

    def forward(self, x):
        # one product a member: (K, B T, in) x (K, in, out)
        y = torch.bmm(x.reshape(len(self.weight), -1, x.shape[-1]), self.weight.mT)
        return y.view(*x.shape[:-1], -1)


class StackedEmbedding(torch.nn.Embedding):
    """K tables (K, V, C) for tokens (K B, T)."""

    def forward(self, tokens):
        K, V, C = self.weight.shape
        # one long table, in which member k's tokens begin at k V
        first = V * torch.arange(K, device=tokens.device).repeat_interleave(len(tokens) // K)
        return F.embedding(tokens + first[:, None], self.weight.view(K * V, C))


class StackedRMSNorm(torch.nn.RMSNorm):
    """K scales (K, C) for x (K B, T, C)."""

    def forward(self, x):
        K, C = self.weight.shape
        normalized = F.rms_norm(x.view(K, -1, C), (C,), eps=self.eps)
        return (normalized * self.weight[:, None]).view_as(x)


def stack_models(models):
    """One GPT that computes what all of them do. Its batch is theirs, one after another."""
    kinds = {torch.nn.Linear: StackedLinear, torch.nn.Embedding: StackedEmbedding,
             torch.nn.RMSNorm: StackedRMSNorm}
    stacked = copy.deepcopy(models[0])
    # Only these three kinds of layers hold weights; attention and rotary positions work on a batch
    # of any origin. So the layers change their class, and the rest of the GPT stays as it is.
    for module in stacked.modules():
        module.__class__ = kinds.get(type(module), type(module))
    for name, parameter in stacked.named_parameters():
        parameter.data = torch.stack([model.get_parameter(name).detach() for model in models])
    return stacked


def clip_members(gradients):
    """What clip_grad_norm_ does with norm 1, in place, to each of K members by itself.

    gradients: (K, ...) of each parameter. Returns the norms before clipping, (K,).
    """
    norms = torch.stack([g.flatten(1).norm(dim=1) for g in gradients]).norm(dim=0)
    scales = (1 / (norms + 1e-6)).clamp(max=1.0)  # torch's own formula
    for g in gradients:
        g.mul_(scales.view(-1, *[1] * (g.dim() - 1)))
    return norms


class Stack(Run):
    """Runs that stand at the same step and differ in seeds or subset alone, trained as one model.

    Each keeps its own folder, log, data order, clipping and checkpoints, from which it can also go
    on alone.
    """

    def __init__(self, runs):
        vars(self).update(vars(runs[0]))  # all runs have its schedule, step and machine
        self.members, self.seconds = runs, sum(run.seconds for run in runs)
        self.model = self.parallel = stack_models([run.model for run in runs])
        # AdamW works on each number by itself, so one optimizer does what K of them would
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
        if self.machine["compile"] == "graphs":
            torch.compiler.cudagraph_mark_step_begin()
        # the members' batches in one, (K x batch_size, context)
        windows = torch.cat([run.train[own] for run, own in zip(self.members, order)])
        tokens, targets = inputs_and_targets(windows)
        predictions = config.batch_size * (config.context - 1)
        with autocast(config.dtype, self.device):
            losses = forward(tokens, targets).view(K, -1).sum(1) / predictions
        losses.sum().backward()  # no member's loss depends on another's weights
        clip = clip_members  # several kernels a parameter, one for all when compiled
        if self.device.type == "cuda" and self.machine["compile"]:
            clip = torch.compile(clip_members, dynamic=False)
        norms = clip([p.grad for p in self.model.parameters()])
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

    Runs at the same step go as one model. A kill between two members' checkpoints leaves them at
    two steps, and each step's group then goes by itself. Such a resume is not exact to the last
    bit, because a run rounds differently in another group.
    """
    folders = [Path(config.out) / run_name(config) for config in configs]
    with contextlib.ExitStack() as claims:
        beats, runs = [], []
        # all folders are held before any run begins, so no other process trains a member apart
        for config, folder in zip(configs, folders):
            folder.mkdir(parents=True, exist_ok=True)
            beats.append(claims.enter_context(claim(folder)))
        for config, folder in zip(configs, folders):
            if not (folder / "result.json").exists():
                runs.append(Run(config, folder))
        for run in runs:
            begin(run, stacked=len(runs))
        try:
            # most often there is one step, that of all runs
            steps = sorted({run.step for run in runs})
            groups = [[run for run in runs if run.step == step] for step in steps]
            for group in groups:
                stack = Stack(group)
                run_steps(stack, lambda: [beat() for beat in beats])
                stack.update_members()
                # each member ends as if it had been trained alone
                for run in stack.members:
                    finish(run)
        except torch.OutOfMemoryError:
            raise InputError(f"{len(runs)} members do not fit in the device's memory at once; use "
                             f"--stack 0") from None


def worth_stacking(config, members):
    """Whether so many members should train as one model: small ones, on CUDA, if they fit."""
    # the stacked step knows no teachers and no parts of a batch, and the size of --init_from is not
    # one of the ladder's
    if config.teacher or config.init_from or config.micro_batch_size:
        return False
    device = use_device(config.device, config.threads)
    if device.type != "cuda":
        return False
    # shapes without weights: this process would keep any GPU memory that it took
    with torch.device("meta"):
        model = GPT(model_shape(config, load_data(config.data)))
    # all at once, each with a batch in one pass
    tokens = config.batch_size * config.context
    memory = members * model.training_bytes(tokens, config.dtype, compiled=True)  # bytes
    fits = memory < 0.7 * torch.cuda.get_device_properties(device).total_memory
    return model.parameter_count() < STACK_BELOW and fits


def train_members(configs, jobs, stack):
    """Train what is not finished, `jobs` processes at once; or as one model where stack is "1", or
    "auto" on CUDA and the members are small. Raises InputError where a member diverges."""
    missing = []
    for config in configs:
        if not (Path(config.out) / run_name(config) / "result.json").exists():
            missing.append(config)
    if len(missing) > 1 and stack == "auto":
        stack = "1" if worth_stacking(configs[0], len(missing)) else "0"
    if len(missing) > 1 and stack == "1":
        print(f"{len(missing)} members train as one model; --stack 0 trains them apart", flush=True)
        train_together(missing)
        return
    losses = run_all(missing, jobs)
    # a search may pass over a run that diverged; an ensemble needs all its members
    for config, loss in zip(missing, losses):
        if not math.isfinite(loss):
            raise InputError(f"{run_name(config)} diverged; try a lower --lr than {config.lr:g}")


def bench_stack(configs, steps):
    """Tokens per second of all members as one model and of one by itself, their ratio (what it
    brings to stack), and the peak memory of the first in bytes."""
    runs = [Run(config, None) for config in configs]
    stacked, alone = bench(Stack(runs), steps), bench(Run(configs[0], None), steps)
    return {"members": len(runs), "params": alone["params"],
            "stacked": stacked["tokens_per_second"], "one_by_one": alone["tokens_per_second"],
            "ratio": stacked["tokens_per_second"] / alone["tokens_per_second"],
            "peak_memory": stacked["peak_memory"], "machine": alone["machine"]}


# --------------------------------------------------------------------------------------------------
# Command line

def describe_law(law, average):
    """A law and its limit as one line of the table."""
    exponent = ""
    if "b" in law:  # a free exponent; without, it is 1
        exponent = f"^{law['b']:.2f}"
    line = (f"inf  {law['E']:10.4f}   {average} mean: "
            f"{law['A']:.3f} / K{exponent} + {law['E']:.4f}")
    if law["interval"] is None:
        return f"{line}; no interval"
    low, high = law["interval"]
    return f"{line}; 95% {low:.4f} to {high:.4f}, jackknife over members"


def print_ensemble(result):
    """Print the loss at every K of both averages, then the laws and their limits."""
    print(" K   logit mean   probability mean")
    by_k = zip(result["loss_by_k"]["logits"], result["loss_by_k"]["probs"])
    for k, (logits, probs) in enumerate(by_k, 1):
        print(f"{k:2d}   {logits:10.4f}   {probs:10.4f}")
    # Probability means fall more slowly than 1 / K. So their limit is taken from the law with a
    # free exponent, where there are members enough to fit one.
    probs_law = result["free_probs_law"] or result["probs_law"]
    laws = (("logit", result["law"]), ("logit", result["free_law"]), ("probability", probs_law))
    for average, law in laws:
        if law:
            print(describe_law(law, average))
    if len(result["members"]) > 1:
        print(f"members differ in {result['vary']} and diverge by {result['kl']:.4f} nats "
              f"(mean KL over pairs)")


def read_arguments():
    """The parsed command line. Raises InputError for options that do not go together."""
    parser = Parser("The loss of an ensemble at every K and its limit.")
    parser.add_argument("runs", nargs="*", metavar="RUN",
                        help="finished runs; or give --members and train options")
    parser.add_argument("--members", type=int, default=0,
                        help="members with seeds from --seed on, trained if missing")
    parser.add_argument("--vary", default="seed",
                        help=f"what differs between members: some of {','.join(ALL_SEEDS)}")
    parser.add_argument("--jobs", type=int, default=1,
                        help="members trained at once, each in a process of its own")
    parser.add_argument("--stack", choices=("auto", "0", "1"), default="auto",
                        help="1: missing members train as one model in this process; "
                             f"auto: on CUDA below {STACK_BELOW:,} parameters")
    parser.add_argument("--bench", type=int, metavar="STEPS", nargs="?", const=50,
                        help="time so many steps of the members stacked and of one alone; "
                             "writes nothing")
    parser.add_argument("--json", action="store_true", help="print the result as the last line")
    add_options(parser)
    args = parser.parse_args()

    # Two ways to say who the members are, and one of them must be taken.
    if bool(args.runs) == bool(args.members) or args.members < 0:
        raise InputError("give either finished runs or --members K with train options")
    if args.runs:
        used = ("runs", "json", "out", "study", "device", "threads")
        refuse(args, sorted(args.given.difference(used)), "on finished runs")
    args.vary = args.vary.split(",")
    if not set(args.vary) <= set(ALL_SEEDS):
        raise InputError(f"--vary takes some of {','.join(ALL_SEEDS)}")
    if args.jobs < 1:
        raise InputError("--jobs is at least 1")
    if args.bench is not None:
        refuse(args, ["jobs", "stack"], "with --bench")
        if args.bench < 1:
            raise InputError("--bench takes 1 step or more")
    if args.stack == "1":
        refuse(args, ["jobs", "micro_batch_size"], "with --stack 1")
    if args.teacher and (args.stack == "1" or args.bench):
        raise InputError("members of one model know no --teacher; leave out --stack 1 and --bench")
    if "RANK" in os.environ:  # set by torchrun
        raise InputError("this script runs without torchrun and starts its own processes (--jobs)")
    return args


def main():
    args = read_arguments()
    device = use_device(args.device, args.threads)
    if args.members:
        configs = member_configs(config_from(args), args.members, args.vary)
        names = [run_name(config) for config in configs]
        if args.bench:
            print(json.dumps(bench_stack(configs, args.bench)))
            return
        train_members(configs, args.jobs, args.stack)
    else:
        names = expand(args.runs, args.out)

    # Members are never written to: the ensemble has a folder of its own, beside theirs.
    result = evaluate_ensemble(names, args.out, device)
    study = args.study or Path(args.out).absolute().name
    result = {"kind": result.pop("kind"), "study": study, "name": ensemble_name(result), **result}
    folder = Path(args.out) / "ensembles" / result["name"]
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "result.json", result)
    print(folder)
    print_ensemble(result)
    if args.json:
        print(json.dumps(result))


if __name__ == "__main__":
    run_main(main)
