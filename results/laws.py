"""Three laws of repeated data against the same runs, by error on runs held out.

    python results/laws.py > results/1000/laws.txt      # reads results/1000/repetition.csv

Each split trains on some runs and predicts the others: more epochs than fitted, more unique tokens, larger models.
Errors are mean absolute differences of the loss, in nats; the last column says for how many of the (N, D) the
fitted law puts the best number of epochs where it was measured. The form of `overfit` was chosen among three on these
same runs.
"""
import csv
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))
from fit import LAWS, fit, predict  # noqa: E402

VOCABULARY = 1024


def main():
    here = Path(__file__).parent / "1000"
    rows = list(csv.DictReader((here / "repetition.csv").open()))
    keys = ("params", "tokens_seen", "tokens", "val_loss")
    n, t, u, y = (np.array([float(row[key]) for row in rows]) for key in keys)
    epochs = np.array([int(row["epochs"]) for row in rows])
    columns = {"N": n, "T": t, "U": u, "V": np.full(len(n), float(VOCABULARY))}
    splits = {"none held out": np.zeros(len(n), bool), "32 epochs": epochs == 32, "400k tokens": u == u.max(),
              "600k model": n == n.max()}
    print(f"{len(rows)} runs, weight decay 0.1, lr 0.01, one seed: {len(set(n))} sizes x {len(set(u))} budgets x "
          f"{len(set(epochs))} epoch counts; loss {y.min():.2f} to {y.max():.2f}\nmean absolute error by what is held "
          f"out")
    print(f"{'law':<18}" + "".join(f"{name:>16}" for name in splits) + "   best epochs found")
    for name in ("data_constrained", "practical", "overfit"):
        law, line = LAWS[name], f"{name:<18}"
        for held in splits.values():
            kept = {key: column[~held] for key, column in columns.items()}
            found = fit(law, kept, y[~held])
            error = np.abs(predict(law, found["params"], columns) - y)
            line += f"{error[held if held.any() else ~held].mean():16.4f}"
        found = fit(law, columns, y)
        lines = {(a, b): (n == a) & (u == b) for a in sorted(set(n)) for b in sorted(set(u))}
        right = [epochs[m][y[m].argmin()] == epochs[m][found["prediction"][m].argmin()] for m in lines.values()]
        print(line + f"   {sum(right)} of {len(right)}")


if __name__ == "__main__":
    main()
