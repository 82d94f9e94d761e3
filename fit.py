"""Points to laws, limits and figures. Needs numpy and scipy (matplotlib for figures), nothing of ours: copy it freely.

    python fit.py --list                                        # every law: formula, columns, source
    python fit.py chinchilla points.csv --method huber --bootstrap 1000
    python fit.py power points.csv --x N --sigma 0.01           # the limit with its interval
    python fit.py runs --csv runs.csv --figure claims.png       # the paper's whole analysis of a folder of runs

A law is a declaration: link(target) = sum of linear coefficients x basis functions, where the basis knows a few
shape parameters (exponents, mostly). One solver fits them all: it scans the shapes, each with bounded linear least
squares for the rest, then polishes the best few on the real objective.
"""
import argparse
import csv
import io
import json
import math
import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import groupby, product
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from scipy.optimize import brentq, least_squares, linprog, nnls
from scipy.signal import lfilter
from scipy.stats import qmc, t as student_t


# --------------------------------------------------------------------------------------------------------------------
# The laws

@dataclass(frozen=True)
class Law:
    """link(target) = sum of coefficients x basis. shape maps shape parameters to the range they are sought in, signs
    maps coefficients to "+" (at least 0), "-" (at least 0 and subtracted) or "" (any)."""
    formula: str
    source: str
    columns: tuple  # what it reads beside the target
    shape: dict
    signs: dict
    basis: Callable  # (p, c) -> a column, or a constant, for each coefficient; p: shape parameters, c: columns
    target: str = "loss"
    logs: bool = False  # the basis sums to the log of the target, and residuals are logs whatever the method
    link: Callable = lambda y, p, c: y  # target -> what the basis sums to
    inverse: Callable = lambda eta, p, c: eta
    derived: Callable = None  # parameters -> further quantities worth an interval


def allocation(p):
    """Compute-optimal N* = G (C / 6)^a, D* = (C / 6)^(1 - a) / G of a Chinchilla law (arXiv 2203.15556, eq. 4)."""
    p = SimpleNamespace(**p)
    log_ratio = math.log(p.alpha * max(p.A, 1e-300)) - math.log(p.beta * max(p.B, 1e-300))
    return {"log_G": log_ratio / (p.alpha + p.beta), "a": p.beta / (p.alpha + p.beta)}


def repeated(unique, total, decay):
    """Effective count of `total` of which `unique` are distinct (arXiv 2305.16264, eq. 5): repetitions decay in worth
    exponentially, and at most decay x unique are gained."""
    return unique * (1 + decay * (1 - np.exp(-(total / unique - 1) / decay)))


def curves(c):
    """For each curve: its rows in order of steps, the learning rate of every step from 1 to the last, interpolated
    between rows (before the first it is the first's), and the place of each row in it."""
    for curve in np.unique(c.curve):
        rows = np.flatnonzero(c.curve == curve)
        rows = rows[np.argsort(c.step[rows])]
        step = np.arange(1, c.step[rows[-1]] + 1)
        yield rows, np.interp(step, c.step[rows], c.lr[rows]), np.maximum(c.step[rows].astype(int) - 1, 0)


def lr_area(c):
    """S1: the sum of each curve's learning rate over the steps up to each row, (rows,)."""
    area = np.zeros(len(c.lr))
    for rows, lr, place in curves(c):
        area[rows] = np.cumsum(lr)[place]
    return area


def annealed(c, memory):
    """S2 of lr annealing (arXiv 2408.11029): the sum over steps of a momentum of the drops of lr, (rows,)."""
    total = np.zeros(len(c.lr), dtype=np.result_type(memory, float))
    for rows, lr, place in curves(c):
        momentum = lfilter([1.0], [1.0, -memory], -np.diff(lr, prepend=lr[0]).astype(total.dtype))
        total[rows] = np.cumsum(momentum)[place]
    return total


def multi_power_drop(c, p):
    """The loss reduction of each row by all earlier changes of lr (arXiv 2503.12811, eq. 3), (rows,)."""
    area, drop = lr_area(c), np.zeros(len(c.lr), dtype=np.result_type(p.C, p.beta, p.gamma, float))
    for rows, _, _ in curves(c):
        lr, s = c.lr[rows], area[rows]
        change, before = np.diff(lr, prepend=0.0), np.concatenate([[0.0], s[:-1]])  # from 0: warm-up counts
        k = np.flatnonzero(change)
        since = np.maximum(s[:, None] - before[k], 0.0)  # (rows, changes)
        power = 1 - (1 + p.C * np.maximum(lr[k], 1e-12) ** -p.gamma * since) ** -p.beta
        drop[rows] = np.where(k <= np.arange(len(rows))[:, None], change[k] * power, 0.0).sum(1)
    return drop


def bounded_excess(p, c):
    """The three terms of the practical law's h: too few parameters, too little training, too much repetition."""
    return [c.N ** -p.alpha, c.T ** -p.beta, c.N ** p.gamma / c.U ** p.delta]


def log_power(*columns):
    """The declaration of target = k x column^a x ...: linear in logs, exponents of either sign."""
    return dict(shape={}, signs={"log_k": "", **{f"a_{name}": "" for name in columns}}, logs=True,
                basis=lambda p, c: [1.0, *(np.log(getattr(c, name)) for name in columns)],
                derived=lambda p: {"k": math.exp(min(p["log_k"], 700.0))})


LAWS = {
    "power": Law(
        "loss = A / x^b + E", "arXiv 2509.14786 sections 3, 4; 2010.14701", ("x",), dict(b=(0.01, 10)),
        dict(A="+", E="+"), lambda p, c: [c.x ** -p.b, 1.0]),
    "reciprocal": Law(
        "loss = A / x + E", "arXiv 2509.14786 section 4 (x = K)", ("x",), {}, dict(A="+", E="+"),
        lambda p, c: [1 / c.x, 1.0]),
    "chinchilla": Law(
        "loss = A / N^alpha + B / D^beta + E", "arXiv 2203.15556 eq. 2; fit as 2404.10102", ("N", "D"),
        dict(alpha=(0.02, 2.5), beta=(0.02, 2.5)), dict(A="+", B="+", E="+"),
        lambda p, c: [c.N ** -p.alpha, c.D ** -p.beta, 1.0], derived=allocation),
    "kaplan": Law(
        "loss = (A / N^(alphaN / alphaD) + B / D)^alphaD", "arXiv 2001.08361 eq. 1.5 (N without embeddings)",
        ("N", "D"), dict(alphaN=(0.01, 1), alphaD=(0.01, 1)), dict(A="+", B="+"),
        lambda p, c: [c.N ** -(p.alphaN / p.alphaD), 1 / c.D],
        link=lambda y, p, c: y ** (1 / p.alphaD), inverse=lambda eta, p, c: eta ** p.alphaD),
    "data_constrained": Law(
        "loss = A / N'^alpha + B / D'^alpha + E; D' = U (1 + RD (1 - exp(-(T / U - 1) / RD))), N' likewise with RN "
        "and n U parameters, of which more are excess", "arXiv 2305.16264 eq. 5 to 7 (n = (A / B)^(1 / alpha) there)",
        ("N", "T", "U"), dict(alpha=(0.02, 2.5), RD=(0.3, 1000), RN=(0.3, 1000), n=(1e-4, 1e4)),
        dict(A="+", B="+", E="+"), lambda p, c: [
            repeated(np.minimum(c.N, p.n * np.minimum(c.T, c.U)), c.N, p.RN) ** -p.alpha,
            repeated(np.minimum(c.T, c.U), c.T, p.RD) ** -p.alpha, 1.0]),
    "practical": Law(
        "loss = E + (L0 - E) h / (1 + h); h = a / N^alpha + b / T^beta + c N^gamma / U^delta; L0 = ln V",
        "arXiv 2605.09189", ("N", "T", "U", "V"),
        dict(E=(0.05, 8), alpha=(0.05, 3), beta=(0.05, 3), gamma=(0.05, 3), delta=(0.05, 5)),
        dict(a="+", b="+", c="+"), bounded_excess,
        link=lambda y, p, c: (y - p.E) / (np.log(c.V) - y),
        inverse=lambda eta, p, c: p.E + (np.log(c.V) - p.E) * eta / (1 + eta)),
    "overfit": Law(
        "loss = A / N^alpha + B / T^beta + P (T / U - 1)^kappa N^gamma / U^delta + E",
        "after arXiv 2605.01640 (Chinchilla plus a penalty for repetition; the form of the penalty is ours)",
        ("N", "T", "U"), dict(alpha=(0.02, 2.5), beta=(0.02, 2.5), kappa=(0.05, 5), gamma=(0.05, 3), delta=(0.05, 5)),
        dict(A="+", B="+", P="+", E="+"),
        lambda p, c: [c.N ** -p.alpha, c.T ** -p.beta,
                      np.maximum(c.T / c.U - 1, 1e-9) ** p.kappa * c.N ** p.gamma / c.U ** p.delta, 1.0]),
    "overtrain": Law(
        "loss = (a M^eta + b M^-eta) C^-eta + E; M = D / N, C = 6 N D", "arXiv 2403.08540 eq. 4", ("N", "D"),
        dict(eta=(0.01, 2)), dict(a="+", b="+", E="+"),
        lambda p, c: [(c.D / c.N) ** p.eta * (6 * c.N * c.D) ** -p.eta,
                      (c.D / c.N) ** -p.eta * (6 * c.N * c.D) ** -p.eta, 1.0]),
    "downstream": Law(
        "error = epsilon - k exp(-gamma loss)", "arXiv 2403.08540 eq. 5", ("loss",), dict(gamma=(0.02, 20)),
        dict(epsilon="+", k="-"), lambda p, c: [1.0, np.exp(-p.gamma * c.loss)], target="error"),
    "unified": Law(
        "loss = a ln C + b", "arXiv 2404.19484 (extrapolates badly: it has no limit)", ("C",), {}, dict(a="", b=""),
        lambda p, c: [np.log(c.C), 1.0]),
    "lr_annealing": Law(
        "loss = L0 + A S1^-alpha - C S2; S1: area under lr, S2: momentum lambda of its drops, summed",
        "arXiv 2408.11029 eq. 1", ("step", "lr", "curve"), dict(alpha=(0.02, 3), forget=(1e-4, 0.05)),
        dict(L0="+", A="+", C="-"), lambda p, c: [1.0, lr_area(c) ** -p.alpha, annealed(c, 1 - p.forget)],
        derived=lambda p: {"lambda": 1 - p["forget"]}),
    "multi_power": Law(
        "loss = L0 + A S1^-alpha + B sum_k (lr_k - lr_(k-1)) (1 - (1 + C lr_k^-gamma (S1 - S1_(k-1)))^-beta)",
        "arXiv 2503.12811 eq. 3", ("step", "lr", "curve"),
        dict(alpha=(0.05, 3), beta=(0.05, 3), gamma=(0.05, 3), C=(0.01, 100)), dict(L0="+", A="+", B="+"),
        lambda p, c: [1.0, lr_area(c) ** -p.alpha, multi_power_drop(c, p)]),
    "timescale": Law(
        "tau = k (D / N)^a; tau = 1 / (lr x weight_decay x steps)", "arXiv 2505.13738", ("TPP",), target="tau",
        **log_power("TPP")),
    "optimal_pairs": Law(
        "Nopt = k C^a", "arXiv 2406.19146 (weights 1 / sd of log Nopt, squared)", ("C",), target="Nopt",
        **log_power("C")),
    "step_law": Law(
        "y = k N^a D^b, y: the best lr or batch size", "arXiv 2503.04715", ("N", "D"), target="y",
        **log_power("N", "D")),
    "vocabulary": Law(
        "loss = A1 / Nnv^beta + A2 / Nv^alpha2 + B / D^beta - E; Nv = V d, loss: unigram-normalized",
        "arXiv 2407.13623 eq. 6", ("Nnv", "Nv", "D"), dict(alpha2=(0.02, 2.5), beta=(0.02, 2.5)),
        dict(A1="+", A2="+", B="+", E="-"),
        lambda p, c: [c.Nnv ** -p.beta, c.Nv ** -p.alpha2, c.D ** -p.beta, 1.0]),
    "dcpt": Law(
        "loss = A / N^alpha + B r^eta / D^beta + C / (r + epsilon)^gamma + E; r: share of the domain's tokens",
        "arXiv 2406.01375", ("N", "D", "r"),
        dict(alpha=(0.02, 2.5), beta=(0.02, 2.5), eta=(0.05, 5), epsilon=(1e-3, 1), gamma=(0.05, 5)),
        dict(A="+", B="+", C="+", E="+"),
        lambda p, c: [c.N ** -p.alpha, c.r ** p.eta / c.D ** p.beta, (c.r + p.epsilon) ** -p.gamma, 1.0]),
}
LAWS["inference"] = replace(LAWS["chinchilla"], source="arXiv 2401.00448 (for --inference; the law is Chinchilla's)")
LEFT_OUT = "left out, as each would need its own solver: Bayesian optimization, PCA of benchmarks, convex bounds"


