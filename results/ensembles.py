"""Ensembles at 1/1000: losses by K and limits of both averages, by size and recipe; the joint limits over N and K;
epochs and weight decay around the member rule; what members differ in.

    python results/ensembles.py > results/1000/ensembles.txt     # reads results/1000/members.csv
"""
import math
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
from fit import describe, fit_power, fit_reciprocal, member_laws, read_results, t_interval, tiered_laws  # noqa: E402
from train import recipe_settings  # noqa: E402

RECIPES, SIZES = ("standard", "regularized", "member"), ("150k", "300k", "600k", "1.4m")
VARIED = {"seed": "all (seed)", "init_seed": "initial weights alone", "data_seed": "order of the data alone",
          "seed+subset_seed": "all, and a subset of the text each"}


def members_of(e):
    return len(e["loss_by_k"]["logits"])


def half(e, law="law"):
    """Half the width of a limit's 95% interval, from the jackknife over members."""
    low, high = t_interval(e[law]["E"], e[law]["se"], members_of(e))
    return (high - low) / 2


def print_head(title, label):
    print(f"\n{title}\n{label:<38} K  logits: 1     2     3  last   limit, 95%       b  probs: last  limit   b     KL")


def print_row(label, e):
    """One ensemble: losses of its logit means, their limit and the exponent b of A / K^b + E, the last loss and the
    limit (of that law) of its probability means, and its members' mean pairwise KL."""
    logits, probs, K = e["loss_by_k"]["logits"], e["loss_by_k"]["probs"], members_of(e)
    free, free_probs = (fit_power(range(1, K + 1), losses) for losses in (logits, probs))
    print(f"{label:<38}{K:>2}    " + "".join(f"{loss:6.3f}" for loss in (*logits[:3], logits[-1]))
          + f"  {e['law']['E']:.3f} +-{half(e):.3f}  {free['b']:.2f}{probs[-1]:13.3f}{free_probs['E']:7.3f}"
          f"  {free_probs['b']:.2f}{e['kl']:7.2f}")


def settings(e):
    return e["epochs"], e["lr"], e["weight_decay"]


def print_sizes(ensembles):
    """A row for each recipe and size with the settings of train.py; returns those ensembles, {recipe: ensembles}."""
    print_head("by recipe and size", "recipe      size  epochs, lr, weight decay")
    rows = {}
    for recipe in RECIPES:
        for size in SIZES:
            found = [e for e in ensembles if e["size"] == size and settings(e) == recipe_settings(recipe, size, 0)]
            if found:
                most = max(found, key=members_of)
                rows.setdefault(recipe, []).append(most)
                print_row(f"{recipe:<12}{size:<6}{most['epochs']:>3}, {most['lr']:g}, {most['weight_decay']:g}", most)
    return rows


def cut(e, kind, K=3):
    """An ensemble's losses at K = 1 to 3 of one average, as if it had three members and these were its logit means:
    all sizes are alike then."""
    losses, se = e["loss_by_k"][kind][:K], e["law" if kind == "logits" else "probs_law"]["se"]
    law = {**fit_reciprocal(range(1, K + 1), losses), "se": se * math.sqrt(members_of(e) / K)}
    return {**e, "law": law, "loss_by_k": {"logits": losses, "probs": losses}, "recipe": e["recipe"] or "mixed"}


def print_joint(rows):
    """K to infinity at each N, then N to infinity."""
    print("\nK to infinity (A / K + E over K = 1, 2, 3), then N to infinity")
    for recipe, ensembles in rows.items():
        for kind in ("logits", "probs"):
            for law in tiered_laws(member_laws([cut(e, kind) for e in ensembles])):
                print(f"{recipe:<12}{kind:<7}{law['A']:.3g} / N^{law['b']:.3g} + {law['E']:.4f}\n    "
                      + ("b at its bound: no power law" if "b" in law["at_bounds"] else
                         describe(law["interval"], law["leave_one_out"], law["sigma"], "member")))


def print_difference(name, one, other):
    """How far two ensembles are apart, by K and in the limit."""
    apart = [b - a for a, b in zip(one["loss_by_k"]["logits"], other["loss_by_k"]["logits"])]
    print(f"{name}: " + ", ".join(f"{loss:+.3f}" for loss in apart) + f" at K = 1 to {len(apart)}; limit "
          f"{other['law']['E'] - one['law']['E']:+.3f} +-{math.hypot(half(one), half(other)):.3f}")


def main():
    _, ensembles = read_results([Path(__file__).parent / "1000" / "members.csv"])
    alike = [e for e in ensembles if e["vary"] == "seed" and members_of(e) > 2]
    rows = print_sizes(alike)
    print_joint(rows)
    epochs, lr, weight_decay = recipe_settings("regularized", "300k", 0)
    print_head("300k, around the member rule, three members each", "epochs, weight decay")
    for e in sorted(alike, key=lambda e: (e["epochs"], -e["weight_decay"])):
        if e["size"] == "300k" and e["lr"] == lr and e["weight_decay"] <= weight_decay and members_of(e) == 3:
            print_row(f"{e['epochs']:>3}, {e['weight_decay']:g}", e)
    print_head("300k by the member rule, what members differ in", "")
    varied = {e["vary"]: e for e in ensembles if e["size"] == "300k" and settings(e) == recipe_settings(
        "member", "300k", 0) and not (e["vary"] == "seed" and members_of(e) == 3)}
    for vary, label in VARIED.items():
        if vary in varied:
            print_row(label, varied[vary])
    if {"seed", "seed+subset_seed"} <= set(varied):
        print_difference("a subset each minus one for all", varied["seed"], varied["seed+subset_seed"])


if __name__ == "__main__":
    main()
