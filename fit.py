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


def names_laws(what):
    """Whether the words of a command are a law and its points."""
    return what[0] in LAWS


def load_pyplot(path):
    """matplotlib's pyplot for a figure of this name. Raises ValueError."""
    if Path(path).suffix not in (".png", ".pdf", ".svg"):
        raise ValueError(f"--figure {path} must end in .png, .pdf or .svg")
    try:
        import matplotlib
        matplotlib.use("Agg")
        import matplotlib.pyplot as plt
    except ImportError:
        raise ValueError("--figure needs matplotlib; pip install matplotlib") from None
    return plt


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


# --------------------------------------------------------------------------------------------------
# Runs: means over seeds, the best settings, and whether they are certified

SEEDS = ("seed", "init_seed", "data_seed")
AXES = ("epochs", "lr", "weight_decay")  # what a search moves along
STEP = 3.4  # the widest step of a search: grids double, or go 1, 3, 10
ENDS = {"epochs": 1, "lr": 0, "weight_decay": 0}  # nothing lies below

# what is compared with what: runs of one recipe on the same text
TASK = ("data_hash", "recipe", "tokens")
BEST_OF = ("data_hash", "recipe", "size", "tokens")


def values(item, names):
    """The values of some keys, to compare or sort by; what an item lacks is None, the least."""
    found = []
    for name in names:
        value = item.get(name)
        # None, numbers and texts do not compare, so each has a rank before its value
        if value is None:
            found.append((0, 0))
        else:
            found.append((2 if isinstance(value, str) else 1, value))
    return found


def grouped(items, names):
    """[[item]]: the groups of items that agree in these keys, sorted by them."""
    def key(item):
        return values(item, names)
    return [list(group) for _, group in groupby(sorted(items, key=key), key=key)]


def agreeing(items, other, names):
    """The items that agree with another in these keys."""
    wanted = values(other, names)
    return [item for item in items if values(item, names) == wanted]


def column(items, name):
    """The values of one key, as an array."""
    return np.array([item[name] for item in items])


def pick(item, names):
    """A dict of some keys; None for those that it lacks."""
    return {name: item.get(name) for name in names}


def rest_of(result, but=()):
    """All that a result computes beside seeds, axes and the options `but`, as a text to compare.

    train.py writes into `identity` whatever decides a result and is no default, so a new option is
    compared as well. A result without it agrees with none but its own setting.
    """
    identity = result.get("identity") or {"setting": result["setting"]}
    rest = {key: identity[key] for key in identity if key not in (*SEEDS, *AXES, *but)}
    return json.dumps(rest, sort_keys=True)


def mean_settings(runs):
    """The settings of runs, a dict each: the keys of its first run, `loss` (mean over seeds), `sd`
    over them (None for one), `seeds` (their number) and `by_seed`, {seeds: loss}.

    Runs differ in seed alone where recipe and `setting` agree: train.py hashes into `setting` all
    that it computes but the seeds, so no option can be forgotten here.
    """
    settings = []
    for group in grouped(runs, ("recipe", "setting")):
        first, losses = group[0], column(group, "val_loss")
        sd = None  # one run says nothing of noise
        if len(losses) > 1:
            sd = float(losses.std(ddof=1))
        by_seed = {}
        for run in group:
            seeds = [run.get(name) for name in SEEDS]
            # --seed sets those that are not given
            key = tuple(seeds[0] if seed is None else seed for seed in seeds)
            by_seed[key] = run["val_loss"]
        settings.append({
            **first, "loss": float(losses.mean()), "sd": sd, "seeds": len(losses),
            "by_seed": by_seed, "rest": rest_of(first), "rest_but_size": rest_of(first, ["size"])})
    return settings


def pooled_noise(settings):
    """{recipe: (standard deviation of one run, its degrees of freedom)}, pooled over the settings
    that have several seeds."""
    # two or three seeds a setting say little; together those of a recipe say enough
    noise = {}
    for group in grouped(settings, ("recipe",)):
        freedom, squares = 0, 0.0
        for s in group:
            if s["seeds"] > 1:
                freedom += s["seeds"] - 1
                squares += (s["seeds"] - 1) * s["sd"] ** 2
        if freedom:
            noise[group[0]["recipe"]] = math.sqrt(squares / freedom), freedom
    return noise


def best_of(settings, by=BEST_OF):
    """The setting of least loss of each (recipe, size, tokens), or of what `by` names, with
    `tried`, the number of settings there; the worst first."""
    best = []
    for group in grouped(settings, by):
        best.append({**min(group, key=lambda s: s["loss"]), "tried": len(group)})
    return sorted(best, key=lambda s: -s["loss"])


def certificate(center, settings, noise):
    """Whether a setting is locally optimal: its keys, `neighbours` and `certified`.

    Certified: it has several seeds, both sides of each axis that was searched were tried, a step of
    the grid away, and nothing there is better. (A run that diverges leaves no result: "not run".)
    """
    alike = agreeing(settings, center, ("recipe", "rest"))
    found, good = [], []
    for axis in AXES:
        # an axis on which all have one value belongs to the recipe, as standard's weight decay
        if len(set(column(alike, axis))) == 1:
            continue
        others = [other for other in AXES if other != axis]
        line = sorted(agreeing(alike, center, others), key=lambda s: s[axis])
        below = [s for s in line if s[axis] < center[axis]]
        above = [s for s in line if s[axis] > center[axis]]
        down, up = {"verdict": "not run"}, {"verdict": "not run"}
        # the nearest that was tried, be it one step away or more
        if below:
            down = compare(center, below[-1], axis, noise)
        elif center[axis] <= ENDS[axis]:
            down = {"verdict": "end"}
        if above:
            up = compare(center, above[0], axis, noise)
        for side, neighbour in (("down", down), ("up", up)):
            found.append({"axis": axis, "side": side, **neighbour})
            near = neighbour.get("near", True)
            good.append(near and neighbour["verdict"] in ("tie", "worse", "end"))
    # one seed may have been lucky
    certified = bool(good) and all(good) and center["seeds"] > 1
    return {**center, "neighbours": found, "certified": certified}


