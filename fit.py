"""A table of points to laws, limits and the figure. numpy and scipy alone, matplotlib for the figure.

    python fit.py                                   # every finished run and ensemble under runs/
    python fit.py runs --csv runs.csv --figure miniature.png

The paper judges a recipe by the limit of its law: loss = A / N^a + E over models of N parameters, A / K^b + E over
ensembles of K members (arXiv 2509.14786, sections on regularization and ensembles).
"""
import argparse
import csv
import io
import json
import os
import sys
from itertools import groupby
from pathlib import Path

import numpy as np
from scipy.optimize import minimize_scalar, nnls

RUN_COLUMNS = ("kind", "recipe", "size", "params", "params_nonembedding", "tokens", "members", "epochs", "lr",
               "weight_decay", "seed", "context", "batch_size", "synthetic", "synthetic_weight", "val_loss",
               "probs_loss", "train_loss", "tau_epochs", "steps", "tokens_seen", "seconds", "flops", "data",
               "data_hash", "name")
EXPONENTS = (0.01, 10.0)  # the range in which a power law's exponent is sought
# runs that agree in all of these are one experiment and differ in seed alone
SETTING_KEYS = ("data_hash", "recipe", "size", "params", "tokens", "epochs", "lr", "weight_decay", "context",
                "batch_size", "doc_mask", "dtype", "synthetic_hash", "synthetic_weight")


class InputError(Exception):
    """Something the user gave cannot be used; the message says what and what to do."""


# --------------------------------------------------------------------------------------------------------------------
# Laws

def linear_part(x, loss, exponent):
    """Least squares of loss = A x^-exponent + E with A, E >= 0: (A, E, root of the summed squares)."""
    unit = np.exp(np.log(x).mean())  # in units of the mean x both columns have the same size
    (a, e), residual = nnls(np.stack([(x / unit) ** -exponent, np.ones_like(x)], axis=1), loss)
    return a * unit ** exponent, e, residual


def check_points(x, loss, least):
    x, loss = np.asarray(x, dtype=np.float64), np.asarray(loss, dtype=np.float64)
    if not (np.isfinite(x).all() and np.isfinite(loss).all() and (x > 0).all()):
        raise InputError("a law needs finite losses at positive x; remove the other points")
    if len(np.unique(x)) < least:
        raise InputError(f"a law of {least} parameters needs {least} different x, not {len(np.unique(x))}; add points")
    return x, loss


def fit_reciprocal(x, loss):
    """loss = A / x + E by least squares; x and loss are (points,). Returns {"A", "E"}."""
    x, loss = check_points(x, loss, 2)
    a, e, _ = linear_part(x, loss, 1.0)
    return {"A": float(a), "E": float(e)}


def fit_power(x, loss):
    """loss = A / x^b + E by least squares on the loss, all parameters >= 0, as the paper fits. Returns {"A","b","E"}.

    A and E are linear once b is fixed, so one search over b finds the global optimum: a grid, then its best cell.
    """
    x, loss = check_points(x, loss, 3)
    grid = np.geomspace(*EXPONENTS, 200)
    best = int(np.argmin([linear_part(x, loss, b)[2] for b in grid]))
    cell = np.log(grid[[max(best - 1, 0), min(best + 1, len(grid) - 1)]])
    found = minimize_scalar(lambda log_b: linear_part(x, loss, np.exp(log_b))[2], bounds=cell, method="bounded",
                            options=dict(xatol=1e-10))
    b = float(np.exp(found.x))
    a, e, _ = linear_part(x, loss, b)
    return {"A": float(a), "b": b, "E": float(e)}


def leave_one_out(fit, x, loss):
    """Lowest and highest limit E when each point is left out in turn; None when too few points remain."""
    try:
        limits = [fit(np.delete(x, i), np.delete(loss, i))["E"] for i in range(len(x))]
        return [min(limits), max(limits)]
    except InputError:
        return None


# --------------------------------------------------------------------------------------------------------------------
# Points

def read_results(folder):
    """(runs, ensembles) under a folder: what the result.json files hold, sorted by name."""
    results = []
    for path in sorted(Path(folder).rglob("result.json")):
        try:
            results.append(json.loads(path.read_text()))
        except (ValueError, UnicodeDecodeError) as error:
            raise InputError(f"{path} is not JSON ({error}); remove its folder and run its command again") from None
    if not results:
        raise InputError(f"no finished run under {folder} (no result.json); train one first")
    return [r for r in results if "loss_by_k" not in r], [r for r in results if "loss_by_k" in r]


