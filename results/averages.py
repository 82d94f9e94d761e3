"""When does the mean of probabilities beat the mean of logits? Ensembles at several temperatures of their members.

    python results/averages.py runs/members/ensembles/* > results/1000/averages.txt

Each member's logits are divided by a temperature, then one member (the mean over them) and both averages of all are
evaluated over validation. A best temperature above 1 says that members are too sure of themselves.
"""
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))
from ensemble import chunk_losses, expand, load_members  # noqa: E402
from train import device_windows, inputs_and_targets, use_device  # noqa: E402

TEMPERATURES = (0.8, 0.9, 1.0, 1.1, 1.3, 1.6, 2.0)


@torch.no_grad()
def losses_by_temperature(models, windows):
    """{temperature: nats per prediction (one member, mean of logits, mean of probabilities)}."""
    everyone, alone = tuple(range(len(models))), [(i,) for i in range(len(models))]
    sums = {t: torch.zeros(3, dtype=torch.float64) for t in TEMPERATURES}
    for batch in windows.split(4):
        tokens, targets = inputs_and_targets(batch)
        logits = [model.head(model.states(tokens)[:, :-1].flatten(0, 1)) for model in models]
        for t in TEMPERATURES:
            nats = chunk_losses([l / t for l in logits], targets[:, :-1].flatten(), [*alone, everyone])
            sums[t] += torch.tensor([sum(nats["logits"][i] for i in alone) / len(models), nats["logits"][everyone],
                                     nats["probs"][everyone]])
    return {t: (total / (len(windows) * (windows.shape[1] - 1))).tolist() for t, total in sums.items()}


def main():
    use_device("cpu", torch.get_num_threads())
    print(f"{'':<44}   |{'at temperature 1':^24}|{'at the best of one':^24}|{'each at its own best':^28}\n"
          f"{'members':<44} K |" + f"{'one':>8}{'logits':>8}{'probs':>8}|" * 2 + f"{'logits':>14}{'probs':>14}")
    for folder in sys.argv[1:]:
        results, models, data = load_members(expand([folder], "runs"), "runs")
        windows, r = device_windows(data.val, results[0]["context"], "cpu"), results[0]
        table = losses_by_temperature(models, windows)
        one, logits, probs = (min(TEMPERATURES, key=lambda t: table[t][i]) for i in range(3))
        print(f"{r['size']}, {r['epochs']:>3} epochs, lr {r['lr']:g}, weight decay {r['weight_decay']:g}".ljust(44)
              + f"{len(models):>2} |" + "".join("".join(f"{loss:8.3f}" for loss in table[t]) + "|" for t in (1.0, one))
              + f"{table[logits][1]:8.3f} ({logits:3g}){table[probs][2]:8.3f} ({probs:3g})", flush=True)


if __name__ == "__main__":
    main()
