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
byte-level BPE on the others (or take a given one), encode. Memory grows with the number of
documents, not with their length. Shards of tokens are copied as they are.
"""
import argparse
import array
import ast
import base64
import bz2
import concurrent.futures
import contextlib
import csv
import fcntl
import functools
import glob
import gzip
import hashlib
import heapq
import importlib.metadata
import importlib.util
import inspect
import io
import itertools
import json
import logging
import lzma
import math
import operator
import os
import shutil
import sys
import time
import warnings
import zlib
from collections import Counter, defaultdict, namedtuple
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import regex  # comes with tiktoken, which splits text with the same pattern
import tiktoken

# GPT-2's split into words: a contraction; letters, digits or signs with one space before; blanks
PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""
# Llama 3's differs in that numbers are cut into threes, and a sign may lead a word
LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+")
GPT2_RANKS = 50_256
# Llama 3's first special token, begin-of-text, is what precedes a document; 255 others follow
LLAMA3_RANKS, LLAMA3_VOCAB = 128_000, 128_256
END_OF_TEXT = "<|endoftext|>"

CORPUS_PACKAGES = ("torch", "numpy", "scipy", "sympy", "networkx", "mpmath")
# of the documents in requirements.txt's versions; others give other text, hence other losses
CORPUS_SHA256 = "127c6b597cc050cf4df57bd04d5399d9a048aa187a4a4559507a03d8cedc5d7c"
PAPER_TOKENS = 209_715_200  # the paper's smallest budget: 800 steps x 64 sequences x 4,096 tokens
# short names of data sets on the hub: what train comes from, and validation where that is apart
HUB = {"fineweb": ("kjj0/fineweb10B-gpt2", None),
       "megamath": ("OctoThinker/MegaMath-Web-Pro-Max", None),
       "dclm": ("konwoo/dclm-164k-docs-train", "konwoo/dclm-164k-docs-val")}
FINEWEB_SHARD = 100_000_000  # tokens in each of its files

# how a file is read, by its suffix; what is text inside may be packed
KINDS = {".txt": "text", ".md": "text", ".jsonl": "lines", ".ndjson": "lines", ".json": "json",
         ".csv": "csv", ".tsv": "tsv", ".parquet": "parquet", ".arrow": "arrow", ".bin": "tokens"}
PACKED = (".gz", ".zst", ".bz2", ".xz")
# what files begin with that are no text, and what to do with them
BEGINNINGS = {
    b"PK\x03\x04": "a zip archive (.docx and .epub are such); give the text in it as .txt",
    b"%PDF": "a PDF; give the text in it as .txt",
    b"\x1f\x8b": "packed by gzip; name it for what is in it, such as .txt.gz or .jsonl.gz",
    b"\x28\xb5\x2f\xfd": "packed by zstd; name it for what is in it, such as .txt.zst",
    b"\xff\xfe": "UTF-16; convert it to UTF-8 first, e.g. with iconv -f UTF-16 -t UTF-8",
    b"\xfe\xff": "UTF-16; convert it to UTF-8 first, e.g. with iconv -f UTF-16 -t UTF-8"}
# headers of public token shards: (magic, version) -> type, token before a document, vocabulary
SHARDS = {(20240520, 1): ("<u2", GPT2_RANKS, 50_257),
          (20240801, 7): ("<u4", LLAMA3_RANKS, LLAMA3_VOCAB)}

FEW = 100  # documents; fewer are cut into passages, or none could be set aside as validation
PASSAGE = 2000  # characters of a passage, about
LONGEST = 2 ** 19  # characters of a document; a longer one is cut
# of Chinese, Japanese, Thai and others, which put no spaces between words
UNSPACED = r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]"
LONG_WORDS = 48  # letters a word, on average, above which a text such as DNA has no spaces either
GRAM_PLACES = 2 ** 28  # bytes, at most, of the table in which near-copies are looked up
BPE_BYTES, BPE_WORDS = 2 ** 27, 2 ** 21  # bytes of text and of its different words to learn from


# --------------------------------------------------------------------------------------------------
# The default corpus: text that is on the machine

def is_prose(text):
    """True if most words are plain words: documentation, but no tables, code or test vectors."""
    words = text.split()
    # words of prose are letters but for the signs around them
    plain = sum(word.strip(".,:;()`'\"*-").isalpha() for word in words)
    return len(words) >= 30 and plain > 0.6 * len(words)


def docstrings_of(path):
    """Docstrings and long prose (200 characters or more) in a Python file, some of them twice."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    with warnings.catch_warnings(action="ignore"):  # invalid escapes in other people's strings
        found, todo = [], [ast.parse(path.read_bytes())]
    while todo:
        node = todo.pop()
        if isinstance(node, documented):
            found.append(ast.get_docstring(node) or "")
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            # a long docstring comes by here again; copies are dropped later in any case
            if len(node.value) >= 200 and is_prose(node.value):
                found.append(inspect.cleandoc(node.value))
        # pieces of f-strings differ between Python versions, so they are left out
        if not isinstance(node, ast.JoinedStr):
            todo.extend(ast.iter_child_nodes(node))
    return [text for text in found if text]


def find_docstrings():
    """(Python files of CORPUS_PACKAGES as installed, {package: version}). Raises InputError."""
    files, versions = [], {}
    for package in CORPUS_PACKAGES:
        spec = importlib.util.find_spec(package)  # finds the folder without importing it
        if spec is None:
            raise InputError(f"package {package} is missing; install requirements.txt first")
        # 2.13.0+cpu and 2.13.0+cu130 have the same docstrings
        versions[package] = importlib.metadata.version(package).split("+")[0]
        files += Path(spec.submodule_search_locations[0]).rglob("*.py")
    # py3*: syntax of one Python version
    return [file for file in files if not file.name.startswith("py3")], versions


def read_docstrings(files):
    """Yields the docstrings of Python files."""
    # parsing takes most of the time of preparing this corpus, so all cores do it
    with concurrent.futures.ProcessPoolExecutor() as pool:
        for found in pool.map(docstrings_of, files, chunksize=50):
            yield from found


# --------------------------------------------------------------------------------------------------
# Documents on disk, without copies

# A corpus may be larger than memory, and is read several times in several orders. So the text goes
# to disk once, as it comes, and every later step works on indices.
class DocumentStore:
    """Documents in one file, read in any order; memory holds their places and hashes alone."""

    def __init__(self, path):
        # without a buffer, what was added can be read at once
        self.file = open(path, "w+b", buffering=0)
        self.ends = array.array("q", [0])  # document i is the bytes from ends[i] to ends[i + 1]
        self.hashes = array.array("Q")  # the first 8 bytes of each document's SHA-256
        self.repaired, self.markers = 0, 0  # documents; markers inside documents
        self.progress = Progress("read")

    def __len__(self):
        return len(self.ends) - 1

    def __getitem__(self, i):
        begin, end = self.ends[i], self.ends[i + 1]
        return os.pread(self.file.fileno(), end - begin, begin).decode()

    def add(self, text):
        """Append a document without the white space around it, unless nothing is left then."""
        try:
            content = text.strip().encode()
        except UnicodeEncodeError:  # half a surrogate pair has no UTF-8 form
            self.repaired += 1
            return self.add(text.encode("utf-16", "surrogatepass").decode("utf-16", "replace"))
        if content:
            write_all(self.file, content)
            # it becomes ordinary tokens, and may have been meant to end the document
            self.markers += content.count(END_OF_TEXT.encode())
            self.ends.append(self.ends[-1] + len(content))
            self.hashes.append(int.from_bytes(hashlib.sha256(content).digest()[:8]))
        self.progress.step()

    def size(self, order):
        """Bytes of each document of an order, an array of indices."""
        return np.diff(np.frombuffer(self.ends, np.int64))[order]

    def count(self, order, size):
        """How many documents of an order, from its first on, hold `size` bytes together;
        len(order) + 1 if all of them hold less."""
        return 1 + int(np.searchsorted(np.cumsum(self.size(order)), size))

    def unique(self):
        """Indices of documents that are no copies of earlier ones, in the order of their hashes."""
        return np.unique(np.frombuffer(self.hashes, np.uint64), return_index=True)[1]


# Copies are found by their hash. Near-copies and the overlap of validation with train are found by
# runs of words, n-grams, of which only 64-bit hashes are kept: two different ones agree once in
# 10^19 pairs.
def mix(x):
    """Scramble uint64 numbers so that each bit depends on all."""
    x = (x ^ (x >> np.uint64(31))) * np.uint64(0x7FB5D329728EA185)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x81DADEF4BC2DD44D)
    return x ^ (x >> np.uint64(33))


def text_grams(text, n):
    """Hash of each run of n words of a text, case ignored: uint64 (words - n + 1,). A text without
    spaces between its words gives runs of 2 n letters, which is about as much text."""
    head = text[:2000]
    # DNA, base64 or a line of Thai is one long word
    unspaced = len(head) > LONG_WORDS * len(head.split())
    if not head.isascii():
        # Chinese with English in it has short words also
        unspaced |= len(regex.findall(UNSPACED, head)) > len(head) / 3
    # what differs in case or in white space alone is the same text
    words = text.lower().split()
    if unspaced:
        codes, n = np.frombuffer("".join(words).encode("utf-32-le"), np.uint32), 2 * n
    else:
        # the checksum of a word is the same in every process, unlike Python's hash()
        codes = [zlib.crc32(word.encode()) for word in words]
    # the numbers of letters are small and alike; scrambled, few sums of them agree by chance
    codes = mix(np.array(codes, np.uint64))
    grams = np.zeros(max(0, len(codes) - n + 1), np.uint64)
    for i in range(n):
        # a polynomial modulo 2^64 in an odd number, which the order of the words changes
        grams = grams * np.uint64(0x9E3779B97F4A7C15) + codes[i:i + len(grams)]
    return grams


