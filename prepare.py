"""Text to tokens on disk. This file owns the data format: it alone writes it, and every other stage reads through it.

    python prepare.py                                        # the docstrings of the kit's own pinned wheels
    python prepare.py --source my.txt notes/ --name mine --vocab_size 2048
    python prepare.py --source fineweb                       # public GPT-2 shards, as many as the tokens need
    python prepare.py --source 'dclm/*.jsonl.zst' --name dclm --tokenizer llama3 --tokens 209715200

data/NAME/ holds train.bin and val.bin (headerless little-endian token ids, nanoGPT's convention), the starts of their
documents, the tokenizer in tiktoken's rank format and meta.json with the SHA-256 of each file. Steps: collect
documents, drop duplicates and near-duplicates, shuffle and split by document, train a byte-level BPE or take a given
one, encode. Text passes through a file, so memory does not grow with it. Shards of tokens are copied as they are.
"""
import argparse
import array
import ast
import base64
import codecs
import concurrent.futures
import contextlib
import functools
import glob
import gzip
import hashlib
import heapq
import http.client
import importlib
import importlib.metadata
import importlib.util
import inspect
import itertools
import json
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
import urllib.error
import urllib.request
import warnings
import zlib
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import regex  # comes with tiktoken, which splits text with the same pattern
import tiktoken

# GPT-2's split into words: a contraction, letters, digits or signs with one space before them, or white space
PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""
LLAMA3_PATTERN = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
                  r"|\s*[\r\n]+|\s+(?!\S)|\s+")
LLAMA3_RANKS, LLAMA3_VOCAB = 128_000, 128_256  # its first special token, begin-of-text, is what precedes a document
END_OF_TEXT = "<|endoftext|>"
CORPUS_PACKAGES = ("torch", "numpy", "scipy", "sympy", "networkx", "mpmath")
# of the documents in requirements.txt's versions; other versions give other text, hence other losses
CORPUS_SHA256 = "127c6b597cc050cf4df57bd04d5399d9a048aa187a4a4559507a03d8cedc5d7c"
PAPER_TOKENS = 209_715_200  # the paper's smallest budget: 800 steps x 64 sequences x 4,096 tokens
# public data sets on the Hugging Face hub: what train comes from, what validation comes from if that is apart
HUB = {"fineweb": ("kjj0/fineweb10B-gpt2", None), "megamath": ("OctoThinker/MegaMath-Web-Pro-Max", None),
       "dclm": ("konwoo/dclm-164k-docs-train", "konwoo/dclm-164k-docs-val")}
