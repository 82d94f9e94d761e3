"""Is a recipe worth as much on validation text of which train holds nothing?

    python results/overlap.py TOKENS RUN... > results/overlap.txt

A validation document is apart if none of its 13-grams occurs in the first TOKENS of train. Losses
on all documents and on those apart, of runs and ensembles (logit means); and beside each how many
times its data the standard recipe needs for it, between the losses of the standard runs that are
given.
"""
import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import eval as evaluation  # noqa: E402
import fit  # noqa: E402
from prepare import cut_windows, load_data, read_json, text_grams  # noqa: E402
from train import device_windows, expand, run_folder, use_device  # noqa: E402


def documents_of(data, part, most):
    """Yields the texts of the documents that begin in the first `most` tokens of a part."""
    tokens, decode = getattr(data, part)[:most], data.tokenizer().decode
    starts = np.flatnonzero(tokens == data.meta["end_of_text"])
    for document in np.split(tokens, starts)[1:]:
        yield decode(document[1:].tolist())


def documents_apart(data, most):
    """Whether each validation document shares no 13-gram with the first `most` train tokens."""
    in_train = set()
    for text in documents_of(data, "train", most):
        in_train.update(text_grams(text, 13).tolist())
    texts = documents_of(data, "val", len(data.val))
    return np.array([in_train.isdisjoint(text_grams(text, 13).tolist()) for text in texts])


def losses_of(name, data, apart):
    """A row of the table: what the model is, and its losses."""
    runs = expand([name], "runs")
    first = read_json(run_folder(runs[0], "runs") / "result.json")
    subject = evaluation.load_subject([name], "runs", torch.device("cpu"), "logits")
    windows = cut_windows(data.val, subject.config.context)
    nats = evaluation.window_nats(subject, device_windows(data.val, windows.shape[1], "cpu"))
    # of the predicted token, counted from 0
    documents = (windows == data.meta["end_of_text"]).cumsum().reshape(windows.shape)[:, 1:] - 1
    return {**first, "k": len(runs), "all": nats.mean(), "apart": nats[apart[documents]].mean()}


def main():
    most, names = int(sys.argv[1]), sys.argv[2:]
    use_device("cpu", 1)
    data = load_data("docstrings")
    apart = documents_apart(data, most)
    rows = [losses_of(name, data, apart) for name in names]
    for which in ("all", "apart"):
        standard = {}
        for row in rows:
            if row["recipe"] == "standard":
                standard[row["tokens"]] = min(row[which], standard.get(row["tokens"], np.inf))
        for row in rows:
            if row["tokens"] in standard:
                worth = fit.measured_efficiency(standard, row[which], row["tokens"])
                row[f"times_{which}"] = "{bound}{times:.2f}".format(**worth)
    share = np.mean(apart)
    fit.print_table(
        f"Losses on all {len(apart):,} validation documents and on the {share:.0%} that share no "
        f"13-gram with the first {most:,} train tokens; times the data that the standard recipe "
        "needs", rows,
        {"recipe": "{recipe}", "size": "{size}", "tokens": "{tokens:,}", "epochs": "{epochs}",
         "lr": "{lr:g}", "weight decay": "{weight_decay:g}", "K": "{k}", "all": "{all:.4f}",
         "apart": "{apart:.4f}", "times, all": "{times_all}", "times, apart": "{times_apart}"})


if __name__ == "__main__":
    main()