def compare(center, other, axis, noise):
    """A neighbour's value on the axis, its margin and a verdict. The margin is the mean difference
    of losses over common seeds; within two standard errors of that it is a tie."""
    low, high = sorted([center[axis], other[axis]])
    found = {"value": other[axis], "near": low <= ENDS[axis] or high / low <= STEP,
             "setting": other["setting"]}
    # both means rest on the same initial weights and orders of the data
    common = center["by_seed"].keys() & other["by_seed"].keys()
    if not common:
        return {**found, "verdict": "not run"}
    margins = [other["by_seed"][seeds] - center["by_seed"][seeds] for seeds in sorted(common)]
    margin = float(np.mean(margins))
    sd, _ = noise[center["recipe"]]
    if abs(margin) <= 2 * sd * math.sqrt(2 / len(margins)):
        verdict = "tie"
    elif margin > 0:
        verdict = "worse"
    else:
        verdict = "better"
    return {**found, "margin": margin, "seeds": len(margins), "verdict": verdict}


def certificates(settings, noise):
    """The certificate of each best setting and, beyond it, of other local optima: certified, and no
    tie with a better one that is certified as well. None where no seeds say what a tie is."""
    found = []
    known_noise = [s for s in settings if s["recipe"] in noise]
    for group in grouped(known_noise, (*TASK, "params")):
        # from the best on, so that a plateau is reported once, by its lowest point
        optima, certified = [], set()
        for center in sorted(group, key=lambda s: s["loss"]):
            one = certificate(center, group, noise)
            ties = {n["setting"] for n in one["neighbours"] if n["verdict"] == "tie"}
            other = one["certified"] and not ties & certified
            if one["neighbours"] and (other or not optima):
                optima.append(one)
            if one["certified"]:
                certified.add(one["setting"])
        found += optima
    return found


def epoch_curves(settings):
    """[points] of the standard recipe at each size and tokens with three epoch counts or more, by
    epochs: the best setting of each count (paper, section on the standard recipe)."""
    standard = [s for s in settings if s["recipe"] == "standard"]
    points = best_of(standard, (*BEST_OF, "epochs"))
    curves = []
    for curve in grouped(points, ("data_hash", "tokens", "params")):
        if len(curve) > 2:
            curves.append(sorted(curve, key=lambda p: p["epochs"]))
    return curves


def one_setting(points, settings):
    """The smallest model's best setting where larger ones were trained by it, with `own`, the loss
    of the larger size's own best."""
    rows = []
    for group in grouped(points, TASK):
        # the paper: settings that suit a small model overfit with a large one
        first, *larger = sorted(group, key=lambda p: p["params"])
        alike = agreeing(settings, first, ("recipe", "rest_but_size", *AXES))
        for own in larger:
            for s in agreeing(alike, own, ("size",)):
                rows.append({**s, "own": own["loss"]})
    return rows


def size_trends(points):
    """Slope of the best settings' losses, seed by seed, per doubling of N, with its standard error,
    for each (recipe, tokens) with three sizes or more."""
    trends = []
    for group in grouped(points, TASK):
        if len(group) < 3:
            continue
        # seeds as points of their own: their spread is in the standard error
        n, loss = [], []
        for p in group:
            n += [math.log2(p["params"])] * p["seeds"]
            loss += p["by_seed"].values()
        n, loss = np.array(n), np.array(loss)
        slope, level = np.polyfit(n, loss, 1)
        squares = ((loss - slope * n - level) ** 2).sum()
        error = math.sqrt(squares / (len(n) - 2) / ((n - n.mean()) ** 2).sum())
        trends.append({**group[0], "slope": float(slope), "error": error, "count": len(n)})
    return trends


# --------------------------------------------------------------------------------------------------
# Limits: over N, over K, over both, over D

def size_laws(points, noise):
    """The law over N of each (recipe, tokens) with at least three sizes, for the total N and, as
    "nonembedding", for N without embedding and head: the limit moves with the count."""
    laws = []
    for group in grouped(points, ("recipe", "tokens", "data_hash")):
        first, loss = group[0], column(group, "loss")
        if len(set(column(group, "params"))) < 3:  # as many as the law has parameters
            continue
        # a mean over seeds is as much surer as it has seeds
        seeds = column(group, "seeds").astype(float)
        sigma, freedom = noise.get(first["recipe"], (None, 0))
        law = limit_of(column(group, "params"), loss, seeds, sigma, freedom)
        other = limit_of(column(group, "params_nonembedding"), loss, seeds, sigma, freedom)
        laws.append({"claim": "N", **pick(first, TASK), "sigma": sigma, "points": len(group), **law,
                     "nonembedding": other})
    return laws