# --------------------------------------------------------------------------------------------------------------------
# The solver

def design(law, shape, c, rows):
    """The basis at shape parameters in declared order: (rows, coefficients)."""
    p = SimpleNamespace(**dict(zip(law.shape, shape)))
    columns = [np.broadcast_to(column, rows) for column in law.basis(p, c)]
    signs = [-1.0 if sign == "-" else 1.0 for sign in law.signs.values()]  # the sign goes into the formula
    return p, np.stack(columns, axis=1) * signs


def bounded_least_squares(matrix, y, free):
    """argmin |matrix x - y| with x >= 0 but where `free`; columns are first brought to one size."""
    size = np.sqrt((matrix ** 2).mean(0)) + 1e-300
    scaled = matrix / size
    x, _ = nnls(np.concatenate([scaled, -scaled[:, free]], axis=1), y)  # a free one is a difference of two
    x[:len(size)][free] -= x[len(size):]
    return x[:len(size)] / size


def predict(law, params, columns):
    """The law's prediction at a dict of columns; params: name -> value."""
    c = SimpleNamespace(**columns)
    rows = len(next(iter(columns.values())))
    p, matrix = design(law, [params[name] for name in law.shape], c, rows)
    eta = matrix @ np.array([params[name] for name in law.signs])
    return np.exp(eta) if law.logs else law.inverse(eta, p, c)


def shape_grid(law):
    """Shape parameters to start from: a grid for one or two, a Latin hypercube for more; in logs. (starts, shape)"""
    low, high = np.log(np.array(list(law.shape.values())).reshape(-1, 2).T)
    if len(low) > 2:
        return np.exp(qmc.scale(qmc.LatinHypercube(len(low), rng=0).random(400 * len(low)), low, high))
    each = {0: 1, 1: 80, 2: 16}[len(low)]
    return np.exp(np.array(list(product(*(np.linspace(a, b, each) for a, b in zip(low, high))))))


class Problem:
    """A law on points, in variables z of about size 1: logs of the shape parameters, then the coefficients of basis
    columns scaled to mean square 1. columns: name -> (points,); y: targets; method, delta, weights: as of fit()."""

    def __init__(self, law, columns, y, weights, method, delta):
        self.law, self.c, self.y, self.method, self.delta = law, SimpleNamespace(**columns), y, method, delta
        self.weights = np.ones(len(y)) if weights is None else weights
        self.logs, self.shapes = law.logs or method != "ls", len(law.shape)
        self.free = np.array([sign == "" for sign in law.signs.values()])
        ranges = np.log(np.array(list(law.shape.values())).reshape(-1, 2))
        self.low = np.concatenate([ranges[:, 0], np.where(self.free, -np.inf, 0.0)])
        self.high = np.concatenate([ranges[:, 1], np.full(len(self.free), np.inf)])

    def unpack(self, z):
        """(shape parameters, scaled basis, its column sizes) at z."""
        p, matrix = design(self.law, np.exp(z[:self.shapes]), self.c, len(self.y))
        size = np.sqrt((matrix ** 2).mean(0)) + 1e-300
        return p, matrix / size, size

    def residuals(self, z):
        """Prediction minus target, of logs where the law or the method wants logs."""
        p, matrix, _ = self.unpack(z)
        eta = matrix @ z[self.shapes:]
        if self.law.logs:
            return eta - np.log(self.y)
        value = self.law.inverse(eta, p, self.c)
        return np.log(value / self.y) if self.logs else value - self.y

    def jacobian(self, z):
        """Derivative of the residuals, exact to machine precision: a complex step has no cancellation."""
        return np.stack([self.residuals(z + 1e-30j * unit).imag / 1e-30 for unit in np.eye(len(z))], axis=1)

    def value(self, z):
        """What is minimized: the sum of w r^2 / 2, of w Huber(r) or of w |r|."""
        r, delta = np.abs(self.residuals(z)), self.delta
        value = {"ls": 0.5 * r ** 2, "huber": np.where(r < delta, 0.5 * r ** 2, delta * (r - 0.5 * delta)), "lad": r}
        value = float((self.weights * value[self.method]).sum())
        return value if np.isfinite(value) else math.inf

    def start(self, shape):
        """z at these shape parameters with the best coefficients for them, to first order; None if not finite."""
        p, matrix = design(self.law, shape, self.c, len(self.y))
        target = np.log(self.y) if self.law.logs else self.law.link(self.y, p, self.c)
        if not (np.isfinite(matrix).all() and np.isfinite(target).all()):
            return None
        weights = np.sqrt(self.weights) / (self.y if self.logs and not self.law.logs else 1.0)
        coefficients = bounded_least_squares(matrix * weights[:, None], target * weights, self.free)
        return np.concatenate([np.log(shape), coefficients * np.sqrt((matrix ** 2).mean(0))])

    def polish(self, z):
        """A local minimum near z; of "lad" one of Huber's loss, from which polish_corner() goes on."""
        width = {"ls": 1e150, "huber": self.delta, "lad": 1e-3}[self.method]

        def huber(square):  # least_squares takes rho, rho', rho'' of the squared residual
            inside, root = square <= width ** 2, np.sqrt(np.maximum(square, 1e-300))
            return self.weights * np.stack([np.where(inside, square, 2 * width * root - width ** 2),
                                            np.where(inside, 1.0, width / root),
                                            np.where(inside, 0.0, -0.5 * width / (root * square + 1e-300))])
        z = np.clip(z, self.low, self.high)
        z = least_squares(self.residuals, z, self.jacobian, bounds=(self.low, self.high), loss=huber, x_scale="jac",
                          xtol=1e-15, ftol=1e-15, gtol=1e-15, max_nfev=300).x
        return self.polish_corner(z) if self.method == "lad" else z

    def polish_corner(self, z):
        """The least absolute deviations near z: linear programs of the linearized residuals in a trust region."""
        value, radius, eye = self.value(z), 0.1, np.eye(len(self.y))
        for _ in range(60):
            r, slope = self.residuals(z), self.jacobian(z)
            box = zip(np.maximum(self.low - z, -radius), np.minimum(self.high - z, radius))
            step = linprog(np.concatenate([np.zeros(len(z)), self.weights]), np.block([[slope, -eye], [-slope, -eye]]),
                           np.concatenate([-r, r]), bounds=[*box, *[(0, None)] * len(r)]).x
            if step is None or radius < 1e-9:
                break
            trial = np.clip(z + step[:len(z)], self.low, self.high)
            better = self.value(trial) < value
            radius *= 2 if better else 0.25
            z, value = (trial, self.value(trial)) if better else (z, value)
        return z

    def at_bounds(self, z):
        """Names of the parameters that are at a bound: the points do not determine them, or the law is another."""
        shape, coefficients = z[:self.shapes], z[self.shapes:]
        end = np.minimum(shape - self.low[:self.shapes], self.high[:self.shapes] - shape) < 1e-3
        zero = ~self.free & (coefficients < 1e-9 * np.abs(coefficients).max())
        return [name for name, bound in zip([*self.law.shape, *self.law.signs], [*end, *zero]) if bound]


def fit(law, columns, y, weights=None, method="ls", delta=1e-3, starts=None, polished=8):
    """Fit a Law to columns (name -> array) and targets y: {"params", "objective", "prediction", "at_bounds"}.

    method: "ls" least squares on y; "huber" (width delta) and "lad" on log y. weights multiply the terms of the
    objective. starts: shapes to start from instead of shape_grid(); polished: how many of them are. Raises ValueError
    when the law is finite at none of them.
    """
    problem = Problem(law, columns, np.asarray(y, dtype=np.float64), weights, method, delta)
    with np.errstate(all="ignore"):  # overflow at an absurd start is a bad start, no more
        found = [problem.start(shape) for shape in (shape_grid(law) if starts is None else starts)]
        found = sorted(((problem.value(z), z) for z in found if z is not None), key=lambda pair: pair[0])
        chosen = []  # the best starts, far enough from each other to lie in different basins
        for value, z in found:
            distance = min((np.abs(z - other)[:problem.shapes].max(initial=0) for other in chosen), default=math.inf)
            if len(chosen) < polished and value < math.inf and distance > 0.15:
                chosen.append(z)
        if not chosen:
            raise ValueError("no start of this law fits these points; check their units and columns")
        found += [(problem.value(z), z) for z in map(problem.polish, chosen)]
        value, z = min(found, key=lambda pair: pair[0])
        _, _, size = problem.unpack(z)
        values = [*np.exp(z[:problem.shapes]), *(z[problem.shapes:] / size)]
        params = dict(zip([*law.shape, *law.signs], map(float, values)))
        return {"params": params, "objective": value, "prediction": predict(law, params, columns),
                "at_bounds": problem.at_bounds(z)}


