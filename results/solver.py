"""fit.py's solver against its peers: is its optimum global, are laws recovered, how fast is it.

    python results/solver.py > results/solver.txt           # or for some laws: python results/solver.py power kaplan

First the time of 240 points of Chinchilla's law. Then for each law and method, over 5 synthetic problems with 0.3%
noise (40 points; 180 of laws of whole curves): the worst relative excess of the objective over the best of 100 random
L-BFGS starts (20 for curves; negative: better), the largest error of a prediction against the true curve relative to
its mean, and the seconds of a fit and of the peer.
"""
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))
from fit import LAWS, bootstrap, fit, predict  # noqa: E402
from test_all import best_of_random_starts, synthetic_problem  # noqa: E402

PROBLEMS = 5


def compare(law, method):
    """(worst excess over the peer, worst error against the truth, seconds of a fit, of the peer)."""
    excess, errors, seconds = [], [], np.zeros(2)
    for seed in range(PROBLEMS):
        columns, y, truth = synthetic_problem(law, np.random.default_rng(seed), 0.003)
        start = time.perf_counter()
        found = fit(law, columns, y, method=method)
        middle = time.perf_counter()
        starts = 20 if "curve" in law.columns else 100
        peer = best_of_random_starts(law, columns, y, method, np.random.default_rng(seed), starts)
        seconds += middle - start, time.perf_counter() - middle
        right = predict(law, truth, columns)
        excess.append(found["objective"] / peer - 1)
        errors.append(np.abs(found["prediction"] - right).max() / np.abs(right).mean())
    return max(excess), max(errors), *(seconds / PROBLEMS)


def time_chinchilla():
    # 240 points with heavy-tailed noise around the refit of arXiv 2404.10102
    rng = np.random.default_rng(0)
    columns = {"N": np.exp(rng.uniform(17.7, 23.5, 240)), "D": np.exp(rng.uniform(20.7, 26.4, 240))}
    loss = 1.817 + 477.8 / columns["N"] ** .3473 + 2143 / columns["D"] ** .3672
    loss *= np.exp(0.004 * rng.standard_t(3, 240))
    for method in ("ls", "huber", "lad"):
        start = time.perf_counter()
        found = fit(LAWS["chinchilla"], columns, loss, method=method)
        middle = time.perf_counter()
        bootstrap(LAWS["chinchilla"], columns, loss, found, 1000, method=method)
        print(f"chinchilla, 240 points, {method}: fit {middle - start:.2f} s, 1,000 bootstraps "
              f"{time.perf_counter() - middle:.1f} s", flush=True)


def main():
    time_chinchilla()
    print(f"\n{'law':<17}{'method':<7}{'excess over peer':>17}{'error':>9}{'fit s':>8}{'peer s':>8}")
    for name, law in LAWS.items():
        if name == "inference" or name not in (sys.argv[1:] or LAWS):  # inference is chinchilla's declaration
            continue
        # targets that may be near 0 have no logs
        for method in ("ls",) if name in ("downstream", "vocabulary") else ("ls", "huber", "lad"):
            excess, error, ours, peers = compare(law, method)
            print(f"{name:<17}{method:<7}{excess:17.1e}{error:9.4f}{ours:8.2f}{peers:8.1f}", flush=True)


if __name__ == "__main__":
    main()