def member_laws(ensembles):
    """The limit K -> infinity of each ensemble: the law A / K + E with its jackknife interval over
    members and, as "free", A / K^b + E where there are three K or more. Probability means fall more
    slowly, so their limit is that of the free exponent."""
    laws = []
    copied = ("recipe", "params", "tokens", "data_hash", "setting", *AXES, "kl", "loss_by_k")
    for e in ensembles:
        law = e["law"]
        if not law:  # one member has no law
            continue
        k = len(e["loss_by_k"]["logits"])
        interval = None
        if law["se"] is not None:
            interval = t_interval(law["E"], law["se"], k)
        # of two members there is no free exponent
        free_probs = e.get("free_probs_law") or {**e["probs_law"], "b": 1.0}
        laws.append({
            "claim": "K", **pick(e, copied), "size": e["size"] or "mixed",
            "vary": e["vary"] or "seed", "points": k,
            # members with a subset each are compared with those that share one
            "rest": rest_of(e, ["subset_seed"]),
            "A": law["A"], "b": 1.0, "E": law["E"], "se": law["se"], "interval": interval,
            "free": e.get("free_law"), "probs_law": e["probs_law"], "free_probs": free_probs,
            "probs_E": free_probs["E"]})
    return laws


def best_ensembles(members):
    """For each (recipe, tokens, size) of members that differ in seed alone the settings of the
    least limit, of those the ensemble with most members."""
    alike, best = [], []
    for m in members:
        if m["params"] and m["tokens"] and m["recipe"] and m["vary"] == "seed":
            alike.append(m)
    for group in grouped(alike, ("recipe", "tokens", "data_hash", "params")):
        # not the least limit of all: of two ensembles of one setting the smaller is the less sure
        largest = [max(same, key=lambda m: m["points"]) for same in grouped(group, ("setting",))]
        best.append(min(largest, key=lambda m: m["E"]))
    return best


def tiered_laws(members, average="logits"):
    """K -> infinity at each N (A / K + E of one of the averages), then N -> infinity, for each
    (recipe, tokens) with ensembles at three sizes or more. The noise of a limit is that of one
    member, pooled over the sizes, over the square root of K."""
    laws = []
    for group in grouped(best_ensembles(members), ("recipe", "tokens", "data_hash")):
        if len(group) < 3:
            continue
        over_k = group
        if average == "probs":
            over_k = column(group, "probs_law")
        # a limit over K rests on K draws: its variance is that of one member over K
        k = column(group, "points").astype(float)
        freedom, squares = 0, 0.0
        for count, law in zip(k, over_k):
            if law["se"] is not None:  # of two members
                freedom += count - 1
                squares += (count - 1) * count * law["se"] ** 2
        sigma = None
        if freedom:
            sigma = math.sqrt(squares / freedom)
        law = limit_of(column(group, "params"), column(over_k, "E"), k, sigma, freedom)
        laws.append({"claim": "N and K", "average": average, **pick(group[0], TASK),
                     "sigma": sigma, "points": len(group), **law})
    return laws


def half_width(law):
    """Half the width of a limit's interval, None where there is none."""
    if law["interval"] is None:
        return None
    return (law["interval"][1] - law["interval"][0]) / 2


def vary_differences(members):
    """Members that differ in something else than seed against the most that differ in seed, all
    else equal: their laws with `apart`, the difference of the loss at each K, `limit_apart`, and
    `half` the width of the latter's 95% interval."""
    rows = []
    for m in members:
        alike = agreeing(members, {**m, "vary": "seed"}, ("rest", *AXES, "vary"))
        if m["vary"] == "seed" or not alike:
            continue
        base = max(alike, key=lambda other: other["points"])  # the surest of them
        pairs = zip(m["loss_by_k"]["logits"], base["loss_by_k"]["logits"])
        half = None
        if m["interval"] and base["interval"]:
            # of a difference of two independent estimates
            half = math.hypot(half_width(m), half_width(base))
        rows.append({**m, "apart": [loss - other for loss, other in pairs],
                     "limit_apart": m["E"] - base["E"], "half": half})
    return rows


def predictions(members):
    """What an ensemble says of one with twice its members or more of the same setting, by A / K + E
    of logit means and A / K^b + E of probability means: [(smaller, larger, rows by K)]."""
    found = []
    for group in grouped(members, ("recipe", "setting", "vary", "rest", *AXES)):
        by_count = sorted(group, key=lambda m: m["points"])
        small, large = by_count[0], by_count[-1]
        if large["points"] < 2 * small["points"]:  # else there is little to predict
            continue
        rows, free = [], small["free_probs"]
        losses = zip(large["loss_by_k"]["logits"], large["loss_by_k"]["probs"])
        for k, (logits, probs) in enumerate(losses, 1):
            rows.append({"k": k, "logits": logits, "probs": probs,
                         "predicted": small["A"] / k + small["E"],
                         "predicted_probs": free["A"] / k ** free["b"] + free["E"]})
        found.append((small, large, rows))
    return found


def data_laws(points, sizes, tiered):
    """The law over D of each recipe with three budgets or more: of the standard recipe's best loss
    over N, of every other recipe's limit over N, of the tiered limits (paper, section on data
    efficiency)."""
    lines = {}  # {(name, data hash): {tokens: loss}}

    def add(name, item, loss):
        line = lines.setdefault((name, item["data_hash"]), {})
        line[item["tokens"]] = min(line.get(item["tokens"], math.inf), loss)

    # the standard recipe has no limit over N to speak of: larger models do not help it
    for p in points:
        if p["recipe"] == "standard":
            add("standard, best N", p, p["loss"])
    for law in sizes:
        if law["recipe"] != "standard":
            add(f"{law['recipe']}, N to infinity", law, law["E"])
    for law in tiered:
        add(f"{law['recipe']} ensembles, N and K to infinity", law, law["E"])
    laws = []
    for (name, data), line in lines.items():
        if len(line) > 2:
            tokens = sorted(line)
            loss = [line[count] for count in tokens]
            laws.append({"claim": "D", "recipe": name, "data_hash": data, "points": len(line),
                         "tokens": tokens, "loss": loss, **limit_of(tokens, loss)})
    return laws