class NearCopies:
    """Remembers the 8-grams of the documents that are kept, of large texts an even sample.
    (Validation that is nearly in train, as templates are, measures memory, not modeling.)"""

    def __init__(self, size):
        """size: bytes of all documents, kept or not."""
        # a Bloom filter: each gram marks four places of a table, most of which stay empty
        self.table = np.zeros(min(GRAM_PLACES, 8 * size + 1), bool)
        # one gram of so many is remembered: English has about one in six bytes, so that four
        # places each fill at most a sixth of the table
        self.every = np.uint64(1 + 4 * size // GRAM_PLACES)

    def is_new(self, text):
        """True if at most half of a document's 8-grams were seen before; it is remembered then."""
        grams = text_grams(text, 8)
        # its hash decides: a run in two documents is in the sample of both or of none
        grams = grams[mix(grams) % self.every == 0]
        if self.every > 1 and len(grams) < 4:  # one chance match must not drop a document
            return True
        places = np.stack([mix(grams + np.uint64(i)) for i in range(1, 5)]) % len(self.table)
        # a template with other numbers shares most of its runs; two texts about one thing do not
        if self.table[places].all(axis=0).sum() > len(grams) / 2:
            return False
        self.table[places] = True
        return True


def validation_overlap(train, train_tokens, val_grams):
    """Share of the 13-grams of validation that also occur in train, per budget: {tokens: share}.

    train: yields (hashes of 13-grams, the token at which their document starts); val_grams: hashes.
    """
    # validation is small and waits in a table; train is large and streams by
    waiting, found = Counter(val_grams.tolist()), []
    if not waiting:
        return {}
    for grams, start in train:
        # where in train one occurs first is all that counts, so what is found waits no longer
        for gram in waiting.keys() & grams.tolist():
            found.append((start, waiting.pop(gram)))
    # the ladder's budgets at its four scales, as far as train goes, and all of it
    scales = itertools.product((1000, 100, 10, 1), (1, 2, 4, 8))
    budgets = [PAPER_TOKENS * times // scale for scale, times in scales]
    shares = {}
    for budget in [*(budget for budget in budgets if budget < train_tokens), train_tokens]:
        count = sum(occurrences for start, occurrences in found if start < budget)
        shares[str(budget)] = round(count / len(val_grams), 5)
    return shares


# --------------------------------------------------------------------------------------------------
# Tokenizers

# The textbook's loop counts all pairs anew after each merge: merges x text. Here the counts are
# kept up to date: a merge changes those of the pairs around it and no others.
class Neighbors:
    """The bytes of different words, as linked lists of tokens; how often any two neighbors occur,
    and where.

    A pair is known by its concatenation: as in tiktoken's encoder, what is merged is any two
    neighbors whose concatenation is the new token. A merge costs time for the places where it
    occurs, not for whole words, so one word of a million letters is no special case.
    """

    def __init__(self, word_counts):
        words = [word.encode() + b"\0" for word in word_counts]
        lengths = [len(word) for word in words]
        self.tokens = np.frombuffer(b"".join(words), np.uint8).astype(np.int64)
        self.tokens[np.cumsum(lengths) - 1] = -1  # ends a word: no pair reaches into the next one
        self.weights = np.repeat(list(word_counts.values()), lengths)
        self.names = [bytes([byte]) for byte in range(256)]  # of the tokens
        places = np.arange(len(self.tokens))
        self.before, self.after = np.roll(places, 1), np.roll(places, -1)
        # places are noted down when a pair comes and not crossed out when it goes
        self.counts, self.places = Counter(), defaultdict(list)
        self.count(places, 1)

    def count(self, places, sign):
        """Count the pairs at places (sign 1) or take them out of the counts (-1); returns them."""
        first, second = self.tokens[places], self.tokens[self.after[places]]
        inside = (first >= 0) & (second >= 0)
        places, codes = places[inside], (first << 32 | second)[inside]
        # those of one pair together
        order = np.argsort(codes)
        codes, begins = np.unique(codes[order], return_index=True)
        pairs = []
        for code, group in zip(codes.tolist(), np.split(places[order], begins[1:])):
            pairs.append(self.names[code >> 32] + self.names[code & 0xFFFFFFFF])
            self.counts[pairs[-1]] += sign * int(self.weights[group].sum())
            if sign > 0:
                self.places[pairs[-1]].append((code, group))
        return pairs

    def merge(self, new):
        """Replace every two neighbors that make `new`; returns the pairs whose counts changed."""
        tokens, before, after = self.tokens, self.before, self.after
        found = []
        for code, group in self.places.pop(new):
            there = tokens[group] << 32 | tokens[after[group]] & 0xFFFFFFFF
            found.append(group[there == code])
        places = np.unique(np.concatenate(found))
        # from left to right: of three equal letters the first two are merged, of four two and two,
        # so of a run of places, each at the one before it, every second
        index = np.arange(len(places))
        alone = np.append(True, after[places[:-1]] != places[1:])
        places = places[(index - np.maximum.accumulate(index * alone)) % 2 == 0]
        # the pairs that end, are or begin here go, and two others come
        gone = after[places]
        changed = self.count(np.unique([before[places], places, gone]), -1)
        tokens[places], tokens[gone] = len(self.names), -1
        self.names.append(new)
        after[places] = after[gone]
        before[after[gone]] = places
        return {*changed, *self.count(np.unique([before[places], places]), 1)}


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
    id). The most frequent pair is the next token. Raises InputError when there are too few."""
    # a word's merges are the same wherever it stands, so each different word is looked at once
    words = Neighbors(count_words(texts))
    # a heap gives the smallest: of the most frequent pair, and of equals the smallest bytes
    heap = [(-count, pair) for pair, count in words.counts.items()]
    heapq.heapify(heap)
    # all bytes are tokens, so that any text can be encoded
    ranks = {bytes([byte]): byte for byte in range(256)}
    line = Progress("merged", range(257, vocab_size), "pairs")
    while len(ranks) < vocab_size - 1:
        if not heap:
            raise InputError(f"too little text for vocab_size {vocab_size}; at most "
                             f"{len(ranks) + 1} here")
        count, new = heapq.heappop(heap)
        # a changed count was pushed anew, and the old one is still in the heap
        if new in ranks or -count != words.counts[new]:
            continue
        ranks[new] = len(ranks)
        for pair in words.merge(new):
            if words.counts[pair] > 0:
                heapq.heappush(heap, (-words.counts[pair], pair))
        line.step()
    return ranks


def special_tokens(ranks, vocab_size):
    """{name: id}: END_OF_TEXT is the id after the ranks, those up to vocab_size are reserved."""
    # reserved: ids that models have a row for and no text uses
    reserved = {f"<|reserved_{i}|>": i for i in range(len(ranks) + 1, vocab_size)}
    return {END_OF_TEXT: len(ranks), **reserved}


def make_encoding(ranks, pattern=PATTERN, vocab_size=0):
    """tiktoken.Encoding of ranks and their special tokens."""
    return tiktoken.Encoding("ranks", pat_str=pattern, mergeable_ranks=ranks,
                             special_tokens=special_tokens(ranks, vocab_size))


class HubTokenizer:
    """A tokenizer.json of Hugging Face, run by its own library, with tiktoken's method names."""

    def __init__(self, path, end_of_text):
        library = optional_package("tokenizers", path)
        with in_one_line(path):
            self.tokenizer = library.Tokenizer.from_file(str(path))
        self.tokenizer.encode_special_tokens = True  # what looks like a special token is text
        # what the file says about batches must not change a document
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        self.eot_token = end_of_text
        # a file may have it among its tokens of plain text, and text that spells it would end there
        name = self.tokenizer.id_to_token(end_of_text)
        if name:  # a model's config.json may say an id that the file does not know
            self.tokenizer.add_special_tokens([name])
        self.n_vocab = 1 + max(self.tokenizer.get_vocab().values())

    def encode_ordinary(self, text):
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def encode_to_numpy(self, text, disallowed_special=()):
        return np.array(self.encode_ordinary(text), np.uint32)

    def decode(self, tokens):
        return self.tokenizer.decode(tokens, skip_special_tokens=False)


def byte_letters():
    """The letter that stands for each byte in a byte-level tokenizer.json: (256,)."""
    # as GPT-2's code has it: itself if it is printable, so that a vocabulary can be looked at
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = (chr(256 + i) for i in itertools.count())
    return [chr(byte) if byte in printable else next(others) for byte in range(256)]


def tokenizer_json(ranks, pattern, vocab_size):
    """The text of a tokenizer.json that gives the ids of make_encoding(ranks, pattern, vocab_size).

    Each way to make a token of two others is a merge, in the order of ranks, since that is what
    tiktoken merges.
    """
    letters = byte_letters()
    names = {token: "".join(map(letters.__getitem__, token)) for token in ranks}
    merges = []
    # ranks say which tokens there are, not which two each was made of; the library needs these
    for token in sorted(ranks, key=ranks.get):
        halves = [(token[:i], token[i:]) for i in range(1, len(token))]
        halves = [(a, b) for a, b in halves if a in ranks and b in ranks]
        # of several ways to make a token the one of the lowest ranks comes first
        halves.sort(key=lambda pair: (ranks[pair[0]], ranks[pair[1]]))
        merges += [[names[a], names[b]] for a, b in halves]
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    added = [{"id": i, "content": content, "special": True, **plain}
             for content, i in special_tokens(ranks, vocab_size).items()]
    # first the words, then the letters that stand for their bytes
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
    pattern: str | None  # None: the split is that of a tokenizer.json
    size: int
    end_of_text: int
    file: Path | None = None  # the tokenizer.json

    def encoding(self):
        """What encodes and decodes: tiktoken.Encoding, or a HubTokenizer of the file."""
        if self.pattern:
            return make_encoding(self.ranks, self.pattern, self.size)
        return HubTokenizer(self.file, self.end_of_text)


def rank_vocabulary(ranks):
    """The Vocabulary of ranks, GPT-2's split and end-of-text after them."""
    return Vocabulary(ranks, PATTERN, len(ranks) + 1, len(ranks))


def read_ranks(path):
    """{token bytes: rank} of a file in tiktoken's format: a line a token, base64 and rank."""
    lines = path.read_bytes().splitlines()
    return {base64.b64decode(token): int(rank) for token, rank in map(bytes.split, lines)}


def given_vocabulary(choice):
    """The Vocabulary that --tokenizer names. Raises InputError."""
    if choice == "bytes":
        return rank_vocabulary({bytes([byte]): byte for byte in range(256)})
    if choice == "gpt2":
        # tiktoken downloads them where its cache has none
        with in_one_line("GPT-2's ranks", "are not here", "give their cache as TIKTOKEN_CACHE_DIR"):
            return rank_vocabulary(tiktoken.get_encoding("gpt2")._mergeable_ranks)
    # Llama 3's ranks are under a licence, so nothing fetches them
    path = Path("tokenizer.model" if choice == "llama3" else choice)
    if path.is_dir():
        with in_one_line(f"the tokenizer in {path}"):
            return hub_vocabulary(path)
    if not path.exists():
        raise InputError(f"no tokenizer {path}; give gpt2, bytes, a rank file (for llama3 its "
                         "tokenizer.model, in this folder) or a folder with a tokenizer.json")
    ranks = {}
    with contextlib.suppress(ValueError):  # of lines that are none
        ranks = read_ranks(path)
    # tiktoken would end with an unclear error, or none, at the first byte that has no token
    all_bytes = all(bytes([byte]) in ranks for byte in range(256))
    if not all_bytes or sorted(ranks.values()) != list(range(len(ranks))):
        raise InputError(f"{path} is not a rank file (each line base64, space, rank; all bytes in "
                         "it); of a tokenizer.json give the folder")
    # how many ranks there are tells whose they are, and so how text is split into words
    if len(ranks) == LLAMA3_RANKS:
        return Vocabulary(ranks, LLAMA3_PATTERN, LLAMA3_VOCAB, LLAMA3_RANKS)
    if len(ranks) != GPT2_RANKS:
        print(f"{path} does not say how text is split into words; GPT-2's split is assumed (a "
              "folder with a tokenizer.json keeps its own)")
    return rank_vocabulary(ranks)


def hub_end_of_text(folder):
    """The id of the token before a document of a folder with a tokenizer.json: its bos_token, or
    else its eos_token; None where the folder names neither. Raises InputError."""
    if (folder / "meta.json").exists():  # a data set, which has no tokenizer_config.json
        return read_json(folder / "meta.json").get("end_of_text")
    config_path = folder / "tokenizer_config.json"
    added = {token["content"]: token["id"]
             for token in read_json(folder / "tokenizer.json").get("added_tokens", ())}
    config = read_json(config_path) if config_path.exists() else {}
    names = [config.get("bos_token"), config.get("eos_token"), END_OF_TEXT]
    # some versions of transformers wrap a token in an object
    names = [name["content"] if isinstance(name, dict) else name for name in names]
    # what a model saw before each text in its training comes first
    return next((added[name] for name in names if name in added), None)


def hub_vocabulary(folder):
    """The Vocabulary of a folder with a byte-level tokenizer.json. Raises InputError."""
    path = folder / "tokenizer.json"
    if not path.exists():
        raise InputError(f"{folder} has no tokenizer.json; save one there, or give a rank file")
    content = read_json(path)
    model, decoder = content.get("model", {}), json.dumps(content.get("decoder"))
    # bits per byte need the bytes of each token, which other kinds do not have
    # (merges, not the type: old files such as GPT-2's own do not say their type)
    if "merges" not in model or "ByteLevel" not in decoder:
        raise InputError(f"{path} is no byte-level BPE, whose tokens are bytes; give another")
    added = {token["content"]: token for token in content.get("added_tokens", ())}
    end_of_text = hub_end_of_text(folder)
    if end_of_text is None:
        raise InputError(f"{folder} does not say which token ends a text; name it as eos_token in "
                         f"its tokenizer_config.json, one of: {', '.join(added) or 'none'}")
    # back from letters to bytes
    byte_of = {letter: byte for byte, letter in enumerate(byte_letters())}
    learned = {token: i for token, i in model.get("vocab", {}).items() if token not in added}
    strange = [token for token in learned if not byte_of.keys() >= {*token}]
    if strange:
        raise InputError(f"{path} has tokens that are not made of bytes, such as {strange[0]!r}; "
                         "give another")
    ranks = {bytes(map(byte_of.__getitem__, token)): i for token, i in learned.items()}
    # added tokens that are text, such as runs of blanks
    ranks |= {name.encode(): token["id"] for name, token in added.items()
              if not token["special"] and token["id"] != end_of_text}
    ranks = dict(sorted(ranks.items(), key=lambda item: item[1]))
    size = HubTokenizer(path, end_of_text).n_vocab
    return Vocabulary(ranks, None, size, end_of_text, path)


def batches(texts, letters):
    """Yields lists of texts, of about that many letters each list; the last may be empty."""
    batch, size = [], 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if size > letters:
            yield batch
            batch, size = [], 0
    yield batch


def encode_documents(encoding, documents, dtype):
    """Yields the tokens of documents, an end-of-text before each, some megabytes of text at a
    time. What looks like a special token is text."""
    encode = functools.partial(encoding.encode_to_numpy, disallowed_special=())
    end_of_text = np.array([encoding.eot_token])
    # Threads suffice, since encoders release Python's lock. In batches, because a pool would read
    # all documents ahead.
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        for batch in batches(documents, 2 ** 22):
            tokens = [np.zeros(0)]  # so that there is something to join
            for ids in pool.map(encode, batch):
                tokens += [end_of_text, ids]
            yield np.concatenate(tokens, dtype=dtype, casting="unsafe")


# --------------------------------------------------------------------------------------------------
# From documents, or from shards of tokens, to train and validation

# train and val are lists of files or of shards on the hub; if val is empty, some of train is set
# aside. versions are of the packages whose Python files are train, or else None
Source = namedtuple("Source", "train val versions")


def prepare_documents(folder, source, args):
    """(vocabulary, arrays of train tokens, of validation tokens, {what meta.json is to say}) of
    documents. Raises InputError for too little text."""
    # 1. read: all text into one file, validation first where the source has some of its own
    store = DocumentStore(folder / "text")
    os.unlink(folder / "text")  # an open file needs no name, and ends with the process
    in_val, without_text = read_documents(store, source, args)

    # 2. drop copies, in an order that content alone decides, whatever files it came in
    val, train, facts = drop_copies(store, in_val, args.dedup)
    if not len(train):
        raise InputError(f"all of {' '.join(args.source)} is also in validation; give other text")
    facts["lines_without_text"] = without_text
    digest = hashlib.sha256()
    for place, i in enumerate(Progress("hashed", itertools.chain(val, train))):
        # a zero byte between documents: no two lists of them are the same bytes
        digest.update(b"\0" * (place > 0) + store[i].encode())
    facts["corpus_sha256"] = digest.hexdigest()

    # 3. shuffle and split by whole documents, before there is a tokenizer: it must not have seen
    # validation. How many tokens a document has is not known yet. 8 bytes for each token are
    # enough, and what is too much goes back to train
    for part in (val, train):
        np.random.default_rng(args.seed).shuffle(part)
    cure = "give more text or a smaller --val_tokens"
    if len(val) + len(train) == 1:
        cure = "give more text, or the --separator that parts its documents"
    if facts["near_copies"]:
        cure += ", or --dedup 0, which keeps near-copies"
    too_few = InputError(f"{len(val) + len(train):,} documents are too few to set "
                         f"{args.val_tokens:,} validation tokens apart; {cure}")
    if not source.val:
        aside = store.count(train, 8 * args.val_tokens)
        if "val_tokens" not in args.given:  # a tenth of the text at most
            tenth = store.size(train).sum() // 10
            aside = min(aside, max(1, store.count(train, tenth) - 1))
        if aside > len(train) // 2:
            raise too_few
        val, train = train[:aside], train[aside:]

    # 4. the tokenizer, of what is left for training
    vocabulary = args.vocabulary
    if vocabulary is None:
        learned = train[:store.count(train, BPE_BYTES)]
        vocabulary = rank_vocabulary(train_bpe((store[i] for i in learned), args.vocab_size))

    # 5. encode: validation first, to know how many of the documents that were set aside it needs
    encoding, dtype = vocabulary.encoding(), token_dtype(vocabulary.size)
    tokens = np.concatenate([*encode_documents(encoding, (store[i] for i in val), dtype)])
    if len(tokens) < args.val_tokens and "val_tokens" in args.given and not source.val:
        raise too_few
    val_tokens, rest = split_validation([tokens], encoding.eot_token, args.val_tokens)
    chunks = encode_documents(encoding, (store[i] for i in Progress("encoded", train)), dtype)
    if not source.val:
        # what was set aside and is not needed is where train begins, so that a budget is a prefix
        chunks = itertools.chain(rest, chunks)
    elif rest:
        print(f"{len(rest[0]):,} more validation tokens are there; --val_tokens takes them in")
    return vocabulary, chunks, val_tokens, facts


def read_documents(store, source, args):
    """Put the documents of a source into the store. Returns how many are validation, which comes
    first, and how many lines had no text. Raises InputError where there is no text."""
    reader, most = Reader(args.text_key, args.separator), math.inf
    if args.tokens:
        # 8 bytes a token are more than enough. Long documents are cut, or one could fill the budget
        most = 8 * (max(args.tokens, 2 * args.val_tokens) + args.val_tokens)
        reader.longest = min(LONGEST, max(args.tokens, 2 * PASSAGE))
    # validation is read whole: how much of it is wanted is known once it is encoded
    collect_documents(store, reader, source.val, math.inf)
    in_val = len(store)
    if source.versions:
        # all of them, since their files come in any order
        for text in read_docstrings(source.train):
            store.add(text)
    else:
        if not source.val and args.separator is None:
            # a book is one document, and one cannot be split into train and validation
            some = itertools.chain.from_iterable(map(Reader(args.text_key).read, source.train))
            if sum(1 for _ in itertools.islice(some, FEW)) < FEW:
                reader.longest = 0
        collect_documents(store, reader, source.train, most)
    for parts, count in ((source.train, len(store) - in_val), (source.val, in_val)):
        if parts and not count:
            raise InputError(f"no text in {name_some(parts)}; {reader.summary()}")
    if not reader.longest:
        print(f"fewer than {FEW} documents: each is cut into passages of about {PASSAGE:,} "
              "letters, some for train and some for validation")
    elif reader.cut:
        print(f"documents longer than {reader.longest:,} letters are cut into passages of about "
              f"{PASSAGE:,}, each a document by itself")
    if args.separator is not None and not reader.parted:
        raise InputError(f"--separator {args.separator!r} stands in no plain text; give what "
                         f"parts the documents there, or leave it out")
    if reader.bad:
        warn(reader.summary())
    if store.markers:
        warn(f"{store.markers:,} times {END_OF_TEXT} stands inside a document, where it is text "
             f"like any other; --separator '{END_OF_TEXT}' parts plain text there")
    if store.repaired:
        warn(f"{store.repaired:,} documents hold half a surrogate pair, now U+FFFD")
    return in_val, reader.bad


def collect_documents(store, reader, parts, most):
    """Add documents until they hold `most` bytes, of each part an equal share if it has as much.
    Parts without text are named."""
    if all(isinstance(part, Path) for part in parts):  # the hub's are about equal
        # the smallest first: what they lack of their share, the larger ones give
        parts = sorted(parts, key=os.path.getsize)
    empty = []
    for place, part in enumerate(parts):
        begin, share = store.ends[-1], most / (len(parts) - place)
        for text in reader.read(part):
            store.add(text)
            if store.ends[-1] - begin >= share:
                break
        if store.ends[-1] == begin:
            empty.append(part)
        most -= store.ends[-1] - begin
    if 0 < len(empty) < len(parts):  # where none has text, the caller says so
        warn(f"{len(empty):,} of {len(parts):,} files have no text: {name_some(empty)}")


def drop_copies(store, in_val, near):
    """(validation, train, {what was found: count}): indices of the documents that are no copies of
    others, nor near-copies if these are to be dropped. One in both parts stays in validation."""
    order = store.unique()
    facts = {"documents_read": len(store), "copies": len(store) - len(order), "near_copies": 0}
    # documents of validation were read first, so they have the smaller indices
    parts = [order[order < in_val], order[order >= in_val]]
    del order, store.hashes[:]  # arrays as long as the documents are what takes memory here
    if near:
        known = NearCopies(store.ends[-1])
        for place, part in enumerate(parts):
            new = (known.is_new(store[i]) for i in Progress("looked at", part))
            parts[place] = part[np.fromiter(new, bool, len(part))]
            facts["near_copies"] += len(part) - len(parts[place])
    print(f"{len(store):,} documents were read; {facts['copies']:,} copies and "
          f"{facts['near_copies']:,} near-copies of others were dropped (--dedup 0 keeps the "
          "latter)")
    return *parts, facts


def split_validation(shards, end_of_text, val_tokens):
    """(the first whole documents that hold val_tokens, the rest) of arrays of tokens."""
    val, missing = [], val_tokens
    for i, shard in enumerate(shards):
        starts = np.flatnonzero(shard == end_of_text)
        # the first document that begins where enough tokens are in is the first of the rest
        cut = starts[starts >= missing]
        if len(cut):
            return [*val, shard[:cut[0]]], [shard[cut[0]:], *shards[i + 1:]]
        val, missing = [*val, shard], missing - len(shard)
    return val, []


def prepare_shards(folder, source, args):
    """What prepare_documents() returns, for shards, whose tokens stay as they are."""
    shards = {path: read_shard(path) for path in source.train + source.val}
    end_of_text, *others = {end_of_text for _, end_of_text in shards.values()}
    if others:
        raise InputError("the shards are of different vocabularies; prepare each kind by itself")
    # the header says whose tokens they are
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
                         "apart; give more or a smaller --val_tokens")
    return vocabulary, train, val, {}


