"""Points to laws, limits and figures. Needs numpy and scipy (matplotlib for figures), nothing of
ours: copy it freely.

    python fit.py --list                                      # every law: formula, columns, source
    python fit.py chinchilla points.csv --bootstrap 1000      # by the method of its authors
    python fit.py power points.csv --x N --sigma 0.01:8       # the limit with its interval
    python fit.py chinchilla,kaplan points.csv --hold_out "C>1e21"    # which law predicts best
    python fit.py runs --save runs.jsonl --figure claims.png  # the paper's whole analysis of runs

A law is a declaration: link(target) = sum of linear coefficients x basis functions, where the
basis knows a few shape parameters (exponents, mostly). One solver fits them all: it scans the
shapes, each with bounded linear least squares for the rest, then polishes the best on the real
objective, until new starts bring nothing better.

The first half of this file reads as a textbook does: laws, solver, uncertainty, what to train,
tables, and the command that fits a law to a table. The second half is about runs of this kit.
"""
import argparse
import contextlib
import csv
import difflib
import io
import json
import math
import os
import re
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import combinations, groupby, product
from operator import itemgetter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from scipy.optimize import brentq, least_squares, linprog, minimize_scalar, nnls
from scipy.stats import f as f_distribution, linregress, norm, qmc, t as student_t


# --------------------------------------------------------------------------------------------------
# The laws
#
# A law of loss is nearly always linear in some numbers and not in others. In
# A / N^alpha + B / D^beta + E the best A, B and E follow from linear least squares once alpha and
# beta are given; these alone must be searched for. So a law is declared in two parts: `signs` names
# what it is linear in, `shape` names the rest, and `basis` computes from the rest the columns, here
# 1 / N^alpha, 1 / D^beta and 1.

def take_rows(columns, kept):
    """What the basis of most laws reads: the columns of the rows that count."""
    return SimpleNamespace(**{name: column[kept] for name, column in columns.items()})


@dataclass(frozen=True)
class Law:
    """link(target) = sum of coefficients x basis. shape maps shape parameters to the range they
    are sought in, signs maps coefficients to "+" (at least 0), "-" (at least 0 and subtracted) or
    "" (any).

    Its functions read p, the shape parameters, and c, what `prepare` made of the columns, both by
    attribute; eta is what the basis sums to, (rows,)."""
    formula: str
    source: str
    columns: tuple  # what it reads beside the target
    shape: dict
    signs: dict
    basis: Callable  # (p, c) -> a column, or a constant, for each coefficient
    target: str = "loss"
    # what the authors minimize: least squares, or Huber's loss of logs or of raw residuals
    method: str = "ls"
    logs: bool = False  # residuals are of logs by every method, as those of a line in logs
    link: Callable = lambda y, p, c: y  # target -> eta
    inverse: Callable = lambda eta, p, c: eta  # eta -> target
    derived: Callable = lambda p: {}  # parameters -> further quantities worth an interval
    prepare: Callable = take_rows  # (columns, kept) -> c, all that no parameter changes


def allocation(p):
    """Compute-optimal N* = G (C / 6)^a, D* = (C / 6)^(1 - a) / G of a Chinchilla law (arXiv
    2203.15556, eq. 4)."""
    p = SimpleNamespace(**p)
    # A or B may be 0, at its bound, where its log would not be finite
    log_ratio = np.log(p.alpha * max(p.A, 1e-300)) - np.log(p.beta * max(p.B, 1e-300))
    return {"log_G": log_ratio / (p.alpha + p.beta), "a": p.beta / (p.alpha + p.beta)}


def repeated(unique, total, decay):
    """Effective count of `total` of which `unique` are distinct (arXiv 2305.16264, eq. 5):
    repetitions decay in worth exponentially, and at most decay x unique are gained."""
    # a first epoch repeats nothing and counts in full
    return unique * (1 + decay * (1 - np.exp(-(total / unique - 1) / decay)))


def constrained_terms(p, c):
    """1 / N'^alpha, 1 / D'^alpha and the limit, of effective parameters and data (arXiv 2305.16264,
    eq. 5 to 7): beyond n parameters a unique token, parameters are in excess."""
    # a run shorter than one epoch sees fewer than U
    unique = np.minimum(c.T, c.U)
    # parameters beyond what the unique tokens can use count as repeated ones
    useful = np.minimum(c.N, p.n * unique)
    parameters = repeated(useful, c.N, p.RN)
    data = repeated(unique, c.T, p.RD)
    # one exponent for both, as its authors fit it
    return [parameters ** -p.alpha, data ** -p.alpha, 1.0]


def overfit_terms(p, c):
    """Chinchilla's terms, the penalty for repetition and the limit."""
    # a first epoch repeats nothing, and a negative number has no such power
    repetition = np.maximum(c.T / c.U - 1, 0.0)
    penalty = repetition ** p.kappa * c.N ** p.gamma / c.U ** p.delta
    return [c.N ** -p.alpha, c.T ** -p.beta, penalty, 1.0]


def overtrain_terms(p, c):
    """M^eta C^-eta, M^-eta C^-eta and the limit, with M = D / N and C = 6 N D."""
    # written with C and M, overtraining moves the curve and keeps its slope
    ratio, compute = c.D / c.N, 6 * c.N * c.D
    return [(ratio / compute) ** p.eta, (ratio * compute) ** -p.eta, 1.0]


def log_linear(*columns):
    """The Law y = k column1^a1 column2^a2 ..., linear in logs, whose exponents have any sign."""
    signs = {"log_k": "", **{f"a_{name}": "" for name in columns}}
    return Law(
        "y = k x1^a1 x2^a2 ..., x1, x2, ...: the columns of --x",
        "arXiv 2505.13738 (AdamW's timescale of D / N); 2406.19146 (best N of C, weights 1 / sd^2 "
        "of its log); 2503.04715 (best lr and batch size of N and D)",
        columns, {}, signs, lambda p, c: [1.0, *(np.log(getattr(c, name)) for name in columns)],
        target="y", logs=True,
        # the basis sums to the log of y
        link=lambda y, p, c: np.log(y), inverse=lambda eta, p, c: np.exp(eta),
        # exp overflows beyond 709
        derived=lambda p: {"k": np.exp(np.minimum(p["log_k"], 700.0))})


EXPONENT = (0.02, 2.5)  # where the usual exponents of N and D are sought

LAWS = {
    # the paper's law: over sizes, over budgets, and (with b = 1) over members of an ensemble
    "power": Law(
        "loss = A / x^b + E", "arXiv 2509.14786 sections 3, 4; 2010.14701", ("x",),
        dict(b=(0.01, 10)), dict(A="+", E="+"),
        lambda p, c: [c.x ** -p.b, 1.0]),
    "reciprocal": Law(
        "loss = A / x + E", "arXiv 2509.14786 section 4 (x = K)", ("x",),
        {}, dict(A="+", E="+"),
        lambda p, c: [1 / c.x, 1.0]),
    # laws of size and data, each token seen once
    "chinchilla": Law(
        "loss = A / N^alpha + B / D^beta + E",
        "arXiv 2203.15556 eq. 2; fit as 2404.10102; 2401.00448 with --inference", ("N", "D"),
        dict(alpha=EXPONENT, beta=EXPONENT), dict(A="+", B="+", E="+"),
        lambda p, c: [c.N ** -p.alpha, c.D ** -p.beta, 1.0],
        method="huber", derived=allocation),
    "kaplan": Law(
        "loss = (A / N^(alphaN / alphaD) + B / D)^alphaD",
        "arXiv 2001.08361 eq. 1.5 (N without embeddings)", ("N", "D"),
        dict(alphaN=(0.01, 1), alphaD=(0.01, 1)), dict(A="+", B="+"),
        lambda p, c: [c.N ** -(p.alphaN / p.alphaD), 1 / c.D],
        # not linear in A and B until the outer power is undone
        link=lambda y, p, c: y ** (1 / p.alphaD), inverse=lambda eta, p, c: eta ** p.alphaD),
    # laws of repeated data: T tokens seen, of which U are unique
    "data_constrained": Law(
        "loss = A / N'^alpha + B / D'^alpha + E; D' = U (1 + RD (1 - exp(-(T / U - 1) / RD))), "
        "N' likewise with RN and n U parameters, of which more are excess",
        "arXiv 2305.16264 eq. 5 to 7 (n = (A / B)^(1 / alpha) there)", ("N", "T", "U"),
        dict(alpha=EXPONENT, RD=(0.3, 1000), RN=(0.3, 1000), n=(1e-4, 1e4)),
        dict(A="+", B="+", E="+"), constrained_terms, method="huber"),
    "practical": Law(
        "loss = E + (L0 - E) h / (1 + h); h = a / N^alpha + b / T^beta + c N^gamma / U^delta; "
        "L0 = ln V where the vocabulary V is known", "arXiv 2605.09189", ("N", "T", "U"),
        dict(E=(0.05, 8), L0=(1, 20), alpha=(0.05, 3), beta=(0.05, 3), gamma=(0.05, 3),
             delta=(0.05, 5)),
        dict(a="+", b="+", c="+"),
        # a term each: too few parameters, too little training, too much repetition
        lambda p, c: [c.N ** -p.alpha, c.T ** -p.beta, c.N ** p.gamma / c.U ** p.delta],
        # the loss goes from the limit E (h = 0) to that of a guess, L0
        link=lambda y, p, c: (y - p.E) / (p.L0 - y),
        inverse=lambda eta, p, c: p.E + (p.L0 - p.E) * eta / (1 + eta)),
    "overfit": Law(
        "loss = A / N^alpha + B / T^beta + P (T / U - 1)^kappa N^gamma / U^delta + E",
        "after arXiv 2605.01640 (Chinchilla plus a penalty for repetition, whose form is ours)",
        ("N", "T", "U"),
        dict(alpha=EXPONENT, beta=EXPONENT, kappa=(0.05, 5), gamma=(0.05, 3), delta=(0.05, 5)),
        dict(A="+", B="+", P="+", E="+"), overfit_terms, method="huber"),
    # from small runs to large ones, and from loss to what is wanted of it
    "overtrain": Law(
        "loss = (a M^eta + b M^-eta) C^-eta + E; M = D / N, C = 6 N D", "arXiv 2403.08540 eq. 4",
        ("N", "D"), dict(eta=(0.01, 2)), dict(a="+", b="+", E="+"), overtrain_terms),
    "downstream": Law(
        "error = epsilon - k exp(-gamma loss)", "arXiv 2403.08540 eq. 5", ("loss",),
        dict(gamma=(0.02, 20)), dict(epsilon="+", k="-"),
        # from epsilon, the error of a guess, down as the loss falls
        lambda p, c: [1.0, np.exp(-p.gamma * c.loss)], target="error"),
    "unified": Law(
        "loss = a ln C + b", "arXiv 2404.19484 (extrapolates badly: it has no limit)", ("C",),
        {}, dict(a="", b=""),
        lambda p, c: [np.log(c.C), 1.0]),
    # what else is chosen: the vocabulary, the share of a domain, hyperparameters
    "vocabulary": Law(
        "loss = A1 / Nnv^beta + A2 / Nv^alpha2 + B / D^beta - E; Nv = V d, loss: "
        "unigram-normalized", "arXiv 2407.13623 eq. 6", ("Nnv", "Nv", "D"),
        dict(alpha2=EXPONENT, beta=EXPONENT), dict(A1="+", A2="+", B="+", E="-"),
        lambda p, c: [c.Nnv ** -p.beta, c.Nv ** -p.alpha2, c.D ** -p.beta, 1.0],
        method="raw_huber"),  # a normalized loss is negative, so it has no log
    "dcpt": Law(
        "loss = A / N^alpha + B r^eta / D^beta + C / (r + epsilon)^gamma + E; r: share of the "
        "domain's tokens", "arXiv 2406.01375", ("N", "D", "r"),
        dict(alpha=EXPONENT, beta=EXPONENT, eta=(0.05, 5), epsilon=(1e-3, 1), gamma=(0.05, 5)),
        dict(A="+", B="+", C="+", E="+"),
        lambda p, c: [c.N ** -p.alpha, c.r ** p.eta / c.D ** p.beta,
                      (c.r + p.epsilon) ** -p.gamma, 1.0],
        method="huber"),
    "log_linear": log_linear("x"),
}


# --------------------------------------------------------------------------------------------------
# Laws of whole loss curves: the schedule of the learning rate counts, also where no loss is read

WARMUP_PIECES = 16  # an assumed warm-up is a line of so many pieces


def read_schedule(step, lr):
    """(area, changes) of one curve, its rows in order of steps. area: the sum of lr over all steps
    up to each row, (rows,). changes: where lr changes, (6, changes): the change; its fall (0 in
    warm-up); its length in steps; the step of its end; lr at its middle step, and the area before
    that."""
    # before the first row lr rises from 0 at step 0, a linear warm-up in pieces of whole steps;
    # there are none where that row is at step 0
    warmup = np.unique(np.round(np.linspace(0, step[0], WARMUP_PIECES + 1)))[:-1]
    lr = np.concatenate([lr[0] * warmup / max(step[0], 1), lr])
    step = np.concatenate([warmup, step])
    change, length = np.diff(lr), np.diff(step)
    # a sum over steps, not an integral: the m steps after lr_0 along a line to lr_1 sum to
    # m lr_0 + (lr_1 - lr_0) (1 + ... + m) / m, and 1 + ... + m = m (m + 1) / 2
    area = length * lr[:-1] + change * (length + 1) / 2
    area = np.concatenate([[0.0], np.cumsum(area)])
    # between two points lr changes by a little at each step; all of it counts at the middle one
    middle = (length + 1) / 2
    lr_there = lr[:-1] + change * middle / length
    area_before = area[:-1] + (middle - 1) * (lr[:-1] + lr_there) / 2
    # the first rise is warm-up, in which Tissue et al. hold lr at its peak: nothing falls
    fall = np.where(np.cumsum(change <= 0) > 0, -change, 0.0)
    changes = np.stack([change, fall, length, step[1:], lr_there, area_before])
    # the assumed warm-up has no rows of its own, but its rise is a change like others
    return area[len(warmup):], changes[:, change != 0]


def read_changes(columns, kept):
    """What the laws of curves read: S1, the area under lr up to each row that counts, (rows,), and
    every pair of such a row and an earlier change k of its curve, (pairs,)."""
    # no parameter moves any of this, so that a fit computes it once; pairs go by the million in
    # long curves
    area_of_row, changes, pairs, known = np.zeros(len(kept)), [], [], 0
    for curve in np.unique(columns["curve"]):
        rows = np.flatnonzero(columns["curve"] == curve)
        rows = rows[np.argsort(columns["step"][rows], kind="stable")]
        area_of_row[rows], of_curve = read_schedule(columns["step"][rows], columns["lr"][rows])
        # a change counts from the step on where it ends
        end, rows = of_curve[3], rows[kept[rows]]
        row, k = np.nonzero(end <= columns["step"][rows][:, None])
        # k counts from the curve's first change; `known` changes of other curves come before it
        pairs.append(np.stack([rows[row], known + k]))
        changes.append(of_curve)
        known += len(end)
    row, k = np.concatenate(pairs, axis=1)
    # rows may come in any order, but the sums below want a row's pairs together
    in_order = np.argsort(row, kind="stable")
    row, k = row[in_order], k[in_order]
    change, fall, length, end, lr, area_before = np.concatenate(changes, axis=1)
    return SimpleNamespace(
        # `change` is by pair; lr, fall and length are by change, lr above 0 for its power -gamma
        S1=area_of_row[kept], lr=np.maximum(lr, 1e-12), change=change[k], fall=fall, length=length,
        # from the change to the row
        area_since=np.maximum(area_of_row[row] - area_before[k], 0.0),
        steps_since=columns["step"][row] - end[k],
        # the pairs of the n-th row that counts are those from first[n] to first[n + 1]
        k=k, first=np.searchsorted(row, [*np.flatnonzero(kept), len(kept)]))


def sum_changes(c, terms):
    """The sum over each row's earlier changes of a term of every pair, (rows,)."""
    # differences of one running sum: no loop over rows
    return np.diff(np.concatenate([[0.0], np.cumsum(terms)])[c.first])


def annealed(c, memory):
    """S2 of lr annealing (arXiv 2408.11029): a momentum of the falls of lr, summed over steps,
    (rows,)."""
    # a fall at one step adds 1 + memory + memory^2 + ... for every step since: a geometric series,
    # and the sum of it over the steps of one change is another
    forget = 1 - memory
    # lasting: what it adds in the end; fading: how much of that is still to come at its end
    lasting = c.fall / forget
    fading = memory * (1 - memory ** c.length) * lasting / c.length / forget
    return sum_changes(c, lasting[c.k] - fading[c.k] * memory ** c.steps_since)


def multi_power_drop(c, p):
    """How far all earlier changes of lr move the loss of each row, (rows,), before the factor B
    (arXiv 2503.12811, eq. 3)."""
    # a change at a low lr takes effect within less area
    speed = p.C * c.lr ** -p.gamma
    return sum_changes(c, c.change * (1 - (1 + speed[c.k] * c.area_since) ** -p.beta))


LAWS["lr_annealing"] = Law(
    "loss = L0 + A S1^-alpha - C S2; S1: area under lr, S2: momentum lambda of its falls, summed",
    "arXiv 2408.11029 eq. 1", ("step", "lr", "curve"),
    # lambda is close to 1: what it forgets each step is sought on a log scale
    dict(alpha=(0.02, 3), forget=(1e-4, 0.05)), dict(L0="+", A="+", C="-"),
    lambda p, c: [1.0, c.S1 ** -p.alpha, annealed(c, 1 - p.forget)],
    method="huber", derived=lambda p: {"lambda": 1 - p["forget"]}, prepare=read_changes)
LAWS["multi_power"] = Law(
    "loss = L0 + A S1^-alpha + B sum_k (lr_k - lr_(k-1)) (1 - (1 + C lr_k^-gamma (S1 - "
    "S1_(k-1)))^-beta)", "arXiv 2503.12811 eq. 3", ("step", "lr", "curve"),
    dict(alpha=(0.05, 3), beta=(0.05, 3), gamma=(0.05, 3), C=(0.01, 100)),
    dict(L0="+", A="+", B="+"),
    lambda p, c: [1.0, c.S1 ** -p.alpha, multi_power_drop(c, p)],
    method="huber", prepare=read_changes)


# --------------------------------------------------------------------------------------------------
# What a fit minimizes
#
# A Problem holds all that decides a fit, so that to fit again with other weights or with a
# parameter held is to replace one of its fields. A Fit is a point of it: a minimum, and what refits
# told of it.

@dataclass
class Problem:
    """A law, points and a method.

    columns: name -> (rows,); y: targets, (rows,); weights: of the terms of the objective, rows of
    weight 0 being left out; method: "ls" least squares on y (on log y for a law in logs), "huber"
    and "lad" (absolute deviations) on log y, "raw_huber" on y, None that of the law's authors;
    delta: the width of Huber's loss; fixed: name -> a value, or for a shape parameter the name of
    the one that it equals.

    The solver moves variables z of about size 1: logs of the shape parameters that are sought, then
    the coefficients that are sought, of basis columns scaled to mean square 1.
    """
    law: Law
    columns: dict
    y: np.ndarray
    weights: np.ndarray = None
    method: str = None
    delta: float = 1e-3
    fixed: dict = field(default_factory=dict)

    def __post_init__(self):
        law, self.method = self.law, self.method or self.law.method
        self.y = np.asarray(self.y, dtype=np.float64)
        # all points count alike unless the caller says otherwise
        if self.weights is None:
            self.weights = np.ones(len(self.y))
        self.weights = np.asarray(self.weights, dtype=np.float64)
        # c, target, w: of the rows that count
        kept = self.weights > 0
        self.c = law.prepare(self.columns, kept)
        self.target = self.y[kept]
        self.w = self.weights[kept]
        # whether residuals are differences of logs, that is relative errors
        self.on_logs = law.logs or self.method in ("huber", "lad")
        self.shape = [name for name in law.shape if name not in self.fixed]
        self.terms = [name for name in law.signs if name not in self.fixed]
        self.names = [*self.shape, *self.terms]
        self.shapes = len(self.shape)
        # signs are in the basis, so that what is subtracted is at least 0 as well
        self.free = np.array([law.signs[name] == "" for name in self.terms], dtype=bool)
        self.log_ranges = np.log(np.array([law.shape[name] for name in self.shape]).reshape(-1, 2))
        # shapes lie in the law's ranges, coefficients at 0 or above but where they are free
        self.low = np.concatenate([self.log_ranges[:, 0], np.where(self.free, -np.inf, 0.0)])
        self.high = np.concatenate([self.log_ranges[:, 1], np.full(len(self.free), np.inf)])

    def with_fixed(self, values):
        """A dict of parameters with those that are fixed, or equal to another, added."""
        # a fixed value is a number, or the name of a parameter in `values`
        equal = {name: values.get(value, value) for name, value in self.fixed.items()}
        return {**values, **equal}

    def basis(self, logs):
        """(shape parameters, basis of the terms sought (rows, terms), sum of the fixed terms) at
        these logs of the shapes sought."""
        p = SimpleNamespace(**self.with_fixed(dict(zip(self.shape, np.exp(logs)))))
        # filled in place: a fit comes here some hundred thousand times
        matrix, held = np.empty((len(self.target), len(self.terms))), 0.0
        for (name, sign), column in zip(self.law.signs.items(), self.law.basis(p, self.c)):
            if sign == "-":
                column = -column
            if name in self.fixed:
                held = held + self.fixed[name] * column
            else:
                # a constant term, as the limit, is one number
                matrix[:, self.terms.index(name)] = column
        return p, matrix, held

    def sum_terms(self, z):
        """(shape parameters, basis scaled to mean square 1, what the basis sums to (rows,))."""
        p, matrix, held = self.basis(z[:self.shapes])
        # columns of one size, else N^-alpha and 1 differ by orders of magnitude
        matrix = matrix / column_sizes(matrix)
        return p, matrix, matrix @ z[self.shapes:] + held

    def residuals_of(self, eta, p):
        """The residuals where the basis sums to eta, (rows,)."""
        # most laws are what the basis sums to; some are a function of it
        value = self.law.inverse(eta, p, self.c)
        if self.on_logs:
            return np.log(value / self.target)
        return value - self.target

    def residuals(self, z):
        """Prediction minus target, of logs where the law or the method wants logs, (rows,)."""
        p, _, eta = self.sum_terms(z)
        return self.residuals_of(eta, p)

    def jacobian(self, z):
        """Derivatives of the residuals by z, (rows, variables)."""
        # by shapes as central differences, good to 10 digits in such variables
        steps = 1e-5 * np.eye(len(z))[:self.shapes]
        by_shape = [(self.residuals(z + step) - self.residuals(z - step)) / 2e-5 for step in steps]
        # by coefficients a complex step, exact to machine precision, as it has no cancellation
        p, matrix, eta = self.sum_terms(z)
        by_eta = self.residuals_of(eta + 1e-30j, p).imag / 1e-30
        by_shape = np.array(by_shape).reshape(-1, len(self.target)).T
        return np.concatenate([by_shape, matrix * by_eta[:, None]], axis=1)

    def value(self, z):
        """What is minimized: the sum of w r^2 / 2, of w Huber(r) or of w |r|."""
        r = np.abs(self.residuals(z))
        if self.method == "ls":
            loss = 0.5 * r ** 2
        elif self.method == "lad":
            loss = r
        else:
            # beyond delta a line: an outlier pulls no harder than a point at delta
            loss = np.where(r < self.delta, 0.5 * r ** 2, self.delta * (r - 0.5 * self.delta))
        value = float((self.w * loss).sum())
        # where the law overflows nothing is to be found
        return value if np.isfinite(value) else math.inf

    def parameters(self, z):
        """Every parameter by name, in the law's order, the fixed ones as well."""
        logs, coefficients = z[:self.shapes], z[self.shapes:]
        _, matrix, _ = self.basis(logs)
        # back to raw units
        sought = [*np.exp(logs), *(coefficients / column_sizes(matrix))]
        values = self.with_fixed(dict(zip(self.names, sought)))
        return {name: float(values[name]) for name in [*self.law.shape, *self.law.signs]}