def efficiencies(laws):
    """How many times the data the standard recipe needs for what each other line over D reaches: by
    the standard law, with the range when one of its points is left out, and by interpolation
    between the measured losses."""
    def by_law(law, loss, own):
        if min(loss, own) <= law["E"] or law["A"] <= 0:
            return None  # it never gets there
        return data_efficiency(law, loss, own)

    standards = {law["data_hash"]: law for law in laws if law["recipe"] == "standard, best N"}
    rows = []
    for law in laws:
        standard = standards.get(law["data_hash"], law)  # itself where there is none: no rows
        own_losses = dict(zip(standard["tokens"], standard["loss"]))
        for tokens, loss in zip(law["tokens"], law["loss"]):
            if law is standard or tokens not in own_losses:
                continue
            own = own_losses[tokens]
            ratios = [by_law(one, loss, own) for one in standard["left_out"]]
            ends = sorted(ratio for ratio in ratios if ratio is not None)
            ratio_range = None
            if ends:
                ratio_range = [ends[0], ends[-1]]
            measured, beyond = measured_efficiency(*zip(*own_losses.items()), loss, tokens)
            rows.append({"recipe": law["recipe"], "tokens": tokens, "loss": loss,
                         "standard_loss": own, "by_law": by_law(standard, loss, own),
                         "by_law_range": ratio_range, "measured": measured, "extrapolated": beyond})
    return rows


# --------------------------------------------------------------------------------------------------
# Tables, in Markdown; each appears when its points are there

# the first columns of most tables
SETTING = {"recipe": "{recipe}", "size": "{size}", "tokens": "{tokens:,}", "epochs": "{epochs}",
           "lr": "{lr:g}", "weight decay": "{weight_decay:g}"}


def print_table(title, rows, columns):
    """A Markdown table under its title; nothing where there are no rows. columns: {header: template
    of a cell}, such as {"lr": "{lr:g}"}; a cell is empty where a value is None or absent."""
    if not rows:
        return
    texts = []  # column by column
    for header, template in columns.items():
        names = re.findall(r"{(\w+)", template)  # the keys that it reads
        cells = []
        for row in rows:
            known = all(row.get(name) is not None for name in names)
            cells.append(template.format(**row) if known else "")
        # words to the left, numbers to the right; padded, so that a terminal shows a table as well
        words = any(re.search("^[a-z]|[a-z]{4}", cell) for cell in cells)
        width = max(3, *map(len, [header, *cells]))
        rule = "-" * width if words else "-" * (width - 1) + ":"
        align = str.ljust if words else str.rjust
        texts.append([align(cell, width) for cell in (header, rule, *cells)])
    print(f"**{title}**\n")
    for line in zip(*texts):
        print(f"| {' | '.join(line)} |")
    print()


def print_settings(points, settings):
    """The best settings; and by context and batch size where several of these were tried."""
    columns = {**SETTING, "tau": "{tau_epochs:.2f}", "loss": "{loss:.4f}", "sd": "{sd:.3f}",
               "seeds": "{seeds}", "tried": "{tried}"}
    print_table("Best settings (tau: AdamW's memory in epochs)", points, columns)
    rows = []
    for group in grouped(settings, BEST_OF):
        for places in grouped(best_of(group, ("context", "batch_size")), ("context", "batch_size")):
            best = dict(places[0])
            if best.get("steps"):
                best["steps_per_epoch"] = best["steps"] // best["epochs"]
            if best["tried"] < len(group):  # there are other places
                rows.append(best)
    print_table("Best settings by context and batch size", rows,
                {"context": "{context}", "batch": "{batch_size}",
                 "steps an epoch": "{steps_per_epoch}", **columns})


def print_certificates(found):
    """A line a certificate: the setting, its neighbours' margins and which are not worse, and the
    least margin of those that are."""
    rows, margins = [], {}
    for axis, side in product(AXES, ("down", "up")):
        margins[f"{axis.replace('_', ' ')} {side}"] = f"{{{axis}_{side}}}"
    for one in found:
        row = {**one, "certified": "yes" if one["certified"] else "no"}
        for neighbour in one["neighbours"]:
            verdict, margin = neighbour["verdict"], neighbour.get("margin")
            cell = verdict
            if margin is not None:
                cell = f"{margin:+.3f}"
            if verdict in ("tie", "better"):
                cell += f" {verdict}"
            if not neighbour.get("near", True):  # a grid with a hole
                cell += f" at {neighbour['value']:g}"
            if verdict == "worse":
                row["least"] = min(margin, row.get("least", margin))
            row[f"{neighbour['axis']}_{neighbour['side']}"] = cell
        rows.append(row)
    print_table("Certificates on the axes that were searched: margins of the neighbours one step "
                "away; a tie is within two standard errors", rows,
                {**SETTING, "loss": "{loss:.4f}", **margins, "least worse": "{least:+.3f}",
                 "certified": "{certified}"})


