"""What does the best weight decay follow? One table, out of searches made for other ends.

    python results/timescale.py

A search over weight decay at one size, budget, lr and number of epochs has its optimum at the
vertex of the parabola through the least loss and its neighbors, in logs of weight decay (that the
loss is no parabola is in no interval). AdamW's
memory, tau, is 1 / (lr x weight decay x steps per epoch) epochs (arXiv 2405.13698). Three things
could be the same at all optima: tau in epochs, tau as a share of the run (of whose power of tokens
per parameter arXiv 2505.13738 speaks), and lr x weight decay.
"""
import sys
from pathlib import Path

import numpy as np
from scipy.stats import t as student_t

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import fit  # noqa: E402

RESULTS = "results/1000.jsonl"
STUDIES = "study=ladder,members,pilot,efficiency"
# what one search holds fixed
SEARCH = ("tokens", "params", "lr", "epochs", "context", "batch_size")
FARTHEST = 4.0  # factor to the next weight decay; beyond it a parabola means little


def around_the_best(search):
    """The best setting of a search and its neighbors in weight decay, three settings; None where
    the best is at an end, or a neighbor is far."""
    search = sorted(search, key=lambda s: s["weight_decay"])
    i = int(np.argmin(fit.column(search, "loss")))
    three = search[i - 1:i + 2]
    if i == 0 or len(three) < 3:
        return None
    decays = fit.column(three, "weight_decay")
    if max(decays[1:] / decays[:-1]) > FARTHEST * 1.001:
        return None
    return three


def best_decay(three, noise, freedom, draws=2000):
    """Log of the best weight decay by the parabola through three settings, and its 95% interval:
    where the vertex goes when each loss moves by its noise, between the outer two."""
    x, loss = np.log(fit.column(three, "weight_decay")), fit.column(three, "loss")

    def vertices(losses):  # (draws, 3) -> (draws,), of the parabola through each three
        bend, slope, _ = np.polyfit(x - x[1], losses.T, 2)
        # a parabola that opens downwards has its least loss at an end
        ends = np.where(losses[:, 0] < losses[:, 2], x[0], x[2])
        inside = x[1] - slope / (2 * np.where(bend > 0, bend, np.inf))
        return np.where(bend > 0, np.clip(inside, x[0], x[2]), ends)

    errors = noise / np.sqrt(fit.column(three, "seeds"))
    moves = np.random.default_rng(0).standard_t(freedom, (draws, 3)) * errors
    low, high = np.percentile(vertices(loss + moves), [2.5, 97.5])
    return float(vertices(loss[None])[0]), float(low), float(high)


def read_searches():
    """A row for each search over weight decay that has an optimum inside, and how many searches of
    two weight decays or more there are."""
    runs, _ = fit.count_once(fit.read_results([RESULTS], [STUDIES, "weight_decay>0", "lr>0"]))
    # the recipes are names for weight decays here; a run that stands under two of them counts once
    named = {run["name"]: {**run, "recipe": "any"} for run in runs
             if run["recipe"] in ("standard", "regularized", "member")}
    settings = fit.mean_settings(named.values())
    searches = [s for s in fit.grouped(settings, (*SEARCH, "rest")) if len(s) > 1]
    found = list(filter(None, map(around_the_best, searches)))
    # noise of runs around an optimum alone: runs that know their text by heart have more
    noise = fit.pooled_noise([s for three in found for s in three])
    rows = []
    for three in found:
        first = three[0]
        log_decay, low, high = best_decay(three, *noise[fit.task_of(first)])
        decay = float(np.exp(log_decay))
        steps = 1 / (first["tau_epochs"] * first["lr"] * first["weight_decay"])  # an epoch
        tau = 1 / (first["lr"] * decay * steps)
        rows.append({**first, "decay": decay, "error": (high - low) / (2 * 1.96),
                     "steps_per_epoch": steps, "tau": tau, "share": tau / first["epochs"],
                     "product": first["lr"] * decay, "ratio": first["tokens"] / first["params"],
                     "low": float(np.exp(low)), "high": float(np.exp(high))})
    return rows, len(searches)


def compare(rows):
    """How much each candidate for the constant varies over the searches, a row each."""
    weights = 1 / fit.column(rows, "error") ** 2
    found = []
    for what, key in (("tau in epochs", "tau"), ("tau as a share of the run", "share"),
                      ("lr x weight decay", "product")):
        logs = np.log(fit.column(rows, key))
        mean = np.average(logs, weights=weights)
        variance = np.average((logs - mean) ** 2, weights=weights)
        found.append({"what": what, "mean": float(np.exp(mean)),
                      "spread": float(np.exp(np.sqrt(variance)))})
    return found


def exponents(rows):
    """The best weight decay as a product of powers, least squares in logs: a row for each power,
    with half its 95% interval by the spread around the fit and what the candidates expect."""
    names = {"lr": "lr", "steps_per_epoch": "steps per epoch", "epochs": "epochs",
             "params": "parameters N"}
    law = fit.log_linear(*names)
    columns = {name: fit.column(rows, name).astype(float) for name in names}
    solved = fit.fit(law, columns, fit.column(rows, "decay"), 1 / fit.column(rows, "error") ** 2)
    errors = fit.standard_errors(solved)
    reach = student_t.ppf(0.975, len(rows) - len(errors))
    expected = {"lr": (-1, -1, -1), "steps_per_epoch": (-1, -1, 0), "epochs": (0, -1, 0),
                "params": (0, 0, 0)}
    found = []
    for name, title in names.items():
        value, error = solved.params[f"a_{name}"], errors[f"a_{name}"]
        tau, share, product = expected[name]
        found.append({"of": title, "value": value, "half": reach * error, "tau": tau,
                      "share": share, "product": product})
    return found


def main():
    rows, searches = read_searches()
    fit.print_table(
        f"Searches over weight decay: the best one by a parabola, where it lies inside "
        f"({len(rows)} of {searches} searches), and its 95% interval by the noise of seeds", rows,
        {"size": "{size}", "tokens": "{tokens:,}", "context": "{context}", "batch": "{batch_size}",
         "lr": "{lr:g}", "epochs": "{epochs}", "best weight decay": "{decay:.2f}",
         "95%": "{low:.2f} to {high:.2f}", "tau": "{tau:.2f}", "share of the run": "{share:.3f}",
         "lr x weight decay": "{product:.4f}", "tokens per parameter": "{ratio:.2f}"})
    fit.print_table("What would be the same at all optima: its mean, and the factor it varies by",
                    compare(rows), {"candidate": "{what}", "mean": "{mean:.3g}",
                                    "factor": "{spread:.2f}"})
    fit.print_table(
        "The best weight decay as a product of powers, and what each candidate says they are",
        exponents(rows), {"power of": "{of}", "found": "{value:+.2f}", "95%": "+-{half:.2f}",
                          "tau in epochs": "{tau:g}", "share of the run": "{share:g}",
                          "lr x weight decay": "{product:g}"})


if __name__ == "__main__":
    main()