# --------------------------------------------------------------------------------------------------------------------
# Uncertainty

def hold(law, name, value):
    """The law with one parameter held at a value, as a Law of the others."""
    def filled(p):
        return SimpleNamespace(**vars(p), **{name: value}) if name in law.shape else p

    i = None if name in law.shape else list(law.signs).index(name)

    def basis(p, c):
        columns = law.basis(filled(p), c)
        return columns if i is None else columns[:i] + columns[i + 1:]

    def held(p, c):  # what the held coefficient adds to the sum
        return 0.0 if i is None else value * law.basis(p, c)[i] * (-1.0 if law.signs[name] == "-" else 1.0)
    return replace(law, shape={key: law.shape[key] for key in law.shape if key != name},
                   signs={key: law.signs[key] for key in law.signs if key != name}, basis=basis,
                   link=lambda y, p, c: law.link(y, filled(p), c) - held(p, c),
                   inverse=lambda eta, p, c: law.inverse(eta + held(p, c), filled(p), c))


def near_starts(law, found):
    """Shapes to refit from: where few, the whole grid (None); where many, the fit and steps of a fifth around it."""
    if len(law.shape) <= 2:
        return None
    shape = np.array([found["params"][name] for name in law.shape])
    bounds = np.array(list(law.shape.values()))
    steps = np.exp(0.2 * np.concatenate([np.zeros((1, len(shape))), np.eye(len(shape)), -np.eye(len(shape))]))
    return np.clip(shape * steps, *bounds.T)


def profile_interval(law, columns, y, weights=None, sigma=None, freedom=math.inf):
    """95% profile-likelihood interval (low, high) of the limit E; None without a degree of freedom. Least squares.

    sigma: the noise of a point of weight 1, if known from seeds, and the degrees of freedom it rests on. Otherwise it
    is estimated from the residuals, with points - parameters degrees. The threshold, F(1, freedom), is wide when they
    are few, as it must be.
    """
    best = fit(law, columns, y, weights)
    if sigma is None:
        freedom = len(y) - len(law.shape) - len(law.signs)
        if freedom < 1:
            return None
        sigma = math.sqrt(2 * best["objective"] / freedom)
    allowed = 0.5 * sigma ** 2 * student_t.ppf(0.975, freedom) ** 2

    def excess(value):
        held = hold(law, "E", value)
        refit = fit(held, columns, y, weights, starts=near_starts(held, best), polished=2)
        return refit["objective"] - best["objective"] - allowed

    center, ends = best["params"]["E"], []
    # a limit above all points misses each by so much at least that it is out of the interval
    above = math.sqrt(2 * (best["objective"] + allowed) / (len(y) if weights is None else np.sum(weights)))
    for bound in (0.0, float(np.max(y)) + above):
        step, inner, outer = (bound - center) * 1e-4, center, center
        while outer != bound and excess(outer) < 0:  # outward in growing steps, then the root between the last two
            inner, outer = outer, outer + step if abs(outer + step - center) < abs(bound - center) else bound
            step *= 2
        crossed = outer != inner and excess(outer) > 0
        ends.append(float(brentq(excess, inner, outer, xtol=1e-7)) if crossed else float(outer))
    return tuple(ends)


def quantities(law, params):
    return {**params, **(law.derived(params) if law.derived else {})}


def bootstrap(law, columns, y, found, count, weights=None, seed=0, **options):
    """95% percentile intervals {name: (low, high)} of parameters and derived quantities over `count` refits to points
    drawn with replacement. Draws are weights, so a curve keeps its rows; refits start at the fit. Raises ValueError
    where there are no more points than parameters: all draws would then be the same points."""
    rng, rows, draws = np.random.default_rng(seed), len(y), []
    if rows <= len(found["params"]):
        raise ValueError(f"--bootstrap needs more than {rows} points for {len(found['params'])} parameters")
    start = np.array([[found["params"][name] for name in law.shape]])
    while len(draws) < count:
        drawn = rng.multinomial(rows, np.full(rows, 1 / rows))
        if np.count_nonzero(drawn) < len(found["params"]):
            continue
        refit = fit(law, columns, y, drawn * (1.0 if weights is None else weights), starts=start, **options)
        draws.append(list(quantities(law, refit["params"]).values()))
    ends = np.percentile(draws, [2.5, 97.5], axis=0).T
    return dict(zip(quantities(law, found["params"]), (tuple(map(float, pair)) for pair in ends)))


def leave_one_out(law, columns, y, found, weights=None, **options):
    """The parameters when each point is left out in turn, [name -> value]; none when too few points remain."""
    if len(y) <= len(found["params"]):
        return []
    near, every = near_starts(law, found), np.arange(len(y))
    return [fit(law, {name: column[every != i] for name, column in columns.items()}, y[every != i],
                None if weights is None else weights[every != i], starts=near, **options)["params"] for i in every]


def limit_range(left_out):
    """Lowest and highest limit E of such fits; None of none."""
    return (min(p["E"] for p in left_out), max(p["E"] for p in left_out)) if left_out else None


# --------------------------------------------------------------------------------------------------------------------
# The paper's laws

def fit_power(x, loss):
    """A / x^b + E by least squares on the loss, as the paper fits: {"A", "b", "E"}. x, loss: (points,)."""
    return fit(LAWS["power"], *check_points(LAWS["power"], {"x": x, "loss": loss}))["params"]


def fit_reciprocal(x, loss):
    """A / x + E by least squares: {"A", "E"}."""
    return fit(LAWS["reciprocal"], *check_points(LAWS["reciprocal"], {"x": x, "loss": loss}))["params"]


def limit_of(x, loss, weights=None, sigma=None, freedom=math.inf):
    """The power law of these points and the uncertainty of its limit: {"A", "b", "E", "interval", "leave_one_out" (the
    range of limits), "left_out" (those fits), "at_bounds"}. sigma, freedom: of profile_interval()."""
    law = LAWS["power"]
    columns, y = check_points(law, {"x": x, "loss": loss})
    found = fit(law, columns, y, weights)
    left_out = leave_one_out(law, columns, y, found, weights)
    return {**found["params"], "interval": profile_interval(law, columns, y, weights, sigma, freedom),
            "leave_one_out": limit_range(left_out), "left_out": left_out, "at_bounds": found["at_bounds"]}


def jackknife(left_out):
    """The standard error of an estimate from its n values with one of n independent draws left out."""
    n, values = len(left_out), np.asarray(left_out)
    return math.sqrt((n - 1) / n * ((values - values.mean()) ** 2).sum())


def t_interval(estimate, error, n):
    """[low, high], 95%, of an estimate with a standard error that rests on n draws."""
    half = error * float(student_t.ppf(0.975, n - 1))
    return [estimate - half, estimate + half]


def tokens_for(law, loss):
    """The inverse of a power law in D: tokens at which it has this loss. Raises ValueError at or below its limit."""
    if loss <= law["E"]:
        raise ValueError(f"the law never reaches {loss:.4f}: its limit is {law['E']:.4f}")
    return (law["A"] / (loss - law["E"])) ** (1 / law["b"])


def data_efficiency(law, loss, standard_loss):
    """How many times the data the standard recipe would need for `loss`: D_std(loss) / D_std(its own loss), both by
    the standard recipe's law over D, as the authors compute it (paper, section on data efficiency)."""
    return tokens_for(law, loss) / tokens_for(law, standard_loss)


def measured_efficiency(tokens, losses, loss, at):
    """The same without a law: (ratio, extrapolated), by interpolation between the standard recipe's measured losses
    (log tokens against loss); beyond them the nearest measured point counts, a bound on the truth."""
    order = np.argsort(losses)
    needed = np.interp(loss, np.asarray(losses)[order], np.log(tokens)[order])
    return float(np.exp(needed) / at), not min(losses) <= loss <= max(losses)


def optimum_with_inference(params, loss, inference_tokens):
    """(N, D) of least compute 6 N D + 2 N inference_tokens with a Chinchilla law's `loss` (arXiv 2401.00448)."""
    p = SimpleNamespace(**params)
    if loss <= p.E or min(p.A, p.B) <= 0:
        raise ValueError(f"the law never reaches {loss:.4f}, or at any N or D: its limit is {p.E:.4f}")
    smallest = math.log(p.A / (loss - p.E)) / p.alpha  # log of the N that would need infinite data

    def data(log_n):
        return (p.B / (loss - p.E - p.A * math.exp(-p.alpha * log_n))) ** (1 / p.beta)

    def slope(log_n):  # of the compute by N, over N: 6 (D + dD / dlogN) + 2 inference_tokens
        d = data(log_n)
        change = -d ** (1 + p.beta) * p.alpha * p.A * math.exp(-p.alpha * log_n) / (p.beta * p.B)
        return 6 * (d + change) + 2 * inference_tokens
    log_n = brentq(slope, smallest + 1e-6, smallest + 60)
    return math.exp(log_n), data(log_n)


# --------------------------------------------------------------------------------------------------------------------
# Points of a CSV file

ALIASES = {"N": ("params",), "T": ("tokens_seen",), "D": ("tokens",), "U": ("tokens",), "K": ("members",),
           "loss": ("val_loss",), "sigma": ("sd",)}  # the columns of this kit's runs.csv
COUNTS = ("N", "D", "T", "U", "C", "V", "Nnv", "Nv")
CONSTANT = ("V", "U", "curve")  # columns that may hold one value


def read_rows(path):
    """The rows of a table as dicts, each with its place in it: [(row, "PATH line 3")]. path: a .csv file (texts), results
    as JSON lines (.jsonl), or a folder, every result.json below which is a row. Raises ValueError."""
    if Path(path).is_dir():
        texts = [(file.read_text(), str(file)) for file in sorted(Path(path).rglob("result.json"))]
    elif Path(path).suffix == ".jsonl":
        lines = Path(path).read_text(encoding="utf-8").splitlines()
        texts = [(line, f"{path} line {number}") for number, line in enumerate(lines, 1) if line.strip()]
    else:
        return read_csv(path)
    rows = []
    for text, place in texts:
        try:
            row = json.loads(text)
        except ValueError as error:
            raise ValueError(f"{place} is damaged ({error}); remove it and make it again") from None
        if not isinstance(row, dict):
            raise ValueError(f"{place} is not a JSON object; remove it and make it again")
        rows.append((row, place))
    return rows


