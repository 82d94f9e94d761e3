"""When does the mean of probabilities beat the mean of logits? By the temperature of the members.

    python results/averages.py runs/members/ensembles/* runs/crossover/ensembles/*

Each member's logits are divided by a temperature, then one member (the mean over them) and both
averages of all are evaluated over validation. A best temperature above 1 says that members are too
sure of themselves, or an average is. By their number: fit.py, from the losses at every K.
"""
import json
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))
from ensemble import chunk_losses, load_members  # noqa: E402
from fit import print_table  # noqa: E402
from train import device_windows, inputs_and_targets, use_device  # noqa: E402

TEMPERATURES = (0.35, 0.5, 0.7, 0.85, 1.0, 1.2, 1.5, 2.0)
KINDS = ("one", "logits", "probs")
COLUMNS = {
    "size": "{size}", "tokens": "{tokens:,}", "epochs": "{epochs}",
    "weight decay": "{weight_decay:g}", "differ in": "{vary}", "K": "{k}",
    "train": "{train_loss:.2f}",
    **{f"{kind}, best (at)": f"{{{kind}:.3f}} ({{{kind}_at:g}})" for kind in KINDS},
    **{f"at {t:g}": f"{{at{i}:+.3f}}" for i, t in enumerate(TEMPERATURES)},
    "probs win from K": "{turn}"}
TITLE = ("Losses at the best temperature, that of probability means minus that of logit means by "
         "temperature, and the K from which laws say that probability means win")


@torch.no_grad()
def losses_by_temperature(models, windows):
    """{temperature: nats per prediction (one member, mean of logits, mean of probabilities)}."""
    everyone = tuple(range(len(models)))
    alone = [(i,) for i in everyone]
    sums = {t: torch.zeros(3, dtype=torch.float64) for t in TEMPERATURES}
    for batch in windows.split(4):
        tokens, targets = inputs_and_targets(batch)
        # of each member (positions, vocabulary)
        logits = [model.head(model.states(tokens)[:, :-1].flatten(0, 1)) for model in models]
        targets = targets[:, :-1].flatten()
        for t in TEMPERATURES:
            nats = chunk_losses([one / t for one in logits], targets, [*alone, everyone])
            mean = sum(nats["logits"][i] for i in alone) / len(models)
            sums[t] += torch.tensor([mean, nats["logits"][everyone], nats["probs"][everyone]])
    predictions = len(windows) * (windows.shape[1] - 1)
    return {t: (total / predictions).tolist() for t, total in sums.items()}


def first_turn(ensemble, most=100):
    """The least K above 1 at which A / K^b + E of probability means is below A / K + E of logit
    means; None up to `most`."""
    logits, probs = ensemble["law"], ensemble["free_probs_law"]
    for k in range(2, most + 1):
        if probs["A"] / k ** probs["b"] + probs["E"] < logits["A"] / k + logits["E"]:
            return k
    return None


def row_of(folder, ensemble):
    """The measurements of one ensemble, as COLUMNS names them."""
    runs = [str(folder.parent.parent / name) for name in ensemble["members"]]
    results, models, data = load_members(runs, "runs")
    windows = device_windows(data.val, ensemble["context"], "cpu")
    table = losses_by_temperature(models, windows)
    row = {**ensemble, "tokens": results[0]["tokens"], "k": len(models),
           "train_loss": sum(result["train_loss"] for result in results) / len(results),
           "turn": first_turn(ensemble)}
    for i, kind in enumerate(KINDS):
        best = min(TEMPERATURES, key=lambda t: table[t][i])
        row |= {kind: table[best][i], f"{kind}_at": best}
    for i, t in enumerate(TEMPERATURES):
        row[f"at{i}"] = table[t][2] - table[t][1]
    return row


def main():
    use_device("cpu", torch.get_num_threads())
    rows = []
    for folder in map(Path, sys.argv[1:]):
        ensemble = json.loads((folder / "result.json").read_text())
        if len(ensemble["members"]) < 3:
            print(f"{folder} has too few members for its laws")
            continue
        rows.append(row_of(folder, ensemble))
    keys = ("params", "epochs", "weight_decay", "vary", "k")
    print_table(TITLE, sorted(rows, key=lambda row: [row[key] for key in keys]), COLUMNS)


if __name__ == "__main__":
    main()