def best_of_recipes(runs):
    """One point a (recipe, size, tokens): the least mean over seeds among the settings of that recipe alone.

    Returns dicts with the settings, `loss` (mean), `sd` over seeds (None for one) and `seeds`.
    """
    def setting(run):
        return tuple(str(run[key]) for key in SETTING_KEYS)

    means = []
    for _, group in groupby(sorted(runs, key=setting), key=setting):
        group = list(group)
        losses = [run["val_loss"] for run in group]
        means.append({**group[0], "loss": float(np.mean(losses)), "seeds": len(losses),
                      "sd": float(np.std(losses, ddof=1)) if len(losses) > 1 else None})
    best = {}
    for mean in means:
        key = (mean["data_hash"], mean["recipe"], mean["size"], mean["tokens"])
        best[key] = min(best.get(key, mean), mean, key=lambda m: m["loss"])
    return sorted(best.values(), key=lambda m: (-m["loss"]))


def recipe_laws(points):
    """The law over N of each (recipe, tokens) with at least three sizes: [{recipe, tokens, A, b, E, range}]."""
    def line(point):
        return point["recipe"], point["tokens"], point["data_hash"]

    laws = []
    for (recipe, tokens, _), group in groupby(sorted(points, key=line), key=line):
        group = list(group)
        n, loss = np.array([p["params"] for p in group], float), np.array([p["loss"] for p in group])
        if len(group) >= 3:
            laws.append({"recipe": recipe, "tokens": tokens, "sizes": len(group), **fit_power(n, loss),
                         "leave_one_out": leave_one_out(fit_power, n, loss)})
    return laws


# --------------------------------------------------------------------------------------------------------------------
# What the user sees

def table(points, ensembles):
    """Rows [label, size, settings, loss, remark] of everything measured: recipes, ensembles by K, their limits."""
    rows = []
    for p in points:
        spread = f"sd {p['sd']:.3f} over {p['seeds']} seeds" if p["sd"] is not None else "1 seed"
        settings = f"{p['epochs']} epochs, lr {p['lr']:g}, weight decay {p['weight_decay']:g}"
        rows.append([p["recipe"], p["size"], settings, p["loss"], spread])
    for e in ensembles:
        for k, (logits, probs) in enumerate(zip(e["loss_by_k"]["logits"], e["loss_by_k"]["probs"]), 1):
            rows.append([f"ensemble K = {k}", e["size"], f"logit mean ({e['recipe']} members)", logits,
                         f"probability mean {probs:.3f}"])
        if e["limit"] is not None:
            low, high = e["limit_range"] or [float("nan")] * 2
            rows.append(["ensemble K = inf", e["size"], "limit of A / K + E", e["limit"],
                         f"{low:.3f} to {high:.3f}, leaving one member out"])
        if k >= 3:
            law = fit_power(np.arange(1, k + 1), e["loss_by_k"]["logits"])
            rows.append(["ensemble K = inf", e["size"], f"limit of A / K^b + E, b = {law['b']:.2f}", law["E"],
                         f"{k} points for 3 parameters"])
    return rows


def write_csv(path, runs, ensembles):
    """One line a run and one a (ensemble, K), columns RUN_COLUMNS; written whole or not at all."""
    rows = [{"kind": "run", "members": 1, **run} for run in runs]
    for e in ensembles:
        for k, (logits, probs) in enumerate(zip(e["loss_by_k"]["logits"], e["loss_by_k"]["probs"]), 1):
            rows.append({**e, "kind": "ensemble", "members": k, "val_loss": logits, "probs_loss": probs})
    text = io.StringIO()
    writer = csv.DictWriter(text, RUN_COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, text.getvalue().encode())


def write_atomically(path, content):
    """Write bytes to a temporary file, then rename it: `path` is never half-written."""
    temporary = f"{path}.{os.getpid()}.tmp"
    try:
        with open(temporary, "wb") as file:
            file.write(content)
        os.replace(temporary, path)
    finally:
        if os.path.exists(temporary):
            os.unlink(temporary)


MARKS = {"standard": ("s", "0.5"), "regularized": ("o", "tab:blue"), "member": ("^", "tab:green"),
         "student": ("D", "tab:red")}  # marker and colour of each recipe


def draw_sizes(axis, points, laws):
    """Loss against N: the best of each recipe, its law and, dashed, its limit."""
    for recipe, (marker, color) in MARKS.items():
        mine = sorted((p for p in points if p["recipe"] == recipe), key=lambda p: p["params"])
        axis.errorbar([p["params"] for p in mine], [p["loss"] for p in mine], yerr=[p["sd"] or 0 for p in mine],
                      fmt=marker, color=color, capsize=3, label=recipe if mine else None)
    n = np.geomspace(min(p["params"] for p in points), 10 * max(p["params"] for p in points), 100)
    for law in laws:
        axis.plot(n, law["A"] / n ** law["b"] + law["E"], color=MARKS[law["recipe"]][1], lw=1)
        axis.axhline(law["E"], color=MARKS[law["recipe"]][1], ls="--", lw=1)
    axis.set(xscale="log", xlabel="parameters N", title="one model")
    axis.legend()