def print_trends(curves, trends, rows):
    """The standard recipe by epochs, the slopes over N, and one setting at all sizes."""
    by_epochs, counts = [], {}  # a row a curve; a column an epoch count that any of them has
    for curve in curves:
        row = dict(curve[0])
        for p in curve:
            row[f"at{p['epochs']}"] = p["loss"]
            counts[p["epochs"]] = f"{{at{p['epochs']}:.3f}}"
        by_epochs.append(row)
    in_order = {f"{count} epochs": counts[count] for count in sorted(counts)}
    print_table("Standard recipe by epochs: the best loss of each count", by_epochs,
                {"size": "{size}", "tokens": "{tokens:,}", **in_order})
    print_table("Slope of the best settings' losses, nats per doubling of N", trends,
                {"recipe": "{recipe}", "tokens": "{tokens:,}", "slope": "{slope:+.3f}",
                 "standard error": "{error:.3f}", "runs": "{count}"})
    print_table("The smallest model's settings at larger sizes", rows,
                {**SETTING, "loss": "{loss:.3f}", "seeds": "{seeds}", "with its own": "{own:.3f}"})


def print_ensembles(members):
    """A line an ensemble; then the limits by epochs and weight decay, what members differ in, and
    what fewer members predict of more."""
    # settings beside each other, so that a column shows what one of them does
    rows = []
    order = ("recipe", "params", "epochs", "weight_decay", "vary", "points")
    for m in sorted(members, key=lambda m: values(m, order)):
        logits, probs = m["loss_by_k"]["logits"], m["loss_by_k"]["probs"]
        row = {**m, **by_count(logits), "recipe": m["recipe"] or "mixed", "half": half_width(m),
               "probs_last": probs[-1], "probs_b": m["free_probs"]["b"]}
        if m["free"]:
            row["free_b"] = m["free"]["b"]
        rows.append(row)
    print_table("Ensembles of K members: logit means, the limit of A / K + E with its 95% interval "
                "(jackknife), b of A / K^b + E; probability means with that law's limit and b; "
                "mean KL of pairs", rows,
                {**SETTING, "differ in": "{vary}", "K": "{points}", "1": "{k1:.3f}",
                 "2": "{k2:.3f}", "3": "{k3:.3f}", "K members": "{last:.3f}", "limit": "{E:.3f}",
                 "95%": "+-{half:.3f}", "b": "{free_b:.2f}", "probs, K": "{probs_last:.3f}",
                 "their limit": "{probs_E:.3f}", "their b": "{probs_b:.2f}", "KL": "{kl:.2f}"})
    print_limit_grid(members)
    rows = [{**m, **by_count(m["apart"])} for m in vary_differences(members)]
    print_table("Members that differ in something else minus members that differ in seed, logit "
                "means", rows,
                {"recipe": "{recipe}", "size": "{size}", "differ in": "{vary}", "1": "{k1:+.3f}",
                 "2": "{k2:+.3f}", "3": "{k3:+.3f}", "K": "{count}", "K members": "{last:+.3f}",
                 "limit": "{limit_apart:+.3f}", "95%": "+-{half:.3f}"})
    for small, large, rows in predictions(members):
        print_table(f"{large['points']} {large['recipe']} members of {large['size']}, and what "
                    f"{small['points']} predict: A / K + E for logit means, A / K^b + E for "
                    f"probability means", rows,
                    {"K": "{k}", "logits": "{logits:.3f}", "probs": "{probs:.3f}",
                     "predicted logits": "{predicted:.3f}",
                     "predicted probs": "{predicted_probs:.3f}"})


def by_count(losses):
    """The first three and the last of losses by K, as cells of a row."""
    row = {"count": len(losses), "last": losses[-1]}
    for k, loss in enumerate(losses[:3], 1):
        row[f"k{k}"] = loss
    return row


def print_limit_grid(members):
    """The limit over K by epochs and weight decay, where members of one size have two of each or
    more; of ensembles of one setting that of most members."""
    alike = [m for m in members if m["vary"] == "seed" and None not in pick(m, AXES).values()]
    for group in grouped(alike, ("data_hash", "size", "tokens", "lr")):
        # whatever the recipe: the member rule and the settings around it are one grid
        decays = sorted(set(column(group, "weight_decay")))
        rows, cells = [], 0
        for line in grouped(group, ("epochs",)):
            row = {"epochs": line[0]["epochs"]}
            for same in grouped(line, ("weight_decay",)):
                most = max(same, key=lambda m: m["points"])
                row[f"decay{decays.index(most['weight_decay'])}"] = most["E"]
                cells += 1
            rows.append(row)
        # two recipes at one size are not yet a grid
        if len(rows) > 1 and len(decays) > 1 and cells > 3:
            columns = {f"{decay:g}": f"{{decay{i}:.3f}}" for i, decay in enumerate(decays)}
            print_table(f"Limit over K of {group[0]['size']} members, lr {group[0]['lr']:g}, by "
                        f"epochs and weight decay", rows, {"epochs": "{epochs}", **columns})


def print_laws(laws, ratios):
    """The laws over N, N and K, D with what is known of their limits; then data efficiency."""
    rows = []
    for law in laws:
        row = {**law, "of": law["recipe"], "x": law["claim"][0], "unit": "run"}
        if row["x"] == "N":
            row["at"] = f"{law['tokens']:,}"
        if "K" in law["claim"]:
            row["of"] += f" ensembles, K to infinity, {law['average']}"
            row["unit"] = "member"
        rows.append(row)
        # which count of parameters is the right one is not known, so both limits are shown
        if "nonembedding" in law:
            rows.append({**row, **law["nonembedding"], "x": "N without embedding and head"})
    for row in rows:
        row["known"] = describe(
            row["interval"], row["leave_one_out"], row.get("sigma"), row["unit"])
        if "b" in row["at_bounds"]:
            row["known"] += "; b at its bound: no power law"
    print_table("Laws A / x^b + E and how well their limits E are known", rows,
                {"of": "{of}", "x": "{x}", "tokens": "{at}", "points": "{points}", "A": "{A:.3g}",
                 "b": "{b:.3g}", "limit": "{E:.4f}", "known": "{known}"})
    rows = []
    for ratio in ratios:
        row = {**ratio, "times": "never reached", "how": "interpolated"}
        if ratio["by_law"] is not None:
            row["times"] = f"{ratio['by_law']:.2f}"
        if ratio["by_law_range"]:
            row["low"], row["high"] = ratio["by_law_range"]
        if ratio["extrapolated"]:  # the nearest measured point is a bound on the truth
            bound = "more" if ratio["loss"] < ratio["standard_loss"] else "less"
            row["how"] = f"warning: beyond its range, {bound} than that"
        rows.append(row)
    print_table("Data efficiency: times the data that the standard recipe needs for the same loss",
                rows, {"recipe": "{recipe}", "tokens": "{tokens:,}", "by its law": "{times}",
                       "leaving one out": "{low:.2f} to {high:.2f}", "measured": "{measured:.2f}",
                       "how": "{how}"})


