r"""Text to tokens on disk. This file owns the data format: it alone writes it, and every stage
reads it through here.

    python prepare.py                                       # docstrings of the kit's pinned wheels
    python prepare.py --source book.txt notes/ --name mine --vocab_size 2048
    python prepare.py --source names.txt --separator '\n'   # each line a document
    python prepare.py --source fineweb                      # public shards of GPT-2's tokens
    python prepare.py --source hf:roneneldan/TinyStories --tokenizer gpt2 --tokens 20000000

data/NAME/ holds train.bin and val.bin (headerless little-endian token ids, nanoGPT's convention),
the starts of their documents, the tokenizer twice (tiktoken's ranks, and tokenizer.json for
transformers) and meta.json with the SHA-256 of each file. The steps: read documents into one file
on disk, drop copies and near-copies, shuffle, set whole documents aside as validation, train a
byte-level BPE on the others (or take a given one), encode. Memory does not grow with the text.
Shards of tokens are copied as they are.
"""
import argparse
import array
import ast
import base64
import concurrent.futures
import contextlib
import fcntl
import functools
import glob
import hashlib
import heapq
import importlib
import importlib.metadata
import importlib.util
import inspect
import itertools
import json
import logging
import os
import shutil
import signal
import sys
import time
import warnings
import zlib
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import regex  # comes with tiktoken, which splits text with the same pattern
import tiktoken

# GPT-2's split into words: a contraction; letters, digits or signs with one space before them;
# white space
PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""
LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+")
GPT2_RANKS = 50_256
# Llama 3's first special token, begin-of-text, is what precedes a document; 255 others follow
LLAMA3_RANKS, LLAMA3_VOCAB = 128_000, 128_256
END_OF_TEXT = "<|endoftext|>"

CORPUS_PACKAGES = ("torch", "numpy", "scipy", "sympy", "networkx", "mpmath")
# of the documents in requirements.txt's versions; other versions give other text, hence other
# losses
CORPUS_SHA256 = "127c6b597cc050cf4df57bd04d5399d9a048aa187a4a4559507a03d8cedc5d7c"
PAPER_TOKENS = 209_715_200  # the paper's smallest budget: 800 steps x 64 sequences x 4,096 tokens
# short names of data sets on the hub: what train comes from, and validation where that is apart
HUB = {"fineweb": ("kjj0/fineweb10B-gpt2", None),
       "megamath": ("OctoThinker/MegaMath-Web-Pro-Max", None),
       "dclm": ("konwoo/dclm-164k-docs-train", "konwoo/dclm-164k-docs-val")}
FINEWEB_SHARD = 100_000_000  # tokens in each of its files

# how a file is read, by its suffix; all but .bin may be packed
KINDS = {".txt": "text", ".jsonl": "lines", ".ndjson": "lines", ".json": "json", ".csv": "csv",
         ".tsv": "tsv", ".parquet": "parquet", ".arrow": "arrow", ".bin": "tokens"}
PACKED = (".gz", ".zst", ".bz2", ".xz")
# what files begin with that are no text, and what to do with them
TAR = "a tar archive; unpack it and give the files in it"
BEGINNINGS = {
    b"PK\x03\x04": "a zip archive (.docx and .epub are such); give the text in it as .txt",
    b"%PDF": "a PDF; give the text in it as .txt",
    b"\x1f\x8b": "packed by gzip; name it for what is in it, such as .txt.gz or .jsonl.gz",
    b"\x28\xb5\x2f\xfd": "packed by zstd; name it for what is in it, such as .txt.zst or "
                         ".jsonl.zst",
    b"\xff\xfe": "UTF-16; convert it to UTF-8 first, e.g. with iconv -f UTF-16 -t UTF-8",
    b"\xfe\xff": "UTF-16; convert it to UTF-8 first, e.g. with iconv -f UTF-16 -t UTF-8"}
# headers of public token shards, 256 int32: (magic, version) -> type, token before a document,
# vocabulary
SHARDS = {(20240520, 1): ("<u2", GPT2_RANKS, 50_257),
          (20240801, 7): ("<u4", LLAMA3_RANKS, LLAMA3_VOCAB)}

# documents; a text of fewer is cut into passages, or none could be set aside as validation
FEW = 100
PASSAGE = 2000  # characters of a passage, about
# characters of a document; a longer one is cut (tiktoken takes no million blanks)
LONGEST = 2 ** 19
# of Chinese, Japanese, Thai and others, which put no spaces between words
UNSPACED = r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]"
LONG_WORDS = 48  # letters a word, on average, above which a text such as DNA has no spaces either
MOST_GRAMS = 2 ** 24  # 8-grams remembered when near-copies are looked for; of more, an even sample
# bytes of text, and of its different words, a BPE learns from at most
BPE_BYTES, BPE_WORDS = 2 ** 27, 2 ** 21


# --------------------------------------------------------------------------------------------------
# The default corpus: text that is on the machine

def is_prose(text):
    """True if most words are plain words: keeps long documentation, drops tables, code and test
    vectors."""
    words = text.split()
    plain = sum(word.strip(".,:;()`'\"*-").isalpha() for word in words)
    return len(words) >= 30 and plain > 0.6 * len(words)


