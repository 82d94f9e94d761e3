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


# --------------------------------------------------------------------------------------------------
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


# --------------------------------------------------------------------------------------------------
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


# --------------------------------------------------------------------------------------------------
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


# --------------------------------------------------------------------------------------------------
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


# --------------------------------------------------------------------------------------------------
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


# --------------------------------------------------------------------------------------------------
# Runs

RUN_COLUMNS = ("kind", "recipe", "size", "params", "params_nonembedding", "tokens", "members", "epochs", "lr",
               "weight_decay", "seed", "subset_seed", "context", "batch_size", "doc_mask", "shuffle", "dtype",
               "synthetic", "synthetic_hash", "synthetic_weight", "val_loss", "probs_loss", "limit_se",
               "probs_limit_se", "kl", "vary", "train_loss", "tau_epochs", "steps", "tokens_seen", "seconds", "flops",
               "data", "data_hash", "name")
TEXT_COLUMNS = ("kind", "recipe", "size", "shuffle", "dtype", "synthetic", "synthetic_hash", "vary", "data",
                "data_hash", "name")
# runs that agree in all of these are one experiment and differ in seed alone
SETTING_KEYS = ("data_hash", "recipe", "size", "params", "tokens", "epochs", "lr", "weight_decay", "context",
                "batch_size", "doc_mask", "dtype", "shuffle", "subset_seed", "synthetic_hash", "synthetic_weight")


def read_folder(folder):
    """(path, result) of every result.json under a folder, sorted by path."""
    for path in sorted(Path(folder).rglob("result.json")):
        try:
            # older runs lack the first two
            yield path, {"shuffle": "epoch", "subset_seed": None, **json.loads(path.read_text())}
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path} is not a JSON object ({error}); remove its folder and train again") from None


def read_table(path):
    """What read_folder gives, from a table that write_csv wrote; an ensemble is a row for each K there."""
    try:
        with open(path, newline="") as file:
            rows = [{name: text if name in TEXT_COLUMNS else json.loads(text or "null") for name, text in row.items()}
                    for row in csv.DictReader(file)]
        yield from ((path, row) for row in rows if row["kind"] == "run")
        averages = sorted((row for row in rows if row["kind"] == "ensemble"), key=lambda row: row["members"])
        for _, group in grouped(averages, lambda row: (row["name"], row["recipe"])):
            by_k = {"logits": [row["val_loss"] for row in group], "probs": [row["probs_loss"] for row in group]}
            laws = {name: {**fit_reciprocal([row["members"] for row in group], by_k[kind]), "se": group[0].get(se)}
                    if len(group) > 1 else None
                    for name, kind, se in (("law", "logits", "limit_se"), ("probs_law", "probs", "probs_limit_se"))}
            yield path, {**group[0], "loss_by_k": by_k, **laws}
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        raise ValueError(f"{path} is not a table that fit.py --csv wrote ({error})") from None


def read_results(sources, where=()):
    """(runs, ensembles) of folders and of tables (.csv), what agrees with every "column=value" of where. The same run
    from two places counts once. Raises ValueError."""
    runs, ensembles = {}, {}
    for source in sources:
        for path, result in read_table(source) if str(source).endswith(".csv") else read_folder(source):
            several = "loss_by_k" in result
            result = {key: None if value == "" else value for key, value in result.items()}  # as in a table
            result["kind"] = "ensemble" if several else "run"
            if any(str(result.get(column)) != value for column, value in split_pairs(where)):
                continue
            kind, needed = (ensembles, ("probs_law", "vary")) if several else (runs, (*SETTING_KEYS, "val_loss"))
            missing = [key for key in ("name", "recipe", "size", "params", "tokens", *needed) if key not in result]
            if missing:
                raise ValueError(f"{path} has no {missing[0]}; remove it and ask for it again")
            kind[result["name"], result["recipe"]] = result
    if not runs and not ensembles:
        raise ValueError(f"no finished run under {', '.join(map(str, sources))}"
                         + (f" with {' and '.join(where)}" if where else " (no result.json); train one first"))
    return list(runs.values()), list(ensembles.values())