def column_sizes(matrix):
    """The root mean square of each column, never 0, (columns,)."""
    return np.sqrt((matrix * matrix).sum(0) / len(matrix)) + 1e-300


@dataclass
class Fit:
    """A minimum of a problem: `objective`, `params` (name -> value), and the refits of bootstrap()
    if there were any."""
    problem: Problem
    z: np.ndarray
    done: bool  # whether new starts no longer brought anything better
    draws: list = ()  # [name -> value], a dict of quantities() for each refit
    drawn_from: int = 0  # points, or curves

    def __post_init__(self):
        self.objective = self.problem.value(self.z)
        self.params = self.problem.parameters(self.z)

    @property
    def at_bounds(self):
        """Names of the parameters at a bound: the points do not determine them, or do not follow
        the law."""
        problem, shapes = self.problem, self.problem.shapes
        distance = np.minimum(self.z - problem.low, problem.high - self.z)[:shapes]
        coefficients = self.z[shapes:]
        # a term that vanishes beside the largest is at its bound of 0
        zero = ~problem.free & (coefficients < 1e-9 * np.abs(coefficients).max(initial=0))
        # distances are of logs: within 0.1% counts as there
        bound = [*(distance < 1e-3), *zero]
        return [name for name, there in zip(problem.names, bound) if there]

    @property
    def prediction(self):
        """The law's prediction at every row, (rows,)."""
        with np.errstate(all="ignore"):
            return predict(self.problem.law, self.params, self.problem.columns)

    def quantities(self):
        """The parameters and what is derived from them."""
        derived = self.problem.law.derived(self.params)
        return self.params | {name: float(value) for name, value in derived.items()}


def predict(law, params, columns):
    """The law's prediction at a dict of columns, (rows,); params: name -> value."""
    rows = len(next(iter(columns.values())))
    # with every parameter fixed the sum of the fixed terms is all there is
    problem = Problem(law, columns, np.ones(rows), fixed=params)
    # no shapes are sought
    p, _, eta = problem.basis([])
    return law.inverse(eta, p, problem.c)


# --------------------------------------------------------------------------------------------------
# The solver
#
# The objective has several minima as soon as exponents are sought, so no single descent is trusted:
# 1. scan: at many shapes the best coefficients, by linear least squares, and what they leave;
# 2. polish: from the best of these that lie apart, descend on the real objective in all variables;
# 3. repeat from new starts, beside the best minimum and far from it, until nothing better comes and
#    two starts have reached the same minimum;
# 4. finish: follow the best one to all its digits.

def fit(law, columns, y, weights=None, method=None, delta=1e-3, fixed=None):
    """The Fit of a Law to columns (name -> array) and targets y, (rows,); arguments as those of
    Problem. Raises ValueError when the law is finite at no start."""
    return solve(Problem(law, columns, y, weights, method, delta, fixed or {}))


FEW_ROWS = 120  # of curves, on which the search begins


@np.errstate(all="ignore")  # overflow at an absurd start is a bad start, no more
def solve(problem):
    """The Fit of a problem, wherever its minimum lies. Raises ValueError."""
    # long curves cost much to evaluate and hold little more than a part of their rows
    many = len(problem.target) > 2 * FEW_ROWS
    if many and "curve" in problem.law.columns:
        reached, done = search_few_rows(problem)
    else:
        reached, done = search(problem, shape_starts(problem.log_ranges, 200))
    if not reached:
        raise ValueError("the law is finite at none of the minima that a few rows gave")
    value, z = reached[0]
    # the last step may fail where the minimum is flat; then what the search had stands
    exact = finish(problem, z)
    if problem.value(exact) < value:
        z = exact
    return Fit(problem, z, done)


@np.errstate(all="ignore")
def refit(problem, starts, each=1):
    """The Fit of a problem near one that was solved, without a search: what polishing reaches from
    the shapes of the best `each` of some starts, dicts name -> value. Raises ValueError."""
    shapes = [[start[name] for name in problem.shape] for start in starts]
    shapes = np.array(shapes, dtype=np.float64).reshape(len(starts), -1)
    # a step around a minimum may leave the law's ranges
    shapes = np.clip(shapes, *np.exp(problem.log_ranges.T))
    reached, _ = search(problem, shapes, each, rounds=0)
    return Fit(problem, reached[0][1], True)


def refit_around(problem, params):
    """The Fit from the shapes of `params` and around them: of one shape all over its range, of
    several by steps of a fifth in each, enough to step over the ridges near a minimum."""
    starts = [params]
    # one shape is cheap to scan whole; several would need a grid
    if problem.shapes == 1:
        for shape in shape_starts(problem.log_ranges, 1):
            starts.append({problem.shape[0]: shape[0]})
    else:
        for name in problem.shape:
            for factor in (0.8, 1.25):
                starts.append({**params, name: params[name] * factor})
    return refit(problem, starts, each=4)