def read_csv(path):
    """read_rows() of a .csv file with a header."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            header = reader.fieldnames or []
            rows = [(row, f"{path} line {reader.line_num}") for row in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} is not a CSV file in UTF-8 ({error})") from None
    for row, place in rows:
        if None in row:
            raise ValueError(f"{place} has more fields than the header; decimal commas?")
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise ValueError(f"{path} has the column {twice[0]} twice; rename one")
    return rows


def keep_rows(rows, where):
    """The rows of read_rows() that meet every condition "COLUMN=VALUE", "COLUMN<VALUE" or "COLUMN>VALUE". Numbers
    compare as numbers, so 1e9 equals 1000000000; a row without the column meets none. Raises ValueError."""
    for condition in where:
        found = re.fullmatch(r"(.+?)([=<>])(.*)", condition, re.DOTALL)
        if not found:
            raise ValueError(f"--where takes COLUMN=VALUE, COLUMN<VALUE or COLUMN>VALUE, not {condition}")
        column, sign, wanted = found.groups()
        known = dict.fromkeys(name for row, _ in rows for name in row)
        if rows and column not in known:
            raise ValueError(f"--where {condition}: there is no column {column}; there are {', '.join(known)}")
        rows = [(row, place) for row, place in rows if meets(row.get(column), sign, wanted)]
    return rows


def meets(value, sign, wanted):
    """Whether a row's value is equal to, below or above the wanted text: as numbers if both are, else as texts."""
    if value is None:
        return False
    try:
        value, wanted = float(value), float(wanted)
    except (TypeError, ValueError):
        value = str(value)
    return {"=": value == wanted, "<": value < wanted, ">": value > wanted}[sign]


def split_pairs(pairs):
    """[(name, value)] of "name=value" texts. Raises ValueError."""
    for pair in pairs:
        if "=" not in pair:
            raise ValueError(f"--where and --set take NAME=VALUE, not {pair}")
    return [tuple(pair.split("=", 1)) for pair in pairs]


def read_points(path, names, where=(), constants=()):
    """Columns `names` of a CSV file as {name: float64 array}, `curve` as written. where: "column=value" rows to keep;
    constants: "name=value" columns that the file lacks. Raises ValueError."""
    constants = dict(split_pairs(constants))
    rows = keep_rows(read_rows(path), where)
    if not rows:
        raise ValueError(f"{path} has no rows{' left by --where' if where else ''}")
    columns, header = {}, dict.fromkeys(name for row, _ in rows for name in row)
    for name in names:
        there = next((alias for alias in (name, *ALIASES.get(name, ())) if alias in header), None)
        if there is None and name not in constants:
            raise ValueError(f"{path} has no column {name}; it has {', '.join(header)} (or give --set {name}=VALUE)")
        values = []
        for row, place in rows:
            try:
                text = constants[name] if there is None else row[there]
                values.append(text if name == "curve" else float(text))
            except (TypeError, ValueError):
                raise ValueError(f"{place}: {there or name} is {text!r}, not a number") from None
        columns[name] = np.array(values)
    return columns


def check_values(law, columns):
    """The columns as float64 (but `curve`); raises ValueError for values the law cannot take."""
    checked = {}
    for name, column in columns.items():
        checked[name] = column = np.asarray(column, dtype=None if name == "curve" else np.float64)
        if name == "curve":
            continue
        signed = name == law.target and "-" in law.signs.values()  # what is subtracted may exceed the rest
        bad = np.flatnonzero(~(np.isfinite(column) & ((column > 0) | (column == 0) & (name == "lr") | signed)))
        if len(bad):
            raise ValueError(f"{name} of point {bad[0] + 1} is {column[bad[0]]:g}; "
                             f"a law needs finite positive numbers")
        values = np.unique(column)
        if name in COUNTS and len(values) > 1 and (values[1:] / values[:-1]).max() > 1e5:
            raise ValueError(f"{name} goes from {values[0]:g} to {values[-1]:g} with a gap of more than 100,000 "
                             f"times: are units mixed? write all as plain counts")
    if "curve" in law.columns and (lr_area(SimpleNamespace(**checked)) == 0).any():
        raise ValueError("lr is 0 up to the first row of a curve; start it at a step with lr above 0")
    return checked


def check_points(law, columns):
    """(columns, targets) of points that determine a law; raises ValueError for others."""
    columns = check_values(law, columns)
    for name in law.columns:
        if name not in CONSTANT and len(np.unique(columns[name])) < 2:
            raise ValueError(f"all points have the same {name}; a law needs it to vary")
    least = len(law.shape) + len(law.signs)
    points = len(set(zip(*(columns[name].tolist() for name in law.columns))))
    if points < least:
        raise ValueError(f"a law of {least} parameters needs {least} different points, not {points}; add some")
    return {name: columns[name] for name in law.columns}, columns[law.target]


def law_report(name, path, args):
    """What `fit.py LAW POINTS` found: {"law", "params", "limit", "predict", ...}; prints it, too."""
    law = LAWS[name]
    if args.x is not None and law.columns != ("x",) or args.x == "curve":
        raise ValueError("--x names the column of numbers that is x in power and reciprocal")
    if law.columns == ("x",):  # the one column that is there, or the one that is meant
        if args.x is None:
            raise ValueError(f"--x must name the column of {path} that is x, for example --x N")
        law = replace(law, columns=(args.x,), basis=lambda p, c: LAWS[name].basis(
            p, SimpleNamespace(x=getattr(c, args.x))))
    names = [*law.columns, law.target, *([args.weights] if args.weights else []), *(["sigma"] if args.pooled else [])]
    table = read_points(path, names, args.where, args.set)
    columns, y = check_points(law, table)
    weights = table[args.weights] if args.weights else None
    if args.method != "ls" and min(y) <= 0:
        raise ValueError(f"huber and lad take the log of {law.target}, which must be positive; use --method ls")
    # the noise of one point: given, or pooled from a column of standard deviations
    sigma = float(np.sqrt((table["sigma"] ** 2).mean())) if args.pooled else args.sigma
    options = dict(method=args.method, delta=args.delta)
    found = fit(law, columns, y, weights, **options)
    values, bounds = quantities(law, found["params"]), found["at_bounds"]
    spread = bootstrap(law, columns, y, found, args.bootstrap, weights, args.seed, **options) if args.bootstrap else {}
    report = {"law": name, "formula": law.formula, "points": len(y), "objective": found["objective"],
              "rmse": float(np.sqrt(((found["prediction"] - y) ** 2).mean())), "at_bounds": bounds,
              "params": {key: dict(value=value, low=spread[key][0], high=spread[key][1]) if spread else value
                         for key, value in values.items()}}
    print(f"{name}: {law.formula}\n{len(y)} points, {args.method}, "
          f"rmse {report['rmse']:.4g}, objective {found['objective']:.6g}")
    for key, value in values.items():
        interval = "   {:.4g} to {:.4g}".format(*spread[key]) if spread else ""
        print(f"{key:>8} {value:12.6g}{interval}{'   at its bound' if key in bounds else ''}")

    if "E" in law.shape or law.signs.get("E") == "+":
        left_out = leave_one_out(law, columns, y, found, weights, **options) if len(y) <= 50 else []
        report["limit"], report["leave_one_out"] = found["params"]["E"], limit_range(left_out)
        if args.method == "ls":  # the profile is that of least squares; for the others there is the bootstrap
            report["limit_interval"] = profile_interval(law, columns, y, weights, sigma)
            print(f"limit {report['limit']:.4f}; {describe(report['limit_interval'], report['leave_one_out'], sigma)}")
    if name == "unified":
        print("warning: this law has no limit; beyond the measured range of C it is a guess")
    if args.inference is not None:
        if {"A", "B"} & set(bounds):
            raise ValueError("one term of the law is at its bound: these points do not say what N and D bring apart")
        n, d = optimum_with_inference(found["params"], args.loss, args.inference)
        report["inference"] = {"N": n, "D": d, "loss": args.loss, "inference_tokens": args.inference}
        print(f"loss {args.loss:g} with {args.inference:g} tokens of inference: N {n:.4g}, D {d:.4g}")
    if args.predict:
        other = check_values(law, read_points(args.predict, [*law.columns, law.target], args.where, args.set))
        truth, predicted = other[law.target], predict(law, found["params"], other)
        report["predict"] = {"mae": float(np.abs(predicted - truth).mean()),
                             "rows": [{law.target: float(t), "predicted": float(p)} for t, p in zip(truth, predicted)]}
        print(f"{args.predict}: mean absolute error {report['predict']['mae']:.4g} over {len(truth)} points")
    return report


def describe(interval, left_out, sigma, unit="point"):
    """One line on how well a limit is known; sigma is the noise of what has weight 1."""
    if interval is None:
        known = "no interval, as many parameters as points"
    else:
        noise = "noise from the residuals" if sigma is None else f"noise {sigma:.2g} a {unit}"
        flat = ", flat below" if interval[0] == 0 else ""
        known = f"95% {interval[0]:.3f} to {interval[1]:.3f}{flat} ({noise})"
    return known + ("; leaving one out {:.3f} to {:.3f}".format(*left_out) if left_out else "")


def add_law_options(parser):
    """Options of `fit.py LAW POINTS`."""
    laws = parser.add_argument_group("of a law")
    laws.add_argument("--x", help="the column that is x in power and reciprocal")
    laws.add_argument("--method", choices=("ls", "huber", "lad"), default="ls",
                      help="least squares on the target, or Huber or absolute deviations of its log")
    laws.add_argument("--delta", type=float, default=1e-3, help="width of huber")
    laws.add_argument("--weights", metavar="COLUMN", help="column of weights of the points")
    laws.add_argument("--sigma", type=float, help="noise of a point, from seeds, for the limit's interval")
    laws.add_argument("--pooled", action="store_true", help="pool that noise from the column sigma (or sd)")
    laws.add_argument("--bootstrap", type=int, default=0, metavar="B", help="refits for percentile intervals")
    laws.add_argument("--seed", type=int, default=0, help="of the bootstrap")
    laws.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a constant column")
    laws.add_argument("--predict", metavar="CSV", help="predict these points, too")
    laws.add_argument("--inference", type=float, metavar="TOKENS",
                      help="of chinchilla: the cheapest N and D when so many tokens will be generated")
    laws.add_argument("--loss", type=float, default=None, help="the loss that --inference is to reach")


def list_laws():
    """Print every law: formula, columns, source."""
    for name, law in LAWS.items():
        print(f"{name}: {law.formula}\n    columns {', '.join((*law.columns, law.target))}; {law.source}")
    print(LEFT_OUT)


def law_command(args):
    """`fit.py LAW POINTS`: check the options, then law_report()."""
    for name in ("delta", "sigma", "loss", "inference"):
        value = getattr(args, name)
        if value is not None and not 0 < value < math.inf:
            raise ValueError(f"--{name} {value} is out of range; it must be above 0")
    if min(args.bootstrap, args.seed) < 0:
        raise ValueError("--bootstrap and --seed must be at least 0")
    if len(args.what) != 2:
        raise ValueError(f"the law {args.what[0]} goes with one CSV file of points")
    if args.inference is not None and (args.loss is None or args.what[0] not in ("chinchilla", "inference")):
        raise ValueError("--inference goes with chinchilla and --loss")
    return law_report(*args.what, args)


