"""Text to tokens on disk. This file owns the data format: it alone writes it, and every other stage reads through it.

    python prepare.py                                        # the docstrings of the kit's own pinned wheels
    python prepare.py --source my.txt notes/ --name mine --vocab_size 2048

data/NAME/ holds train.bin and val.bin (headerless little-endian token ids, nanoGPT's convention), the starts of their
documents, the tokenizer in tiktoken's rank format and meta.json with the SHA-256 of each file. Steps: collect
documents, drop duplicates and near-duplicates, shuffle and split by document, train a byte-level BPE, encode.
"""
import argparse
import ast
import base64
import concurrent.futures
import contextlib
import hashlib
import heapq
import importlib.metadata
import importlib.util
import inspect
import json
import os
import shutil
import sys
import warnings
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import regex  # comes with tiktoken, which splits text with the same pattern
import tiktoken

# GPT-2's split into words: a contraction, letters, digits or signs with one space before them, or white space
PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""
END_OF_TEXT = "<|endoftext|>"
CORPUS_PACKAGES = ("torch", "numpy", "scipy", "sympy", "networkx", "mpmath")
# of the documents in requirements.txt's versions; other versions give other text, hence other losses
CORPUS_SHA256 = "127c6b597cc050cf4df57bd04d5399d9a048aa187a4a4559507a03d8cedc5d7c"
PAPER_TOKENS = 209_715_200  # the paper's smallest budget: 800 steps x 64 sequences x 4,096 tokens


# --------------------------------------------------------------------------------------------------------------------
# Shared by every stage: errors that end in one line, files that appear whole or not at all

class InputError(Exception):
    """Something the user gave cannot be used; the message says what and what to do."""


class ShowDefaults(argparse.ArgumentDefaultsHelpFormatter):
    """Adds the default to each option's help, where there is one."""

    def _get_help_string(self, action):
        return action.help if action.default is None else super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """argparse with one-line errors and defaults shown in --help."""

    def __init__(self, description):
        super().__init__(description=description, formatter_class=ShowDefaults)

    def error(self, message):
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def run_main(main):
    """Call main(); bad input and failed files end in one line on standard error and exit status 2."""
    try:
        main()
    except (InputError, OSError) as error:
        print(f"{Path(sys.argv[0]).name}: error: {error}", file=sys.stderr)
        sys.exit(2)