# --------------------------------------------------------------------------------------------------
# Figures

# marker, colour and line of a recipe, to be told apart in grey as well
STYLES = {"standard": ("s", "0.5", "-"), "regularized": ("o", "tab:blue", "-"),
          "member": ("^", "tab:green", "--"), "student": ("D", "tab:red", ":")}
OTHER_STYLE = ("*", "black", "-.")
MARKERS = "osDv^P*X"


@dataclass
class Line:
    """Points of a figure, and the law that was fitted to them if there is one."""
    label: str
    x: list
    y: list
    marker: str
    color: str
    style: str = "-"
    error: list = None
    law: dict = None
    joined: bool = False  # by a line through the points
    faint: bool = False  # hollow, and not in the legend


def size_lines(points, laws, members):
    """Loss against N: the best of each recipe and the limits of ensembles, each with its law."""
    found = {}
    for law in laws:
        # a law whose exponent ran to its bound is no power law and would mislead as a line
        if "b" not in law["at_bounds"]:
            found[law["claim"], law["recipe"], law["tokens"]] = law
    lines = []
    for mine in grouped(points, ("recipe", "tokens")):
        recipe, tokens = mine[0]["recipe"], mine[0]["tokens"]
        marker, color, style = STYLES.get(recipe, OTHER_STYLE)
        error = [p["sd"] or 0 for p in mine]
        lines.append(Line(recipe, column(mine, "params"), column(mine, "loss"), marker, color,
                          style, error, found.get(("N", recipe, tokens))))
    for mine in grouped(best_ensembles(members), ("recipe", "tokens")):
        recipe, tokens = mine[0]["recipe"], mine[0]["tokens"]
        _, color, _ = STYLES.get(recipe, OTHER_STYLE)
        lines.append(Line(f"{recipe} ensembles, K to infinity", column(mine, "params"),
                          column(mine, "E"), "*", color, "-.",
                          law=found.get(("N and K", recipe, tokens))))
    return lines


def member_lines(members):
    """Loss against K of the best ensemble of each recipe and size, with its law; faint, that of
    their probability means."""
    chosen = best_ensembles(members) or members
    sizes = list(dict.fromkeys(m["size"] for m in chosen))
    lines = []
    for m in chosen:
        # a colour a recipe, a marker a size
        _, color, style = STYLES.get(m["recipe"], OTHER_STYLE)
        marker = MARKERS[sizes.index(m["size"]) % len(MARKERS)]
        k = list(range(1, m["points"] + 1))
        lines += [Line(f"{m['recipe'] or 'mixed'} {m['size']}", k, m["loss_by_k"]["logits"], marker,
                       color, style, law=m),
                  Line("", k, m["loss_by_k"]["probs"], marker, color, faint=True)]
    return lines


def epoch_lines(curves):
    """Loss of the standard recipe against epochs, a line a size and budget; faint, its train
    loss."""
    lines = []
    for i, curve in enumerate(curves):
        epochs, color = column(curve, "epochs"), f"C{i % 10}"
        label = f"{curve[0]['size']}, {curve[0]['tokens']:,} tokens"
        lines.append(Line(label, epochs, column(curve, "loss"), MARKERS[i % len(MARKERS)], color,
                          joined=True))
        if all(p.get("train_loss") for p in curve):
            lines.append(Line("", epochs, column(curve, "train_loss"), "", color, ":", joined=True,
                              faint=True))
    return lines


def data_lines(laws):
    """Loss against D of each recipe, with its law."""
    lines = []
    for i, law in enumerate(laws):
        lines.append(Line(law["recipe"], law["tokens"], law["loss"], MARKERS[i % len(MARKERS)],
                          f"C{i % 10}", law=law))
    return lines


def draw_points(axis, line):
    """The points of a line with their errors."""
    # ms, mfc: size of a marker, colour of its inside
    look = {"label": line.label, "mfc": line.color}
    if line.faint:
        look = {"alpha": 0.6, "mfc": "white"}
    join = line.style if line.joined else ""
    axis.errorbar(line.x, line.y, line.error, fmt=line.marker + join, color=line.color, ms=5, lw=1,
                  capsize=3, **look)


def draw_limits_beside(axis, lines):
    """The laws over K out to 16 members and, beside each other at the right, their limits with
    their intervals: K to infinity. So many of them can be told apart."""
    last = max(16, *(line.x[-1] for line in lines))
    k = np.geomspace(1, last, 100)
    for i, line in enumerate(lines):
        # the limits a little apart, as their intervals overlap
        axis.plot(k, line.law["A"] / k + line.law["E"], color=line.color, ls=line.style, lw=1)
        axis.errorbar(2 * last * 1.06 ** i, line.law["E"], half_width(line.law), fmt=line.marker,
                      color=line.color, ms=5, capsize=3)
    # the axis has no place for infinity, so its tick is where the limits begin
    ticks = [1, 2, 4, 8, 16]
    axis.set(xticks=[*ticks, 2 * last], xticklabels=[*ticks, "∞"])
    axis.tick_params(which="minor", bottom=False)


