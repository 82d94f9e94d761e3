"""Write the text of `make continued`: the docstrings of data/docstrings in two files.

    python results/continued.py FOLDER

FOLDER/general.jsonl is the text to pre-train on, without mathematics; FOLDER/mathematics.jsonl, the
docstrings of sympy and mpmath, is what training continues on.
"""
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from prepare import find_docstrings, read_docstrings, write_atomically  # noqa: E402

MATHEMATICS = ("sympy", "mpmath")


def main():
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    files = {"general": [], "mathematics": []}
    for file in find_docstrings()[0]:
        subject = "mathematics" if set(MATHEMATICS) & set(file.parts) else "general"
        files[subject].append(file)
    for subject, found in files.items():
        lines = "".join(json.dumps({"text": text}) + "\n" for text in read_docstrings(found))
        write_atomically(folder / f"{subject}.jsonl", lambda out: out.write(lines.encode()))


if __name__ == "__main__":
    main()