def write_atomically(path, write):
    """Call write(file) on a temporary binary file beside `path`, then rename it: `path` is never half-written."""
    temporary = Path(path).with_name(f".{Path(path).name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:  # torch.save turns a full disk into a RuntimeError
        raise InputError(f"cannot write {path} ({error}); free some disk space, then run the same command") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def write_json(path, value):
    write_atomically(path, lambda file: file.write((json.dumps(value, indent=1) + "\n").encode()))


def read_json(path):
    """The object in a JSON file; InputError if it is damaged."""
    try:
        value = json.loads(Path(path).read_text())
        if isinstance(value, dict):
            return value
        error = "not an object"
    except ValueError as found:
        error = found
    raise InputError(f"{path} is damaged ({error}); remove {Path(path).parent} and make it again")


def sha256_file(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# --------------------------------------------------------------------------------------------------------------------
# Sources: lists of documents

def is_prose(text):
    """True if most words are plain words: keeps long documentation literals, drops tables, code and test vectors."""
    words = text.split()
    plain = sum(word.strip(".,:;()`'\"*-").isalpha() for word in words)
    return len(words) >= 30 and plain > 0.6 * len(words)


def docstrings_of(path):
    """Docstrings and long prose-like literals (200 characters or more) of one Python file, some of them twice."""
    with warnings.catch_warnings(action="ignore"):  # invalid escapes in other people's strings
        found, todo = [], [ast.parse(path.read_bytes())]
    while todo:
        node = todo.pop()
        body = getattr(node, "body", None)
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) and body:
            if isinstance(body[0], ast.Expr) and isinstance(getattr(body[0].value, "value", None), str):
                found.append(body[0].value.value)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and len(node.value) >= 200:
            if is_prose(node.value):
                found.append(node.value)
        # pieces of f-strings differ between Python versions, so they are left out
        if not isinstance(node, ast.JoinedStr):
            todo.extend(ast.iter_child_nodes(node))
    return [inspect.cleandoc(text) for text in found]


def find_docstrings():
    """Python files of CORPUS_PACKAGES as installed, and what identifies them: {package: version}."""
    files, versions = [], {}
    for package in CORPUS_PACKAGES:
        spec = importlib.util.find_spec(package)  # finds the folder without importing it
        if spec is None:
            raise InputError(f"package {package} is missing; install the kit's requirements.txt first")
        versions[package] = importlib.metadata.version(package).split("+")[0]
        files += Path(spec.submodule_search_locations[0]).rglob("*.py")
    return [file for file in files if not file.name.startswith("py3")], versions  # py3*: one Python version's syntax


def read_docstrings(files):
    with concurrent.futures.ProcessPoolExecutor() as pool:
        return [text for found in pool.map(docstrings_of, files, chunksize=50) for text in found]


def find_local(sources):
    """The .txt and .jsonl files of the given files and folders, and what identifies them: {file: SHA-256}."""
    files = []
    for source in map(Path, sources):
        if not source.exists():
            raise InputError(f"source {source} does not exist; give docstrings, .txt or .jsonl files or their folder")
        inside = sorted(file for file in source.rglob("*") if file.suffix in (".txt", ".jsonl"))
        files += inside if source.is_dir() else [source]
    return files, {str(file): sha256_file(file) for file in files}


def read_local(files):
    """Documents of local files. A handful cannot be split by document: those are cut at blank lines into passages."""
    documents = [text for file in files for text in read_text_file(file)]
    return documents if len(documents) >= 100 else [passage for text in documents for passage in cut_passages(text)]


def read_text_file(path):
    """Documents of one .txt (the whole file) or .jsonl (the `text` field of each line)."""
    try:
        text = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 (byte {error.start}); convert it first, e.g. with iconv") from None
    if path.suffix != ".jsonl":
        return [text.replace("\r\n", "\n")]
    documents = []
    for number, line in enumerate(text.split("\n"), 1):
        try:
            documents += [json.loads(line)["text"] + ""] if line.strip() else []
        except (ValueError, KeyError, TypeError):
            raise InputError(f'{path} line {number} is not a JSON object with a "text"; fix or remove it') from None
    return documents


def cut_passages(text, size=2000):
    """Pieces of `text` cut at blank lines, each the shortest of at least `size` characters."""
    passages, passage = [], ""
    for paragraph in regex.split(r"\n[ \t]*\n", text):
        passage += paragraph + "\n\n"
        if len(passage) >= size:
            passages.append(passage)
            passage = ""
    return passages + [passage]


# --------------------------------------------------------------------------------------------------------------------
# Duplicates

def ngram_hashes(text, n, word_hashes):
    """Hash of every run of n words of `text`: uint64 (max(0, words - n + 1),). word_hashes: a dict used as cache."""
    words = text.lower().split()
    for word in words:
        if word not in word_hashes:
            word_hashes[word] = int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "little")
    hashes = np.array([word_hashes[word] for word in words], dtype=np.uint64)
    grams = np.zeros(max(0, len(words) - n + 1), dtype=np.uint64)
    for i in range(n):  # a polynomial in an odd number, modulo 2^64: sensitive to order
        grams = grams * np.uint64(0x9E3779B97F4A7C15) + hashes[i:i + len(grams)]
    return grams