def read_shard(path):
    """(tokens, memory-mapped; end-of-text) of a file of tokens. Raises InputError."""
    # a format of public speed runs: magic number, version, count, then nothing up to 1,024 bytes
    with in_one_line(path):
        magic, version, count = np.fromfile(path, "<i4", 3).tolist()
    if (magic, version) not in SHARDS:
        raise InputError(f"{path} is not a shard of tokens with a known header (magic {magic}, "
                         f"version {version}), which says whose they are; give the text")
    dtype, end_of_text, vocab_size = SHARDS[magic, version]
    # a download that was cut off would be a shorter training set, without a word
    found = (os.path.getsize(path) - 1024) / np.dtype(dtype).itemsize
    if found != count or not count:
        raise InputError(f"{path} holds {found:,.12g} tokens, its header says {count:,}; "
                         "fetch it again")
    tokens = np.memmap(path, dtype, "r", 1024)
    if tokens.max() >= vocab_size:
        raise InputError(f"{path} holds token {tokens.max():,}, beyond the vocabulary of "
                         f"{vocab_size:,}; fetch it again")
    return tokens, end_of_text


# --------------------------------------------------------------------------------------------------
# Reading: documents of files, and of data sets on the hub

# Whatever kind a file is, it comes as an iterator of texts; but for a JSON array, none is ever in
# memory as a whole.
class Reader:
    """Yields the documents of files and of the hub's shards; counts the lines that are none."""

    def __init__(self, text_key="text", separator=None):
        self.text_key, self.separator = text_key, separator
        self.longest = LONGEST  # letters of a document; a longer one is cut into passages
        self.cut = False  # was one longer?
        self.parted = False  # was the separator anywhere?
        self.bad, self.first = 0, ""  # lines without text, and the first of them

    def read(self, part):
        """Documents of a part, long ones in passages. Raises InputError for a bad file."""
        read = self.read_text if kind_of(part) == "text" else self.read_rows
        with in_one_line(part):
            for text in read(part):
                if len(text) > self.longest:
                    self.cut = True
                    yield from cut_passages(text)
                else:
                    yield text

    def read_text(self, path):
        """The pieces of a text file between separators: between lines <|endoftext|> if none was
        given. Of a piece above LONGEST letters the passages come as soon as they are read."""
        # a marker within a line is more likely to be talked about than meant
        pattern = rf"(?m)^{regex.escape(END_OF_TEXT)}[ \t]*$"
        if self.separator is not None:
            pattern = regex.escape(self.separator)
        text = ""
        with open_text(path) as file:
            # a block ends where a line does, so that no line that separates is cut in two
            while block := file.read(2 ** 20) + file.readline(2 ** 20):
                # the last piece may go on in the next block
                *whole, text = regex.split(pattern, text + block)
                self.parted = self.parted or bool(whole)
                yield from whole
                if len(text) > LONGEST:
                    self.cut = True
                    *passages, text = cut_passages(text)
                    yield from passages
        yield text

    def read_rows(self, part):
        """The text of each row of a table; the others are counted and the first is noted."""
        word = "line" if kind_of(part) == "lines" else "row"
        for number, row in enumerate(rows_of(part, self.text_key), 1):
            text = row.get(self.text_key) if isinstance(row, dict) else None
            # numbers and null are no text; a file of them has its text under another key
            if isinstance(text, str):
                yield text
            elif row != "":
                self.bad += 1
                shown = repr(row)[:60]
                if isinstance(row, dict):
                    shown = "its keys: " + ", ".join(row)
                    if self.text_key in row:  # a number, a list, null
                        shown = f"there is {json.dumps(text, default=repr)[:60]}"
                self.first = self.first or f"{part} {word} {number} ({shown})"

    def summary(self):
        """What was left out, in one line."""
        if not self.bad:
            return "there is nothing but white space"
        return (f'{self.bad:,} lines or rows have no text under the key "{self.text_key}" and were '
                f"left out, the first is {self.first}; --text_key names another key")