# --------------------------------------------------------------------------------------------------------------------
# Results: folders of finished runs, and files of results as JSON lines

NEEDED = {"run": ("recipe", "setting", "data_hash", "size", "params", "tokens", "epochs", "lr", "weight_decay",
                  "val_loss"),
          "ensemble": ("recipe", "setting", "size", "params", "tokens", "vary", "loss_by_k", "law", "probs_law")}


def read_results(sources, where=()):
    """The results that folders and .jsonl files hold, verbatim: [dict], those that meet every condition of keep_rows().
    A result is one JSON object: of a run, an ensemble or an evaluation (its `kind`). Raises ValueError."""
    rows = []
    for source in map(Path, sources):
        if not source.exists():
            raise ValueError(f"there is no {source}: train a run first, or name a law: {', '.join(LAWS)}")
        if not source.is_dir() and source.suffix != ".jsonl":
            raise ValueError(f"{source} is neither a folder of runs nor a .jsonl file of results; "
                             f"for a law of its points name the law first")
        rows += read_rows(source)
    if not rows:
        raise ValueError(f"no result in {', '.join(map(str, sources))}; train a run first")
    kept = keep_rows(rows, where)
    if not kept:
        raise ValueError(f"no result in {', '.join(map(str, sources))} meets {' and '.join(where)}")
    for row, place in kept:
        for key in ("kind", "name", *NEEDED.get(row.get("kind"), ())):
            if key not in row:
                raise ValueError(f"{place} has no {key}: no result of this kit, or of an older version; "
                                 f"leave it out or make it again")
    return [row for row, _ in kept]


def count_once(results):
    """(runs, ensembles), each once: a run stands in every study that uses it, and in its folder besides. Prints what
    is not counted, where that is more than a copy."""
    found = {}
    changed, others = set(), 0
    for result in results:
        if result["kind"] not in NEEDED:
            others += 1
            continue
        key = result["kind"], result["name"], result["recipe"]
        if key in found and found[key].get("val_loss") != result.get("val_loss"):
            changed.add(key)
        found[key] = result
    if changed:
        print(f"{len(changed)} runs are there with two losses (two machines, or compiled and not); the last counts\n")
    if others:
        print(f"{others} results of other kinds have no table here\n")
    runs = [result for result in found.values() if result["kind"] == "run"]
    ensembles = [result for result in found.values() if result["kind"] == "ensemble"]
    return runs, ensembles


def save_results(path, results):
    """Merge results into a .jsonl file: one line for each (study, kind, name, recipe), sorted by that, written whole or
    not at all. What the file holds already stays, unless the same comes anew."""
    merged = {}
    before = []
    if Path(path).exists():
        before = read_results([path])
    for result in before + results:
        key = [str(result.get(name)) for name in ("study", "kind", "name", "recipe")]
        merged[tuple(key)] = json.dumps(result, separators=(",", ":"), allow_nan=False)
    lines = [merged[key] + "\n" for key in sorted(merged)]
    write_atomically(path, "".join(lines).encode())


def write_csv(path, results):
    """The scalars of each result as a line of a CSV file, for other programs; written whole or not at all."""
    rows = []
    for result in results:
        rows.append({key: value for key, value in result.items() if not isinstance(value, (dict, list))})
    text = io.StringIO()
    columns = dict.fromkeys(key for row in rows for key in row)
    writer = csv.DictWriter(text, columns, lineterminator="\n")
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


# --------------------------------------------------------------------------------------------------------------------
# Settings: means over seeds, the best, and whether it is certified

SEEDS = ("seed", "init_seed", "data_seed")
AXES = ("epochs", "lr", "weight_decay")  # what a search moves along
OF_SIZE = ("size", "params", "params_nonembedding")
BEST_OF = ("data_hash", "recipe", "size", "tokens")
STEP = 3.4  # neighbours on an axis are at most this factor apart: the grids double, or go 1, 3, 10
ENDS = {"epochs": 1, "lr": 0, "weight_decay": 0}  # nothing lies below
# what a result says beside what was computed. An option that nobody thought of is not in here, so it tells settings
# apart; a measurement that nobody thought of does so as well, and a certificate says "not run" instead of guessing
BESIDE = {"kind", "study", "setting", "name", *SEEDS, *AXES, "tau_epochs", "steps", "tokens_seen", "flops",
          "val_loss", "train_loss", "seconds", "tokens_per_second", "mfu", "machine",
          "device", "compile", "threads", "micro_batch_size", "log_every", "eval_every", "checkpoint_seconds",
          "force_resume", "out",
          "members", "vary", "member_losses", "loss_by_k", "law", "free_law", "probs_law", "free_probs_law", "kl",
          "limit", "limit_interval"}


def grouped(items, key):
    """[(key, items)] of items with equal key, sorted by it."""
    return [(value, list(group)) for value, group in groupby(sorted(items, key=key), key=key)]


def values_of(item, keys):
    """A tuple of texts to group by; None is one, and what an older result lacks counts as None."""
    return tuple(str(item.get(key)) for key in keys)


def rest_of(result, but=()):
    """All that a result computes but seeds, axes and the keys `but`. An older result lacks newer options: what is
    absent there is None, empty or 0 elsewhere; only a subset of seed 0 is another one than none."""
    rest = {"subset_seed": None}
    for key, value in result.items():
        if key not in BESIDE and key not in but and (value or key == "subset_seed"):
            rest[key] = value
    return json.dumps(rest, sort_keys=True)


def mean_settings(runs):
    """The settings of runs: each a dict with the keys of its first run, `loss` (mean over seeds), `sd` (None for one)
    and `seeds`, and `runs`, {seeds: loss}. Runs are seeds of one setting if recipe and `setting` agree: train.py hashes
    all that it computes but the seeds, so that no option can be forgotten here."""
    settings = []
    for _, group in grouped(runs, lambda run: values_of(run, ("recipe", "setting"))):
        losses = np.array([run["val_loss"] for run in group])
        sd = None
        if len(losses) > 1:
            sd = float(losses.std(ddof=1))
        by_seed = {}
        for run in group:
            # --seed sets the other two unless they are given
            first = run.get("seed")
            given = [run.get(name) for name in SEEDS]
            by_seed[tuple(first if seed is None else seed for seed in given)] = run["val_loss"]
        settings.append({**group[0], "loss": float(losses.mean()), "sd": sd, "seeds": len(losses), "runs": by_seed,
                         "rest": rest_of(group[0]), "rest_but_size": rest_of(group[0], OF_SIZE)})
    return settings


def pooled_noise(settings):
    """{recipe: (standard deviation of one run, degrees of freedom)}, pooled over the settings with several seeds."""
    noise = {}
    for recipe, group in grouped(settings, lambda s: s["recipe"]):
        several = [s for s in group if s["seeds"] > 1]
        freedom = sum(s["seeds"] - 1 for s in several)
        squares = sum((s["seeds"] - 1) * s["sd"] ** 2 for s in several)
        if freedom:
            noise[recipe] = math.sqrt(squares / freedom), freedom
    return noise


def best_of(settings, by=BEST_OF):
    """The setting of least loss of each (recipe, size, tokens), or whatever `by` names, with `tried`, their number;
    the worst of them first."""
    best = []
    for _, group in grouped(settings, lambda s: values_of(s, by)):
        best.append({**min(group, key=lambda s: s["loss"]), "tried": len(group)})
    return sorted(best, key=lambda s: -s["loss"])


def certificate(center, settings, noise):
    """Whether a setting is locally optimal: {..., "neighbours": [...], "certified": bool}.

    Its neighbours are the nearest settings tried below and above on each axis that the search moved along, all else
    equal. A margin is the mean difference of losses over common seeds, a tie is within two standard errors of that.
    Certified: the setting has several seeds, both sides of each axis were tried, a step of the grid away, and nothing
    is better.
    """
    alike = [s for s in settings if s["recipe"] == center["recipe"] and s["rest"] == center["rest"]]
    found = []
    for axis in AXES:
        line = [s for s in alike if all(s[other] == center[other] for other in AXES if other != axis)]
        below = [s for s in line if s[axis] < center[axis]]
        above = [s for s in line if s[axis] > center[axis]]
        if len({s[axis] for s in alike}) > 1:
            found.append(compare(center, max(below, key=lambda s: s[axis], default=None), axis, "down", noise))
            found.append(compare(center, min(above, key=lambda s: s[axis], default=None), axis, "up", noise))
    verdicts = {neighbour["verdict"] for neighbour in found}
    near = all(neighbour["near"] for neighbour in found)
    certified = bool(found) and near and verdicts <= {"tie", "worse", "end"} and center["seeds"] > 1
    return {**center, "neighbours": found, "certified": certified}


def compare(center, other, axis, side, noise):
    """A neighbour's value, margin and verdict: tie, worse, better, "not run" (a run that diverges leaves no result) or
    "end" (of the axis)."""
    found = {"axis": axis, "side": side, "value": None, "setting": None, "margin": None, "near": False,
             "verdict": "not run"}
    if other is None:
        if side == "down" and center[axis] <= ENDS[axis]:
            found |= {"verdict": "end", "near": True}
        return found
    low, high = sorted([center[axis], other[axis]])
    found |= {"value": other[axis], "setting": other["setting"], "near": low <= ENDS[axis] or high / low <= STEP}
    common = center["runs"].keys() & other["runs"].keys()
    if common:
        margin = float(np.mean([other["runs"][seed] - center["runs"][seed] for seed in common]))
        sd, _ = noise.get(center["recipe"], (0.0, 0))
        tie = 2 * sd * math.sqrt(2 / len(common))
        verdict = "tie"
        if abs(margin) > tie:
            verdict = "worse" if margin > 0 else "better"
        found |= {"margin": margin, "seeds": len(common), "verdict": verdict}
    return found


def certificates(settings, noise):
    """The certificate of each best setting and, beyond it, those of other local optima: certified, and no tie with a
    better one that is certified as well."""
    found = []
    for _, group in grouped(settings, lambda s: (s["data_hash"], s["recipe"], s["tokens"], s["params"])):
        optima = []
        for center in sorted(group, key=lambda s: s["loss"]):
            one = certificate(center, group, noise)
            tied = [n["setting"] for n in one["neighbours"] if n["verdict"] == "tie"]
            known = any(better["certified"] and better["setting"] in tied for better in optima)
            if one["neighbours"] and (not optima or one["certified"] and not known):
                optima.append(one)
        found += optima
    return found


def epoch_curves(settings):
    """[points] of the standard recipe at each size and tokens with three epoch counts or more, by epochs: the best
    setting of each count (paper, section on the standard recipe)."""
    standard = [s for s in settings if s["recipe"] == "standard"]
    points = best_of(standard, (*BEST_OF, "epochs"))
    curves = grouped(points, lambda p: (p["data_hash"], p["tokens"], p["params"]))
    return [sorted(curve, key=lambda p: p["epochs"]) for _, curve in curves if len(curve) > 2]


