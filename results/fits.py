"""Seconds and objectives of fit.py beside a notebook's way, on made tables of the usual shapes.

    python results/fits.py > results/fits.txt

The notebook's way: scipy's L-BFGS-B as it comes, slopes by differences, all parameters in logs,
from a sample of exponents. It calls the same basis functions. Both take turns, and the least
seconds of this process count, so that a busy neighbor matters little.
"""
import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from scipy.optimize import minimize
from scipy.stats import qmc, t as student_t

sys.path.insert(0, str(Path(__file__).parent.parent))
import fit  # noqa: E402

RANGES = {"x": (1, 100), "N": (1e7, 1e10), "D": (1e9, 1e12), "U": (1e8, 1e10)}
# true shapes; all others are exponents of 0.35
TRUE = {"RD": 12, "RN": 6, "n": 1, "forget": 0.005, "C": 2, "alphaN": 0.08, "alphaD": 0.1}
# law, rows, method, share of outliers, starts of the notebook
PROBLEMS = (("power", 12, "ls", 0, 10), ("chinchilla", 240, "huber", 0, 50),
            ("chinchilla", 240, "ls", 0, 50), ("kaplan", 60, "ls", 0, 20),
            ("overtrain", 60, "ls", 0, 10), ("data_constrained", 296, "huber", 0.05, 20),
            ("lr_annealing", 1500, "huber", 0, 5), ("multi_power", 498, "huber", 0, 5))


def make_problem(name, rows, method, outliers):
    """A Problem of a law: columns drawn evenly in logs, terms of equal size (of curves the last a
    tenth), noise of 0.5%, and a share of runs that are a third worse."""
    law, rng, columns = fit.LAWS[name], np.random.default_rng(0), {}
    for column in law.columns:
        if column in RANGES:
            columns[column] = np.exp(rng.uniform(*np.log(RANGES[column]), rows))
    if "T" in law.columns:
        columns["T"] = columns["U"] * 2.0 ** rng.integers(0, 7, rows)
    if "curve" in law.columns:
        # three cosines after a warm-up of 2,160 steps
        t, end = np.tile(np.linspace(0, 1, rows // 3), 3), np.repeat([0.1, 0.4, 1.0], rows // 3)
        lr = 3e-4 * (end + (1 - end) * (1 + np.cos(np.pi * t)) / 2)
        columns = {"step": np.round(2160 + 21840 * t), "lr": lr, "curve": end.astype(str)}
    truth = {shape: TRUE.get(shape, 0.35) for shape in law.shape}
    c = law.prepare(columns, np.ones(rows, dtype=bool))
    for term, column in zip(law.signs, law.basis(SimpleNamespace(**truth), c)):
        truth[term] = 1 / np.sqrt(np.mean(np.square(column)))
    if "curve" in columns:  # what falls with lr is small beside the rest
        truth[term] *= 0.1
    y = fit.predict(law, truth, columns) * np.exp(rng.normal(0, 0.005, rows))
    return fit.Problem(law, columns, y * np.where(rng.random(rows) < outliers, 1.3, 1.0),
                       method=method)


def minimize_from(problem, z):
    """scipy's minimize from z, logs of the shapes and of the coefficients."""
    def objective(z):
        p, matrix, held = problem.basis(z[:problem.shapes])
        r = np.abs(problem.residuals_of(matrix @ np.exp(z[problem.shapes:]) + held, p))
        huber = np.where(r < problem.delta, r ** 2 / 2, problem.delta * (r - problem.delta / 2))
        value = (problem.w * (r ** 2 / 2 if problem.method == "ls" else huber)).sum()
        return value if np.isfinite(value) else 1e9
    return minimize(objective, z, method="L-BFGS-B")


def notebook(problem, starts):
    """The best that minimize() finds from some starts, whose terms share the target evenly."""
    found, sample = [], qmc.LatinHypercube(problem.shapes, rng=0).random(starts)
    for logs in qmc.scale(sample, *problem.log_ranges.T):
        p, matrix, _ = problem.basis(logs)
        whole = np.abs(problem.law.link(problem.target, p, problem.c)).mean()
        share = np.log(whole / len(problem.terms) / np.abs(matrix).mean(0))
        if np.isfinite(share).all():
            found.append(minimize_from(problem, np.concatenate([logs, share])))
    return min(found, key=lambda one: one.fun)


def notebook_profile(problem, best):
    """The 95% interval of E by 40 limits, each fitted from the best."""
    start = [one for one, name in zip(best.x, problem.names) if name != "E"]
    degrees = len(problem.target) - len(best.x)
    allowed = best.fun * (1 + student_t.ppf(0.975, degrees) ** 2 / degrees)
    limits = np.linspace(0.5, 1.5, 40) * np.exp(best.x[-1])
    inside = [limit for limit in limits if minimize_from(
        replace(problem, fixed={"E": limit}), start).fun < allowed]
    return min(inside), max(inside)


def notebook_bootstrap(problem, best):
    """A hundred refits to points drawn with replacement."""
    rng, rows = np.random.default_rng(0), len(problem.target)
    for weights in rng.multinomial(rows, np.full(rows, 1 / rows), 100):
        minimize_from(replace(problem, weights=weights), best.x)


def timed(mine, theirs):
    """(least seconds of mine, of theirs, answer of mine, of theirs); both run twice, in turn."""
    seconds, answers = [], []
    for contestant in (mine, theirs, mine, theirs):
        begin = time.process_time()
        answers.append(contestant())
        seconds.append(time.process_time() - begin)
    return min(seconds[::2]), min(seconds[1::2]), *answers[:2]


@np.errstate(all="ignore")  # some starts overflow
def main():
    cpu = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line]
    print(f"{cpu[0].split(': ')[1]}, load {os.getloadavg()[0]:.1f}; seconds of this process\n\n"
          f"| law | rows | method | fit.py s | objective | notebook s | starts | objective |\n"
          f"|---|---|---|---|---|---|---|---|")
    for name, rows, method, outliers, starts in PROBLEMS:
        problem = make_problem(name, rows, method, outliers)
        mine, theirs, found, other = timed(
            lambda: fit.solve(problem), lambda: notebook(problem, starts))
        reached = f"{other.fun:.7g}" if other.fun < 1e9 else "no finite start"
        print(f"| {name} | {rows} | {method} | {mine:.2f} | {found.objective:.7g} | {theirs:.2f} | "
              f"{starts} | {reached} |", flush=True)
    problem = make_problem("chinchilla", 240, "huber", 0)
    found, other = fit.solve(problem), notebook(problem, 10)
    mine, theirs, *_ = timed(
        lambda: fit.bootstrap(found, 1000), lambda: notebook_bootstrap(problem, other))
    print(f"\n1,000 bootstraps of chinchilla: {mine:.1f} s; notebook, 100: {theirs:.1f} s",
          flush=True)
    problem = make_problem("data_constrained", 100, "ls", 0)
    found, other = fit.solve(problem), notebook(problem, 20)
    mine, theirs, (ends, _), others = timed(
        lambda: fit.profile(found), lambda: notebook_profile(problem, other))
    print(f"profile of data_constrained, 100 rows: {mine:.1f} s, {ends[0]:.3f} to {ends[1]:.3f}; "
          f"notebook {theirs:.1f} s, {others[0]:.3f} to {others[1]:.3f} (40 limits)")


if __name__ == "__main__":
    main()