def search(problem, shapes, each=8, rounds=11):
    """([(value, z)] of the minima reached, the best first; whether the search is done).

    A round polishes the best starts that are left and some steps from the best minimum. The search
    is done when two starts have reached the best and a round (two of more than two shapes) brought
    nothing better. Raises ValueError where the law is finite at no start.
    """
    starts = scan(problem, shapes)
    if not starts:
        raise ValueError("no start of this law fits these points; check their units and columns")
    if problem.shapes == 1:  # the scan of one shape is fine enough to see every basin
        each = min(each, 4)
    # the first round takes the best starts alone and leaves the rest to later ones
    chosen, left = take_apart(problem, starts, each)
    reached = polish_all(problem, chosen)
    if problem.shapes == 0:  # linear: there is one minimum
        return reached, True
    # until finish() "lad" is minimized only as a narrow Huber's loss, so it is met less closely
    tolerance = {"ls": 1e-6, "lad": 1e-3}.get(problem.method, 1e-4)
    # rounds since something better came, and how many of them are enough
    quiet, enough = 0, 1 if problem.shapes < 3 else 2
    rng = np.random.default_rng(0)
    for _ in watched(range(rounds), "search, round"):
        before, best = reached[0]
        # half the starts far from the best minimum, half beside it
        chosen, left = take_apart(problem, left, each // 2)
        # steps of a factor of 1.6 or so in each shape: a basin beside the best may be deeper
        hops = best[:problem.shapes] + rng.normal(0, 0.5, (each - len(chosen), problem.shapes))
        chosen += scan(problem, np.exp(np.clip(hops, *problem.log_ranges.T)))
        reached = sorted(reached + polish_all(problem, chosen), key=itemgetter(0))
        least = reached[0][0]
        quiet += 1
        if least < before * (1 - tolerance):
            quiet = 0
        # one start alone may have been lucky: others could have found a deeper minimum still
        same = [value for value, _ in reached if value <= least * (1 + tolerance) + 1e-20]
        if len(same) > 1 and quiet >= enough:
            return reached, True
    return reached, False


def search_few_rows(problem):
    """search() where loss curves have many rows: they are smooth, so that a few rows tell where to
    look, and all of them what is best there."""
    counted = np.flatnonzero(problem.weights)
    # evenly, so that every curve and phase is there
    few = counted[::len(counted) // FEW_ROWS]
    some = {name: column[few] for name, column in problem.columns.items()}
    rough = replace(problem, columns=some, y=problem.y[few], weights=None)
    reached, done = search(rough, shape_starts(problem.log_ranges, 100), each=4)
    best, _ = take_apart(problem, reached, 3)
    # at these shapes the coefficients are sought again, on all rows
    return scan(problem, [np.exp(z[:problem.shapes]) for _, z in best]), done


def shape_starts(ranges, each):
    """Shape parameters to start from, (starts, shapes), within ranges, (shapes, 2), of their logs:
    a grid for one or two, for more a Latin hypercube of `each` starts a parameter."""
    low, high = ranges.T
    if len(low) > 2:
        # a grid would grow with a power of the number of shapes
        sample = qmc.LatinHypercube(len(low), rng=0).random(each * len(low))
        return np.exp(qmc.scale(sample, low, high))
    # in logs 80 exponents are a tenth apart, 16 a third: near enough to polish from
    count = {0: 1, 1: 80, 2: 16}[len(low)]
    axes = [np.linspace(a, b, count) for a, b in ranges]
    return np.exp(np.array(list(product(*axes))))


def scan(problem, shapes):
    """[(value, z)] of the best coefficients at each of the shapes, the best first."""
    starts = [best_coefficients(problem, shape) for shape in shapes]
    found = [(problem.value(z), z) for z in starts if z is not None]
    # a start where the law is not finite is none
    return sorted((pair for pair in found if pair[0] < math.inf), key=itemgetter(0))


def take_apart(problem, found, count):
    """(chosen, left): up to `count` pairs (value, z) of `found`, the first ones that lie apart in
    their shapes, so that they may lead to different minima; and all others."""
    chosen, left = [], []
    for value, z in found:
        # starts within 15% of each other in every shape would end in one place
        near = [np.abs(z - other)[:problem.shapes].max(initial=0) < 0.15 for _, other in chosen]
        if len(chosen) < count and not any(near):
            chosen.append((value, z))
        else:
            left.append((value, z))
    return chosen, left


def polish_all(problem, chosen):
    """[(value, z)] of starts and of the minima near them, the best first."""
    polished = [polish(problem, z) for _, z in chosen]
    # the starts stay in the list, as a descent may end where the law is not finite
    found = chosen + [(problem.value(z), z) for z in polished]
    return sorted(found, key=itemgetter(0))


def best_coefficients(problem, shape):
    """z, (variables,), at these shape parameters with the best coefficients for them, to first
    order; None if the law is not finite there."""
    p, matrix, held = problem.basis(np.log(shape))
    # least squares of what the basis sums to, not of the loss: near enough for a start
    target = problem.law.link(problem.target, p, problem.c) - held
    if not (np.isfinite(matrix).all() and np.isfinite(target).all()):
        return None
    weights = np.sqrt(problem.w)
    if problem.on_logs and not problem.law.logs:
        weights = weights / problem.target  # d log y = dy / y
    coefficients = bounded_least_squares(
        matrix * weights[:, None], target * weights, problem.free)
    return np.concatenate([np.log(shape), coefficients * column_sizes(matrix)])


def bounded_least_squares(matrix, y, free):
    """argmin |matrix x - y| with x >= 0 but where `free`; columns are first brought to one size."""
    if matrix.shape[1] == 0:  # all are fixed; nnls aborts the process then
        return np.zeros(0)
    # nnls stops at a tolerance that is absolute, so the columns must be of one size
    size = column_sizes(matrix)
    scaled = matrix / size
    # a free coefficient is the difference of two that are at least 0
    x, _ = nnls(np.concatenate([scaled, -scaled[:, free]], axis=1), y)
    x[:len(size)][free] -= x[len(size):]
    return x[:len(size)] / size


def polish(problem, z, precision=1e-9):
    """A local minimum near z. Huber's loss starts as wide as the residuals and is narrowed to the
    width asked for: narrow at once, only the few points inside it would steer the descent. "lad" is
    its limit, of no width."""
    z = np.clip(z, problem.low, problem.high)
    width = float(np.median(np.abs(problem.residuals(z)))) + 1e-300
    # no width for least squares; hardly any for absolute deviations
    last = {"ls": math.inf, "lad": 1e-3 * width}.get(problem.method, problem.delta)
    while width > last:
        z = descend(problem, z, width, 1e-3)
        # by little, so that each descent begins near its end
        width = width / 5
    return descend(problem, z, last, precision)


def descend(problem, z, width, precision):
    """Where scipy's least_squares ends from z, with Huber's loss of this width; an infinite width
    is plain least squares."""
    def huber(square):  # rho, rho', rho'' of the squared residual
        # a parabola inside the width, a line of the same slope outside
        inside, root = square <= width ** 2, np.sqrt(np.maximum(square, 1e-300))
        rho = np.where(inside, square, 2 * width * root - width ** 2)
        slope = np.where(inside, 1.0, width / root)
        bend = np.where(inside, 0.0, -0.5 * width / (root * square + 1e-300))
        # weighted here; scipy minimizes half the sum of rho, which is Problem.value()
        return problem.w * np.stack([rho, slope, bend])

    # a search need not follow every flat valley to its end; finish() does
    evaluations = 60 if precision > 1e-12 else 500
    try:
        return least_squares(
            problem.residuals, z, problem.jacobian, bounds=(problem.low, problem.high),
            x_scale="jac", loss=huber, xtol=precision, ftol=precision, gtol=1e-15,
            max_nfev=evaluations).x
    except (ValueError, np.linalg.LinAlgError):  # not finite here: no better than its start
        return z


def finish(problem, z):
    """The minimum near z to all its digits. That of absolute deviations is a corner, where as many
    points as parameters are met exactly: linear programs of the linearized residuals, in a trust
    region, find it."""
    if problem.method != "lad":
        return polish(problem, z, 1e-15)
    value, radius, eye = problem.value(z), 0.1, np.eye(len(problem.target))
    # unknowns: the step, at no cost, then a size for each residual, at least r and at least -r
    cost = np.concatenate([np.zeros(len(z)), problem.w])
    while radius > 1e-9:
        # in the region the law counts as linear, and the sum of |r| is a linear program
        r, slope = problem.residuals(z), problem.jacobian(z)
        low, high = np.maximum(problem.low - z, -radius), np.minimum(problem.high - z, radius)
        bounds = [*zip(low, high), *[(0, None)] * len(r)]
        step = linprog(cost, np.block([[slope, -eye], [-slope, -eye]]), np.concatenate([-r, r]),
                       bounds=bounds).x
        if step is None:  # the program has no solution: what is there stands
            break
        trial = np.clip(z + step[:len(z)], problem.low, problem.high)
        trial_value = problem.value(trial)
        if trial_value < value * (1 - 1e-13):
            z, value, radius = trial, trial_value, 2 * radius
        else:
            # the law bends too much for a step so long
            radius = radius / 4
    return z


def watched(items, what):
    """The items of a sequence; a line on standard error every 5 seconds that they take."""
    # quiet for a while: most fits are done by then
    said = time.monotonic()
    for number, item in enumerate(items, 1):
        if time.monotonic() - said > 5:
            said = time.monotonic()
            print(f"{what} {number:,} of {len(items):,}", file=sys.stderr, flush=True)
        yield item


# --------------------------------------------------------------------------------------------------
# Uncertainty
#
# Four questions, four tools. How far may E lie from its estimate: the profile, by least squares.
# How far may anything lie: the bootstrap, by any method. Does one point decide: leave it out. Do
# the points tell a parameter at all: see whether it can move while the loss hardly changes.

def noise_of(found, sigma=None, freedom=math.inf):
    """(standard deviation of a point of weight 1, its degrees of freedom): as given, or estimated
    from the residuals: from their squares for "ls", from their median otherwise."""
    if sigma is not None:
        return sigma, freedom
    problem = found.problem
    # of weight 1: a point of weight w has a w-th of that variance
    r = problem.residuals(found.z) * np.sqrt(problem.w)
    freedom = len(r) - len(found.z)
    # as many parameters as points leave nothing to tell the noise by
    if freedom < 1:
        return 0.0, freedom
    if problem.method == "ls":
        return float(np.sqrt((r ** 2).sum() / freedom)), freedom
    # 1.4826 medians of |r| are a normal's standard deviation, and outliers hardly move a median;
    # the root makes up for what the parameters have taken out of the residuals
    return 1.4826 * float(np.median(np.abs(r))) * math.sqrt(len(r) / freedom), freedom


def spread_of(found):
    """R, (variables, variables), with R^T R = (J^T J)^-1, J the slopes of the weighted residuals.
    To first order the error of a variable is the length of its column times the noise of a point of
    weight 1; very long where J is singular."""
    slope = found.problem.jacobian(found.z) * np.sqrt(found.problem.w)[:, None]
    # columns of one size, so that a small singular value means a direction without a slope
    size = np.sqrt((slope ** 2).sum(0)) + 1e-150
    _, singular, axes = np.linalg.svd(slope / size, full_matrices=False)
    return axes / np.maximum(singular, 1e-10)[:, None] / size


@np.errstate(all="ignore")
def not_determined(found, sigma=None, freedom=math.inf):
    """Names of the parameters that the points do not determine: within its 95% interval a shape may
    move by more than a factor of two, or a term by more than itself. sigma, freedom: of
    noise_of()."""
    problem, z = found.problem, found.z
    noise, freedom = noise_of(found, sigma, freedom)
    # a loss is never taken to be known to more than four digits
    floor = 1e-4
    # of logs the floor is relative already
    if not problem.on_logs:
        floor = 1e-4 * float(np.sqrt((problem.target ** 2).mean()))
    # as the noise, of a point of weight 1
    floor = floor * math.sqrt(problem.w.mean())
    reach = student_t.ppf(0.975, freedom) if freedom > 0 else math.inf
    # exact points: the floor above is the noise, and it is known
    if noise == 0:
        reach = 1.96
    # half of each variable's 95% interval if the law were linear
    moves = reach * max(noise, floor) * np.linalg.norm(spread_of(found), axis=0)
    # shapes are logs, so a factor of two is log 2
    allowed = np.concatenate([np.full(problem.shapes, math.log(2)), np.abs(z[problem.shapes:])])
    allowed[problem.shapes:][problem.free] = math.inf  # a free coefficient may be 0
    # not "moves > allowed": nan, of a slope that overflows, is too far as well
    return [name for name, far in zip(problem.names, ~(moves <= allowed)) if far]


@np.errstate(all="ignore")
def standard_errors(found, sigma=None, freedom=math.inf):
    """{name: s.e.} of the parameters sought, by least squares to first order; none without a degree
    of freedom, and none of a parameter at its bound. sigma, freedom: of noise_of()."""
    problem, z = found.problem, found.z
    noise, freedom = noise_of(found, sigma, freedom)
    # the other methods have no such simple error: their residuals have heavy tails
    if problem.method != "ls" or freedom < 1:
        return {}
    # z holds logs and scaled coefficients: the slope of each parameter in each variable
    change = []
    for step in 1e-5 * np.eye(len(z)):
        up, down = problem.parameters(z + step), problem.parameters(z - step)
        change.append([(up[name] - down[name]) / 2e-5 for name in problem.names])
    errors = noise * np.linalg.norm(spread_of(found) @ np.array(change), axis=0)
    # at a bound an estimate can move to one side only
    return {name: float(error) for name, error in zip(problem.names, errors)
            if name not in found.at_bounds}


def profile(found, sigma=None, freedom=math.inf, name="E"):
    """((low, high), fit): the 95% profile-likelihood interval of the limit of a least-squares fit,
    None without a degree of freedom, and the fit it belongs to: a better one, if the search along
    the limit came upon it.

    sigma: the noise of a point of weight 1, if known from seeds, and the degrees of freedom it
    rests on. Otherwise it is estimated from the residuals, with points - parameters degrees. The
    threshold, t^2 = F(1, freedom), is wide when they are few, as it must be. name: the limit's.
    """
    problem = found.problem
    noise, degrees = noise_of(found, sigma, freedom)
    if degrees < 1:
        return None, found
    # twice the objective over sigma^2 grows by t^2 from the best fit to an end of the interval
    allowed = 0.5 * noise ** 2 * student_t.ppf(0.975, degrees) ** 2
    refits = [found]

    def excess(limit, anew=False):
        # the limit is held, all else is sought: from where it was, as it moves little, or anew
        held = replace(problem, fixed={**problem.fixed, name: limit})
        if anew:
            again = solve(held)
        else:
            again = refit(held, [refits[-1].params, found.params])
        # kept, since one of them may turn out better than the fit
        refits.append(again)
        return refits[-1].objective - found.objective - allowed

    # A law lies above its limit: one held this far above all points misses each of them by `top`,
    # which alone exceeds what is allowed. So the interval ends below it.
    top = math.sqrt(2 * (found.objective + allowed) / problem.weights.sum())
    # from below the bound is 0, as a loss is positive
    ends = []
    for bound in (0.0, float(np.max(problem.target)) + top):
        end, before = find_end(excess, found.params[name], bound), None
        # the descents may have stayed in one basin: where another is deeper they go on from there
        while end not in (before, bound) and excess(end, anew=True) < -1e-3 * allowed:
            before, end = end, find_end(excess, end, bound)
        ends.append(end)
    # a refit below the minimum: the fit lies in the wrong basin, and so does its interval
    lowest = min(refits, key=lambda one: one.objective)
    if lowest.objective < found.objective * (1 - 1e-6):
        again = refit_around(problem, lowest.params)
        if again.objective < found.objective * (1 - 1e-6):
            return profile(again, sigma, freedom, name)
    return tuple(ends), found


def find_end(excess, center, bound):
    """Where excess, negative at the center, crosses zero toward the bound; the bound if nowhere."""
    # a limit of 0 lies at its bound already
    if bound == center:
        return float(bound)
    inner = center
    for share in 4.0 ** np.arange(-7, 1):  # outward in growing steps
        outer = center + share * (bound - center)
        if excess(outer) >= 0:
            if excess(inner) >= 0:  # without noise the interval is a point
                return float(inner)
            # the crossing lies between the last two
            return float(brentq(excess, inner, outer, xtol=1e-7))
        inner = outer
    return float(bound)


def bootstrap(found, count, seed=0):
    """The same Fit with `draws`, the quantities of `count` refits to points drawn with replacement;
    curves are drawn whole. Refits start at the fit; draws of too few different points are drawn
    again. Raises ValueError where there are too few to draw from."""
    problem, rng, draws = found.problem, np.random.default_rng(seed), []
    # a row of weight 0 is no point
    counted = problem.weights > 0
    needed, names, groups = len(found.z), "points", np.arange(counted.sum())
    if "curve" in problem.law.columns:
        # the rows of a curve have their error in common: drawn by row, intervals are too narrow
        needed, names = 2, "curves"
        groups = np.unique(problem.columns["curve"][counted], return_inverse=True)[1]
    total = len(np.unique(groups))
    if total <= needed:
        raise ValueError(f"a bootstrap needs more than {needed} {names} to draw from, not {total}")
    for _ in watched(range(count), "bootstrap, refit"):
        drawn = np.zeros(total)
        # fewer different points than parameters would be met exactly by many laws
        while np.count_nonzero(drawn) < needed:
            drawn = rng.multinomial(total, np.full(total, 1 / total))
        weights = problem.weights.copy()
        # a point drawn twice weighs twice
        weights[counted] *= drawn[groups]
        draws.append(refit(replace(problem, weights=weights), [found.params]).quantities())
    return replace(found, draws=draws, drawn_from=total)


def percentile_interval(found, values, estimate):
    """(low, high), 95%, of an estimate that follows from a fit, whose value for each draw of its
    bootstrap is in `values`."""
    # a bootstrap's variance is that of the residuals, too small by (points - parameters) / points,
    # and its percentiles are a normal's, not a t's; both are made good, by more for fewer points
    freedom = max(found.drawn_from - len(found.z), 1)
    factor = math.sqrt(found.drawn_from / freedom)
    factor = factor * student_t.ppf(0.975, freedom) / norm.ppf(0.975)
    low, high = np.percentile(values, [2.5, 97.5])
    return float(estimate + (low - estimate) * factor), float(estimate + (high - estimate) * factor)


def leave_one_out(found):
    """The parameters when each point is left out in turn, [name -> value]; none when too few points
    remain."""
    problem = found.problem
    # a law with no point to spare fits whatever is left exactly
    counted = np.flatnonzero(problem.weights)
    if len(counted) <= len(found.z):
        return []
    fits = []
    for i in watched(counted, "leaving one out, fit"):
        # a weight of 0 leaves a point out
        weights = problem.weights.copy()
        weights[i] = 0.0
        fits.append(refit_around(replace(problem, weights=weights), found.params).params)
    return fits


def limit_range(left_out):
    """Lowest and highest limit E of such fits; None of none."""
    if not left_out:
        return None
    limits = [params["E"] for params in left_out]
    return min(limits), max(limits)


def jackknife(left_out):
    """The standard error of an estimate from its n values with one of n independent draws left
    out."""
    n, values = len(left_out), np.asarray(left_out)
    # one draw of n moves a mean by 1 / (n - 1) of its own deviation: hence n - 1 on top
    return math.sqrt((n - 1) / n * ((values - values.mean()) ** 2).sum())


def t_interval(estimate, error, n):
    """[low, high], 95%, of an estimate with a standard error that rests on n draws."""
    half = error * float(student_t.ppf(0.975, n - 1))
    return [estimate - half, estimate + half]


def widened(interval, center, more):
    """The interval of a loss, wider by what is independent of it: by squares, each side by itself,
    as an interval may be uneven."""
    low, high = interval
    # no loss is below 0, and an interval that ends there says that its limit is not told from 0
    return [max(0.0, center - math.hypot(center - low, more)),
            center + math.hypot(high - center, more)]


# --------------------------------------------------------------------------------------------------
# What to train: the optimum of a law
#
# A law with N and D in it says how to spend compute: on a larger model, or on more data.

def compute_optimum(law, params, flops):
    """(N, D, loss) of least loss with 6 N D = flops, of a law in N and D (arXiv 2203.15556,
    approach 3). Raises ValueError where the law has no such optimum."""
    def loss(log_n):
        n = np.exp(log_n)
        return predict(law, params, {"N": n, "D": flops / 6 / n})

    if flops <= 6:
        raise ValueError(f"{flops:g} FLOPs are less than one parameter takes for one token")
    # from one parameter to one token
    log_n = lowest_point(loss, np.linspace(0.0, math.log(flops / 6), 60))
    if log_n is None:
        raise ValueError(f"the law has no compute-optimal N at {flops:g} FLOPs")
    n = math.exp(log_n)
    return n, flops / 6 / n, float(loss(np.array([log_n]))[0])


def optimum_with_inference(params, loss, inference_tokens):
    """(N, D) of least compute 6 N D + 2 N inference_tokens with a Chinchilla law's `loss` (arXiv
    2401.00448). Raises ValueError where there is none."""
    p = SimpleNamespace(**params)
    # without a term for N (or D) the cheapest model has none of it
    if loss <= p.E or min(p.A, p.B) <= 0:
        raise ValueError(f"the law has no cheapest N and D for a loss of {loss:.4f}: its limit is "
                         f"{p.E:.4f}, A is {p.A:g}, B is {p.B:g}")

    def log_d(log_n):
        # D of the loss that N leaves for it; logs, as D alone may overflow
        return -np.log((loss - p.E - p.A * np.exp(-p.alpha * log_n)) / p.B) / p.beta

    def log_compute(log_n):
        # of N (6 D + 2 inference_tokens)
        return log_n + np.logaddexp(np.log(6) + log_d(log_n), np.log(2 * inference_tokens))

    # log of the N that would need infinite data: just above it data cost without end
    smallest = math.log(p.A / (loss - p.E)) / p.alpha
    log_n = lowest_point(log_compute, smallest + np.geomspace(1e-9, 60, 60))
    if log_n is None:
        raise ValueError(f"there is no optimum at {inference_tokens:g} tokens of inference")
    return math.exp(log_n), float(np.exp(log_d(log_n)))


def lowest_point(function, grid):
    """Where a function of an array with one minimum is least, inside a grid; None at its ends."""
    # at an end of the grid the function still falls: no minimum, or none that makes sense
    best = int(np.argmin(function(grid)))
    if best in (0, len(grid) - 1):
        return None
    # a search between the neighbors finds it to more digits than the grid has
    return minimize_scalar(lambda x: function(np.array([x]))[0], method="bounded",
                           bounds=(grid[best - 1], grid[best + 1]), options=dict(xatol=1e-7)).x


# --------------------------------------------------------------------------------------------------
# The paper's laws: limits over N, K or D, and what a recipe is worth in data
#
# What the second half of this file and ensemble.py ask for, in plain arrays and dicts.

def fit_power(x, loss):
    """A / x^b + E by least squares on the loss, as the paper fits: {"A", "b", "E"}. x, loss:
    (points,). Raises ValueError for points that do not determine the law."""
    law = LAWS["power"]
    return fit(law, *check_points(law, {"x": x, "loss": loss})).params


def fit_reciprocal(x, loss):
    """A / x + E by least squares: {"A", "E"}; otherwise as fit_power()."""
    law = LAWS["reciprocal"]
    return fit(law, *check_points(law, {"x": x, "loss": loss})).params


def limit_of(x, loss, weights=None, sigma=None, freedom=math.inf):
    """The power law of these points and the uncertainty of its limit: {"A", "b", "E", "interval",
    "leave_one_out" (the range of limits), "left_out" (the parameters of those fits), "at_bounds"}.
    x, loss, weights: (points,); sigma, freedom: of profile()."""
    law = LAWS["power"]
    found = fit(law, *check_points(law, {"x": x, "loss": loss}), weights)
    interval, found = profile(found, sigma, freedom)
    left_out = leave_one_out(found)
    # left_out is kept whole: efficiencies() evaluates each of these laws
    return {**found.params, "interval": interval, "leave_one_out": limit_range(left_out),
            "left_out": left_out, "at_bounds": found.at_bounds}


def data_efficiency(law, loss, standard_loss):
    """How many times the data the standard recipe would need for `loss`: D_std(loss) / D_std(its
    own loss), both by the standard recipe's law over D, as the authors compute it (paper, section
    on data efficiency). None where the law never gets there."""
    if min(loss, standard_loss) <= law["E"] or law["A"] <= 0:
        return None
    # D = (A / (loss - E))^(1 / b), and A cancels
    return ((standard_loss - law["E"]) / (loss - law["E"])) ** (1 / law["b"])


def measured_efficiency(standard, loss, tokens):
    """data_efficiency() without a law, of a loss reached with `tokens`: {"times", "bound"}, by
    interpolation of log tokens between the standard recipe's measured losses, a dict tokens ->
    loss. Beyond them the nearest bounds the truth: "more than " or "less than " so many times."""
    # np.interp wants its points to rise
    losses, counts = zip(*sorted((own, count) for count, own in standard.items()))
    needed = np.interp(loss, losses, np.log(counts))
    bound = ""
    if loss < losses[0]:
        bound = "more than "
    if loss > losses[-1]:
        bound = "less than "
    return {"times": float(np.exp(needed) / tokens), "bound": bound}


def rounded(values, places):
    """Numbers as text, "3.1 to 3.2", with so many decimals, or where all are below 0.1 with so many
    significant digits."""
    small = max(map(abs, values)) < 0.1
    return " to ".join(f"{value:.{places}{'g' if small else 'f'}}" for value in values)


def describe(interval, left_out, sigma, unit="point"):
    """One line on how well a limit is known; sigma is the noise of what has weight 1."""
    if interval is None:
        known = "no interval, as many parameters as points"
    else:
        noise = "noise from the residuals" if sigma is None else f"noise {sigma:.2g} a {unit}"
        # at the bound of 0 any lower limit would fit as well
        flat = ", flat below" if interval[0] == 0 else ""
        known = f"95% {rounded(interval, 3)}{flat} ({noise})"
    if left_out:
        known += f"; leaving one out {rounded(left_out, 3)}"
    return known


# --------------------------------------------------------------------------------------------------
# Points of a table
#
# People's tables differ in names, units and blanks. What can only be meant one way is read so, and
# said; anything else stops with the line and what to do, as a wrong number would pass for a result.

# other names of a column, in this kit's results and elsewhere; of several the first there counts
ALIASES = {"N": ("params",), "T": ("tokens_seen",), "D": ("tokens_seen", "tokens"),
           "U": ("tokens",), "loss": ("val_loss",), "sigma": ("sd",),
           "V": ("vocab_size",)}
CONSTANT = ("V", "U", "curve")  # columns that may hold one value in all rows
# C = 6 N D: what is missing as a function of N and the other
OF_COMPUTE = {"D": ("C", lambda n, c: c / (6 * n)), "C": ("D", lambda n, d: 6 * n * d)}


def read_rows(path):
    """The rows of a table as dicts, each with its place in it: [(row, "PATH line 3")]. path: a .csv
    or .tsv file (texts), results as JSON lines (.jsonl), or a folder, every result.json below which
    is a row. Raises ValueError."""
    if Path(path).is_dir():
        # sorted, so that two machines list the same rows in one order
        texts = [(read_text(file), str(file)) for file in sorted(Path(path).rglob("result.json"))]
    elif Path(path).suffix == ".jsonl":
        # str.splitlines() would also part lines where JSON allows a character of Unicode
        lines = read_text(path).split("\n")
        texts = [(line, f"{path} line {number}") for number, line in enumerate(lines, 1)
                 if line.strip()]
    else:
        return read_csv(path)
    rows = []
    for text, place in texts:
        try:
            # the place is in the message: one damaged line among thousands is hard to find
            row = json.loads(text)
        except ValueError as error:
            raise ValueError(f"{place} is damaged ({error}); remove it and make it again") from None
        if not isinstance(row, dict):
            raise ValueError(f"{place} is not a JSON object; remove it and make it again")
        rows.append((row, place))
    return rows


def read_text(path):
    """The text of a file in UTF-8. Raises ValueError."""
    if not Path(path).is_file():
        raise ValueError(f"{path} is no file; give a table of points (.csv, .tsv, .jsonl)")
    try:
        # without the mark that spreadsheets put before it
        return Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 ({error})") from None


def read_csv(path):
    """read_rows() of a .csv or .tsv file with a header. What would be read wrongly is refused."""
    separator = "\t" if Path(path).suffix == ".tsv" else ","
    reader = csv.DictReader(io.StringIO(read_text(path)), delimiter=separator)
    try:
        header = reader.fieldnames or [""]
        rows = [(row, f"{path} line {reader.line_num}") for row in reader]
    except csv.Error as error:
        raise ValueError(f"{path} is not a CSV file ({error})") from None
    if header[0].lstrip().startswith("#"):
        raise ValueError(f"{path} line 1 is a comment line; a CSV file has none, so remove it")
    if len(header) == 1 and ";" in header[0]:
        raise ValueError(f"{path} is separated by semicolons; separate its columns by commas")
    # the second would silently stand for both
    for name, count in Counter(header).items():
        if count > 1 and not name:
            raise ValueError(f"{path} has {count} columns without a name; remove them")
        if count > 1:
            raise ValueError(f"{path} has the column {name} twice; rename one")
    # 3,14 unquoted is two cells, and shifts all that follow; what is too much has the name None
    for row, place in rows:
        if None in row:
            raise ValueError(f"{place} has more fields than the header; decimal "
                             f"commas, or thousands separators without quotes?")
    return rows


def header_of(rows):
    """The names of all columns of rows, each once, in order."""
    return list(dict.fromkeys(name for row, _ in rows for name in row))


def keep_rows(rows, where):
    """The rows of read_rows() that meet every condition "COLUMN=VALUE", "COLUMN<VALUE" or
    "COLUMN>VALUE"; of several values with commas one must be equal. Numbers compare as numbers, so
    1e9 equals 1000000000; a row without the column meets none. Raises ValueError."""
    for condition in where:
        # the first sign parts them, so a value may hold others
        found = re.fullmatch(r"(.+?)([=<>])(.*)", condition, re.DOTALL)
        if not found:
            raise ValueError(f"a condition is COLUMN=VALUE, COLUMN<VALUE or COLUMN>VALUE, not "
                             f"{condition}")
        column, sign, wanted = found.groups()
        header = header_of(rows)
        # where an earlier condition left no row, the caller says so
        if rows and column not in header:
            raise ValueError(f"condition {condition}: there is no column {column}; there are "
                             f"{', '.join(header)}")
        if sign != "=" and not is_number(wanted):
            raise ValueError(f"condition {condition}: {wanted!r} is no number; a condition is "
                             f"COLUMN=VALUE, COLUMN<VALUE or COLUMN>VALUE")
        choices = wanted.split(",") if sign == "=" else [wanted]
        rows = [(row, place) for row, place in rows
                if any(meets(row.get(column), sign, choice) for choice in choices)]
    return rows


def is_number(text):
    """Whether a cell or an option can be read as a number."""
    try:
        float(text)
    except (TypeError, ValueError, OverflowError):
        return False
    return True


def meets(value, sign, wanted):
    """Whether a row's value is equal to, below or above the wanted text: as numbers if both are,
    else as texts, which are neither above nor below."""
    if value is None:
        return False
    if not is_number(value) or not is_number(wanted):
        return sign == "=" and str(value) == wanted
    # 1e9, 1e+09 and 1000000000 are one number
    value, wanted = float(value), float(wanted)
    return {"=": value == wanted, "<": value < wanted, ">": value > wanted}[sign]


def drop_repeats(rows):
    """(rows, notes): rows of read_rows() without results of this kit that stand there twice, as a
    run does that two studies share; other copies stay, and are noted."""
    kept = {}
    for number, (row, place) in enumerate(rows):
        key = number
        # only results have names that tell copies from points that happen to be equal
        if {"kind", "name", "study"} <= row.keys():
            key = row["kind"], row["name"]
        kept[key] = row, place  # the last one counts
    notes = []
    if len(kept) < len(rows):
        notes.append(f"{len(rows) - len(kept)} rows are of runs that stand there twice; the last "
                     f"one of each counts")
    copies = len(kept) - len({json.dumps(row, sort_keys=True) for row, _ in kept.values()})
    if copies:
        notes.append(f"{copies} rows are exact copies of others, and count as points of their own")
    return list(kept.values()), notes


def split_pairs(pairs):
    """{name: value} of "name=value" texts. Raises ValueError."""
    found = {}
    for pair in pairs:
        name, sign, value = pair.partition("=")
        if not sign:
            raise ValueError(f"an option takes NAME=VALUE, not {pair}")
        # one of the two would silently count for nothing
        if name in found:
            raise ValueError(f"{name} is given twice, as {found[name]} and {value}; keep one")
        found[name] = value
    return found


def find_column(name, header, chosen):
    """The column of a table that a law calls `name`: the one chosen, else of that name or alias,
    else the same but for case, blanks and punctuation; None if there is none. Raises ValueError.
    """
    if name in chosen:
        if chosen[name] not in header:
            raise ValueError(f"--columns {name}={chosen[name]}: there is no such column; there are "
                             f"{', '.join(header)}")
        return chosen[name]

    def plain(text):
        return re.sub(r"[^a-z0-9]", "", text.lower())

    # as it is written first: n and N may be two columns
    for spelled in (str, plain):
        for one in (name, *ALIASES.get(name, ())):
            alike = [column for column in header if spelled(column) == spelled(one)]
            if len(alike) > 1:
                raise ValueError(f"the columns {' and '.join(alike)} may both be {name}; say which "
                                 f"with --columns {name}=...")
            if alike:
                return alike[0]
    return None


def is_blank(cell):
    """Whether a cell of a table holds nothing."""
    return cell is None or str(cell).strip() == ""


def read_curve(cell, place):
    """The name of a row's curve. Raises ValueError."""
    # a name in a curve's first row alone would leave the others as one more curve, without a name
    if is_blank(cell):
        raise ValueError(f"{place}: curve is blank; name the curve in each of its rows")
    return str(cell)


def read_number(text, column, place, blank=False):
    """A cell as a float; nan for a blank one where that is allowed. Raises ValueError."""
    if is_blank(text):
        if blank:
            return math.nan
        raise ValueError(f"{place}: {column} is blank, not a number; fill it or leave the row out")
    if is_number(text):
        return float(text)
    hint = ""
    # like 1,000,000
    if re.fullmatch(r"\s*-?\d{1,3}(,\d{3})+(\.\d*)?\s*", str(text)):
        hint = ": write it without thousands separators"
    raise ValueError(f"{place}: {column} is {text!r}, not a number{hint}")


def read_points(path, names, where=(), constants=(), columns=(), blank=(), absent=()):
    """(table, rows, notes): columns `names` of a table as {name: float64 array}, `curve` as
    written; its rows (of read_rows()); what the reader should know.

    where: conditions of keep_rows(); constants: "name=value" columns that the table lacks; columns:
    "name=header" choices; blank: names whose cells may be blank (nan); absent: names of columns
    that need not be there. D and C are found from each other and N by C = 6 N D. Raises ValueError.
    """
    constants, chosen = split_pairs(constants), split_pairs(columns)
    rows = keep_rows(read_rows(path), where)
    if not rows:
        left = " left by --where" if where else ""
        raise ValueError(f"{path} has no rows{left}")
    rows, notes = drop_repeats(rows)
    header, table = header_of(rows), {}

    def read(name):
        there = find_column(name, header, chosen)
        if there is None and name not in constants:
            return None
        if there not in (None, name):
            notes.append(f"{name} is the column {there}")
        # a table of points to predict may have what is constant in the other
        if there is not None and name in constants:
            notes.append(f"{name} is the column {there} of {path}, not --set's {constants[name]}")
        cells = [(row.get(there, constants.get(name)), place) for row, place in rows]
        if name == "curve":
            return np.array([read_curve(cell, place) for cell, place in cells])
        return np.array([read_number(cell, there or name, place, name in blank)
                         for cell, place in cells])

    for name in names:
        values = read(name)
        if values is None and name in OF_COMPUTE:
            other, solve_for = OF_COMPUTE[name]
            n, counterpart = read("N"), read(other)
            if n is not None and counterpart is not None:
                notes.append(f"{name} is from C = 6 N D")
                values = solve_for(n, counterpart)
        if values is not None:
            table[name] = values
        elif name == "x":  # the law's own name for it: no --x says another
            raise ValueError(f"{path} has no column x, so --x must name the one that is; it has "
                             f"{', '.join(header)}")
        elif name not in absent:
            raise ValueError(f"{path} has no column {name}; it has {', '.join(header)} (say which "
                             f"is meant with --columns {name}=..., or give --set {name}=VALUE)")
    # N may have been read twice, once for C = 6 N D, and noted twice
    return table, rows, list(dict.fromkeys(notes))


def check_values(law, columns, rows=()):
    """The columns as float64 (but `curve`); raises ValueError for values the law cannot take.

    rows: those of read_rows(), where the columns come from a table, to say where a value stands.
    """
    checked = {}
    for name, column in columns.items():
        checked[name] = np.asarray(column)
        if name == "curve":
            continue
        checked[name] = column = np.asarray(column, dtype=np.float64)
        # most laws take powers of their columns, so that 0 and below have no meaning
        good = np.isfinite(column) & (column > 0)
        # a schedule may begin at step 0 and end at an lr of 0; other laws take powers of both
        if name in ("lr", "step") and "curve" in law.columns:
            good |= column == 0
        if name == law.target and "-" in law.signs.values():  # what is subtracted may be the most
            good |= np.isfinite(column)
        if name == law.target and "curve" in law.columns:  # the row gives the schedule alone
            good |= np.isnan(column)
        bad = np.flatnonzero(~good)
        if len(bad):
            place = rows[bad[0]][1] if rows else f"point {bad[0] + 1}"
            raise ValueError(f"{place}: {name} is {column[bad[0]]:g}; "
                             f"a law needs finite positive numbers")
        # 0.15 (billions) beside 300,000,000: a law would fit the gap between them
        values = np.unique(column)
        scaled = name not in (law.target, "lr", "step") and len(values) > 1
        if scaled and (values[1:] / values[:-1]).max() > 1e5:
            raise ValueError(f"{name} goes from {values[0]:g} to {values[-1]:g} with a gap of more "
                             f"than 100,000 times: are units mixed? write all as plain counts")
        if name == "r" and "N" in law.columns and column.max() > 1:
            raise ValueError(f"r goes up to {column.max():g}; it is a share of the tokens, at most "
                             f"1: is it in percent?")
    if "curve" not in law.columns:
        return checked
    steps = Counter(zip(checked["curve"].tolist(), checked["step"].tolist()))
    (curve, step), count = steps.most_common(1)[0]
    if count > 1:
        raise ValueError(f"curve {curve} has step {step:g} twice; keep one")
    # points to predict may have no column of losses: then all rows count
    known = np.isfinite(checked.get(law.target, checked["step"]))
    # the laws take S1, the area under lr, to the power -alpha
    if (read_changes(checked, known).S1 <= 0).any():
        raise ValueError("a curve has a loss before any lr above 0 was applied; leave it blank")
    return checked


def check_points(law, columns, fixed=(), rows=()):
    """(columns, targets) of points that determine a law but for what is fixed; raises ValueError
    for others. rows: see check_values()."""
    columns = check_values(law, columns, rows)
    check_enough(law, columns, np.isfinite(columns[law.target]), fixed)
    return {name: columns[name] for name in law.columns}, columns[law.target]


def check_enough(law, columns, known, fixed):
    """Raises ValueError where the rows `known`, a mask, do not determine a law but for what is
    fixed."""
    for name in law.columns:
        # a column that never changes cannot tell its own term from the limit
        if name not in CONSTANT and len(np.unique(columns[name][known])) < 2:
            raise ValueError(f"all points have the same {name}; a law needs it to vary")
    least = len(law.shape) + len(law.signs) - len(fixed)
    # repeated points say what the noise is, not what the law is
    points = len(set(zip(*(columns[name][known].tolist() for name in law.columns))))
    if points < least:
        raise ValueError(f"a law with {least} parameters to seek needs {least} different points, "
                         f"not {points}; add some")


def columns_together(law, columns):
    """A sentence for each two columns that go together in all points; none where each varies on its
    own."""
    found = []
    # along a curve step and lr go together by its schedule
    if "curve" in law.columns:
        return found
    varied = [name for name in law.columns if len(np.unique(columns[name])) > 1]
    for one, other in combinations(varied, 2):
        x, y = np.log(columns[one]), np.log(columns[other])
        # in logs, where D = 20 N is a line, as is any power
        if abs(np.corrcoef(x, y)[0, 1]) > 0.9995:
            power = np.polyfit(x, y, 1)[0]
            found.append(f"{one} and {other} go together in all points ({other} as {one}^"
                         f"{power:.3g}): what each of them brings is not determined")
    return found


# --------------------------------------------------------------------------------------------------
# A law and a table: what is asked
#
# Nothing that was asked is left undone in silence: an option with no effect on a law is refused.

METHODS = {"ls": "least squares", "huber": "Huber's loss of logs",
           "raw_huber": "Huber's loss of raw residuals", "lad": "absolute deviations of logs"}
# enough for the ends of a 95% interval, of which five draws lie outside on each side
DRAWS = 200  # refits for the intervals of predictions and optima, where --bootstrap says no number


def add_law_options(parser):
    """The options of `fit.py LAW POINTS`."""
    laws = parser.add_argument_group("of a law")
    laws.add_argument("--x", metavar="COLUMN[,COLUMN]",
                      help="the column that is x in power and reciprocal, those of log_linear")
    laws.add_argument("--columns", nargs="+", action="extend", default=[], metavar="NAME=COLUMN",
                      help="the table's columns by the law's names, like N='Model Size'")
    laws.add_argument("--set", action="append", default=[], metavar="NAME=VALUE",
                      help="a constant column")
    laws.add_argument("--method", choices=tuple(METHODS),
                      help="least squares on the target, Huber's loss of logs or of raw residuals, "
                      "absolute deviations of logs; without it that of the law's authors")
    laws.add_argument("--delta", type=float, help="width of Huber's loss, 0.001 if not given")
    laws.add_argument("--weights", metavar="COLUMN", help="column of weights of the points")
    laws.add_argument("--fix", action="append", default=[], metavar="NAME=VALUE",
                      help="hold a parameter at a value, or an exponent equal to another by name")
    laws.add_argument("--sigma", metavar="NOISE[:DEGREES]",
                      help="noise of a point of weight 1 and the degrees of freedom it rests on "
                      "(runs less settings), for the limit's interval")
    laws.add_argument("--pooled", action="store_true",
                      help="take that noise and its degrees from the columns sigma (or sd) and "
                      "seeds")
    laws.add_argument("--bootstrap", type=int, metavar="B", help="refits for intervals of all")
    laws.add_argument("--seed", type=int, help="of the bootstrap, 0 if not given")
    laws.add_argument("--predict", metavar="TABLE",
                      help="predict these points, with or without their loss")
    laws.add_argument("--hold_out", action="append", default=[], metavar="CONDITION",
                      help="fit the other rows and predict these, an error a condition")
    laws.add_argument("--compute", type=float, metavar="FLOPS",
                      help="the N and D of least loss with 6 N D = FLOPS")
    laws.add_argument("--inference", type=float, metavar="TOKENS",
                      help="of chinchilla: the cheapest N and D to generate so many tokens later")
    laws.add_argument("--loss", type=float, help="the loss that --inference is to reach")


def names_laws(what):
    """Whether the words of a command are laws and a table, however a law's name is spelled."""
    names = what[0].split(",")
    if any(name in LAWS for name in names):
        return True
    # a mistyped law, rather than a path that is not there, as runs
    mistyped = difflib.get_close_matches(names[0], LAWS) and not Path(what[0]).exists()
    return bool(mistyped) and len(what) == 2 and Path(what[1]).exists()


def check_options(names, args):
    """Raises ValueError for options of a law that are out of range or would do nothing."""
    for name in names:
        if name not in LAWS:
            # the nearest name, however far: one of them was meant
            near = difflib.get_close_matches(name, LAWS, 1, cutoff=0.0)
            raise ValueError(f"there is no law {name}; do you mean {near[0]}? The laws: "
                             f"{', '.join(LAWS)}")
    for name in ("delta", "loss", "inference", "compute"):
        value = getattr(args, name)
        if value is not None and not 0 < value < math.inf:
            raise ValueError(f"--{name} {value:g} is out of range; it must be above 0")
    # what each law will minimize
    methods = {args.method or LAWS[name].method for name in names}
    # an error of losses and one of benchmark errors are in different units
    targets = {LAWS[name].target for name in names}
    of_both = [name for name, law in LAWS.items() if set(law.columns) == {"N", "D"}]
    noise = args.sigma or args.pooled
    # message -> whether it applies; of several the first is shown
    wrong = {
        f"the law {args.what[0]} goes with one table of points": len(args.what) != 2,
        f"laws of {' and '.join(sorted(targets))} have no errors to compare": len(targets) > 1,
        f"--bootstrap {args.bootstrap} gives no interval; take 20 or more, 200 for steady ends":
            args.bootstrap is not None and args.bootstrap < 20,
        "--seed must be at least 0": args.seed is not None and args.seed < 0,
        f"--delta is the width of Huber's loss; the method is {', '.join(sorted(methods))}":
            args.delta is not None and not methods & {"huber", "raw_huber"},
        "--method raw_huber is of raw residuals, and log_linear is fitted in logs; take huber":
            args.method == "raw_huber" and any(LAWS[name].logs for name in names),
        "--sigma and --pooled are for the profile of least squares; add --method ls, or take "
        "--bootstrap": noise and methods != {"ls"},
        "--pooled takes the noise from the table and --sigma gives it; take one":
            args.sigma and args.pooled,
        # its noise is that of one run, so that a point of n seeds has weight n and no other
        "--pooled weighs each point by its seeds; leave out --weights":
            args.pooled and args.weights,
        "--inference and --loss, which it is to reach, go with chinchilla; give both":
            (args.inference is None) != (args.loss is None)
            or (args.inference is not None and names != ["chinchilla"]),
        "--x names the columns of power, reciprocal and log_linear":
            args.x is not None and not any("x" in LAWS[name].columns for name in names),
        f"--compute goes with a law in N and D: {', '.join(of_both)}":
            args.compute is not None and not set(names) <= set(of_both)}
    # these are of one fit to all points: a comparison has many
    alone = ("bootstrap", "predict", "compute", "inference", "figure", "sigma", "pooled", "seed")
    for name in alone:
        wrong[f"--{name} goes with one law and all its points, not with several laws or "
              f"--hold_out"] = getattr(args, name) and (len(names) > 1 or args.hold_out)
    # predictions and optima have intervals by bootstrap, asked for or not; all else draws nothing
    drawn = args.bootstrap or args.predict or args.compute or args.inference
    wrong["--seed is of the draws of --bootstrap, --predict, --compute and --inference; give one "
          "of them"] = args.seed is not None and not drawn
    for name in ("save", "table"):
        wrong[f"--{name} is of runs; a law's result is printed, by --json in full"] = \
            getattr(args, name)
    for message, is_wrong in wrong.items():
        if is_wrong:
            raise ValueError(message)


def law_of(name, args):
    """The law with the columns of --x."""
    law = LAWS[name]
    if "x" not in law.columns:
        return law
    chosen = (args.x or "x").split(",")
    if law.target in chosen:
        raise ValueError(f"--x {args.x}: the law is fitted to {law.target}, so x must be another")
    if len(set(chosen)) < len(chosen):
        raise ValueError(f"--x {args.x} names a column twice; name it once")
    if "curve" in chosen or (name != "log_linear" and len(chosen) > 1):
        raise ValueError(f"--x must name the column of {args.what[1]} that is x, for example --x N")
    # log_linear reads any number of columns; the other two read one, which they call x
    if name == "log_linear":
        return log_linear(*chosen)
    return replace(law, columns=(chosen[0],), basis=lambda p, c: law.basis(
        p, SimpleNamespace(x=getattr(c, chosen[0]))))


def columns_read(law, args):
    """The columns that a law's command reads: the law's own, then the options'."""
    read = [*law.columns, law.target]
    if "L0" in law.shape:
        read.append("V")
    if args.weights:
        read.append(args.weights)
    # the spread over seeds and their number, a row a setting
    if args.pooled:
        read += ["sigma", "seeds"]
    return read


def check_columns(names, args):
    """Raises ValueError for a column of --columns or --set that no law here reads."""
    read = []
    for name in names:
        read += columns_read(law_of(name, args), args)
    if set(read) & set(OF_COMPUTE):  # N, C and D may be found from each other
        read += ["N", "C", "D"]
    # most likely misspelled; unread, it would change nothing and say nothing
    for option, pairs in (("columns", args.columns), ("set", args.set)):
        for column, value in split_pairs(pairs).items():
            if column not in read:
                raise ValueError(f"--{option} {column}={value}: {' and '.join(names)} read no "
                                 f"{column}; the columns: {', '.join(dict.fromkeys(read))}")


def fixed_of(law, pairs):
    """--fix as {name: value or name of an equal shape}. Raises ValueError."""
    fixed = {}
    for name, value in split_pairs(pairs).items():
        if name not in law.shape and name not in law.signs:
            raise ValueError(f"--fix {name}: the law has {', '.join([*law.shape, *law.signs])}")
        # exponents may be equal to each other; coefficients have units
        if value in law.shape and name in law.shape and value != name:
            fixed[name] = value
            continue
        if not is_number(value) or not math.isfinite(float(value)):
            raise ValueError(f"--fix {name}={value} is neither a number nor another of the "
                             f"exponents {', '.join(law.shape)}")
        fixed[name] = float(value)
        if name in law.shape and fixed[name] <= 0:
            raise ValueError(f"--fix {name}={value}: it must be above 0")
        if law.signs.get(name) in ("+", "-") and fixed[name] < 0:
            raise ValueError(f"--fix {name}={value}: it must be at least 0")
    # values are looked up once, so that a chain of equals would not be followed
    if any(value in fixed for value in fixed.values()):
        raise ValueError("--fix: an exponent can equal one that is sought, not a fixed one")
    return fixed


@dataclass
class Points:
    """A table as a law reads it. Where a row gives the schedule alone, its target is 1, a filler,
    and its weight 0."""
    problem: Problem
    rows: list  # as of read_rows()
    notes: list  # lines on what was assumed or is not determined
    sigma: float = None
    freedom: float = math.inf


def read_law(name, path, args):
    """The Points of a law's command. Raises ValueError."""
    law = law_of(name, args)
    blank = ["sigma"]  # one seed has no spread
    if "curve" in law.columns:
        blank.append(law.target)
    table, rows, notes = read_points(path, columns_read(law, args), args.where, args.set,
                                     args.columns, blank, absent={"V"} - {args.weights})
    fixed = fixed_of(law, args.fix)
    if "L0" in law.shape and "L0" not in fixed:
        fixed |= fixed_by_vocabulary(name, table, notes)
    if len(fixed) == len(law.shape) + len(law.signs):
        raise ValueError("--fix: every parameter is fixed; leave one to be sought")
    weighted_by = args.weights
    if args.pooled:
        weighted_by = "seeds"
        notes.append("each point weighs as much as it has seeds: the noise is that of one run")
    weights = table.get(weighted_by, np.ones(len(rows)))
    if not np.isfinite(weights).all() or weights.min() < 0:
        raise ValueError(f"the weights in {weighted_by} must be finite and at least 0")
    counted = weights > 0
    if not counted.any():
        raise ValueError(f"all weights in {weighted_by} are 0; no point counts")
    if not counted.all():
        notes.append(f"{np.count_nonzero(~counted)} rows of weight 0 do not count")
    if "curve" in law.columns:
        # such a row gives the schedule alone, as one without a target does
        table[law.target][~counted] = np.nan
    else:
        # other laws take each row by itself, so that one without weight can go
        table = {column: cells[counted] for column, cells in table.items()}
        rows, weights = [row for row, there in zip(rows, counted) if there], weights[counted]
    # without the columns that options brought
    own = {column: table[column] for column in (*law.columns, law.target)}
    columns, y = check_points(law, own, fixed, rows)
    weights = np.where(np.isfinite(y), weights, 0.0)
    problem = Problem(law, columns, np.nan_to_num(y, nan=1.0), weights, args.method,
                      args.delta or 1e-3, fixed)
    if problem.on_logs and np.nanmin(y) <= 0:
        raise ValueError(f"{problem.method} takes the log of {law.target}, which must be positive; "
                         f"use --method ls or raw_huber")
    # given noise serves the limit's interval, and the errors beside it; without a limit it is idle
    sigma, freedom = read_noise(args, table)
    if sigma is not None and not has_limit(problem):
        raise ValueError("--sigma and --pooled are for the interval of a limit E that is sought, "
                         "and here is none; leave them out")
    notes += [*notes_on_schedules(law, columns), *columns_together(law, columns),
              *notes_on_repeats(law, rows)]
    return Points(problem, rows, notes, sigma, freedom)


def has_limit(problem):
    """Whether a law has a limit E that is sought."""
    law = problem.law
    return "E" not in problem.fixed and ("E" in law.shape or law.signs.get("E") == "+")


def fixed_by_vocabulary(name, table, notes):
    """{"L0": ln V}, the loss of a guess, where the table gives V; else {}, which is noted."""
    # of several vocabularies each would have an L0, and the law has one
    sizes = np.unique(table.get("V", ()))
    if len(sizes) > 1:
        raise ValueError(f"{name} takes one vocabulary, and V varies; choose with --where")
    if len(sizes) == 1:
        return {"L0": float(np.log(sizes[0]))}
    notes.append("L0 is fitted: no column V and no --set V=VOCABULARY gives it")
    return {}


def read_noise(args, table):
    """(sigma, degrees of freedom) of --sigma or of the table's columns; (None, inf) without."""
    if args.pooled:
        # n runs of a setting leave n - 1 degrees beside their mean
        degrees = table["seeds"] - 1
        if (degrees < 0).any() or degrees.sum() == 0:
            raise ValueError("--pooled needs two seeds or more at some point")
        if np.isnan(table["sigma"][degrees > 0]).any():
            raise ValueError("--pooled: a point of several seeds has no sigma; fill it in")
        # each variance counts by its degrees of freedom, one of a single run not at all
        squares = np.where(degrees > 0, table["sigma"] ** 2, 0.0)
        return math.sqrt((degrees * squares).sum() / degrees.sum()), float(degrees.sum())
    if args.sigma is None:
        return None, math.inf
    # no degrees: the noise is known exactly
    noise, _, degrees = args.sigma.partition(":")
    if not is_number(noise) or not 0 < float(noise) < math.inf:
        raise ValueError(f"--sigma {args.sigma} is out of range; it is NOISE above 0, or "
                         f"NOISE:DEGREES")
    if degrees and (not is_number(degrees) or not float(degrees) >= 1):
        raise ValueError(f"--sigma {args.sigma}: the degrees of freedom must be at least 1")
    return float(noise), float(degrees or math.inf)


def notes_on_schedules(law, columns):
    """What is assumed of curves whose first row is not their first step."""
    if "curve" not in law.columns:
        return []
    # public curves begin after their warm-up, and how lr rose there is not in the table
    begins = [columns["step"][columns["curve"] == curve].min()
              for curve in np.unique(columns["curve"])]
    late = [f"{step:g}" for step in begins if step > 1]
    if not late:
        return []
    first = ", ".join(dict.fromkeys(late))
    return [f"{len(late)} curves begin at step {first}: lr is taken to rise linearly from 0 to "
            f"there; rows without a loss can give another schedule"]


def notes_on_repeats(law, rows):
    """Whether tokens are repeated in a table whose law has no word for it."""
    if "D" not in law.columns or "U" in law.columns:
        return []
    # this kit's results have a column `epochs`; a table without it is taken to repeat nothing
    epochs = [float(row["epochs"]) for row, _ in rows if is_number(row.get("epochs"))]
    if max(epochs, default=1) <= 1:
        return []
    return [f"tokens are seen up to {max(epochs):g} times, which this law does not know: a "
            f"repeated token counts as D says"]


# --------------------------------------------------------------------------------------------------
# A law and a table: what is answered
#
# Each part of the answer is a dict for --json, printed by the function that makes it.

def law_command(args):
    """`fit.py LAW[,LAW] POINTS`: its report, {"law", "params", "limit", "predict", ...}; prints
    it."""
    names = args.what[0].split(",")
    check_options(names, args)
    check_columns(names, args)
    if args.predict:
        read_rows(args.predict)  # refuses a damaged table before any work
    if len(names) > 1 or args.hold_out:
        return compare_laws(names, args.what[1], args)
    name, = names
    points = read_law(name, args.what[1], args)
    found, interval = solve(points.problem), None
    # the profile is of squares; other methods have the bootstrap
    if has_limit(points.problem) and points.problem.method == "ls":
        interval, found = profile(found, points.sigma, points.freedom)
    open_names = not_determined(found, points.sigma, points.freedom)
    # before the bootstrap, which takes a while
    if args.compute or args.inference:
        check_optimum(found, open_names)
    found = draw_refits(found, points.notes, args)
    report = describe_fit(name, points, found, open_names, args)
    print_fit(report, own_method=args.method is None)
    # each part prints its lines and adds its keys
    if has_limit(points.problem):
        report |= report_limit(points, found, interval, report["params"]["E"])
    if name == "unified":
        print("warning: this law has no limit; beyond the measured range of C it is a guess")
    report |= report_optima(found, args)
    if args.predict:
        report["predict"] = report_predictions(found, args)
    if args.figure:
        draw_law(args.figure, name, found)
    return report


def draw_refits(found, notes, args):
    """The Fit with draws of bootstrap(), where they are asked for or an answer needs them."""
    # the latter three have intervals whether or not --bootstrap was given
    if not (args.bootstrap or args.predict or args.compute or args.inference):
        return found
    # too few points: an error where the bootstrap was asked for, else a note
    try:
        return bootstrap(found, args.bootstrap or DRAWS, args.seed or 0)
    except ValueError as error:
        if args.bootstrap:
            raise
        notes.append(f"no intervals of predictions and optima: {error}")
        return found


def finite(value):
    """A number, or None for what JSON has no number for."""
    if value is None or not math.isfinite(value):
        return None
    return float(value)


def describe_parameters(found, errors):
    """{name: {"value", "se", "low", "high"}} of the parameters and what is derived from them; None
    where there is none. errors: of standard_errors()."""
    law, params = found.problem.law, {}
    for name, value in found.quantities().items():
        error, low, high = errors.get(name), None, None
        if found.draws and name not in found.problem.fixed:
            drawn = [draw[name] for draw in found.draws]
            # the spread of the refits, by any method, replaces the error to first order; of what is
            # not determined it may be too large for a float
            with np.errstate(over="ignore"):
                error = np.std(drawn, ddof=1)
            low, high = percentile_interval(found, drawn, value)
            # what is sought from 0 on has no interval below 0
            if law.signs.get(name) in ("+", "-") or name in law.shape:
                low = max(low, 0.0)
        params[name] = {"value": finite(value), "se": finite(error), "low": finite(low),
                        "high": finite(high)}
    return params


def describe_fit(name, points, found, open_names, args):
    """The report of a fit: data and method, parameters with errors and intervals, what is wrong."""
    problem, notes = found.problem, points.notes
    if not found.done:
        notes.append("new starts still found better fits, or one alone found the best: a better "
                     "one may exist")
    if open_names:
        notes.append(f"not determined by these points: {', '.join(open_names)} (at equal loss an "
                     f"exponent may double or halve, a term vanish)")
    errors = standard_errors(found, points.sigma, points.freedom)
    # only Huber's loss has a width
    delta = problem.delta if "huber" in problem.method else None
    counted = problem.weights > 0
    residuals = (found.prediction - problem.y)[counted]
    return {"law": name, "formula": problem.law.formula, "points": int(counted.sum()),
            "method": problem.method, "delta": delta, "weights": args.weights,
            "sigma": points.sigma, "sigma_freedom": finite(points.freedom),
            "bootstrap": len(found.draws), "seed": args.seed or 0, "fixed": problem.fixed,
            "objective": found.objective, "rmse": float(np.sqrt((residuals ** 2).mean())),
            "at_bounds": found.at_bounds, "not_determined": open_names, "done": found.done,
            "params": describe_parameters(found, errors), "notes": notes}


def print_fit(report, own_method):
    """The report of describe_fit(), a line a parameter."""
    title = METHODS[report["method"]]
    if report["delta"]:
        title += f", width {report['delta']:g}"
    if own_method:
        title += ", the law's own (--method for another)"
    print(f"{report['law']}: {report['formula']}\n{report['points']} points; {title}; rmse "
          f"{report['rmse']:.4g}, objective {report['objective']:.6g}")
    # before the numbers, as they say how to read them
    for note in report["notes"]:
        print(f"note: {note}")
    for name, one in report["params"].items():
        # a derived quantity may overflow
        value = math.nan if one["value"] is None else one["value"]
        line = f"{name:>8} {value:12.6g}"
        if one["se"] is not None:
            line += f"  s.e. {one['se']:<10.4g}"
        if one["low"] is not None and one["high"] is not None:
            line += f"  95% {one['low']:.4g} to {one['high']:.4g}"
        if name in report["at_bounds"]:
            line += "  at its bound"
        if name in report["fixed"]:
            line += "  fixed"
        print(line.rstrip())


def report_limit(points, found, interval, drawn):
    """{"limit", "leave_one_out"} and, of least squares, "limit_interval", printed. drawn: the limit
    by the bootstrap, as of describe_parameters()."""
    report = {"limit": found.params["E"], "leave_one_out": None}
    if len(points.problem.target) <= 50:  # of more, one point matters little and costs as much
        report["leave_one_out"] = limit_range(leave_one_out(found))
    if points.problem.method != "ls":
        print(f"limit {rounded([report['limit']], 4)}; its profile is of --method ls, its interval "
              f"here of --bootstrap")
        return report
    known = describe(interval, report["leave_one_out"], points.sigma)
    print(f"limit {rounded([report['limit']], 4)}; {known}")
    if interval is not None and drawn["low"] is not None:
        apart = max(abs(interval[0] - drawn["low"]), abs(interval[1] - drawn["high"]))
        # two honest intervals differ a little; half a width is more than that
        if apart > (interval[1] - interval[0]) / 2:
            by_draws = rounded([drawn["low"], drawn["high"]], 3)
            print(f"note: the bootstrap says 95% {by_draws}, the profile {rounded(interval, 3)}: "
                  f"the points are few or uneven; trust the wider")
    return {**report, "limit_interval": interval}


def check_optimum(found, open_names):
    """Raises ValueError where the points do not say what is optimal."""
    law, columns = found.problem.law, found.problem.columns
    # a parameter at its bound, or one that may move freely, moves the optimum with it
    doubt = dict.fromkeys([*open_names, *found.at_bounds])
    # each is a reason why N could be traded for D at no cost
    together = columns_together(law, columns)
    if doubt or together:
        why = together[0] if together else f"these points do not determine {', '.join(doubt)}"
        raise ValueError(f"there is no optimum to tell: {why}; add runs in which N and D vary "
                         f"apart")
    # 6 N D is a number of FLOPs only where both are plain counts
    for name in ("N", "D"):
        if columns[name].max() < 1e5:
            raise ValueError(f"{name} is at most {columns[name].max():g} in these points, "
                             f"which looks like billions; an optimum needs plain counts")


def report_optima(found, args):
    """{"compute", "inference"} of --compute and --inference, printed: {"N", "N_low", "N_high", "D",
    ...} each; draws without such an optimum are counted."""
    law, report = found.problem.law, {}
    # each is solved at the fit and again at every refit
    if args.compute:
        optimum = describe_optimum(
            f"{args.compute:g} FLOPs",
            lambda params: compute_optimum(law, params, args.compute), found)
        report["compute"] = {"flops": args.compute, **optimum}
    if args.inference:
        optimum = describe_optimum(
            f"loss {args.loss:g} with {args.inference:g} tokens of inference",
            lambda params: optimum_with_inference(params, args.loss, args.inference), found)
        report["inference"] = {"loss": args.loss, "inference_tokens": args.inference, **optimum}
    return report


def describe_optimum(title, solve_for, found):
    """{name: value, name_low, name_high} of what solve_for(params) gives, N and D and perhaps the
    loss, printed."""
    drawn, failed, report, line = [], 0, {}, []
    # the optimum of each refit: their spread is its interval
    for draw in found.draws:
        try:
            drawn.append(solve_for(draw))
        except ValueError:  # a refit may have no optimum, as its points are others
            failed += 1
    for i, (name, value) in enumerate(zip(("N", "D", "loss"), solve_for(found.params))):
        report[name] = float(value)
        line.append(f"{name} {value:.4g}")
        # where most refits have no optimum, the others tell no interval
        if len(drawn) > failed:
            # of logs, since N and D range over decades
            logs = np.log([one[i] for one in drawn])
            low, high = np.exp(percentile_interval(found, logs, math.log(value))).tolist()
            report |= {f"{name}_low": low, f"{name}_high": high}
            line[-1] += f" (95% {low:.4g} to {high:.4g})"
    if failed:
        line.append(f"none in {failed} of {len(found.draws)} refits")
    print(f"{title}: {', '.join(line)}")
    return report


def report_predictions(found, args):
    """{"mae", "rows"} of the points of --predict, printed as a table. An interval is where a new
    point may lie: the spread of the refits and of the residuals."""
    law, target = found.problem.law, found.problem.law.target
    # the loss need not be there, and columns may have the law's own names
    header = header_of(read_rows(args.predict))
    chosen = [f"{name}={column}" for name, column in split_pairs(args.columns).items()
              if column in header]
    # --where is of the fitted table alone: what it keeps must not choose what is predicted
    table, points, notes = read_points(args.predict, [*law.columns, target], (), args.set,
                                       chosen, blank=(target,), absent=(target,))
    for note in notes:
        print(f"note: {args.predict}: {note}")
    # apart from what the law reads: it may be blank, or no column at all
    truth = table.pop(target, np.nan)
    columns = check_values(law, table, points)
    predicted = predict(law, found.params, columns)
    answer = {**columns, "predicted": predicted}
    if found.draws:
        answer["low"], answer["high"] = predicted_range(found, columns, predicted)
    error, known = predicted - truth, np.isfinite(truth)
    if np.any(known):
        with np.errstate(all="ignore"):
            relative = np.where(truth == 0, np.nan, error / truth)
        answer |= {target: truth, "relative error": relative}
    rows = []
    for values in zip(*(column.tolist() for column in answer.values())):
        # nan, the only value unlike itself, is left out: JSON has no number for it
        rows.append({name: value for name, value in zip(answer, values) if value == value})
    print_rows(list(answer), rows)
    if not np.any(known):
        return {"mae": None, "rows": rows}
    # in the unit of the target, nats for a loss
    mae = float(np.abs(error[known]).mean())
    print(f"{args.predict}: mean absolute error {mae:.4g} over {known.sum()} points")
    return {"mae": mae, "rows": rows}


def print_rows(columns, rows):
    """A Markdown table of some keys of dicts, numbers to five digits."""
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for row in rows:
        cells = [row.get(name, "") for name in columns]
        texts = [cell if isinstance(cell, str) else f"{cell:.5g}" for cell in cells]
        print(f"| {' | '.join(texts)} |")


def predicted_range(found, columns, predicted):
    """(low, high) of a new point at each row of columns, (rows,), by the draws of a fit."""
    problem, rng, changes = found.problem, np.random.default_rng(0), []
    # noise adds to the loss or to its log, as the method has it
    scale = np.log if problem.on_logs else np.asarray
    # measured minus predicted: what a new point adds to its prediction
    residuals = -problem.residuals(found.z)
    # their spread alone is noise; an offset of all is the law's own error
    residuals = residuals - np.median(residuals)
    for draw in found.draws:
        change = scale(predict(problem.law, draw, columns)) - scale(predicted)
        # one residual a refit, so that a band over neighboring points is smooth
        changes.append(change + rng.choice(residuals))
    ranges = [percentile_interval(found, change, 0.0) for change in np.array(changes).T]
    low, high = np.array(ranges).T
    if problem.on_logs:
        return predicted * np.exp(low), predicted * np.exp(high)
    return predicted + low, predicted + high


def compare_laws(names, path, args):
    """A table of laws by their mean absolute error on what each --hold_out leaves out, printed in
    Markdown; {"laws": {law: {condition: error}}}."""
    report, rows, noted = {}, [], {}  # noted: {note: the laws that it is about}
    for name in names:
        points = read_law(name, path, args)
        problem = points.problem
        found = solve(problem)
        if not found.done:
            points.notes.append("a better fit may exist")
        for note in points.notes:
            noted.setdefault(note, []).append(name)
        errors = {"none held out": mean_error(found, problem.weights > 0)}
        for condition in args.hold_out:
            errors[condition] = held_error(points, condition)
        best = best_found(found)
        report[name] = {"method": problem.method, **errors, "best T found": best}
        # two digits: a flat optimum ends elsewhere on another processor
        texts = {condition: f"{error:.2g}" for condition, error in errors.items()}
        if best:
            texts["best T found"] = f"{best[0]} of {best[1]}"
        rows.append({"law": name, "method": problem.method, **texts})
    # one row a law, one column a condition
    columns = dict.fromkeys(column for row in rows for column in row)
    print(f"mean absolute error of {problem.law.target} by what is held out, {len(problem.target)} "
          f"points\n")
    print_rows(columns, rows)
    print()
    notes = []
    for note, about in noted.items():
        if len(about) < len(names):
            note = f"{', '.join(about)}: {note}"
        notes.append(note)
        print(f"note: {note}")
    return {"laws": report, "points": len(problem.target), "notes": notes}


def mean_error(found, rows):
    """The mean absolute error of a fit at some rows, a mask."""
    return float(np.abs(found.prediction - found.problem.y)[rows].mean())


def held_error(points, condition):
    """The mean absolute error of a fit to the other rows at those that meet a condition."""
    problem = points.problem
    # a place tells its row from others with the same values
    left_out = {place for _, place in keep_rows(points.rows, [condition])}
    held = np.array([place in left_out for _, place in points.rows])
    known = problem.weights > 0
    # a row that gives the schedule alone has no loss to miss
    if not (held & known).any():
        raise ValueError(f"--hold_out {condition} holds no point out")
    # what is left must still determine the law; of a curve its schedule stays
    check_enough(problem.law, problem.columns, known & ~held, problem.fixed)
    found = solve(replace(problem, weights=np.where(held, 0.0, problem.weights)))
    return mean_error(found, known & held)


def best_found(found):
    """(right, all): lines are points that differ in T, tokens seen, alone; on how many of them the
    law puts the least loss at the T where it was measured, and how many there are. None for laws
    without T."""
    columns, y = found.problem.columns, found.problem.y
    if "T" not in columns:
        return None
    # points with one key, their N and U, lie on one line
    others = [columns[name].tolist() for name in columns if name != "T"]
    lines, right, prediction = {}, 0, found.prediction
    for i, key in enumerate(zip(*others)):
        lines.setdefault(key, []).append(i)
    # of two points one is always the best: that says little
    lines = [line for line in lines.values() if len(line) > 2]
    for line in lines:
        right += y[line].argmin() == prediction[line].argmin()
    return int(right), len(lines)


@np.errstate(all="ignore")
def draw_law(path, name, found):
    """A figure of a law: its points against the column that varies most, with the law as a line for
    each setting of the other columns and its 95% band; below, the residuals."""
    figure = new_figure(path, 6, 6)
    law, columns, y = found.problem.law, found.problem.columns, found.problem.y
    # the horizontal axis: what varies most, by factors
    chief, others = "step", ["curve"]  # along a curve lr goes with the step
    if "curve" not in law.columns:
        chief = max(law.columns, key=lambda column: np.ptp(np.log(columns[column])))
        # one value of each other column is a setting
        others = [column for column in law.columns if column != chief]
    settings, style, how = {}, "-", "lines"
    # rows of weight 0 have a filler for a target
    counted = np.flatnonzero(found.problem.weights)
    for i in counted:
        values = [columns[column][i] for column in others]
        texts = [value if isinstance(value, str) else f"{value:.6g}" for value in values]
        setting = ", ".join(map(" ".join, zip(others, texts)))
        settings.setdefault(setting, []).append(i)
    if len(settings) > 8:  # too many for lines: one color, and a cross where the law lies
        settings, style, how = {"": counted}, "x", "crosses"
    top, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    for setting, same in settings.items():
        rows = np.array(sorted(same, key=lambda i: columns[chief][i]))
        # a law of curves needs every row of the schedule, also those that are not drawn
        x, at, there = columns[chief][rows], columns, rows
        drawn, = top.plot(x, y[rows], ".", label=setting)
        color = drawn.get_color()
        below.plot(x, y[rows] - found.prediction[rows], ".", color=color)
        if style == "-" and chief != "step":
            # also between the points, so that few of them still give a smooth line
            x, there = np.geomspace(x[0], x[-1], 100), slice(None)
            at = {name: np.full(100, column[rows[0]]) for name, column in columns.items()}
            at[chief] = x
        predicted = predict(law, found.params, at)
        top.plot(x, predicted[there], style, lw=1, ms=5, color=color)
        if found.draws:
            band = top.fill_between if style == "-" else top.vlines
            low, high = predicted_range(found, at, predicted)
            band(x, low[there], high[there], color=color, alpha=0.2)
    top.set(ylabel=law.target, title=f"{name}: points, and the law as {how}")
    if law.logs:  # a line in logs
        top.set_yscale("log")
    below.axhline(0, color="0.5", lw=1)
    # over a factor of three a log axis has hardly a tick
    scale = "linear" if chief == "step" or np.ptp(np.log10(columns[chief])) < 0.5 else "log"
    below.set(xlabel=chief, ylabel="residual", xscale=scale)
    if style == "-" and others:
        top.legend(fontsize=8)
    save_figure(path, figure)


def new_figure(path, width=7, height=4.5):
    """An empty figure, in inches, for a file of this name. Raises ValueError."""
    if Path(path).suffix not in (".png", ".pdf", ".svg"):
        raise ValueError(f"--figure {path} must end in .png, .pdf or .svg")
    try:
        # without pyplot, which wants a screen and keeps every figure in memory
        from matplotlib.figure import Figure
    except ImportError:
        raise ValueError("--figure needs matplotlib; pip install matplotlib") from None
    check_folder("--figure", path)
    return Figure((width, height), layout="constrained")


def save_figure(path, figure):
    """Write a figure whole or not at all."""
    # drawn in memory first, as drawing may fail
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=110, format=Path(path).suffix[1:])
    write_atomically(path, drawn.getvalue())


def check_folder(option, path):
    """Raises ValueError, before any work, where there is no folder for a file."""
    if not Path(path).absolute().parent.is_dir():
        raise ValueError(f"{option} {path}: there is no such folder")


def list_laws():
    """Print every law, formula, columns, method and source, and return that as a dict."""
    laws = {}
    for name, law in LAWS.items():
        columns = [*law.columns, law.target]
        laws[name] = {"formula": law.formula, "columns": columns, "method": law.method,
                      "source": law.source}
        print(f"{name}: {law.formula}\n    columns {', '.join(columns)}; {METHODS[law.method]}; "
              f"{law.source}")
    print("left out, as each would need its own solver: Bayesian optimization, PCA of benchmarks, "
          "convex bounds")
    return {"laws": laws}


# --------------------------------------------------------------------------------------------------
# Runs: means over seeds, the best settings, and whether they are certified

SEEDS = ("seed", "init_seed", "data_seed")
AXES = ("epochs", "lr", "weight_decay")  # what a search moves along
STEP = 3.4  # the widest step of a search: grids double, or go 1, 3, 10
ENDS = {"epochs": 1, "lr": 0, "weight_decay": 0}  # nothing lies below
LEAST = 0.1  # the least weight decay above 0 that is searched

# degrees of freedom: with 5 a 95% interval is 2.6 standard errors a side, with one 12.7
ENOUGH_DEGREES = 5

STANDARD_LINE = "standard, best N"  # what data efficiency is counted against

# what is compared with what: runs of one recipe on the same text, with as many unique tokens
TASK = ("data_hash", "recipe", "tokens")
BEST_OF = ("data_hash", "recipe", "size", "tokens")
STUDENTS = ("student", "kl_student")  # recipes

# options of a run's `identity` that the tables know, or that follow from what they know
KNOWN = {*SEEDS, *AXES, "subset_seed", "data", "data_hash", "size", "tokens", "context",
         "batch_size", "dtype", "teachers", "synthetic", "synthetic_hash", "synthetic_weight",
         "kl_weight", "kl_temperature", "started_from"}


def values(item, names):
    """The values of some keys as pairs (rank, value), to compare or sort by; what an item lacks
    comes first."""
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
    # groupby joins only what stands side by side
    return [list(group) for _, group in groupby(sorted(items, key=key), key=key)]


def agreeing(items, other, names):
    """The items that agree with another in these keys."""
    wanted = values(other, names)
    return [item for item in items if values(item, names) == wanted]


def first_agreeing(items, other, names):
    """The first item that agrees with another in these keys, None where none does."""
    return next(iter(agreeing(items, other, names)), None)


def column(items, name):
    """The values of one key, as an array."""
    return np.array([item[name] for item in items])


def pick(item, names):
    """A dict of some keys; None for those that it lacks."""
    return {name: item.get(name) for name in names}


def rest_of(result, but=()):
    """The options that decide a result, without seeds, axes and those named in `but`, as a text to
    compare.

    train.py writes into `identity` every such option that is not at its default, so a new one is
    compared as well. A result without `identity` agrees with its own setting alone.
    """
    identity = result.get("identity") or {"setting": result["setting"]}
    # sorted, so that the order of options does not tell two results apart
    rest = {key: identity[key] for key in identity if key not in (*SEEDS, *AXES, *but)}
    return json.dumps(rest, sort_keys=True)


def other_options(setting):
    """The options of a setting that no table knows, such as one's own, as "beta2=0.98"; None where
    there are none."""
    identity = setting.get("identity") or {}
    unknown = [f"{name}={value}" for name, value in identity.items() if name not in KNOWN]
    return " ".join(unknown) or None


def mean_settings(runs):
    """The settings of runs, a dict each: the keys of its first run, `loss` (mean over seeds), `sd`
    over them (None for one), `seeds` (their number), `by_seed`, {seeds: loss}, and two texts of
    rest_of(), `rest` and `rest_but_size`.

    Runs differ in seed alone where recipe and `setting` agree: train.py hashes into `setting` all
    that it computes but the seeds, so no option can be forgotten here.
    """
    settings = []
    for group in grouped(runs, ("recipe", "setting")):
        first, by_seed = group[0], {}
        for run in group:
            seed, *drawn = [run.get(name) for name in SEEDS]
            # --seed sets those that are not given; what agrees in both is one run by two names
            key = tuple(seed if one is None else one for one in drawn)
            if None in key:  # a result of another kit may say no seeds
                key = run["name"]
            by_seed[key] = run["val_loss"]
        losses = np.array(list(by_seed.values()))
        sd = None  # one run says nothing of noise
        # ddof=1, as the mean is of the same few runs
        if len(losses) > 1:
            sd = float(losses.std(ddof=1))
        settings.append({
            **first, "loss": float(losses.mean()), "sd": sd, "seeds": len(losses),
            "by_seed": by_seed, "rest": rest_of(first), "rest_but_size": rest_of(first, ["size"])})
    return settings


def pooled_noise(settings):
    """{task: (standard deviation of one run, its degrees of freedom)}, pooled over the settings of
    a recipe and budget. A budget with fewer than ENOUGH_DEGREES takes the noise of the recipe's
    nearest budget that has them. Where none has, all its budgets are pooled. task: of task_of()."""
    def degrees(group):
        return sum(s["seeds"] - 1 for s in group)

    # two or three seeds a setting say little; those of all settings of a budget say enough
    noise = {}
    for recipe in grouped(settings, ("recipe",)):
        tasks = grouped(recipe, TASK)
        sure = [task for task in tasks if degrees(task) >= ENOUGH_DEGREES]
        for task in tasks:
            pool = recipe
            if sure:  # itself where it is one of them
                pool = min(sure, key=lambda other: abs(
                    math.log(other[0]["tokens"] / task[0]["tokens"])))
            several, freedom = [s for s in pool if s["seeds"] > 1], degrees(pool)
            if any(s["sd"] for s in several):  # equal losses tell no noise
                squares = sum((s["seeds"] - 1) * s["sd"] ** 2 for s in several)
                noise[task_of(task[0])] = math.sqrt(squares / freedom), freedom
    return noise


def task_of(item):
    """What tells one task of a recipe from another: its values of TASK."""
    return tuple(item.get(name) for name in TASK)


def comparable(settings):
    """The settings that stand for their recipe, or all where none does. Runs with teachers or
    sampled text are students whatever their recipe is called, and each draw of a subset of the text
    would count as a setting of its own."""
    found = []
    for group in grouped(settings, BEST_OF):
        plain = [s for s in group if s.get("subset_seed") is None]
        if group[0]["recipe"] not in STUDENTS:
            plain = [s for s in plain if not (teachers_of(s) or s.get("synthetic_weight"))]
        found += plain or group
    return found


def best_of(settings, by=BEST_OF):
    """The setting of least loss of each (recipe, size, tokens), or of what `by` names, with
    `tried`, the number of settings there; the worst first."""
    best = []
    for group in grouped(settings, by):
        best.append({**min(group, key=lambda s: s["loss"]), "tried": len(group)})
    return sorted(best, key=lambda s: -s["loss"])


def certificate(center, settings, noise):
    """Whether a setting is locally optimal: its keys, `neighbors` and `certified`.

    Certified: it has several seeds, both sides of each axis that was searched were tried, a step of
    the grid away, and nothing there is better. (A run that diverges leaves no result: "not run".)
    """
    own = agreeing(settings, center, ("recipe", "rest"))
    # a recipe's name is a label, and a search also meets runs that carry another
    alike = join_labels(agreeing(settings, center, ("data_hash", "tokens", "params", "rest")))
    center = {**center, "by_seed": first_agreeing(alike, center, ("setting",))["by_seed"]}
    found = []
    for axis in AXES:
        # an axis on which all have one value belongs to the recipe, as standard's weight decay
        if len(set(column(own, axis))) == 1:
            continue
        others = [other for other in AXES if other != axis]
        line = sorted(agreeing(alike, center, others), key=lambda s: s[axis])
        below = [s for s in reversed(line) if s[axis] < center[axis]]
        above = [s for s in line if s[axis] > center[axis]]
        for side, tried in (("down", below), ("up", above)):
            neighbor = {"verdict": "not run"}
            if tried:  # the nearest of them, be it one step away or more
                neighbor = compare(center, tried[0], axis, noise)
            elif side == "down" and center[axis] <= ENDS[axis]:
                neighbor = {"verdict": "end"}
            found.append({"axis": axis, "side": side, **neighbor})
    good = [n["verdict"] in ("tie", "worse", "end") and n.get("near", True) for n in found]
    # one seed may have been lucky
    certified = bool(good) and all(good) and len(center["by_seed"]) > 1
    return {**center, "neighbors": found, "certified": certified}


def join_labels(settings):
    """The settings, those that differ in the recipe's name alone as one, `by_seed` that of all."""
    joined = []
    for group in grouped(settings, ("setting",)):
        by_seed = {}
        for one in group:
            by_seed |= one["by_seed"]
        joined.append({**group[0], "by_seed": by_seed})
    return joined


def compare(center, other, axis, noise):
    """A neighbor's value on the axis, its margin and a verdict. The margin is the neighbor's loss
    less the center's, the mean over common seeds; inside its 95% interval around 0 it is a tie."""
    low, high = sorted([center[axis], other[axis]])
    # from 0 there is no factor: the grid's first step goes to LEAST
    near = high / low <= STEP if low else high <= LEAST
    found = {"value": other[axis], "near": near, "setting": other["setting"]}
    # so both means rest on the same initial weights and orders of the data
    common = center["by_seed"].keys() & other["by_seed"].keys()
    if not common:
        return {**found, "verdict": "not run"}
    margins = [other["by_seed"][seeds] - center["by_seed"][seeds] for seeds in sorted(common)]
    margin = float(np.mean(margins))
    sd, freedom = noise[task_of(center)]
    # a difference of two runs has twice the variance of one
    _, reach = t_interval(0.0, sd * math.sqrt(2 / len(margins)), freedom + 1)
    if abs(margin) <= reach:
        verdict = "tie"
    elif margin > 0:
        verdict = "worse"
    else:
        verdict = "better"
    return {**found, "margin": margin, "seeds": len(margins), "verdict": verdict}


def certificates(settings, noise):
    """The certificates of each size's best setting and of its other local optima, which are
    certified settings that tie with no better certified one. Where no seeds tell the noise, and so
    what a tie is, there are none."""
    found = []
    known_noise = [s for s in settings if task_of(s) in noise]
    for group in grouped(known_noise, (*TASK, "params")):
        # from the best on, so that a plateau is reported once, by its lowest point
        optima, certified = [], set()
        for center in sorted(group, key=lambda s: s["loss"]):
            one = certificate(center, settings, noise)
            ties = {n["setting"] for n in one["neighbors"] if n["verdict"] == "tie"}
            other = one["certified"] and not ties & certified
            # the best is reported in any case: its row says what it lacks
            if one["neighbors"] and (other or not optima):
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
    """Slope of the best settings' losses per doubling of N, and half its 95% interval, for each
    (recipe, tokens) with three sizes or more."""
    trends = []
    for group in grouped(points, TASK):
        if len(group) < 3:
            continue
        # a point a size, however many seeds: seeds do not show how far the losses are from a line
        line = linregress(np.log2(column(group, "params")), column(group, "loss"))
        # the error of a slope has two degrees of freedom fewer than there are points
        half = student_t.ppf(0.975, len(group) - 2) * line.stderr
        trends.append({**group[0], "slope": float(line.slope), "half": float(half),
                       "sizes": len(group)})
    return trends


# --------------------------------------------------------------------------------------------------
# Limits: over N, over K, over both, over D

def size_laws(points, noise):
    """The law over N of each (recipe, tokens) with at least three sizes, for the total N and, as
    "nonembedding", for N without embedding and head: the limit moves with the count."""
    laws = []
    for group in grouped(points, TASK):
        if len(set(column(group, "params"))) < 3:  # as many as the law has parameters
            continue
        # without seeds limit_of() takes the noise from the residuals
        sigma, freedom = noise.get(task_of(group[0]), (None, 0))
        # a mean over seeds is as much surer as it has seeds
        fitted = group, "loss", "seeds", sigma, freedom
        law = law_over_n("N", *fitted)
        law["nonembedding"] = law_over_n("N", *fitted, count="params_nonembedding")
        laws.append(law)
    return laws


def law_over_n(claim, points, loss, weight, sigma, freedom, count="params"):
    """The law over N of the points of one task, with the `line` that it was fitted to and its
    misfit(). loss, weight, count: keys of a point, the last one of its N; sigma: the noise of a
    loss of weight 1, None if it is not known; freedom: its degrees of freedom."""
    line = {"x": column(points, count).tolist(), "loss": column(points, loss).tolist(),
            "weights": column(points, weight).astype(float).tolist()}
    law = {"claim": claim, **pick(points[0], TASK), "sigma": sigma, "freedom": freedom,
           "points": len(points), "line": line, **limit_of(*line.values(), sigma, freedom)}
    return {**law, "misfit": misfit(law)}


def member_laws(ensembles):
    """The limit K -> infinity of each ensemble (paper, section on ensembling), by the law A / K + E
    and, as "free", by A / K^b + E where there are three K or more. Its interval counts `drawn`,
    half the 95% interval over draws of members (jackknife), and `shift`, how far the free exponent
    moves the limit. Probability means fall more slowly: their limit is that of the free
    exponent."""
    laws = []
    copied = ("recipe", "params", "tokens", "data_hash", "setting", *AXES, "kl", "loss_by_k")
    for e in ensembles:
        law = e["law"]
        if not law:  # one member has no law
            continue
        k = len(e["loss_by_k"]["logits"])
        drawn = interval = None
        shift, free = 0.0, e.get("free_law")
        if free:
            shift = free["E"] - law["E"]
        if law["se"] is not None:
            interval = t_interval(law["E"], law["se"], k)
            drawn = interval[1] - law["E"]
            interval = widened(interval, law["E"], shift)
        # of two members there is no free exponent
        free_probs = e.get("free_probs_law") or {**e["probs_law"], "b": 1.0}
        laws.append({
            "claim": "K", **pick(e, copied), "size": e["size"] or "mixed",
            "vary": e["vary"], "points": k,
            # members with a subset each are compared with those that share one
            "rest": rest_of(e, ["subset_seed"]),
            "A": law["A"], "b": 1.0, "E": law["E"], "se": law["se"], "interval": interval,
            "drawn": drawn, "shift": shift, "free": free, "free_probs": free_probs})
    return laws


def best_ensembles(members):
    """The best ensemble of each (recipe, tokens, size), its members differing in seed alone: of the
    setting whose largest ensemble has the least limit, that ensemble."""
    # members of several sizes, budgets or recipes have none in common
    alike = [m for m in members
             if m["vary"] == "seed" and all(pick(m, ("params", "tokens", "recipe")).values())]
    best = []
    for group in grouped(alike, (*TASK, "params")):
        # not the least limit of all: of two ensembles of one setting the smaller is the less sure
        largest = [max(same, key=lambda m: m["points"]) for same in grouped(group, ("setting",))]
        best.append(min(largest, key=lambda m: m["E"]))
    return best


def tiered_laws(members):
    """K -> infinity at each N (A / K + E of logit means), then N -> infinity, for each (recipe,
    tokens) with ensembles at three sizes or more. The noise of a limit is that of one member,
    pooled over the sizes, over the square root of K."""
    laws = []
    for group in grouped(best_ensembles(members), TASK):
        if len(group) < 3:
            continue
        freedom, squares = 0, 0.0
        for law in group:
            if law["se"] is not None:  # two members are too few for a jackknife
                count = law["points"]
                freedom += count - 1
                # a limit over K rests on K draws: its variance is that of one member over K
                squares += (count - 1) * count * law["se"] ** 2
        sigma = None
        if freedom:
            sigma = math.sqrt(squares / freedom)
        law = law_over_n("N and K", group, "E", "points", sigma, freedom)
        # what the law over K leaves out is alike at all sizes, so no mean over them makes it less
        law["shift"] = float(np.mean(column(group, "shift")))
        if law["interval"]:
            law["interval"] = widened(law["interval"], law["E"], law["shift"])
        laws.append(law)
    return laws


def power_of_budgets(budgets):
    """The law loss = A_i / x^b + E_i, i = 0 ... budgets - 1, with one b."""
    signs = {}
    for i in range(budgets):
        signs |= {f"A{i}": "+", f"E{i}": "+"}

    def basis(p, c):
        columns = []
        for i in range(budgets):
            # 0 in the rows of other budgets, so that each has an A and an E of its own
            here = (c.budget == i).astype(float)
            columns += [here * c.x ** -p.b, here]
        return columns

    return replace(LAWS["power"], columns=("x", "budget"), signs=signs, basis=basis)


def share_exponent(laws):
    """The laws over N, or over N and K, of one recipe at several budgets fitted with one exponent
    for all, the limits free: those laws again with the common b, E and its interval, and `p`.

    Four sizes a budget say little about three parameters; that the exponent does not depend on D
    is what the paper finds, and what `p` tests: the probability that seeds alone make the common
    exponent fit so much worse than one a budget (F test). Nothing where no seeds tell the noise or
    no budget shows a power law.
    """
    shared = []
    for group in grouped(laws, ("claim", "recipe", "data_hash")):
        # the noise is as sure as that of the budget with fewest degrees
        sigma, freedom = group[0]["sigma"], min(law["freedom"] for law in group)
        unknown = any(law["sigma"] is None for law in group)
        if len(group) < 2 or unknown or not any(map(is_power_law, group)):
            continue
        rows, apart = [], 0.0  # (budget, N, loss, weight)
        for i, law in enumerate(group):
            # budgets differ in noise; so weighted, a point of weight 1 has the first one's
            surer = (sigma / law["sigma"]) ** 2
            x, loss, weights = map(np.array, law["line"].values())
            rows += zip([i] * law["points"], x, loss, surer * weights)
            apart += surer * squares_around(law)
        budget, x, loss, weights = np.array(rows, dtype=float).T
        law_of_all = power_of_budgets(len(group))
        found = solve(Problem(law_of_all, {"x": x, "budget": budget}, loss, weights, "ls"))
        intervals = []
        for i in range(len(group)):
            # a profile may come upon a better fit, which then is that of all budgets
            interval, found = profile(found, sigma, freedom, f"E{i}")
            intervals.append(interval)
        # what one b adds to the squares, by each b given up, in units of the noise
        excess = max(0.0, 2 * found.objective - apart) / (len(group) - 1) / sigma ** 2
        p = float(f_distribution.sf(excess, len(group) - 1, freedom))
        params = found.params
        for i, law in enumerate(group):
            # an A of its own that vanished is no power law either
            at_bounds = ["A" if name == f"A{i}" else name for name in found.at_bounds]
            interval = widened(intervals[i], params[f"E{i}"], law.get("shift", 0.0))
            # what the budget's own fit says of itself is not true of this one
            shared.append({**law, "A": params[f"A{i}"], "b": params["b"], "E": params[f"E{i}"],
                           "interval": interval, "leave_one_out": None, "left_out": [],
                           "at_bounds": at_bounds, "misfit": None, "nonembedding": None, "p": p})
    return shared


def squares_around(law):
    """The weighted sum of squares around a power law of the losses that it was fitted to."""
    x, loss, weights = map(np.array, law["line"].values())
    misses = loss - law["A"] / x ** law["b"] - law["E"]
    return float((weights * misses ** 2).sum())


def misfit(law):
    """The probability that noise alone takes the losses so far from a power law (F test); None
    where the noise is not known or the law can meet every point."""
    over = law["points"] - 3  # points beyond the law's parameters
    if law["sigma"] is None or over <= 0:
        return None
    excess = squares_around(law) / over / law["sigma"] ** 2
    return float(f_distribution.sf(excess, over, law["freedom"]))


def half_width(law):
    """Half the width of a limit's interval, None where there is none."""
    if law["interval"] is None:
        return None
    return (law["interval"][1] - law["interval"][0]) / 2


def vary_differences(members):
    """Ensembles whose members differ in something else than seed, each against the largest whose
    members differ in seed, all else equal: its law with `apart`, the differences of the loss by K,
    `limit_apart`, that of the limits, and `half`, half the width of its 95% interval."""
    rows = []
    for m in members:
        alike = agreeing(members, {**m, "vary": "seed"}, ("rest", "size", *AXES, "vary"))
        if m["vary"] == "seed" or not alike:
            continue
        base = max(alike, key=lambda other: other["points"])  # the surest of them
        pairs = zip(m["loss_by_k"]["logits"], base["loss_by_k"]["logits"])
        half = None
        if m["interval"] and base["interval"]:
            # of a difference of two independent estimates, whose laws err alike
            half = math.hypot(m["drawn"], base["drawn"])
        rows.append({**m, "apart": [loss - other for loss, other in pairs],
                     "limit_apart": m["E"] - base["E"], "half": half})
    return rows


def teachers_of(run):
    """The names of the teachers whose prediction or text a student has learned from."""
    return sorted(run.get("teachers") or run.get("sampled_from") or ())


def student_shares(settings, runs, ensembles, noise):
    """What students keep of their teachers' gain (paper, section on distillation): for each setting
    of students the mean loss of its seeds, the loss of the best single model of the teachers' size
    and text among these runs (`single`), that of the teachers' ensemble, and `share` =
    (single - student) / (single - ensemble) with its 95% interval, which leaves out that other
    teachers would make other students.
    """
    named = {run["name"]: run for run in runs}
    # ensembles by their members, as a student knows the names of its teachers
    together = {tuple(sorted(Path(name).name for name in e.get("members", ()))): e
                for e in ensembles}
    rows = []
    for s in settings:
        teachers = teachers_of(s)
        if not teachers:
            continue
        unknown = ("teachers_recipe", "single", "ensemble", "share", "low", "high")
        row = {**s, "k": len(teachers), **dict.fromkeys(unknown)}
        rows.append(row)
        # teachers that are not among the results
        if not named.keys() >= set(teachers):
            continue
        row["teachers_recipe"] = named[teachers[0]]["recipe"]
        # not the teachers alone: members of a good ensemble may be poor single models
        single = best_single(settings, [named[name] for name in teachers])
        if single is None:
            continue
        row["single"] = single["loss"]
        ensemble = together.get(tuple(teachers))
        # one teacher has no ensemble to gain by
        if ensemble is None or len(teachers) == 1:
            continue
        row["ensemble"] = ensemble["loss_by_k"]["logits"][-1]
        if row["ensemble"] >= row["single"]:  # no gain to keep
            continue
        row["share"] = (row["single"] - s["loss"]) / (row["single"] - row["ensemble"])
        half = half_width_of_share(row, single, ensemble["law"]["se"], noise)
        if half is not None:
            row["low"], row["high"] = row["share"] - half, row["share"] + half
    return rows


def best_single(settings, teachers):
    """Of the settings without a teacher that agree with all of some runs in size, text, context and
    start the one of least loss; None where there is none."""
    def task(run):
        # results of before they had a start have none
        names = ("data_hash", "size", "tokens", "context", "doc_mask")
        return *(run.get(name) for name in names), run.get("started_from") or ""

    wanted = {task(teacher) for teacher in teachers}
    # the oldest results of students by text do not name their teachers
    alike = [s for s in settings
             if {task(s)} == wanted and not teachers_of(s) and not s.get("synthetic_weight")
             and s.get("subset_seed") is None]  # else of other documents
    return min(alike, key=lambda s: s["loss"], default=None)


def half_width_of_share(row, single, ensemble_error, noise):
    """Half the 95% interval of a share, or None if a noise is not known. It counts the noise of the
    seeds of students and of single models (noise: that of pooled_noise()), and of the ensemble's
    loss, for which the error of its limit stands, which is about as large."""
    known = [noise.get(task_of(row)), noise.get(task_of(single))]
    if None in known or ensemble_error is None:
        return None
    (students, of_students), (singles, of_singles) = known
    share = row["share"]
    # of student, single and ensemble, each times the slope of the share in it: -1, 1 - share and
    # share, over the gain, single - ensemble
    errors = np.array([students / math.sqrt(row["seeds"]),
                       singles / math.sqrt(single["seeds"]) * (1 - share),
                       ensemble_error * share]) / (row["single"] - row["ensemble"])
    variance = (errors ** 2).sum()
    # Welch and Satterthwaite's degrees of freedom of a sum of variances
    freedoms = np.array([of_students, of_singles, row["k"] - 1])
    together = variance ** 2 / (errors ** 4 / freedoms).sum()
    return float(student_t.ppf(0.975, together)) * math.sqrt(variance)


def predictions(members):
    """Whether few members tell the losses of more: the laws of the smallest ensemble of a setting
    beside the losses of the largest, if that has twice its members: [(smallest, largest, rows by
    K)]. The laws are A / K + E for logit means and A / K^b + E for probability means."""
    found = []
    # members that differ in more than their draws have no setting to agree in
    draws = [m for m in members if {*m["vary"].split("+")} <= {*SEEDS, "subset_seed"}]
    for group in grouped(draws, ("recipe", "setting", "vary", "rest", *AXES)):
        small = min(group, key=lambda m: m["points"])
        large = max(group, key=lambda m: m["points"])
        if large["points"] < 2 * small["points"]:  # too little to predict
            continue
        rows, free = [], small["free_probs"]
        losses = zip(large["loss_by_k"]["logits"], large["loss_by_k"]["probs"])
        for k, (logits, probs) in enumerate(losses, 1):
            rows.append({"k": k, "logits": logits, "probs": probs,
                         "predicted": small["A"] / k + small["E"],
                         "predicted_probs": free["A"] / k ** free["b"] + free["E"]})
        found.append((small, large, rows))
    return found


def lines_over_data(points, noise, over_n, shared, members):
    """The loss of each recipe by unique tokens D, [{"recipe", "data_hash", "tokens", "loss",
    "intervals"}, lists by D]: the best over N of the standard and of the regularized recipe, the
    limit over N of every recipe but standard and member, the limit over N and K, and of ensembles
    the best measured and the least limit over K (paper, section on data efficiency). Intervals are
    95%, None where no noise is known."""
    lines = {}  # {(name, data hash): {tokens: (loss, interval)}}

    def add(name, item, loss, interval=None):
        # of several at one budget the least loss stays
        line = lines.setdefault((name, item["data_hash"]), {})
        if item["tokens"] not in line or loss < line[item["tokens"]][0]:
            line[item["tokens"]] = loss, interval

    # the standard recipe has no limit over N to speak of: larger models do not help it
    measured = {"standard": STANDARD_LINE, "regularized": "regularized, best measured"}
    for p in points:
        if p["recipe"] in measured:
            interval = None
            # a mean of n seeds has the noise of one run over the root of n
            if task_of(p) in noise:
                sd, freedom = noise[task_of(p)]
                interval = t_interval(p["loss"], sd / math.sqrt(p["seeds"]), freedom + 1)
            add(measured[p["recipe"]], p, p["loss"], interval)
    # the common exponent where there is one and the data do not reject it
    common = [law for law in shared if law["p"] >= 0.05]
    for law in over_n:
        law = first_agreeing(common, law, ("claim", *TASK)) or law
        # at its bound of 0, and without an interval, a limit says nothing
        unknown = law["interval"] is None and "E" in law["at_bounds"]
        if unknown or not is_power_law(law):
            continue
        if law["claim"] == "N and K":
            add(f"{law['recipe']} ensembles, N and K to infinity", law, law["E"], law["interval"])
        # members are not meant to stand alone
        elif law["recipe"] not in ("standard", "member"):
            add(f"{law['recipe']}, N to infinity", law, law["E"], law["interval"])
    for m in members:
        if m["tokens"] and m["vary"] == "seed":
            loss, interval = m["loss_by_k"]["logits"][-1], None
            if m["interval"]:  # the noise of K members is taken as that of their limit
                interval = [loss - m["drawn"], loss + m["drawn"]]
            add("ensembles, best measured", m, loss, interval)
    for m in best_ensembles(members):
        add("ensembles, best N, K to infinity", m, m["E"], m["interval"])

    found = []
    for (name, data), line in sorted(lines.items(), key=lambda item: item[0][1]):
        tokens = sorted(line)
        losses, intervals = zip(*(line[count] for count in tokens))
        found.append({"recipe": name, "data_hash": data, "tokens": tokens, "loss": losses,
                      "intervals": intervals})
    return found


def data_laws(lines):
    """The law over D of each line with three budgets or more."""
    laws = []
    for line in lines:
        points = len(line["tokens"])
        # Three parameters: with three budgets the law meets them all, and has no interval. A limit
        # that is not told from 0 is no point of a law.
        if points > 2 and all(map(told_from_0, line["intervals"])):
            law = limit_of(line["tokens"], line["loss"])
            laws.append({"claim": "D", **line, "points": points, **law})
    return laws


def told_from_0(interval):
    """Whether a limit is known to lie above 0; one without an interval counts as such."""
    return interval is None or interval[0] > 0


def is_power_law(law):
    """Whether the points show a falling power law: one that ran to a bound of A or b fits them as
    a constant, or as a step."""
    return not {"A", "b"} & set(law["at_bounds"])


def efficiencies(lines, laws):
    """How many times the data the standard recipe needs for what each other line over D reaches: by
    interpolation between its measured losses, with a 95% interval, and by its law over D, with the
    range when one of the law's points is left out."""
    rows = []
    for line in lines:
        # losses compare on one text alone
        of_text = {"recipe": STANDARD_LINE, "data_hash": line["data_hash"]}
        standard = first_agreeing(lines, of_text, ("recipe", "data_hash"))
        # with one budget there is nothing to interpolate
        if standard in (None, line) or len(standard["tokens"]) < 2:
            continue
        law = first_agreeing(laws, of_text, ("recipe", "data_hash"))
        own_losses = dict(zip(standard["tokens"], standard["loss"]))
        for tokens, loss, interval in zip(line["tokens"], line["loss"], line["intervals"]):
            # the paper compares recipes at one budget
            if tokens not in own_losses:
                continue
            own = own_losses[tokens]
            row = {**pick(line, ("recipe", "data_hash")), "tokens": tokens, "loss": loss,
                   "interval": interval, "standard_loss": own,
                   "measured": measured_efficiency(own_losses, loss, tokens),
                   "measured_interval": None, "by_law": None, "by_law_range": None}
            low_high = add_standard_noise(interval, loss, standard)
            if low_high:
                # the higher the loss, the less data it is worth
                row["measured_interval"] = [measured_efficiency(own_losses, end, tokens)
                                            for end in reversed(low_high)]
            # a limit that is not told from 0 has no worth by any law
            if law and is_power_law(law) and told_from_0(interval):
                row["by_law"] = data_efficiency(law, loss, own)
                ratios = [data_efficiency(one, loss, own) for one in law["left_out"]]
                # with a point left out the standard law's limit may lie above the loss
                reached = [ratio for ratio in ratios if ratio is not None]
                if reached:
                    row["by_law_range"] = [min(reached), max(reached)]
            rows.append(row)
    return rows


def efficiency_trends(ratios):
    """By what factor measured data efficiency changes as D doubles, with its 95% interval, for each
    recipe with three budgets or more: a straight line through logs, a point a budget weighing by
    its interval. Bounds are left out, and limits that are not told from 0."""
    trends = []
    for group in grouped(ratios, ("data_hash", "recipe")):
        doublings, logs, halves = [], [], []
        for row in group:
            half = half_width_of_log(row)
            if half and not row["measured"]["bound"] and told_from_0(row["interval"]):
                doublings.append(math.log2(row["tokens"]))
                logs.append(math.log(row["measured"]["times"]))
                halves.append(half)
        if len(logs) < 3:
            continue
        # Budgets count as independent. What neighbors share, losses of the standard recipe, moves
        # both alike and a slope hardly, so that the interval is rather too wide.
        (slope, _), square = np.polyfit(doublings, logs, 1, w=1 / np.array(halves), cov="unscaled")
        half = math.sqrt(square[0, 0])
        trends.append({**pick(group[0], ("data_hash", "recipe")), "budgets": len(logs),
                       "factor": math.exp(slope),
                       "interval": [math.exp(slope - half), math.exp(slope + half)]})
    return trends


def half_width_of_log(row):
    """Half the interval of a data efficiency's log, its longer side; None where no end is known, as
    one beyond what was measured is not."""
    center = math.log(row["measured"]["times"])
    return max((abs(math.log(end["times"]) - center)
                for end in row["measured_interval"] or () if not end["bound"]), default=None)


def add_standard_noise(interval, loss, standard):
    """The 95% interval of a loss, wider by the noise of the standard recipe's line where that
    reaches the loss; None where either noise is unknown."""
    if interval is None or None in standard["intervals"]:
        return None
    # half the interval of the standard loss there, between those of the budgets beside it
    halves = [(high - low) / 2 for low, high in standard["intervals"]]
    losses, halves = zip(*sorted(zip(standard["loss"], halves)))
    half = float(np.interp(loss, losses, halves))
    return widened(interval, loss, half)


# --------------------------------------------------------------------------------------------------
# Tables, in Markdown; each appears when its points are there

# the first columns of most tables
SETTING = {"recipe": "{recipe}", "size": "{size}", "tokens": "{tokens:,}", "epochs": "{epochs}",
           "lr": "{lr:g}", "weight decay": "{weight_decay:g}"}


def print_table(title, rows, columns):
    """Print a Markdown table under its title; nothing where there are no rows. columns: {header:
    template of a cell}, such as {"lr": "{lr:g}", "limit": "{law[E]:.3f}"}; a cell is empty where a
    key of the row is None or absent, and a column of empty cells is left out."""
    if not rows:
        return
    texts = []  # column by column
    for header, template in columns.items():
        names = re.findall(r"{(\w+)", template)  # the keys that it reads
        cells = []
        for row in rows:
            known = all(row.get(name) is not None for name in names)
            cells.append(template.format(**row) if known else "")
        if not any(cells):
            continue
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
    columns = {**SETTING, "other options": "{others}", "tau": "{tau_epochs:.2f}",
               "loss": "{loss:.4f}", "sd": "{sd:.3f}", "seeds": "{seeds}", "tried": "{tried}"}
    rows = [{**point, "others": other_options(point)} for point in points]
    print_table("Best settings (tau: AdamW's memory in epochs)", rows, columns)
    rows, place = [], ("context", "batch_size")
    for group in grouped(settings, BEST_OF):
        # the best setting of each pair of context and batch size
        for best in sorted(best_of(group, place), key=lambda s: values(s, place)):
            if best.get("steps"):
                best["steps_per_epoch"] = best["steps"] // best["epochs"]
            if best["tried"] < len(group):  # some settings have another place
                rows.append(best)
    print_table("Best settings by context and batch size", rows,
                {"context": "{context}", "batch": "{batch_size}",
                 "steps an epoch": "{steps_per_epoch}", **columns})


def print_noise(rows):
    """The noise by which ties are told and intervals made, a row a task."""
    # one row would only repeat what the settings show
    if len(rows) < 2:
        return
    print_table(f"Noise of one run (a budget with fewer than {ENOUGH_DEGREES} degrees of freedom "
                "of its own takes that of the nearest with so many, else of all)", rows,
                {"recipe": "{recipe}", "tokens": "{tokens:,}", "sd": "{sigma:.4f}",
                 "degrees of freedom": "{freedom}"})


def print_certificates(found):
    """A line a certificate: the setting, its neighbors' margins in nats and which are not worse,
    and the least margin of those that are."""
    rows, margins = [], {}
    # a column for each axis and side: "lr down", with the key lr_down
    for axis, side in product(AXES, ("down", "up")):
        margins[f"{axis.replace('_', ' ')} {side}"] = f"{{{axis}_{side}}}"
    for one in found:
        row = {**one, "certified": "yes" if one["certified"] else "no"}
        for neighbor in one["neighbors"]:
            verdict, margin = neighbor["verdict"], neighbor.get("margin")
            cell = verdict
            # "not run" and "end" have no margin to show
            if margin is not None:
                cell = f"{margin:+.3f}"
            if verdict in ("tie", "better"):
                cell += f" {verdict}"
            if not neighbor.get("near", True):  # a grid with a hole
                cell += f" at {neighbor['value']:g}"
            if verdict == "worse":
                row["least"] = min(margin, row.get("least", margin))
            row[f"{neighbor['axis']}_{neighbor['side']}"] = cell
        rows.append(row)
    print_table("Certificates on the axes that were searched: margins of the neighbors one step "
                "away; a tie is within the 95% interval of no difference", rows,
                {**SETTING, "loss": "{loss:.4f}", **margins, "least worse": "{least:+.3f}",
                 "certified": "{certified}"})


def print_trends(curves, trends, rows):
    """The standard recipe by epochs, the slopes over N, and one setting at all sizes."""
    by_epochs = []  # a row a curve; a column an epoch count that any of them has
    for curve in curves:
        losses = {f"at{p['epochs']}": p["loss"] for p in curve}
        by_epochs.append({**curve[0], **losses})
    counts = sorted({p["epochs"] for curve in curves for p in curve})
    print_table("Standard recipe by epochs: the best loss of each count", by_epochs,
                {"size": "{size}", "tokens": "{tokens:,}",
                 **{f"{count} epochs": f"{{at{count}:.3f}}" for count in counts}})
    print_table("Slope of the best settings' losses, nats per doubling of N", trends,
                {"recipe": "{recipe}", "tokens": "{tokens:,}", "slope": "{slope:+.3f}",
                 "95%": "+-{half:.3f}", "sizes": "{sizes}"})
    print_table("The smallest model's settings at larger sizes", rows,
                {**SETTING, "loss": "{loss:.3f}", "seeds": "{seeds}", "with its own": "{own:.3f}"})


def print_ensembles(members):
    """A line an ensemble; then the limits by epochs and weight decay, what members differ in, and
    what fewer members predict of more."""
    # settings beside each other, so that a column shows what one of them does
    rows = []
    order = ("recipe", "params", "epochs", "weight_decay", "vary", "points")
    for m in sorted(members, key=lambda m: values(m, order)):
        by_k = m["loss_by_k"]  # nats per token of the mean of K members, K = 1 first
        rows.append({**m, **by_count(by_k["logits"]), "probs_last": by_k["probs"][-1],
                     "recipe": m["recipe"] or "mixed", "half": half_width(m)})
    print_table("Ensembles of K members: logit means, the limit of A / K + E with its 95% interval "
                "(other draws of members, and b), b of A / K^b + E; probability means with that "
                "law's limit and b; mean KL of pairs", rows,
                {**SETTING, "differ in": "{vary}", "K": "{points}", "1": "{k1:.3f}",
                 "2": "{k2:.3f}", "3": "{k3:.3f}", "K members": "{last:.3f}", "limit": "{E:.3f}",
                 "95%": "+-{half:.3f}", "b": "{free[b]:.2f}", "probs, K": "{probs_last:.3f}",
                 "their limit": "{free_probs[E]:.3f}", "their b": "{free_probs[b]:.2f}",
                 "KL of pairs": "{kl:.2f}"})
    print_limit_grid(members)
    rows = [{**m, **by_count(m["apart"])} for m in vary_differences(members)]
    print_table("Members that differ in something else minus members that differ in seed, logit "
                "means", rows,
                {"recipe": "{recipe}", "size": "{size}", "differ in": "{vary}", "1": "{k1:+.3f}",
                 "2": "{k2:+.3f}", "3": "{k3:+.3f}", "K": "{count}", "K members": "{last:+.3f}",
                 "limit": "{limit_apart:+.3f}", "95%": "+-{half:.3f}"})
    # the test of a limit: was it right about more members than it was fitted to
    for small, large, rows in predictions(members):
        print_table(f"{large['points']} members of {large['size']}, recipe {large['recipe']}, and "
                    f"what {small['points']} predict: A / K + E for logit means, A / K^b + E for "
                    f"probability means", rows,
                    {"K": "{k}", "logits": "{logits:.3f}", "probs": "{probs:.3f}",
                     "predicted logits": "{predicted:.3f}",
                     "predicted probs": "{predicted_probs:.3f}"})


def print_students(rows):
    """A line for each setting of students: what they keep of their teachers' gain."""
    print_table("Students of K teachers: their loss, that of the best single model of the "
                "teachers' size here, the ensemble's, and the share of the gain that is kept, with "
                "its 95% interval", rows,
                {**SETTING, "text by": "{teachers_take}", "text tokens": "{synthetic_tokens:,}",
                 "text share": "{synthetic_weight:g}", "KL share": "{kl_weight:g}",
                 "T": "{kl_temperature:g}", "teachers": "{teachers_recipe}",
                 "K": "{k}", "student": "{loss:.4f}", "sd": "{sd:.3f}", "seeds": "{seeds}",
                 "single": "{single:.4f}", "ensemble": "{ensemble:.4f}", "kept": "{share:.0%}",
                 "95%": "{low:.0%} to {high:.0%}"})


def by_count(losses):
    """The first three and the last of losses by K, as cells of a row."""
    row = {"count": len(losses), "last": losses[-1]}
    # the paper's 300M ensemble passes the best single model's limit at K = 3
    for k, loss in enumerate(losses[:3], 1):
        row[f"k{k}"] = loss
    return row


def print_limit_grid(members):
    """The limit over K by epochs and weight decay, where members of one size have two of each or
    more; of ensembles of one setting that of most members."""
    alike = [m for m in members if m["vary"] == "seed" and None not in pick(m, AXES).values()]
    for group in grouped(alike, ("data_hash", "size", "tokens", "lr", "rest")):
        # whatever the recipe: the member rule and the settings around it are one grid
        cells = [max(same, key=lambda m: m["points"])
                 for same in grouped(group, ("epochs", "weight_decay"))]
        decays = sorted(set(column(cells, "weight_decay")))
        rows = []
        for line in grouped(cells, ("epochs",)):
            limits = {f"decay{decays.index(m['weight_decay'])}": m["E"] for m in line}
            rows.append({"epochs": line[0]["epochs"], **limits})
        # two recipes at one size are not yet a grid
        if len(rows) > 1 and len(decays) > 1 and len(cells) > 3:
            columns = {f"{decay:g}": f"{{decay{i}:.3f}}" for i, decay in enumerate(decays)}
            print_table(f"Limit over K of {group[0]['size']} members, lr {group[0]['lr']:g}, by "
                        f"epochs and weight decay", rows, {"epochs": "{epochs}", **columns})


def print_laws(laws):
    """The laws over N, N and K, D with what is known of their limits."""
    rows = []
    for law in laws:
        # a claim is "N", "N and K" or "D"; its first letter is what the law's x is
        row = {**law, "of": law["recipe"], "x": law["claim"][0], "unit": "run"}
        # a law over D is of all budgets
        if row["x"] == "N":
            row["at"] = f"{law['tokens']:,}"
        if "K" in law["claim"]:
            row["of"] += " ensembles, K to infinity"
            # each limit over K weighs as much as it has members
            row["unit"] = "member"
        rows.append(row)
        # which count of parameters is the right one is not known, so both limits are shown
        if law.get("nonembedding"):
            rows.append({**row, **law["nonembedding"], "x": "N without embedding and head"})
    for row in rows:
        row["known"] = describe(
            row["interval"], row["leave_one_out"], row.get("sigma"), row["unit"])
        if row.get("misfit") is not None and row["misfit"] < 0.05:
            row["known"] += f"; but the noise rejects this law (p = {row['misfit']:.2g})"
        if not is_power_law(row):  # its numbers would be taken for a law's
            row.update(A=None, b=None, E=None, known="no power law: A or b ran to its bound")
        if "p" in row:
            verdict = "rejected" if row["p"] < 0.05 else "not rejected"
            row["x"] += ", one b for all budgets"
            row["known"] += f"; one b is {verdict} (p = {row['p']:.2g})"
    print_table("Laws A / x^b + E and how well their limits E are known", rows,
                {"of": "{of}", "x": "{x}", "tokens": "{at}", "points": "{points}", "A": "{A:.3g}",
                 "b": "{b:.3g}", "limit": "{E:.4f}", "known": "{known}"})


def print_efficiencies(ratios, trends):
    """Data efficiency at each budget, and how it changes with more data."""
    rows = []
    for ratio in ratios:
        ends = ["{bound}{times:.2f}".format(**end) for end in ratio["measured_interval"] or ()]
        # where both ends lie beyond what was measured they are one text
        rows.append({**ratio, "known": " to ".join(dict.fromkeys(ends))})
    print_table("Data efficiency: times the data that the standard recipe needs for the same loss, "
                "between its measured losses (95%: noise of both) and by its law over D", rows,
                {"recipe": "{recipe}", "tokens": "{tokens:,}", "loss": "{loss:.3f}",
                 "standard": "{standard_loss:.3f}",
                 "measured": "{measured[bound]}{measured[times]:.2f}",
                 "95%": "{known}", "by its law": "{by_law:.2f}",
                 "leaving one out": "{by_law_range[0]:.2f} to {by_law_range[1]:.2f}"})
    print_table("Data efficiency as the tokens double: the factor that the measured one changes by, "
                "budgets with a bound left out", trends,
                {"recipe": "{recipe}", "factor": "{factor:.2f}",
                 "95%": "{interval[0]:.2f} to {interval[1]:.2f}", "budgets": "{budgets}"})


# --------------------------------------------------------------------------------------------------
# Figures

# marker, color and line of a recipe, to be told apart in gray as well
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


def with_budget(name, item, items):
    """A name, with the item's budget of tokens where the items have several."""
    if item["tokens"] is None or len({one["tokens"] for one in items}) < 2:
        return name
    return f"{name}, {item['tokens']:,} tokens"


def size_panels(points, laws, members):
    """{budget: lines} of loss against N: the best of each recipe and the limits of ensembles, each
    with its law."""
    # a law that ran to a bound would mislead as a line
    laws = list(filter(is_power_law, laws))
    panels = {tokens: [] for tokens in sorted(set(column(points, "tokens")))}
    # without single models beside them, ensembles have a figure of their own, over K
    best = [m for m in best_ensembles(members) if m["tokens"] in panels]
    for mine in grouped(points, TASK):
        marker, color, style = STYLES.get(mine[0]["recipe"], OTHER_STYLE)
        # one seed has no spread to draw
        error = [p["sd"] or 0 for p in mine]
        law = first_agreeing(laws, {**mine[0], "claim": "N"}, ("claim", *TASK))
        panels[mine[0]["tokens"]].append(
            Line(mine[0]["recipe"], column(mine, "params"), column(mine, "loss"), marker, color,
                 style, error, law))
    for mine in grouped(best, TASK):
        _, color, _ = STYLES.get(mine[0]["recipe"], OTHER_STYLE)
        law = first_agreeing(laws, {**mine[0], "claim": "N and K"}, ("claim", *TASK))
        panels[mine[0]["tokens"]].append(
            Line(f"{mine[0]['recipe']} ensembles, K to infinity", column(mine, "params"),
                 column(mine, "E"), "*", color, "-.", law=law))
    # a budget of one size says nothing about N
    return {f"{tokens:,} tokens": lines for tokens, lines in panels.items()
            if len({n for line in lines for n in line.x}) > 1}


def member_lines(members):
    """Loss against K of the best ensemble of each recipe and size, with its law; faint, that of
    their probability means."""
    # where all are of mixed members there is no best: all are drawn
    chosen = best_ensembles(members) or members
    places = list(dict.fromkeys((m["size"], m["tokens"]) for m in chosen))
    lines = []
    for m in chosen:
        # a color a recipe, a marker a size and budget
        _, color, style = STYLES.get(m["recipe"], OTHER_STYLE)
        marker = MARKERS[places.index((m["size"], m["tokens"])) % len(MARKERS)]
        k = list(range(1, m["points"] + 1))
        name = with_budget(f"{m['recipe'] or 'mixed'} {m['size']}", m, chosen)
        lines += [Line(name, k, m["loss_by_k"]["logits"], marker, color, style, law=m),
                  Line("", k, m["loss_by_k"]["probs"], marker, color, faint=True)]
    return lines


def epoch_lines(curves):
    """Loss of the standard recipe against epochs, a line a size and budget; faint, its train loss,
    which goes on falling when validation loss rises again."""
    lines = []
    for i, curve in enumerate(curves):
        epochs, color = column(curve, "epochs"), f"C{i}"
        label = f"{curve[0]['size']}, {curve[0]['tokens']:,} tokens"
        lines.append(Line(label, epochs, column(curve, "loss"), MARKERS[i % len(MARKERS)], color,
                          joined=True))
        # a gap in a line would look like a measured stretch
        if all(p.get("train_loss") for p in curve):
            lines.append(Line("", epochs, column(curve, "train_loss"), "", color, ":", joined=True,
                              faint=True))
    return lines


def student_lines(students):
    """Loss of students by text against the tokens that their teachers wrote, a line for each share
    of those in an epoch."""
    # students by text alone: those by KL as well would need a line each
    by_text = [s for s in students if s.get("synthetic_tokens") and not s["kl_weight"]]
    lines = []
    alike = ("tokens", "teachers_recipe", "k", "size", "synthetic_weight")
    for i, line in enumerate(grouped(by_text, alike)):
        best = best_of(line, ("synthetic_tokens",))
        # best_of() sorts by loss, a line goes from left to right
        best.sort(key=lambda s: s["synthetic_tokens"])
        label = "{synthetic_weight:g} of an epoch, {size}".format(**line[0])
        if line[0]["teachers_recipe"]:  # else the teachers are not among the results
            label += ", teachers: {k} {teachers_recipe}".format(**line[0])
        lines.append(Line(with_budget(label, line[0], by_text), column(best, "synthetic_tokens"),
                          column(best, "loss"), MARKERS[i % len(MARKERS)], f"C{i}", joined=True))
    return lines


def student_levels(students):
    """{what: loss} of the best single model and of the teachers of students by text."""
    levels = {}
    for s in students:
        if s.get("synthetic_tokens") and s["ensemble"]:
            levels |= {"one model": s["single"],
                       "{k} {teachers_recipe} teachers".format(**s): s["ensemble"]}
    return levels


def data_lines(lines, laws):
    """Loss against D of each recipe, with its law where it has one; nothing of one budget alone. A
    limit that is not told from 0 is left out."""
    budgets = {tokens for line in lines for tokens in line["tokens"]}
    if len(budgets) < 2:
        return []
    drawn = []
    for i, line in enumerate(lines):
        law = first_agreeing(laws, line, ("recipe", "data_hash"))
        # three points meet any power law; one at a bound is none
        if law and not (law["interval"] and is_power_law(law)):
            law = None
        if all(map(told_from_0, line["intervals"])):
            drawn.append(Line(line["recipe"], line["tokens"], line["loss"],
                              MARKERS[i % len(MARKERS)], f"C{i}", law=law,
                              joined=law is None))
    return drawn


def draw_points(axis, line):
    """The points of a line with their errors."""
    # ms, mfc: size of a marker, color of its inside
    look = {"label": line.label, "mfc": line.color}
    if line.faint:
        look = {"alpha": 0.6, "mfc": "white"}
    join = line.style if line.joined else ""
    axis.errorbar(line.x, line.y, line.error, fmt=line.marker + join, color=line.color, ms=5, lw=1,
                  capsize=3, **look)


def draw_limits_beside(axis, lines):
    """The laws over K, out to 16 members or more, and at the right their limits, K to infinity,
    with their intervals: side by side, so that many can be told apart."""
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
    of limits with one point left out) as a band. A limit far below all points is left out, and one
    that is not told from 0."""
    for line in lines:
        x = np.geomspace(min(line.x), 10 * max(line.x), 100)
        axis.plot(x, line.law["A"] / x ** line.law["b"] + line.law["E"], color=line.color,
                  ls=line.style, lw=1)
    # the heights of points and laws; a limit of 0 would press them into a corner
    low, high = axis.get_ylim()
    lowest, margin = low, (high - low) / 50
    for line in lines:
        if not told_from_0(line.law["interval"]):
            continue
        # farther below than the axis is high, it is left out of sight
        if line.law["E"] > 2 * low - high:
            lowest = min(lowest, line.law["E"] - margin)
        axis.axhline(line.law["E"], color=line.color, ls="--", lw=1)
        band = line.law["interval"] or line.law["leave_one_out"]
        if band:
            axis.axhspan(*band, color=line.color, alpha=0.12, lw=0)
    axis.set_ylim(lowest, high)  # lines and bands have stretched it


def draw(path, x_label, panels, levels=()):
    """One figure, written whole or not at all. panels: {title: lines}, side by side; levels: {name:
    loss}, dotted across."""
    figure = new_figure(path, 4 + 3 * len(panels))
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    axes[0].set_ylabel("validation loss (nats per token)")
    looks = {}
    for axis, (title, lines) in zip(axes, panels.items()):
        axis.set(xscale="log", xlabel=x_label, title=title)
        draw_panel(axis, lines, levels)
        handles, labels = axis.get_legend_handles_labels()
        looks |= dict(zip(labels, handles))  # what several panels have is told once
    if len(looks) > 4:  # too many to lie between the points
        figure.legend(looks.values(), looks.keys(), loc="outside right upper", fontsize=8)
    else:
        axes[0].legend(looks.values(), looks.keys(), fontsize=8)
    save_figure(path, figure)


def draw_panel(axis, lines, levels):
    """The points, laws and levels of one panel."""
    for line in lines:
        draw_points(axis, line)
    for name in levels:
        axis.axhline(levels[name], color="0.5", ls=":", lw=1)
        axis.annotate(name, (0.99, levels[name]), xycoords=("axes fraction", "data"), ha="right",
                      va="bottom", fontsize=8)
    # joined points are counts, such as epochs, that deserve a tick each
    if all(line.joined for line in lines):
        ticks = sorted({x for line in lines for x in line.x})
        millions = ticks[-1] >= 1e6  # tokens: in full they would overlap
        names = [f"{tick / 1e6:,.2f}M" if millions else f"{tick:,}" for tick in ticks]
        axis.set(xticks=ticks, xticklabels=names)
    # a limit over K has an interval of its own, many of which would hide each other as bands
    with_law = [line for line in lines if line.law]
    if with_law and with_law[0].law["claim"] == "K":
        draw_limits_beside(axis, with_law)
    else:
        draw_laws(axis, with_law)
    axis.xaxis.set_minor_formatter("")  # between ticks numbers would overlap


def says_something(ratio):
    """Whether a data efficiency is worth a bar. A limit that is not told from 0 is not. Neither is
    a loss beyond the standard recipe's measured ones whose interval reaches back among them."""
    ends = ratio["measured_interval"]
    if ratio["measured"]["bound"] and ends and not ends[0]["bound"]:
        return False
    return told_from_0(ratio["interval"])