def cut_passages(text):
    """Pieces of PASSAGE to twice as many letters, each of which ends where a reader would pause."""
    # the best place there is: a blank line, a line's end, a sentence's end, between two words
    pauses = (r"\n[ \t]*\n", r"\n", r"[.!?]\s|[。！？]", r"\s")
    begin, passages = 0, []
    while len(text) - begin > 2 * PASSAGE:
        least, most = begin + PASSAGE, begin + 2 * PASSAGE
        found = (regex.compile(pause).search(text, least, most) for pause in pauses)
        best = next(filter(None, found), None)
        cut = best.end() if best else least  # inside a word without end, such as DNA
        passages.append(text[begin:cut])
        begin = cut
    return [*passages, text[begin:]]


@contextlib.contextmanager
def in_one_line(what, problem="cannot be read",
                advice="is it damaged, cut off, or of another kind than its name says?"):
    """Turn any error of the libraries called inside into an InputError of one line."""
    try:
        yield
    except InputError:
        raise
    except UnicodeDecodeError as error:
        # decoding works on pieces, so the place is unknown; what is before it can be searched
        before = error.object[:error.start][-20:].decode(errors="replace")
        raise InputError(
            f"{what} is not UTF-8 (byte {error.object[error.start]:#x} after {before!r}); convert "
            "it first, e.g. with iconv -f LATIN1 -t UTF-8") from None
    except Exception as error:
        # what such errors say may be pages long, and the first line says the most
        line, = str(error).strip().splitlines()[:1] or [""]
        name = type(error).__name__
        raise InputError(f"{what} {problem} ({name}: {line[:200]}); {advice}") from None


