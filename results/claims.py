"""Print the paper's claims beside what committed runs say of them, as the tables of README.md.

    python results/claims.py
    python results/claims.py continued    # continued pre-training, recipe by recipe
    python results/claims.py downstream   # right answers of ensembles beside those of their members
    python results/claims.py bench        # speed beside transformers

Numbers of this kit come out of results/1000.jsonl; the paper's are quoted from arXiv 2509.14786.
"""
import json
import math
import statistics
import sys
from pathlib import Path

from scipy.stats import t as student_t

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import fit  # noqa: E402
from prepare import InputError, run_main  # noqa: E402

TOKENS = 209_715
CONTINUED = 131_072  # tokens to continue on
FILE = "results/1000.jsonl"


def analysis(studies):
    """fit.py's analysis of some studies."""
    results = fit.read_results([FILE], [f"study={studies}"])
    return fit.analyze(*fit.count_once(results))


def at_budget(rows, **wanted):
    """The rows of the smallest budget that have what is wanted."""
    wanted["tokens"] = TOKENS
    return [row for row in rows if all(row.get(key) == value for key, value in wanted.items())]


def interval(low, high):
    return f"({low:.2f} to {high:.2f})"


def slope(trend):
    """A slope over N with half its 95% interval."""
    return f"{trend['slope']:+.3f} +- {trend['half']:.3f} nats a doubling of N"


def overfits(found):
    """The standard recipe: its best loss, and how it changes with N and with more epochs."""
    best = min(at_budget(found["points"], recipe="standard"), key=lambda point: point["loss"])
    trend, = at_budget(found["trends"], recipe="standard")
    certificate, = [one for one in found["certificates"] if one["setting"] == best["setting"]]
    longer, = [neighbor for neighbor in certificate["neighbors"]
               if (neighbor["axis"], neighbor["side"]) == ("epochs", "up")]
    return (f"best {best['loss']:.2f} ({best['size']}); {slope(trend)}; at twice its epochs "
            f"{longer['margin']:+.2f}")


def regularized(found):
    """The regularized law over N."""
    law, = at_budget(found["sizes"], recipe="regularized")
    trend, = at_budget(found["trends"], recipe="regularized")
    return (f"{slope(trend)}; limit {law['E']:.2f} {interval(*law['interval'])}, exponent "
            f"{law['b']:.2f}")


def ensembles(found, size):
    """Limits over K of one size: the single model's settings, and the member rule."""
    limits = []
    for recipe in ("regularized", "member"):
        rows = at_budget(found["members"], size=size, vary="seed", recipe=recipe)
        best = max(rows, key=lambda row: row["points"])
        limits.append(f"{best['E']:.2f} {interval(*best['interval'])}")
    return " and ".join(limits)


def worth(found, *names):
    """{tokens: a data efficiency with its interval}, at each budget of the first of the names that
    has one there."""
    texts, by_tokens = {}, {}
    for name in names[::-1]:
        by_tokens |= {row["tokens"]: row for row in found["efficiencies"] if row["recipe"] == name}
    for tokens, row in by_tokens.items():
        text = "{bound}{times:.2f}".format(**row["measured"])
        if row["measured_interval"]:
            low, high = row["measured_interval"]
            text += " ({bound}{times:.2f} to ".format(**low) + "{bound}{times:.2f})".format(**high)
            # below or above all that was measured one end is known
            if row["measured"]["bound"] == "more than ":
                text = "at least {times:.2f}".format(**low)
            if row["measured"]["bound"] == "less than ":
                text = "at most {times:.2f}".format(**high)
            if row["interval"][0] == 0:  # a limit that is not told from 0 says nothing
                text = "not determined"
        texts[tokens] = text
    return texts


def students(found):
    """The share of the largest ensemble's gain that students keep: of their teachers' size, of
    twice that, and of members as teachers; each of the setting with most seeds."""
    teachers, = {m["params"] for m in found["members"]}
    most = max(row["k"] for row in found["students"])
    texts = []
    for what, recipe, times in (
            (f" of {most} regularized members' gain", "regularized", 1),
            (" by a student of twice the size", "regularized", 2),
            (f" of {most} members' by the member rule, which gain more", "member", 1)):
        rows = [row for row in found["students"] if row["share"] and row["k"] == most
                and row["teachers_recipe"] == recipe and round(row["params"] / teachers) == times]
        best = max(rows, key=lambda row: (row["seeds"], row["share"]))
        texts.append(f"{best['share']:.0%} ({best['low']:.0%} to {best['high']:.0%}){what}")
    return "; ".join(texts)


