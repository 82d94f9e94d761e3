"""The certificates of the 1/1000 ladder in one table, the settings of the smallest model at every size, and the pilot
of context and batch size that the ladder's defaults rest on.

    python results/ladder.py > results/1000/certificates.txt      # reads results/1000/certificates/ and runs.csv
"""
import csv
import itertools
import json
from pathlib import Path

import numpy as np

RECIPES, SIZES = ("standard", "regularized"), ("150k", "300k", "600k", "1.4m")


def setting(row):
    """(epochs, lr, weight_decay) of a certificate, one of its neighbours, or a row of runs.csv."""
    return int(row["epochs"]), float(row["lr"]), float(row["weight_decay"])


def print_certificates(found):
    """A line a certificate, of two local optima the lower first: the optimum, its loss over seeds, AdamW's memory, and
    which steps away are ties."""
    print("certified optima; tau: AdamW's memory in epochs, 0.20 to 0.52 at the paper's 16 regularized optima\n"
          f"{'recipe':<12}{'size':<5}{'epochs':>7}{'lr':>7}{'weight decay':>13}{'tau':>7}{'loss':>8}"
          f"{'sd':>7}  ties, and the margin of the best other neighbour")
    for recipe, size in itertools.product(RECIPES, SIZES):
        for c in found[recipe, size]:
            rows = c["neighbours"]
            ties = [f"{row['step']} {row['margin']:+.3f}" for row in rows if row["verdict"] == "tie"]
            best = min(row["margin"] for row in rows if row["verdict"] == "worse")
            epochs, lr, weight_decay = setting(c)
            tau = 1 / (lr * weight_decay * (c["tokens"] // c["context"] // c["batch_size"]))
            print(f"{recipe:<12}{size:<5}{epochs:>7}{lr:>7g}{weight_decay:>13g}{tau:>7.2f}{c['loss']:>8.3f}"
                  f"{np.std(c['losses'], ddof=1):>7.3f}  {', '.join(ties) or 'no tie'}; {best:+.3f}")


def print_trends(found, params):
    """Slope of the optima's losses, seed by seed, per doubling of N, with its standard error."""
    for recipe in RECIPES:
        n = np.log2([params[size] for size in SIZES for _ in found[recipe, size]["losses"]])
        loss = np.concatenate([found[recipe, size]["losses"] for size in SIZES])
        slope, level = np.polyfit(n, loss, 1)
        error = np.sqrt(((loss - slope * n - level) ** 2).sum() / (len(n) - 2) / ((n - n.mean()) ** 2).sum())
        print(f"{recipe}: {slope:+.3f} nats per doubling of N, standard error {error:.3f}, {len(n)} runs")


def print_one_setting(found, losses):
    """Loss of the smallest model's settings at every size beside each size's own."""
    smallest = setting(found["regularized", "150k"])
    print("\nregularized, at every size the settings of 150k: {} epochs, lr {:g}, weight decay {:g}".format(*smallest))
    print(f"{'size':<6}{'its own':>10}{'those of 150k':>15}   seeds")
    for size in SIZES:
        there = losses.get((size, smallest), [])
        print(f"{size:<6}{found['regularized', size]['loss']:>10.3f}"
              + (f"{np.mean(there):>15.3f}   {len(there)}" if there else f"{'not run':>15}"))


def print_pilot(rows):
    """300k, 16 epochs: the best setting tried at each context and batch size, the mean over seeds where there are any.
    """
    print("\n300k, 16 epochs, by context and batch size: the best setting tried\n"
          f"{'context x batch':<17}{'steps/epoch':>11}{'tried':>7}{'lr':>7}{'weight decay':>13}{'tau':>7}{'loss':>8}"
          "  seeds")
    found = {}
    for row in rows:
        if (row["size"], row["epochs"]) == ("300k", "16"):
            place = found.setdefault((int(row["context"]), int(row["batch_size"])), {})
            place.setdefault((float(row["lr"]), float(row["weight_decay"])), []).append(row)
    for (context, batch_size), place in sorted(found.items()):
        losses = {key: np.mean([float(row["val_loss"]) for row in runs]) for key, runs in place.items()}
        best = min(losses, key=losses.get)
        row = place[best][0]
        steps = int(row["steps"]) // int(row["epochs"])
        print(f"{f'{context} x {batch_size}':<17}{steps:>11}{len(place):>7}{best[0]:>7g}{best[1]:>13g}"
              f"{float(row['tau_epochs']):>7.2f}{losses[best]:>8.3f}  {len(place[best])}")


def main():
    here = Path(__file__).parent / "1000"
    found = {(recipe, size): sorted((json.loads(path.read_text()) for path in
                                     (here / "certificates").glob(f"{recipe}-{size}*.json")), key=lambda c: c["loss"])
             for recipe in RECIPES for size in SIZES}
    best = {key: certificates[0] for key, certificates in found.items()}
    one = best["regularized", "300k"]
    with open(here / "runs.csv", newline="") as file:
        every = [row for row in csv.DictReader(file) if row["kind"] == "run" and not row["synthetic"]
                 and all(row[key] == str(one[key]) for key in ("tokens", "shuffle", "data_hash"))]
    every = list({row["name"]: row for row in every}.values())  # a run may stand under two recipes
    rows = [row for row in every if all(row[key] == str(one[key]) for key in ("context", "batch_size"))]
    losses = {}
    for row in rows:
        losses.setdefault((row["size"], setting(row)), []).append(float(row["val_loss"]))
    print_certificates(found)
    print_trends(best, {row["size"]: float(row["params"]) for row in rows})
    print_one_setting(best, losses)
    print_pilot(every)
    hours = [sum(float(row["seconds"]) for row in some) / 3600 for some in (rows, every)]
    print(f"\n{len(rows)} runs, {hours[0]:.1f} core-hours; with the pilot {len(every)}, {hours[1]:.1f} core-hours")


if __name__ == "__main__":
    main()