def grouped(items, key):
    """[(key, items)] of items with equal key, sorted by it."""
    return [(value, list(group)) for value, group in groupby(sorted(items, key=key), key=key)]


BEST_OF = ("data_hash", "recipe", "size", "tokens")


def best_of_recipes(runs, by=BEST_OF):
    """(points, noise). One point a (recipe, size, tokens), or whatever `by` names: the least mean over seeds among the
    settings there, as a dict with the settings, `loss` (mean), `sd` over seeds (None for one) and `seeds`. noise: of
    each recipe the standard deviation of one run, pooled over its settings with several seeds if there are any, and
    its degrees of freedom."""
    best, variances = {}, {}  # variances: of each recipe (sum of squares, degrees of freedom)
    for _, group in grouped(runs, lambda run: tuple(str(run[key]) for key in SETTING_KEYS)):
        losses = np.array([run["val_loss"] for run in group])
        if len(losses) > 1:
            squares, freedom = variances.get(group[0]["recipe"], (0.0, 0))
            squares += ((losses - losses.mean()) ** 2).sum()
            variances[group[0]["recipe"]] = squares, freedom + len(losses) - 1
        mean = {**group[0], "loss": float(losses.mean()), "seeds": len(losses),
                "sd": float(losses.std(ddof=1)) if len(losses) > 1 else None}
        key = tuple(mean[name] for name in by)
        best[key] = min(best.get(key, mean), mean, key=lambda m: m["loss"])
    noise = {recipe: (math.sqrt(squares / freedom), freedom) for recipe, (squares, freedom) in variances.items()}
    return sorted(best.values(), key=lambda m: -m["loss"]), noise


def epoch_curves(runs):
    """[points] of the standard recipe at each size and tokens with three epoch counts or more, by epochs: the best
    setting of each count (paper, section on the standard recipe)."""
    points, _ = best_of_recipes([run for run in runs if run["recipe"] == "standard"], (*BEST_OF, "epochs"))
    curves = grouped(points, lambda p: (p["data_hash"], p["tokens"], p["params"]))
    return [sorted(curve, key=lambda p: p["epochs"]) for _, curve in curves if len(curve) > 2]


def size_laws(points, noise):
    """The law over N of each (recipe, tokens) with at least three sizes, for the total N and, as "nonembedding", for
    N without embedding and head: the limit moves with the count."""
    laws = []
    for (recipe, tokens, _), group in grouped(points, lambda p: (p["recipe"], p["tokens"], p["data_hash"])):
        if len({p["params"] for p in group}) >= 3:
            loss, seeds = [p["loss"] for p in group], np.array([p["seeds"] for p in group], float)
            sigma, freedom = noise.get(recipe, (None, 0))
            law, other = (limit_of([p[n] for p in group], loss, seeds, sigma, freedom)
                          for n in ("params", "params_nonembedding"))
            laws.append({"claim": "N", "recipe": recipe, "tokens": tokens, "data_hash": group[0]["data_hash"],
                         "sigma": sigma, "points": len(group), **law, "nonembedding": other})
    return laws


def member_laws(ensembles):
    """The limit K -> infinity of each ensemble: the law A / K + E with its jackknife interval over members and, as
    "free", A / K^b + E where there are three K or more; of probability means, which fall more slowly, the free one."""
    laws = []
    for e in ensembles:
        if e["law"]:
            k = range(1, len(e["loss_by_k"]["logits"]) + 1)
            se, fit_probs = e["law"]["se"], fit_power if len(k) > 2 else fit_reciprocal
            laws.append({"claim": "K", "recipe": e["recipe"], "size": e["size"] or "mixed", "params": e["params"],
                         "tokens": e["tokens"], "data_hash": e.get("data_hash"), "points": len(k), **e["law"],
                         "settings": [e.get(key) for key in SETTING_KEYS],
                         "b": 1.0, "loss_by_k": e["loss_by_k"], "vary": e.get("vary") or "seed",
                         "probs_E": fit_probs(k, e["loss_by_k"]["probs"])["E"],
                         "interval": None if se is None else t_interval(e["law"]["E"], se, len(k)),
                         "free": fit_power(k, e["loss_by_k"]["logits"]) if len(k) > 2 else None})
    return laws


