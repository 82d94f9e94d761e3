"""What does the best weight decay follow? One table, out of searches made for other ends.

    python results/timescale.py

A search over weight decay at one size, budget, lr and number of epochs has its optimum at the
vertex of the parabola through the least loss and its neighbours, in logs of weight decay. AdamW's
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
SEARCH = ("tokens", "params", "lr", "epochs", "context", "batch_size")  # what one search holds fixed
FARTHEST = 4.0  # factor to the next weight decay; beyond it a parabola means little


def vertex(x, loss):
    """Where the parabola through three points is least."""
    bend, slope, _ = np.polyfit(x, loss, 2)
    return -slope / (2 * bend)


def best_decay(search, noise):
    """(log of the best weight decay, its standard error) of a search; None where its least loss is
    at an end, or its neighbours are far."""
    search = sorted(search, key=lambda s: s["weight_decay"])
    i = int(np.argmin(fit.column(search, "loss")))
    three = search[i - 1:i + 2]
    if i == 0 or len(three) < 3:
        return None
    x, loss = np.log(fit.column(three, "weight_decay")), fit.column(three, "loss")
    if max(np.diff(x)) > np.log(FARTHEST) + 1e-9:
        return None
    # how far each loss moves the vertex, times that loss's own error
    step = 1e-5 * np.eye(3)
    slopes = [(vertex(x, loss + one) - vertex(x, loss - one)) / 2e-5 for one in step]
    errors = noise / np.sqrt(fit.column(three, "seeds"))
    return vertex(x, loss), float(np.linalg.norm(slopes * errors))


def read_searches():
    """A row for each search over weight decay that has an optimum inside."""
    runs, _ = fit.count_once(fit.read_results([RESULTS], [STUDIES, "weight_decay>0", "lr>0"]))
    # the recipes are names for weight decays here; a run that stands under two of them counts once
    named = {run["name"]: {**run, "recipe": "any"} for run in runs
             if run["recipe"] in ("standard", "regularized", "member")}
    settings = fit.mean_settings(named.values())
    noise = fit.pooled_noise(settings)
    rows = []
    for search in fit.grouped(settings, (*SEARCH, "rest")):
        found = best_decay(search, noise[fit.task_of(search[0])][0])
        if found is None:
            continue
        first, (log_decay, error) = search[0], found
        decay = float(np.exp(log_decay))
        steps = 1 / (first["tau_epochs"] * first["lr"] * first["weight_decay"])  # an epoch
        tau = 1 / (first["lr"] * decay * steps)
        rows.append({**first, "decay": decay, "error": error, "steps_per_epoch": steps, "tau": tau,
                     "share": tau / first["epochs"], "product": first["lr"] * decay,
                     "ratio": first["tokens"] / first["params"],
                     "low": decay * np.exp(-1.96 * error), "high": decay * np.exp(1.96 * error)})
    return rows


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
    rows = read_searches()
    fit.print_table(
        "Searches over weight decay: the best one by a parabola", rows,
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
