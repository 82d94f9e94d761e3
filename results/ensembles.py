"""Ensembles at 1/1000: losses by K and limits of both averages, by size and rule; the joint limits over N and K;
epochs and weight decay around the member rule; what members differ in.

    python results/ensembles.py > results/1000/ensembles.txt     # reads results/1000/members.csv
"""
import math
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
from fit import describe, member_laws, read_results, t_interval, tiered_laws  # noqa: E402

RECIPES, SIZES = ("standard", "regularized", "member"), ("150k", "300k", "600k", "1.4m")


def half(law, K):
    """Half the width of a limit's 95% interval, from the jackknife over K members."""
    low, high = t_interval(law["E"], law["se"], K)
    return (high - low) / 2


def print_head(title, label):
    print(f"\n{title}\n{label:<41} K  K = 1      2      3   last  limit (95%)   probs: last  limit (95%)     KL")


def print_row(label, e):
    """One ensemble: the losses of its logit means and their limit, the last and the limit of its probability means,
    and its members' mean pairwise KL."""
    logits, probs = e["loss_by_k"]["logits"], e["loss_by_k"]["probs"]
    K = len(logits)
    limits = [f"{law['E']:.3f} +-{half(law, K):.3f}" for law in (e["law"], e["probs_law"])]
    print(f"{label:<41}{K:>2}  " + "".join(f"{loss:7.3f}" for loss in (*logits[:3], logits[-1]))
          + f"  {limits[0]}  {probs[-1]:11.3f}  {limits[1]} {e['kl']:6.2f}")


def settings(e):
    return f"{e['epochs']:>3} epochs, lr {e['lr']:g}, wd {e['weight_decay']:g}"


def of_probs(e):
    """The same ensemble with its probability means where the logit means were."""
    return {**e, "law": e["probs_law"], "loss_by_k": {"logits": e["loss_by_k"]["probs"], "probs": None}}


def print_sizes(members):
    """A row for each recipe and size; returns those ensembles, {recipe: ensembles}. The rule: the tuned settings, of
    which a member has twice the epochs and half the weight decay."""
    print_head("by size and recipe; 95%: jackknife over members", "recipe      size  settings")
    rows = {recipe: [] for recipe in RECIPES}
    tuned = {e["size"]: e for e in members if e["recipe"] == "regularized"}
    for recipe in RECIPES:
        for size in SIZES:
            found = [e for e in members if (e["recipe"], e["size"]) == (recipe, size) and (
                recipe != "member" or (e["epochs"], e["weight_decay"]) ==
                (2 * tuned[size]["epochs"], tuned[size]["weight_decay"] / 2))]
            rows[recipe].append(max(found, key=lambda e: len(e["loss_by_k"]["logits"])))
            print_row(f"{recipe:<12}{size:<6}{settings(rows[recipe][-1])}", rows[recipe][-1])
    return rows


def print_joint(rows):
    """K to infinity at each N, then N to infinity."""
    print("\nK to infinity, then N to infinity")
    for recipe in RECIPES:
        for kind, ensembles in (("logit", rows[recipe]), ("probability", [of_probs(e) for e in rows[recipe]])):
            (law,) = tiered_laws(member_laws(ensembles))
            bound = "; b at its bound: no power law" if "b" in law["at_bounds"] else ""
            print(f"{recipe:<12}{kind + ' means':<18}{law['A']:.3g} / N^{law['b']:.3g} + {law['E']:.4f}{bound}\n"
                  f"    {describe(law['interval'], law['leave_one_out'], law['sigma'])}")


def print_difference(name, one, other):
    """How far two ensembles are apart, by K and in the limit."""
    apart = [b - a for a, b in zip(one["loss_by_k"]["logits"], other["loss_by_k"]["logits"])]
    error = math.hypot(*(half(e["law"], len(e["loss_by_k"]["logits"])) for e in (one, other)))
    print(f"{name}: " + ", ".join(f"{loss:+.3f}" for loss in apart) + f" at K = 1 to {len(apart)}; "
          f"limit {other['law']['E'] - one['law']['E']:+.3f} +-{error:.3f}")


def main():
    _, ensembles = read_results([Path(__file__).parent / "1000" / "members.csv"])
    alike = [e for e in ensembles if e["vary"] == "seed"]
    rows = print_sizes(alike)
    print_joint(rows)
    print_head("300k, around the rule, three members each", "epochs, weight decay")
    for e in sorted(alike, key=lambda e: (e["epochs"], -e["weight_decay"])):
        if (e["recipe"], e["size"], len(e["loss_by_k"]["logits"])) == ("member", "300k", 3):
            print_row(f"{e['epochs']:>3} epochs, weight decay {e['weight_decay']:g}", e)
    print_head("300k, what members differ in", "seed: initial weights and order of data")
    rule = rows["member"][SIZES.index("300k")]
    others = {e["vary"]: e for e in ensembles if e["vary"] != "seed"}
    for vary in ("init_seed", "data_seed", "seed+subset_seed"):
        print_row({"init_seed": "initial weights alone", "data_seed": "order of data alone"}.get(
            vary, "seed, and each its own subset of text"), others[vary])
    print_row("seed", rule)
    print_difference("own subsets minus one subset", rule, others["seed+subset_seed"])


if __name__ == "__main__":
    main()