def tiered_laws(members):
    """K -> infinity at each N, then N -> infinity, for each (recipe, tokens) with ensembles at three sizes or more:
    at each size the settings of the least limit, of those the ensemble with most members. The noise of a limit is that
    of one member, pooled over the sizes, over the square root of K."""
    laws = []
    alike = [m for m in members if m["params"] and m["tokens"] and m["recipe"] and m["vary"] == "seed"]
    for (recipe, tokens, data), group in grouped(alike, lambda m: (m["recipe"], m["tokens"], str(m["data_hash"]))):
        best = {}
        for _, same in grouped(group, lambda m: str(m["settings"])):
            most = max(same, key=lambda m: m["points"])
            best[most["params"]] = min(best.get(most["params"], most), most, key=lambda m: m["E"])
        if len(best) >= 3:
            n, k, limits = (np.array([m[key] for m in best.values()], float) for key in ("params", "points", "E"))
            spread = [(m["points"] - 1, m["points"] * m["se"] ** 2) for m in best.values() if m["se"] is not None]
            freedom = sum(degrees for degrees, _ in spread)
            sigma = math.sqrt(sum(math.prod(both) for both in spread) / freedom) if spread else None
            laws.append({"claim": "N and K", "recipe": recipe, "tokens": tokens, "data_hash": data, "sigma": sigma,
                         "points": len(best), **limit_of(n, limits, k, sigma, freedom)})
    return laws


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


def write_csv(path, runs, ensembles):
    """One line a run and one a (ensemble, K), columns RUN_COLUMNS; written whole or not at all."""
    rows = [{**run, "members": 1} for run in runs]
    for e in ensembles:
        for k, (logits, probs) in enumerate(zip(e["loss_by_k"]["logits"], e["loss_by_k"]["probs"]), 1):
            rows.append({**e, "members": k, "val_loss": logits, "probs_loss": probs,
                         "limit_se": e["law"] and e["law"]["se"],
                         "probs_limit_se": e["law"] and e["probs_law"]["se"]})
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


# --------------------------------------------------------------------------------------------------
# What the user sees

