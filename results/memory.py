"""Peak memory of preparing a large corpus: documents of random words, as many and as long as those of web text.

    python results/memory.py 20 > results/memory.json        # GB of text; takes 2.6 times as much of the disk

Words are drawn from docstrings, so that GPT-2's tokens (its ranks in tiktoken's cache) are as long as those of text.
How many words a document has is log-normal, 250 on average, so that some are long enough to be remembered by their
8-grams.
"""
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

MEDIAN, SIGMA = 120, 1.2  # of the words of a document; their mean is median x exp(sigma^2 / 2)


def write_documents(path, size):
    """Write documents as JSON lines until their text holds `size` bytes; returns how many there are."""
    rng, count = np.random.default_rng(0), 0
    files = sorted(find_docstrings()[0])[:1000]
    words = np.array([word for file in files for text in docstrings_of(file) for word in text.split()], object)
    with open(path, "w") as file:
        while size > 0:
            lengths = np.ceil(rng.lognormal(np.log(MEDIAN), SIGMA, 1000)).astype(int)
            drawn = words[rng.integers(len(words), size=lengths.sum())]
            for part in np.split(drawn, np.cumsum(lengths)[:-1]):
                text = " ".join(part)
                file.write(json.dumps({"text": text}) + "\n")
                size, count = size - len(text.encode()), count + 1
    return count


def main():
    gigabytes = float(sys.argv[1])
    with tempfile.TemporaryDirectory() as folder:
        documents, start = write_documents(f"{folder}/text.jsonl", gigabytes * 1e9), time.time()
        subprocess.run([sys.executable, ROOT / "prepare.py", "--source", "text.jsonl", "--tokenizer", "gpt2", "--name",
                        "large"], cwd=folder, check=True, stdout=sys.stderr)
        meta = json.loads(Path(folder, "data/large/meta.json").read_text())
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
        print(json.dumps({"text_gb": gigabytes, "documents": documents, "kept": meta["documents"],
                          "tokens": meta["tokens"], "peak_mib": peak, "seconds": time.time() - start,
                          "threads": os.cpu_count()}, indent=1))


if __name__ == "__main__":
    main()