def one_setting(points, settings):
    """The smallest model's best setting at every size, beside each size's own, for each (recipe, tokens) where that
    was run: rows."""
    rows = []
    for _, group in grouped(points, lambda p: values_of(p, ("data_hash", "recipe", "tokens"))):
        first, *larger = sorted(group, key=lambda p: p["params"])
        same = [s for s in settings if values_of(s, ("rest_but_size", *AXES))
                == values_of(first, ("rest_but_size", *AXES))]
        for own in larger:
            rows += [{**s, "of": first["size"], "own": own["loss"]} for s in same if s["size"] == own["size"]]
    return rows


def size_trends(points):
    """Slope of the best settings' losses, seed by seed, per doubling of N, with its standard error, for each (recipe,
    tokens) with three sizes or more."""
    trends = []
    for _, group in grouped(points, lambda p: values_of(p, ("data_hash", "recipe", "tokens"))):
        n, loss = [], []
        for p in group:
            n += [math.log2(p["params"])] * p["seeds"]
            loss += p["runs"].values()
        if len(group) < 3:
            continue
        n, loss = np.array(n), np.array(loss)
        slope, level = np.polyfit(n, loss, 1)
        residual = ((loss - slope * n - level) ** 2).sum()
        error = math.sqrt(residual / (len(n) - 2) / ((n - n.mean()) ** 2).sum())
        trends.append({**group[0], "slope": float(slope), "error": error, "count": len(n)})
    return trends


# --------------------------------------------------------------------------------------------------------------------
# Limits: over N, over K, over both, over D

def size_laws(points, noise):
    """The law over N of each (recipe, tokens) with at least three sizes, for the total N and, as "nonembedding", for
    N without embedding and head: the limit moves with the count."""
    laws = []
    for (recipe, tokens, data), group in grouped(points, lambda p: (p["recipe"], p["tokens"], p["data_hash"])):
        if len({p["params"] for p in group}) < 3:
            continue
        loss, seeds = [p["loss"] for p in group], np.array([p["seeds"] for p in group], float)
        sigma, freedom = noise.get(recipe, (None, 0))
        law, other = (limit_of([p[n] for p in group], loss, seeds, sigma, freedom)
                      for n in ("params", "params_nonembedding"))
        laws.append({"claim": "N", "recipe": recipe, "tokens": tokens, "data_hash": data, "sigma": sigma,
                     "points": len(group), **law, "nonembedding": other})
    return laws


def member_laws(ensembles):
    """The limit K -> infinity of each ensemble: the law A / K + E with its jackknife interval over members and, as
    "free", A / K^b + E where there are three K or more; of probability means, which fall more slowly, the free one."""
    laws = []
    for e in ensembles:
        if not e["law"]:  # one member
            continue
        k = len(e["loss_by_k"]["logits"])
        interval = None
        if e["law"]["se"] is not None:
            interval = t_interval(e["law"]["E"], e["law"]["se"], k)
        free_probs = e.get("free_probs_law") or {**e["probs_law"], "b": 1.0}
        keys = ("recipe", "params", "tokens", "data_hash", "setting", *AXES, "kl", "loss_by_k")
        laws.append({"claim": "K", **{key: e.get(key) for key in keys}, "size": e["size"] or "mixed",
                     "vary": e["vary"] or "seed", "rest": rest_of(e, ("tokens", "subset_seed")), "points": k,
                     "A": e["law"]["A"], "b": 1.0, "E": e["law"]["E"], "se": e["law"]["se"], "interval": interval,
                     "free": e.get("free_law"), "probs_law": e["probs_law"], "free_probs": free_probs,
                     "probs_E": free_probs["E"]})
    return laws


def best_ensembles(members):
    """For each (recipe, tokens, size) of members that differ in seed alone the settings of the least limit, of those
    the ensemble with most members."""
    best = []
    alike = [m for m in members if m["params"] and m["tokens"] and m["recipe"] and m["vary"] == "seed"]
    for _, group in grouped(alike, lambda m: (m["recipe"], m["tokens"], str(m["data_hash"]), m["params"])):
        largest = [max(same, key=lambda m: m["points"]) for _, same in grouped(group, lambda m: str(m["setting"]))]
        best.append(min(largest, key=lambda m: m["E"]))
    return best


def tiered_laws(members, average="logits"):
    """K -> infinity at each N (the law A / K + E of either average), then N -> infinity, for each (recipe, tokens) with
    ensembles at three sizes or more. The noise of a limit is that of one member, pooled over the sizes, over the square
    root of K."""
    laws = []
    best = best_ensembles(members)
    for (recipe, tokens, data), group in grouped(best, lambda m: (m["recipe"], m["tokens"], str(m["data_hash"]))):
        if len(group) < 3:
            continue
        n, k = (np.array([m[key] for m in group], float) for key in ("params", "points"))
        over_k = [m["probs_law"] if average == "probs" else m for m in group]
        freedom, squares = 0, 0.0
        for m, law in zip(group, over_k):
            if law["se"] is not None:
                freedom += m["points"] - 1
                squares += (m["points"] - 1) * m["points"] * law["se"] ** 2
        sigma = math.sqrt(squares / freedom) if freedom else None
        limits = np.array([law["E"] for law in over_k])
        laws.append({"claim": "N and K", "average": average, "recipe": recipe, "tokens": tokens, "data_hash": data,
                     "sigma": sigma, "points": len(group), **limit_of(n, limits, k, sigma, freedom)})
    return laws


def vary_differences(members):
    """Members that differ in something else against members that differ in seed, all else equal: [dict] with the
    differences of the loss by K and of the limit, and half the width of the latter's 95% interval."""
    rows = []
    for _, group in grouped(members, lambda m: (m["rest"], *values_of(m, AXES))):
        seeds = [m for m in group if m["vary"] == "seed"]
        if not seeds:
            continue
        base = max(seeds, key=lambda m: m["points"])
        for m in group:
            if m["vary"] == "seed":
                continue
            apart = [b - a for a, b in zip(base["loss_by_k"]["logits"], m["loss_by_k"]["logits"])]
            half = None
            if m["interval"] and base["interval"]:
                half = math.hypot(half_width(m), half_width(base))
            rows.append({**m, "apart": apart, "limit_apart": m["E"] - base["E"], "half": half})
    return rows


def half_width(law):
    """Half the width of a limit's interval, None where there is none."""
    if law["interval"] is None:
        return None
    return (law["interval"][1] - law["interval"][0]) / 2


def predictions(members):
    """Ensembles beside what one of the same setting with at most half the members predicts by A / K + E of logit means
    and A / K^b + E of probability means: [(smaller, larger, rows by K)]."""
    found = []
    for _, group in grouped(members, lambda m: values_of(m, ("recipe", "setting", "vary", "rest", *AXES))):
        small, *_, large = sorted(group, key=lambda m: m["points"]) * 2
        if large["points"] < 2 * small["points"]:
            continue
        rows = []
        for k, (logits, probs) in enumerate(zip(large["loss_by_k"]["logits"], large["loss_by_k"]["probs"]), 1):
            free = small["free_probs"]
            rows.append({"k": k, "logits": logits, "probs": probs, "predicted": small["A"] / k + small["E"],
                         "predicted_probs": free["A"] / k ** free["b"] + free["E"]})
        found.append((small, large, rows))
    return found


def data_laws(points, sizes, tiered):
    """The law over D of each recipe with three budgets or more: of the standard recipe's best loss over N, of every
    other recipe's limit over N, of the tiered limits (paper, section on data efficiency)."""
    lines = {}
    for p in points:
        if p["recipe"] == "standard":
            line = lines.setdefault(("standard, best N", p["data_hash"]), {})
            line[p["tokens"]] = min(line.get(p["tokens"], math.inf), p["loss"])
    for law in sizes:
        if law["recipe"] != "standard":
            lines.setdefault((f"{law['recipe']}, N to infinity", law["data_hash"]), {})[law["tokens"]] = law["E"]
    for law in tiered:
        name = f"{law['recipe']} ensembles, N and K to infinity"
        lines.setdefault((name, law["data_hash"]), {})[law["tokens"]] = law["E"]
    return [{"claim": "D", "recipe": name, "data_hash": data, "points": len(line), "tokens": sorted(line),
             "loss": [line[tokens] for tokens in sorted(line)],
             **limit_of(sorted(line), [line[tokens] for tokens in sorted(line)])}
            for (name, data), line in lines.items() if len(line) >= 3]


def efficiencies(laws):
    """How many times the data the standard recipe needs for what each other line over D reaches: by the standard law,
    with the range when one of its points is left out, and by interpolation between the measured losses."""
    def by_law(law, loss, own):
        return data_efficiency(law, loss, own) if min(loss, own) > law["E"] and law["A"] > 0 else None

    standards = {law["data_hash"]: law for law in laws if law["recipe"] == "standard, best N"}
    rows = []
    for law in laws:
        standard = standards.get(law["data_hash"], law)
        for tokens, loss in zip(law["tokens"], law["loss"]):
            if law is standard or tokens not in standard["tokens"]:
                continue
            own = standard["loss"][standard["tokens"].index(tokens)]
            ends = [ratio for one in standard["left_out"] if (ratio := by_law(one, loss, own)) is not None]
            measured, beyond = measured_efficiency(standard["tokens"], standard["loss"], loss, tokens)
            rows.append({"recipe": law["recipe"], "tokens": tokens, "loss": loss, "standard_loss": own,
                         "by_law": by_law(standard, loss, own), "measured": measured, "extrapolated": beyond,
                         "by_law_range": [min(ends), max(ends)] if ends else None})
    return rows


# --------------------------------------------------------------------------------------------------------------------
# Tables, in Markdown

SETTING = {"recipe": "{recipe}", "size": "{size}", "tokens": "{tokens:,}", "epochs": "{epochs}", "lr": "{lr:g}",
           "weight decay": "{weight_decay:g}"}


def print_table(title, rows, columns):
    """A Markdown table under its title, or nothing where there are no rows. columns: {header: template of a cell}, for
    example {"lr": "{lr:g}"}; a cell stays empty where a value is None or absent."""
    if not rows:
        return
    table = [list(columns)]
    for row in rows:
        cells = []
        for template in columns.values():
            names = re.findall(r"{(\w+)", template)
            known = all(row.get(name) is not None for name in names)
            cells.append(template.format(**row) if known else "")
        table.append(cells)
    # padded, to be read in a terminal as well; words to the left, numbers to the right
    widths = [max(3, *map(len, column)) for column in zip(*table)]
    texts = [any(re.search("^[a-z]|[a-z]{4}", cell) for cell in column[1:]) for column in zip(*table)]
    rules = ["-" * width if text else "-" * (width - 1) + ":" for width, text in zip(widths, texts)]
    table.insert(1, rules)
    print(f"**{title}**\n")
    for cells in table:
        padded = [cell.ljust(width) if text else cell.rjust(width) for cell, width, text in zip(cells, widths, texts)]
        print(f"| {' | '.join(padded)} |")
    print()