def print_table(points, curves, members, laws, ratios):
    """Everything measured, a line each: recipes, ensembles by K, then the laws with their limits."""
    several = len({item["tokens"] for item in points + members}) > 1

    def line(label, item, settings, loss, remark):
        budget = f" on {item['tokens']:,} tokens" if several and item["tokens"] else ""
        print(f"{label:<17} {item['size']:<5} {settings:<49} {loss:7.4f}   {remark}{budget}")

    for p in points:
        spread = f"sd {p['sd']:.3f} over {p['seeds']} seeds" if p["sd"] is not None else "1 seed"
        tau = f", tau {p['tau_epochs']:.2f}" if p.get("tau_epochs") else ""  # AdamW's memory in epochs
        line(p["recipe"], p, f"{p['epochs']} epochs, lr {p['lr']:g}, weight decay {p['weight_decay']:g}{tau}",
             p["loss"], spread)
    for curve in curves:
        print(f"standard {curve[0]['size']} at {curve[0]['tokens']:,} tokens, by epochs: "
              + ", ".join(f"{p['epochs']}: {p['loss']:.3f}" for p in curve))
    for m in members:
        what = (m["recipe"] or "mixed") + " members" + (f", {m['vary']}" if m["vary"] != "seed" else "")
        for k, (logits, probs) in enumerate(zip(m["loss_by_k"]["logits"], m["loss_by_k"]["probs"]), 1):
            line(f"ensemble K = {k}", m, f"logit mean ({what})", logits,
                 f"probability mean {probs:.3f}")
        spread = "95% {:.3f} to {:.3f} (jackknife); ".format(*m["interval"]) if m["interval"] else ""
        line("ensemble K = inf", m, "limit of A / K + E", m["E"], f"{spread}probability mean {m['probs_E']:.3f}")
        if m["free"]:
            line("ensemble K = inf", m, f"limit of A / K^b + E, b = {m['free']['b']:.2f}", m["free"]["E"],
                 f"{m['points']} points for 3 parameters")
    for law in laws:
        x, unit = law["claim"][0], "member" if "K" in law["claim"] else "run"
        at = f" at {law['tokens']:,} tokens" if x == "N" else ""
        of = " ensembles, K to infinity," if law["claim"] == "N and K" else ""
        print(f"{law['recipe']}{of}{at}: loss = {law['A']:.3g} / {x}^{law['b']:.3g} + {law['E']:.4f}, {law['points']} "
              f"points\n    {describe(law['interval'], law['leave_one_out'], law.get('sigma'), unit)}"
              + ("; b at its bound: no power law" if "b" in law["at_bounds"] else ""))
        if "nonembedding" in law:
            other = law["nonembedding"]
            print(f"    by N without embedding and head: + {other['E']:.4f}; "
                  f"{describe(other['interval'], other['leave_one_out'], law['sigma'], unit)}")
    for r in ratios:
        by_law = "never reached" if r["by_law"] is None else f"{r['by_law']:.2f} times the data"
        spread = " ({:.2f} to {:.2f} leaving one out)".format(*r["by_law_range"]) if r["by_law_range"] else ""
        print(f"{r['recipe']} at {r['tokens']:,} tokens: {by_law} by the standard law{spread}, "
              + (f"{'more' if r['loss'] < r['standard_loss'] else 'less'} than {r['measured']:.2f} by measurement "
                 f"(warning: beyond its range)" if r["extrapolated"] else f"{r['measured']:.2f} by interpolation"))
    if not laws:
        print("no law over N: it needs three sizes of one recipe")


STYLES = {"standard": ("s", "0.5", "-"), "regularized": ("o", "tab:blue", "-"), "member": ("^", "tab:green", "--"),
          "student": ("D", "tab:red", ":")}  # marker, colour and line, to be told apart in grey, too
OTHER_STYLE = ("*", "black", "-.")


def draw_limit(axis, x, law, color, style):
    """A law over x, its limit as a dashed line and the limit's interval as a band, which may leave the figure."""
    from matplotlib.patches import Rectangle
    axis.plot(x, law["A"] / x ** law["b"] + law["E"], color=color, ls=style, lw=1)
    axis.axhline(law["E"], color=color, ls="--", lw=1)
    band = law.get("interval") or law.get("leave_one_out")
    if band:  # an artist does not stretch the axes as axhspan would
        axis.add_artist(Rectangle((0, band[0]), 1, band[1] - band[0], transform=axis.get_yaxis_transform(), lw=0,
                                  color=color, alpha=0.12))


def draw_sizes(axis, points, sizes, tiered, members):
    """Loss against N: the best of each recipe, ensemble limits, their laws and, dashed, the laws' limits."""
    for recipe, mine in grouped(points, lambda p: p["recipe"]):
        marker, color, _ = STYLES.get(recipe, OTHER_STYLE)
        axis.errorbar([p["params"] for p in mine], [p["loss"] for p in mine], yerr=[p["sd"] or 0 for p in mine],
                      fmt=marker, color=color, capsize=3, label=recipe)
    sized = [m for m in members if m["params"]]
    if sized:
        axis.plot([m["params"] for m in sized], [m["E"] for m in sized], "*", ms=9, color="black",
                  label="ensemble, K to infinity")
    n = np.geomspace(min(p["params"] for p in points), 10 * max(p["params"] for p in points), 100)
    for law in sizes + tiered:
        _, color, style = STYLES.get(law["recipe"], OTHER_STYLE) if law["claim"] == "N" else OTHER_STYLE
        if "b" not in law["at_bounds"]:
            draw_limit(axis, n, law, color, style)
    axis.set(xscale="log", xlabel="parameters N")


