"""K members, their average, the limit K -> infinity (paper, section on ensembles).

    python ensemble.py --members 3 --data docstrings --size 300k --recipe member     # trains the missing members
    python ensemble.py RUN RUN ...                                                   # evaluates finished ones

Members share tokens and settings and differ in seed. The paper averages their logits; the average of their
probabilities stands beside it. The result goes to runs/ensembles/NAME/result.json.
"""
import dataclasses
import hashlib
import itertools
import json
import math
from pathlib import Path

import torch
import torch.nn.functional as F

from fit import fit_reciprocal
from model import GPT
from prepare import InputError, Parser, load_data, read_json, run_main, write_json
from train import (add_options, autocast, config_from, device_windows, inputs_and_targets, run_name, train,
                   use_device)

# what an ensemble's result says of all its members; null where they differ
SHARED_KEYS = ("data", "data_hash", "size", "params", "params_nonembedding", "tokens", "recipe", "epochs", "lr",
               "weight_decay", "context", "batch_size", "synthetic_weight")
EVAL_LOGITS = 2 ** 29  # logits of all members held at a time when evaluating: 2 GiB in fp32
ALL_SUBSETS = 8  # up to so many members the loss at K is the mean over every subset of K, above over random orders


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


def load_run(run, out="runs"):
    """(result, model) of a finished run, given by folder or by name under `out`. Raises InputError."""
    folder = Path(run) if (Path(run) / "result.json").exists() else Path(out) / run
    if not (folder / "result.json").exists():
        raise InputError(f"{run} is not a finished run (no result.json there or under {out}/); train it first")
    try:
        return read_json(folder / "result.json"), GPT.load(folder / "model.pt")
    except (ValueError, OSError) as error:
        raise InputError(f"{error}; delete {folder} and train it again") from error


def load_members(names, out, device="cpu"):
    """(results, models, data) of runs that can be averaged. Raises InputError where data, context or mask differ."""
    loaded = [load_run(name, out) for name in names]
    results, models = [result for result, _ in loaded], [model.to(device).eval() for _, model in loaded]
    for result in results:
        for key in ("data", "data_hash", "context", "doc_mask", "dtype"):
            if result[key] != results[0][key]:
                raise InputError(f"{result['name']} has {key} {result[key]}, {results[0]['name']} has "
                                 f"{results[0][key]}; members must agree in it")
    data = load_data(results[0]["data"])
    if data.fingerprint() != results[0]["data_hash"]:
        raise InputError(f"{data.folder} is not the data that {names[0]} was trained on ({data.fingerprint()}, "
                         f"not {results[0]['data_hash']}); prepare that again")
    return results, models, data


# --------------------------------------------------------------------------------------------------------------------
# Averages

def choose_subsets(members, seed=0, orders=64):
    """The subsets of members whose averages are evaluated: all, or beyond ALL_SUBSETS the heads of random orders."""
    if members <= ALL_SUBSETS:
        return [s for k in range(1, members + 1) for s in itertools.combinations(range(members), k)]
    generator = torch.Generator().manual_seed(seed)
    shuffled = [torch.randperm(members, generator=generator).tolist() for _ in range(orders)]
    return sorted({tuple(sorted(order[:k])) for order in shuffled for k in range(1, members + 1)})