def draw_bars(path, ratios):
    """Data efficiency of each recipe at each budget, with its interval where it has one (paper,
    section on data efficiency). What lies beyond the measured losses is a bar up to their end."""
    figure = new_figure(path)
    axis = figure.subplots()
    recipes = list(dict.fromkeys(ratio["recipe"] for ratio in ratios))
    budgets = sorted({ratio["tokens"] for ratio in ratios})
    width = 0.8 / len(recipes)
    for i, recipe in enumerate(recipes):
        mine = agreeing(ratios, {"recipe": recipe}, ["recipe"])
        # the bars of a budget stand side by side, their middle at its tick
        places = [budgets.index(ratio["tokens"]) + (i + 0.5) * width - 0.4 for ratio in mine]
        times = [ratio["measured"]["times"] for ratio in mine]
        bars = axis.bar(places, times, width, label=recipe, color=f"C{i}", alpha=0.7)
        axis.bar_label(bars, ["{bound}{times:.2f}".format(**ratio["measured"]) for ratio in mine],
                       label_type="center", rotation=90, fontsize=8)
        for place, ratio in zip(places, mine):
            if ratio["measured_interval"]:
                ends = [end["times"] for end in ratio["measured_interval"]]
                side = place + width / 4  # beside the number
                axis.plot([side, side], ends, color="black", lw=1, marker="_")
    axis.axhline(1, color="0.5", ls=":", lw=1)  # as good as the standard recipe
    axis.set(xlim=(-0.5, len(budgets) - 0.5), xticks=range(len(budgets)),
             xticklabels=[f"{tokens:,}" for tokens in budgets],
             xlabel="unique tokens D", ylabel="times the data that the standard recipe needs")
    figure.legend(loc="outside upper center", fontsize=8, ncols=2)
    save_figure(path, figure)