def continued_rows(found):
    """Continued pre-training on CONTINUED tokens: [(what, setting, seeds, loss, half its 95%
    interval or None)], the best of each recipe by measured loss."""
    cells = [s for s in found["settings"] if s["recipe"] == "cpt" and s["tokens"] == CONTINUED]
    rows = []
    for what, wanted in (("default", dict(batch_size=16, epochs=1)),
                         ("small batches", dict(epochs=1)), ("and more epochs", {})):
        alike = [s for s in cells if all(s[key] == value for key, value in wanted.items())]
        best = min(alike, key=lambda s: s["loss"])
        half = None
        if best["sd"] is not None:
            # seeds of one setting alone: large batches differ more among seeds than small ones
            half = student_t.ppf(0.975, best["seeds"] - 1) * best["sd"] / math.sqrt(best["seeds"])
        rows.append((what, best, best["seeds"], best["loss"], half))
    members = [m for m in found["members"] if m["recipe"] == "cpt" and m["tokens"] == CONTINUED]
    for average, loss_of, half_of in (
            ("and their ensemble", lambda m: m["loss_by_k"]["logits"][-1], lambda m: None),
            ("the least limit of ensembles", lambda m: m["E"], fit.half_width)):
        best = min(members, key=loss_of)
        setting, = [s for s in cells if s["setting"] == best["setting"]]
        rows.append((average, setting, best["points"], loss_of(best), half_of(best)))
    return rows


def default_settings(found):
    """Settings of the default recipe of continued pre-training, on any number of tokens."""
    return [s for s in found["settings"]
            if (s["recipe"], s["epochs"], s["batch_size"]) == ("cpt", 1, 16)]


def default_losses(found):
    """{tokens: loss} of the default recipe at its best lr."""
    losses = {}
    for s in default_settings(found):
        losses[s["tokens"]] = min(s["loss"], losses.get(s["tokens"], math.inf))
    return losses


def default_half_width(found):
    """Half the 95% interval of the default recipe's losses: of three seeds, with the spread of all
    its settings of two or more, which differ in their tokens."""
    several = [s for s in default_settings(found) if s["seeds"] > 1]
    freedom = sum(s["seeds"] - 1 for s in several)
    variance = sum((s["seeds"] - 1) * s["sd"] ** 2 for s in several) / freedom
    return student_t.ppf(0.975, freedom) * math.sqrt(variance / 3)


def worth_continued(found, loss, half):
    """How many times CONTINUED tokens the default recipe needs for a loss, with its 95% interval if
    the loss has one: the noise of both is counted."""
    losses = default_losses(found)
    text = f"{fit.measured_efficiency(losses, loss, CONTINUED)['times']:.2f}"
    if half is None:
        return text
    half = math.hypot(half, default_half_width(found))
    low, high = ("{bound}{times:.2f}".format(**fit.measured_efficiency(losses, end, CONTINUED))
                 for end in (loss + half, loss - half))
    return f"{text} ({low} to {high})"


def of_bases(found):
    """What is found of one base model after another, the one of which most was tried first."""
    names = [s["started_from"] for s in found["settings"] if s["tokens"] == CONTINUED]
    bases = []
    for name in sorted(set(names), key=lambda name: (-names.count(name), name)):
        settings = [s for s in found["settings"] if s.get("started_from") == name]
        hashes = {s["setting"] for s in settings}
        bases.append({"settings": settings,
                      "members": [m for m in found["members"] if m["setting"] in hashes]})
    return bases


def worth_by_base(found):
    """{recipe: how many times CONTINUED tokens the default needs for its loss, by base model}."""
    times = {}
    for base in of_bases(found):
        losses = default_losses(base)
        for what, _, _, loss, _ in continued_rows(base):
            worth = fit.measured_efficiency(losses, loss, CONTINUED)["times"]
            times.setdefault(what, []).append(worth)
    return times


def mean_and_half_width(values):
    """The mean and half its 95% interval."""
    count = len(values)
    half = student_t.ppf(0.975, count - 1) * statistics.stdev(values) / math.sqrt(count)
    return statistics.mean(values), half


def mean_and_interval(values):
    mean, half = mean_and_half_width(values)
    return f"{mean:.2f} {interval(mean - half, mean + half)}"


