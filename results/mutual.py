"""What does a lower loss do to the continuation task once halves that are likely anyway lose that?

    python results/mutual.py RUN... > results/mutual.txt

RUN: folders of runs and ensembles. The share of right answers by log p(half | first half), as
eval.py has it, and by mutual information, log p(half | first half) - log p(half), where the second
has end-of-text alone before it. (lm-evaluation-harness calls it acc_mutual_info.) Of an ensemble
the means of its members alone, too.
"""
import dataclasses
import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import eval as evaluation  # noqa: E402


def log_likelihoods(subject, items):
    """Of each choice of each item: (items, choices), in nats."""
    _, encoded, _ = evaluation.encode_items(subject, items)
    return np.array(evaluation.answer(subject, encoded)[0])


def measure(subject, items):
    """Loss, and the shares of right answers by likelihood and by mutual information: (3,)."""
    end_of_text = subject.config.end_of_text
    unasked = [evaluation.Item([([end_of_text], choice) for _, choice in item.pairs], item.gold)
               for item in items]
    likelihood = log_likelihoods(subject, items)
    information = likelihood - log_likelihoods(subject, unasked)
    gold = [item.gold for item in items]
    right = [np.mean(score.argmax(1) == gold) for score in (likelihood, information)]
    return np.array([evaluation.validate(subject, subject.data)["val_loss"], *right])


def main():
    print("| models | K | loss alone | together | right alone | together | by mutual information "
          "alone | together |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for name in sys.argv[1:]:
        subject = evaluation.load_subject([name], "runs", torch.device("cpu"), "logits")
        items = evaluation.continuation_items(subject.data, subject.config.context)
        members = [dataclasses.replace(subject, models=[model]) for model in subject.models]
        alone = np.mean([measure(member, items) for member in members], 0)
        cells = [f"{value:.3f} | " for value in alone]
        if len(members) > 1:
            cells = [f"{cell}{value:.3f}" for cell, value in zip(cells, measure(subject, items))]
        print(f"| {Path(name).name} | {len(members)} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
