"""When does the mean of probabilities beat the mean of logits? By the temperature of the members, and by their number.

    python results/averages.py runs/members/ensembles/* runs/crossover/ensembles/* > results/1000/averages.txt

Each member's logits are divided by a temperature, then one member (the mean over them) and both averages of all are
evaluated over validation. A best temperature above 1 says that members are too sure of themselves, or an average is.
"""
import json
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))
from ensemble import chunk_losses, load_members  # noqa: E402
from fit import fit_power, fit_reciprocal  # noqa: E402
from train import device_windows, inputs_and_targets, use_device  # noqa: E402

TEMPERATURES = (0.35, 0.5, 0.7, 0.85, 1.0, 1.2, 1.5, 2.0)
FITTED = 8  # larger ensembles are predicted from their first so many members


@torch.no_grad()
def losses_by_temperature(models, windows):
    """{temperature: nats per prediction (one member, mean of logits, mean of probabilities)}."""
    everyone, alone = tuple(range(len(models))), [(i,) for i in range(len(models))]
    sums = {t: torch.zeros(3, dtype=torch.float64) for t in TEMPERATURES}
    for batch in windows.split(4):
        tokens, targets = inputs_and_targets(batch)
        # of each member (positions, vocabulary)
        logits = [model.head(model.states(tokens)[:, :-1].flatten(0, 1)) for model in models]
        for t in TEMPERATURES:
            nats = chunk_losses([l / t for l in logits], targets[:, :-1].flatten(), [*alone, everyone])
            one = sum(nats["logits"][i] for i in alone) / len(models)
            sums[t] += torch.tensor([one, nats["logits"][everyone], nats["probs"][everyone]])
    return {t: (total / (len(windows) * (windows.shape[1] - 1))).tolist() for t, total in sums.items()}


def predict(losses, most):
    """(logit mean, probability mean) at K = 1 to `most`, of A / K + E and A / K^b + E fitted to the losses by K."""
    counts = range(1, len(losses["logits"]) + 1)
    one, free = fit_reciprocal(counts, losses["logits"]), fit_power(counts, losses["probs"])
    return [(one["A"] / K + one["E"], free["A"] / K ** free["b"] + free["E"]) for K in range(1, most + 1)]


def print_temperatures(ensembles):
    """A row for each ensemble: train loss of a member, best temperatures, the averages' difference by temperature, and
    the number of members from which fits say that probability means win."""
    print(f"{'':<50}|{'loss at the best temperature (which)':^39}|  loss of probs minus logits at temperature{'':<14}"
          f"| probs win\n{'members':<43}K  train |{'one':>13}{'logits':>13}{'probs':>13}|"
          + "".join(f"{t:>7g}" for t in TEMPERATURES) + " | from K")
    for folder, ensemble in ensembles:
        runs = [str(folder.parent.parent / name) for name in ensemble["members"]]
        results, models, data = load_members(runs, "runs")
        tokens = results[0]["tokens"]  # of each member; the ensemble's is None where they have subsets of their own
        table = losses_by_temperature(models, device_windows(data.val, ensemble["context"], "cpu"))
        best = [min(TEMPERATURES, key=lambda t: table[t][i]) for i in range(3)]
        laws = enumerate(predict(ensemble["loss_by_k"], 100), 1)
        ahead = [K for K, (logits, probs) in laws if probs < logits and K > 1]
        print("{size}, {tokens:,} x {epochs}, wd {weight_decay:g}, {vary}".format(**{**ensemble, "tokens": tokens})
              .ljust(42)
              + f"{len(models):>2}{sum(r['train_loss'] for r in results) / len(results):7.2f} |"
              + "".join(f"{table[t][i]:7.3f} {f'({t:g})':<5}" for i, t in enumerate(best)) + "|"
              + "".join(f"{table[t][2] - table[t][1]:+7.3f}" for t in TEMPERATURES)
              + f" | {ahead[0] if ahead else 'over 100'}", flush=True)


def print_members(ensembles):
    """Losses at every K of the larger ensembles beside what the ensemble of their first FITTED members predicts."""
    losses = {tuple(ensemble["members"]): ensemble["loss_by_k"] for _, ensemble in ensembles}
    for members in losses:
        if len(members) > FITTED and members[:FITTED] in losses:
            print(f"\n{len(members)} members, {members[0]} and so on: losses by K, and as predicted by the first "
                  f"{FITTED} of them\n K   logits  probs   predicted")
            predicted = predict(losses[members[:FITTED]], len(members))
            rows = zip(losses[members]["logits"], losses[members]["probs"], predicted)
            for K, (logits, probs, (logits_then, probs_then)) in enumerate(rows, 1):
                print(f"{K:2d}{logits:9.3f}{probs:7.3f}{logits_then:12.3f}{probs_then:7.3f}")


def main():
    use_device("cpu", torch.get_num_threads())
    ensembles = [(Path(folder), json.loads((Path(folder) / "result.json").read_text())) for folder in sys.argv[1:]]
    ensembles.sort(key=lambda pair: [pair[1][name] for name in ("params", "epochs", "weight_decay", "vary")])
    print_temperatures(ensembles)
    print_members(ensembles)


if __name__ == "__main__":
    main()
