"""Why does a student keep no more of its teachers' gain: for want of room, or of text?

    python results/agreement.py STUDENT... > results/agreement.txt

Each student beside the mean logits of its teachers: KL(teachers || student) in nats a token on the
real text that it learned from, and on validation. A student that is as far from its teachers on
text that it has read many times as on new text cannot hold what they say; one that is far closer
there could learn more of other text.
"""
import sys
from pathlib import Path

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import fit  # noqa: E402
from ensemble import load_members  # noqa: E402
from prepare import read_json  # noqa: E402
from train import device_windows, use_device  # noqa: E402


@torch.no_grad()
def divergence(teachers, student, windows):
    """KL(teachers || student) in nats, the mean over all predictions of windows (windows, T)."""
    total = 0.0
    for part in windows.split(16):
        tokens = part.long()
        mean = torch.stack([teacher(tokens) for teacher in teachers]).mean(0)  # (B, T, V)
        ours, theirs = student(tokens).log_softmax(-1), mean.log_softmax(-1)
        # the last token of a window predicts nothing
        total += F.kl_div(ours[:, :-1], theirs[:, :-1], log_target=True, reduction="sum").item()
    return total / windows[:, 1:].numel()


def main():
    use_device("cpu", 1)
    rows = []
    for folder in map(Path, sys.argv[1:]):
        result = read_json(folder / "result.json")
        # refuses data that are no longer those that they have seen
        _, models, data = load_members([*result["teachers"], folder], folder.parent, "cpu")
        *teachers, student = models
        val = device_windows(data.val, result["context"], "cpu")
        train = device_windows(data.train[:result["tokens"]], result["context"], "cpu")
        # as much of one as of the other
        found = {"train": divergence(teachers, student, train[:len(val)]),
                 "val": divergence(teachers, student, val)}
        text_share = result["synthetic_weight"] or None
        rows.append({**result, **found, "k": len(teachers), "text_share": text_share})
    fit.print_table(
        "KL of teachers and student in nats a token, on the real text that it learned from and on "
        "validation", sorted(rows, key=lambda row: (row["params"], -row["val_loss"])),
        {"size": "{size}", "epochs": "{epochs}", "weight decay": "{weight_decay:g}",
         "text share": "{text_share:g}", "KL share": "{kl_weight:g}",
         "T": "{kl_temperature:g}", "seed": "{seed}", "K": "{k}", "loss": "{val_loss:.4f}",
         "KL on train": "{train:.3f}", "KL on validation": "{val:.3f}"})


if __name__ == "__main__":
    main()