def draw_members(axis, points, ensembles):
    """Loss against K with the law A / K + E and its limit, dashed; single models of those sizes as dotted levels."""
    for e in ensembles:
        k = np.arange(1, len(e["loss_by_k"]["logits"]) + 1)
        line, = axis.plot(k, e["loss_by_k"]["logits"], "o", label=f"ensemble of {e['size']}, logit mean")
        axis.plot(k, e["loss_by_k"]["probs"], "x", color=line.get_color(), label="probability mean")
        if e["limit"] is not None:
            many = np.linspace(1, max(8, k[-1]), 100)
            axis.plot(many, e["law"]["A"] / many + e["limit"], color=line.get_color(), lw=1)
            axis.axhline(e["limit"], color=line.get_color(), ls="--", lw=1, label="limit, K to infinity")
    for p in points:
        if p["size"] in {e["size"] for e in ensembles}:
            axis.axhline(p["loss"], color=MARKS[p["recipe"]][1], ls=":", lw=1)
            axis.annotate(f"{p['recipe']} {p['size']}", (0.99, p["loss"]), xycoords=("axes fraction", "data"),
                          ha="right", va="bottom", fontsize=9)
    axis.set(xlabel="members K", title="an ensemble")
    axis.legend(fontsize=8, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.15))


def draw(path, points, laws, ensembles):
    """The figure: loss against N where there are several sizes, against K where there are ensembles."""
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    sizes = len({p["params"] for p in points}) > 1 or not ensembles
    figure, axes = plt.subplots(1, sizes + bool(ensembles), figsize=(5.5 * (sizes + bool(ensembles)), 4), sharey=True,
                                squeeze=False, layout="constrained")
    axes[0, 0].set_ylabel("validation loss (nats per token)")
    if sizes:
        draw_sizes(axes[0, 0], points, laws)
    if ensembles:
        draw_members(axes[0, -1], points, ensembles)
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=120, format=Path(path).suffix[1:])
    plt.close(figure)
    write_atomically(path, drawn.getvalue())


def main():
    parser = argparse.ArgumentParser(description="Laws, limits and the figure of the runs in a folder.",
                                     formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.error = lambda message: parser.exit(2, f"{parser.prog}: error: {message} (see {parser.prog} --help)\n")
    parser.add_argument("runs", nargs="?", default="runs", help="folder with finished runs and ensembles")
    parser.add_argument("--csv", help="also write every run and ensemble to this file")
    parser.add_argument("--figure", help="also draw loss against N and K to this .png, .pdf or .svg")
    parser.add_argument("--json", action="store_true", help="print rows and laws as the last line")
    args = parser.parse_args()
    if args.figure and Path(args.figure).suffix not in (".png", ".pdf", ".svg"):
        raise InputError(f"--figure {args.figure} must end in .png, .pdf or .svg")

    runs, ensembles = read_results(args.runs)
    points = best_of_recipes(runs)
    laws, rows = recipe_laws(points), table(points, ensembles)
    for label, size, settings, loss, remark in rows:
        print(f"{label:<17} {size:<5} {settings:<44} {loss:7.4f}   {remark}")
    for law in laws:
        spread = "limits leaving one size out: {:.3f} to {:.3f}".format(*law["leave_one_out"] or [float("nan")] * 2)
        flat = "" if 1.01 * EXPONENTS[0] < law["b"] < 0.99 * EXPONENTS[1] else "; b is at its bound: no power law"
        print(f"{law['recipe']} at {law['tokens']:,} tokens: loss = {law['A']:.3g} / N^{law['b']:.3g} "
              f"+ {law['E']:.4f} ({law['sizes']} sizes; {spread}{flat})")
    if not laws:
        print("no law over N: it needs three sizes of one recipe")
    if args.csv:
        write_csv(args.csv, runs, ensembles)
    if args.figure:
        draw(args.figure, points, laws, ensembles)
    if args.json:
        print(json.dumps({"rows": [dict(zip(("label", "size", "settings", "loss", "remark"), row)) for row in rows],
                          "laws": laws}))


if __name__ == "__main__":
    try:
        main()
    except (InputError, OSError) as error:
        print(f"fit.py: error: {error}", file=sys.stderr)
        sys.exit(2)
