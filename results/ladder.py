"""The certificates of the 1/1000 ladder in one table, and the settings of the smallest model at every size.

    python results/ladder.py > results/1000/certificates.txt      # reads results/1000/certificates/ and runs.csv
"""
import csv
import json
from pathlib import Path

import numpy as np

RECIPES, SIZES, AXES = ("standard", "regularized"), ("150k", "300k", "600k", "1.4m"), ("epochs", "lr", "weight_decay")


def setting(row):
    """(epochs, lr, weight_decay) of a certificate, one of its neighbours, or a row of runs.csv."""
    return int(row["epochs"]), float(row["lr"]), float(row["weight_decay"])


def print_certificates(found):
    """A line a certificate: the optimum, its loss over seeds, AdamW's memory, and which steps away are ties."""
    print("certified optima; tau: AdamW's memory in epochs, 0.20 to 0.52 at the paper's 16 regularized optima\n"
          f"{'recipe':<12}{'size':<5}{'epochs':>7}{'lr':>7}{'weight decay':>13}{'tau':>7}{'loss':>8}"
          f"{'sd':>7}  ties, and the margin of the best other neighbour")
    for recipe in RECIPES:
        for size in SIZES:
            c = found[recipe, size]
            rows = c["neighbours"]
            ties = [f"{row['step']} {row['margin']:+.3f}" for row in rows if row["verdict"] == "tie"]
            best = min(row["margin"] for row in rows if row["verdict"] == "worse")
            epochs, lr, weight_decay = setting(c)
            tau = 1 / (lr * weight_decay * (c["tokens"] // c["context"] // c["batch_size"]))
            print(f"{recipe:<12}{size:<5}{epochs:>7}{lr:>7g}{weight_decay:>13g}{tau:>7.2f}{c['loss']:>8.3f}"
                  f"{np.std(c['losses'], ddof=1):>7.3f}  {', '.join(ties) or 'no tie'}; {best:+.3f}")


def print_one_setting(found, losses):
    """Loss of the smallest model's settings at every size beside each size's own."""
    smallest = setting(found["regularized", "150k"])
    print("\nregularized, the settings of 150k ({} epochs, lr {:g}, weight decay {:g}) at every size".format(*smallest))
    print(f"{'size':<6}{'its own':>10}{'those of 150k':>15}   seeds")
    for size in SIZES:
        there = losses.get((size, smallest), [])
        print(f"{size:<6}{found['regularized', size]['loss']:>10.3f}"
              + (f"{np.mean(there):>15.3f}   {len(there)}" if there else f"{'not run':>15}"))


def main():
    here = Path(__file__).parent / "1000"
    found = {(recipe, size): json.loads((here / "certificates" / f"{recipe}-{size}.json").read_text())
             for recipe in RECIPES for size in SIZES}
    one = found["regularized", "300k"]
    with open(here / "runs.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["kind"] == "run" and not row["synthetic"]
                and all(row[key] == str(one[key]) for key in ("tokens", "context", "batch_size", "shuffle", "data_hash"))]
    losses = {}
    for row in {row["name"]: row for row in rows}.values():
        losses.setdefault((row["size"], setting(row)), []).append(float(row["val_loss"]))
    print_certificates(found)
    print_one_setting(found, losses)
    unique = {row["name"]: float(row["seconds"]) for row in rows}
    print(f"\n{len(unique)} runs in all, {sum(unique.values()) / 3600:.1f} core-hours")


if __name__ == "__main__":
    main()