def print_settings(points, settings):
    """The best settings, and the best by context and batch size where a study has several of these."""
    print_table("Best settings; tau: AdamW's memory in epochs", points,
                {**SETTING, "tau": "{tau_epochs:.2f}", "loss": "{loss:.4f}", "sd": "{sd:.3f}", "seeds": "{seeds}",
                 "tried": "{tried}"})
    rows = []
    for _, group in grouped(settings, lambda s: values_of(s, BEST_OF)):
        places = best_of(group, ("context", "batch_size"))
        if len(places) > 1:
            rows += sorted(places, key=lambda p: (p["context"], p["batch_size"]))
    for row in rows:
        if row.get("steps"):
            row["steps_per_epoch"] = row["steps"] // row["epochs"]
    print_table("Best settings by context and batch size", rows,
                {"context": "{context}", "batch": "{batch_size}", "steps an epoch": "{steps_per_epoch}", **SETTING,
                 "tau": "{tau_epochs:.2f}", "loss": "{loss:.4f}", "seeds": "{seeds}", "tried": "{tried}"})


def print_certificates(found):
    """A line a certificate: the setting, its neighbours' margins and what they are if not worse, and the least margin
    of a neighbour that is worse."""
    rows = []
    for one in found:
        row = {**one, "certified": "yes" if one["certified"] else "no"}
        worse = []
        for neighbour in one["neighbours"]:
            cell = neighbour["verdict"]
            if neighbour["margin"] is not None:
                cell = f"{neighbour['margin']:+.3f}" + f" {cell}" * (cell != "worse")
                cell += f" at {neighbour['value']:g}" * (not neighbour["near"])
            if neighbour["verdict"] == "worse":
                worse.append(neighbour["margin"])
            row[f"{neighbour['axis']}_{neighbour['side']}"] = cell
        row["least"] = min(worse, default=None)
        rows.append(row)
    margins = {f"{axis.replace('_', ' ')} {side}": f"{{{axis}_{side}}}" for axis in AXES for side in ("down", "up")}
    print_table("Certificates: margins of the neighbours, worse unless it says tie (within two standard errors), "
                "better, or not run", rows,
                {**SETTING, "loss": "{loss:.4f}", **margins, "least worse": "{least:+.3f}", "certified": "{certified}"})


def print_trends(curves, trends, rows):
    """The standard recipe by epochs, the slopes over N, and one setting at all sizes."""
    counts = sorted({p["epochs"] for curve in curves for p in curve})
    by_epochs = [{**curve[0], **{f"epochs_{p['epochs']}": p["loss"] for p in curve}} for curve in curves]
    print_table("Standard recipe by epochs: the best loss of each count", by_epochs,
                {"size": "{size}", "tokens": "{tokens:,}",
                 **{f"{count} epochs": f"{{epochs_{count}:.3f}}" for count in counts}})
    print_table("Slope of the best settings' losses, nats per doubling of N", trends,
                {"recipe": "{recipe}", "tokens": "{tokens:,}", "slope": "{slope:+.3f}",
                 "standard error": "{error:.3f}", "runs": "{count}"})
    print_table("The smallest model's settings at the other sizes", rows,
                {**SETTING, "loss": "{loss:.3f}", "seeds": "{seeds}", "with its own": "{own:.3f}"})


def print_ensembles(members):
    """A line an ensemble; then the limits by epochs and weight decay, what members differ in, and predictions."""
    rows = []
    for m in sorted(members, key=lambda m: (str(m["recipe"]), m["params"] or 0, m["epochs"] or 0,
                                            -(m["weight_decay"] or 0), m["vary"], m["points"])):
        logits, probs = m["loss_by_k"]["logits"], m["loss_by_k"]["probs"]
        row = {**m, "recipe": m["recipe"] or "mixed", "half": half_width(m), "last": logits[-1],
               "probs_last": probs[-1], "probs_b": m["free_probs"]["b"], "vary": m["vary"].replace("_", " ")}
        if m["free"]:
            row["free_b"] = m["free"]["b"]
        row |= {f"k{k}": loss for k, loss in enumerate(logits[:3], 1)}
        rows.append(row)
    by_k = {f"K = {k}": f"{{k{k}:.3f}}" for k in (1, 2, 3)}
    print_table("Ensembles: logit means with the limit of A / K + E and its 95% interval (jackknife over members), "
                "probability means with that of A / K^b + E; KL between members", rows,
                {**SETTING, "differ in": "{vary}", "K": "{points}", **by_k, "last K": "{last:.3f}",
                 "limit": "{E:.3f}", "95%": "±{half:.3f}", "b": "{free_b:.2f}", "probs: last": "{probs_last:.3f}",
                 "limit of probs": "{probs_E:.3f}", "b of probs": "{probs_b:.2f}", "KL": "{kl:.2f}"})
    print_limit_grid(members)
    rows = []
    for m in vary_differences(members):
        row = {**m, "vary": m["vary"].replace("_", " "), "last": m["apart"][-1], "last_k": len(m["apart"])}
        row |= {f"k{k}": loss for k, loss in enumerate(m["apart"][:3], 1)}
        rows.append(row)
    by_k = {f"K = {k}": f"{{k{k}:+.3f}}" for k in (1, 2, 3)}
    print_table("Members that differ in something else minus members that differ in seed, logit means", rows,
                {"recipe": "{recipe}", "size": "{size}", "differ in": "{vary}", **by_k, "last K": "{last_k}",
                 "there": "{last:+.3f}", "limit": "{limit_apart:+.3f}", "95%": "±{half:.3f}"})
    for small, large, rows in predictions(members):
        print_table(f"{large['points']} members of {large['size']}, {large['recipe']}, as {small['points']} of them "
                    f"predict: A / K + E for logits, A / K^b + E for probs", rows,
                    {"K": "{k}", "logits": "{logits:.3f}", "probs": "{probs:.3f}",
                     "predicted logits": "{predicted:.3f}", "predicted probs": "{predicted_probs:.3f}"})


def print_limit_grid(members):
    """The limit over K by epochs and weight decay where members of one size were trained at two of each or more."""
    alike = [m for m in members if m["vary"] == "seed" and m["epochs"] and m["lr"]]
    for (size, tokens, lr, _), group in grouped(alike, lambda m: values_of(m, ("size", "tokens", "lr", "data_hash"))):
        decays = sorted({m["weight_decay"] for m in group}, reverse=True)
        rows, count = [], 0
        for epochs, line in grouped(group, lambda m: m["epochs"]):
            row = {"epochs": epochs}
            for decay, same in grouped(line, lambda m: m["weight_decay"]):
                row[f"decay{decays.index(decay)}"] = max(same, key=lambda m: m["points"])["E"]
                count += 1
            rows.append(row)
        if min(len(rows), len(decays)) > 1 and count > 3:
            cells = {f"weight decay {decay:g}": f"{{decay{i}:.3f}}" for i, decay in enumerate(decays)}
            print_table(f"Limit over K of {size} members, {tokens} tokens, lr {lr}, by epochs and weight decay", rows,
                        {"epochs": "{epochs}", **cells})


def print_laws(laws, ratios):
    """The laws over N, N and K, D with what is known of their limits; then data efficiency."""
    rows = []
    for law in laws:
        x, unit = law["claim"][0], "member" if "K" in law["claim"] else "run"
        row = {**law, "of": law["recipe"], "over": x, "unit": unit}
        if x == "N":
            row["on"] = f"{law['tokens']:,}"
        if "K" in law["claim"]:
            row["of"] += f" ensembles, K to infinity, {law['average']}"
        rows.append(row)
        if "nonembedding" in law:
            rows.append({**row, **law["nonembedding"], "over": "N without embedding and head"})
    for row in rows:
        row["known"] = describe(row["interval"], row["leave_one_out"], row.get("sigma"), row["unit"])
        if "b" in row["at_bounds"]:
            row["known"] += "; b at its bound: no power law"
    print_table("Laws A / x^b + E and how well their limits E are known", rows,
                {"of": "{of}", "x": "{over}", "tokens": "{on}", "points": "{points}", "A": "{A:.3g}", "b": "{b:.3g}",
                 "limit": "{E:.4f}", "known": "{known}"})
    rows = []
    for r in ratios:
        row = {**r, "never": None if r["by_law"] else "never reached"}
        if r["by_law_range"]:
            row["low"], row["high"] = r["by_law_range"]
        row["remark"] = "by interpolation"
        if r["extrapolated"]:
            bound = "more" if r["loss"] < r["standard_loss"] else "less"
            row["remark"] = f"{bound} than that: warning, beyond the measured range"
        row["times"] = "never reached" if r["by_law"] is None else f"{r['by_law']:.2f}"
        rows.append(row)
    print_table("Data efficiency: times the data that the standard recipe needs for the same loss", rows,
                {"recipe": "{recipe}", "tokens": "{tokens:,}", "by its law": "{times}",
                 "leaving one out": "{low:.2f} to {high:.2f}", "measured": "{measured:.2f}", "how": "{remark}"})


# --------------------------------------------------------------------------------------------------------------------
# Figures

# marker, colour and line of a recipe, to be told apart in grey as well
STYLES = {"standard": ("s", "0.5", "-"), "regularized": ("o", "tab:blue", "-"), "member": ("^", "tab:green", "--"),
          "student": ("D", "tab:red", ":")}
OTHER_STYLE = ("*", "black", "-.")


@dataclass
class Line:
    """Points of a figure, with the law that was fitted to them if there is one."""
    label: str
    x: list
    y: list
    marker: str = "o"
    color: str = "black"
    style: str = "-"  # of the law
    error: list = None
    law: dict = None
    joined: bool = False  # draw a line through the points


def size_lines(points, laws, members):
    """Loss against N: the best of each recipe and the ensembles' limits, each with its law over N."""
    found = {(law["claim"], law["recipe"], law["tokens"]): law for law in laws if "b" not in law["at_bounds"]}
    lines = []
    for (recipe, tokens), mine in grouped(points, lambda p: (p["recipe"], p["tokens"])):
        marker, color, style = STYLES.get(recipe, OTHER_STYLE)
        lines.append(Line(recipe, [p["params"] for p in mine], [p["loss"] for p in mine], marker, color, style,
                          [p["sd"] or 0 for p in mine], found.get(("N", recipe, tokens))))
    for (recipe, tokens), mine in grouped(best_ensembles(members), lambda m: (m["recipe"], m["tokens"])):
        _, color, _ = STYLES.get(recipe, OTHER_STYLE)
        lines.append(Line(f"{recipe} ensembles, K to infinity", [m["params"] for m in mine], [m["E"] for m in mine],
                          "*", color, "-.", None, found.get(("N and K", recipe, tokens))))
    return lines