@torch.no_grad()
def subset_losses(models, windows, subsets, dtype="fp32"):
    """Nats per prediction of each subset's average over all windows: {"logits": {subset: loss}, "probs": {...}}.

    logits: one softmax of the mean logits (the paper's); probs: the mean of the members' probabilities.
    """
    totals = {kind: dict.fromkeys(subsets, 0.0) for kind in ("logits", "probs")}
    batch_size = min(8, EVAL_LOGITS // (len(models) * windows.shape[1] * models[0].config.vocab_size)) or 1
    for batch in windows.split(batch_size):
        tokens, targets = inputs_and_targets(batch)
        targets = targets[:, :-1].flatten()  # the last position predicts nothing
        with autocast(dtype, tokens.device):
            logits = [model(tokens)[:, :-1].flatten(0, 1) for model in models]  # (B (T - 1), V) each, fp32
        # probabilities need each member's probability of the target alone
        target_logs = [-F.cross_entropy(member, targets, reduction="none") for member in logits]
        for subset in subsets:
            mean = torch.stack([logits[i] for i in subset]).mean(0)
            nats = F.cross_entropy(mean, targets, reduction="none")
            totals["logits"][subset] += float(nats.cpu().double().sum())
            logs = torch.stack([target_logs[i] for i in subset])
            totals["probs"][subset] -= float((logs.logsumexp(0) - math.log(len(subset))).cpu().double().sum())
    predictions = len(windows) * (windows.shape[1] - 1)
    return {kind: {s: total / predictions for s, total in sums.items()} for kind, sums in totals.items()}


def mean_by_k(losses, without=None):
    """Loss at each K = 1, 2, ..., the mean over subsets of that size; optionally over those without one member."""
    kept = {s: loss for s, loss in losses.items() if without not in s}
    return [sum(loss for s, loss in kept.items() if len(s) == k) / sum(len(s) == k for s in kept)
            for k in range(1, max(map(len, kept)) + 1)]


def limit_of(loss_by_k):
    """The law A / K + E of losses at K = 1, 2, ...: {"A", "E"}; E is the limit. Needs two members."""
    return fit_reciprocal(range(1, len(loss_by_k) + 1), loss_by_k)


def evaluate_ensemble(names, out, device):
    """The result of an ensemble of finished runs: losses by K of both averages, the law and its limit.

    limit_range: the lowest and highest limit when one member is left out, from three members on.
    """
    results, models, data = load_members(names, out, device)
    windows = device_windows(data.val, results[0]["context"], device)
    losses = subset_losses(models, windows, choose_subsets(len(models)), results[0]["dtype"])
    by_k = {kind: mean_by_k(values) for kind, values in losses.items()}
    law = limit_of(by_k["logits"]) if len(models) > 1 else None
    left_out = [limit_of(mean_by_k(losses["logits"], i))["E"] for i in range(len(models))] if len(models) > 2 else []
    shared = {key: results[0][key] if all(result[key] == results[0][key] for result in results) else None
              for key in SHARED_KEYS}
    return {**shared, "members": [result["name"] for result in results],
            "member_losses": [losses["logits"][(i,)] for i in range(len(models))], "loss_by_k": by_k, "law": law,
            "limit": law and law["E"], "limit_range": [min(left_out), max(left_out)] if left_out else None}


def main():
    parser = Parser("The loss of an ensemble at every K and its limit.")
    parser.add_argument("runs", nargs="*", metavar="RUN", help="finished runs; or give --members and train options")
    parser.add_argument("--members", type=int, default=0, help="members with seeds from --seed on, trained if missing")
    parser.add_argument("--dry_run", action="store_true", help="list the members and which are finished; no run")
    parser.add_argument("--json", action="store_true", help="print the result as the last line")
    add_options(parser)
    args = parser.parse_args()
    if bool(args.runs) == bool(args.members) or args.members < 0:
        raise InputError("give either finished runs or --members K with train options")

    names = expand(args.runs, args.out)
    if args.members:
        first = config_from(args)
        configs = [dataclasses.replace(first, seed=first.seed + i) for i in range(args.members)]
        names = [run_name(config) for config in configs]
        for config, name in zip(configs, names):
            if args.dry_run:
                finished = (Path(args.out) / name / "result.json").exists()
                print(f"{name}: {'finished' if finished else 'to be trained'}")
            else:
                train(config)
    if args.dry_run:
        return
    result = evaluate_ensemble(names, args.out, use_device(args.device, args.threads))
    digest = hashlib.sha256("\n".join(result["members"]).encode()).hexdigest()[:6]
    folder = Path(args.out) / "ensembles" / f"{result['data']}-{result['size'] or 'mixed'}-k{len(names)}-{digest}"
    result["name"] = folder.name
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "result.json", result)

    print(f"{folder}\n K   logit mean   probability mean")
    for k, (logits, probs) in enumerate(zip(result["loss_by_k"]["logits"], result["loss_by_k"]["probs"]), 1):
        print(f"{k:2d}   {logits:10.4f}   {probs:10.4f}")
    if result["limit"] is not None:
        low, high = result["limit_range"] or [math.nan] * 2
        print(f"inf  {result['limit']:10.4f}   limit of {result['law']['A']:.3f} / K + {result['law']['E']:.3f}; "
              f"{low:.3f} to {high:.3f} leaving one member out")
    if args.json:
        print(json.dumps(result))


if __name__ == "__main__":
    run_main(main)