SUFFIXES = (".txt", ".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet", ".bin")
# headers of public token shards, 256 int32: (magic, version) -> type, the token before a document, vocabulary
SHARDS = {(20240520, 1): ("<u2", 50_256, 50_257), (20240801, 7): ("<u4", LLAMA3_RANKS, LLAMA3_VOCAB)}
LONGEST = 2 ** 19  # characters of a document; a longer one is cut into passages (tiktoken takes no million blanks)
MOST_GRAMS = 2 ** 24  # 8-grams remembered when duplicates are looked for; of more, an even sample
BPE_BYTES, BPE_WORDS = 2 ** 27, 2 ** 21  # bytes of text, and of its different words, that a BPE is trained on at most
WHOLE_CHECK = 2 ** 30  # bytes up to which a file is hashed whole at every start


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
    """Call main(); bad input and failed files end in one line on standard error and exit status 2, Ctrl-C in 130."""
    try:
        main()
    except (InputError, OSError) as error:
        print(f"{Path(sys.argv[0]).name}: error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print(f"{Path(sys.argv[0]).name}: interrupted; the same command takes it up again", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)


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
    """SHA-256 of a file, read once a process while size and time of its last change stay the same."""
    stat = os.stat(path)
    return sha256_of(os.fspath(path), stat.st_size, stat.st_mtime_ns)


@functools.cache
def sha256_of(path, size, changed):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_sample(path):
    """SHA-256 of a file's size and of 64 evenly spaced MiB of it: a check that takes no time."""
    size, digest = os.path.getsize(path), hashlib.sha256()
    digest.update(str(size).encode())
    with open(path, "rb") as file:
        for i in range(64):
            file.seek(max(0, size - 2 ** 20) * i // 63)
            digest.update(file.read(2 ** 20))
    return digest.hexdigest()


# --------------------------------------------------------------------------------------------------
# Sources: streams of documents

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
    """The files that the given files, folders and patterns name, and what identifies them: {file: SHA-256}."""
    files = []
    for source in sources:
        before = len(files)
        matches = [source] if source == "-" or Path(source).exists() else sorted(glob.glob(source, recursive=True))
        for path in map(Path, matches):
            inside = sorted(file for file in path.rglob("*") if file.name.endswith(SUFFIXES))
            files += inside if path.is_dir() else [path]
        if len(files) == before:
            raise InputError(f"source {source} names no file; give files ({' '.join(SUFFIXES)}), folders or patterns "
                             f"of them, - for standard input, or by itself one of {', '.join(('docstrings', *HUB))}")
    files = list(dict.fromkeys(files))
    return files, {str(file): None if str(file) == "-" else sha256_file(file) for file in files}


class BadLines:
    """Counts what is no document; with strict the first one stops everything."""

    def __init__(self, strict=False):
        self.strict, self.count, self.first = strict, 0, None

    def add(self, where):
        if self.strict:
            raise InputError(f'{where} is not a JSON object with a "text"; fix or remove it, or leave out --strict')
        self.count, self.first = self.count + 1, self.first or where

    def summary(self, before):
        """A message that begins with `before`; "" if all were documents."""
        if not self.count:
            return ""
        return (f'{before}{self.count:,} lines are not JSON objects with a "text" and were left out, the first is '
                f"{self.first}")


def read_documents(files, bad, longest):
    """Documents of files, one after another, in bounded memory. Fewer than 100 cannot be split by document: those are
    cut at blank lines into passages, as is any of more than `longest` characters. (Passages of one document can be
    in train and in validation.)"""
    stream = (part for file in files for text in read_file(file, bad)
              for part in (cut_passages(text, longest) if len(text) > longest else [text]))
    first = list(itertools.islice(stream, 100))
    if len(first) < 100:
        first = [passage for text in first for passage in cut_passages(text, longest)]
    return itertools.chain(first, stream)


def read_file(path, bad):
    """Documents of one file: the "text" of each line or row of .jsonl and .parquet, else all of it. "-" is standard
    input, JSON lines if it begins with a brace."""
    if path.suffix == ".parquet":
        return (yield from read_parquet(path, bad))
    blocks = read_blocks(path)
    try:
        first = next(blocks, b"")
        in_lines = ".jsonl" in path.name or str(path) == "-" and first[:1] == b"{"
        blocks = itertools.chain([first], blocks)
        yield from read_lines(path, blocks, bad) if in_lines else read_text(path, blocks)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise InputError(f"{path} is damaged or cut off ({error}); fetch it again") from None


def read_blocks(path):
    """Bytes of a file in blocks, decompressed; "-" is standard input. Raises EOFError where one is cut off."""
    if path.suffix == ".zst":
        return (yield from read_zstd(path))
    with sys.stdin.buffer if str(path) == "-" else (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
        while block := file.read(2 ** 20):
            yield block


def read_zstd(path):
    """Of any number of frames. (The package's own stream ends silently where a file is cut off.)"""
    zstandard, frame = optional_package("zstandard", path), None
    with open(path, "rb") as file:
        while block := file.read(2 ** 17):
            while block:
                if frame is None or frame.eof:
                    frame = zstandard.ZstdDecompressor().decompressobj()
                try:
                    yield frame.decompress(block)
                except zstandard.ZstdError as error:
                    raise EOFError(error) from None
                block = frame.unused_data if frame.eof else b""
    if frame is not None and not frame.eof:
        raise EOFError("its last frame has no end")


def optional_package(name, path):
    """Import what only some sources need."""
    try:
        return importlib.import_module(name)
    except ImportError:
        package = name.split(".")[0]
        raise InputError(f"{path} needs the package {package}; install it with pip install {package}") from None


def read_lines(path, blocks, bad):
    """The "text" of each line of JSON; lines end at newlines alone."""
    rest, number = b"", 0
    for block in itertools.chain(blocks, [b"\n"]):
        *lines, rest = (rest + block).split(b"\n")
        for number, line in enumerate(lines, number + 1):
            try:
                if line.strip():
                    yield json.loads(line)["text"] + ""
            except (ValueError, KeyError, TypeError, RecursionError):
                bad.add(f"{path} line {number}")


def read_parquet(path, bad):
    """The column "text", a thousand rows at a time."""
    parquet, number = optional_package("pyarrow.parquet", path), 0
    try:
        file = parquet.ParquetFile(path, pre_buffer=False, buffer_size=2 ** 20)  # not a whole column at a time
        for batch in file.iter_batches(1000, columns=["text"]):
            for number, text in enumerate(batch["text"].to_pylist(), number + 1):
                if isinstance(text, str):
                    yield text
                else:
                    bad.add(f"{path} row {number}")
    except (ValueError, KeyError, OSError) as error:  # pyarrow's own are among them
        raise InputError(f'{path} is not a parquet file with a column "text" ({str(error).splitlines()[0]})') from None


def read_text(path, blocks):
    """A text file as one document; above LONGEST characters its passages, as they come."""
    decoder, text, done = codecs.getincrementaldecoder("utf-8")(), "", 0
    for block in itertools.chain(blocks, [b""]):
        held = len(decoder.getstate()[0])
        try:
            text += decoder.decode(block, final=not block)
        except UnicodeDecodeError as error:
            raise InputError(f"{path} is not UTF-8 (byte {done - held + error.start}); convert it first, e.g. with "
                             f"iconv") from None
        done += len(block)
        if len(text) > LONGEST:
            text = text.replace("\r\n", "\n")
            end = text.rfind("\n\n") + 2 if "\n\n" in text else len(text)  # the last blank line
            yield from cut_passages(text[:end], LONGEST)
            text = text[end:]
    yield text.replace("\r\n", "\n")


def cut_passages(text, longest, size=2000):
    """Pieces of `text` cut at blank lines, each the shortest of at least `size` characters and at most `longest`."""
    passages, passage = [], ""
    for paragraph in regex.split(r"\n[ \t]*\n", text):
        passage += paragraph + "\n\n"
        if len(passage) >= size:
            passages += [passage[i:i + longest] for i in range(0, len(passage), longest)]
            passage = ""
    return passages + [passage[i:i + longest] for i in range(0, len(passage), longest)]


# --------------------------------------------------------------------------------------------------
# Downloads: data/downloads/REPOSITORY/FILE; what lies there is not fetched again

def fetch(url, path, size=None, sha256=None, tries=6):
    """Download url to path. A broken connection goes on where it left off, a busy server is asked again after growing
    pauses; size and SHA-256 are checked where known. Raises InputError that says where to put the file by hand."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    for pause in (*(2 ** i for i in range(tries - 1)), None):
        try:
            expected = fetch_rest(url, part, size)
            found = part.stat().st_size
            if found == (size or expected or found):
                break
            problem = f"{found:,} of {size or expected:,} bytes came"
            if found > (size or expected):
                part.unlink()
        except urllib.error.HTTPError as error:
            problem = f"status {error.code}"
            if error.code == 416:  # what is there is not the beginning of it
                part.unlink(missing_ok=True)
            elif error.code < 500 and error.code != 429:
                pause = None
        except ValueError as error:  # no address
            problem, pause = error, None
        except (OSError, http.client.HTTPException) as error:
            problem = getattr(error, "reason", error)
        if pause is None:
            raise InputError(f"cannot fetch {url} ({problem}); fetch it by hand and put it at {path}")
        print(f"{path.name}: {problem}; trying again in {pause} s", file=sys.stderr)
        time.sleep(pause)
    if sha256 and sha256_file(part) != sha256:
        part.unlink()
        raise InputError(f"{url} is not what was published (SHA-256 differs); run the same command again, or fetch it "
                         f"by hand and put it at {path}")
    os.replace(part, path)


def fetch_rest(url, part, size):
    """Append to `part` what it lacks of url; returns the size of the whole, None if the server does not say."""
    have = part.stat().st_size if part.exists() else 0
    if have and have == size:  # a process died before it could check and rename it
        return size
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    with urllib.request.urlopen(request, timeout=60) as answer:
        have = have if answer.status == 206 else 0  # a server that knows no ranges begins anew
        length = answer.headers.get("Content-Length")
        total, started, printed, begun = length and have + int(length), time.monotonic(), time.monotonic(), have
        with open(part, "r+b" if have else "wb") as file:
            file.seek(have)
            while block := answer.read(2 ** 20):
                file.write(block)
                have, now = have + len(block), time.monotonic()
                if now - printed > 5:
                    printed = now
                    print(f"{part.stem}: {have / 1e6:,.0f} of {(total or 0) / 1e6:,.0f} MB, "
                          f"{(have - begun) / 1e6 / (now - started):.1f} MB/s", flush=True)
    return total


def hub_listing(repository):
    """[(path, size, SHA-256 or None)] of a data set's files on the hub, by name."""
    listing = Path("data/downloads") / repository / "files.json"
    if not listing.exists():
        fetch(f"{hub()}/api/datasets/{repository}/tree/main?recursive=true", listing)
    try:
        return sorted((file["path"], file["size"], file.get("lfs", {}).get("oid"))
                      for file in json.loads(listing.read_text()) if file["path"].endswith(SUFFIXES))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        listing.unlink()
        raise InputError(f"the hub's list of the files of {repository} cannot be read ({error}); try again") from None


def hub():
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co")


def hub_files(repository):
    """Local paths of a data set's files, by name, each fetched when it is asked for. Without the hub: those put there
    by hand."""
    folder = Path("data/downloads") / repository
    there = sorted(path for path in folder.rglob("*") if path.name.endswith(SUFFIXES))
    try:
        listing = hub_listing(repository)
    except InputError as error:
        if not there:
            raise InputError(f"{error}, or put the files of the data set in {folder}") from None
        print(f"warning: {error}; taking the {len(there)} files of {folder} as they are", file=sys.stderr)
        listing = [(str(path.relative_to(folder)), None, None) for path in there]
    for name, size, sha256 in listing:
        if not (folder / name).exists():
            fetch(f"{hub()}/datasets/{repository}/resolve/main/{name}", folder / name, size, sha256)
        yield folder / name


# --------------------------------------------------------------------------------------------------
# Documents on disk, without duplicates

def progress(done, items):
    """Yields items; a line every ten seconds says how many were done."""
    printed, total = time.monotonic(), f" of {len(items):,}" if hasattr(items, "__len__") else ""
    for count, item in enumerate(items):
        if time.monotonic() - printed > 10:
            printed = time.monotonic()
            print(f"{done} {count:,}{total} documents", flush=True)
        yield item


class Spool:
    """Documents in one file, to be read in any order; memory holds their places and hashes alone."""

    def __init__(self, path):
        self.file, self.ends, self.hashes = open(path, "w+b"), array.array("q", [0]), array.array("Q")  # 16 bytes each

    def __len__(self):
        return len(self.ends) - 1

    def __getitem__(self, i):
        return os.pread(self.file.fileno(), self.ends[i + 1] - self.ends[i], self.ends[i]).decode()

    def count(self, order, size):
        """How many documents, taken in an order, hold `size` bytes; one more than there are if all do not."""
        for count, i in enumerate(order, 1):
            size -= self.ends[i + 1] - self.ends[i]
            if size <= 0:
                return count
        return len(order) + 1

    def collect(self, documents, most=0):
        """Add clean documents, until there are `most` bytes (0: all)."""
        for text in documents:
            # lone surrogates have no UTF-8 form
            content = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").strip().encode()
            if content:
                self.file.write(content)
                self.ends.append(self.ends[-1] + len(content))
                self.hashes.append(int.from_bytes(hashlib.sha256(content).digest()[:8]))
            if most and self.ends[-1] >= most:
                break
        self.file.flush()

    def unique(self):
        """Indices of the documents that are no copies of earlier ones, in an order that depends on content alone."""
        hashes = np.frombuffer(self.hashes, np.uint64)
        order = np.argsort(hashes, kind="stable")
        hashes = hashes[order]
        new = np.ones(len(order), bool)
        new[1:] = hashes[1:] != hashes[:-1]
        return order[new]

    def distinct(self, order, seen):
        """Those documents of an order, one after the other, of which a Seen knows no near copy."""
        return order[np.fromiter((seen.is_new(self[i]) for i in progress("looked at", order)), bool, len(order))]


def gram_hashes(hashes, n):
    """Hash of every n neighbours of hashes, uint64 (max(0, len - n + 1),): a polynomial modulo 2^64 in an odd number,
    sensitive to order."""
    grams = np.zeros(max(0, len(hashes) - n + 1), dtype=np.uint64)
    for i in range(n):
        grams = grams * np.uint64(0x9E3779B97F4A7C15) + hashes[i:i + len(grams)]
    return grams


def mix(x):
    """Scramble uint64 numbers so that each bit depends on all."""
    x = (x ^ (x >> np.uint64(31))) * np.uint64(0x7FB5D329728EA185)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x81DADEF4BC2DD44D)
    return x ^ (x >> np.uint64(33))


def word_grams(text, n):
    """Hash of every run of n words of `text`, in lower case: uint64."""
    words = [zlib.crc32(word.encode()) for word in text.lower().split()]
    return gram_hashes(mix(np.array(words, np.uint64)), n)


class Seen:
    """The word 8-grams of kept documents, of those of large corpora an even sample (`every` so many)."""

    def __init__(self, every=1):
        self.every, self.old, self.recent, self.block = np.uint64(every), np.zeros(0, np.uint64), set(), 2 ** 20

    def is_new(self, text):
        """Whether at most half of a document's 8-grams have been seen; if so they are from now on. (Templates are
        common in docstrings, and validation that is nearly in train measures memory, not modelling.)"""
        grams = word_grams(text, 8)
        if self.every > 1:
            grams = grams[mix(grams) % self.every == 0]
            if len(grams) < 4:  # one chance match must not drop a document
                return True
        place = np.minimum(np.searchsorted(self.old, grams), max(0, len(self.old) - 1))
        known = self.old[place] == grams if len(self.old) else np.zeros(len(grams), bool)
        unknown = grams[~known].tolist()
        if known.sum() + sum(gram in self.recent for gram in unknown) > len(grams) / 2:
            return False
        self.recent.update(unknown)
        if len(self.recent) > self.block:
            self.old = np.sort(np.concatenate([self.old, np.fromiter(self.recent, np.uint64)]))
            self.recent = set()
        return True


def validation_overlap(train, train_tokens, val_grams):
    """Share of the 13-grams of validation that also occur in train, per budget: {tokens: share}.

    train: yields (hashes of 13-grams, the token or tokens from which a budget holds them); val_grams: hashes.
    """
    unique, inverse = np.unique(val_grams, return_inverse=True)
    first = np.full(len(unique) + 1, train_tokens)  # where each occurs first; the last for what is not among them
    if not len(unique):
        return {}
    for grams, start in train:
        place = np.searchsorted(unique, grams)
        place[unique[np.minimum(place, len(unique) - 1)] != grams] = len(unique)
        np.minimum.at(first, place, start)
    budgets = [PAPER_TOKENS * times // scale for scale in (1000, 100, 10, 1) for times in (1, 2, 4, 8)]
    budgets = [budget for budget in budgets if budget < train_tokens] + [train_tokens]
    return {str(budget): round(float((first[inverse] < budget).mean()), 5) for budget in budgets}


# --------------------------------------------------------------------------------------------------
# Tokenizers

def train_bpe(texts, vocab_size):
    """Byte-level BPE on `texts`: {token bytes: rank}, vocab_size - 1 of them (end-of-text is the last id).

    As in tiktoken's encoder, what is merged is any two neighbours whose concatenation is the new token, so pairs are
    counted by their concatenation; ties go to the smallest bytes. Raises InputError when the text has too few pairs.
    """
    word_counts, size = Counter(), 0
    for text in texts:
        found = regex.findall(PATTERN, text)
        size += sum(len(word.encode()) for word in set(found) if word not in word_counts)
        word_counts.update(found)
        if size > BPE_WORDS:  # memory holds some hundred bytes for each
            break
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


def make_encoding(ranks, pattern=PATTERN, vocab_size=0):
    """tiktoken.Encoding of ranks; END_OF_TEXT is the id after the last rank, ids up to vocab_size are reserved."""
    special = {END_OF_TEXT: len(ranks), **{f"<|reserved_{i}|>": i for i in range(len(ranks) + 1, vocab_size)}}
    return tiktoken.Encoding("ranks", pat_str=pattern, mergeable_ranks=ranks, special_tokens=special)


def read_ranks(lines):
    """{token bytes: rank} of lines in tiktoken's format."""
    return {base64.b64decode(token): int(rank) for token, rank in map(bytes.split, lines)}


def choose_tokenizer(choice, vocab_size, texts):
    """(ranks, pattern, vocab_size) of gpt2, llama3, bytes or a rank file, or else a BPE trained on texts."""
    if choice is None:
        return train_bpe(texts, vocab_size), PATTERN, vocab_size
    if choice == "bytes":
        return {bytes([byte]): byte for byte in range(256)}, PATTERN, 257
    if choice == "gpt2":
        try:
            gpt2 = tiktoken.get_encoding("gpt2")
        except Exception as error:  # of requests, which tiktoken downloads with
            raise InputError(f"GPT-2's ranks are not here ({type(error).__name__}); give tiktoken's cache of them as "
                             f"TIKTOKEN_CACHE_DIR") from None
        return gpt2._mergeable_ranks, PATTERN, 50_257
    path = Path("tokenizer.model" if choice == "llama3" else choice)
    if not path.exists():
        raise InputError(f"no tokenizer {path}; give gpt2, bytes or a rank file; llama3 needs Llama 3's own "
                         f"tokenizer.model in this folder")
    try:
        ranks = read_ranks(path.read_bytes().splitlines())
    except ValueError:
        ranks = {}
    if sorted(ranks.values()) != list(range(len(ranks))) or not {bytes([i]) for i in range(256)} <= set(ranks):
        raise InputError(f"{path} is not a rank file (a line a token: base64, space, rank; all bytes in it)")
    llama3 = len(ranks) == LLAMA3_RANKS
    return ranks, LLAMA3_PATTERN if llama3 else PATTERN, LLAMA3_VOCAB if llama3 else len(ranks) + 1


# --------------------------------------------------------------------------------------------------
# The format: write and read

def token_dtype(vocab_size):
    return np.dtype("<u2" if vocab_size <= 2 ** 16 else "<u4")


def encode_documents(encoding, documents, dtype):
    """Yields the tokens of documents, an end-of-text before each, some megabytes of text at a time. What looks like a
    special token is text."""
    def encode(text):
        return encoding.encode_to_numpy(text, disallowed_special=())

    end_of_text, batch, size = np.array([encoding.eot_token]), [], 0
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:  # the encoder runs outside Python's lock
        for text in itertools.chain(documents, [None]):
            if text is None or size > 2 ** 22:
                parts = [part for ids in pool.map(encode, batch) for part in (end_of_text, ids)]
                yield np.concatenate([np.zeros(0), *parts], dtype=dtype, casting="unsafe")
                batch, size = [], 0
            if text is not None:
                batch.append(text)
                size += len(text)


def document_starts(tokens, end_of_text):
    return np.flatnonzero(np.asarray(tokens) == end_of_text).astype(np.int64)


@contextlib.contextmanager
def new_data(name):
    """A folder to write data/NAME in, which appears there when all is well, or not at all."""
    folder = Path("data") / name
    ours = f".{name}.{socket.gethostname()}."  # other machines may write to the same disk
    for leftover in folder.parent.glob(f"{ours}*.tmp"):
        process = leftover.name.removeprefix(ours).removesuffix(".tmp")
        if process.isdecimal() and not is_running(int(process)):  # it was killed
            shutil.rmtree(leftover, ignore_errors=True)
    temporary = folder.with_name(f"{ours}{os.getpid()}.tmp")
    temporary.mkdir(parents=True)
    previous = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        yield temporary
        os.rename(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        signal.signal(signal.SIGTERM, previous)


def is_running(process):
    """Whether a process of that number runs on this machine."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        pass
    return True


def write_tokens(folder, part, chunks, dtype, end_of_text, most=0):
    """Write arrays of tokens one after another, `most` tokens in all (0: every one), and where their documents start;
    returns those starts."""
    count, starts = 0, [np.zeros(0, np.int64)]
    with open(folder / f"{part}.bin", "wb") as file:
        for tokens in chunks:
            tokens = tokens[:most - count if most else None]
            np.asarray(tokens, dtype).tofile(file)
            starts.append(document_starts(tokens, end_of_text) + count)
            count += len(tokens)
            if most and count >= most:
                break
    starts = np.concatenate(starts)
    np.save(folder / f"{part}_docs.npy", starts)
    return starts


def count_tokens(folder, part, dtype):
    return os.path.getsize(folder / f"{part}.bin") // np.dtype(dtype).itemsize


def finish_data(folder, name, ranks, meta, starts):
    """Write tokenizer and meta.json; returns meta with name, counts and hashes added. starts: {part: of documents}."""
    lines = [base64.b64encode(token) + f" {rank}\n".encode() for token, rank in ranks.items()]
    (folder / "tokenizer.tiktoken").write_bytes(b"".join(lines))
    meta = {"name": name, **meta, "tokens": {part: count_tokens(folder, part, meta["dtype"]) for part in starts},
            "documents": {part: len(starts[part]) for part in starts},
            "sha256": {file.name: sha256_file(file) for file in sorted(folder.iterdir())},
            "sha256_sample": {file.name: sha256_sample(file) for file in sorted(folder.iterdir())
                              if file.stat().st_size > WHOLE_CHECK}}
    write_json(folder / "meta.json", meta)
    return meta


def write_data(name, parts, ranks, meta):
    """Write data/NAME of token arrays, parts {"train" and "val": tokens}; returns meta as meta.json holds it."""
    with new_data(name) as folder:
        starts = {part: write_tokens(folder, part, [tokens], meta["dtype"], meta["end_of_text"])
                  for part, tokens in parts.items()}
        return finish_data(folder, name, ranks, meta, starts)


@dataclass
class Data:
    """A prepared data set, memory-mapped. Read it with load_data()."""
    folder: Path
    meta: dict
    train: np.ndarray  # (tokens,)
    val: np.ndarray  # (tokens,)

    def fingerprint(self):
        """What identifies the tokens, in a run's configuration. (Where validation is set aside, train tells it.)"""
        parts = ("train.bin", "val.bin") if self.meta.get("val_apart") else ("train.bin",)
        return hashlib.sha256("".join(self.meta["sha256"][part] for part in parts).encode()).hexdigest()[:12]

    def checked(self):
        """How load_data has compared the files with their hashes."""
        return "a sample of the large files" if self.meta.get("sha256_sample") else "whole"

    def ranks(self):
        return read_ranks((self.folder / "tokenizer.tiktoken").read_bytes().splitlines())

    def tokenizer(self):
        return make_encoding(self.ranks(), self.meta["pattern"], self.meta["vocab_size"])

    def token_bytes(self):
        """UTF-8 length of each token, 0 for special ones: int64 (vocab_size,). For bits per byte."""
        lengths = np.zeros(self.meta["vocab_size"], np.int64)
        for token, rank in self.ranks().items():
            lengths[rank] = len(token)
        return lengths


def load_data(name, whole=False):
    """The data set data/NAME, every file checked against its recorded SHA-256; above WHOLE_CHECK bytes by a sample,
    unless all is to be read. Raises InputError."""
    folder = Path("data") / name
    if Path(name).name != name:
        raise InputError(f"{name} is a path; a data set is named by its folder in data/ here")
    if not (folder / "meta.json").exists():
        known = sorted(path.parent.name for path in Path("data").glob("[!.]*/meta.json"))
        raise InputError(f"no data set {folder} (there: {', '.join(known) or 'none'}); make it with prepare.py")
    meta = read_json(folder / "meta.json")
    sampled = {} if whole else meta.get("sha256_sample", {})
    for file, expected in {**meta.get("sha256", {"train.bin": None}), **sampled}.items():
        check = sha256_sample if file in sampled else sha256_file
        if not (folder / file).exists() or check(folder / file) != expected:
            raise InputError(f"{folder / file} is missing or changed (SHA-256 differs from meta.json); "
                             f"remove {folder} and prepare it again")
    train, val = (np.memmap(folder / f"{part}.bin", dtype=meta["dtype"], mode="r") for part in ("train", "val"))
    return Data(folder, meta, train, val)


def cut_windows(tokens, context):
    """Consecutive windows of `context` tokens: (windows, context). The rest, shorter than a window, is dropped."""
    return tokens[:len(tokens) // context * context].reshape(-1, context)


# --------------------------------------------------------------------------------------------------
# From documents, and from shards of tokens

def prepare_documents(folder, name, documents, val_documents, bad, args, origin):
    """Fill a folder with the data of streams of documents; validation is apart or (None) set aside here. Returns meta.
    """
    spool = Spool(folder / "text")
    most = 8 * (max(args.tokens, 2 * args.val_tokens) + args.val_tokens)  # more than needed
    if origin["versions"] or not args.tokens:  # docstrings are read whole: their files come in any order
        most = 0
    spool.collect(progress("read", val_documents or []))
    apart = len(spool)
    spool.collect(progress("read", documents), most and most + spool.ends[-1])
    order = spool.unique()
    val, train = order[order < apart], order[order >= apart]
    del order, spool.hashes[:]  # lists as long as that of the documents are what takes memory here
    if args.dedup:
        seen = Seen(every=-(-spool.ends[-1] // (6 * MOST_GRAMS)))  # 6 bytes a word
        val, train = spool.distinct(val, seen), spool.distinct(train, seen)
        del seen
    if not len(train):
        raise InputError(f"no text in {' '.join(args.source)}{bad.summary('; ')}")
    corpus = hashlib.sha256()
    for place, i in enumerate(progress("hashed", itertools.chain(val, train))):
        corpus.update(b"\0" * (place > 0) + spool[i].encode())

    for part in (val, train):
        np.random.default_rng(args.seed).shuffle(part)
    too_few = (f"{len(val) + len(train):,} documents, without duplicates, are too few to set {args.val_tokens:,} "
               f"validation tokens apart; give more text or a smaller --val_tokens{bad.summary('; ')}")
    if not len(val):
        # the tokenizer must not see validation, whose length in bytes is not known before: 8 bytes a token will do
        guess = spool.count(train, 8 * args.val_tokens)
        if guess > len(train) // 2:
            raise InputError(too_few)
        val, train = train[:guess], train[guess:]
    some = train[:spool.count(train, BPE_BYTES)]
    ranks, pattern, vocab_size = choose_tokenizer(args.tokenizer, args.vocab_size, (spool[i] for i in some))
    encoding, dtype = make_encoding(ranks, pattern), token_dtype(vocab_size)

    # validation: the first documents that hold val_tokens; train: all others, so that a budget is a prefix of it
    chunks = list(encode_documents(encoding, (spool[i] for i in val), dtype))
    if sum(map(len, chunks)) < args.val_tokens and not val_documents:
        raise InputError(too_few)
    split = int(np.searchsorted(document_starts(np.concatenate(chunks), encoding.eot_token), args.val_tokens))
    if not val_documents:
        train = np.concatenate([val[split:], train])
    parts, starts = {"train": train, "val": val[:split]}, {}
    for part in parts:
        chunks = encode_documents(encoding, (spool[i] for i in progress("encoded", parts[part])), dtype)
        starts[part] = write_tokens(folder, part, chunks, dtype, encoding.eot_token,
                                    args.tokens if part == "train" else 0)
    grams = ((word_grams(spool[i], 13), start) for i, start in zip(progress("compared", train), starts["train"]))
    val_grams = np.concatenate([word_grams(spool[i], 13) for i in parts["val"]])
    meta = {**origin, "val_apart": val_documents is not None, "corpus_sha256": corpus.hexdigest(),
            "vocab_size": vocab_size, "end_of_text": len(ranks), "pattern": pattern, "dtype": dtype.name,
            "val_13grams_in_train": validation_overlap(grams, count_tokens(folder, "train", dtype), val_grams)}
    spool.file.close()
    (folder / "text").unlink()
    return finish_data(folder, name, ranks, meta, starts)


def read_shard(path):
    """(tokens, memory-mapped; end-of-text; vocabulary) of a file of tokens. Raises InputError."""
    header = np.fromfile(path, "<i4", 256)
    magic, version, count = header[:3].tolist() if len(header) == 256 else (0, 0, 0)
    if (magic, version) not in SHARDS:
        raise InputError(f"{path} is not a shard of tokens (magic {magic}, version {version}); known are "
                         f"{', '.join(f'magic {m} version {v}' for m, v in SHARDS)}")
    dtype, end_of_text, vocab_size = SHARDS[magic, version]
    found = (os.path.getsize(path) - 1024) / np.dtype(dtype).itemsize
    if found != count or not count:
        raise InputError(f"{path} holds {found:,.12g} tokens, its header says {count:,}; fetch it again")
    return np.memmap(path, dtype, "r", 1024), end_of_text, vocab_size


def fineweb_files(tokens):
    """The validation shard and as many train shards as hold so many tokens, fetched if they are not there."""
    (repository, _), missing, known = HUB["fineweb"], tokens, None
    for number in itertools.count():
        name = f"fineweb_{'train' if number else 'val'}_{number:06d}.bin"
        path = Path("data/downloads") / repository / name
        if not path.exists():
            if known is None:
                with contextlib.suppress(InputError):  # sizes and hashes are welcome, not needed
                    known = {}
                    known = {name: checks for name, *checks in hub_listing(repository)}
            fetch(f"{hub()}/datasets/{repository}/resolve/main/{name}", path, *known.get(name, ()))
        yield path
        missing -= len(read_shard(path)[0]) if number else 0
        if missing <= 0:
            return


def prepare_shards(folder, name, files, args, origin):
    """Fill a folder with shards of tokens, copied as they are: those with "val" in their name are validation, without
    any it is the first documents. Returns meta."""
    shards = {path: read_shard(path) for path in files}
    kinds = {shard[1:] for shard in shards.values()}
    if len(kinds) > 1:
        raise InputError("the shards are of different vocabularies; prepare each kind by itself")
    (end_of_text, vocab_size), = kinds
    ranks, pattern, _ = choose_tokenizer(args.tokenizer or ("gpt2" if vocab_size == 50_257 else "llama3"), 0, ())
    if len(ranks) != end_of_text:
        raise InputError(f"--tokenizer has {len(ranks):,} ranks, the shards were made with {end_of_text:,}")
    parts = {"train": [], "val": []}
    for path, (tokens, *_) in shards.items():
        parts["val" if regex.search(r"(^|[_.-])val", path.name) else "train"].append(tokens)
    if not parts["train"]:
        raise InputError(f"no train shard among {len(shards)} file(s), only such with val in their name")
    apart = bool(parts["val"])
    parts["val"], rest = split_shards(parts["val"] or parts["train"], end_of_text, args.val_tokens)
    if not apart:
        parts["train"] = rest
    if not parts["train"]:
        raise InputError(f"the shards are too short to set {args.val_tokens:,} validation tokens apart; give more, or "
                         f"a smaller --val_tokens")
    dtype = token_dtype(vocab_size)
    starts = {part: write_tokens(folder, part, pieces(parts[part], vocab_size), dtype, end_of_text,
                                 args.tokens if part == "train" else 0) for part in parts}
    train, val = (np.memmap(folder / f"{part}.bin", dtype, "r") for part in ("train", "val"))
    every = np.uint64(-(-len(train) // MOST_GRAMS))

    def grams(tokens):
        found = gram_hashes(mix(tokens.astype(np.uint64)), 13)
        return np.flatnonzero(mix(found) % every == 0), found

    def train_grams():
        for begin in range(0, len(train), 2 ** 22):
            places, found = grams(train[begin:begin + 2 ** 22 + 12])
            yield found[places], begin + places + 12
    places, found = grams(val)
    meta = {**origin, "val_apart": apart, "vocab_size": vocab_size, "end_of_text": end_of_text, "pattern": pattern,
            "dtype": dtype.name,
            "val_13grams_in_train": validation_overlap(train_grams(), len(train), found[places])}
    return finish_data(folder, name, ranks, meta, starts)


def split_shards(shards, end_of_text, val_tokens):
    """(validation, rest) of arrays of tokens: the first whole documents that hold val_tokens, and what follows."""
    val, missing = [], val_tokens
    for i, shard in enumerate(shards):
        starts = document_starts(shard, end_of_text)
        cut = starts[starts >= missing]
        if len(cut):
            return [*val, shard[:cut[0]]], [shard[cut[0]:], *shards[i + 1:]]
        val, missing = [*val, shard], missing - len(shard)
    return val, []


def pieces(shards, vocab_size):
    """Tokens of shards some megabytes at a time. Raises InputError for an id that the vocabulary lacks."""
    for shard in shards:
        for begin in range(0, len(shard), 2 ** 23):
            piece = shard[begin:begin + 2 ** 23]
            if piece.max() >= vocab_size:
                raise InputError(f"{shard.filename} holds token {piece.max():,}, beyond the vocabulary of "
                                 f"{vocab_size:,}; fetch it again")
            yield piece


# --------------------------------------------------------------------------------------------------

def bench(documents):
    """Rates beside those of what is underneath, each the best of three in turn: encoding and tiktoken alone on the
    same text and threads (MB/s), importing a shard and copying its file (MB/s); seconds to train a BPE of 1,024."""
    texts, size = [], 0
    for text in documents:
        texts.append(text)
        size += len(text.encode())
        if size > 2 ** 25:
            break
    start = time.perf_counter()
    encoding = make_encoding(train_bpe(texts, 1024))
    report = {"text_mb": size / 1e6, "threads": os.cpu_count(), "bpe_1024_seconds": time.perf_counter() - start}
    with contextlib.suppress(InputError):
        encoding = make_encoding(choose_tokenizer("gpt2", 0, ())[0])
    shard = np.arange(2 ** 26, dtype="<u2") % 50_257
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "shard.bin"
        path.write_bytes(np.array([20240520, 1, len(shard)] + [0] * 253, "<i4").tobytes() + shard.tobytes())
        tokens, end_of_text, vocab_size = read_shard(path)
        jobs = {"tiktoken": (size, lambda: encoding.encode_ordinary_batch(texts, num_threads=os.cpu_count())),
                "encode": (size, lambda: sum(map(len, encode_documents(encoding, texts, np.dtype("<u2"))))),
                "copy": (path.stat().st_size, lambda: shutil.copyfile(path, Path(folder) / "copy.bin")),
                "import": (path.stat().st_size, lambda: write_tokens(
                    Path(folder), "train", pieces([tokens], vocab_size), "<u2", end_of_text))}
        seconds = {name: [] for name in jobs}
        for _ in range(3):
            for name, (_, job) in jobs.items():
                start = time.perf_counter()
                job()
                seconds[name].append(time.perf_counter() - start)
    report |= {f"{name}_mb_per_second": amount / 1e6 / min(seconds[name]) for name, (amount, _) in jobs.items()}
    return {**report, "vocab_size": encoding.n_vocab,
            "encode_over_tiktoken": min(seconds["tiktoken"]) / min(seconds["encode"])}


def main():
    parser = Parser("Text to tokens: writes data/NAME.")
    parser.add_argument("--source", nargs="+", default=["docstrings"], metavar="SOURCE", help=f"docstrings; a public "
                        f"data set ({', '.join(HUB)}); files ({' '.join(SUFFIXES)}), folders, patterns; - for "
                        f"standard input")
    parser.add_argument("--name", help="folder under data/ (default: source name, with the vocabulary if not 1024)")
    parser.add_argument("--vocab_size", type=int, default=1024, help="ids of a BPE trained here, with end-of-text")
    parser.add_argument("--tokenizer", help="gpt2, llama3 (its tokenizer.model in this folder), bytes, or a rank file "
                        "in tiktoken's format (default: a BPE is trained)")
    parser.add_argument("--tokens", type=int, default=None, help="train tokens to stop at; files of text are "
                        "read as far as 8 bytes for each. 0: all (default: all; of public data 209,715,200)")
    parser.add_argument("--val_tokens", type=int, default=None, help="validation tokens, the same for every budget "
                        "(default: 65,536, of public data 4,194,304)")
    parser.add_argument("--seed", type=int, default=0, help="of the shuffle that splits documents")
    parser.add_argument("--dedup", type=int, default=1, choices=(0, 1), help="0: drop exact copies alone, for "
                        "text that was de-duplicated before; shards are copied as they are")
    parser.add_argument("--strict", action="store_true", help="stop at the first line that is no document")
    parser.add_argument("--verify", metavar="NAME", help="hash every file of data/NAME whole; does nothing else")
    parser.add_argument("--bench", action="store_true", help="print rates as JSON; writes nothing")
    parser.add_argument("--json", action="store_true", help="print meta.json as the last line")
    args = parser.parse_args()
    if args.verify:
        meta = load_data(args.verify, whole=True).meta
        print(f"data/{args.verify}: all {len(meta['sha256'])} files are as written")
        return print(json.dumps(meta)) if args.json else None
    public, builtin = args.source[0] in HUB and len(args.source) == 1, args.source == ["docstrings"]
    args.tokens = (PAPER_TOKENS if public else 0) if args.tokens is None else args.tokens
    args.val_tokens = (2 ** 22 if public else 2 ** 16) if args.val_tokens is None else args.val_tokens
    for name, least in (("vocab_size", 257), ("val_tokens", 1), ("tokens", 0), ("seed", 0)):
        if getattr(args, name) < least:
            raise InputError(f"--{name} {getattr(args, name)} is out of range; it must be at least {least}")
    if public and not args.tokens:
        raise InputError("public data sets are large: give --tokens above 0")
    bad = BadLines(args.strict)
    files, origin = find_docstrings() if builtin else ([], None) if public else find_local(args.source)
    vocabulary = Path(args.tokenizer).stem if args.tokenizer else args.vocab_size
    args.name = args.name or Path(args.source[0]).stem + (f"-{vocabulary}" if vocabulary != 1024 else "")
    if not regex.fullmatch(r"\w[\w.-]*", args.name) or args.name == "downloads":
        raise InputError(f"{args.name} cannot be the name of a data set; give --name of letters, digits, - and _")

    shards = args.source == ["fineweb"] or any(str(file).endswith(".bin") for file in files)
    if shards and not all(str(file).endswith(".bin") for file in files):
        raise InputError("shards of tokens (.bin) and text cannot be mixed; prepare each by itself")
    if args.bench:
        if public or shards:
            raise InputError("--bench encodes text that is here already; give files of text, or docstrings")
        return print(json.dumps(bench(read_docstrings(files) if builtin else read_documents(files, bad, LONGEST))))
    # a prepared docstrings folder may come from a machine with other versions: it is the data all the same
    identity = {"source": args.source, "files": None if builtin else origin, "vocab_size": args.vocab_size,
                "val_tokens": args.val_tokens, "seed": args.seed}
    ranks = Path("tokenizer.model" if args.tokenizer == "llama3" else args.tokenizer or "")
    tokenizer = [args.tokenizer, sha256_file(ranks)] if ranks.is_file() else args.tokenizer
    identity |= {name: value for name, value, default in (
        ("tokenizer", tokenizer, None), ("tokens", args.tokens, 0), ("dedup", args.dedup, 1)) if value != default}
    folder = Path("data") / args.name
    if folder.exists() and not (folder / "meta.json").exists():
        raise InputError(f"{folder} is there already and is no data set; give another --name")
    if folder.exists():  # prepared before: the same request does nothing, another one must not overwrite
        meta = load_data(args.name).meta
        if meta.get("identity") != identity or "-" in args.source:  # who knows what came through standard input
            raise InputError(f"{folder} holds other data (its meta.json says what); remove it or give another --name")
        print(f"{folder} is prepared already")
        return print(json.dumps(meta)) if args.json else None

    if args.tokenizer:  # better now than after reading all
        choose_tokenizer(args.tokenizer, 0, ())
    origin = {"identity": identity, "versions": origin if builtin else None}
    with new_data(args.name) as temporary:
        if shards:
            files = fineweb_files(args.tokens) if public else files
            meta = prepare_shards(temporary, args.name, files, args, origin)
        else:
            train, val = HUB[args.source[0]] if public else (None, None)
            files = hub_files(train) if public else files
            longest = min(LONGEST, args.tokens or LONGEST)  # longer than the budget, it would be all there is
            documents = read_docstrings(files) if builtin else read_documents(files, bad, longest)
            apart = read_documents(hub_files(val), bad, longest) if val else None
            meta = prepare_documents(temporary, args.name, documents, apart, bad, args, origin)
    report(folder, meta, bad, args)
    if args.json:
        print(json.dumps(meta))


def report(folder, meta, bad, args):
    """Print what was prepared, and warnings."""
    if bad.count:
        print(bad.summary("warning: "), file=sys.stderr)
    corpus = meta.get("corpus_sha256", "")
    if meta["versions"] and args.dedup and corpus != CORPUS_SHA256:
        print(f"warning: the docstrings here (SHA-256 {corpus[:12]}..., versions {meta['versions']}) are not those of "
              f"the pinned versions, so losses will not compare with the published tables", file=sys.stderr)
    print(f"{folder}: {meta['documents']['train']:,} documents, {meta['tokens']['train']:,} train and "
          f"{meta['tokens']['val']:,} validation tokens"
          + (f", corpus SHA-256 {corpus[:12]}" if corpus else ""))
    if meta["tokens"]["train"] < args.tokens:
        limits = " (files of text are read as far as 8 bytes a token)" if corpus and not meta["versions"] else ""
        print(f"warning: fewer than {args.tokens:,} train tokens in {' '.join(args.source)}{limits}", file=sys.stderr)
    for budget, share in meta["val_13grams_in_train"].items():
        print(f"  of the validation 13-grams {share:.2%} occur in the first {int(budget):,} train tokens")
    large = [int(budget) for budget, share in meta["val_13grams_in_train"].items() if share > 0.05]
    if large:
        print(f"warning: over 5% of validation occurs in train from {min(large):,} tokens on, where its loss measures "
              f"memory, too", file=sys.stderr)


if __name__ == "__main__":
    run_main(main)
