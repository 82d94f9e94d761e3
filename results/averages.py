"""When does the mean of probabilities beat the mean of logits? Ensembles at several temperatures of their members.

    python results/averages.py runs/members/ensembles/* > results/1000/averages.txt

Each member's logits are divided by a temperature, then both averages are evaluated over validation, all members in.
A best temperature above 1 says that the members are too sure of themselves.
"""
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))
from ensemble import expand, load_members, subset_losses  # noqa: E402
from train import device_windows, use_device  # noqa: E402

TEMPERATURES = (0.7, 0.8, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0)


def losses_at(models, windows, temperature):
    """(mean of the members, mean of logits, mean of probabilities), in nats."""
    heads = [model.head.weight.data for model in models]
    for model in models:
        model.head.weight.data = model.head.weight.data / temperature
    everyone, alone = tuple(range(len(models))), [(i,) for i in range(len(models))]
    losses = subset_losses(models, windows, [*alone, everyone])
    for model, head in zip(models, heads):
        model.head.weight.data = head
    return (sum(losses["logits"][i] for i in alone) / len(models), losses["logits"][everyone],
            losses["probs"][everyone])


def main():
    use_device("cpu", torch.get_num_threads())
    print(f"{'members':<52}{'K':>2}   at temperature 1: member  logits   probs   best (temperature): member"
          "        logits         probs")
    for folder in sys.argv[1:]:
        results, models, data = load_members(expand([folder], "runs"), "runs")
        windows, r = device_windows(data.val, results[0]["context"], "cpu"), results[0]
        table = {t: losses_at(models, windows, t) for t in TEMPERATURES}
        best = [min(TEMPERATURES, key=lambda t: table[t][i]) for i in range(3)]
        label = f"{r['size']} {r['recipe']}, {r['epochs']} epochs, lr {r['lr']:g}, weight decay {r['weight_decay']:g}"
        print(f"{label:<52}{len(models):>2}" + " " * 20 + "".join(f"{loss:8.3f}" for loss in table[1.0]) + " " * 20
              + "".join(f"{table[t][i]:8.3f} ({t:<4g})" for i, t in enumerate(best)), flush=True)


if __name__ == "__main__":
    main()
