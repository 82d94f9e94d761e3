"""Real text that no teacher has read, as a set to mix in: what do students lack, room or text?

    python results/unseen.py
    python distill.py --mode kl --synthetic unseen --synthetic_weight 0.8 --kl_weight 1 ...

data/unseen holds the docstrings that follow the first 209,715 tokens, four times as many. With
--kl_weight 1 a student reads them with its teachers' prediction alone: no token of them is a label.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
from prepare import PAPER_TOKENS, load_data, run_main, write_data  # noqa: E402

READ = PAPER_TOKENS // 1000  # by the teachers


def main():
    if Path("data/unseen/meta.json").exists():
        print("data/unseen is there already")
        return
    data = load_data("docstrings")
    meta = {key: data.meta[key] for key in ("vocab_size", "end_of_text", "pattern")}
    write_data("unseen", {"train": data.train[READ:5 * READ], "val": data.val}, data.ranks(),
               {"identity": {"unseen": 4 * READ}, **meta}, data.tokenizer_file())


if __name__ == "__main__":
    run_main(main)