def docstrings_of(path):
    """Docstrings and long prose-like literals (200 characters or more) of a Python file, some of
    them twice."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    with warnings.catch_warnings(action="ignore"):  # invalid escapes in other people's strings
        found, todo = [], [ast.parse(path.read_bytes())]
    while todo:
        node = todo.pop()
        body = getattr(node, "body", None)
        if isinstance(node, documented) and body:
            first = getattr(body[0], "value", None)
            if isinstance(body[0], ast.Expr) and isinstance(getattr(first, "value", None), str):
                found.append(first.value)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            if len(node.value) >= 200 and is_prose(node.value):
                found.append(node.value)
        # pieces of f-strings differ between Python versions, so they are left out
        if not isinstance(node, ast.JoinedStr):
            todo.extend(ast.iter_child_nodes(node))
    return [inspect.cleandoc(text) for text in found]


def find_docstrings():
    """Python files of CORPUS_PACKAGES as installed, and what identifies them: {package:
    version}."""
    files, versions = [], {}
    for package in CORPUS_PACKAGES:
        spec = importlib.util.find_spec(package)  # finds the folder without importing it
        if spec is None:
            raise InputError(f"package {package} is missing; install the kit's requirements.txt "
                             "first")
        versions[package] = importlib.metadata.version(package).split("+")[0]
        files += Path(spec.submodule_search_locations[0]).rglob("*.py")
    # py3*: syntax of one Python version
    return [file for file in files if not file.name.startswith("py3")], versions


def read_docstrings(files):
    """Yields the docstrings of Python files, which are parsed on all cores."""
    with concurrent.futures.ProcessPoolExecutor() as pool:
        for found in pool.map(docstrings_of, files, chunksize=50):
            yield from found


# --------------------------------------------------------------------------------------------------
# Documents on disk, without copies

class DocumentStore:
    """Documents in one file, read in any order; memory holds their places and hashes alone, 16
    bytes each."""

    def __init__(self, path):
        self.output, self.unwritten = Output(path), bytearray()
        self.ends, self.hashes = array.array("q", [0]), array.array("Q")
        self.empty, self.repaired, self.markers = 0, 0, 0  # documents; markers inside documents

    def __len__(self):
        return len(self.ends) - 1

    def __getitem__(self, i):
        return os.pread(self.output.file.fileno(), self.size(i), self.ends[i]).decode()

    def add(self, text):
        """Append a document without the white space around it; an empty one is left out. Returns
        its bytes."""
        try:
            content = text.strip().encode()
        except UnicodeEncodeError:  # half a surrogate pair has no UTF-8 form
            self.repaired += 1
            whole = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
            content = whole.strip().encode()
        if content:
            self.markers += content.count(END_OF_TEXT.encode())
            self.unwritten += content
            self.ends.append(self.ends[-1] + len(content))
            self.hashes.append(int.from_bytes(hashlib.sha256(content).digest()[:8]))
        else:
            self.empty += 1
        if len(self.unwritten) > 2 ** 20:
            self.flush()
        return len(content)

    def flush(self):
        """Write what was added; before that it cannot be read."""
        self.output.write(self.unwritten)
        self.unwritten = bytearray()

    def size(self, i):
        return self.ends[i + 1] - self.ends[i]

    def count(self, order, size):
        """How many documents, taken in an order, hold `size` bytes; one more than there are if all
        do not."""
        for count, i in enumerate(order, 1):
            size -= self.size(i)
            if size <= 0:
                return count
        return len(order) + 1

    def unique(self):
        """Indices of documents that are no copies of earlier ones, in an order that content alone
        decides."""
        hashes = np.frombuffer(self.hashes, np.uint64)
        order = np.argsort(hashes, kind="stable")
        hashes = hashes[order]
        new = np.ones(len(order), bool)
        new[1:] = hashes[1:] != hashes[:-1]
        return order[new]

    def warn(self):
        """Say what the documents hold that may not be meant."""
        if self.markers:
            print(f"warning: {self.markers:,} times {END_OF_TEXT} stands inside a document, where "
                  f"it is text like any other; --separator '{END_OF_TEXT}' parts .txt "
                  "there", file=sys.stderr)
        if self.repaired:
            print(f"warning: {self.repaired:,} documents hold half a surrogate pair, now "
                  "U+FFFD", file=sys.stderr)

    def remove(self):
        self.output.file.close()
        os.unlink(self.output.path)


def gram_hashes(hashes, n):
    """Hash of every n neighbours of hashes, uint64 (max(0, len - n + 1),): a polynomial modulo 2^64
    in an odd number, sensitive to order."""
    grams = np.zeros(max(0, len(hashes) - n + 1), dtype=np.uint64)
    for i in range(n):
        grams = grams * np.uint64(0x9E3779B97F4A7C15) + hashes[i:i + len(grams)]
    return grams


def mix(x):
    """Scramble uint64 numbers so that each bit depends on all."""
    x = (x ^ (x >> np.uint64(31))) * np.uint64(0x7FB5D329728EA185)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x81DADEF4BC2DD44D)
    return x ^ (x >> np.uint64(33))


def has_no_spaces(text):
    """Whether a text is written without spaces between words, to judge by its first 2,000
    letters."""
    head = text[:2000]
    if len(head) > LONG_WORDS * len(head.split()):
        return True
    return not head.isascii() and len(regex.findall(UNSPACED, head)) > len(head) / 3


def text_grams(text, n):
    """Hash of every run of n words of a text, in lower case: uint64 (words - n + 1,). Without
    spaces between words it is runs of 2 n letters, about as much text."""
    words = text.lower().split()
    if has_no_spaces(text):
        letters = np.frombuffer("".join(words).encode("utf-32-le"), np.uint32)
        return gram_hashes(mix(letters.astype(np.uint64)), 2 * n)
    codes = [zlib.crc32(word.encode()) for word in words]
    return gram_hashes(mix(np.array(codes, np.uint64)), n)


class NearCopies:
    """Remembers the 8-grams of the documents that are kept; of more than MOST_GRAMS an even sample.

    (Templates are common in docstrings, and validation that is nearly in train measures memory, not
    modelling.)
    """

    def __init__(self, block=2 ** 20):
        self.every, self.block = np.uint64(1), block  # one gram of so many is remembered
        self.old, self.recent = np.zeros(0, np.uint64), set()  # sorted, and not yet

    def sample(self, grams):
        return grams[mix(grams) % self.every == 0]

    def is_new(self, text):
        """Whether at most half of a document's 8-grams were seen before; if so they count as seen
        from now on."""
        grams = text_grams(text, 8)
        if self.every > 1:
            grams = self.sample(grams)
            if len(grams) < 4:  # one chance match must not drop a document
                return True
        known = np.zeros(len(grams), bool)
        if len(self.old):
            place = np.minimum(np.searchsorted(self.old, grams), len(self.old) - 1)
            known = self.old[place] == grams
        others = grams[~known].tolist()
        if known.sum() + sum(gram in self.recent for gram in others) > len(grams) / 2:
            return False
        self.recent.update(others)
        if len(self.recent) > self.block:
            self.sort_recent()
        return True

    def sort_recent(self):
        """Move the recent grams among the sorted ones, and halve the sample while these are too
        many."""
        self.old = np.concatenate([self.old, np.fromiter(self.recent, np.uint64)])
        self.old.sort()
        self.recent = set()
        while len(self.old) > MOST_GRAMS:
            self.every *= np.uint64(2)
            parts = np.array_split(self.old, 64)  # a part at a time, for the sake of memory
            self.old = np.concatenate([self.sample(part) for part in parts])


def validation_overlap(train, train_tokens, val_grams):
    """Share of the 13-grams of validation that also occur in train, per budget: {tokens: share}.

    train: yields (hashes of 13-grams, the token or tokens from which a budget holds them);
    val_grams: hashes.
    """
    unique, inverse = np.unique(val_grams, return_inverse=True)
    if not len(unique):
        return {}
    # where each occurs first; the last is for all others
    first = np.full(len(unique) + 1, train_tokens)
    for grams, start in train:
        place = np.searchsorted(unique, grams)
        place[unique[np.minimum(place, len(unique) - 1)] != grams] = len(unique)
        np.minimum.at(first, place, start)
    # the ladder's budgets at its four scales, as far as train goes, and all of it
    scales = itertools.product((1000, 100, 10, 1), (1, 2, 4, 8))
    budgets = [PAPER_TOKENS * times // scale for scale, times in scales]
    budgets = [budget for budget in budgets if budget < train_tokens] + [train_tokens]
    return {str(budget): round(float((first[inverse] < budget).mean()), 5) for budget in budgets}


# --------------------------------------------------------------------------------------------------
# Tokenizers

class WordTokens:
    """Different words, one after another, as linked lists of tokens; how often two neighbours
    occur, and where.

    A pair is known by its concatenation: as in tiktoken's encoder, what is merged is any two
    neighbours whose concatenation is the new token. A merge costs time for the places where it
    occurs, not for whole words, so a text without spaces, one word of a million letters, is no
    special case.
    """

    def __init__(self, word_counts):
        self.tokens = []  # bytes; None where a token was merged into the one before it
        # places of neighbours, -1 at a word's end
        self.before, self.after = array.array("q"), array.array("q")
        self.weights = array.array("q")  # how often the word occurs in the text
        self.counts, self.places = Counter(), defaultdict(list)
        for word, count in word_counts.items():
            content, begin = word.encode(), len(self.tokens)
            end = begin + len(content)
            self.tokens += [content[i:i + 1] for i in range(len(content))]
            self.before.extend(range(begin - 1, end - 1))
            self.after.extend(range(begin + 1, end + 1))
            self.before[begin] = self.after[end - 1] = -1
            self.weights.extend([count] * len(content))
            for i in range(len(content) - 1):
                self.counts[content[i:i + 2]] += count
                self.places[content[i:i + 2]].append(begin + i)

    def merge(self, new):
        """Replace every two neighbours that make `new`, from left to right; returns the pairs whose
        counts changed."""
        tokens, before, after, counts = self.tokens, self.before, self.after, self.counts
        changed = set()
        for place in sorted(self.places.pop(new)):
            following = after[place]
            # the pair may be gone since it was noted down
            if tokens[place] is None or following < 0 or tokens[place] + tokens[following] != new:
                continue
            weight, left, right = self.weights[place], before[place], after[following]
            counts[new] -= weight
            if left >= 0:
                old, found = tokens[left] + tokens[place], tokens[left] + new
                counts[old] -= weight
                counts[found] += weight
                self.places[found].append(left)
                changed |= {old, found}
            if right >= 0:
                old, found = tokens[following] + tokens[right], new + tokens[right]
                counts[old] -= weight
                counts[found] += weight
                self.places[found].append(place)
                changed |= {old, found}
                before[right] = place
            tokens[place], tokens[following] = new, None
            after[place] = right
        return changed


def count_words(texts):
    """How often each word occurs: Counter. Stops where the different words hold BPE_WORDS bytes."""
    counts, size = Counter(), 0
    for text in texts:
        found = regex.findall(PATTERN, text)
        size += sum(len(word.encode()) for word in set(found) if word not in counts)
        counts.update(found)
        if size > BPE_WORDS:  # memory holds some hundred bytes for each
            break
    return counts


def train_bpe(texts, vocab_size):
    """Byte-level BPE on texts: {token bytes: rank}, vocab_size - 1 of them (end-of-text is the last
    id).

    The most frequent pair becomes the next token, of equals the one of the smallest bytes. Raises
    InputError when the text has too few pairs.
    """
    words, printed = WordTokens(count_words(texts)), time.monotonic()
    heap = [(-count, pair) for pair, count in words.counts.items()]
    heapq.heapify(heap)
    ranks = {bytes([byte]): byte for byte in range(256)}
    while len(ranks) < vocab_size - 1:
        if not heap:
            raise InputError(f"the text is too small for vocab_size {vocab_size}; at most "
                             f"{len(ranks) + 1} here")
        count, new = heapq.heappop(heap)
        # out of date: every changed count was pushed anew
        if new in ranks or -count != words.counts[new]:
            continue
        ranks[new] = len(ranks)
        for pair in words.merge(new):
            if words.counts[pair] > 0:
                heapq.heappush(heap, (-words.counts[pair], pair))
        if time.monotonic() - printed > 10:
            printed = time.monotonic()
            print(f"trained {len(ranks):,} of {vocab_size - 1:,} tokens", flush=True)
    return ranks


def make_encoding(ranks, pattern=PATTERN, vocab_size=0):
    """tiktoken.Encoding of ranks; END_OF_TEXT is the id after the last, ids up to vocab_size are
    reserved."""
    special = {END_OF_TEXT: len(ranks)}
    special |= {f"<|reserved_{i}|>": i for i in range(len(ranks) + 1, vocab_size)}
    return tiktoken.Encoding(
        "ranks", pat_str=pattern, mergeable_ranks=ranks, special_tokens=special)


class HubTokenizer:
    """A tokenizer.json of Hugging Face, run by its own library, with the names of tiktoken's
    methods."""

    def __init__(self, path, end_of_text):
        self.tokenizer = optional_package("tokenizers", path).Tokenizer.from_file(str(path))
        self.tokenizer.encode_special_tokens = True  # what looks like a special token is text
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        self.eot_token = end_of_text
        self.n_vocab = 1 + max(self.tokenizer.get_vocab().values())

    def encode_ordinary(self, text):
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def encode_to_numpy(self, text, disallowed_special=()):
        return np.array(self.encode_ordinary(text), np.uint32)

    def decode(self, tokens):
        return self.tokenizer.decode(tokens, skip_special_tokens=False)


def byte_letters():
    """The letter that stands for each byte in a byte-level tokenizer.json, (256,): itself if it is
    printable."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = (chr(256 + i) for i in itertools.count())
    return [chr(byte) if byte in printable else next(others) for byte in range(256)]


