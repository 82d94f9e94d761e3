"""Ensembles of the 1/1000 ladder: limits by size and rule, the grid around the rule, what members may differ in.

    python results/ensembles.py > results/1000/ensembles.txt     # reads results/1000/members.csv and subsets.csv
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
from fit import fit_reciprocal, read_results, t_interval  # noqa: E402

SIZES = ("150k", "300k", "600k", "1.4m")


def limits(ensemble):
    """(K, limit of the logit mean, its interval, limit of the probability mean)."""
    by_k, law = ensemble["loss_by_k"], ensemble["law"]
    K = len(by_k["logits"])
    probs = fit_reciprocal(range(1, K + 1), by_k["probs"])["E"]
    return K, law["E"], t_interval(law["E"], law["se"], K) if law["se"] else (float("nan"),) * 2, probs


def print_row(label, ensemble):
    K, limit, (low, high), probs = limits(ensemble)
    losses = "".join(f"{logits:8.3f} /{prob:6.3f}" for logits, prob in
                     [pair for k, pair in enumerate(zip(*ensemble["loss_by_k"].values()), 1) if k in (1, 2, 3, K)])
    print(f"{label:<44}{K:>3}{limit:>9.3f}  {low:.3f} to {high:.3f}{probs:>8.3f}{losses}")


def main():
    here = Path(__file__).parent / "1000"
    _, members = read_results([here / "members.csv"])
    _, subsets = read_results([here / "subsets.csv"])
    head = (f"{'':<44}{'K':>3}{'limit':>9}  {'95%, jackknife':<14}{'probs':>8}"
            "  logit / probability mean at K = 1, 2, 3, last")

    def label(e):
        return f"{e['size']} {e['recipe']}: {e['epochs']} epochs, lr {e['lr']:g}, wd {e['weight_decay']:g}"
    print(f"limits of A / K + E by size\n{head}")
    grid = {}
    for e in sorted(members, key=lambda e: (e["recipe"], e["params"], e["epochs"], -e["weight_decay"])):
        if e["recipe"] == "member" and e["size"] == "300k":
            grid[e["epochs"], e["weight_decay"]] = e
    for recipe in ("regularized", "member"):
        for size in SIZES:
            found = [e for e in members if (e["recipe"], e["size"]) == (recipe, size)]
            print_row(label(most := max(found, key=lambda e: len(e["members"]) if isinstance(e["members"], list)
                                        else len(e["loss_by_k"]["logits"]))), most)
    print(f"\n300k, epochs and weight decay around the rule, three members each\n{head}")
    for (epochs, weight_decay), e in sorted(grid.items()):
        print_row(f"{epochs} epochs, weight decay {weight_decay:g}", e)
    print(f"\n300k member: what members differ in\n{head}")
    for e in sorted(subsets, key=lambda e: e["vary"]):
        print_row(e["vary"], e)


if __name__ == "__main__":
    main()