def member_lines(members):
    """Loss against K of the best ensemble of each recipe and size, each with its law; their probability means."""
    chosen = best_ensembles(members) or members
    markers = dict(zip(sorted({m["params"] or 0 for m in chosen}), "osDvP*X" * len(chosen)))
    lines, means = [], []
    for i, m in enumerate(sorted(chosen, key=lambda m: (str(m["recipe"]), m["params"] or 0))):
        _, color, style = STYLES.get(m["recipe"], OTHER_STYLE)
        k = list(range(1, m["points"] + 1))
        marker = markers[m["params"] or 0]
        lines.append(Line(f"{m['recipe'] or 'mixed'} {m['size']}", k, m["loss_by_k"]["logits"], marker, color, style,
                          None, m))
        means.append(Line("", k, m["loss_by_k"]["probs"], marker, color))
    return lines, means


def epoch_lines(curves):
    """Loss of the standard recipe against epochs, a line a size and budget; and their train losses."""
    lines, train = [], []
    colors = plain_colors(len(curves))
    for curve, marker, color in zip(curves, "so^DvP*X" * len(curves), colors):
        epochs = [p["epochs"] for p in curve]
        lines.append(Line(f"{curve[0]['size']}, {curve[0]['tokens']:,} tokens", epochs, [p["loss"] for p in curve],
                          marker, color, joined=True))
        if all(p.get("train_loss") for p in curve):
            train.append(Line("", epochs, [p["train_loss"] for p in curve], "", color, ":", joined=True))
    return lines, train


def data_lines(laws):
    """Loss against D of each recipe, with its law."""
    lines = []
    for law, marker, color in zip(laws, "so^DvP*X" * len(laws), plain_colors(len(laws))):
        lines.append(Line(law["recipe"], law["tokens"], law["loss"], marker, color, law=law))
    return lines


def plain_colors(count):
    """So many colours of matplotlib's cycle."""
    return [f"C{i % 10}" for i in range(count)]


def draw_line(axis, line, faint=False):
    """Points with their errors; faint: hollow and without a name in the legend."""
    join = line.style if line.joined else ""
    face = "white" if faint else line.color
    label = None if faint else line.label
    axis.errorbar(line.x, line.y, line.error, fmt=f"{line.marker}{join}", color=line.color, mfc=face, ms=5, lw=1,
                  capsize=3, label=label, alpha=0.6 if faint else 1)


def draw_limits_beside(axis, lines):
    """The laws over K out to 16 members and, at the right, their limits with their intervals, at infinity."""
    last = max(16, *(line.x[-1] for line in lines))
    for i, line in enumerate(lines):
        k = np.geomspace(1, last, 100)
        axis.plot(k, line.law["A"] / k + line.law["E"], color=line.color, ls=line.style, lw=1)
        half = half_width(line.law)
        axis.errorbar(2 * last * 1.06 ** i, line.law["E"], half, fmt=line.marker, color=line.color, ms=5, capsize=3)
    ticks = [1, 2, 4, 8, 16]
    axis.set(xticks=[*ticks, 2 * last], xticklabels=[*ticks, "∞"])


def draw_laws(axis, lines):
    """Each law ten times beyond its points, its limit dashed, the limit's interval (else the range of limits with one
    point left out) as a band, which may leave the figure."""
    known = [line for line in lines if line.law]
    for line in known:
        x = np.geomspace(min(line.x), 10 * max(line.x), 100)
        axis.plot(x, line.law["A"] / x ** line.law["b"] + line.law["E"], color=line.color, ls=line.style, lw=1)
        axis.axhline(line.law["E"], color=line.color, ls="--", lw=1)
    seen = axis.get_ylim()  # before the bands, which must not stretch it
    for line in known:
        band = line.law["interval"] or line.law["leave_one_out"]
        if band:
            axis.axhspan(*band, color=line.color, alpha=0.12, lw=0)
    axis.set_ylim(seen)


def draw(path, x_label, lines, faint=(), levels=(), over_members=False):
    """One figure of a claim, written whole or not at all. faint: further lines; levels: [(loss, name)], dotted."""
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import NullFormatter
    figure, axis = plt.subplots(figsize=(7, 4.5), layout="constrained")
    axis.set(xscale="log", xlabel=x_label, ylabel="validation loss (nats per token)")
    for line in lines:
        draw_line(axis, line)
    for line in faint:
        draw_line(axis, line, faint=True)
    if over_members:
        draw_limits_beside(axis, lines)
    else:
        draw_laws(axis, lines)
    for loss, name in levels:
        axis.axhline(loss, color="0.5", ls=":", lw=1)
        axis.annotate(name, (0.99, loss), xycoords=("axes fraction", "data"), ha="right", va="bottom", fontsize=8)
    if all(line.joined for line in lines):
        ticks = sorted({x for line in lines for x in line.x})
        axis.set(xticks=ticks, xticklabels=ticks)
    axis.xaxis.set_minor_formatter(NullFormatter())
    figure.legend(loc="outside right upper", fontsize=8)
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=110, format=Path(path).suffix[1:])
    plt.close(figure)
    write_atomically(path, drawn.getvalue())


def draw_claims(path, found):
    """One figure for each claim that has points: NAME-epochs, NAME-sizes, NAME-members, NAME-data."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise ValueError("--figure needs matplotlib; install it with pip install matplotlib") from None
    points, members = found["points"], found["members"]
    over_epochs, train = epoch_lines(found["curves"])
    over_k, means = [], []
    if members:
        over_k, means = member_lines(members)
    sizes = {m["size"] for m in members}
    # single models beside the ensembles, where there are few enough to be read
    levels = [(p["loss"], f"{p['recipe']} {p['size']}") for p in points if p["size"] in sizes and len(sizes) == 1]
    over_n = []
    if len({p["params"] for p in points}) > 1:
        over_n = size_lines(points, found["sizes"] + found["tiered"], members)
    figures = {"epochs": ("epochs (dotted: train loss)", over_epochs, train),
               "sizes": ("parameters N", over_n),
               "members": ("members K (hollow: probability means)", over_k, means, levels, True),
               "data": ("unique tokens D", data_lines(found["data"]))}
    there = {claim: figure for claim, figure in figures.items() if figure[1]}
    for claim, figure in there.items():
        draw(Path(path).with_stem(f"{Path(path).stem}-{claim}"), *figure)
    if not there:
        print("no figure: it needs two sizes, an ensemble, three epoch counts or three budgets")


# --------------------------------------------------------------------------------------------------------------------
# Command line

def analyse(runs, ensembles):
    """The paper's whole analysis of runs and ensembles: {what: its rows or laws}."""
    settings = mean_settings(runs)
    noise = pooled_noise(settings)
    points = best_of(settings)
    sizes = size_laws(points, noise)
    members = member_laws(ensembles)
    tiered = tiered_laws(members)
    data = data_laws(points, sizes, tiered)
    return {"settings": settings, "noise": noise, "points": points, "sizes": sizes, "members": members,
            "tiered": tiered, "tiered_probs": tiered_laws(members, "probs"), "data": data,
            "certificates": certificates(settings, noise), "curves": epoch_curves(settings),
            "one_setting": one_setting(points, settings), "trends": size_trends(points),
            "efficiencies": efficiencies(data)}


def runs_command(args):
    """`fit.py SOURCE ...`: every table that the results give; writes what is asked for. Returns the report."""
    if args.figure and Path(args.figure).suffix not in (".png", ".pdf", ".svg"):
        raise ValueError(f"--figure {args.figure} must end in .png, .pdf or .svg")
    if args.save and Path(args.save).suffix != ".jsonl":
        raise ValueError(f"--save {args.save} must end in .jsonl")
    results = read_results(args.what, args.where)
    if args.save:
        save_results(args.save, results)
    if args.csv:
        write_csv(args.csv, results)
    runs, ensembles = count_once(results)
    found = analyse(runs, ensembles)
    print_settings(found["points"], found["settings"])
    print_certificates(found["certificates"])
    print_trends(found["curves"], found["trends"], found["one_setting"])
    print_ensembles(found["members"])
    print_laws(found["sizes"] + found["tiered"] + found["tiered_probs"] + found["data"], found["efficiencies"])
    hours = sum(run.get("seconds") or 0 for run in runs) / 3600
    print(f"{len(runs)} runs, {hours:.1f} hours of training one after another; {len(ensembles)} ensembles")
    if not found["sizes"]:
        print("no law over N: it needs three sizes of one recipe")
    if args.figure:
        draw_claims(args.figure, found)
    return report_of(found)


def report_of(found):
    """The analysis as plain JSON."""
    keys = ("recipe", "size", "params", "tokens", *AXES, "loss", "sd", "seeds")
    certified = []
    for one in found["certificates"]:
        certified.append({**{key: one[key] for key in (*keys, "neighbours", "certified")}})
    laws = found["sizes"] + found["members"] + found["tiered"] + found["tiered_probs"] + found["data"]
    return {"points": [{key: p[key] for key in keys} for p in found["points"]],
            "sigma": {recipe: sigma for recipe, (sigma, _) in found["noise"].items()},
            "laws": laws, "data_efficiency": found["efficiencies"], "certificates": certified}


def main():
    parser = argparse.ArgumentParser(description="Laws, limits and figures of runs or of any table of points.",
                                     formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.error = lambda message: parser.exit(2, f"{parser.prog}: error: {message} (see {parser.prog} --help)\n")
    parser.add_argument("what", nargs="*", default=["runs"], help="folders of finished runs and .jsonl files of "
                        "results; or the name of a law and a file of its points (.csv or .jsonl)")
    parser.add_argument("--where", action="append", default=[], metavar="COLUMN=VALUE",
                        help="keep only such rows; also COLUMN<VALUE and COLUMN>VALUE")
    parser.add_argument("--list", action="store_true", help="print every law: formula, columns, source")
    parser.add_argument("--json", action="store_true", help="print everything as the last line")
    runs = parser.add_argument_group("of runs")
    runs.add_argument("--save", metavar="FILE.jsonl", help="also merge the results into this file, one a line")
    runs.add_argument("--csv", help="also write the results' numbers and texts to this file")
    runs.add_argument("--figure", help="also draw NAME-epochs, -sizes, -members, -data; a NAME.png, .pdf or .svg")
    add_law_options(parser)
    args = parser.parse_args()
    if args.list:
        return list_laws()
    if set(args.what[0].split(",")) & LAWS.keys():
        report = law_command(args)
    else:
        report = runs_command(args)
    if args.json:
        print(json.dumps(report, allow_nan=False))


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:  # bad input: the message says what and what to do
        print(f"fit.py: error: {error}", file=sys.stderr)
        sys.exit(2)