def tokenizer_json(ranks, pattern, vocab_size):
    """The text of a tokenizer.json that gives the ids of make_encoding(ranks, pattern, vocab_size).

    Each way to make a token of two others is a merge, in the order of ranks, since that is what
    tiktoken merges.
    """
    letters = byte_letters()
    names = {token: "".join(letters[byte] for byte in token) for token in ranks}
    merges = []
    for token in sorted(ranks, key=ranks.get):
        halves = [(token[:i], token[i:]) for i in range(1, len(token))]
        halves = [(a, b) for a, b in halves if a in ranks and b in ranks]
        halves.sort(key=lambda pair: (ranks[pair[0]], ranks[pair[1]]))
        merges += [[names[a], names[b]] for a, b in halves]
    special = make_encoding(ranks, pattern, vocab_size)._special_tokens
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    added = [{"id": i, "content": content, "special": True, **plain}
             for content, i in special.items()]
    split = {
        "type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    to_letters = {
        "type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    model = {
        "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
        "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
        "ignore_merges": True,  # a word that is a token is that token, as tiktoken has it
        "vocab": {names[token]: rank for token, rank in ranks.items()}, "merges": merges}
    return json.dumps({
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, to_letters]},
        "post_processor": None, "decoder": to_letters, "model": model})


@dataclass
class Vocabulary:
    """A tokenizer: its ranks {token bytes: id}, its split into words, and its ids in all."""
    ranks: dict
    pattern: str | None  # None: the split is that of tokenizer.json
    size: int
    end_of_text: int
    json: str | None = None  # the file tokenizer.json that it came from

    def encoding(self):
        if self.json:
            return HubTokenizer(self.json, self.end_of_text)
        return make_encoding(self.ranks, self.pattern, self.size)


def read_ranks(lines):
    """{token bytes: rank} of lines in tiktoken's format."""
    return {base64.b64decode(token): int(rank) for token, rank in map(bytes.split, lines)}


def given_vocabulary(choice):
    """The Vocabulary of gpt2, llama3, bytes, a rank file or a folder with a tokenizer.json. Raises
    InputError."""
    if choice == "bytes":
        return Vocabulary({bytes([byte]): byte for byte in range(256)}, PATTERN, 257, 256)
    if choice == "gpt2":
        try:
            ranks = tiktoken.get_encoding("gpt2")._mergeable_ranks
        except Exception as error:  # of requests, which tiktoken downloads with
            raise InputError(f"GPT-2's ranks are not here ({type(error).__name__}); give "
                             f"tiktoken's cache of them as TIKTOKEN_CACHE_DIR") from None
        return Vocabulary(ranks, PATTERN, GPT2_RANKS + 1, GPT2_RANKS)
    path = Path("tokenizer.model" if choice == "llama3" else choice)
    if path.is_dir():
        return hub_vocabulary(path)
    if not path.exists():
        raise InputError(f"no tokenizer {path}; give gpt2, bytes, a rank file or a folder with a "
                         "tokenizer.json; llama3 needs Llama 3's own tokenizer.model in this "
                         "folder")
    try:
        ranks = read_ranks(path.read_bytes().splitlines())
    except ValueError:
        ranks = {}
    all_bytes = all(bytes([byte]) in ranks for byte in range(256))
    if not all_bytes or sorted(ranks.values()) != list(range(len(ranks))):
        raise InputError(f"{path} is not a rank file (a line a token: base64, space, rank; all "
                         f"bytes in it); of a tokenizer.json give the folder")
    if len(ranks) == LLAMA3_RANKS:
        return Vocabulary(ranks, LLAMA3_PATTERN, LLAMA3_VOCAB, LLAMA3_RANKS)
    if len(ranks) != GPT2_RANKS:
        print(f"{path}: a rank file does not say how text is split into words; GPT-2's split is "
              f"assumed (a folder with a tokenizer.json keeps its own)")
    return Vocabulary(ranks, PATTERN, len(ranks) + 1, len(ranks))


def hub_vocabulary(folder):
    """The Vocabulary of a folder with a byte-level tokenizer.json; the token before a document is
    its bos_token, or else its eos_token. Raises InputError."""
    path = folder / "tokenizer.json"
    if not path.exists():
        raise InputError(f"{folder} has no tokenizer.json; save the tokenizer there, or give a "
                         "rank file")
    content, letters = read_json(path), byte_letters()
    model, decoder = content.get("model", {}), json.dumps(content.get("decoder"))
    if model.get("type") != "BPE" or "ByteLevel" not in decoder:
        raise InputError(f"{path} is no byte-level BPE, the one kind whose tokens are bytes; give "
                         "another tokenizer")
    added = {token["content"]: token for token in content.get("added_tokens", ())}
    config = {}
    if (folder / "tokenizer_config.json").exists():
        config = read_json(folder / "tokenizer_config.json")
    names = [config.get("bos_token"), config.get("eos_token"), END_OF_TEXT]
    names = [name["content"] if isinstance(name, dict) else name for name in names]
    names = [name for name in names if name in added]
    if not names:
        raise InputError(f"{folder} does not say which token ends a text; name it as eos_token in "
                         "its tokenizer_config.json, one of: "
                         f"{', '.join(added) or 'none is there'}")
    byte_of = {letter: byte for byte, letter in enumerate(letters)}
    ranks = {bytes(byte_of[letter] for letter in token): i
             for token, i in model["vocab"].items() if token not in added}
    # added tokens that are text, such as runs of blanks
    ranks |= {name.encode(): token["id"] for name, token in added.items() if not token["special"]}
    end_of_text = added[names[0]]["id"]
    size = HubTokenizer(path, end_of_text).n_vocab
    ranks = dict(sorted(ranks.items(), key=lambda item: item[1]))
    return Vocabulary(ranks, None, size, end_of_text, str(path))


def encode_documents(encoding, documents, dtype):
    """Yields the tokens of documents, an end-of-text before each, some megabytes of text at a time.
    What looks like a special token is text."""
    def encode(text):
        return encoding.encode_to_numpy(text, disallowed_special=())

    end_of_text, batch, size = np.array([encoding.eot_token]), [], 0
    # encoders run outside Python's lock
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        for text in itertools.chain(documents, [None]):
            if text is None or size > 2 ** 22:
                parts = [part for ids in pool.map(encode, batch) for part in (end_of_text, ids)]
                yield np.concatenate([np.zeros(0), *parts], dtype=dtype, casting="unsafe")
                batch, size = [], 0
            if text is not None:
                batch.append(text)
                size += len(text)


# --------------------------------------------------------------------------------------------------
# From documents, or from shards of tokens, to train and validation

@dataclass
class Source:
    """What is to be read: files or shards of the hub, of each part."""
    train: list
    val: list = field(default_factory=list)  # empty: some of train is set aside
    versions: dict | None = None  # of the packages, where train is Python files with docstrings
    tokens: bool = False  # shards of tokens instead of text