def draw_claims(path, found):
    """A figure of each claim that has points: NAME-epochs, NAME-sizes (a panel a budget),
    NAME-members, NAME-data, NAME-students, NAME-bars."""
    points, members = found["points"], found["members"]
    # beside ensembles of one size, the single models of that size; of several it would be too much
    sizes = {m["size"] for m in members}
    levels = {with_budget(f"{p['recipe']} {p['size']}", p, points): p["loss"]
              for p in points if sizes == {p["size"]}}
    figures = {"epochs": ("epochs (dotted: train loss)", {"": epoch_lines(found["curves"])}),
               "sizes": ("parameters N", size_panels(points, found["over_n"], members)),
               "members": ("members K (hollow: probability means)", {"": member_lines(members)},
                           levels),
               "data": ("unique tokens D", {"": data_lines(found["lines"], found["data"])}),
               "students": ("tokens that the teachers wrote",
                            {"": student_lines(found["students"])},
                            student_levels(found["students"]))}
    drawn = 0
    for claim, figure in figures.items():
        # NAME.png becomes NAME-epochs.png and so on, where there are lines
        if any(figure[1].values()):
            draw(Path(path).with_stem(f"{Path(path).stem}-{claim}"), *figure)
            drawn += 1
    ratios = list(filter(says_something, found["efficiencies"]))
    if ratios:
        draw_bars(Path(path).with_stem(f"{Path(path).stem}-bars"), ratios)
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
    # the tables read these keys without asking
    for row, place in kept:
        for key in ("kind", *NEEDED.get(row.get("kind"), ())):
            if key not in row:
                raise ValueError(f"{place} has no {key}: it is no result, or one of an older "
                                 f"version; remove it and ask for it again")
        loss = row.get("val_loss", 0.0)
        finite_number = isinstance(loss, (int, float)) and math.isfinite(loss)
        if row["kind"] == "run" and not finite_number:
            raise ValueError(f"{place}: val_loss is {loss}, not a number; remove it and train that "
                             f"run again")
    return [row for row, _ in kept]