def open_binary(path):
    """The open file of a path, unpacked if its suffix says that it is packed."""
    suffix = path.suffix.lower()
    if suffix == ".zst":
        # unlike zstandard's own reader, this one says so when a file is cut off
        return optional_package("pyarrow", path).input_stream(str(path), compression="zstd")
    openers = {".gz": gzip.open, ".tgz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
    return openers.get(suffix, open)(path, "rb")


def open_text(path, newline=None):
    """open_binary() as UTF-8; a byte-order mark is dropped, line ends are made \\n by default."""
    return io.TextIOWrapper(open_binary(path), encoding="utf-8-sig", newline=newline)


def rows_of(part, text_key):
    """Rows of a part of any kind but plain text. text_key: the one column that is wanted."""
    kind = kind_of(part)
    if kind == "hub":
        return part.rows
    if kind == "parquet":
        return read_parquet(part, text_key)
    if kind in ("csv", "tsv"):
        return read_csv(part, text_key)
    if kind == "arrow":
        # the builder takes patterns, which a name with brackets is not
        name, datasets = glob.escape(os.path.abspath(part)), import_datasets(part)
        return datasets.load_dataset("arrow", data_files=name, split="train", streaming=True)
    if kind == "json":
        return read_json_rows(part)
    return parse_lines(part)


def parse_lines(path):
    """The JSON object in each line, or the line without white space around it if it is none."""
    # lines end at newlines alone: other line ends may stand unescaped inside a JSON string
    with open_text(path, newline="\n") as file:
        for line in file:
            row = None
            with contextlib.suppress(ValueError, RecursionError):
                row = json.loads(line)
            yield row if isinstance(row, dict) else line.strip()


def read_json_rows(path):
    """Rows of a .json file: an object in each line if the first is one, or else an array."""
    with contextlib.closing(parse_lines(path)) as lines:
        if isinstance(next(filter(None, lines), None), dict):
            return parse_lines(path)
    # an array is the one kind that memory holds whole: its rows need not begin where lines do
    with open_text(path) as file:
        rows = json.load(file)
    return rows if isinstance(rows, list) else [rows]


def read_csv(path, text_key):
    """Rows of a file of comma- or tab-separated values, all of which are text."""
    csv.field_size_limit(2 ** 31 - 1)  # a document may be longer than the module expects
    separator = "\t" if kind_of(path) == "tsv" else ","
    with open_text(path, newline="") as file:
        rows = csv.DictReader(file, delimiter=separator, strict=True)
        if (rows.fieldnames or []).count(text_key) > 1:  # the last one would be taken
            raise ValueError(f"several columns are called {text_key}")
        long = 0  # rows of several lines
        for row in rows:
            if None in row:  # a comma without quotes around its text
                raise ValueError(f"more values than the header names, before: {row[None][0]}")
            long += any("\n" in (cell or "") for cell in row.values())
            yield row
    # many such files know no quotes, and a mark that begins a text joins all up to the next one
    if long and separator == "\t":
        print(f"in {path} {long:,} rows run over several lines, as their quotation marks say")


def read_parquet(path, text_key):
    """Rows of a parquet file."""
    parquet = optional_package("pyarrow.parquet", path)
    # one row group's column at a time; the builder of datasets would hold hundreds of megabytes
    file = parquet.ParquetFile(path, pre_buffer=False, buffer_size=2 ** 20)
    # other columns are read only to be named in a message
    columns = [text_key] if text_key in file.schema_arrow.names else None
    for batch in file.iter_batches(1000, columns=columns):
        yield from batch.to_pylist()


def import_datasets(path):
    """The package datasets, told to leave the talking to this script."""
    datasets = optional_package("datasets", path)
    datasets.disable_progress_bars()
    logging.disable(logging.CRITICAL)
    return datasets


def optional_package(name, path):
    """Import what only some sources need: .txt and .jsonl need nothing beside requirements.txt."""
    try:
        return importlib.import_module(name)
    except ImportError:
        # datasets brings pyarrow and huggingface_hub along
        raise InputError(f"{path} needs the package {name}; pip install datasets tokenizers brings "
                         "all that is optional") from None


# --------------------------------------------------------------------------------------------------
# Which files, and what each is for

def kind_of(part):
    """How a part is read, a file by its name: a value of KINDS or hub, None if it cannot be."""
    if isinstance(part, HubShard):
        return "hub"
    name = Path(part.name.lower())
    if name.suffix in PACKED:
        name = name.with_suffix("")
    return KINDS.get(name.suffix)


def check_kind(path):
    """Raise InputError for a file whose name does not say what it is, or says it wrongly."""
    kind = kind_of(path)
    if kind in ("parquet", "arrow", "tokens"):
        return  # their readers find out
    with in_one_line(path), open_binary(path) as file:
        head = file.read(4096)
    if head[257:262] == b"ustar":
        raise InputError(f"{path} is a tar archive; unpack it and give the files in it")
    for begin, what in BEGINNINGS.items():
        if head.startswith(begin):
            raise InputError(f"{path} is {what}")
    if kind is None:
        raise InputError(f"{path} is of no known kind (its suffix: {path.suffix or 'none'}); name "
                         "it .txt if it is plain text, .jsonl if each line is a JSON object")
    if b"\0" in head:
        raise InputError(f"{path} has NUL bytes, which no text has; is it an archive or UTF-16?")
    if kind == "json" and head.lstrip().startswith(b"[") and os.path.getsize(path) > 2 ** 26:
        print(f"{path} is one JSON array, which memory holds whole; .jsonl is read line by line")


def role_of(path):
    """train, val or test if a file's name says so, or else its folder's; "" if none does."""
    for name in reversed(Path(path).parts):
        found = regex.search(r"(?<![a-z])(train|val|test|dev)(id|idation)?(?![a-z])", name.lower())
        if found:
            return found[1].replace("dev", "val")
    return ""


def find_files(sources):
    """The files that are named, and those in the folders that are: {path: role}. Raises InputError
    for a file that cannot be read; in a folder such files are left out, which one line says."""
    files, others = {}, []
    for source in map(Path, sources):
        if not source.exists():
            raise InputError(f"{source} names no file; give files ({' '.join(KINDS)}), folders, "
                             f"hf:OWNER/NAME on the hub, or docstrings, {', '.join(HUB)}")
        if source.is_file():
            # its folder's name says nothing here: tests/book.txt is no test
            files[source] = role_of(source.name)
            continue
        inside = list_folder(source)
        # hidden files are caches and leftovers of editors; README.md describes the others
        known = [path for path in inside if kind_of(path) and path.name[0] != "."
                 and path.name.lower() != "readme.md"]
        if not known:
            raise InputError(f"no file in {source} can be read; known are {' '.join(KINDS)}, also "
                             f"packed as {' '.join(PACKED)}")
        files |= {path: role_of(path.relative_to(source)) for path in known}
        others += sorted({*inside} - {*known})
    for path in files:
        check_kind(path)
    if others:
        print(f"{len(others):,} files of other kinds are left out: {name_some(others)}")
    return files


def list_folder(folder):
    """All files in a folder and those below it, linked ones also, by name."""
    def stop(error):  # a folder that may not be read would be passed over
        raise error

    files, seen = [], set()
    # Path.rglob() would leave linked folders out
    for place, folders, names in os.walk(folder, onerror=stop, followlinks=True):
        if os.path.realpath(place) in seen:  # a link to a folder above
            folders.clear()
            continue
        seen.add(os.path.realpath(place))
        files += [Path(place, name) for name in names]
    return sorted(files)


def name_some(parts):
    """The first of some parts, for a message."""
    return ", ".join(map(str, parts[:3])) + " and more" * (len(parts) > 3)


def choose_parts(parts, val):
    """(train, validation) of {part: role}; val: what is given as such. What is called test is left
    out. Says what it does. Raises InputError if nothing is left for train."""
    # a single file called test.txt is what somebody wants to train on
    roles = set(parts.values())
    if roles in ({"val"}, {"test"}):
        print(f"all that is there is called {roles.pop()}; it is taken as the text")
        parts = dict.fromkeys(parts, "train")
    # what is given as validation may lie in a folder of the source
    given = {os.path.realpath(str(part)) for part in val}
    by_role = {"test": [], "val": [], "train": []}
    for part, role in parts.items():
        if os.path.realpath(str(part)) not in given:
            by_role[role or "train"].append(part)
    left, own, train = by_role.values()
    if val:
        left += own
    else:
        val = own
    if left:
        print(f"left out, being called test or validation: {name_some(left)}")
    if not train:
        raise InputError(f"nothing is left to train on but validation ({name_some(val)}) and test")
    if val:
        print(f"{len(val):,} of {len(train) + len(val):,} parts are validation: {name_some(val)}")
    return train, val


# --------------------------------------------------------------------------------------------------
# The hub

@dataclass(eq=False)
class HubShard:
    """One of the files of a data set on the hub, read as it is asked for."""
    name: str
    rows: object  # an iterable of dictionaries; each time it is iterated the file is streamed anew

    def __str__(self):
        return self.name


def reach_hub(repository, by_hand):
    """Ask the hub once, unlike its client's many tries, for a data set. Raises InputError."""
    hub = optional_package("huggingface_hub", repository)
    with in_one_line(f"the data set {repository}", "cannot be reached on the hub", by_hand):
        hub.HfApi().dataset_info(repository, timeout=10)


def open_hub(source):
    """{HubShard: role} of a data set on the hub, hf:OWNER/NAME[:CONFIG] or a short name."""
    train, val = HUB.get(source, (source.removeprefix("hf:"), None))
    by_hand = "fetch its files (.parquet, .jsonl) elsewhere and give them as --source"
    if val:
        by_hand += f", those of {val} as --val"
    shards = {}
    for name in filter(None, (train, val)):
        datasets = import_datasets(name)
        repository, _, config = name.partition(":")
        reach_hub(repository, by_hand)
        with in_one_line(f"hf:{name}", "cannot be opened",
                         "for files that are here give their names"):
            splits = datasets.load_dataset(repository, config or None, streaming=True)
        for split, rows in splits.items():
            # all of a second data set is validation, whatever its splits are called
            role = "val" if name == val else role_of(split)
            # by file, so that a budget can be drawn from all of them
            for i in range(rows.num_shards):
                shard = HubShard(f"hf:{name} {split} {i}", rows.shard(rows.num_shards, i))
                shards[shard] = role
    return shards


def fetch_fineweb(tokens):
    """{path: role} of as many shards of FineWeb as hold so many tokens, in the hub's cache here."""
    repository, _ = HUB["fineweb"]
    hub = optional_package("huggingface_hub", repository)
    count = -(-tokens // FINEWEB_SHARD)  # rounded up
    names = ["fineweb_val_000000.bin", *(f"fineweb_train_{i:06d}.bin" for i in range(1, count + 1))]
    paths = {}
    for name in names:
        # what is in the cache needs no network
        path = hub.try_to_load_from_cache(repository, name, repo_type="dataset")
        if path is None:
            by_hand = f"fetch {names[0]} and {names[1]} to {names[-1]} elsewhere and give them as "
            reach_hub(repository, by_hand + "--source")
            print(f"fetching {name}", flush=True)
            with in_one_line(f"{name} of {repository}", "cannot be fetched",
                             "run the same command again, or give the files as --source"):
                path = hub.hf_hub_download(repository, name, repo_type="dataset")
        paths[Path(path)] = role_of(name)
    return paths


# --------------------------------------------------------------------------------------------------
# The format: write and read

def token_dtype(vocab_size):
    return np.dtype("<u2" if vocab_size <= 2 ** 16 else "<u4")


@contextlib.contextmanager
def new_data(name):
    """A folder to write data/NAME in, which appears there when all is well, or not at all.

    Its lock tells a folder that somebody works in from one that a killed process left behind.
    """
    folder, temporary = Path("data") / name, Path("data") / f".{name}.tmp"
    # what may be removed at the end: a folder that was not there, or that this process has locked
    lock, mine = None, not temporary.exists()
    try:
        temporary.mkdir(parents=True, exist_ok=True)
        # a lock on the folder itself ends with the process, however that ends
        lock = os.open(temporary, os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            mine = False
            raise InputError(f"another process is preparing {folder}; wait for it") from None
        mine = True
        for leftover in temporary.iterdir():
            leftover.unlink()
        yield temporary
        # one rename: all or nothing, whenever the process is killed
        os.rename(temporary, folder)
    finally:
        if mine:
            shutil.rmtree(temporary, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def write_all(file, content):
    """Write bytes to a file without a buffer. Raises InputError, which names the file."""
    rest = memoryview(content).cast("B")
    try:
        while rest:  # a disk that fills up takes some of them first
            rest = rest[file.write(rest):]
    except OSError as error:
        raise cannot_write(file.name, error) from None


def write_tokens(folder, part, chunks, vocabulary, most=sys.maxsize):
    """Write arrays of tokens, `most` in all, and where their documents start. Returns {tokens,
    bytes of their text, documents: count}."""
    dtype, lengths = token_dtype(vocabulary.size), token_lengths(vocabulary.ranks, vocabulary.size)
    starts, count, size = [], 0, 0  # documents, tokens, bytes
    # a shard is long: some megabytes at a time, for the sake of memory
    pieces = (np.array_split(chunk, 1 + len(chunk) // 2 ** 22) for chunk in chunks)
    with open(folder / f"{part}.bin", "wb", buffering=0) as file:
        for tokens in itertools.chain.from_iterable(pieces):
            # a budget ends where it ends, within a document or not
            tokens = np.ascontiguousarray(tokens[:most - count], dtype)
            write_all(file, tokens)
            # found from the tokens, so that documents and shards need one writer
            starts.append(np.flatnonzero(tokens == vocabulary.end_of_text) + count)
            count += len(tokens)
            size += int(lengths[tokens].sum())
            if count >= most:
                break
    starts = np.concatenate(starts)
    write_atomically(folder / f"{part}_docs.npy", lambda file: np.save(file, starts))
    return {"tokens": count, "bytes": size, "documents": len(starts)}


def token_lengths(ranks, vocab_size):
    """UTF-8 length of each token, 0 for special ones: int64 (vocab_size,)."""
    lengths = np.zeros(vocab_size, np.int64)
    for token, rank in ranks.items():
        lengths[rank] = len(token)
    return lengths


def written_overlap(folder, vocabulary, written):
    """validation_overlap() of the text that was written; written: {part: counts}."""
    encoding, dtype = vocabulary.encoding(), token_dtype(vocabulary.size)

    def grams_of(part):
        starts = np.load(folder / f"{part}_docs.npy")
        lengths = np.diff(starts, append=written[part]["tokens"])
        for start, length in zip(Progress("compared", starts), lengths):
            # a mapped file would stay in memory as far as it is read
            begin = start * dtype.itemsize
            tokens = np.fromfile(folder / f"{part}.bin", dtype, length, offset=begin)
            yield text_grams(encoding.decode(tokens[1:].tolist()), 13), start
    val_grams = np.concatenate([np.zeros(0, np.uint64), *(grams for grams, _ in grams_of("val"))])
    # a budget that ends inside a document is taken to hold all of it
    return validation_overlap(grams_of("train"), written["train"]["tokens"], val_grams)


def finish_data(folder, name, vocabulary, written, meta):
    """Write the tokenizer and meta.json, which this returns. written: {part: counts}."""
    lines = [base64.b64encode(token) + b" %d\n" % rank for token, rank in vocabulary.ranks.items()]
    write_atomically(folder / "tokenizer.tiktoken", lambda file: file.writelines(lines))
    # what transformers reads: the file that was given, or one made of the ranks
    if vocabulary.file:
        content = vocabulary.file.read_bytes()
    else:
        content = tokenizer_json(vocabulary.ranks, vocabulary.pattern, vocabulary.size).encode()
    write_atomically(folder / "tokenizer.json", lambda file: file.write(content))
    meta = {"name": name, **meta,
            "vocab_size": vocabulary.size, "end_of_text": vocabulary.end_of_text,
            "pattern": vocabulary.pattern, "dtype": token_dtype(vocabulary.size).name}
    for count in ("tokens", "bytes", "documents"):
        meta[count] = {part: written[part][count] for part in written}
    # a network drive keeps what is deleted while open, such as the documents, under a hidden name
    files = sorted(file for file in folder.iterdir() if file.name[0] != ".")
    meta["sha256"] = {file.name: sha256_file(file) for file in files}
    write_json(folder / "meta.json", meta)  # last: a folder without it is no data set
    return meta


def write_data(name, parts, ranks, meta, tokenizer=None):
    """Write data/NAME of token arrays, parts {"train" and "val": tokens}; returns meta.json's
    content. meta: pattern, vocab_size and end_of_text of the tokenizer, and whatever else is to be
    kept. tokenizer: the tokenizer.json that splits the text where there is no pattern."""
    vocabulary = Vocabulary(
        ranks, meta["pattern"], meta["vocab_size"], meta["end_of_text"], tokenizer)
    with new_data(name) as folder:
        written = {part: write_tokens(folder, part, [tokens], vocabulary)
                   for part, tokens in parts.items()}
        return finish_data(folder, name, vocabulary, written, meta)


@dataclass
class Data:
    """A prepared data set, memory-mapped. Read it with load_data()."""
    folder: Path
    meta: dict
    train: np.ndarray  # (tokens,)
    val: np.ndarray  # (tokens,)

    def fingerprint(self):
        """What identifies the tokens in a run's configuration."""
        # other documents set aside for validation would make another train.bin; without it old
        # runs keep their names
        parts = ("train.bin", "val.bin") if self.meta.get("val_apart") else ("train.bin",)
        hashes = "".join(self.meta["sha256"][part] for part in parts)
        return hashlib.sha256(hashes.encode()).hexdigest()[:12]

    def ranks(self):
        """{token bytes: id}, special tokens left out."""
        return read_ranks(self.folder / "tokenizer.tiktoken")

    def tokenizer(self):
        """What encodes and decodes: tiktoken.Encoding, or HubTokenizer for a given one."""
        meta = self.meta
        return Vocabulary(self.ranks(), meta["pattern"], meta["vocab_size"], meta["end_of_text"],
                          self.tokenizer_file()).encoding()

    def tokenizer_file(self):
        """Its tokenizer.json; None in sets from before each had one."""
        path = self.folder / "tokenizer.json"
        return path if path.exists() else None

    def token_bytes(self):
        """UTF-8 length of each token, for bits per byte; 0 for special ones: (vocab_size,)."""
        return token_lengths(self.ranks(), self.meta["vocab_size"])


def load_data(name):
    """The data set data/NAME, each file checked against its SHA-256. Raises InputError."""
    folder = Path("data") / name
    # runs are named after their data, so it has to be a plain name
    if Path(name).name != name:
        raise InputError(f"{name} is a path; a data set is named by its folder in data/ here")
    if not (folder / "meta.json").exists():
        known = sorted(path.parent.name for path in Path("data").glob("[!.]*/meta.json"))
        raise InputError(f"no data set {folder} (there: {', '.join(known) or 'none'}); make it "
                         "with prepare.py")
    meta = read_json(folder / "meta.json")
    kinds = {"dtype": str, "vocab_size": int, "end_of_text": int, "sha256": dict}
    for key, kind in kinds.items():
        if not isinstance(meta.get(key), kind):
            raise InputError(f"{folder / 'meta.json'} has no {key}; remove {folder} and prepare it "
                             f"again")
    # a changed byte would change losses, and nobody would notice
    for file, expected in meta["sha256"].items():
        if not (folder / file).exists() or sha256_file(folder / file) != expected:
            raise InputError(f"{folder / file} is missing or changed (SHA-256 differs from "
                             f"meta.json); remove {folder} and prepare it again")
    # mapped, not read: a run touches the part that is its budget
    train, val = (np.memmap(folder / f"{part}.bin", dtype=meta["dtype"], mode="r")
                  for part in ("train", "val"))
    return Data(folder, meta, train, val)


def cut_windows(tokens, context):
    """Consecutive windows of tokens, without a shorter last one: (windows, context)."""
    return tokens[:len(tokens) // context * context].reshape(-1, context)


# --------------------------------------------------------------------------------------------------
# Shared by every stage: errors that end in one line, files that appear whole or not at all

class InputError(Exception):
    """Something the user gave cannot be used; the message says what and what to do."""


class ShowDefaults(argparse.ArgumentDefaultsHelpFormatter):
    """Adds the default to each option's help, where there is one."""

    def _get_help_string(self, action):
        # a number has something to tell even if it is 0, which Python takes for False and empty
        if not action.default and type(action.default) not in (int, float):
            return action.help
        return super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """argparse with one-line errors and defaults shown in --help."""

    def __init__(self, description):
        super().__init__(description=description, formatter_class=ShowDefaults)

    def error(self, message):
        # argparse would print the whole usage first
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")

    def parse_args(self):
        """The values of all options, none of them empty; `given` names those that stand on the
        command line."""
        args = super().parse_args()
        # parsed once more without defaults: what there is then stands on the command line
        for action in self._actions:
            action.default = argparse.SUPPRESS
        given = vars(super().parse_args())
        for action in self._actions:
            value = given.get(action.dest)
            # as of a variable of the shell that is not set: it would count as not given
            if value == "" or isinstance(value, list) and "" in value:
                name, *_ = *action.option_strings, action.dest
                self.error(f"{name} is empty; give a value, or leave it out")
        args.given = set(given)
        return args


def refuse(args, options, where):
    """Raise InputError for options that were given where they have no effect."""
    idle = [f"--{name}" for name in options if name in args.given]
    if idle:
        raise InputError(f"no effect {where}: {', '.join(idle)}; leave that out")


def run_main(main):
    """Call main(); bad input and failed files end in one line on standard error and exit status 2,
    Ctrl-C in 130, as shells expect."""
    name = Path(sys.argv[0]).name
    try:
        main()
    except (InputError, ValueError, OSError) as error:
        message = regex.sub(r"^\[Errno \d+\] ", "", str(error))  # the words after it say it
        print(f"{name}: error: {message}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print(f"{name}: interrupted; the same command takes it up again", file=sys.stderr)
        sys.exit(130)


def warn(message):
    """Say on standard error what may not be meant, and go on."""
    print(f"warning: {message}", file=sys.stderr)


def cannot_write(path, error):
    return InputError(f"cannot write {path} ({error}); free some disk space and run this again")


def write_atomically(path, write):
    """Call write(file) on a temporary binary file, then rename it: never half-written."""
    temporary = Path(path).with_name(f".{Path(path).name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            write(file)
            # on the disk before the new name is: else a power cut could leave an empty file
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
        # what this kit writes into such files is always an object
        if not isinstance(value, dict):
            raise ValueError("not an object")
        return value
    except ValueError as error:
        raise InputError(f"{path} is damaged ({error}); if this kit made it, remove "
                         f"{Path(path).parent} and make it again") from None


def sha256_file(path):
    """SHA-256 of a file, read once a process while its size and time of change stay the same."""
    stat = os.stat(path)
    return sha256_of(os.fspath(path), stat.st_size, stat.st_mtime_ns)


# A search loads the same data set hundreds of times in one process.
@functools.cache
def sha256_of(path, size, changed):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Progress:
    """Prints every ten seconds how much is done. Iterate over items through it, or call step()."""

    def __init__(self, done, items=(), what="documents"):
        total = operator.length_hint(items)  # 0: nobody knows
        self.of = f" of {total:,} {what}" if total else f" {what}"
        self.done, self.items, self.count, self.printed = done, items, 0, time.monotonic()

    def __iter__(self):
        for item in self.items:
            yield item
            self.step()

    def step(self):
        self.count += 1
        if time.monotonic() - self.printed > 10:
            self.printed = time.monotonic()
            print(f"{self.done} {self.count:,}{self.of}", flush=True)


# --------------------------------------------------------------------------------------------------
# The command line

def read_options():
    """The command line, checked, with defaults that depend on one another. Raises InputError."""
    parser = Parser("Text to tokens: writes data/NAME.")
    add = parser.add_argument_group("text").add_argument
    add("--source", nargs="+", action="extend", default=[], metavar="SOURCE",
        help=f"docstrings; files ({' '.join(KINDS)}, also packed as {' '.join(PACKED)}) and "
             f"folders; a data set of the hub, hf:OWNER/NAME[:CONFIG] or {', '.join(HUB)} "
             "(default: docstrings)")
    add("--val", nargs="+", action="extend", default=[], metavar="PATH",
        help="files or folders of validation (default: what is named so, or some of train)")
    add("--name", help="folder under data/ (default: source name, with the vocabulary if not 1024)")
    add("--text_key", default="text", help="key or column that holds the text")
    add("--separator", metavar="STRING",
        help="what parts the documents in .txt and .md, \\n for each line (default: lines "
             "<|endoftext|>; without any a file is a document)")
    add = parser.add_argument_group("tokens").add_argument
    add("--vocab_size", type=int, default=1024, help="ids of a BPE trained here, with end-of-text")
    add("--tokenizer",
        help="gpt2, llama3 (its tokenizer.model in this folder), bytes, a rank file in tiktoken's "
             "format, or a folder with a tokenizer.json (default: a BPE is trained)")
    add("--tokens", type=int,
        help="train tokens to stop at, or 0 for all; text is drawn from all files, 8 bytes for "
             "each, shards are taken in turn (default: all, of the hub 209,715,200)")
    add("--val_tokens", type=int,
        help="validation tokens (default: 65,536, of the hub 4,194,304; at most a tenth of the "
             "text)")
    add = parser.add_argument_group("documents").add_argument
    add("--seed", type=int, default=0, help="of the shuffle that splits documents")
    add("--dedup", type=int, default=1, choices=(0, 1), help="0: keep near-copies of documents")
    add("--json", action="store_true", help="print meta.json as the last line")
    args = parser.parse_args()

    args.source = args.source or ["docstrings"]
    # the hub's sets are larger than anybody wants whole
    args.hub = args.source[0] in HUB or args.source[0].startswith("hf:")
    if args.tokens is None:
        args.tokens = PAPER_TOKENS if args.hub else 0
    if args.val_tokens is None:
        args.val_tokens = 2 ** 22 if args.hub else 2 ** 16
    if args.separator is not None:  # as a shell passes it on; files are read with \n for \r\n
        args.separator = args.separator.replace("\\r\\n", "\n").replace("\r\n", "\n")
        args.separator = args.separator.replace("\\n", "\n").replace("\\t", "\t")
    args.name = args.name or default_name(args)
    check_options(args)
    return args


def check_options(args):
    """Raise InputError for values that cannot be."""
    alone = [name for name in args.source if name in ("docstrings", *HUB) or name[:3] == "hf:"]
    if alone and len(args.source) > 1:
        raise InputError("docstrings and sets of the hub stand by themselves; give one --source")
    first = args.source[0]
    if first.startswith("hf:") and not regex.fullmatch(r"hf:[\w.-]+(/[\w.-]+)?(:.+)?", first):
        raise InputError(f"{first} names no data set; give hf:OWNER/NAME[:CONFIG]")
    # 256 bytes and end-of-text are the smallest vocabulary
    for name, least in (("vocab_size", 257), ("val_tokens", 1), ("tokens", 0), ("seed", 0)):
        if getattr(args, name) < least:
            raise InputError(f"--{name} {getattr(args, name)} is out of range; at least {least}")
    if args.tokenizer:
        refuse(args, ["vocab_size"], "beside --tokenizer")
    if args.source == ["fineweb"] and not args.tokens:
        raise InputError("fineweb is 10 billion tokens: give --tokens above 0")
    if not regex.fullmatch(r"\w[\w.-]*", args.name):
        raise InputError(f"--name {args.name} is no plain name; use letters, digits, - and _")


def default_name(args):
    """Of the first source, and of the vocabulary if it is not the default."""
    # absolute, because "." and ".." have no names of their own
    name = Path(os.path.abspath(args.source[0].removeprefix("hf:"))).name
    for suffix in (*PACKED, *KINDS):
        if name.lower().endswith(suffix):
            name = name[:-len(suffix)]
    parts = [name]
    if args.tokenizer:
        path = Path(os.path.abspath(args.tokenizer))
        # a folder's name may have dots in it, as Llama-3.2-1B has
        parts.append(path.name if path.is_dir() else path.stem)
    elif args.vocab_size != 1024:
        parts.append(str(args.vocab_size))
    # spaces and brackets would need quotes in every later command
    return "-".join(regex.sub(r"[^\w.-]+", "-", part).strip("-.") for part in parts)


def identify(args, files):
    """What tells one request from another: options that are not the default, hashes of files."""
    # but no versions: docstrings that were prepared on another machine are the data all the same
    identity = {"source": args.source, "files": files, "vocab_size": args.vocab_size,
                "val_tokens": args.val_tokens, "seed": args.seed}
    tokenizer = args.tokenizer
    path = Path("tokenizer.model" if tokenizer == "llama3" else tokenizer or "")
    # a rank file, or a folder's two, of which the second says which token ends a text
    made_of = (path, path / "tokenizer.json", path / "tokenizer_config.json")
    hashes = [sha256_file(file) for file in made_of if file.is_file()]
    if tokenizer and hashes:
        tokenizer = [tokenizer, *hashes]
    # left out where they are the default, so that a new option leaves old identities as they are
    defaults = {"tokenizer": None, "tokens": 0, "dedup": 1, "val": [], "text_key": "text",
                "separator": None}
    given = vars(args) | {"tokenizer": tokenizer}
    return identity | {name: given[name] for name in defaults if given[name] != defaults[name]}


def open_source(args, parts, val):
    """The Source that the options name. parts: {file: role} of --source, empty where it names no
    files; val: files of --val. Raises InputError."""
    versions = None
    if args.source == ["docstrings"]:
        train, versions = find_docstrings()
    else:
        if args.source == ["fineweb"]:
            parts = fetch_fineweb(args.tokens)
        elif args.hub:
            parts = open_hub(args.source[0])
        train, val = choose_parts(parts, val)
    kinds = set(map(kind_of, train + val))  # None: the Python files of docstrings
    if "tokens" in kinds and len(kinds) > 1:
        raise InputError("shards of tokens (.bin) and text cannot be mixed; prepare each by itself")
    if "tokens" in kinds:  # whoever made them shuffled and encoded them
        refuse(args, ["vocab_size", "dedup", "seed"], "on shards of tokens")
    if "text" not in kinds:
        refuse(args, ["separator"], "without .txt or .md files")
    if kinds <= {None, "text", "tokens"}:
        refuse(args, ["text_key"], "without rows or lines of JSON")
    return Source(train, val, versions)


def main():
    args = read_options()
    files, val_files = {}, list(find_files(args.val))
    if args.source != ["docstrings"] and not args.hub:
        files = find_files(args.source)
    # the content of files is part of the request: a changed file is other data
    hashes = {str(file): sha256_file(file) for file in [*files, *val_files]}
    identity, folder = identify(args, hashes or None), Path("data") / args.name
    if not folder.exists():
        meta = make_data(args, files, val_files, identity)
        report(folder, meta, args)
    elif not (folder / "meta.json").exists():
        raise InputError(f"{folder} is there already and is no data set; give another --name")
    else:
        # asked for again, the same data are no work: any command can be repeated
        meta = load_data(args.name).meta
        if meta.get("identity") != identity:
            raise InputError(f"{folder} holds other data, or the same from another path or with "
                             f"other options; remove it or give another --name")
        # by default fewer validation tokens will do; a number that was given must be reached
        found = meta["tokens"]["val"]
        if "val_tokens" in args.given and not meta.get("val_apart") and found < args.val_tokens:
            raise InputError(f"{folder} has {found:,} validation tokens, not {args.val_tokens:,}; "
                             f"remove it or give another --name")
        print(f"{folder} is prepared already")
    if args.json:
        print(json.dumps(meta))


def make_data(args, files, val_files, identity):
    """Write data/NAME; returns the content of its meta.json."""
    args.vocabulary = None
    if args.tokenizer:  # better refused now than after reading all
        args.vocabulary = given_vocabulary(args.tokenizer)
    with new_data(args.name) as folder:
        source = open_source(args, files, val_files)
        prepare = prepare_documents
        if kind_of(source.train[0]) == "tokens":
            prepare = prepare_shards
        vocabulary, train, val, facts = prepare(folder, source, args)
        most = args.tokens or sys.maxsize
        written = {"train": write_tokens(folder, "train", train, vocabulary, most),
                   "val": write_tokens(folder, "val", val, vocabulary)}
        facts["val_13grams_in_train"] = written_overlap(folder, vocabulary, written)
        origin = {"identity": identity, "versions": source.versions, "seed": args.seed,
                  "val_apart": bool(source.val)}
        return finish_data(folder, args.name, vocabulary, written, origin | facts)


def report(folder, meta, args):
    """Print what was prepared, and warnings."""
    corpus, versions, tokens = meta.get("corpus_sha256", ""), meta["versions"], meta["tokens"]
    # near-copies and validation that were asked for are no other versions
    changed = not args.dedup or meta["val_apart"]
    if versions and not changed and corpus != CORPUS_SHA256:
        warn(f"the docstrings here (SHA-256 {corpus[:12]}..., versions {versions}) are not those "
             "of the pinned versions, so losses will not compare with the published tables")
    read = meta.get("documents_read", 0)  # shards have none
    gone = meta.get("copies", 0) + meta.get("near_copies", 0)
    if gone > read / 10 and not versions:  # docstrings are known to repeat themselves
        warn(f"{gone:,} of {read:,} documents are gone, being like others; --dedup 0 keeps "
             "near-copies")
    parts = [f"{tokens[part]:,} {name} tokens in {meta['documents'][part]:,} documents"
             for part, name in (("train", "train"), ("val", "validation"))]
    line = f"{folder}: {', '.join(parts)}"
    if corpus:
        line += f", corpus SHA-256 {corpus[:12]}"
    print(line)
    if tokens["train"] < args.tokens:
        warn(f"fewer than {args.tokens:,} train tokens in {' '.join(args.source)} (text is read as "
             "far as 8 bytes a token)")
    if "val_tokens" in args.given and tokens["val"] < args.val_tokens:
        warn(f"fewer than {args.val_tokens:,} validation tokens in what is validation")
    shares = meta["val_13grams_in_train"]
    for budget, share in shares.items():
        print(f"  of the validation 13-grams {share:.2%} occur in the first {int(budget):,} train "
              "tokens")
    large = [int(budget) for budget, share in shares.items() if share > 0.05]
    if large:
        warn(f"over 5% of validation occurs in train from {large[0]:,} tokens on, where its loss "
             "also measures memory")


if __name__ == "__main__":
    run_main(main)