def prepare_documents(folder, source, args):
    """Write train and validation tokens of documents. Returns (vocabulary, {part: starts of
    documents}, what meta.json is to say). Raises InputError for too little text."""
    store = DocumentStore(folder / "text")
    longest = LONGEST
    if args.tokens:  # a document longer than the budget would be all there is
        longest = min(LONGEST, max(args.tokens, 2 * PASSAGE))
    reader = Reader(args.text_key, args.separator, longest)
    in_val = read_documents(store, reader, source, args)
    val, train, found = drop_copies(store, in_val, args.dedup)
    if not len(train):
        raise InputError(f"all of {' '.join(args.source)} is also in validation; give other text")
    corpus = hashlib.sha256()
    for place, i in enumerate(progress("hashed", itertools.chain(val, train))):
        corpus.update(b"\0" * (place > 0))
        corpus.update(store[i].encode())
    for part in (val, train):
        np.random.default_rng(args.seed).shuffle(part)
    if not source.val:
        # the tokenizer must not see validation
        aside = count_aside(store, train, args)
        val, train = train[:aside], train[aside:]

    vocabulary = args.vocabulary
    if vocabulary is None:
        learnt = train[:store.count(train, BPE_BYTES)]
        ranks = train_bpe((store[i] for i in learnt), args.vocab_size)
        vocabulary = Vocabulary(ranks, PATTERN, args.vocab_size, len(ranks))
    encoding, dtype = vocabulary.encoding(), token_dtype(vocabulary.size)
    tokens = np.concatenate(list(encode_documents(encoding, (store[i] for i in val), dtype)))
    if len(tokens) < args.val_tokens and args.val_given and not source.val:
        raise InputError(too_few(len(val) + len(train), args))
    val_tokens, rest = split_validation([tokens], encoding.eot_token, args.val_tokens)
    held = len(document_starts(val_tokens[0], encoding.eot_token))
    chunks = encode_documents(encoding, (store[i] for i in progress("encoded", train)), dtype)
    if source.val:
        rest_size = sum(map(len, rest))
        if rest_size:
            print(f"{rest_size:,} more validation tokens are there; --val_tokens takes them in")
    else:
        # what was set aside and is not needed is where train begins, so that a budget is a prefix
        chunks, train = itertools.chain(rest, chunks), np.concatenate([val[held:], train])

    end_of_text = encoding.eot_token
    starts = {"train": write_tokens(folder, "train", chunks, dtype, end_of_text, args.tokens),
              "val": write_tokens(folder, "val", val_tokens, dtype, end_of_text)}
    train_documents = zip(progress("compared", train), starts["train"])
    grams = ((text_grams(store[i], 13), start) for i, start in train_documents)
    val_grams = np.concatenate([text_grams(store[i], 13) for i in val[:held]])
    overlap = validation_overlap(grams, count_tokens(folder, "train", dtype), val_grams)
    store.remove()
    found |= {"lines_without_text": reader.bad.total(), "corpus_sha256": corpus.hexdigest()}
    return vocabulary, starts, {**found, "val_13grams_in_train": overlap}


def read_documents(store, reader, source, args):
    """Put the documents of a source into the store, those of validation first; returns how many are
    these."""
    most = 0
    if args.tokens:  # 8 bytes a token are more than enough
        most = 8 * (max(args.tokens, 2 * args.val_tokens) + args.val_tokens)
    collect_documents(store, reader, source.val, 0)
    in_val = len(store)
    if source.versions:  # all of them, since their files come in any order
        for text in progress("read", read_docstrings(source.train)):
            store.add(text)
    else:
        if not source.val and args.separator is None:
            documents = itertools.chain.from_iterable(map(reader.read, source.train))
            reader.cut_all = sum(1 for _ in itertools.islice(documents, FEW)) < FEW
        collect_documents(store, reader, source.train, most)
    store.flush()
    if len(store) == in_val or source.val and not in_val:
        part = "no text" if len(store) == in_val else "no validation text"
        raise InputError(f"{part} in {' '.join(args.source)}{reader.summary('; ')}")
    if reader.cut_all:
        print(f"fewer than {FEW} documents: each is cut into passages of about {PASSAGE:,} "
              f"letters, some of which may be in train and some in validation")
    if reader.first:
        print(reader.summary("warning: "), file=sys.stderr)
    store.warn()
    return in_val


def collect_documents(store, reader, parts, most):
    """Add the documents of all parts; or until they hold `most` bytes (0: all), each part giving an
    equal share as far as it can."""
    # the smallest first: what they lack of their share, the larger ones give
    waiting = sorted(parts, key=part_size)
    missing, taken, progress_line = most, Counter(), Progress("read")
    while waiting and (missing > 0 or not most):
        stopped = []
        for place, part in enumerate(waiting):
            share = missing / (len(waiting) - place)
            for text in itertools.islice(reader.read(part), taken[part], None):
                size = store.add(text)
                taken[part] += 1
                progress_line.step()
                share, missing = share - size, missing - size
                if most and share <= 0:
                    stopped.append(part)
                    break
        waiting = stopped  # read again from where they stopped, if the others held too little


def part_size(part):
    # of the hub: as if all were equal
    return os.path.getsize(part) if isinstance(part, Path) else 0


def drop_copies(store, in_val, near):
    """(validation, train, {what was found: count}): indices of the documents that are no copies of
    earlier ones, nor near-copies if these are to be dropped. Validation comes first."""
    order = store.unique()
    found = {"documents_read": len(store), "copies": len(store) - len(order)}
    parts = [order[order < in_val], order[order >= in_val]]
    # lists as long as that of the documents are what takes memory here
    del order, store.hashes[:]
    found["near_copies"] = 0
    if near:
        known = NearCopies()
        for place, part in enumerate(parts):
            new = (known.is_new(store[i]) for i in progress("looked at", part))
            new = np.fromiter(new, bool, len(part))
            found["near_copies"] += int((~new).sum())
            parts[place] = part[new]
    print(f"{len(store):,} documents were read; {found['copies']:,} copies and "
          f"{found['near_copies']:,} near-copies of others were dropped (--dedup 0 keeps the "
          f"latter)")
    return *parts, found


def too_few(documents, args):
    return (f"{documents:,} documents, without copies, are too few to set {args.val_tokens:,} "
            f"validation tokens apart; give more text or a smaller --val_tokens")