def count_once(results):
    """(runs, ensembles), each once: a run stands in every study that uses it, and in its folder.
    Prints which runs have two losses (an ensemble's differ as those of its members do), and how
    many results are of other kinds."""
    found, twice = {}, {}
    # evaluations stay in the file for whoever reads it
    counted = [result for result in results if result["kind"] in NEEDED]
    for result in counted:
        # a run may stand under two recipes: a member by the rule can be another recipe's best
        key = result["kind"], result["name"], result["recipe"]
        before = found.get(key, result)
        if before.get("val_loss") != result.get("val_loss"):
            twice[key] = {**result, "first_study": before.get("study"), "first": before["val_loss"],
                          "apart": result["val_loss"] - before["val_loss"]}
        found[key] = result
    # rounding differs between processors, and between compiled and not, and grows in training
    print_table("Runs made twice, on two machines or compiled and not: the second one counts",
                list(twice.values()),
                {**SETTING, "seed": "{seed}", "study": "{first_study}", "loss": "{first:.4f}",
                 "second": "{study}", "its loss": "{val_loss:.4f}", "difference": "{apart:+.4f}"})
    if len(counted) < len(results):
        print(f"{len(results) - len(counted)} result(s) of other kinds have no table here\n")
    runs = [result for result in found.values() if result["kind"] == "run"]
    return runs, [result for result in found.values() if result["kind"] == "ensemble"]