def draw_laws(axis, lines):
    """Each law ten times beyond its points, its limit dashed, the limit's interval (else the range
    of limits with one point left out) as a band. A limit far below all points is left out."""
    for line in lines:
        x = np.geomspace(min(line.x), 10 * max(line.x), 100)
        axis.plot(x, line.law["A"] / x ** line.law["b"] + line.law["E"], color=line.color,
                  ls=line.style, lw=1)
    # the heights of points and laws; a limit of 0 would press them into a corner
    low, high = axis.get_ylim()
    lowest, margin = low, (high - low) / 50
    for line in lines:
        if line.law["E"] > 2 * low - high:
            lowest = min(lowest, line.law["E"] - margin)
        axis.axhline(line.law["E"], color=line.color, ls="--", lw=1)
        band = line.law["interval"] or line.law["leave_one_out"]
        if band:
            axis.axhspan(*band, color=line.color, alpha=0.12, lw=0)
    axis.set_ylim(lowest, high)  # which lines and bands have stretched


def draw(path, x_label, lines, levels=()):
    """One figure, written whole or not at all. levels: {name: loss}, dotted across it."""
    plt = load_pyplot(path)
    figure, axis = plt.subplots(figsize=(7, 4.5), layout="constrained")
    axis.set(xscale="log", xlabel=x_label, ylabel="validation loss (nats per token)")
    for line in lines:
        draw_points(axis, line)
    if all(line.joined for line in lines):
        ticks = sorted({x for line in lines for x in line.x})
        axis.set(xticks=ticks, xticklabels=ticks)
    # a limit over K has an interval of its own, many of which would hide each other as bands
    with_law = [line for line in lines if line.law]
    if with_law and with_law[0].law["claim"] == "K":
        draw_limits_beside(axis, with_law)
    else:
        draw_laws(axis, with_law)
    for name in levels:
        axis.axhline(levels[name], color="0.5", ls=":", lw=1)
        axis.annotate(name, (0.99, levels[name]), xycoords=("axes fraction", "data"), ha="right",
                      va="bottom", fontsize=8)
    axis.xaxis.set_minor_formatter("")  # between ticks numbers would overlap
    if sum(not line.faint for line in lines) > 4:  # too many to lie between the points
        figure.legend(loc="outside right upper", fontsize=8)
    else:
        axis.legend(fontsize=8)
    drawn = io.BytesIO()  # in memory first: a figure is there whole or not at all
    figure.savefig(drawn, dpi=110, format=Path(path).suffix[1:])
    plt.close(figure)
    write_atomically(path, drawn.getvalue())


def draw_claims(path, found):
    """A figure of each claim that has points: NAME-epochs, NAME-sizes, NAME-members, NAME-data."""
    points, members = found["points"], found["members"]
    over_n = []
    if len({p["params"] for p in points}) > 1:
        over_n = size_lines(points, found["sizes"] + found["tiered"], members)
    # beside ensembles of one size, the single models of that size; of several it would be too much
    levels, sizes = {}, {m["size"] for m in members}
    for p in points:
        if sizes == {p["size"]}:
            levels[f"{p['recipe']} {p['size']}"] = p["loss"]
    figures = {"epochs": ("epochs (dotted: train loss)", epoch_lines(found["curves"])),
               "sizes": ("parameters N", over_n),
               "members": ("members K (hollow: probability means)", member_lines(members), levels),
               "data": ("unique tokens D", data_lines(found["data"]))}
    drawn = 0
    for claim, figure in figures.items():
        if figure[1]:
            draw(Path(path).with_stem(f"{Path(path).stem}-{claim}"), *figure)
            drawn += 1
    if not drawn:
        print("no figure: it needs two sizes, an ensemble, three epoch counts or three budgets")


# --------------------------------------------------------------------------------------------------
# Results: folders of finished runs, and files of them as JSON lines

# what the tables read of a result
NEEDED = {"run": ("name", "recipe", "setting", "data_hash", "size", "params", "params_nonembedding",
                  "tokens", *AXES, "val_loss"),
          "ensemble": ("name", "recipe", "setting", "size", "params", "tokens", "vary",
                       "loss_by_k", "law", "probs_law")}


def read_results(sources, where=()):
    """The results in folders and .jsonl files that meet every condition of keep_rows(), verbatim. A
    result is one JSON object, of a run, an ensemble or an evaluation (`kind`). Raises
    ValueError."""
    rows = []
    for source in map(Path, sources):
        if not source.exists():
            raise ValueError(f"there is no {source}: train a run first, or name a law: "
                             f"{', '.join(LAWS)}")
        if not source.is_dir() and source.suffix != ".jsonl":
            raise ValueError(f"{source} is neither a folder of runs nor a .jsonl file of results; "
                             f"to fit a law to its points name the law first")
        rows += read_rows(source)
    names = ", ".join(map(str, sources))
    if not rows:
        raise ValueError(f"no finished run in {names}; train one first")
    kept = keep_rows(rows, where)
    if not kept:
        raise ValueError(f"no finished run in {names} with {' and '.join(where)}")
    for row, place in kept:
        for key in ("kind", *NEEDED.get(row.get("kind"), ())):
            if key not in row:
                raise ValueError(f"{place} has no {key}: it is no result, or one of an older "
                                 f"version; remove it and ask for it again")
    return [row for row, _ in kept]


