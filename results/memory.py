"""Peak memory of preparing a large corpus: documents of random words, as many and as long as those
of web text, in one file.

    python results/memory.py 20              # GB of text
    python results/memory.py 1 .jsonl.gz     # packed
    python results/memory.py 0.25 .jsonl 6   # as many documents as 5 GB have, short ones

results/memory.json is a list of what it printed. It takes 2.6 times as much of the disk as the
text, and GPT-2's ranks in tiktoken's cache. Words are drawn from docstrings, so that GPT-2's tokens
are as long as those of text. How many words a document has is log-normal, with a median of 120 and
250 on average, so that some are long enough to be remembered by their 8-grams.
"""
import gzip
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from prepare import docstrings_of, find_docstrings  # noqa: E402

MEDIAN, SIGMA = 120, 1.2  # words of a document; their mean is median x exp(sigma^2 / 2)


def read_words():
    """The words of a thousand files' docstrings, as often as they occur there."""
    words = []
    # by name, so that another machine draws the same text
    for file in sorted(find_docstrings()[0])[:1000]:
        for text in docstrings_of(file):
            words += text.split()
    return np.array(words, object)


def write_documents(path, size, median):
    """Write documents of so many words as JSON lines until their text holds `size` bytes; returns
    how many there are."""
    rng, count, words = np.random.default_rng(0), 0, read_words()
    opened = open(path, "wt")
    if path.suffix == ".gz":
        # the fastest level: what is measured is the reading
        opened = gzip.open(path, "wt", compresslevel=1)
    with opened as file:
        while size > 0:
            # a thousand documents at a time: one by one would take hours
            lengths = np.ceil(rng.lognormal(np.log(median), SIGMA, 1000)).astype(int)
            drawn = words[rng.integers(len(words), size=lengths.sum())]
            for part in np.split(drawn, np.cumsum(lengths)[:-1]):
                text = " ".join(part)
                file.write(json.dumps({"text": text}) + "\n")
                size -= len(text.encode())
                count += 1
    return count


def main():
    gigabytes, suffix, median = float(sys.argv[1]), ".jsonl", MEDIAN
    if len(sys.argv) > 2:
        suffix = sys.argv[2]
    if len(sys.argv) > 3:
        median = int(sys.argv[3])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "text" + suffix)
        documents = write_documents(path, gigabytes * 1e9, median)
        start = time.time()  # without the time of writing them
        # its default options but for the tokenizer: training one takes the same for any text
        command = [sys.executable, ROOT / "prepare.py", "--source", path.name, "--tokenizer",
                   "gpt2", "--name", "large"]
        subprocess.run(command, cwd=folder, check=True, stdout=sys.stderr)
        seconds = time.time() - start
        meta = json.loads(Path(folder, "data/large/meta.json").read_text())
        # of the processes that have ended: the preparation is the only one
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
        print(json.dumps({"text_gb": gigabytes, "suffix": suffix, "median_words": median,
                          "documents": documents, "kept": meta["documents"],
                          "tokens": meta["tokens"], "peak_mib": peak, "seconds": seconds,
                          "threads": len(os.sched_getaffinity(0))}, indent=1))


if __name__ == "__main__":
    main()