def print_continued(found, larger):
    """Each recipe's loss, and how many times the tokens the default one needs for it, of the base
    model of which most was tried; then of each base model, and of a larger one."""
    first = of_bases(found)[0]
    rows = []
    for what, s, count, loss, half in continued_rows(first):
        shown = f"{loss:.3f}"
        if half is not None:
            shown += f" +- {half:.3f}"
        setting = "{batch_size} {epochs} {lr:g}".format(**s).split()
        rows.append([what, *setting, str(count), shown, worth_continued(first, loss, half)])
    print_rows(["recipe", "batch", "epochs", "lr", "seeds or members", "loss",
                "tokens the default needs, in times"], rows)
    line = ", ".join(f"{loss:.3f} at {tokens:,}" for tokens, loss in
                     sorted(default_losses(first).items()))
    print(f"\nThe default recipe: {line} tokens.\n")
    print_bases(found, larger)
    print_real_model(found)


def print_bases(found, larger):
    """How many times the tokens the default recipe needs, from one base model after another."""
    times, of_larger = worth_by_base(found), worth_by_base(larger)
    del times["default"]  # 1 by definition
    bases = range(1, 1 + len(of_bases(found)))
    print_rows(["tokens the default needs, in times", *(f"base model {i}" for i in bases),
                "mean (95%)", "a base model of 1.4m"],
               [(what, *(f"{one:.2f}" for one in of_each), mean_and_interval(of_each),
                 f"{of_larger[what][0]:.2f}") for what, of_each in times.items()])
    print()


def print_real_model(found):
    """SmolLM2's loss as it is, which a run at lr 0 measures, and after it was continued."""
    of_hub = [s for s in found["settings"] if s["size"].startswith("llama-")]
    for s in sorted(of_hub, key=lambda s: s["lr"]):
        how = "as it is"
        if s["lr"]:
            how = f"after {s['tokens']:,} tokens at lr {s['lr']:g}, epochs: {s['epochs']}"
        print(f"- {s['size']}: {s['loss']:.3f} {how}")


def continued(found):
    """What an ensemble of continued runs is worth, and the least limit, over base models."""
    times = worth_by_base(found)
    return (f"5 members {mean_and_interval(times['and their ensemble'])} times the data; the least "
            f"limit of ensembles {mean_and_interval(times['the least limit of ensembles'])}")


def answers(error):
    """The largest ensemble of each setting with all its members answered alone: {setting: (its
    evaluation, mean loss of its members, their mean error)}. error: the key of what is measured."""
    evaluations = [e for e in fit.read_results([FILE], ["study=downstream"]) if error in e]
    alone = {e["runs"][0]: e for e in evaluations if len(e["runs"]) == 1}
    found = {}
    for e in sorted(evaluations, key=lambda e: len(e["runs"])):  # a larger one takes the place
        if len(e["runs"]) > 1 and all(run in alone for run in e["runs"]):
            found[e["setting"]] = (e, *(statistics.mean(alone[run][key] for run in e["runs"])
                                        for key in ("loss", error)))
    return found


def more_right_answers(error):
    """How many more answers ensembles have right than their members, with its 95% interval."""
    gains = [alone - together[error] for together, _, alone in answers(error).values()]
    mean, half = mean_and_half_width(gains)
    return f"{mean:+.3f} +- {half:.3f} of all answers over {len(gains)} ensembles"


def print_downstream():
    """Loss and right answers of members alone, on average, and of their ensemble."""
    found, rows = answers("error"), []
    informed = answers("error_mutual_info")
    for setting, (e, loss, error) in sorted(found.items(), key=lambda item: -item[1][1]):
        row = [e["recipe"], e["size"], f"{e['tokens']:,}", str(len(e["runs"])), f"{loss:.3f}",
               f"{e['loss']:.3f}", f"{1 - error:.3f}", f"{1 - e['error']:.3f}", "", ""]
        if setting in informed and informed[setting][0]["runs"] == e["runs"]:
            e, _, error = informed[setting]
            row[-2:] = f"{1 - error:.3f}", f"{1 - e['error_mutual_info']:.3f}"
        rows.append(row)
    print_rows(["recipe", "size", "tokens", "K", "loss alone", "together", "right alone",
                "together", "by mutual information alone", "together"], rows)
    print(f"\nTogether minus alone by likelihood: {more_right_answers('error')}; by mutual "
          f"information: {more_right_answers('error_mutual_info')}.")