def count_aside(store, order, args):
    """How many documents of an order may become validation: 8 bytes a token will do; if nobody
    asked for a number of tokens, a tenth of the text at most."""
    count = store.count(order, 8 * args.val_tokens)
    if not args.val_given:
        text = sum(store.size(i) for i in order)
        count = min(count, max(1, store.count(order, text // 10) - 1))
    if count > len(order) // 2:
        raise InputError(too_few(len(order), args))
    return count


def split_validation(shards, end_of_text, val_tokens):
    """(validation, rest) of arrays of tokens: the first whole documents that hold val_tokens, all
    if there are fewer, and what follows."""
    val, missing = [], val_tokens
    for i, shard in enumerate(shards):
        starts = document_starts(shard, end_of_text)
        cut = starts[starts >= missing]
        if len(cut):
            return [*val, shard[:cut[0]]], [shard[cut[0]:], *shards[i + 1:]]
        val, missing = [*val, shard], missing - len(shard)
    return val, []


def prepare_shards(folder, source, args):
    """Write train and validation tokens as the shards have them. Returns what prepare_documents
    does."""
    shards = {path: read_shard(path) for path in [*source.train, *source.val]}
    kinds = {shard[1:] for shard in shards.values()}
    if len(kinds) > 1:
        raise InputError("the shards are of different vocabularies; prepare each kind by itself")
    (end_of_text, vocab_size), = kinds
    default = "gpt2" if end_of_text == GPT2_RANKS else "llama3"
    vocabulary = args.vocabulary or given_vocabulary(default)
    if vocabulary.end_of_text != end_of_text:
        raise InputError(f"--tokenizer has {vocabulary.end_of_text:,} ranks, the shards were made "
                         f"with {end_of_text:,}")
    train = [shards[path][0] for path in source.train]
    val = [shards[path][0] for path in source.val]
    val, rest = split_validation(val or train, end_of_text, args.val_tokens)
    if not source.val:
        train = rest
    if not train:
        raise InputError(f"the shards are too short to set {args.val_tokens:,} validation tokens "
                         f"apart; give more, or a smaller --val_tokens")
    dtype = token_dtype(vocab_size)
    train, val = pieces(train, vocab_size), pieces(val, vocab_size)
    starts = {"train": write_tokens(folder, "train", train, dtype, end_of_text, args.tokens),
              "val": write_tokens(folder, "val", val, dtype, end_of_text)}
    train, val = (np.memmap(folder / f"{part}.bin", dtype, "r") for part in ("train", "val"))
    every = np.uint64(-(-len(train) // MOST_GRAMS))

    def sampled_grams(tokens):
        found = gram_hashes(mix(tokens.astype(np.uint64)), 13)
        places = np.flatnonzero(mix(found) % every == 0)
        return found[places], places

    def train_grams():
        for begin in range(0, len(train), 2 ** 22):
            found, places = sampled_grams(train[begin:begin + 2 ** 22 + 12])
            yield found, begin + places + 12
    overlap = validation_overlap(train_grams(), len(train), sampled_grams(val)[0])
    return vocabulary, starts, {"val_13grams_in_train": overlap}


def read_shard(path):
    """(tokens, memory-mapped; end-of-text; vocabulary) of a file of tokens. Raises InputError."""
    header = np.fromfile(path, "<i4", 256)
    magic, version, count = header[:3].tolist() if len(header) == 256 else (0, 0, 0)
    if (magic, version) not in SHARDS:
        raise InputError(f"{path} is not a shard of tokens with a known header (magic {magic}, "
                         f"version {version}); bare ids do not say which tokenizer made them: give "
                         "the text")
    dtype, end_of_text, vocab_size = SHARDS[magic, version]
    found = (os.path.getsize(path) - 1024) / np.dtype(dtype).itemsize
    if found != count or not count:
        raise InputError(f"{path} holds {found:,.12g} tokens, its header says {count:,}; fetch it "
                         "again")
    return np.memmap(path, dtype, "r", 1024), end_of_text, vocab_size


def pieces(shards, vocab_size):
    """Tokens of shards some megabytes at a time. Raises InputError for an id that the vocabulary
    lacks."""
    for shard in shards:
        for begin in range(0, len(shard), 2 ** 23):
            piece = shard[begin:begin + 2 ** 23]
            if piece.max() >= vocab_size:
                raise InputError(f"{shard.filename} holds token {piece.max():,}, beyond the "
                                 f"vocabulary of {vocab_size:,}; fetch it again")
            yield piece


# --------------------------------------------------------------------------------------------------
# Reading: documents of files, and of data sets on the hub

class Reader:
    """Yields the documents of files and of shards of the hub, and counts the lines that are
    none."""

    def __init__(self, text_key="text", separator=None, longest=LONGEST):
        self.text_key, self.separator, self.longest = text_key, separator, longest
        self.cut_all = False  # documents are few, so each is cut into passages
        self.bad, self.first = Counter(), ""  # lines without text, of each part; the first of all

    def read(self, part):
        """Documents of a part; one longer than the longest that is wanted comes in passages. Raises
        InputError for what cannot be read."""
        self.bad[str(part)] = 0
        try:
            for text in self.read_part(part):
                if len(text) > self.longest or self.cut_all:
                    yield from cut_passages(text)
                else:
                    yield text
        except InputError:
            raise
        except UnicodeDecodeError as error:
            before = error.object[max(0, error.start - 20):error.start].decode(errors="replace")
            raise InputError(
                f"{part} is not UTF-8 (byte {error.object[error.start]:#x} after {before!r}); "
                f"convert it first, e.g. with iconv -f LATIN1 -t UTF-8") from None
        except Exception as error:  # of pyarrow, pandas and a dozen libraries below datasets
            raise InputError(
                f"{part} cannot be read ({first_line(error)}); is it damaged, cut off, or of "
                f"another kind than its name says?") from None

    def read_part(self, part):
        if isinstance(part, HubShard):
            return self.read_rows(part, part.rows)
        kind = kind_of(part)
        if kind == "text":
            return self.read_text(part)
        if kind == "lines" or kind == "json" and begins_with_object(part):
            return self.read_lines(part)
        return self.read_rows(part, load_table(part, kind, self.text_key))

    def read_text(self, path):
        """The pieces of a text file between separators: between lines <|endoftext|> if none was
        given. Of a piece too long for memory the passages come as soon as they are read."""
        pattern = rf"(?m)^{regex.escape(END_OF_TEXT)}[ \t]*$"
        if self.separator is not None:
            pattern = regex.escape(self.separator)
        text = ""
        for block in read_blocks(path):
            *whole, text = regex.split(pattern, text + block)
            yield from whole
            if len(text) > LONGEST:
                *passages, text = cut_passages(text)
                yield from passages
                text = text.removesuffix("\n\n")
        yield text

    def read_lines(self, path):
        """The text of each line, a JSON object."""
        for number, line in enumerate(open_lines(path), 1):
            if number == 1:
                refuse_nul(path, line)
            if line.strip():
                try:
                    row = json.loads(line)
                except (ValueError, RecursionError):
                    row = None
                yield from self.text_of(row, path, f"line {number}", line)

    def read_rows(self, part, rows):
        """The text of each row of a table."""
        for number, row in enumerate(rows, 1):
            yield from self.text_of(row, part, f"row {number}", "")

    def text_of(self, row, part, where, line):
        """[The text in a row]; [], noted down, if it has none."""
        text = row.get(self.text_key) if isinstance(row, dict) else None
        if isinstance(text, str):
            return [text]
        self.bad[str(part)] += 1
        if not self.first:
            what = line.strip()[:60]
            if isinstance(row, dict):
                what = "its keys: " + ", ".join(row)
            self.first = f"{part} {where} ({what})"
        return []

    def summary(self, before):
        """A message that begins with `before`; "" if all were documents."""
        if not self.first:
            return ""
        return (f'{before}{self.bad.total():,} lines or rows have no text under the key '
                f'"{self.text_key}" '
                f"and were left out, the first is {self.first}; --text_key names another key")


def cut_passages(text):
    """Pieces of a text, each the shortest of at least PASSAGE letters that ends at a blank line; if
    none comes within twice as many, at a line's or sentence's end, or between words."""
    passages, passage = [], ""
    for paragraph in regex.split(r"\n[ \t]*\n", text):
        passage += paragraph + "\n\n"
        if len(passage) >= PASSAGE:
            passages += cut_paragraph(passage)
            passage = ""
    if passage:
        passages += cut_paragraph(passage)
    return passages


def cut_paragraph(text):
    """Pieces of PASSAGE to twice as many letters. A text without any white space or full stop (DNA)
    is cut anywhere."""
    begin, parts = 0, []
    while len(text) - begin > 2 * PASSAGE:
        cut = begin + PASSAGE
        for end in (r"\n", r"[.!?]\s|[。！？]", r"\s"):
            found = regex.compile(end).search(text, begin + PASSAGE, begin + 2 * PASSAGE)
            if found:
                cut = found.end()
                break
        parts.append(text[begin:cut])
        begin = cut
    return [*parts, text[begin:]]


def refuse_nul(path, text):
    """Raise InputError for what begins with no text at all."""
    if "\0" in text[:4096]:
        raise InputError(f"{path} begins with NUL bytes, which no text has: it may be an archive "
                         f"or UTF-16; unpack or convert it first")


def is_packed(path):
    return path.suffix.lower() in PACKED


def open_lines(path):
    """Lines of a text file, each with its newline; they end at newlines alone."""
    if is_packed(path):
        rows = load_rows(path, "text", encoding="utf-8-sig", keep_linebreaks=True)
        return (row["text"] for row in rows)
    return open(path, encoding="utf-8-sig", newline="\n")


def read_blocks(path):
    """Text of a file, line ends made \\n, about a million letters at a time. A block ends where a
    line does, unless that is very long."""
    with contextlib.ExitStack() as stack:
        if is_packed(path):
            lines = open_lines(path)
            blocks = ("".join(itertools.islice(lines, 10_000)) for _ in itertools.count())
        else:
            file = stack.enter_context(open(path, encoding="utf-8-sig"))
            blocks = (file.read(2 ** 20) + file.readline(2 ** 20) for _ in itertools.count())
        for number, block in enumerate(itertools.takewhile(len, blocks)):
            if number == 0:
                refuse_nul(path, block)
            yield block


def begins_with_object(path):
    """Whether the first line of a .json file is an object by itself: then each line is one."""
    try:
        return isinstance(json.loads(next(iter(open_lines(path)), "")), dict)
    except ValueError:
        return False


def load_table(path, kind, text_key):
    """Rows of a file that is a table, or a JSON array, with the column of that name if it has
    one."""
    if kind == "parquet":
        return read_parquet(path, text_key)
    if kind in ("csv", "tsv"):
        # text stays as it is: "NA" is no missing value, "007" no number
        options = {"converters": {text_key: str}, "keep_default_na": False, "chunksize": 1000}
        return load_rows(path, "csv", sep="\t" if kind == "tsv" else ",", **options)
    return load_rows(path, kind)


def read_parquet(path, text_key):
    """Rows of a parquet file. (The builder below would hold hundreds of megabytes at a time.)"""
    import_datasets(path)  # brings pyarrow along
    parquet = importlib.import_module("pyarrow.parquet")
    file = parquet.ParquetFile(path, pre_buffer=False, buffer_size=2 ** 20)
    columns = [text_key] if text_key in file.schema_arrow.names else None
    for batch in file.iter_batches(1000, columns=columns):
        yield from batch.to_pylist()


def load_rows(path, kind, **options):
    """Rows of a file, read by a builder of the package datasets as they are asked for."""
    datasets = import_datasets(path)
    if path.suffix.lower() == ".zst":
        check_zstd(path)
    # the builder takes patterns, which a name with brackets is not
    name = glob.escape(os.path.abspath(path))
    return datasets.load_dataset(kind, data_files=name, split="train", streaming=True, **options)


def check_zstd(path):
    """Raise an error if a file is cut off, of which the library below datasets says nothing."""
    optional_package("zstandard", path)
    with optional_package("pyarrow", path).input_stream(str(path), compression="zstd") as stream:
        while stream.read(2 ** 20):
            pass


def import_datasets(path):
    """The package datasets, told to leave the talking to this script."""
    datasets = optional_package("datasets", path)
    datasets.disable_progress_bars()
    for package in (datasets, optional_package("huggingface_hub", path)):
        package.utils.logging.set_verbosity(logging.CRITICAL)
    return datasets


def optional_package(name, path):
    """Import what only some sources need."""
    try:
        return importlib.import_module(name)
    except ImportError:
        raise InputError(f"{path} needs the package {name}; install it with pip install "
                         f"{name}") from None


def first_line(error):
    """What an error is, in one line."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:200]}"


# --------------------------------------------------------------------------------------------------
# Which files, and what each is for

def kind_of(path):
    """How a file is read, by its name: a value of KINDS, None if it cannot be."""
    suffixes = [suffix.lower() for suffix in path.suffixes[-2:]]
    if suffixes and suffixes[-1] in PACKED:
        kind = KINDS.get(suffixes[0]) if len(suffixes) == 2 else None
        return None if kind in ("parquet", "arrow", "tokens") else kind
    return KINDS.get(suffixes[-1]) if suffixes else None


def check_kind(path):
    """Raise InputError for a file whose name does not say what it is, or says it wrongly."""
    kind = kind_of(path)
    if kind in ("parquet", "arrow", "tokens") or kind and is_packed(path):
        return  # their readers find out
    with open(path, "rb") as file:
        head = file.read(512)
    named = regex.search(r"\.(tar\.\w+|tgz)$", path.name.lower())  # and packed
    if named or head[257:262] == b"ustar":
        raise InputError(f"{path} is {TAR}")
    for begin, what in BEGINNINGS.items():
        if head.startswith(begin):
            raise InputError(f"{path} is {what}")
    if kind is None:
        raise InputError(f"{path} is of no known kind (its suffix: {path.suffix or 'none'}); name "
                         "it .txt if it is plain text, .jsonl if each of its lines is a JSON "
                         "object")


def role_of(path):
    """train, val or test if a file's name says so, or else its folder's; "" if none does."""
    for name in reversed(Path(path).parts):
        roles = r"(?<![a-z])(train|val|valid|validation|dev|test)(?![a-z])"
        found = regex.search(roles, name.lower())
        if found:
            return {"valid": "val", "validation": "val", "dev": "val"}.get(found[1], found[1])
    return ""


def find_files(sources):
    """The files that are named, and those in the folders that are: {path: role}. Raises InputError
    for a file that cannot be read; in a folder such files are left out, which one line says."""
    files, others = {}, []
    for source in map(Path, sources):
        if not source.exists():
            raise InputError(f"source {source} names no file; give files ({' '.join(KINDS)}), "
                             "folders, a data set of the hub (hf:OWNER/NAME), or one of "
                             f"{', '.join(('docstrings', *HUB))}")
        if source.is_file():
            check_kind(source)
            files[source] = role_of(source.name)
            continue
        inside = list_folder(source)
        known = [path for path in inside if kind_of(path) and path.name[0] != "."]
        others += [path for path in inside if path not in set(known)]
        for path in known:
            check_kind(path)
            files[path] = role_of(path.relative_to(source))
        if not known:
            raise InputError(f"no file in {source} can be read; known are {' '.join(KINDS)}, "
                             f"packed as {' '.join(PACKED)} or not")
    if others:
        print(f"{len(others):,} files of other kinds are left out: {name_some(others)}")
    return files


def list_folder(folder):
    """All files in a folder and those below it, linked ones also, by name."""
    files, seen = [], set()
    for place, folders, names in os.walk(folder, followlinks=True):
        if os.path.realpath(place) in seen:  # a link to a folder above
            folders.clear()
            continue
        seen.add(os.path.realpath(place))
        files += [Path(place, name) for name in names]
    return sorted(files)


def name_some(parts):
    """The first of some parts, for a message."""
    names = [str(part) for part in parts[:3]]
    if len(parts) > 3:
        names[-1] += " and more"
    return ", ".join(names)


def choose_parts(files, val):
    """(train, validation) of {part: role}: what is called test is left out, validation that is
    given goes before what is called so. Says what it does. Raises InputError if nothing is left for
    train."""
    roles = set(files.values())
    if len(roles) == 1:
        files = dict.fromkeys(files, "train")
        if roles & {"val", "test"}:
            print(f"all that is there is called {roles.pop()}; it is taken as the text")
    parts = {role: [part for part in files if files[part] == role] for role in ("val", "test")}
    train = [part for part in files if part not in parts["val"] + parts["test"]]
    if val:
        same = {os.path.realpath(str(part)) for part in val}
        train = [part for part in train if os.path.realpath(str(part)) not in same]
        parts["val"] = [part for part in parts["val"] if os.path.realpath(str(part)) not in same]
    left = parts["test"] + (parts["val"] if val else [])
    if left:
        print(f"left out, being called test or validation: {name_some(left)}")
    val = val or parts["val"]
    if not train:
        raise InputError(f"nothing is left to train on: {name_some(val)} is validation, the rest "
                         "test")
    if val:
        print(f"{len(val):,} of {len(train) + len(val):,} parts are validation: {name_some(val)}")
    return train, val


def choose_files(files, val, separator):
    """Source of files on this disk, {path: role}, and of those of validation. Raises InputError."""
    train, val = choose_parts(files, val)
    kinds = {kind_of(path) == "tokens" for path in train + val}
    if separator is not None and "text" not in map(kind_of, train + val):
        raise InputError("--separator parts the documents in .txt files; there are none")
    if len(kinds) > 1:
        raise InputError("shards of tokens (.bin) and text cannot be mixed; prepare each by itself")
    return Source(train, val, tokens=kinds == {True})


# --------------------------------------------------------------------------------------------------
# The hub

@dataclass(eq=False)
class HubShard:
    """One of the files of a data set on the hub, read as it is asked for."""
    name: str
    rows: Any

    def __str__(self):
        return self.name


def reach_hub(repository, by_hand):
    """Ask the hub for a data set once, without the many tries of its own client. Raises
    InputError."""
    hub = optional_package("huggingface_hub", repository)
    try:
        hub.HfApi().dataset_info(repository, timeout=10)
    except Exception as error:  # of several libraries below
        raise InputError(f"the data set {repository} cannot be reached on the hub "
                         f"({first_line(error)}); {by_hand}") from None


def open_hub(source, val_files):
    """Source of a data set on the hub, hf:OWNER/NAME[:CONFIG] or a short name, to be streamed."""
    source, val = HUB.get(source, (source.removeprefix("hf:"), None))
    by_hand = "fetch its files (.parquet, .jsonl) elsewhere and give them as --source"
    if val:
        by_hand += f", those of {val} as --val"
    datasets = import_datasets(source)
    found = []
    for name in filter(None, (source, val)):
        repository, _, config = name.partition(":")
        reach_hub(repository, by_hand)
        try:
            splits = datasets.load_dataset(repository, config or None, streaming=True)
        except Exception as error:  # of several libraries below
            raise InputError(f"hf:{name} cannot be opened ({first_line(error)}); for files that "
                             f"are here give their names") from None
        shards = {}
        for split, rows in splits.items():
            for i in range(rows.num_shards):
                shard = HubShard(f"hf:{name} {split} {i}", rows.shard(rows.num_shards, i))
                shards[shard] = role_of(split)
        found.append(shards)
    val_shards = val_files or (list(found[1]) if val else [])
    return Source(*choose_parts(found[0], val_shards))


def fetch_fineweb(tokens, val_files):
    """Source of as many shards of FineWeb as hold so many tokens, in the hub's cache on this
    disk."""
    repository, _ = HUB["fineweb"]
    hub = optional_package("huggingface_hub", repository)
    count = -(-tokens // FINEWEB_SHARD)
    names = ["fineweb_val_000000.bin", *(f"fineweb_train_{i:06d}.bin" for i in range(1, count + 1))]
    paths, reached = [], False
    for name in names:
        request = {"repo_id": repository, "filename": name, "repo_type": "dataset"}
        try:
            path = hub.hf_hub_download(**request, local_files_only=True)
        except hub.errors.LocalEntryNotFoundError:
            if not reached:
                reach_hub(repository, f"fetch {names[0]} and {names[1]} to {names[-1]} elsewhere "
                                      f"and give them as --source")
            reached = True
            print(f"fetching {name}", flush=True)
            try:
                path = hub.hf_hub_download(**request)
            except Exception as error:  # of several libraries below
                raise InputError(f"{name} of {repository} cannot be fetched ({first_line(error)}); "
                                 "run the same command again, or give the files as "
                                 "--source") from None
        paths.append(Path(path))
    return Source(paths[1:], val_files or paths[:1], tokens=True)


# --------------------------------------------------------------------------------------------------
# The format: write and read

def token_dtype(vocab_size):
    return np.dtype("<u2" if vocab_size <= 2 ** 16 else "<u4")


def document_starts(tokens, end_of_text):
    return np.flatnonzero(np.asarray(tokens) == end_of_text).astype(np.int64)


@contextlib.contextmanager
def new_data(name):
    """A folder to write data/NAME in, which appears there when all is well, or not at all.

    Its lock tells a folder that somebody works in from one that a killed process left behind.
    """
    folder, temporary = Path("data") / name, Path("data") / f".{name}.tmp"
    temporary.mkdir(parents=True, exist_ok=True)
    lock = os.open(temporary, os.O_RDONLY)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"another process is preparing {folder}; wait for it") from None
        if folder.exists():
            raise InputError(f"{folder} was prepared by another process just now; run the same "
                             "command")
        try:
            for leftover in temporary.iterdir():
                leftover.unlink()
            yield temporary
            os.rename(temporary, folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    finally:
        os.close(lock)


class Output:
    """A file that is written from its beginning on. Not buffered, so a full disk is found at
    once."""

    def __init__(self, path):
        self.path, self.file = path, open(path, "w+b", buffering=0)

    def write(self, content):
        """Raises InputError, which names the file."""
        rest = memoryview(content).cast("B")
        try:
            while rest:
                rest = rest[self.file.write(rest):]
        except OSError as error:
            raise cannot_write(self.path, error) from None


def write_tokens(folder, part, chunks, dtype, end_of_text, most=0):
    """Write arrays of tokens one after another, `most` tokens in all (0: every one), and where
    their documents start; returns those starts."""
    count, starts = 0, [np.zeros(0, np.int64)]
    output = Output(folder / f"{part}.bin")
    for tokens in chunks:
        tokens = np.asarray(tokens[:most - count if most else None], dtype)
        output.write(np.ascontiguousarray(tokens))
        starts.append(document_starts(tokens, end_of_text) + count)
        count += len(tokens)
        if most and count >= most:
            break
    output.file.close()
    starts = np.concatenate(starts)
    write_atomically(folder / f"{part}_docs.npy", lambda file: np.save(file, starts))
    return starts


def count_tokens(folder, part, dtype):
    return os.path.getsize(folder / f"{part}.bin") // np.dtype(dtype).itemsize


def count_bytes(folder, part, dtype, lengths):
    """UTF-8 bytes of the text of a part's tokens."""
    total = 0
    # read piece by piece: all pages of a memory map that were touched would count as memory in use
    with open(folder / f"{part}.bin", "rb") as file:
        while len(tokens := np.fromfile(file, dtype, 2 ** 22)):
            total += int(lengths[tokens].sum())
    return total


def token_lengths(ranks, vocab_size):
    """UTF-8 length of each token, 0 for special ones: int64 (vocab_size,)."""
    lengths = np.zeros(vocab_size, np.int64)
    for token, rank in ranks.items():
        lengths[rank] = len(token)
    return lengths


def finish_data(folder, name, vocabulary, starts, meta):
    """Write the tokenizer and meta.json, which this returns. starts: {part: of its documents}."""
    lines = []
    for token, rank in vocabulary.ranks.items():
        lines.append(base64.b64encode(token) + b" %d\n" % rank)
    write_atomically(folder / "tokenizer.tiktoken", lambda file: file.writelines(lines))
    content = None
    if vocabulary.json:
        content = Path(vocabulary.json).read_bytes()
    elif vocabulary.pattern:
        content = tokenizer_json(vocabulary.ranks, vocabulary.pattern, vocabulary.size).encode()
    if content:
        write_atomically(folder / "tokenizer.json", lambda file: file.write(content))
    dtype, lengths = token_dtype(vocabulary.size), token_lengths(vocabulary.ranks, vocabulary.size)
    meta = {"name": name, **meta,
            "vocab_size": vocabulary.size, "end_of_text": vocabulary.end_of_text,
            "pattern": vocabulary.pattern, "dtype": dtype.name,
            "tokens": {part: count_tokens(folder, part, dtype) for part in starts},
            "bytes": {part: count_bytes(folder, part, dtype, lengths) for part in starts},
            "documents": {part: len(starts[part]) for part in starts},
            "sha256": {file.name: sha256_file(file) for file in sorted(folder.iterdir())}}
    write_json(folder / "meta.json", meta)
    return meta


def write_data(name, parts, ranks, meta):
    """Write data/NAME of token arrays, parts {"train" and "val": tokens}; returns meta.json's
    content. meta: pattern, vocab_size and end_of_text of the tokenizer, and whatever else is to be
    kept."""
    vocabulary = Vocabulary(ranks, meta["pattern"], meta["vocab_size"], meta["end_of_text"])
    dtype = token_dtype(vocabulary.size)
    with new_data(name) as folder:
        starts = {part: write_tokens(folder, part, [tokens], dtype, vocabulary.end_of_text)
                  for part, tokens in parts.items()}
        return finish_data(folder, name, vocabulary, starts, meta)


@dataclass
class Data:
    """A prepared data set, memory-mapped. Read it with load_data()."""
    folder: Path
    meta: dict
    train: np.ndarray  # (tokens,)
    val: np.ndarray  # (tokens,)

    def fingerprint(self):
        """What identifies the tokens, in a run's configuration. (Where validation is set aside,
        train tells it.)"""
        parts = ("train.bin", "val.bin") if self.meta.get("val_apart") else ("train.bin",)
        hashes = "".join(self.meta["sha256"][part] for part in parts)
        return hashlib.sha256(hashes.encode()).hexdigest()[:12]

    def ranks(self):
        """{token bytes: id}, special tokens left out."""
        return read_ranks((self.folder / "tokenizer.tiktoken").read_bytes().splitlines())

    def tokenizer(self):
        """What encodes and decodes: tiktoken.Encoding, or a HubTokenizer if a tokenizer.json was
        given."""
        if self.meta["pattern"]:
            return make_encoding(self.ranks(), self.meta["pattern"], self.meta["vocab_size"])
        path = self.folder / "tokenizer.json"
        if not path.exists():
            raise InputError(f"{self.folder} holds tokens without their tokenizer; that of the "
                             f"data set its teachers learned from is the same")
        return HubTokenizer(path, self.meta["end_of_text"])

    def token_bytes(self):
        """UTF-8 length of each token, 0 for special ones: int64 (vocab_size,). For bits per
        byte."""
        return token_lengths(self.ranks(), self.meta["vocab_size"])


def load_data(name):
    """The data set data/NAME, every file checked against its recorded SHA-256. Raises
    InputError."""
    folder = Path("data") / name
    if Path(name).name != name:
        raise InputError(f"{name} is a path; a data set is named by its folder in data/ here")
    if not (folder / "meta.json").exists():
        known = sorted(path.parent.name for path in Path("data").glob("[!.]*/meta.json"))
        raise InputError(f"no data set {folder} (there: {', '.join(known) or 'none'}); make it "
                         "with prepare.py")
    meta = read_json(folder / "meta.json")
    for file, expected in meta.get("sha256", {"train.bin": None}).items():
        if not (folder / file).exists() or sha256_file(folder / file) != expected:
            raise InputError(f"{folder / file} is missing or changed (SHA-256 differs from "
                             f"meta.json); remove {folder} and prepare it again")
    train, val = (np.memmap(folder / f"{part}.bin", dtype=meta["dtype"], mode="r")
                  for part in ("train", "val"))
    return Data(folder, meta, train, val)


def cut_windows(tokens, context):
    """Consecutive windows of `context` tokens: (windows, context). The rest, shorter than a window,
    is dropped."""
    return tokens[:len(tokens) // context * context].reshape(-1, context)


# --------------------------------------------------------------------------------------------------
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
    """Call main(); bad input and failed files end in one line on standard error and exit status 2,
    Ctrl-C in 130."""
    try:
        main()
    except (InputError, ValueError, OSError) as error:
        print(f"{Path(sys.argv[0]).name}: error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print(f"{Path(sys.argv[0]).name}: interrupted; the same command takes it up "
              "again", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)


def cannot_write(path, error):
    return InputError(f"cannot write {path} ({error}); free some disk space, then run the same "
                      "command")


def write_atomically(path, write):
    """Call write(file) on a temporary binary file beside `path`, then rename it: `path` is never
    half-written."""
    temporary = Path(path).with_name(f".{Path(path).name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:  # torch.save turns a full disk into a RuntimeError
        raise cannot_write(path, error) from error
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
    """SHA-256 of a file, read once a process while its size and time of change stay the same."""
    stat = os.stat(path)
    return sha256_of(os.fspath(path), stat.st_size, stat.st_mtime_ns)


@functools.cache
def sha256_of(path, size, changed):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Progress:
    """A line every ten seconds that says how many documents were done."""

    def __init__(self, done, total=""):
        self.done, self.total, self.count, self.printed = done, total, 0, time.monotonic()

    def step(self):
        self.count += 1
        if time.monotonic() - self.printed > 10:
            self.printed = time.monotonic()
            print(f"{self.done} {self.count:,}{self.total} documents", flush=True)


def progress(done, items):
    """Yields items and says how many were done."""
    total = f" of {len(items):,}" if hasattr(items, "__len__") else ""
    line = Progress(done, total)
    for item in items:
        yield item
        line.step()


# --------------------------------------------------------------------------------------------------
# The command line

def read_options():
    """The command line, checked, with defaults that depend on one another. Raises InputError."""
    parser = Parser("Text to tokens: writes data/NAME.")
    parser.add_argument(
        "--source", nargs="+", default=["docstrings"], metavar="SOURCE",
        help=f"docstrings; files ({' '.join(KINDS)}; packed as {' '.join(PACKED)}) and folders; a "
             "data set of the Hugging Face hub (hf:OWNER/NAME or hf:OWNER/NAME:CONFIG) or "
             f"{', '.join(HUB)}")
    parser.add_argument("--val", nargs="+", default=[], metavar="PATH",
                        help="files or folders of validation (default: what is named so, or some "
                             "of train)")
    parser.add_argument("--name", help="folder under data/ (default: source name, with the "
                                       "vocabulary if not 1024)")
    parser.add_argument("--text_key", default="text", help="key or column that holds the text")
    parser.add_argument("--separator", metavar="STRING",
                        help="what parts the documents in .txt, \\n for "
                        "each line (default: lines <|endoftext|>; without any a file is a "
                        "document)")
    parser.add_argument("--vocab_size", type=int, default=1024,
                        help="ids of a BPE trained here, with end-of-text")
    parser.add_argument("--tokenizer", help="gpt2, llama3 (its tokenizer.model in this folder), "
                                            "bytes, a rank file in tiktoken's format, or a folder "
                                            "with a tokenizer.json (default: a BPE is trained)")
    parser.add_argument("--tokens", type=int, help="train tokens to stop at, drawn from all files; "
                                                   "files are read as far as 8 bytes for each. 0: "
                                                   "all (default: all; of the hub 209,715,200)")
    parser.add_argument("--val_tokens", type=int, help="validation tokens, the same for every "
                                                       "budget (default: 65,536, of the hub "
                                                       "4,194,304; at most a tenth of the text)")
    parser.add_argument("--seed", type=int, default=0, help="of the shuffle that splits documents")
    parser.add_argument("--dedup", type=int, default=1, choices=(0, 1),
                        help="0: drop exact copies alone; shards are copied as they are")
    parser.add_argument("--json", action="store_true", help="print meta.json as the last line")
    args = parser.parse_args()

    args.hub = args.source[0] in HUB or args.source[0].startswith("hf:")
    if len(args.source) > 1 and any(name in ("docstrings", *HUB) or name.startswith("hf:")
                                    for name in args.source if not Path(name).exists()):
        raise InputError("docstrings and data sets of the hub are prepared each by itself; give "
                         "one --source")
    args.val_given = args.val_tokens is not None
    if args.tokens is None:
        args.tokens = PAPER_TOKENS if args.hub else 0
    if not args.val_given:
        args.val_tokens = 2 ** 22 if args.hub else 2 ** 16
    for name, least in (("vocab_size", 257), ("val_tokens", 1), ("tokens", 0), ("seed", 0)):
        if getattr(args, name) < least:
            raise InputError(f"--{name} {getattr(args, name)} is out of range; it must be at least "
                             f"{least}")
    if args.source == ["fineweb"] and not args.tokens:
        raise InputError("fineweb is 10 billion tokens: give --tokens above 0")
    if args.separator is not None:  # as a shell passes it on
        args.separator = args.separator.replace("\\n", "\n").replace("\\t", "\t")
        if not args.separator:
            raise InputError("--separator is empty; give what stands between two documents, such "
                             "as '\\n'")
    args.name = args.name or default_name(args)
    if not regex.fullmatch(r"\w[\w.-]*", args.name):
        raise InputError(f"--name {args.name} cannot be the name of a data set; use letters, "
                         "digits, - and _")
    return args


def default_name(args):
    """Of the first source, and of the vocabulary if it is not the default."""
    name = Path(args.source[0].removeprefix("hf:")).name
    for suffix in (*PACKED, *KINDS):
        if name.lower().endswith(suffix):
            name = name[:-len(suffix)]
    name = regex.sub(r"[^\w.-]+", "-", name).strip("-.")
    vocabulary = Path(args.tokenizer).stem if args.tokenizer else args.vocab_size
    return name if vocabulary == 1024 else f"{name}-{vocabulary}"


def identify(args, files):
    """What tells one request from another: options that are not the default, and hashes of
    files."""
    # a prepared docstrings folder may come from a machine with other versions: it is the data all
    # the same
    identity = {"source": args.source, "files": files, "vocab_size": args.vocab_size,
                "val_tokens": args.val_tokens, "seed": args.seed}
    tokenizer = args.tokenizer
    file = Path("tokenizer.model" if tokenizer == "llama3" else tokenizer or "")
    if tokenizer and file.is_dir():
        file = file / "tokenizer.json"
    if tokenizer and file.is_file():
        tokenizer = [tokenizer, sha256_file(file)]
    others = {"tokenizer": (tokenizer, None), "tokens": (args.tokens, 0), "dedup": (args.dedup, 1),
              "val": (args.val, []), "text_key": (args.text_key, "text"),
              "separator": (args.separator, None)}
    return identity | {name: value for name, (value, default) in others.items() if value != default}


def is_prepared(folder, identity):
    """Whether a folder holds what was asked for. Raises InputError if it holds anything else."""
    if not folder.exists():
        return False
    if not (folder / "meta.json").exists():
        raise InputError(f"{folder} is there already and is no data set; give another --name")
    if load_data(folder.name).meta.get("identity") != identity:
        raise InputError(f"{folder} holds other data (its meta.json says what); remove it or give "
                         f"another --name")
    return True


def open_source(args, files, val_files):
    """The Source that was asked for. Raises InputError."""
    if args.source == ["docstrings"]:
        files, versions = find_docstrings()
        return Source(files, list(val_files), versions)
    if args.source == ["fineweb"]:
        return fetch_fineweb(args.tokens, list(val_files))
    if args.hub:
        return open_hub(args.source[0], list(val_files))
    return choose_files(files, list(val_files), args.separator)


def main():
    args = read_options()
    files, val_files = {}, find_files(args.val)
    if args.source != ["docstrings"] and not args.hub:
        files = find_files(args.source)
    hashes = {str(file): sha256_file(file) for file in [*files, *val_files]}
    identity, folder = identify(args, hashes or None), Path("data") / args.name
    if is_prepared(folder, identity):
        meta = load_data(args.name).meta
        print(f"{folder} is prepared already")
    else:
        args.vocabulary = None
        if args.tokenizer:  # better refused now than after reading all
            args.vocabulary = given_vocabulary(args.tokenizer)
        with new_data(args.name) as temporary:
            source = open_source(args, files, val_files)
            prepare = prepare_shards if source.tokens else prepare_documents
            vocabulary, starts, found = prepare(temporary, source, args)
            origin = {"identity": identity, "versions": source.versions, "seed": args.seed,
                      "val_apart": bool(source.val)}
            meta = finish_data(temporary, args.name, vocabulary, starts, {**origin, **found})
        report(folder, meta, args)
    if args.json:
        print(json.dumps(meta))


def report(folder, meta, args):
    """Print what was prepared, and warnings."""
    corpus, versions = meta.get("corpus_sha256", ""), meta["versions"]
    if versions and args.dedup and corpus != CORPUS_SHA256:
        print(f"warning: the docstrings here (SHA-256 {corpus[:12]}..., versions {versions}) are "
              "not those of the pinned versions, so losses will not compare with the published "
              "tables",
              file=sys.stderr)
    if "documents_read" in meta:
        read, copies, near = (meta[key] for key in ("documents_read", "copies", "near_copies"))
        if copies + near > read / 10 and not versions:  # docstrings are known to repeat themselves
            print(f"warning: {copies + near:,} of {read:,} documents are gone, being like others; "
                  f"--dedup 0 keeps near-copies", file=sys.stderr)
    print(f"{folder}: {meta['documents']['train']:,} documents, {meta['tokens']['train']:,} train "
          f"and {meta['tokens']['val']:,} validation tokens"
          + (f", corpus SHA-256 {corpus[:12]}" if corpus else ""))
    if meta["tokens"]["train"] < args.tokens:
        print(f"warning: fewer than {args.tokens:,} train tokens in {' '.join(args.source)} (text "
              f"is read as far as 8 bytes a token)", file=sys.stderr)
    for budget, share in meta["val_13grams_in_train"].items():
        print(f"  of the validation 13-grams {share:.2%} occur in the first {int(budget):,} train "
              "tokens")
    overlap = meta["val_13grams_in_train"].items()
    large = [int(budget) for budget, share in overlap if share > 0.05]
    if large:
        print(f"warning: over 5% of validation occurs in train from {min(large):,} tokens on, "
              f"where its loss also measures memory", file=sys.stderr)


if __name__ == "__main__":
    run_main(main)