def deduplicate(documents):
    """Clean documents without exact and near duplicates, in an order that depends on their content alone.

    A document is dropped when more than half of its word 8-grams have occurred in kept ones (templates are common in
    docstrings, and a validation document that is nearly in train measures memory, not modelling).
    """
    # lone surrogates have no UTF-8 form
    clean = (text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").strip() for text in documents)
    unique = sorted(set(clean) - {""}, key=lambda text: hashlib.sha256(text.encode()).digest())
    kept, seen, word_hashes = [], set(), {}
    for text in unique:
        grams = ngram_hashes(text, 8, word_hashes).tolist()
        if sum(gram in seen for gram in grams) <= len(grams) / 2:
            kept.append(text)
            seen.update(grams)
    return kept


def validation_overlap(train, train_starts, train_tokens, val):
    """Share of the word 13-grams of validation that also occur in train, per budget: {tokens: share}.

    train_starts: where each train document starts, in tokens; those of a budget start before its end.
    """
    word_hashes = {}
    val_grams = np.concatenate([ngram_hashes(text, 13, word_hashes) for text in val])
    grams = [ngram_hashes(text, 13, word_hashes) for text in train]
    starts = np.repeat(train_starts, [len(g) for g in grams])  # where the document of each gram starts, in tokens
    unique, first = np.unique(np.concatenate(grams), return_index=True)
    if not len(unique) or not len(val_grams):
        return {}
    place = np.minimum(np.searchsorted(unique, val_grams), len(unique) - 1)
    first_start = np.where(unique[place] == val_grams, starts[first[place]], train_tokens)
    budgets = [PAPER_TOKENS * times // scale for scale in (1000, 100, 10, 1) for times in (1, 2, 4, 8)]
    budgets = [budget for budget in budgets if budget < train_tokens] + [train_tokens]
    return {str(budget): round(float((first_start < budget).mean()), 5) for budget in budgets}


# --------------------------------------------------------------------------------------------------------------------
# Tokenizer: byte-level BPE

def train_bpe(texts, vocab_size):
    """Byte-level BPE on `texts`: {token bytes: rank}, vocab_size - 1 of them (end-of-text is the last id).

    As in tiktoken's encoder, what is merged is any two neighbours whose concatenation is the new token, so pairs are
    counted by their concatenation; ties go to the smallest bytes. Raises InputError when the text has too few pairs.
    """
    word_counts = Counter()
    for text in texts:
        word_counts.update(regex.findall(PATTERN, text))
    words = [[bytes([byte]) for byte in word.encode()] for word in word_counts]
    weights = list(word_counts.values())
    counts, places = Counter(), defaultdict(set)  # of each pair: occurrences, and the words that hold it
    for i, word in enumerate(words):
        for a, b in zip(word, word[1:]):
            counts[a + b] += weights[i]
            places[a + b].add(i)
    heap = [(-count, pair) for pair, count in counts.items()]
    heapq.heapify(heap)

    ranks = {bytes([byte]): byte for byte in range(256)}
    while len(ranks) < vocab_size - 1:
        if not heap:
            raise InputError(f"the text is too small for vocab_size {vocab_size}; at most {len(ranks) + 1} here")
        count, new = heapq.heappop(heap)
        if new in ranks or -count != counts[new]:  # out of date: every change of a count was pushed anew
            continue
        ranks[new] = len(ranks)
        changed = set()
        for i in places.pop(new):
            old, word, j = words[i], [], 0
            while j < len(old):
                width = 2 if j + 1 < len(old) and old[j] + old[j + 1] == new else 1
                word.append(new if width == 2 else old[j])
                j += width
            for a, b in zip(old, old[1:]):
                counts[a + b] -= weights[i]
                changed.add(a + b)
            for a, b in zip(word, word[1:]):
                counts[a + b] += weights[i]
                places[a + b].add(i)
                changed.add(a + b)
            words[i] = word
        for pair in changed:
            if counts[pair] > 0:
                heapq.heappush(heap, (-counts[pair], pair))
    return ranks


def make_encoding(ranks, name):
    """tiktoken.Encoding of trained ranks; END_OF_TEXT is the id after the last rank."""
    return tiktoken.Encoding(name, pat_str=PATTERN, mergeable_ranks=ranks, special_tokens={END_OF_TEXT: len(ranks)})


# --------------------------------------------------------------------------------------------------------------------
# The format: write and read

def token_dtype(vocab_size):
    return np.dtype("<u2" if vocab_size <= 2 ** 16 else "<u4")


def encode_documents(encoding, documents):
    """Tokens of all documents, an end-of-text before each: (tokens,)."""
    ids = encoding.encode_ordinary_batch(documents, num_threads=os.cpu_count())
    end_of_text = [encoding.n_vocab - 1]
    return np.concatenate([np.array(end_of_text + document, token_dtype(encoding.n_vocab)) for document in ids])


def document_starts(tokens, end_of_text):
    return np.flatnonzero(np.asarray(tokens) == end_of_text).astype(np.int64)


def split_and_encode(name, documents, val_tokens, seed, vocab_size):
    """(parts, tokenizer file, meta): documents shuffled and split, BPE trained on train alone, everything encoded."""
    order = np.random.default_rng(seed).permutation(len(documents))
    documents = [documents[i] for i in order]
    # the tokenizer must not see validation, whose length in bytes is not known before: 8 bytes a token are enough
    sizes = np.cumsum([len(text.encode()) for text in documents])
    guess = int(np.searchsorted(sizes, 8 * val_tokens)) + 1
    if guess > len(documents) // 2:
        raise InputError(f"{sizes[-1]:,} bytes of text are too few to set {val_tokens:,} validation tokens apart; "
                         f"give more text or a smaller --val_tokens")
    ranks = train_bpe(documents[guess:], vocab_size)
    encoding = make_encoding(ranks, name)

    # validation: the first documents that hold val_tokens; train: all others, so that a budget is a prefix of train
    starts = document_starts(encode_documents(encoding, documents[:guess]), encoding.n_vocab - 1)
    split = int(np.searchsorted(starts, val_tokens))
    texts = {"train": documents[split:], "val": documents[:split]}
    parts = {part: encode_documents(encoding, texts[part]) for part in texts}
    starts = document_starts(parts["train"], encoding.n_vocab - 1)
    meta = {"vocab_size": vocab_size, "end_of_text": encoding.n_vocab - 1, "pattern": PATTERN,
            "dtype": parts["train"].dtype.name,
            "bytes": {part: sum(len(text.encode()) for text in texts[part]) for part in texts},
            "val_13grams_in_train": validation_overlap(texts["train"], starts, len(parts["train"]), texts["val"])}
    lines = [base64.b64encode(token) + f" {rank}\n".encode() for token, rank in ranks.items()]
    return parts, b"".join(lines), meta


def write_data(name, parts, tokenizer, meta):
    """Write data/NAME, whole or not at all. parts: {"train" and "val": tokens}; tokenizer: bytes of a tiktoken rank
    file. Returns meta with name, counts and hashes added, as meta.json holds it."""
    folder = Path("data") / name
    for leftover in folder.parent.glob(f".{name}.*.tmp"):  # of a killed process
        shutil.rmtree(leftover, ignore_errors=True)
    starts = {part: document_starts(tokens, meta["end_of_text"]) for part, tokens in parts.items()}
    temporary = folder.with_name(f".{name}.{os.getpid()}.tmp")
    temporary.mkdir(parents=True)
    try:
        for part, tokens in parts.items():
            np.asarray(tokens, meta["dtype"]).tofile(temporary / f"{part}.bin")
            np.save(temporary / f"{part}_docs.npy", starts[part])
        (temporary / "tokenizer.tiktoken").write_bytes(tokenizer)
        meta = {"name": name, **meta, "documents": {part: len(starts[part]) for part in parts},
                "tokens": {part: len(tokens) for part, tokens in parts.items()},
                "sha256": {file.name: sha256_file(file) for file in sorted(temporary.iterdir())}}
        write_json(temporary / "meta.json", meta)
        os.rename(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return meta


@dataclass
class Data:
    """A prepared data set, memory-mapped. Read it with load_data()."""
    folder: Path
    meta: dict
    train: np.ndarray  # (tokens,)
    val: np.ndarray  # (tokens,)

    def fingerprint(self):
        """What identifies the train tokens, in a run's configuration."""
        return hashlib.sha256(self.meta["sha256"]["train.bin"].encode()).hexdigest()[:12]

    def tokenizer(self):
        lines = (self.folder / "tokenizer.tiktoken").read_bytes().splitlines()
        return make_encoding({base64.b64decode(token): int(rank) for token, rank in map(bytes.split, lines)},
                             self.meta["name"])

    def token_bytes(self):
        """UTF-8 length of each token, 0 for end-of-text: int64 (vocab_size,). For bits per byte."""
        tokenizer = self.tokenizer()
        return np.array([len(tokenizer.decode_single_token_bytes(i)) for i in range(self.meta["end_of_text"])] + [0])


def load_data(name):
    """The data set data/NAME, every file checked against its recorded SHA-256. Raises InputError."""
    folder = Path("data") / name
    if not (folder / "meta.json").exists():
        known = sorted(path.parent.name for path in Path("data").glob("[!.]*/meta.json"))
        raise InputError(f"no data set {folder} (there: {', '.join(known) or 'none'}); make it with prepare.py")
    meta = read_json(folder / "meta.json")
    for file, expected in meta.get("sha256", {"train.bin": None}).items():
        if not (folder / file).exists() or sha256_file(folder / file) != expected:
            raise InputError(f"{folder / file} is missing or changed (SHA-256 differs from meta.json); "
                             f"remove {folder} and prepare it again")
    train, val = (np.memmap(folder / f"{part}.bin", dtype=meta["dtype"], mode="r") for part in ("train", "val"))
    return Data(folder, meta, train, val)


def cut_windows(tokens, context):
    """Consecutive windows of `context` tokens: (windows, context). The rest, shorter than a window, is dropped."""
    return tokens[:len(tokens) // context * context].reshape(-1, context)


# --------------------------------------------------------------------------------------------------------------------

def main():
    parser = Parser("Text to tokens: writes data/NAME.")
    parser.add_argument("--source", nargs="+", default=["docstrings"], metavar="SOURCE",
                        help="docstrings, or .txt and .jsonl files and folders of them")
    parser.add_argument("--name", help="folder under data/ (default: source name, with the vocabulary if not 1024)")
    parser.add_argument("--vocab_size", type=int, default=1024, help="ids, end-of-text included; 257: plain bytes")
    parser.add_argument("--val_tokens", type=int, default=65536, help="validation tokens, the same for every budget")
    parser.add_argument("--seed", type=int, default=0, help="of the shuffle that splits documents")
    parser.add_argument("--json", action="store_true", help="print meta.json as the last line")
    args = parser.parse_args()
    for name, least in (("vocab_size", 257), ("val_tokens", 1), ("seed", 0)):
        if getattr(args, name) < least:
            raise InputError(f"--{name} {getattr(args, name)} is out of range; it must be at least {least}")
    if args.name is None:
        args.name = Path(args.source[0]).stem + (f"-{args.vocab_size}" if args.vocab_size != 1024 else "")
    if not regex.fullmatch(r"\w[\w.-]*", args.name):
        raise InputError(f"--name {args.name} is not a plain folder name; use letters, digits, - and _")

    builtin = args.source == ["docstrings"]
    files, origin = find_docstrings() if builtin else find_local(args.source)
    # a prepared docstrings folder may come from a machine with other versions: it is the data all the same
    identity = {"source": args.source, "files": None if builtin else origin, "vocab_size": args.vocab_size,
                "val_tokens": args.val_tokens, "seed": args.seed}
    folder = Path("data") / args.name
    if folder.exists():  # prepared before: the same request does nothing, another one must not overwrite
        meta = load_data(args.name).meta
        if meta.get("identity") != identity:
            raise InputError(f"{folder} holds other data (its meta.json says what); remove it or give another --name")
        print(f"{folder} is prepared already")
    else:
        documents = deduplicate(read_docstrings(files) if builtin else read_local(files))
        if not documents:
            raise InputError(f"no text in {' '.join(args.source)}")
        corpus = hashlib.sha256("\0".join(documents).encode()).hexdigest()
        if builtin and corpus != CORPUS_SHA256:
            print(f"warning: the docstrings here (SHA-256 {corpus[:12]}..., versions {origin}) are not those of the "
                  f"pinned versions, so losses will not compare with the published tables", file=sys.stderr)
        parts, tokenizer, meta = split_and_encode(args.name, documents, args.val_tokens, args.seed, args.vocab_size)
        meta = write_data(args.name, parts, tokenizer, {"identity": identity, "versions": origin if builtin else None,
                                                        "corpus_sha256": corpus, **meta})
        print(f"{folder}: {meta['documents']['train']:,} documents, {meta['tokens']['train']:,} train and "
              f"{meta['tokens']['val']:,} validation tokens, corpus SHA-256 {corpus[:12]}")
        for budget, share in meta["val_13grams_in_train"].items():
            print(f"  of the validation 13-grams {share:.2%} occur in the first {int(budget):,} train tokens")
    if args.json:
        print(json.dumps(meta))


if __name__ == "__main__":
    run_main(main)