def print_rows(header, rows):
    """A table in Markdown."""
    for row in (header, ["---"] * len(header), *rows):
        print(f"| {' | '.join(row)} |")


def print_claims():
    """The paper's claims, and what stands for each of them here."""
    # each claim of the studies that its target makes
    ladder, found = analysis("ladder"), analysis("ladder,members,efficiency")
    print_rows(["claim", "here, N and D over 1,000 (95%)", "the paper, 200M tokens",
                "made by `make ...`"], [
        ("More epochs and parameters overfit at weight decay 0.1", overfits(ladder),
         "best 3.75; falls, then rises with N", "ladder"),
        ("Regularized, loss is a power law in N", regularized(ladder),
         "limit 3.43, exponent 1.02", "ladder"),
        ("Ensembles of one size (300k) have a lower limit; members of twice the epochs and half "
         "the weight decay a lower one still",
         ensembles(found, "300k"), "3.34 and 3.27", "ensembles"),
        ("A student of one size keeps most of it", students(analysis("miniature,distillation")),
         "83% of 8", "distillation"),
        ("Ensembles answer more of a benchmark than one model",
         "which half goes on a passage, by mutual information: "
         f"{more_right_answers('error_mutual_info')}; by likelihood {more_right_answers('error')}",
         "3 to 6 points more with 5 members",
         "downstream"),
        ("Continued pre-training: small batches, epochs, an ensemble, against the default recipe",
         continued(analysis("continued")), "17.5", "continued")])
    print()
    print_efficiencies(found)


def print_efficiencies(found):
    """How many times the data the standard recipe needs for what others reach, by budget, and by
    what factor that changes as the budget doubles."""
    trends = {trend["recipe"]: f"{trend['factor']:.2f} {interval(*trend['interval'])}"
              for trend in found["efficiency_trends"]}
    rows = [
        ("one regularized model", "2.09", ["regularized, best measured"]),
        ("the regularized limit", "2.29, and more than 2 at all budgets",
         ["regularized, N to infinity"]),
        ("the best ensemble", "3.75", ["ensembles, best measured"]),
        ("the least limit over K", "3.03 at 300M, which is not the least",
         ["ensembles, best N, K to infinity"]),
        ("the limit over N and K", "5.17, and more than 5 at all budgets",
         ["member ensembles, N and K to infinity", "regularized ensembles, N and K to infinity"])]
    texts = [worth(found, *names) for _, _, names in rows]
    budgets = sorted(set().union(*texts))
    print_rows(["data efficiency (95%, `make efficiency`) of",
                *(f"{tokens:,} tokens" for tokens in budgets), "times, as tokens double",
                "the paper, 200M tokens"],
               [(what, *(by_tokens.get(tokens, "") for tokens in budgets),
                 trends.get(names[0], ""), paper)
                for (what, paper, names), by_tokens in zip(rows, texts)])


def print_bench():
    """How many times as fast this kit is, compiled, as each other contestant of bench.py: a table
    for each machine."""
    for path in sorted(Path("results/100").glob("bench*.json")):
        report = json.loads(path.read_text())
        sizes = {name: found for name, found in report.items() if isinstance(found, dict)}
        rows = {}  # a row a contestant, a column a size
        for i, found in enumerate(sizes.values()):
            for name, ratio in found["limitgpt_compiled_over"].items():
                low, high = ratio["quartiles"]
                rows.setdefault(name, {"over": name})[f"size{i}"] = (
                    f"{ratio['median']:.2f} ({low:.2f} to {high:.2f})")
        columns = {"over": "{over}", **{size: f"{{size{i}}}" for i, size in enumerate(sizes)}}
        fit.print_table(f"This kit's tokens per second, compiled, over others': median and "
                        f"quartiles of {report['rounds']} rounds, {report['processor']}",
                        list(rows.values()), columns)


def main():
    if sys.argv[1:] == ["continued"]:
        print_continued(analysis("continued"), analysis("continued_larger"))
    elif sys.argv[1:] == ["downstream"]:
        print_downstream()
    elif sys.argv[1:] == ["bench"]:
        print_bench()
    elif sys.argv[1:]:
        raise InputError(f"{sys.argv[1]} has no table; give continued, downstream, bench or "
                         f"nothing")
    else:
        print_claims()


if __name__ == "__main__":
    run_main(main)