def draw_members(axis, points, members):
    """Loss against K with the law A / K + E and its limit; single models of those sizes as dotted levels."""
    for m, marker in zip(members, "o^sDvP*X" * len(members)):
        k = np.arange(1, m["points"] + 1)
        drawn, = axis.plot(k, m["loss_by_k"]["logits"], marker, label=f"{m['size']}, logit mean")
        axis.plot(k, m["loss_by_k"]["probs"], "x", color=drawn.get_color(), label="probability mean")
        draw_limit(axis, np.geomspace(1, max(16, k[-1]), 100), m, drawn.get_color(), "-")
    for p in points:
        if p["size"] in {m["size"] for m in members}:
            axis.axhline(p["loss"], color=STYLES.get(p["recipe"], OTHER_STYLE)[1], ls=":", lw=1)
            axis.annotate(f"{p['recipe']} {p['size']}", (0.99, p["loss"]), xycoords=("axes fraction", "data"),
                          ha="right", va="bottom", fontsize=8)
    axis.set(xscale="log", xlabel="members K", xticks=[1, 2, 4, 8, 16], xticklabels=[1, 2, 4, 8, 16])


def draw_epochs(axis, curves):
    """Loss of the standard recipe against epochs, a line a size; its train loss dotted."""
    for curve, marker in zip(curves, "so^DvP*X" * len(curves)):
        epochs = [p["epochs"] for p in curve]
        drawn, = axis.plot(epochs, [p["loss"] for p in curve], f"{marker}-", lw=1,
                           label=f"{curve[0]['size']}, {curve[0]['tokens']:,} tokens")
        if all(p.get("train_loss") for p in curve):
            axis.plot(epochs, [p["train_loss"] for p in curve], ":", lw=1, color=drawn.get_color())
    ticks = sorted({p["epochs"] for curve in curves for p in curve})
    axis.set(xscale="log", xlabel="epochs (dotted: train loss)", xticks=ticks, xticklabels=ticks)


def draw_data(axis, laws):
    """Loss against D of each recipe, with its law and limit."""
    for law, marker in zip(laws, "so^DvP"):
        drawn, = axis.plot(law["tokens"], law["loss"], marker, label=law["recipe"])
        x = np.geomspace(law["tokens"][0], 10 * law["tokens"][-1], 100)
        draw_limit(axis, x, law, drawn.get_color(), "-")
    axis.set(xscale="log", xlabel="unique tokens D")


def draw(path, points, curves, sizes, members, tiered, laws):
    """One figure a claim that has points, beside each other's names: NAME-epochs, -sizes, -members, -data."""
    try:
        import matplotlib
        matplotlib.use("Agg")
        import matplotlib.pyplot as plt
        from matplotlib.ticker import NullFormatter
    except ImportError:
        raise ValueError("--figure needs matplotlib; install it with pip install matplotlib") from None
    claims = {"epochs": (curves, draw_epochs, (curves,)),
              "sizes": (len({p["params"] for p in points}) > 1, draw_sizes, (points, sizes, tiered, members)),
              "members": (members, draw_members, (points, members)), "data": (laws, draw_data, (laws,))}
    if not any(there for there, _, _ in claims.values()):
        print("no figure: it needs two sizes, an ensemble or three budgets")
    for claim, (there, draw_claim, what) in claims.items():
        if there:
            figure, axis = plt.subplots(figsize=(6, 4), layout="constrained")
            draw_claim(axis, *what)
            axis.xaxis.set_minor_formatter(NullFormatter())
            axis.set_ylabel("validation loss (nats per token)")
            axis.legend(fontsize=8)
            drawn = io.BytesIO()
            figure.savefig(drawn, dpi=110, format=Path(path).suffix[1:])
            plt.close(figure)
            write_atomically(Path(path).with_stem(f"{Path(path).stem}-{claim}"), drawn.getvalue())