def count_once(results):
    """(runs, ensembles), each once: a run stands in every study that uses it, and in its folder.
    Prints what this leaves out beside copies."""
    found, changed, others = {}, set(), 0
    for result in results:
        if result["kind"] not in NEEDED:
            others += 1
            continue
        # a run may stand under two recipes: a member by the rule can be another recipe's best
        key = result["kind"], result["name"], result["recipe"]
        if key in found and found[key].get("val_loss") != result.get("val_loss"):
            changed.add(key)
        found[key] = result
    if changed:
        print(f"{len(changed)} run(s) are there with two losses, of two machines or compiled and "
              f"not: the last counts\n")
    if others:
        print(f"{others} result(s) of other kinds have no table here\n")
    counted = list(found.values())
    run, ensemble = {"kind": "run"}, {"kind": "ensemble"}
    return agreeing(counted, run, ["kind"]), agreeing(counted, ensemble, ["kind"])


def save_results(path, results):
    """Merge results into a .jsonl file: a line for each (study, kind, name, recipe), sorted by
    that, written whole or not at all. What the file holds stays, unless the same comes anew."""
    before = []
    if Path(path).exists():
        before = [row for row, _ in read_rows(path)]
    merged = {}
    for result in before + results:  # the new ones last, so that they count
        key = tuple(str(result.get(name)) for name in ("study", "kind", "name", "recipe"))
        merged[key] = json.dumps(result, separators=(",", ":"), allow_nan=False)
    lines = [merged[key] + "\n" for key in sorted(merged)]
    write_atomically(path, "".join(lines).encode())


def write_csv(path, results):
    """The numbers and texts of each result, but no lists and laws, as a line of a CSV file for
    other programs; written whole or not at all."""
    rows, columns = [], {}
    for result in results:
        row = {name: value for name, value in result.items() if not isinstance(value, (dict, list))}
        rows.append(row)
        columns |= row
    text = io.StringIO()
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


# --------------------------------------------------------------------------------------------------
# Command line

def analyse(runs, ensembles):
    """The paper's whole analysis: {what: its rows or laws}."""
    settings = mean_settings(runs)
    noise = pooled_noise(settings)
    points = best_of(settings)
    sizes = size_laws(points, noise)
    members = member_laws(ensembles)
    tiered = tiered_laws(members)
    data = data_laws(points, sizes, tiered)
    return {"settings": settings, "noise": noise, "points": points,
            "certificates": certificates(settings, noise), "curves": epoch_curves(settings),
            "trends": size_trends(points), "one_setting": one_setting(points, settings),
            "sizes": sizes, "members": members, "tiered": tiered,
            "tiered_probs": tiered_laws(members, "probs"), "data": data,
            "efficiencies": efficiencies(data)}


def runs_command(args):
    """`fit.py SOURCE ...`: prints every table, writes what is asked for, returns it as plain
    JSON."""
    if args.figure:
        load_pyplot(args.figure)  # refuses before any work
    if args.save and Path(args.save).suffix != ".jsonl":
        raise ValueError(f"--save {args.save} must end in .jsonl")
    results = read_results(args.what, args.where)
    # saved before they are counted once: a study keeps its own line of a shared run
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
    over_n = found["sizes"] + found["tiered"] + found["tiered_probs"]
    print_laws(over_n + found["data"], found["efficiencies"])
    if not over_n:
        print("No law over N: it needs three sizes of one recipe.")
    hours = sum(run.get("seconds") or 0 for run in runs) / 3600
    print(f"{len(runs)} runs, {hours:.1f} hours one after another; {len(ensembles)} ensembles.")
    if args.figure:
        draw_claims(args.figure, found)
    keys = ("recipe", "size", "params", "tokens", *AXES, "loss", "sd", "seeds")
    of_certificates = (*keys, "neighbours", "certified")
    return {"points": [pick(point, keys) for point in found["points"]],
            "sigma": {recipe: sigma for recipe, (sigma, _) in found["noise"].items()},
            "laws": over_n + found["members"] + found["data"],
            "data_efficiency": found["efficiencies"],
            "certificates": [pick(one, of_certificates) for one in found["certificates"]]}


def main():
    parser = argparse.ArgumentParser(
        description="Laws, limits and figures of runs or of any table of points.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.error = lambda message: parser.exit(
        2, f"{parser.prog}: error: {message} (see {parser.prog} --help)\n")
    parser.add_argument("what", nargs="*", default=["runs"],
                        help="folders of finished runs and .jsonl files of results; or the name of "
                        "a law, or several with commas, and a table of points, columns by name")
    parser.add_argument("--where", action="append", default=[], metavar="CONDITION",
                        help="keep only rows with COLUMN=VALUE, COLUMN<VALUE or COLUMN>VALUE")
    parser.add_argument("--list", action="store_true",
                        help="print every law: formula, columns, source")
    parser.add_argument("--json", action="store_true", help="print everything as the last line")
    parser.add_argument("--figure", help="of a law: also draw points, law and residuals; of runs: "
                        "also draw NAME-epochs, -sizes, -members, -data; a NAME.png, .pdf or .svg")
    runs = parser.add_argument_group("of runs")
    runs.add_argument("--save", metavar="FILE.jsonl",
                      help="also merge the results into this file, one a line")
    runs.add_argument("--csv", help="also write the results' numbers and texts to this file")
    add_law_options(parser)
    args = parser.parse_args()
    if args.list:
        return list_laws()
    if names_laws(args.what):
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