def check_save(path):
    """Raises ValueError, before any work, for a file that save_results() would not write."""
    if Path(path).suffix != ".jsonl":
        raise ValueError(f"--save {path} must end in .jsonl")
    check_folder("--save", path)
    if Path(path).exists():
        read_rows(path)  # refuses a file that holds no results


def save_results(path, results):
    """Merge results into a .jsonl file: a line for each (study, kind, name, recipe), sorted by
    that, written whole or not at all. What the file holds stays, unless the same comes anew. One
    process at a time: of two that save at once the later one wins."""
    before = []
    # read as strictly as results are: a damaged file is not written over
    if Path(path).exists():
        before = [row for row, _ in read_rows(path)]
    merged = {}
    for result in before + results:  # the new ones last, so that they count
        key = tuple(str(result.get(name)) for name in ("study", "kind", "name", "recipe"))
        merged[key] = json.dumps(result, separators=(",", ":"), allow_nan=False)
    lines = [merged[key] + "\n" for key in sorted(merged)]
    write_atomically(path, "".join(lines).encode())


def write_atomically(path, content):
    """Write bytes to a temporary file, then rename it: `path` is never half-written."""
    temporary = f"{path}.{os.getpid()}.tmp"
    try:
        with open(temporary, "wb") as file:
            file.write(content)
        os.replace(temporary, path)
    finally:
        # it is still there only after a failure
        if os.path.exists(temporary):
            os.unlink(temporary)