def runs_report(args):
    """The paper's analysis of folders or tables of runs: points, laws, limits, data efficiency; prints it, too."""
    runs, ensembles = read_results(args.what, args.where)
    points, noise = best_of_recipes(runs)
    curves = epoch_curves(runs)
    sizes, members = size_laws(points, noise), member_laws(ensembles)
    tiered = tiered_laws(members)
    laws = data_laws(points, sizes, tiered)
    ratios = efficiencies(laws)
    print_table(points, curves, members, sizes + tiered + laws, ratios)
    if args.csv:
        write_csv(args.csv, runs, ensembles)
    if args.figure:
        draw(args.figure, points, curves, sizes, members, tiered, laws)
    keys = ("recipe", "size", "params", "tokens", "epochs", "lr", "weight_decay", "loss", "sd", "seeds")
    return {"points": [{key: p[key] for key in keys} for p in points],
            "sigma": {recipe: sigma for recipe, (sigma, _) in noise.items()},
            "laws": sizes + members + tiered + laws, "data_efficiency": ratios}


def main():
    parser = argparse.ArgumentParser(description="Laws, limits and figures of runs or of any table of points.",
                                     formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.error = lambda message: parser.exit(2, f"{parser.prog}: error: {message} (see {parser.prog} --help)\n")
    parser.add_argument("what", nargs="*", default=["runs"], help="folders of finished runs and tables that --csv "
                        "wrote; or the name of a law and a CSV file of points, columns by name, also those of --csv")
    parser.add_argument("--where", action="append", default=[], metavar="COLUMN=VALUE", help="keep only such rows")
    parser.add_argument("--list", action="store_true", help="print every law: formula, columns, source")
    parser.add_argument("--json", action="store_true", help="print everything as the last line")
    runs = parser.add_argument_group("of runs")
    runs.add_argument("--csv", help="also write every run and ensemble to this file")
    runs.add_argument("--figure", help="also draw NAME-epochs, -sizes, -members, -data; a NAME.png, .pdf or .svg")
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
    args = parser.parse_args()
    if args.list:
        for name, law in LAWS.items():
            print(f"{name}: {law.formula}\n    columns {', '.join((*law.columns, law.target))}; {law.source}")
        return print(LEFT_OUT)
    for name in ("delta", "sigma", "loss", "inference"):
        value = getattr(args, name)
        if value is not None and not 0 < value < math.inf:
            raise ValueError(f"--{name} {value} is out of range; it must be above 0")
    if min(args.bootstrap, args.seed) < 0:
        raise ValueError("--bootstrap and --seed must be at least 0")
    if args.figure and Path(args.figure).suffix not in (".png", ".pdf", ".svg"):
        raise ValueError(f"--figure {args.figure} must end in .png, .pdf or .svg")
    of_law = args.what[0] in LAWS
    absent = [source for source in args.what if not of_law and not Path(source).exists()]
    if absent:
        raise ValueError(f"there is no {absent[0]}: train a run first, or name a law: {', '.join(LAWS)}")
    if of_law and len(args.what) != 2:
        raise ValueError(f"the law {args.what[0]} goes with one CSV file of points")
    if args.inference is not None and (args.loss is None or args.what[0] not in ("chinchilla", "inference")):
        raise ValueError("--inference goes with chinchilla and --loss")
    report = law_report(*args.what, args) if of_law else runs_report(args)
    if args.json:
        print(json.dumps(report, allow_nan=False))


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:  # bad input: the message says what and what to do
        print(f"fit.py: error: {error}", file=sys.stderr)
        sys.exit(2)