# --------------------------------------------------------------------------------------------------
# Command line

def analyze(runs, ensembles):
    """The paper's whole analysis of runs on one text: {what: its rows or laws}."""
    # runs to settings, settings to best points, points to laws over N and K, their limits to laws
    # over D: each step reads the one before
    taught = mean_settings(runs)  # students of whatever recipe among them
    settings = comparable(taught)
    noise = pooled_noise(settings)
    points = best_of(settings)
    sizes = size_laws(points, noise)
    members = member_laws(ensembles)
    over_n = sizes + tiered_laws(members)
    shared = share_exponent(over_n)
    lines = lines_over_data(points, noise, over_n, shared, members)
    data = data_laws(lines)
    ratios = efficiencies(lines, data)
    noise_rows = [{**dict(zip(TASK, task)), "sigma": sigma, "freedom": freedom}
                  for task, (sigma, freedom) in noise.items()]
    return {"settings": settings, "set_apart": len(taught) - len(settings),
            "noise": noise_rows, "points": points,
            "certificates": certificates(settings, noise), "curves": epoch_curves(settings),
            "trends": size_trends(points), "one_setting": one_setting(points, settings),
            "students": student_shares(taught, runs, ensembles, noise),
            "sizes": sizes, "over_n": over_n, "members": members, "data": data,
            "shared": shared, "lines": lines, "efficiencies": ratios,
            "efficiency_trends": efficiency_trends(ratios)}


def print_tables(found):
    """Every table of analyze() that has rows."""
    print_settings(found["points"], found["settings"])
    if found["set_apart"]:
        print("Settings of runs with teachers, sampled text or a subset of their own, which stand "
              f"for no recipe: {found['set_apart']}.\n")
    print_noise(found["noise"])
    print_certificates(found["certificates"])
    print_trends(found["curves"], found["trends"], found["one_setting"])
    print_ensembles(found["members"])
    print_students(found["students"])
    print_laws(found["over_n"] + found["shared"] + found["data"])
    print_efficiencies(found["efficiencies"], found["efficiency_trends"])
    if not found["over_n"]:
        print("No law over N: it needs three sizes of one recipe.")


def show_tables(text, wanted):
    """Print tables, all of them or those whose title has one of the `wanted` texts, each below the
    heading of its data set where there are several. Raises ValueError for a text in no title."""
    if not wanted:
        print(text, end="")
        return
    titles, chosen = [], []
    for part in re.split("(?m)^(?=## )", text):
        heading = re.match("## .+\n\n", part)
        for title, rows in re.findall(r"(?ms)^\*\*(.+?)\*\*\n\n(.+?\n)\n", part):
            titles.append(title)
            if any(words in title for words in wanted):
                above = heading[0] if heading else ""
                chosen.append(f"{above}**{title}**\n\n{rows}")
    # each of them, as a misspelled one beside another would be missed in silence
    for words in wanted:
        if not any(words in title for title in titles):
            there = "; ".join(titles) or "none"
            raise ValueError(f"--table {words!r} is in no table's title; there are: {there}")
    print("\n".join(chosen))


def runs_command(args):
    """`fit.py SOURCE ...`: prints every table, writes what is asked for, returns it as plain
    JSON."""
    if args.save:
        check_save(args.save)
    results = read_results(args.what, args.where)
    texts = {result.get("data_hash") for result in results if result["kind"] in NEEDED}
    if args.figure and len(texts) != 1:
        raise ValueError(f"--figure draws one data set, not {len(texts)}; choose one with "
                         "--where data=NAME")
    # saved before they are counted once: a study keeps its own line of a shared run
    if args.save:
        save_results(args.save, results)
    # held back until all are made: --table chooses among them
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        runs, ensembles = count_once(results)
        reports = {}
        # losses on different text do not compare
        for rows in grouped(runs + ensembles, ("data_hash",)):
            of_runs = [row for row in rows if row["kind"] == "run"]
            found = analyze(of_runs, [row for row in rows if row["kind"] == "ensemble"])
            data = f"{rows[0].get('data')} ({rows[0].get('data_hash')})"
            reports[data] = report_of(found)
            if len(texts) > 1:
                print(f"## {data}\n")
            print_tables(found)
    show_tables(printed.getvalue(), args.table)
    # what the study cost on one machine; a run that stands under two recipes was made once
    seconds = {run["name"]: run.get("seconds") or 0 for run in runs}
    print(f"Runs: {len(seconds)} ({sum(seconds.values()) / 3600:.1f} hours one after another). "
          f"Ensembles: {len(ensembles)}.")
    contexts = sorted({run["context"] for run in runs if run.get("context")})
    if len(contexts) > 1:
        print(f"Runs of context {', '.join(map(str, contexts))} are compared here, though a longer "
              "one sees more; --where context=N keeps one.")
    # found: of the one data set there is
    if args.figure:
        draw_claims(args.figure, found)
    if len(reports) == 1:
        return reports[data]
    return {"data": reports}


def report_of(found):
    """What --json says of analyze()."""
    keys = ("recipe", "size", "params", "tokens", *AXES, "loss", "sd", "seeds")
    of_certificates = (*keys, "neighbors", "certified")
    return {"points": [pick(point, keys) for point in found["points"]],
            "sigma": found["noise"],
            "laws": found["over_n"] + found["members"] + found["data"],
            "shared_exponent": found["shared"],
            "data_efficiency": found["efficiencies"],
            "data_efficiency_trends": found["efficiency_trends"],
            "students": [pick(row, (*keys, "k", "teachers_recipe", "single", "ensemble", "share",
                                     "low", "high"))
                         for row in found["students"]],
            "certificates": [pick(one, of_certificates) for one in found["certificates"]]}


def main():
    parser = argparse.ArgumentParser(
        description="Laws, limits and figures of runs or of any table of points.")
    # one line, without argparse's long usage above it
    parser.error = lambda message: parser.exit(
        2, f"{parser.prog}: error: {message} (see {parser.prog} --help)\n")
    parser.add_argument("what", nargs="*", default=["runs"],
                        help="folders of finished runs and .jsonl files of results (default: "
                        "runs); or the name of a law, or several with commas, and a table of "
                        "points, columns by name")
    parser.add_argument("--where", action="append", default=[], metavar="CONDITION",
                        help="keep only rows with COLUMN=VALUE (or several with commas), "
                        "COLUMN<VALUE or COLUMN>VALUE")
    parser.add_argument("--list", action="store_true",
                        help="print every law: formula, columns, source")
    parser.add_argument("--json", action="store_true",
                        help="print everything as JSON on the last line")
    parser.add_argument("--figure", help="of a law: also draw points, law and residuals; of runs: "
                        "also draw NAME-epochs, -sizes, -members, -data, -students, -bars; a "
                        "NAME.png, .pdf or .svg")
    runs = parser.add_argument_group("of runs")
    runs.add_argument("--save", metavar="FILE.jsonl",
                      help="also merge the results into this file, one a line")
    runs.add_argument("--table", action="append", default=[], metavar="WORDS",
                      help="print only the tables whose title has these words")
    # the options so far; those that follow have no effect on runs
    of_runs = set(vars(parser.parse_args([])))
    add_law_options(parser)
    args = parser.parse_args()
    for name, value in vars(args).items():
        # as of a variable of the shell that is not set: it would count as not given
        if value in ("", [""]):
            option = "the source" if name == "what" else f"--{name}"
            raise ValueError(f"{option} is empty; give a value, or leave it out")
    if args.figure:
        new_figure(args.figure)  # refuses before any work
    if args.list:
        report = list_laws()
    elif names_laws(args.what):
        report = law_command(args)
    else:
        idle = [f"--{name}" for name, value in vars(args).items()
                if name not in of_runs and value != parser.get_default(name)]
        if idle:
            raise ValueError(f"no effect on runs: {', '.join(idle)}; leave that out, or name a law "
                             "and its points")
        report = runs_command(args)
    # strict JSON, so any reader takes it: nan and inf are none
    if args.json:
        print(json.dumps(report, allow_nan=False))


if __name__ == "__main__":
    if hasattr(signal, "SIGPIPE"):  # `| head` may end this, without a word
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    try:
        main()
    except (ValueError, OSError) as error:  # bad input: the message says what and what to do
        print(f"fit.py: error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)  # as shells expect
