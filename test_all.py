"""Every promise of the kit, on a CPU and offline, stage by stage. `make test` runs it."""
import dataclasses
import gzip
import http.server
import importlib.util
import itertools
import json
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import distill
import ensemble
import eval as evaluation
import fit
import model as gpt
import prepare
import train

HERE = Path(__file__).parent
KILLS = int(os.environ.get("KILLS", 2))  # SIGKILLs in each test of them; KILLS=20 pytest -k "killed or two" for more
HAS_COMPILER = train.use_compile("auto", torch.device("cpu"))
torch.set_num_threads(1)


# --------------------------------------------------------------------------------------------------
# A small world: generated text, a data set of it, the scripts called as a user calls them

def make_documents(count, seed=0):
    """Documents of 30 to 90 made-up words; word frequencies and word order are learnable."""
    rng = np.random.default_rng(seed)
    syllables = [c + v for c in "bdfgklmnprst" for v in "aeiou"]
    words = ["".join(rng.choice(syllables, rng.integers(1, 4))) for _ in range(300)]
    documents = []
    for _ in range(count):
        picks = np.minimum(rng.zipf(1.5, rng.integers(30, 90)), 300) - 1
        documents.append(" ".join(words[(p + i // 5) % 300] for i, p in enumerate(picks)) + ".")
    return documents


def call(script, *arguments):
    """Run a stage's main() in this process, as `python script.py arguments`; its exit status."""
    old, sys.argv = sys.argv, [f"{script.__name__}.py", *map(str, arguments)]
    try:
        prepare.run_main(script.main)
        return 0
    except SystemExit as stop:
        return stop.code
    finally:
        sys.argv = old


def refused(capsys, script, *arguments):
    """The one line that a refused call prints; asserts exit status 2 and nothing else on standard error."""
    capsys.readouterr()
    assert call(script, *arguments) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith(f"{script.__name__}.py: error: "), lines
    return lines[0]


@pytest.fixture(scope="session")
def prepared(tmp_path_factory):
    """A folder with data/tiny: vocabulary 320, some 30,000 tokens."""
    folder = tmp_path_factory.mktemp("prepared")
    lines = [json.dumps({"text": text}) for text in make_documents(600)]
    (folder / "tiny.jsonl").write_text("\n".join(lines))
    here = os.getcwd()
    os.chdir(folder)
    assert call(prepare, "--source", "tiny.jsonl", "--vocab_size", 320, "--val_tokens", 1000, "--name", "tiny") == 0
    os.chdir(here)
    return folder


@pytest.fixture
def world(prepared, tmp_path, monkeypatch):
    """An empty current folder with data/tiny in it."""
    subprocess.run(["cp", "-r", prepared / "data", tmp_path / "data"], check=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


TINY = ("--data", "tiny", "--size", "150k", "--tokens", 4096, "--context", 32, "--batch_size", 4, "--epochs", 2,
        "--lr", 0.003, "--weight_decay", 0.5, "--compile", 0, "--log_every", 8)


def tiny_config(**changes):
    names = [name[2:] for name in TINY[::2]]
    settings = {**dict(zip(names, TINY[1::2])), "compile": "0", **changes}
    return train.resolve(train.TrainConfig(**settings))


def tiny_gpt(seed=0, **changes):
    settings = dict(vocab_size=60, end_of_text=59, context=24, width=32, layers=2, heads=4, kv_heads=2)
    return gpt.GPT(gpt.GPTConfig(**{**settings, **changes}), seed)


def random_tokens(batch, length, vocab_size=60, seed=0):
    """Uniform tokens with end-of-text (the last id) at the start and at some places inside."""
    tokens = torch.randint(vocab_size - 1, (batch, length), generator=torch.Generator().manual_seed(seed))
    tokens[:, 0] = tokens[:, length // 3] = tokens[0, length // 2] = vocab_size - 1
    return tokens


# --------------------------------------------------------------------------------------------------
# prepare.py

def brute_force_bpe(texts, vocab_size):
    """The definition: recount all neighbours of all words after each merge."""
    counts = Counter(word for text in texts for word in prepare.regex.findall(prepare.PATTERN, text))
    words = {word: [bytes([b]) for b in word.encode()] for word in counts}
    tokens = [bytes([b]) for b in range(256)]
    while len(tokens) < vocab_size - 1:
        pairs = Counter()
        for word, parts in words.items():
            for a, b in zip(parts, parts[1:]):
                pairs[a + b] += counts[word]
        pairs = {pair: count for pair, count in pairs.items() if pair not in tokens}
        new = min(pairs, key=lambda pair: (-pairs[pair], pair))
        tokens.append(new)
        for word, parts in words.items():
            merged = []
            for part in parts:
                merged = merged[:-1] + [new] if merged and merged[-1] + part == new else merged + [part]
            words[word] = merged
    return tokens


def test_bpe_equals_brute_force():
    texts = make_documents(40) + ["aaaa aaaaaa aaa", "abab ababab\n\n  x = 1.5e-3", "naïve Ünïcödé 你好 🙂"]
    assert list(prepare.train_bpe(texts, 420)) == brute_force_bpe(texts, 420)


def test_decoding_inverts_encoding():
    encoding = prepare.make_encoding(prepare.train_bpe(make_documents(50), 400))
    rng = np.random.default_rng(0)
    ranges = [(0, 128), (128, 0x800), (0x800, 0xD800), (0xE000, 0x10FFFF)]
    texts = ["".join(chr(rng.integers(*ranges[i])) for i in rng.integers(4, size=100)) for _ in range(200)]
    texts += ["", " ", " " * prepare.LONGEST, "\n \n\t  a", "\0", prepare.END_OF_TEXT]
    texts += ["e\u0301 \u2028 \U0001f469\u200d\U0001f680"]
    for text in texts:
        tokens = encoding.encode_ordinary(text)
        assert encoding.decode(tokens) == text and all(token < encoding.n_vocab - 1 for token in tokens)


def test_too_small_a_text_for_the_vocabulary_is_refused(monkeypatch):
    with pytest.raises(prepare.InputError, match="at most 259 here"):
        prepare.train_bpe(["ab ab"], 1000)
    monkeypatch.setattr(prepare, "BPE_WORDS", 10_000)  # of text of ever new words so many bytes are read
    for length, count in ((1, 2002), (500, 7)):  # of 5 and 1,502 bytes each
        numbers = itertools.count()
        ranks = prepare.train_bpe((f"ab{chr(0x4e00 + i) * length} ab" for i in numbers), 258)
        assert len(ranks) == 257 and next(numbers) == pytest.approx(count, abs=2)


def deduplicate(documents, near=True, recent=2 ** 20, every=1):
    """The documents that a Spool keeps, in its order."""
    with tempfile.NamedTemporaryFile() as file:
        spool, seen = prepare.Spool(file.name), prepare.Seen(every)
        seen.block = recent
        spool.collect(documents)
        return [spool[i] for i in (spool.distinct(spool.unique(), seen) if near else spool.unique())]


def test_deduplication_drops_copies_and_templates_whatever_the_order():
    documents = make_documents(50)
    words = documents[0].split()
    near = " ".join(words[:len(words) * 3 // 4] + ["quite", "another", "ending"])
    other = " ".join(words[:len(words) // 4] + make_documents(1, seed=9)[0].split())
    kept = deduplicate(documents + [documents[3], documents[4] + "  \n", near, other, "", "  "])
    assert len(kept) == 51 and other in kept and (near in kept) != (documents[0] in kept)
    assert kept == deduplicate([other, near] + documents[::-1])
    # kept 8-grams in sorted blocks, a sample of them, copies alone
    assert kept == deduplicate([other, near] + documents, recent=100)
    assert abs(len(deduplicate(documents + [near, other], every=7)) - 51) <= 3
    assert len(deduplicate(documents + [documents[3], near, other], near=False)) == 52


def test_near_duplicates_are_those_of_the_definition():
    """Against sets of word tuples: which documents are kept, whatever white space and letters they have."""
    rng = np.random.default_rng(0)
    documents = make_documents(60) + ["Ünïcödé wörds \u2028 and\tSPACES " * 5, "one", "X y"]
    for text in list(documents):  # mixtures of two documents in shares around a half
        words, share = text.split(), rng.uniform(0.3, 0.7)
        other = documents[rng.integers(60)].split()
        documents.append("  ".join(words[:int(share * len(words))] + other[int(share * len(other)):]).upper())
    seen, kept = set(), []
    for text in sorted({t.strip() for t in documents}, key=lambda t: prepare.hashlib.sha256(t.encode()).digest()):
        words = text.lower().split()
        grams = [tuple(words[i:i + 8]) for i in range(len(words) - 7)]
        if sum(gram in seen for gram in grams) <= len(grams) / 2:
            kept.append(text)
            seen.update(grams)
    assert len(kept) < len(documents) and deduplicate(documents) == kept


def test_overlap_with_validation_counts_13grams_by_budget():
    a, b, c = (" ".join(f"{letter}{i}" for i in range(20)) for letter in "abc")
    train = [(prepare.word_grams(text, 13), start) for text, start in ((a, 0), (b, 100), (c, 300_000))]
    val = np.concatenate([prepare.word_grams(text, 13) for text in (b, c + " x", "too short")])
    overlap = prepare.validation_overlap(train, 600_000, val)
    # 8 grams of b, found from token 100 on, and 8 of the 9 of the longer c, found from 300,000 on
    assert overlap == {"209715": round(8 / 17, 5), "419430": round(16 / 17, 5), "600000": round(16 / 17, 5)}


def test_docstrings_of_a_file(tmp_path):
    long = "This sentence is a long piece of plain documentation that somebody wrote into a string literal. " * 4
    code = "x = [1.0, 2.0] + " * 30
    (tmp_path / "a.py").write_text(f'"""Module."""\ndef f():\n    """First.\n\n        Indented.\n    Last.\n    """\n'
                                   f"a = {long!r}\nb = {code!r}\nc = 'short'\nd = f'{long}{{a}}'\n")
    found = prepare.docstrings_of(tmp_path / "a.py")
    assert set(found) == {"Module.", "First.\n\n    Indented.\nLast.", long}


def test_few_files_are_cut_into_passages(tmp_path):
    text = "\n\n".join(make_documents(100))
    for blank in ("\n\n", "\r\n\r\n", "\n  \n"):
        (tmp_path / "book.txt").write_bytes(text.replace("\n\n", blank).encode())
        passages = list(prepare.read_documents([tmp_path / "book.txt"], prepare.BadLines(), 10 ** 6))
        assert "".join(passages).rstrip() == text.rstrip()
        assert len(passages) > 10 and all(2000 <= len(passage) < 3000 for passage in passages[:-1])


def test_jsonl_lines_end_at_newlines_alone(tmp_path):
    texts = [f"one\u2028line {i}\x85" for i in range(100)]
    lines = [json.dumps({"text": text}, ensure_ascii=False) for text in texts]
    (tmp_path / "lines.jsonl").write_text("\n\n".join(lines) + "\n", encoding="utf-8")
    assert list(prepare.read_documents([tmp_path / "lines.jsonl"], prepare.BadLines(), 10 ** 6)) == texts


def test_the_default_corpus_of_one_package(tmp_path, monkeypatch, capsys):
    """docstrings, on mpmath alone: deterministic, warned about as another corpus, left alone when asked for again."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(prepare, "CORPUS_PACKAGES", ("mpmath",))
    options = ("--vocab_size", 300, "--val_tokens", 4000)
    assert call(prepare, *options) == 0
    assert "not those of the pinned versions" in capsys.readouterr().err
    data = prepare.load_data("docstrings-300")
    assert data.meta["versions"] == {"mpmath": "1.3.0"} and data.meta["tokens"]["train"] > 100_000
    assert "hypergeometric" in data.tokenizer().decode(data.train[:20_000].tolist())
    assert call(prepare, *options, "--name", "again") == 0
    assert prepare.load_data("again").meta["sha256"] == data.meta["sha256"]
    # a budget is a prefix, whatever the order of the files
    files, versions = prepare.find_docstrings()
    with monkeypatch.context() as reverse:
        reverse.setattr(prepare, "find_docstrings", lambda: (files[::-1], versions))
        assert call(prepare, *options, "--tokens", 20_000, "--name", "few") == 0
    np.testing.assert_array_equal(prepare.load_data("few").train, data.train[:20_000])
    # prepared elsewhere with other versions and carried along, it is still the data that was asked for
    monkeypatch.setattr(prepare.importlib.metadata, "version", lambda package: "9.9")
    assert call(prepare, *options) == 0 and "prepared already" in capsys.readouterr().out


def test_format_on_disk(world):
    """Read the folder by numpy and tiktoken alone and get the documents back."""
    meta = json.loads((world / "data/tiny/meta.json").read_text())
    encoding = prepare.load_data("tiny").tokenizer()
    found = {}
    for part in ("train", "val"):
        tokens = np.frombuffer((world / f"data/tiny/{part}.bin").read_bytes(), "<u2")
        starts = np.load(world / f"data/tiny/{part}_docs.npy")
        assert len(tokens) == meta["tokens"][part] and starts.dtype == np.int64
        assert (np.flatnonzero(tokens == 319) == starts).all()  # end-of-text before each document and nowhere else
        found[part] = [encoding.decode(document[1:]) for document in np.split(tokens, starts[1:])]
    assert not set(found["train"]) & set(found["val"]) and meta["tokens"]["val"] >= 1000
    assert sorted(found["train"] + found["val"]) == sorted(deduplicate(make_documents(600)))
    assert prepare.token_dtype(65536) == np.uint16 and prepare.token_dtype(65537) == np.uint32


def test_preparing_twice_does_nothing_and_never_overwrites(world, prepared, capsys):
    before = {path: path.stat().st_mtime_ns for path in (world / "data/tiny").iterdir()}
    (world / "tiny.jsonl").write_bytes((prepared / "tiny.jsonl").read_bytes())
    request = ["--source", "tiny.jsonl", "--vocab_size", 320, "--val_tokens", 1000, "--name", "tiny"]
    assert call(prepare, *request) == 0 and "already" in capsys.readouterr().out
    assert "holds other data" in refused(capsys, prepare, *request, "--seed", 1)
    with open(world / "tiny.jsonl", "a") as file:
        file.write('\n{"text": "one more"}')
    assert "holds other data" in refused(capsys, prepare, *request)
    assert before == {path: path.stat().st_mtime_ns for path in (world / "data/tiny").iterdir()}


def test_bad_text_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name, content, message in [("empty.txt", b"", "no text in empty.txt"), ("blank.txt", b" \n\n ", "no text in"),
                                   ("latin.txt", b"caf\xe9 au lait", "not UTF-8 (byte 3)"),
                                   ("field.jsonl", b'{"body": "a"}', "no text in field.jsonl; 1 lines are not JSON"),
                                   ("some.jsonl", b'{"body": "a"}\n{"text": "a"}', "first is some.jsonl line 1"),
                                   ("deep.jsonl", b'{"text": ' + b"[" * 10 ** 5, "first is deep.jsonl line 1"),
                                   ("bits.jsonl.gz", gzip.compress(b"a b c" * 9)[:12] + b"xxxxxxxx", "damaged or cut"),
                                   ("a*.txt", b"a", "cannot be the name of a data set; give --name"),
                                   ("cut.jsonl.gz", gzip.compress(b'{"text": "a"}' * 99)[:-9], "damaged or cut off"),
                                   ("plain.jsonl.gz", b'{"text": "a"}', "damaged or cut off"),
                                   ("short.bin", b"\0" * 99, "not a shard of tokens (magic 0, version 0)"),
                                   ("short.txt", b"a few words", "too few")]:
        (tmp_path / name).write_bytes(content)
        assert message in refused(capsys, prepare, "--source", name)
    assert "names no file" in refused(capsys, prepare, "--source", "nowhere.txt")
    for content, line in ((b'{"text": "a"}\n{"text": ', 2), (b'\n{"text": 5}', 2), (b"[]", 1), (b'"\xff"', 1)):
        (tmp_path / "broken.jsonl").write_bytes(content)
        message = refused(capsys, prepare, "--source", "broken.jsonl", "--strict")
        assert f"broken.jsonl line {line} is not a JSON object" in message
    for option, value in (("--vocab_size", 100), ("--val_tokens", 0), ("--seed", -1), ("--name", "a/b")):
        assert option in refused(capsys, prepare, option, value)
    assert "give files of text" in refused(capsys, prepare, "--source", "dclm", "--bench")
    (tmp_path / "data/mine").mkdir(parents=True)  # text is kept there
    (tmp_path / "data/mine/a.txt").write_text("text")
    assert "is no data set; give another --name" in refused(capsys, prepare, "--source", "data/mine")
    assert (tmp_path / "data/mine/a.txt").exists()
    assert "unrecognized" in refused(capsys, prepare, "--colour", "red")
    assert list((tmp_path / "data").iterdir()) == [tmp_path / "data/mine"]


def test_a_changed_byte_is_refused(world, capsys):
    path = world / "data/tiny/train.bin"
    content = bytearray(path.read_bytes())
    content[1234] ^= 1
    path.write_bytes(content)
    assert "changed" in refused(capsys, train, *TINY)
    path.write_bytes(content[:-2])
    assert "changed" in refused(capsys, train, *TINY)
    for damaged in ("{}", '{"sha256": ', "[]"):
        (world / "data/tiny/meta.json").write_text(damaged)
        assert "data/tiny" in refused(capsys, train, *TINY)
    assert not (world / "runs").exists()


def test_every_kind_of_source_gives_the_same_documents(tmp_path, monkeypatch, capsys):
    """.jsonl plain and compressed, parquet, a pattern, a folder, standard input: one corpus, bit for bit."""
    arrow, zstandard = pytest.importorskip("pyarrow"), pytest.importorskip("zstandard")
    parquet = pytest.importorskip("pyarrow.parquet")
    monkeypatch.chdir(tmp_path)
    documents = [*make_documents(300), "<|endoftext|> is text here, \0 too", "a lone \ud800 surrogate"]
    lines = "\n".join(json.dumps({"text": text}) for text in documents).encode()
    half = lines.index(b"\n", len(lines) // 2) + 1
    (tmp_path / "a.jsonl").write_bytes(lines)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(lines))
    (tmp_path / "c.jsonl.zst").write_bytes(zstandard.compress(lines[:half]) + zstandard.compress(lines[half:]))
    for folder in ("d/more", "e"):
        (tmp_path / folder).mkdir(parents=True)
    for name, part in (("d/1.jsonl", lines[:half]), ("d/more/2.jsonl", lines[half:])):
        (tmp_path / name).write_bytes(part)
    texts = [text.encode("utf-16", "surrogatepass").decode("utf-16", "replace") for text in documents]
    parquet.write_table(arrow.table({"text": texts[:100] + [None], "n": range(101)}), tmp_path / "e/1.parquet")
    parquet.write_table(arrow.table({"text": texts[100:]}), tmp_path / "e/2.parquet", row_group_size=50)
    options, hashes = ("--vocab_size", 300, "--val_tokens", 500), set()
    for i, source in enumerate(("a.jsonl", "b.jsonl.gz", "c.jsonl.zst", "d", "d/**", "d/**/*.jsonl", "e", "-")):
        if source == "-":
            monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=open("a.jsonl", "rb")))
        assert call(prepare, "--source", source, *options, "--name", f"set{i}") == 0
        hashes.add(json.dumps({**prepare.load_data(f"set{i}").meta["sha256"]}))
    err = capsys.readouterr().err
    assert len(hashes) == 1 and err.count('1 lines are not JSON objects with a "text"') == 1
    assert "the first is e/1.parquet row 101" in err
    # standard input cannot be told apart, so it never counts as prepared
    assert "holds other data" in refused(capsys, prepare, "--source", "-", *options, "--name", "set7")
    data = prepare.load_data("set0")
    text = data.tokenizer().decode(np.concatenate([data.val, data.train]).tolist())
    assert text.count("<|endoftext|>") == 304 - 1 and "is text here, \0 too" in text and "a lone \ufffd surr" in text
    # a pattern that finds nothing, a file cut off, a table of other columns
    (tmp_path / "c.jsonl.zst").write_bytes(zstandard.compress(lines)[:-99])
    assert "damaged or cut off" in refused(capsys, prepare, "--source", "c.jsonl.zst", "--name", "cut")
    assert "x*.jsonl names no file" in refused(capsys, prepare, "--source", "e/1.parquet", "x*.jsonl")
    parquet.write_table(arrow.table({"body": texts}), tmp_path / "f.parquet")
    assert 'with a column "text"' in refused(capsys, prepare, "--source", "f.parquet")


def test_a_long_text_is_read_in_bounded_pieces(monkeypatch):
    monkeypatch.setattr(prepare, "LONGEST", 5000)
    text = "\n\n".join(make_documents(40)) + "\n\n" + "x" * 12_000 + "\n\nend"
    content = text.replace("\n", "\r\n").encode()
    blocks = (content[i:i + 999] for i in range(0, len(content), 999))
    passages = list(prepare.read_text("book.txt", blocks))
    assert "".join("".join(passages).split()) == "".join(text.split()) and max(map(len, passages)) <= 5000
    assert len(passages) > 10


def test_a_document_longer_than_the_budget_is_cut(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    texts = [" ".join(make_documents(1)[0].split() * 400), *make_documents(120)]
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    options = ("--source", "a.jsonl", "--tokenizer", "bytes", "--dedup", 0, "--val_tokens", 500, "--tokens", 5000)
    assert call(prepare, *options) == 0
    data = prepare.load_data("a-bytes")
    assert len(texts[0]) > 50_000 and len(data.train) == 5000 and 500 <= len(data.val) <= 5501


def test_memory_stays_bounded_while_text_does_not(tmp_path):
    """256 MB of documents, prepared by a process of its own within 300 MB beyond what it takes to import."""
    words = np.array([f"word{i}" for i in range(50_000)])
    rng = np.random.default_rng(0)
    with open(tmp_path / "long.jsonl", "w") as file:
        for _ in range(400):
            text = " ".join(words[rng.integers(50_000, size=65_000)])
            file.write(json.dumps({"text": text}) + "\n")
    code = """
import resource, sys, prepare
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
sys.argv = ["prepare.py", "--source", "long.jsonl", "--tokenizer", "bytes", "--tokens", "100000000"]
prepare.main()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path,
                          env={**os.environ, "PYTHONPATH": str(HERE)})
    assert done.returncode == 0 and int(done.stdout.splitlines()[-1]) < 300_000, done


def write_shard(path, tokens, magic=20240520, version=1, count=None):
    header = np.zeros(256, "<i4")
    header[:3] = magic, version, len(tokens) if count is None else count
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(header.tobytes() + np.asarray(tokens, "<u2" if version == 1 else "<u4").tobytes())


def write_ranks(path, count):
    """A rank file of all bytes and made-up longer tokens."""
    tokens = [bytes([i]) for i in range(256)] + [b"%06d" % i for i in range(count - 256)]
    path.write_bytes(b"".join(prepare.base64.b64encode(token) + b" %d\n" % i for i, token in enumerate(tokens)))


def make_shard_tokens(documents, end_of_text, seed=0):
    """Documents of 20 to 200 random tokens, end-of-text before each."""
    rng = np.random.default_rng(seed)
    return np.concatenate([[end_of_text, *rng.integers(end_of_text, size=rng.integers(20, 200))]
                           for _ in range(documents)])


def test_shards_of_tokens_are_copied(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_ranks(tmp_path / "gpt2.tiktoken", 50_256)
    write_ranks(tmp_path / "tokenizer.model", 128_000)
    tokens = make_shard_tokens(300, 50_256)
    write_shard(tmp_path / "s/x_train_000001.bin", tokens[:9000])
    write_shard(tmp_path / "s/x_train_000002.bin", tokens[9000:])
    options = ("--val_tokens", 1000, "--tokenizer", "gpt2.tiktoken")
    assert call(prepare, "--source", "s", *options, "--tokens", 12_000) == 0
    data = prepare.load_data("s-gpt2")
    starts = np.flatnonzero(tokens == 50_256)
    split = starts[starts >= 1000][0]  # whole documents
    assert np.array_equal(data.val, tokens[:split]) and np.array_equal(data.train, tokens[split:split + 12_000])
    assert data.train.dtype == np.uint16 and data.meta["vocab_size"] == 50_257
    assert np.array_equal(np.load("data/s-gpt2/train_docs.npy"), np.flatnonzero(data.train == 50_256))
    assert data.tokenizer().n_vocab == 50_257 and data.token_bytes()[300] == 6
    # without validation of their own it may take more than one of them
    assert call(prepare, "--source", "s", "--tokenizer", "gpt2.tiktoken", "--val_tokens", 9500, "--name", "two") == 0
    data, split = prepare.load_data("two"), starts[starts >= 9500][0]
    assert np.array_equal(data.val, tokens[:split]) and np.array_equal(data.train, tokens[split:])
    # a shard with val in its name is validation; Llama 3's are 32 bits wide, 256 special tokens follow the ranks
    tokens = make_shard_tokens(200, 128_000, seed=1)
    write_shard(tmp_path / "l/x_val_000000.bin", tokens[:1500], 20240801, 7)
    write_shard(tmp_path / "l/x_val_000001.bin", tokens[1500:4000], 20240801, 7)
    write_shard(tmp_path / "l/retrieval_train_000001.bin", np.r_[tokens[4000:], tokens[:500], 128_255], 20240801, 7)
    assert call(prepare, "--source", "l", "--val_tokens", 10_000, "--tokenizer", "llama3") == 0
    data = prepare.load_data("l-llama3")
    assert np.array_equal(data.val, tokens[:4000]) and len(data.train) == len(tokens) - 4000 + 501
    assert data.train.dtype == np.uint32 and data.meta["vocab_size"] == 128_256 and data.meta["end_of_text"] == 128_000
    assert data.tokenizer().decode([128_000, 65, 128_255]) == "<|endoftext|>A<|reserved_128255|>"
    # 488 of the 3,988 13-grams of validation are in train
    assert data.meta["val_13grams_in_train"] == {str(len(data.train)): pytest.approx(488 / 3988, abs=1e-5)}
    assert "over 5% of validation occurs in train" in capsys.readouterr().err


def test_bad_shards_are_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_ranks(tmp_path / "ranks", 50_256)
    tokens = make_shard_tokens(100, 50_256)
    for change, message in ((dict(magic=7), "not a shard of tokens (magic 7, version 1)"),
                            (dict(count=9999), "its header says 9,999; fetch it again"),
                            (dict(tokens=np.r_[tokens, 50_300]), "holds token 50,300, beyond the vocabulary of"),
                            (dict(tokens=np.zeros(1_234_567, int), count=1_234_568), "holds 1,234,567 tokens, its"),
                            (dict(tokens=tokens[:0]), "holds 0 tokens, its header says 0"),
                            (dict(tokens=tokens[:50]), "too short to set 1,000 validation tokens apart")):
        write_shard(tmp_path / "one.bin", **{"tokens": tokens, **change})
        assert message in refused(capsys, prepare, "--source", "one.bin", "--tokenizer", "ranks", "--val_tokens", 1000)
    with open(tmp_path / "one.bin", "ab") as file:
        file.write(b"x")
    assert "one.bin holds 50.5 tokens" in refused(capsys, prepare, "--source", "one.bin", "--tokenizer", "ranks")
    write_shard(tmp_path / "val.bin", tokens)
    assert "only such with val" in refused(capsys, prepare, "--source", "val.bin", "--tokenizer", "ranks")
    write_shard(tmp_path / "two.bin", tokens, 20240801, 7)
    assert "different vocab" in refused(capsys, prepare, "--source", "val.bin", "two.bin", "--tokenizer", "ranks")
    assert "has 50,256 ranks" in refused(capsys, prepare, "--source", "two.bin", "--tokenizer", "ranks")
    (tmp_path / "a.txt").write_text("text")
    assert "cannot be mixed" in refused(capsys, prepare, "--source", "two.bin", "a.txt")
    assert not list(tmp_path.glob("data/*")) and not list(tmp_path.glob("data/.*"))


class Hub(http.server.BaseHTTPRequestHandler):
    """A hub on loopback that serves `files` {path: bytes} with ranges and does to some requests what `faults` says:
    {path: ["503", "drop", "truncate", ...]}, one after another."""
    def do_GET(self):
        path = self.path.split("?")[0].lstrip("/")
        self.server.asked.append((path, self.headers.get("Range")))
        fault = self.server.faults.get(path, []).pop(0) if self.server.faults.get(path) else None
        if fault == "503" or path not in self.server.files:
            return self.send_error(int(fault or 404))
        content, begin = self.server.files[path], 0
        if self.headers.get("Range") and fault != "no ranges":
            begin = int(self.headers["Range"].split("=")[1].rstrip("-"))
        if begin >= len(content) > 0:
            return self.send_error(416)
        self.send_response(206 if begin else 200)
        rest = content[begin:]
        self.send_header("Content-Length", str(len(rest) // 2 if fault == "truncate" else len(rest)))
        self.end_headers()
        self.wfile.write(rest[:len(rest) // 2] if fault in ("drop", "truncate") else rest)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(monkeypatch):
    """A running Hub whose address the kit takes for the public one; pauses between tries cost no time."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.files, server.faults, server.asked = {}, {}, []

    def offer(repository, files):
        listing = [{"type": "file", "path": name, "size": len(content), "lfs": {
            "oid": prepare.hashlib.sha256(content).hexdigest()}} for name, content in files.items()]
        server.files[f"api/datasets/{repository}/tree/main"] = json.dumps(listing).encode()
        server.files |= {f"datasets/{repository}/resolve/main/{name}": content for name, content in files.items()}
    server.offer = offer
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(prepare.time, "sleep", lambda seconds: None)
    yield server
    server.shutdown()
    server.server_close()


def test_downloads_survive_what_networks_do(tmp_path, hub, capsys):
    content = np.random.default_rng(0).bytes(3_000_000)
    digest, url = prepare.hashlib.sha256(content).hexdigest(), f"{prepare.hub()}/file"
    hub.files["file"] = content
    for faults in ([], ["503", "503"], ["drop"], ["truncate"], ["drop", "503", "truncate"], ["drop", "no ranges"]):
        hub.faults["file"], hub.asked = list(faults), []
        prepare.fetch(url, tmp_path / "file", len(content), digest)
        tries = len(faults) + 1 - ("no ranges" in faults)
        assert (tmp_path / "file").read_bytes() == content and len(hub.asked) == tries, faults
        # after a broken connection the rest alone is asked for
        assert (hub.asked[-1][1] is not None) == bool({"drop", "truncate"} & set(faults))
        (tmp_path / "file").unlink()
    # a part left by a killed process is gone on with, also where nothing is missing, known or not, or too much there
    for part, size, asked in ((content[:1_000_000], len(content), ["bytes=1000000-"]), (content, len(content), []),
                              (content, None, ["bytes=3000000-", None]),
                              (content + b"x", len(content), ["bytes=3000001-", None])):
        (tmp_path / "file.part").write_bytes(part)
        hub.asked.clear()
        prepare.fetch(url, tmp_path / "file", size, digest)
        assert [bytes_ for _, bytes_ in hub.asked] == asked and (tmp_path / "file").read_bytes() == content
        (tmp_path / "file").unlink()
    # what cannot be had ends in one line that says where to put it, and nothing looks finished
    for path, fault, message in (("file", ["503"] * 9, "(status 503); fetch it by hand and put it at"),
                                 ("nothing", [], "(status 404)"), ("file", [], "SHA-256 differs")):
        hub.faults[path] = fault
        with pytest.raises(prepare.InputError) as error:
            prepare.fetch(f"{prepare.hub()}/{path}", tmp_path / "new", len(content), "0" * 64)
        assert message in str(error.value) and str(tmp_path / "new") in str(error.value)
        assert not (tmp_path / "new").exists()
    hub.server_close()
    for address in ("http://127.0.0.1:9", "127.0.0.1:9"):
        with pytest.raises(prepare.InputError, match="by hand and put it at"):
            prepare.fetch(f"{address}/file", tmp_path / "new")


def test_fineweb_fetches_as_many_shards_as_the_tokens_need(tmp_path, hub, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_ranks(tmp_path / "ranks", 50_256)
    shards, files = {}, {}
    for number in range(5):
        name = f"fineweb_{'train' if number else 'val'}_{number:06d}.bin"
        shards[number] = make_shard_tokens(60, 50_256, seed=number)
        write_shard(tmp_path / "made" / name, shards[number])
        files[name] = (tmp_path / "made" / name).read_bytes()
    repository = prepare.HUB["fineweb"][0]
    hub.offer(repository, files)
    hub.faults[f"datasets/{repository}/resolve/main/fineweb_train_000001.bin"] = ["503", "503", "drop", "truncate"]
    tokens = len(shards[1]) + 100
    options = ("--source", "fineweb", "--tokens", tokens, "--tokenizer", "ranks", "--name", "web")
    assert call(prepare, *options) == 0
    data = prepare.load_data("web")
    assert np.array_equal(data.train, np.concatenate([shards[1], shards[2]])[:tokens])
    assert np.array_equal(data.val, shards[0])
    fetched = sorted(path.name for path in Path("data/downloads").rglob("*.bin"))
    assert fetched == ["fineweb_train_000001.bin", "fineweb_train_000002.bin", "fineweb_val_000000.bin"]
    # what is there is not fetched again; the next shards are, and offline the message names the file
    hub.asked.clear()
    more = ("--source", "fineweb", "--tokens", tokens + len(shards[2]), "--tokenizer", "ranks", "--name", "more")
    assert call(prepare, *more) == 0 and [path.rsplit("_", 1)[1] for path, _ in hub.asked] == ["000003.bin"]
    hub.files.clear()
    message = refused(capsys, prepare, *more[:2], "--tokens", 10 ** 6, "--tokenizer", "ranks", "--name", "all")
    assert "put it at data/downloads/kjj0/fineweb10B-gpt2/fineweb_train_000004.bin" in message
    assert not Path("data/all").exists() and call(prepare, *options) == 0


def test_dclm_comes_with_validation_of_its_own(tmp_path, hub, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    train, val = prepare.HUB["dclm"]
    documents, apart = make_documents(300), make_documents(40, seed=1)
    for repository, texts in ((train, [*documents, apart[3], apart[5]]), (val, apart)):
        lines = [json.dumps({"text": text}) for text in texts]
        hub.offer(repository, {"data/1.jsonl": "\n".join(lines[:200]).encode(),
                               "data/2.jsonl": "\n".join(lines[200:]).encode(), "README.md": b"text"})
    options = ("--source", "dclm", "--tokenizer", "bytes", "--name", "dclm")
    for dedup in (1, 0):
        assert call(prepare, *options[:-1], f"dclm{dedup}", "--dedup", dedup) == 0
        data = prepare.load_data(f"dclm{dedup}")
        decode = data.tokenizer().decode
        found, held = (set(decode(tokens.tolist()).split("<|endoftext|>")[1:]) for tokens in (data.train, data.val))
        assert found == set(documents) and held == set(apart)  # what is in validation is not in train
    # enough of it is enough
    assert "fewer than 209,715,200 train tokens in dclm (files of text are read" in capsys.readouterr().err
    assert call(prepare, *options[:-1], "little", "--tokens", 1000, "--val_tokens", 500) == 0
    little = prepare.load_data("little")
    assert len(little.train) == 1000 and 500 <= len(little.val) < 1500
    # other validation beside the same train tokens is other data to a run
    assert call(prepare, *options[:-1], "less", "--val_tokens", 500) == 0
    less, more = prepare.load_data("less"), prepare.load_data("dclm1")
    assert np.array_equal(less.train, more.train) and less.fingerprint() != more.fingerprint()
    # without the hub what was put there by hand is taken, or it says where to put it
    hub.files.clear()
    for listing in Path("data/downloads").rglob("files.json"):
        listing.unlink()
    assert call(prepare, *options[:-1], "offline") == 0 and "as they are" in capsys.readouterr().err
    assert prepare.load_data("offline").meta["sha256"] == prepare.load_data("dclm1").meta["sha256"]
    hub.files[f"api/datasets/{train}/tree/main"] = b"<html>busy</html>"
    for folder in Path("data/downloads").rglob("data"):
        prepare.shutil.rmtree(folder)
    assert "cannot be read" in refused(capsys, prepare, *options[:-1], "again")
    assert "set in data/downloads/Octo" in refused(capsys, prepare, "--source", "megamath", "--tokenizer", "bytes")
    assert "give --tokens above 0" in refused(capsys, prepare, *options, "--tokens", 0)


def test_tokenizers(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in make_documents(200)))
    options = ("--source", "t.jsonl", "--val_tokens", 500)
    write_ranks(tmp_path / "mine.tiktoken", 65_535)
    write_ranks(tmp_path / "tokenizer.model", 128_000)
    for tokenizer, vocab_size, dtype in (("bytes", 257, "uint16"), ("mine.tiktoken", 65_536, "uint16"),
                                         ("llama3", 128_256, "uint32")):
        assert call(prepare, *options, "--tokenizer", tokenizer) == 0
        data = prepare.load_data(f"t-{Path(tokenizer).stem}")
        assert (data.meta["vocab_size"], data.meta["dtype"]) == (vocab_size, dtype)
        text = data.tokenizer().decode(np.concatenate([data.val, data.train]).tolist())
        assert sorted(text.split("<|endoftext|>")[1:]) == sorted(deduplicate(make_documents(200)))
    # another file under the tokenizer's name is another request
    write_ranks(tmp_path / "mine.tiktoken", 65_536)
    assert "holds other data" in refused(capsys, prepare, *options, "--tokenizer", "mine.tiktoken")
    # Llama 3 splits numbers by threes, GPT-2 does not
    assert prepare.regex.findall(prepare.PATTERN, "It's 12345\n\n") == ["It", "'s", " 12345", "\n\n"]
    assert prepare.regex.findall(prepare.LLAMA3_PATTERN, "It's 12345\n\n") == ["It", "'s", " ", "123", "45", "\n\n"]
    assert [prepare.token_dtype(v).itemsize for v in (65_535, 65_536, 65_537)] == [2, 2, 4]
    (tmp_path / "bad").write_text("YQ== 0\n")
    assert "is not a rank file" in refused(capsys, prepare, *options, "--tokenizer", "bad", "--name", "x")
    assert "no tokenizer nowhere" in refused(capsys, prepare, *options, "--tokenizer", "nowhere", "--name", "x")
    # GPT-2's ranks are tiktoken's; without network and cache it says so
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "empty"))
    monkeypatch.setitem(sys.modules["tiktoken.registry"].ENCODINGS, "gpt2", None)
    for proxy in ("https_proxy", "HTTPS_PROXY"):
        monkeypatch.setenv(proxy, "http://127.0.0.1:9")
    monkeypatch.delitem(sys.modules["tiktoken.registry"].ENCODINGS, "gpt2")
    assert "as TIKTOKEN_CACHE_DIR" in refused(capsys, prepare, *options, "--tokenizer", "gpt2", "--name", "x")


def test_budgets_verification_and_samples_of_large_files(world, monkeypatch, capsys):
    (world / "t.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in make_documents(300)))
    options = ("--source", "t.jsonl", "--val_tokens", 500, "--vocab_size", 300)
    monkeypatch.setattr(prepare, "WHOLE_CHECK", 2000)  # as if they were large
    assert call(prepare, *options, "--name", "whole") == 0
    assert call(prepare, *options, "--name", "cut", "--tokens", 5000) == 0
    whole, cut = prepare.load_data("whole"), prepare.load_data("cut")
    assert len(cut.train) == 5000 and 500 <= len(cut.val) < 1000
    assert len(np.load("data/cut/train_docs.npy")) == (cut.train == 299).sum() == cut.meta["documents"]["train"]
    # a budget below the validation size reads enough for both
    assert call(prepare, *options, "--name", "small", "--tokens", 50) == 0
    assert len(prepare.load_data("small").train) == 50 and 500 <= len(prepare.load_data("small").val) < 1000
    # a start reads a sample of large files; --verify reads all
    assert set(whole.meta["sha256_sample"]) == {"train.bin", "train_docs.npy", "tokenizer.tiktoken"}
    hashed, real = [], prepare.sha256_file
    monkeypatch.setattr(prepare, "sha256_file", lambda path: hashed.append(Path(path).name) or real(path))
    prepare.load_data("whole")
    assert set(hashed) == {"val.bin", "val_docs.npy"}
    capsys.readouterr()
    assert call(prepare, "--verify", "whole", "--json") == 0
    said, meta = capsys.readouterr().out.splitlines()
    assert "as written" in said and json.loads(meta) == whole.meta
    assert set(hashed) == set(whole.meta["sha256"])
    path = world / "data/whole/train.bin"
    path.write_bytes(path.read_bytes()[:-2] + b"\0\0")
    assert "train.bin is missing or changed" in refused(capsys, prepare, "--verify", "whole")
    assert "no data set data/nothing" in refused(capsys, prepare, "--verify", "nothing")


def test_a_killed_preparation_leaves_nothing(tmp_path):
    (tmp_path / "t.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in make_documents(3000)))
    command = [sys.executable, HERE / "prepare.py", "--source", "t.jsonl", "--val_tokens", "999",
               "--tokenizer", "bytes", "--name", "t"]

    def begun():  # a shell's background jobs ignore Ctrl-C, and so would what they start
        process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                   preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
        while not list(tmp_path.glob(f"data/.t.*.{process.pid}.tmp/text")) and process.poll() is None:
            time.sleep(0.001)
        return process
    # a request to stop takes its folder along
    for number, status in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        process = begun()
        process.send_signal(number)
        _, err = process.communicate()
        assert process.returncode == status and err.count(b"\n") == (number == signal.SIGINT) and b"Trace" not in err
        assert not list((tmp_path / "data").iterdir())
    killed, stopped = begun(), begun()
    killed.kill()
    killed.communicate()
    stopped.send_signal(signal.SIGSTOP)
    assert not (tmp_path / "data/t").exists() and len(list(tmp_path.glob("data/.t.*.tmp"))) == 2
    # the next takes away what the killed one left, not what a living one works on, which then comes too late, nor what
    # may be alive on another machine
    (tmp_path / f"data/.t.elsewhere.{killed.pid}.tmp").mkdir()
    assert subprocess.run(command, cwd=tmp_path, capture_output=True).returncode == 0
    left = sorted(path.name for path in (tmp_path / "data").iterdir())
    assert len(left) == 3 and {f".t.elsewhere.{killed.pid}.tmp", "t"} < set(left)
    (tmp_path / f"data/.t.elsewhere.{killed.pid}.tmp").rmdir()
    stopped.send_signal(signal.SIGCONT)
    _, err = stopped.communicate()
    assert stopped.returncode == 2 and err.decode().count("\n") == 1 and b"not empty" in err
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == ["t"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("unexpected pos 64 vs 0")])
def test_a_failed_write_keeps_the_old_file(tmp_path, error):
    prepare.write_json(tmp_path / "file.json", {"old": 1})

    def fail(file):
        file.write(b"half")
        raise error
    with pytest.raises(prepare.InputError, match="free some disk space"):
        prepare.write_atomically(tmp_path / "file.json", fail)
    assert [path.name for path in tmp_path.iterdir()] == ["file.json"]
    assert json.loads((tmp_path / "file.json").read_text()) == {"old": 1}


# --------------------------------------------------------------------------------------------------
# model.py

def reference_logits(model, tokens):
    """The Llama forward pass of one sequence from its definition.

    Rotations are complex numbers, and each head and query has a softmax of its own.
    """
    w = {name: weight.detach().double() for name, weight in model.state_dict().items()}
    c, T = model.config, len(tokens)
    D = c.width // c.heads

    def norm(x, scale):
        return x / torch.sqrt((x ** 2).mean(-1, keepdim=True) + 1e-5) * scale

    def turn(x):
        # x (T, D): dimensions i and i + D/2 are one complex number, which turns by
        # position x theta^(-2i/D)
        z = torch.complex(x[:, :D // 2], x[:, D // 2:])
        periods = 10000 ** (torch.arange(D // 2).double() / (D // 2))
        angle = torch.arange(T).double()[:, None] / periods
        z = z * torch.polar(torch.ones_like(angle), angle)
        return torch.cat([z.real, z.imag], dim=1)

    starts = [t for t in range(T) if t == 0 or c.doc_mask and tokens[t] == c.end_of_text]
    start = []  # the first position that each may see
    for t in range(T):
        start.append(max(s for s in starts if s <= t))
    x = w["embedding.weight"][tokens]
    for layer in range(c.layers):
        p = f"blocks.{layer}."
        q, k, v = (norm(x, w[p + "norm_attention.weight"]) @ w[p + "attention.qkv.weight"].T).split(
            [c.heads * D, c.kv_heads * D, c.kv_heads * D], dim=1)
        heads = []
        for h in range(c.heads):
            g = h // (c.heads // c.kv_heads)
            qh = turn(q[:, h * D:(h + 1) * D])
            kh = turn(k[:, g * D:(g + 1) * D])
            vh = v[:, g * D:(g + 1) * D]
            rows = []
            for t, s in enumerate(start):
                weights = torch.softmax(kh[s:t + 1] @ qh[t] / math.sqrt(D), 0)
                rows.append(weights @ vh[s:t + 1])
            heads.append(torch.stack(rows))
        x = x + torch.cat(heads, dim=1) @ w[p + "attention.out.weight"].T
        both = norm(x, w[p + "norm_mlp.weight"]) @ w[p + "mlp.gate_up.weight"].T
        gate, up = both.chunk(2, dim=1)
        x = x + (gate / (1 + torch.exp(-gate)) * up) @ w[p + "mlp.down.weight"].T
    return norm(x, w["norm.weight"]) @ w["head.weight"].T


@pytest.mark.parametrize("doc_mask", [True, False])
def test_forward_equals_the_definition(doc_mask):
    model = tiny_gpt(doc_mask=doc_mask)
    torch.nn.init.normal_(model.embedding.weight)  # the paper's tiny embeddings would hide mistakes
    tokens = random_tokens(2, 24)
    for logits, sequence in zip(model(tokens), tokens):
        expected = reference_logits(model, sequence)
        assert (logits - expected).abs().max() < 1e-5 * expected.abs().max()


def test_a_document_does_not_see_its_neighbours():
    model, tokens = tiny_gpt(), random_tokens(1, 24)
    changed = tokens.clone()
    # the first document; end-of-text stays at 0, 8 and 12
    changed[0, 1:8] = (tokens[0, 1:8] + 7) % 59
    before, after = model(tokens), model(changed)
    assert torch.equal(before[0, 8:], after[0, 8:])
    assert not torch.allclose(before[0, 1:8], after[0, 1:8])
    # and with plain causal attention it does
    model.config.doc_mask = False
    assert not torch.allclose(model(tokens)[0, 8:], model(changed)[0, 8:])


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("compiled", [False, True])
def test_flex_attention_equals_the_dense_mask(monkeypatch, compiled):
    """The path that CUDA takes, forward only: FlexAttention has no CPU backward."""
    if compiled and not HAS_COMPILER:
        pytest.skip("no C++ compiler here")
    model, tokens = tiny_gpt(context=256, width=64), random_tokens(2, 256)
    dense = model(tokens)
    end = model.config.end_of_text
    monkeypatch.setattr(model, "document_mask", lambda t: gpt.block_document_mask(t, end))
    forward = torch.compile(model, dynamic=False) if compiled else model
    assert (forward(tokens) - dense).abs().max() < 1e-5 * dense.abs().max()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_cuda_graphs_train_as_the_plain_compiled_model_does(world):
    losses = []
    for mode in ("1", "graphs"):
        config = tiny_config(device="cuda", compile=mode, context=128, out=mode)
        losses.append(train.train(config)["val_loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
@pytest.mark.parametrize("logits", [2 ** 28, 2 ** 13])
@pytest.mark.parametrize("dtype, bound", [("fp32", 1e-3), ("bf16", 3e-2)])
def test_compiled_cuda_gradients_equal_the_cpus(monkeypatch, dtype, bound, logits):
    """The loss in the graph and, where the logits are many, in one operator."""
    monkeypatch.setattr(gpt, "CHUNK_LOGITS", logits)
    tokens, targets = train.inputs_and_targets(random_tokens(2, 256))
    right = tiny_gpt(context=256, width=64)
    right(tokens, targets).sum().backward()
    model = tiny_gpt(context=256, width=64).to("cuda")
    with train.autocast(dtype, torch.device("cuda")):
        forward = torch.compile(model, dynamic=False)
        total = forward(tokens.to("cuda"), targets.to("cuda"), total=True).sum()
    total.backward()
    for a, b in zip(model.parameters(), right.parameters()):
        assert (a.grad.cpu() - b.grad).norm() < bound * b.grad.norm()


@pytest.mark.skipif(importlib.util.find_spec("triton") is None or not shutil.which("g++"),
                    reason="needs triton and g++")
@pytest.mark.parametrize("mode, shown", [("interpret", "loss in one operator"),
                                         ("compile", "backward")])
def test_what_is_generated_for_an_h100_without_one(mode, shown):
    """Forward and backward, FlexAttention included: assembled by ptxas; run by triton's interpreter
    and compared with the CPU's gradients. The script itself asserts both."""
    command = [sys.executable, HERE / "results" / "without_gpu.py", mode, "--short"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and shown in done.stdout, done.stdout + done.stderr


def test_the_script_for_a_gpu_runs_at_toy_sizes():
    """results/gpu.py on a CPU: every part finds something, and a killed run resumes bit by bit."""
    command = [sys.executable, HERE / "results" / "gpu.py", "--smoke"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    parts = ["kernels", "speed", "tiles", "plain_causal", "llama", "members", "sampling", "resume"]
    for part in parts:
        assert report[part].pop("seconds") > 0 and "error" not in report[part], report[part]
        assert report[part], part
    assert report["left_out"] == [] and report["resume"]["bit_exact"]
    assert report["kernels"]["fp32, loss in one operator"] < 1e-5
    assert set(report["members"]["150k"]) == {"one by one", "stacked", "in processes"}


def test_a_copy_of_a_model_visits_a_device():
    model = tiny_gpt()
    assert train.on_device(model, "cpu") is model
    visitor = train.on_device(model, "meta")
    assert visitor.head.weight.is_meta and not model.head.weight.is_meta


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_an_ensemble_of_one_has_the_loss_of_its_run(world, dtype):
    """One precision of the logits in training and in averages, also in bf16."""
    result = train.train(tiny_config(dtype=dtype))
    alone = ensemble.evaluate_ensemble([result["name"]], "runs", torch.device("cpu"))
    assert alone["member_losses"] == [pytest.approx(result["val_loss"], rel=2e-7)]


def test_members_are_counted_without_weights(world, monkeypatch):
    """The process that starts members on a GPU must not hold memory there: no Run of its own."""
    def refuse(*_):
        raise AssertionError("a Run")
    monkeypatch.setattr(ensemble, "Run", refuse)
    gpu = torch.device("cuda")
    monkeypatch.setattr(ensemble, "use_device", lambda *_: gpu)
    ways = []
    monkeypatch.setattr(ensemble, "train_together", lambda configs: ways.append("stacked"))
    monkeypatch.setattr(ensemble, "run_all", lambda *_: ways.append("apart") or [1.0, 1.0])
    configs = ensemble.member_configs(tiny_config(), 2, ["seed"])
    ensemble.train_members(configs, 1, "auto")
    monkeypatch.setattr(ensemble, "STACK_BELOW", 67_056)  # of 67,056 parameters
    ensemble.train_members(configs, 1, "auto")
    assert ways == ["stacked", "apart"]


def test_cached_steps_equal_full_forward():
    for doc_mask in (True, False):
        model, tokens = tiny_gpt(doc_mask=doc_mask), random_tokens(3, 24)
        stepper = gpt.Stepper(model, 3)
        steps = torch.stack([stepper.step(tokens[:, t]) for t in range(24)], dim=1)
        full = model(tokens)
        assert (steps - full).abs().max() < 1e-5 * full.abs().max()


def test_sampling_in_bf16_remembers_in_bf16_and_stays_near():
    model, tokens = tiny_gpt(), random_tokens(3, 24)
    with train.autocast("bf16", torch.device("cpu")):
        stepper = gpt.Stepper(model, 3)
        steps = torch.stack([stepper.step(tokens[:, t]) for t in range(24)], dim=1)
    assert {cache.k.dtype for cache in stepper.caches} == {torch.bfloat16}
    full = model(tokens)
    assert steps.dtype == torch.float32
    assert 0 < (steps - full).abs().max() < 0.03 * full.abs().max()
    assert gpt.Stepper(model, 3).caches[0].v.dtype == torch.float32


def test_the_sampling_batch_fills_a_quarter_of_a_gpu(monkeypatch):
    shape = dict(vocab_size=128_256, end_of_text=0, context=4096, **gpt.SIZES["300m"])
    model = SimpleNamespace(config=gpt.GPTConfig(**shape))
    assert distill.sampling_batch([model], 10_000, "cpu", "fp32") == 64
    card = SimpleNamespace(total_memory=80 * 2 ** 30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: card)
    # 12 layers of 768 keys and values each
    window = 2 * 12 * 768 * 4096 * 2
    batch = distill.sampling_batch([model], 10_000, "cuda", "bf16")
    assert batch == 20 * 2 ** 30 // window
    assert distill.sampling_batch([model], 10_000, "cuda", "fp32") == batch // 2


def test_chunked_loss_and_gradients_equal_cross_entropy(monkeypatch):
    tokens, targets = train.inputs_and_targets(random_tokens(3, 24))
    gradients, calls = [], []
    real = gpt.checkpoint

    def counted(*args, **options):
        calls.append(args)
        return real(*args, **options)
    monkeypatch.setattr(gpt, "checkpoint", counted)
    for logits, chunks in ((72 * 60, 0), (20 * 60, 4)):  # of 72 predictions at a vocabulary of 60
        monkeypatch.setattr(gpt, "CHUNK_LOGITS", logits)
        model = tiny_gpt()
        calls.clear()
        nats = model(tokens, targets)
        nats.sum().backward()
        assert len(calls) == chunks
        gradients.append([parameter.grad for parameter in model.parameters()])
        logits = model(tokens)
        flat = logits[:, :-1].flatten(0, 1)
        expected = F.cross_entropy(flat, tokens[:, 1:].flatten(), reduction="none")
        assert torch.allclose(nats[:, :-1].flatten(), expected, rtol=1e-6)
        assert (nats[:, -1] == 0).all()
    reference = torch.autograd.grad(expected.sum(), list(model.parameters()))
    for plain, chunked, right in zip(*gradients, reference):
        assert torch.allclose(plain, right, rtol=1e-4, atol=1e-6)
        assert torch.allclose(chunked, right, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_the_loss_in_one_operator_has_the_gradients_of_cross_entropy(monkeypatch, dtype):
    """In three chunks, rows without a target among them, as a part of a larger expression."""
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)  # its inner step
    monkeypatch.setattr(gpt, "CHUNK_LOGITS", 20 * 60)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 24, 32, generator=generator, requires_grad=True)
    head = torch.nn.Linear(32, 60, bias=False)
    _, targets = train.inputs_and_targets(random_tokens(2, 24))
    targets[0, 5:9] = -1

    logits = F.linear(x, head.weight).flatten(0, 1)
    right = F.cross_entropy(logits, targets.flatten(), ignore_index=-1, reduction="sum")
    expected = torch.autograd.grad((right / 7) ** 2, (x, head.weight))
    with train.autocast(dtype, torch.device("cpu")):
        total = gpt.total_nats(x, head, targets)
    found = torch.autograd.grad((total / 7) ** 2, (x, head.weight))
    exact = dtype == "fp32"
    assert total.dtype == torch.float32
    assert float(total.detach()) == pytest.approx(float(right), rel=1e-6 if exact else 1e-3)
    for gradient, reference in zip(found, expected):
        assert gradient.dtype == torch.float32
        error = (gradient - reference).norm() / reference.norm()
        assert error < (1e-6 if exact else 1e-2)
    torch.library.opcheck(torch.ops.limitgpt.head_loss, (
        x.flatten(0, 1), head.weight, targets.flatten(), 3))


def test_initialization_and_first_loss():
    shape = gpt.SIZES["1.4m"]
    config = gpt.GPTConfig(vocab_size=1024, end_of_text=1023, context=256, **shape)
    model = gpt.GPT(config, seed=3)
    clipped = 0.98658  # standard deviation of a unit normal cut off at 3
    for name, weight in model.named_parameters():
        if weight.dim() == 1:
            assert (weight == 1).all()
            continue
        std = 1 / 128 if name == "embedding.weight" else weight.shape[1] ** -0.5
        assert abs(weight.std() / (clipped * std) - 1) < 0.02, name
        assert weight.abs().max() <= 3 * std, name
    tokens, targets = train.inputs_and_targets(random_tokens(4, 256, 1024))
    loss = model(tokens, targets).sum() / (targets >= 0).sum()
    assert abs(loss - math.log(1024)) < 0.6
    assert torch.equal(model.head.weight, gpt.GPT(model.config, seed=3).head.weight)
    assert not torch.equal(model.head.weight, gpt.GPT(model.config, seed=4).head.weight)


def test_parameter_counts_are_the_papers():
    counts = {"150m": (154_147_328, 22_813_184), "300m": (299_649_792, 102_648_576),
              "600m": (602_457_088, 339_788_800), "1.4b": (1_431_373_824, 906_037_248)}
    assert len(gpt.SIZES) == 16
    for name, size in gpt.SIZES.items():
        vocab_size = {1: 128256, 10: 8192, 100: 4096, 1000: 1024}[gpt.SCALE_OF[name]]
        with torch.device("meta"), pytest.MonkeyPatch.context() as patch:  # no memory, no values
            patch.setattr(gpt.GPT, "initialize", lambda self, generator: None)
            model = gpt.GPT(gpt.GPTConfig(vocab_size=vocab_size, end_of_text=0, context=64, **size))
        if name in counts:
            assert model.parameter_count() == counts[name][0]
            assert model.parameter_count(embeddings=False) == counts[name][1]
        # every size has its own shape's count and is near its name
        C, D = size["width"], size["width"] // size["heads"]
        layer = C * D * (2 * size["heads"] + 2 * size["kv_heads"]) + 3 * C * (7 * C // 2) + 2 * C
        total = 2 * vocab_size * C + size["layers"] * layer + C
        assert model.parameter_count() == total
        nominal = float(name[:-1]) * {"k": 1e3, "m": 1e6, "b": 1e9}[name[-1]]
        assert abs(total / nominal - 1) < 0.15, (name, total)


def test_flops_per_token_against_torchs_counter(monkeypatch):
    """torch counts every product of a plain attention, forward and backward.

    Ours halves attention for causality.
    """
    from torch.utils.flop_counter import FlopCounterMode

    def plain_attention(q, k, v, is_causal, enable_gqa):
        return (q @ k.transpose(-1, -2)).softmax(-1) @ v
    monkeypatch.setattr(F, "scaled_dot_product_attention", plain_attention)
    model, tokens = tiny_gpt(doc_mask=False, kv_heads=4), random_tokens(2, 24)
    with FlopCounterMode(display=False) as counter:
        model(*train.inputs_and_targets(tokens)).sum().backward()
    attention = 12 * 2 * 32 * 24  # 12 x layers x width x context
    assert counter.get_total_flops() == 48 * (model.flops_per_token() + attention // 2)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_training_bytes_against_what_autograd_keeps(dtype):
    """The estimate behind the micro-batch is the count of an eager pass, to a few percent."""
    model = gpt.GPT(gpt.GPTConfig(1024, 1023, 256, doc_mask=False, **gpt.SIZES["6m"]))
    tokens = 8 * 256
    kept = {}
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}

    def note(x):
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x
    hooks = torch.autograd.graph.saved_tensors_hooks(note, lambda x: x)
    with hooks, train.autocast(dtype, torch.device("cpu")):
        windows = random_tokens(8, 256, 1024)
        model(windows, windows).sum()
    counted = sum(size for pointer, size in kept.items() if pointer not in weights)
    estimate = model.training_bytes(tokens, dtype) - 16 * model.parameter_count()
    assert counted <= estimate < 1.2 * counted


def test_training_bytes_of_compiled_passes_against_the_generated_code():
    """Within 15% of every peak that results/without_gpu.py has read off what CUDA would run."""
    rows = (HERE / "results" / "gpu_memory.txt").read_text().splitlines()[2:]
    assert len(rows) >= 8
    for row in rows:
        size, vocab_size, windows, peak = row.replace(",", "").split("|")[1:5]
        size = size.strip()
        context = gpt.LADDER[gpt.SCALE_OF[size]]["context"]
        with torch.device("meta"):  # no memory, no values
            model = gpt.GPT(gpt.GPTConfig(int(vocab_size), 0, context, **gpt.SIZES[size]))
        estimate = model.training_bytes(int(windows) * context, "bf16", compiled=True)
        assert estimate == pytest.approx(float(peak) * 1e9, rel=0.15), row


def test_saved_weights_load_and_damaged_files_do_not(tmp_path):
    model = tiny_gpt(seed=5)
    model.save(tmp_path / "model.pt")
    loaded, tokens = gpt.GPT.load(tmp_path / "model.pt"), random_tokens(2, 24)
    assert loaded.config == model.config and torch.equal(loaded(tokens), model(tokens))
    whole = (tmp_path / "model.pt").read_bytes()
    for damaged in (whole[:len(whole) // 2], b"", b"not a model"):
        (tmp_path / "model.pt").write_bytes(damaged)
        with pytest.raises(ValueError, match="not a whole model file"):
            gpt.GPT.load(tmp_path / "model.pt")


LLAMA3_ROPE = dict(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                   original_max_position_embeddings=16)


@pytest.mark.parametrize("shape", [
    dict(), dict(kv_heads=4, tied=True, norm_eps=1e-6, inner=40, rope_theta=5e5),
    dict(rope_scaling=LLAMA3_ROPE)])
def test_hugging_face_llama_agrees_in_logits_loss_and_gradients(tmp_path, shape):
    """The same weights in transformers' LlamaForCausalLM, written by us and read back, in fp32."""
    transformers = pytest.importorskip("transformers")
    model, tokens = tiny_gpt(seed=3, doc_mask=False, **shape), random_tokens(2, 24)
    torch.nn.init.normal_(model.embedding.weight)  # the paper's tiny embeddings would hide mistakes
    gpt.export_hugging_face(model, tmp_path / "hf")
    theirs = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32)
    assert sum(p.numel() for p in theirs.parameters()) == model.parameter_count()
    theirs.save_pretrained(tmp_path / "theirs")  # the layout that transformers itself writes
    ours, again = (gpt.GPT.from_pretrained(tmp_path / folder) for folder in ("hf", "theirs"))
    assert dataclasses.replace(ours.config, end_of_text=59) == model.config == again.config
    for mine in (model, ours, again):
        found, expected = mine(tokens), theirs(tokens, labels=tokens)
        assert (found - expected.logits).abs().max() < 1e-4
        loss = mine(*train.inputs_and_targets(tokens)).sum() / (2 * 23)
        assert float(loss) == pytest.approx(float(expected.loss), rel=1e-5)
        mine.zero_grad(), theirs.zero_grad()
        loss.backward(), expected.loss.backward()
        gradients = dict(theirs.named_parameters())
        for name, parts in gpt.hugging_face_names(model.config).items():
            right = torch.cat([gradients[part].grad for part, _ in parts])
            gradient = mine.get_parameter(name).grad
            assert torch.allclose(gradient, right, rtol=1e-3, atol=1e-5), name


def test_export_command_writes_what_transformers_reads(world, capsys):
    transformers = pytest.importorskip("transformers")
    result = train.train(tiny_config(doc_mask=0))
    assert call(evaluation, result["name"], "--export_hf", "exported") == 0
    theirs = transformers.LlamaForCausalLM.from_pretrained(world / "exported")
    windows = prepare.cut_windows(prepare.load_data("tiny").val, 32)
    windows = torch.from_numpy(windows.astype(np.int64))
    with torch.no_grad():
        loss = float(theirs(windows, labels=windows).loss)
    assert loss == pytest.approx(result["val_loss"], rel=1e-5)
    # one run at a time, refused before anything is evaluated
    other = train.train(tiny_config(doc_mask=0, seed=1))
    capsys.readouterr()
    assert call(evaluation, result["name"], other["name"], "--export_hf", "again") == 2
    printed = capsys.readouterr()
    assert "one run, not 2" in printed.err and printed.out == ""
    assert not (world / "again").exists()


def test_an_export_is_whole_or_not_there(tmp_path, monkeypatch):
    safetensors = pytest.importorskip("safetensors")
    files = pytest.importorskip("safetensors.torch")
    real = files.save_file

    def contents(folder):
        return {path.name: path.read_bytes() for path in folder.iterdir()}

    gpt.export_hugging_face(tiny_gpt(seed=1), tmp_path / "old")
    before = contents(tmp_path / "old")
    assert set(before) == {"config.json", "model.safetensors"}

    def full_disk(weights, path, metadata):
        real(weights, path, metadata)
        path.write_bytes(path.read_bytes()[:1000])
        raise safetensors.SafetensorError("no space left on device")
    monkeypatch.setattr(files, "save_file", full_disk)
    for name in ("old", "new"):
        with pytest.raises(OSError, match=f"cannot write .*{name}.*no space left"):
            gpt.export_hugging_face(tiny_gpt(seed=2), tmp_path / name)
    # no new folder, no leftovers, and the older export as it was
    assert [path.name for path in tmp_path.iterdir()] == ["old"]
    assert contents(tmp_path / "old") == before


def test_fields_that_are_null_have_their_defaults(tmp_path):
    """Newer versions of transformers write null for what an absent field means as well."""
    pytest.importorskip("safetensors")
    model = tiny_gpt(kv_heads=4, doc_mask=False)
    gpt.export_hugging_face(model, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    nulls = ("head_dim", "num_key_value_heads", "rope_parameters", "rope_scaling", "bos_token_id")
    (tmp_path / "config.json").write_text(json.dumps({**config, **dict.fromkeys(nulls)}))
    assert gpt.GPT.from_pretrained(tmp_path).config == model.config


def test_other_architectures_are_refused(tmp_path):
    pytest.importorskip("safetensors")
    gpt.export_hugging_face(tiny_gpt(), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    yarn = {"rope_type": "yarn", "rope_theta": 1e4}
    for key, value, message in (("model_type", "mistral", "model_type is mistral, not llama"),
                                ("attention_bias", True, "attention_bias is True, not False"),
                                ("head_dim", 16, "head_dim is 16, not 8"),
                                ("hidden_act", "gelu", "hidden_act is gelu, not silu"),
                                ("rope_parameters", yarn, "rope_type is yarn, not default")):
        (tmp_path / "config.json").write_text(json.dumps({**config, key: value}))
        with pytest.raises(ValueError, match=f"not a Llama that .*: {message}"):
            gpt.GPT.from_pretrained(tmp_path)
    del config["hidden_size"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="lacks hidden_size"):
        gpt.GPT.from_pretrained(tmp_path)
    gpt.export_hugging_face(tiny_gpt(), tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(ValueError, match="no whole config.json and"):
        gpt.GPT.from_pretrained(tmp_path)
    weights.unlink()
    with pytest.raises(ValueError, match="lacks model.embed_tokens.weight and"):
        gpt.GPT.from_pretrained(tmp_path)


def test_samples_follow_the_models_distribution():
    models = [tiny_gpt(seed=1), tiny_gpt(seed=2)]
    tokens = gpt.sample(models, 20_000, 3, torch.Generator().manual_seed(0))
    assert tokens.shape == (20_000, 3) and (tokens[:, 0] == 59).all()
    with torch.no_grad():  # second token: the logit average after end-of-text
        p = sum(model(tokens[:1, :1])[0, 0] for model in models).div(2).softmax(0)
        expected, counts = 20_000 * p, torch.bincount(tokens[:, 1], minlength=60)
        assert ((counts - expected) ** 2 / expected).sum() < 59 + 4 * math.sqrt(2 * 59)
        # third token given the most common second one
        common = int(counts.argmax())
        q = sum(model(torch.tensor([[59, common]]))[0, 1] for model in models).div(2).softmax(0)
        third = torch.bincount(tokens[tokens[:, 1] == common, 2], minlength=60)
        expected = third.sum() * q
        assert ((third - expected) ** 2 / expected).sum() < 59 + 4 * math.sqrt(2 * 59)


# --------------------------------------------------------------------------------------------------
# train.py

def test_recipes_hold_the_papers_settings():
    # the paper's member settings (epochs, weight decay) at 200M, 400M, 800M and 1.6B tokens
    members = {"150m": [(32, .4), (64, .4), (128, .2), (128, .1)], "300m": [(32, .8), (32, .4), (32, .2), (64, .2)],
               "600m": [(16, 1.6), (16, .8), (32, .2), (32, .4)], "1.4b": [(16, 1.6), (16, 1.6), (16, .8), (16, .4)]}
    for size, rows in members.items():
        for budget, (epochs, weight_decay) in enumerate(rows):
            found = train.recipe_settings("member", size, budget)
            assert (found[0], found[2]) == (epochs, weight_decay)
            assert found[1] == train.recipe_settings("regularized", size, budget)[1]
            # AdamW's memory in epochs is nearly constant over the paper's regularized settings
            epochs, lr, weight_decay = train.recipe_settings("regularized", size, budget)
            assert 0.19 < 1 / (lr * weight_decay * 800 * 2 ** budget) < 0.53
            assert train.recipe_settings("standard", size, budget)[2] == 0.1


def test_learning_rate_schedule():
    assert [train.lr_at(step, 1000, 2.0) for step in (0, 5, 10)] == [0.0, 1.0, 2.0]  # 1% of 1,000 steps
    assert train.lr_at(505, 1000, 2.0) == pytest.approx(1.0) and train.lr_at(1000, 1000, 2.0) == 0.0
    assert train.lr_at(999, 1000, 2.0) < 1e-5 and train.lr_at(0, 50, 2.0) == 2.0


def test_epochs_are_permutations():
    config = train.TrainConfig(batch_size=4, seed=1, synthetic_weight=0.0)
    orders = [train.epoch_order(config, epoch, 103) for epoch in range(3)]
    for order in orders:
        assert order.shape == (25, 4) and len(set(order.flatten())) == 100 and order.max() < 103
    assert (orders[0] != orders[1]).any() and (orders[0] == train.epoch_order(config, 0, 103)).all()
    assert (orders[0] != train.epoch_order(dataclasses.replace(config, seed=2), 0, 103)).any()


def test_once_keeps_one_order_and_seeds_are_apart():
    config = train.TrainConfig(batch_size=4, seed=1, synthetic_weight=0.0)
    once = [train.epoch_order(dataclasses.replace(config, shuffle="once"), epoch, 103) for epoch in (0, 5)]
    assert (once[0] == once[1]).all() and (once[0] == train.epoch_order(config, 0, 103)).all()
    moved = dataclasses.replace(config, seed=7, data_seed=1)
    assert (train.epoch_order(moved, 3, 103) == train.epoch_order(config, 3, 103)).all()


def test_init_seed_and_data_seed_part_what_seed_joins(world):
    base = tiny_config(seed=3)
    assert train.run_name(tiny_config(seed=3, init_seed=3, data_seed=3)) == train.run_name(base)
    runs = {name: train.Run(tiny_config(**seeds), None) for name, seeds in dict(
        base=dict(seed=3), init=dict(seed=3, init_seed=4), data=dict(seed=3, data_seed=4)).items()}
    weights = {name: run.model.head.weight for name, run in runs.items()}
    orders = {name: run.order(1) for name, run in runs.items()}
    assert torch.equal(weights["base"], weights["data"]) and not torch.equal(weights["base"], weights["init"])
    assert (orders["base"] == orders["init"]).all() and (orders["base"] != orders["data"]).any()
    assert len({run.config.seed for run in runs.values()}) == 1
    assert len({train.run_name(run.config) for run in runs.values()}) == 3


def test_document_shuffle_packs_the_same_documents_anew(world):
    run = train.Run(tiny_config(shuffle="document"), None)
    documents, windows = [], []
    for epoch in (0, 1):
        order = run.order(epoch)
        windows.append(run.train.flatten().tolist())
        starts = np.flatnonzero(np.array(windows[-1]) == 319)
        documents.append(Counter(tuple(document) for document in np.split(windows[-1], starts)))
        assert sorted(order.flatten()) == list(range(128)) and Counter(windows[-1]) == Counter(run.tokens.tolist())
    assert windows[0] != windows[1] and sum((documents[0] & documents[1]).values()) >= len(documents[0]) - 2
    # the real thing trains and has its own name
    assert train.train(run.config)["steps"] == 64
    assert train.run_name(run.config) != train.run_name(tiny_config())


def test_subset_seed_draws_whole_documents_of_the_pool(world):
    data, drawn = prepare.load_data("tiny"), {}
    pool = {tuple(d) for d in np.split(np.asarray(data.train), np.load(world / "data/tiny/train_docs.npy")[1:])}
    for seed in (None, 0, 1):
        tokens = train.budget_tokens(tiny_config(subset_seed=seed), data)
        drawn[seed] = {tuple(d) for d in np.split(tokens, np.flatnonzero(tokens == 319)[1:])[:-1]}  # the last is cut
        assert len(tokens) == 4096 and drawn[seed] <= pool
    assert len(drawn[0] & drawn[1]) < 0.5 * len(drawn[0]) and drawn[0] != drawn[None]
    assert len({train.run_name(tiny_config(subset_seed=seed)) for seed in (None, 0, 1)}) == 3


def test_synthetic_windows_have_their_share_and_take_turns():
    config = train.TrainConfig(batch_size=4, synthetic_weight=0.75)
    orders = np.concatenate([train.epoch_order(config, epoch, 40, 300).flatten() for epoch in range(5)])
    real, synthetic = orders[orders < 40], orders[orders >= 40]
    assert len(synthetic) == 3 * len(real) and set(Counter(real.tolist()).values()) == {5}
    assert set(Counter(synthetic.tolist()).values()) == {2} and len(set(synthetic)) == 300  # 600 draws from 300


def test_steps_equal_hand_written_adamw(world):
    """Three Run.train_step in float64 from the definitions: mean loss, clipping, schedule, decay of Linears."""
    config = tiny_config(weight_decay=0.7, lr=0.01)
    run = train.Run(config, None)
    run.model.double()
    run.model.head.weight.data *= 20  # a gradient norm above 1, so that clipping shows
    weights = {name: p.detach().clone().requires_grad_() for name, p in run.model.named_parameters()}
    first, second = ({name: torch.zeros_like(p) for name, p in weights.items()} for _ in range(2))
    decayed = {name for name in weights if name.split(".")[-2] in ("qkv", "out", "gate_up", "down", "head")}
    assert len(decayed) == 4 * 2 + 1 and not any("norm" in name or "embedding" in name for name in decayed)
    for step, order in enumerate(([5, 2, 7, 1], [0, 3, 4, 6], [9, 8, 11, 10]), 1):
        tokens = run.train[order].long()
        logits = torch.func.functional_call(run.model, weights, (tokens,))[:, :-1].double()
        loss = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        gradients = dict(zip(weights, torch.autograd.grad(loss, list(weights.values()))))
        norm = torch.sqrt(sum((g ** 2).sum() for g in gradients.values()))
        assert norm > 1
        run.step = 10 * step
        found_loss, found_norm = run.train_step(run.model, torch.tensor(order))
        assert (float(found_loss), float(found_norm)) == (pytest.approx(float(loss), rel=1e-6),
                                                          pytest.approx(float(norm), rel=1e-5))
        lr = 0.01 * (1 + math.cos(math.pi * run.step / 64)) / 2  # 64 steps: no warm-up
        with torch.no_grad():
            for name, p in weights.items():
                g = gradients[name] / norm
                first[name] = 0.9 * first[name] + 0.1 * g
                second[name] = 0.95 * second[name] + 0.05 * g ** 2
                p *= 1 - lr * (0.7 if name in decayed else 0)
                p -= lr * first[name] / (1 - 0.9 ** step) / (torch.sqrt(second[name] / (1 - 0.95 ** step)) + 1e-8)
    for name, parameter in run.model.named_parameters():
        assert (parameter - weights[name]).abs().max() < 1e-5 * weights[name].abs().max(), name


def test_accumulated_gradients_equal_the_full_batch(world):
    weights = []
    for micro_batch_size in (0, 1, 3):
        run = train.Run(tiny_config(micro_batch_size=micro_batch_size), None)
        run.model.double()
        run.step = 5
        run.train_step(run.model, torch.tensor([3, 1, 4, 2]))
        weights.append(torch.cat([parameter.detach().flatten() for parameter in run.model.parameters()]))
    assert (weights[0] - weights[1]).abs().max() < 1e-10 and (weights[0] - weights[2]).abs().max() < 1e-10


def test_the_micro_batch_is_the_largest_that_fits(world, monkeypatch):
    run = train.Run(tiny_config(), None)
    assert run.machine["micro_batch_size"] == 4
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert train.fitting_micro_batch(run, 12, False) == 12  # 12 windows of 32 tokens are nothing
    # a window's need, of 70% of the memory
    for need, fitting in ((memory / 10, 6), (memory / 6, 4), (memory, 1)):
        monkeypatch.setattr(run.model, "training_bytes", lambda tokens, *_: tokens / 32 * need)
        assert train.fitting_micro_batch(run, 12, False) == fitting
    # the tokens on the device count
    held = run.memory_bytes(1, False) - memory
    assert held == 4 * 32 * (len(run.train) + len(run.val))
    # of three jobs that share a GPU each has a third
    monkeypatch.setattr(run, "device", SimpleNamespace(type="cuda"))
    card = SimpleNamespace(total_memory=3 * memory)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: card)
    monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda device: 1 / 3)
    monkeypatch.setattr(run.model, "training_bytes", lambda tokens, *_: tokens / 32 * memory / 6)
    assert train.fitting_micro_batch(run, 12, False) == 4


def test_evaluation_covers_every_window_once():
    model, windows = tiny_gpt(), random_tokens(7, 24).int()
    with torch.no_grad():
        logits = model(windows.long())[:, :-1].flatten(0, 1)
    expected = F.cross_entropy(logits.double(), windows[:, 1:].long().flatten())
    for batch_size in (1, 3, 7, 10):
        assert train.evaluate(model, windows, batch_size) == pytest.approx(float(expected), rel=1e-6)


def test_names_identify_what_is_computed(world):
    base = tiny_config()
    same = tiny_config(recipe="member", out="elsewhere", threads=2, log_every=3)
    assert train.run_name(base) == train.run_name(same)
    others = [tiny_config(**change) for change in (dict(seed=1), dict(lr=1e-3), dict(weight_decay=0.1), dict(epochs=3),
              dict(tokens=8192), dict(context=16), dict(batch_size=8), dict(doc_mask=0), dict(size="300k"))]
    others.append(dataclasses.replace(base, data_hash="another"))
    assert len({train.run_name(config) for config in [base, *others]}) == 11
    assert tiny_config(tokens="8_192").tokens == 8192


def read_rows(folder):
    """The log's measured rows without timings; headers left out."""
    rows = map(json.loads, (folder / "log.jsonl").read_text().splitlines())
    timings = ("tokens_per_second", "mfu", "seconds")
    return [{key: value for key, value in row.items() if key not in timings} for row in rows if "git" not in row]


def start(*arguments, env=None):
    command = [sys.executable, HERE / "train.py", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)


def kill_and_resume(begin, folder, kills):
    """Begin a run, kill it with SIGKILL somewhere after its next few log lines, begin it again: `kills` times, then to
    the end. Returns how many kills met a running process and the steps from which it went on."""
    def rows():
        return (folder / "log.jsonl").read_text().count('"loss"') if (folder / "log.jsonl").exists() else 0

    rng, met = np.random.default_rng(0), 0
    for _ in range(kills):
        processes, before = begin(), rows()
        while rows() < before + 2 and processes[0].poll() is None:
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.1))
        met += all([process.poll() is None for process in processes])
        for process in processes:
            process.kill()
            process.communicate()
        assert not (folder / "result.json").exists()
    for process in begin():
        printed = process.communicate()
        assert process.returncode == 0, printed
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return met, [line["step"] for line in lines if "git" in line]


@pytest.mark.parametrize("compiled, threads", [(0, 1), (1, 1), (1, 2)])
def test_a_killed_run_resumes_bit_exactly(world, compiled, threads):
    if compiled and not HAS_COMPILER:
        pytest.skip("no C++ compiler here")
    options = (*TINY, "--compile", compiled, "--checkpoint_seconds", 0, "--epochs", 8 * KILLS, "--eval_every", 20,
               "--threads", threads)
    name = train.run_name(tiny_config(epochs=8 * KILLS))
    whole = start(*options, "--out", "whole")
    met, starts = kill_and_resume(lambda: [start(*options, "--out", "killed")], world / "killed" / name, KILLS)
    assert met == KILLS and len(starts) == KILLS + 1 and 0 == starts[0] < starts[1] < starts[-1]
    assert whole.communicate() and whole.returncode == 0
    assert read_rows(world / "killed" / name) == read_rows(world / "whole" / name)
    ends = [torch.load(world / out / name / "model.pt", weights_only=True)["weights"] for out in ("whole", "killed")]
    assert all(torch.equal(ends[0][key], ends[1][key]) for key in ends[0])
    assert not (world / "killed" / name / "resume.pt").exists()


def start_two(*arguments):
    """Two gloo processes on loopback with the environment that torchrun gives them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [start(*arguments, env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}) for rank in (0, 1)]


def test_two_processes_have_the_losses_of_one(world):
    """Same global batch, gradients accumulated; killed and resumed on the way, which changes nothing."""
    options = (*TINY, "--epochs", 4 * KILLS, "--micro_batch_size", 1, "--checkpoint_seconds", 0)
    one = train.train(tiny_config(epochs=4 * KILLS, micro_batch_size=1, out="one"))
    whole, killed = (world / out / one["name"] for out in ("whole", "killed"))
    for process in start_two(*options, "--out", "whole"):
        printed = process.communicate()
        assert process.returncode == 0, printed
    met, starts = kill_and_resume(lambda: start_two(*options, "--out", "killed"), killed, KILLS)
    assert met == KILLS and len(starts) == KILLS + 1 and 0 == starts[0] < starts[1] < starts[-1]
    assert read_rows(killed) == read_rows(whole)
    rows = list(zip(read_rows(whole), read_rows(world / "one" / one["name"]), strict=True))
    for row, right in rows[:40]:  # 8 epochs; over many more (KILLS=20) the order of sums alone drives them apart
        assert row == {key: pytest.approx(value, rel=1e-4) for key, value in right.items()}
    ends = [torch.load(folder / "model.pt", weights_only=True)["weights"] for folder in (whole, killed)]
    assert all(torch.equal(ends[0][key], ends[1][key]) for key in ends[0])
    for process in start_two(*TINY, "--batch_size", 3):
        assert "cannot be shared by 2 processes" in process.communicate()[1] and process.returncode == 2


def test_torchrun_starts_the_processes(world):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2",
               HERE / "train.py", *map(str, TINY), "--json"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["machine"]["processes"] == 2 and result["machine"]["micro_batch_size"] == 2
    assert result["val_loss"] == pytest.approx(train.train(tiny_config(out="alone"))["val_loss"], rel=1e-4)


def test_a_finished_run_is_left_alone(world, capsys):
    assert call(train, *TINY, "--json") == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    folder = world / "runs" / result["name"]
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert call(train, *TINY) == 0 and "finished" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert {"val_loss", "train_loss", "params", "params_nonembedding", "tokens", "tokens_seen", "epochs", "lr", "seed",
            "weight_decay", "tau_epochs", "size", "data", "recipe", "steps", "seconds", "tokens_per_second", "flops",
            "mfu"} <= set(result)
    assert result["steps"] == 64 and result["tokens_seen"] == 8192 and result["val_loss"] < math.log(320) - 0.5
    assert result["tau_epochs"] == pytest.approx(1 / (0.003 * 0.5 * 32))
    # the loss is that of the saved weights, over all validation windows
    windows = torch.from_numpy(prepare.cut_windows(prepare.load_data("tiny").val, 32).astype(np.int64))
    with torch.no_grad():
        logits = gpt.GPT.load(folder / "model.pt")(windows)[:, :-1].flatten(0, 1)
    assert result["val_loss"] == pytest.approx(float(F.cross_entropy(logits, windows[:, 1:].flatten())), rel=1e-6)


def test_a_folder_in_use_is_refused_and_a_dead_owner_is_not(world, capsys, monkeypatch):
    folder = world / "runs" / train.run_name(tiny_config())
    folder.mkdir(parents=True)
    code = f"import sys, time; sys.path.insert(0, {str(HERE)!r}); import train; from pathlib import Path\n" \
           f"with train.claim(Path({str(folder)!r})): print('held', flush=True); time.sleep(600)"
    owner = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert owner.stdout.readline() == "held\n"
    assert f"in use by process {owner.pid}" in refused(capsys, train, *TINY)
    assert not (folder / "config.json").exists()
    owner.kill()
    owner.wait()
    assert call(train, *TINY) == 0

    # another host's lock counts until its heartbeat has been silent for long enough
    lock = folder / "lock"
    lock.write_text("process 1 on elsewhere")
    with pytest.raises(prepare.InputError, match="in use by process 1 on elsewhere"), train.claim(folder):
        pass
    os.utime(lock, (time.time() - train.LOCK_SILENCE - 1,) * 2)
    with train.claim(folder):
        assert f"process {os.getpid()} on " in lock.read_text()
        with pytest.raises(prepare.InputError, match=f"in use by process {os.getpid()}"), train.claim(folder):
            pass
    assert lock.read_text() == ""
    # who was taken for dead and was only slow stops at its next heartbeat and leaves the new owner's lock alone
    monkeypatch.setattr(train, "LOCK_SILENCE", 0)
    with pytest.raises(train.InUse, match="which took over"), train.claim(folder) as heartbeat:
        heartbeat()
        lock.write_text("process 1 on elsewhere")
        heartbeat()
    assert lock.read_text() == "process 1 on elsewhere"


def test_a_loss_that_is_not_finite_stops_the_run(world, monkeypatch):
    """Its message says whether there is a checkpoint: here none, then one of before."""
    settings = dataclasses.replace(tiny_config(), lr=1e38, checkpoint_seconds=0.0)
    folder = world / "runs" / train.run_name(settings)
    with pytest.raises(train.Diverged, match=r"not finite from step 1 on.*\(nothing was saved\).*lower --lr"):
        train.train(settings)
    assert not (folder / "result.json").exists() and not (folder / "resume.pt").exists()
    later = tiny_config(checkpoint_seconds=0.0, seed=1)
    real = train.Run.train_step

    def poisoned(run, *arguments):
        loss, norm = real(run, *arguments)
        return loss * (math.nan if run.step == 20 else 1.0), norm
    monkeypatch.setattr(train.Run, "train_step", poisoned)
    with pytest.raises(train.Diverged, match="from step 20 on.*its last good checkpoint stays"):
        train.train(later)
    path = world / "runs" / train.run_name(later) / "resume.pt"
    assert torch.load(path, weights_only=True)["step"] == 16


def test_a_full_disk_during_a_checkpoint_loses_nothing(world, monkeypatch):
    config = tiny_config(checkpoint_seconds=0.0)
    whole = train.train(dataclasses.replace(config, out="whole"))
    folder, real_save, calls = world / "runs" / train.run_name(config), torch.save, []

    def save(state, file):
        calls.append(state)
        if len(calls) == 3:
            file.write(b"half of a checkpoint")
            raise RuntimeError("[enforce fail at inline_container.cc] unexpected pos")
        real_save(state, file)
    monkeypatch.setattr(torch, "save", save)
    with pytest.raises(prepare.InputError, match="resume.pt.*free some disk space"):
        train.train(config)
    assert torch.load(folder / "resume.pt", weights_only=True)["step"] == 16 and not list(folder.glob(".*.tmp"))
    result = train.train(config)
    assert result["val_loss"] == whole["val_loss"]


def test_a_checkpoint_of_another_machine_or_damaged_is_refused(world, monkeypatch):
    config = tiny_config(checkpoint_seconds=0.0)
    monkeypatch.setattr(train, "write_json", lambda path, value: (_ for _ in ()).throw(KeyboardInterrupt)
                        if path.name == "result.json" else prepare.write_json(path, value))
    with pytest.raises(KeyboardInterrupt):  # stopped just before the end
        train.train(config)
    monkeypatch.undo()
    os.chdir(world)
    path = world / "runs" / train.run_name(config) / "resume.pt"
    for change in (dict(threads=2), dict(micro_batch_size=1)):
        with pytest.raises(prepare.InputError, match="would not be exact.*delete it to start"):
            train.train(dataclasses.replace(config, **change))
    whole = path.read_bytes()
    path.write_bytes(whole[:1000])
    with pytest.raises(prepare.InputError, match="damaged.*delete it"):
        train.train(config)
    assert path.read_bytes() == whole[:1000]
    path.unlink()
    assert train.train(dataclasses.replace(config, threads=2))["steps"] == 64


@pytest.mark.parametrize("options, message", [
    (["--colour", "red"], "unrecognized arguments"), (["--size", "7b"], "invalid choice: '7b' (choose from"),
    (["--data", "nothing"], "no data set data/nothing (there: tiny)"), (["--recipe", "best"], "invalid choice"),
    (["--data", "../data/tiny"], "../data/tiny is a path"),
    (["--weight_decay", "-0.1"], "out of range"), (["--lr", "nan"], "out of range"),
    (["--epochs", "0"], "out of range"), (["--epochs", "two"], "invalid int"),
    (["--tokens", "10_000_000"], "is more than the"),
    (["--tokens", "100"], "do not fill one batch"), (["--tokens", "many"], "neither a number"),
    (["--batch_size", "4096"], "do not fill one batch"), (["--compile", "maybe"], "invalid choice"),
    (["--compile", "graphs", "--device", "cpu"], "needs CUDA"),
    (["--seed", "-1"], "out of range"), (["--context", "0"], "out of range"), (["--batch_size", "0"], "out of range"),
    (["--device", "meta"], "cannot be used"), (["--device", "tpu9"], "cannot be used"),
    (["--synthetic", "tiny"], "go together"), (["--dtype", "fp8"], "choose from")])
def test_bad_options_are_refused(world, capsys, options, message):
    assert message in refused(capsys, train, *TINY, *options)
    assert not (world / "runs").exists()


def test_compilation_that_was_asked_for_is_not_left_out(world, capsys, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert "needs no-such-compiler, which is not here" in refused(capsys, train, *TINY, "--compile", 1)
    assert train.use_compile("auto", torch.device("cpu")) is False and "running eager" in capsys.readouterr().out


def test_untuned_settings_come_from_the_nearest_budget_and_keep_the_memory_in_epochs(world, capsys):
    def tau(epochs_and_more, steps):
        return 1 / (epochs_and_more[1] * epochs_and_more[2] * steps)

    # twice the tokens at the same size: 409 steps an epoch instead of 204
    settings, where = train.nearest_settings("regularized", "300k", 419_430, 409)
    assert settings[:2] == (32, 3e-3) and where == "300k at 209,715 tokens"
    assert tau(settings, 409) == pytest.approx(tau((32, 3e-3, 1.6), 204), rel=0.02)
    # the same rung of the nearest scale, at the nearest budget
    assert train.nearest_settings("regularized", "14m", 3_000_000, 400)[1] == "1.4m at 209,715 tokens"
    assert train.nearest_settings("regularized", "15m", 70_000_000, 2000)[1] == "150m at 838,860,800 tokens"
    # the member rule holds there, and the standard recipe's weight decay is 0.1 by definition
    assert train.nearest_settings("member", "300k", 209_715, 204)[0] == (64, 3e-3, 0.8)
    assert train.nearest_settings("standard", "3m", 2_097_152, 512)[0] == (16, 1e-2, 0.1)
    # a student of any size starts, from the nearest rung that has one
    assert train.nearest_settings("student", "600k", 209_715, 204)[1] == "300k at 209,715 tokens"

    assert call(train, "--data", "tiny", "--size", "300k", "--context", 32, "--dry_run", "--json") == 0
    said, *_, last = capsys.readouterr().out.splitlines()
    plan, size = json.loads(last), len(prepare.load_data("tiny").train)
    assert f"the budget is all {size:,} train tokens of tiny; regularized 300k is not tuned" in said
    assert "--tune" in said and plan["steps"] == 32 * (size // 32 // 4)
    # where all settings are given or tuned nothing is said
    assert call(train, *TINY, "--dry_run", "--json") == 0
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_every_option_that_changes_what_is_computed_makes_another_setting():
    """Runs count as seeds of one setting by its hash, so no list of keys can forget a new option."""
    @dataclasses.dataclass
    class WithDropout(train.TrainConfig):
        dropout: float = train.option(0.0, "share of activations set to zero", "recipe")

    base = train.TrainConfig(tokens=4096, epochs=2, lr=1e-3, weight_decay=0.1)
    same, other = (WithDropout(**dataclasses.asdict(base), dropout=share) for share in (0.0, 0.1))
    assert train.run_name(same) == train.run_name(base) != train.run_name(other)
    assert train.setting_of(same) == train.setting_of(base) != train.setting_of(other)
    seeds = [dataclasses.replace(base, **{name: 7}) for name in train.SEEDS]
    assert {train.setting_of(config) for config in seeds} == {train.setting_of(base)}
    assert len({train.run_name(config) for config in [base, *seeds]}) == 4
    changed = {"data": "mine", "size": "600k", "tokens": 8192, "subset_seed": 0, "epochs": 4, "lr": 1e-2,
               "weight_decay": 0.2, "context": 64, "batch_size": 8, "shuffle": "once", "doc_mask": 0,
               "synthetic": "sampled", "synthetic_weight": 0.5, "kl_weight": 0.5, "kl_temperature": 2.0, "kl_on": "real",
               "dtype": "bf16", "data_hash": "a", "synthetic_hash": "b", "teachers": ("a",)}
    fields = {f.name for f in dataclasses.fields(base) if f.metadata.get("identity", True)}
    assert fields == {*changed, *train.SEEDS}
    settings = {train.setting_of(dataclasses.replace(base, **{name: value})) for name, value in changed.items()}
    assert len(settings | {train.setting_of(base)}) == len(changed) + 1


def test_the_search_walks_the_papers_grid():
    config = train.TrainConfig(epochs=16, lr=3e-3, weight_decay=0.8)

    def walk(axis, direction, steps):
        found = [config]
        for _ in range(steps):
            near = train.neighbours(found[-1], [axis])
            found.append(near[-1] if direction == "up" else near[0])
        return [getattr(c, axis) for c in found]
    assert walk("lr", "down", 4) == [3e-3, 1e-3, 3e-4, 1e-4, 3e-5] and walk("lr", "up", 2) == [3e-3, 1e-2, 3e-2]
    assert walk("epochs", "up", 3) == [16, 32, 64, 128] and walk("epochs", "down", 4) == [16, 8, 4, 2, 1]
    assert walk("weight_decay", "up", 2) == [0.8, 1.6, 3.2] and walk("weight_decay", "down", 4)[-2:] == [0.1, 0.0]
    first = dataclasses.replace(config, epochs=1)
    assert [near.epochs for near in train.neighbours(first, ["epochs"])] == [2]
    assert len(train.neighbours(config, list(train.GRID))) == 6
    with pytest.raises(prepare.InputError, match="--lr 0.002 is not on the search's grid: 1e-05, 3e-05"):
        train.neighbours(dataclasses.replace(config, lr=2e-3), ["lr"])


def make_up_losses(monkeypatch, loss):
    """Let run_all() ask a formula instead of training; returns the list of what it was asked."""
    asked = []

    def run_all(configs, jobs, memo):
        asked.extend(configs)
        return [loss(config) for config in configs]
    monkeypatch.setattr(train, "run_all", run_all)
    return asked


def test_the_search_ends_at_a_local_optimum_and_moves_away_from_a_lucky_seed(monkeypatch):
    def loss(config):  # a bowl with its bottom at 32 epochs, lr 1e-2, weight decay 0.4
        bowl = (math.log2(config.epochs / 32) ** 2 + 4 * math.log10(config.lr / 1e-2) ** 2
                + math.log2(max(config.weight_decay, 0.05) / 0.4) ** 2)
        place = (config.epochs, config.lr, config.weight_decay, config.seed)
        lucky = -0.11 if place == (64, 1e-2, 0.4, 5) else 0.0  # there, and on seed 5 alone
        return 3.5 + 0.1 * bowl + 0.002 * (config.seed - 6) + lucky
    start = train.TrainConfig(tokens=4096, epochs=8, lr=1e-3, weight_decay=0.1, seed=5)
    axes = list(train.GRID)
    make_up_losses(monkeypatch, loss)
    assert train.descend(start, axes, 1, {}).epochs == 64
    assert train.tune(start, axes, 1, 1, {}).epochs == 64  # one seed knows no better
    found = train.tune(start, axes, 3, 1, {})
    assert (found.epochs, found.lr, found.weight_decay, found.seed) == (32, 1e-2, 0.4, 5)

    # a bowl flatter than the noise: the near neighbours get all seeds, and a tie is no reason to move
    asked = make_up_losses(monkeypatch, lambda c: 3.5 + 1e-3 * math.log2(c.epochs / 64) ** 2 + 0.02 * (c.seed % 3))
    place = dataclasses.replace(start, epochs=32, seed=0)
    assert train.better_neighbour(place, ["epochs"], 3, 1, {}) is None
    assert {(c.epochs, c.seed) for c in asked} == {(e, seed) for e in (16, 32, 64) for seed in range(3)}

    # neighbours that diverge are no better, and a center that does is refused; the search ends in both cases
    make_up_losses(monkeypatch, lambda c: 3.5 + 0.01 * c.seed if (c.epochs, c.lr) == (32, 1e-2) else math.inf)
    at_edge = dataclasses.replace(start, epochs=32, lr=1e-2, seed=0)
    assert train.tune(at_edge, ["epochs", "lr"], 3, 1, {}) == at_edge
    make_up_losses(monkeypatch, lambda c: math.inf)
    with pytest.raises(prepare.InputError, match="diverges on some seed"):
        train.tune(dataclasses.replace(start, epochs=32), ["epochs"], 3, 1, {})


def start_search(*arguments):
    options = (*TINY, "--weight_decay", 0.4, "--tune", "--over", "weight_decay", *arguments)
    command = [sys.executable, HERE / "train.py", *map(str, options)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)


def test_four_searches_share_the_work_and_two_are_killed(world):
    """Each run is trained by one of them, what the dead had begun is taken over, all find the same optimum."""
    options = ("--seeds", 2, "--epochs", 30, "--checkpoint_seconds", 0, "--json")
    searches = [start_search(*options) for _ in range(4)]
    begun = []
    while not begun and None in [search.poll() for search in searches]:
        time.sleep(0.001)
        begun = list(world.glob("runs/tiny*/resume.pt"))
    # one that is training now, and another; each with the run in a process of its own
    owner = os.getpgid(int(begun[0].with_name("lock").read_text().split()[1]))
    searches.sort(key=lambda search: search.pid != owner)
    for search in searches[:2]:
        os.killpg(search.pid, signal.SIGKILL)
        search.communicate()
    printed = [search.communicate() for search in searches[2:]]
    assert [search.returncode for search in searches] == [-9, -9, 0, 0], printed
    first, second = (json.loads(out.splitlines()[-1]) for out, _ in printed)
    assert first == second
    runs = [json.loads(path.read_text()) for path in world.glob("runs/tiny*/result.json")]
    losses = {(run["weight_decay"], run["seed"]): run["val_loss"] for run in runs}
    assert len(losses) == len(runs) == len(list(world.glob("runs/tiny*")))  # every claim ended in a result
    assert len([line for out, _ in printed for line in out.splitlines() if ": val_loss" in line]) <= len(runs)
    center = first["weight_decay"]
    assert first["losses"] == [losses[center, seed] for seed in (0, 1)]
    for neighbour in (center / 2, center * 2):
        values = [losses[key] for key in ((neighbour, 0), (neighbour, 1)) if key in losses]
        assert np.mean(values) > first["loss"] - 0.1 and values[0] >= losses[center, 0] or len(values) == 2
    # asked again, with two at once, it trains nothing
    again = start_search(*options, "--jobs", 2)
    out, _ = again.communicate()
    assert again.returncode == 0 and ": val_loss" not in out and json.loads(out.splitlines()[-1]) == first


def test_a_search_accepts_committed_results_and_reports_what_fails(world, capsys):
    config = tiny_config(epochs=2)
    row = {"kind": "run", "name": train.run_name(config), "val_loss": 3.25}
    lines = [row, {"kind": "ensemble", "name": "x", "loss_by_k": {}}]
    (world / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    memo = train.read_memo(world / "results.jsonl")
    assert memo == {row["name"]: 3.25} and train.read_memo(world / "nothing.jsonl") == {}
    assert train.run_all([config], 1, memo) == [3.25] and not (world / "runs").exists()
    diverging = tiny_config(lr=1e38)
    assert train.run_all([config, diverging], 2, memo) == [3.25, math.inf]
    assert "--over takes some of" in refused(capsys, train, "--tune", "--over", "size", *TINY)
    (world / "data" / "tiny" / "train.bin").write_bytes(b"")
    with pytest.raises(prepare.InputError, match="-s9-.* failed: .*train.bin is missing or changed"):
        train.run_all([dataclasses.replace(config, seed=9)], 1)


def test_bench_measures_and_writes_nothing(world, capsys, monkeypatch):
    assert call(train, *TINY, "--bench", 10) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert not (world / "runs").exists() and report["machine"]["attention"] == "SDPA, dense mask"
    assert 0 < report["mfu"] < 1 and report["tokens_per_second"] > 100
    assert report["peak_memory"] > 2 ** 26 and report["flops"] > 0
    # of two processes with a device each, either is half as busy
    monkeypatch.setattr(train, "matmul_rate", lambda dtype, device: 1e12)
    run, mfu = train.Run(tiny_config(), None), []
    for run.world in (1, 2):
        found = train.bench(run, 5)
        mfu.append(found["mfu"] * 1e12 / found["tokens_per_second"] / run.model.flops_per_token())
    assert mfu == pytest.approx([1, 1 / 2])


def test_dry_run_predicts_and_writes_nothing(world, capsys):
    assert call(train, *TINY, "--dry_run", "--json") == 0
    plan = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert not (world / "runs").exists() and plan["steps"] == 64 and plan["flops"] > 6 * 67056 * 8192
    assert call(train, *TINY, "--json") == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {key: result[key] for key in ("params", "steps", "flops", "name")} == {
        key: plan[key] for key in ("params", "steps", "flops", "name")}


# --------------------------------------------------------------------------------------------------
# ensemble.py

def test_copies_of_one_model_are_that_model():
    model, windows = tiny_gpt(), random_tokens(5, 24).int()
    losses = ensemble.subset_losses([model] * 3, windows, ensemble.choose_subsets(3))
    single = train.evaluate(model, windows, 2)
    assert losses["kl"] == pytest.approx(0, abs=1e-6)
    for kind in ("logits", "probs"):
        assert list(losses[kind].values()) == pytest.approx([single] * 7, rel=1e-6)


def test_averages_equal_their_definition():
    # members that differ much, so that the two averages do, one of them in width
    widths = (32, 32, 48, 32)
    models = [tiny_gpt(seed=s, width=width) for s, width in enumerate(widths)]
    windows = random_tokens(21, 24).int()
    for i, model in enumerate(models):
        model.head.weight.data *= 1 + 3 * i
    losses = ensemble.subset_losses(models, windows, ensemble.choose_subsets(4))
    with torch.no_grad():
        logits = torch.stack([model(windows.long())[:, :-1] for model in models]).double()
    targets = windows[:, 1:].long()[..., None]
    for k in range(1, 5):
        for subset in itertools.combinations(range(4), k):
            some = logits[list(subset)]
            mean_logits = some.mean(0).log_softmax(-1).gather(-1, targets).mean()
            mean_probs = some.softmax(-1).mean(0).log().gather(-1, targets).mean()
            assert losses["logits"][subset] == pytest.approx(-float(mean_logits), rel=1e-5)
            assert losses["probs"][subset] == pytest.approx(-float(mean_probs), rel=1e-5)
    logs = logits.log_softmax(-1).flatten(1, 2)
    pairs = [F.kl_div(logs[j], logs[i], reduction="batchmean", log_target=True)
             for i, j in itertools.permutations(range(4), 2)]
    assert losses["kl"] == pytest.approx(float(sum(pairs)) / 12, rel=1e-5)
    by_k = ensemble.mean_by_k(losses["logits"])
    alone = [losses["logits"][(i,)] for i in range(4)]
    assert len(by_k) == 4 and by_k[1] == pytest.approx(np.mean(alone))
    without = ensemble.mean_by_k(losses["logits"], without=2)
    assert list(without) == [1, 2, 3] and without[3] == losses["logits"][(0, 1, 3)]


def test_large_ensembles_use_random_orders():
    subsets = ensemble.choose_subsets(12)
    assert {s for s in subsets if len(s) == 1} == {(i,) for i in range(12)}
    assert {len(s) for s in subsets} == set(range(1, 13)) and subsets == ensemble.choose_subsets(12)
    assert len(subsets) == len({frozenset(s) for s in subsets}) < 12 * 64
    assert len(ensemble.choose_subsets(12, 4)) < 12 + 48
    # sums along beginnings that some subsets share are those of each subset by itself
    members = torch.randn(12, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    sums = list(ensemble.running_sums(members, subsets))
    assert {s for s, _ in sums} == set(subsets)
    for subset, total in sums:
        assert torch.allclose(total, members[list(subset)].sum(0), rtol=0, atol=1e-12)


def test_the_limit_and_its_jackknife():
    """Losses of known member effects and A / K: limit and spread from the definition."""
    effects = np.array([0.1, -0.2, 0.05, 0.3, -0.1])
    losses = {s: 3.0 + effects[list(s)].mean() + 0.4 / len(s) for s in ensemble.choose_subsets(5)}
    law = ensemble.law_of_members(losses, fit.fit_reciprocal, 2)
    assert (law["A"], law["E"]) == (pytest.approx(0.4), pytest.approx(3.0 + effects.mean()))
    # the limit is the mean over members, whose standard error everybody knows
    assert law["se"] == pytest.approx(effects.std(ddof=1) / 5 ** 0.5)
    half = 2.7764451 * law["se"]  # of Student's t with 4 degrees of freedom
    assert law["interval"] == pytest.approx([law["E"] - half, law["E"] + half])
    assert ensemble.law_of_members({(0,): 3.0}, fit.fit_reciprocal, 2) is None
    two = ensemble.law_of_members({(0,): 3.4, (1,): 3.6, (0, 1): 3.2}, fit.fit_reciprocal, 2)
    assert two["E"] == pytest.approx(2.9) and two["interval"] is None


def test_evaluation_that_runs_out_of_memory_goes_on_in_smaller_parts(monkeypatch, capsys):
    models, windows = [tiny_gpt(seed=s) for s in range(2)], random_tokens(5, 24).int()
    real = ensemble.chunk_losses
    whole = ensemble.subset_losses(models, windows, [(0, 1)])

    def small_device(most):
        def chunk_losses(logits, targets, subsets):
            if len(targets) > most:
                raise torch.OutOfMemoryError("no memory left")
            return real(logits, targets, subsets)
        monkeypatch.setattr(ensemble, "chunk_losses", chunk_losses)
    small_device(30)
    parts = ensemble.subset_losses(models, windows, [(0, 1)])
    assert parts["logits"][0, 1] == pytest.approx(whole["logits"][0, 1], rel=1e-6)
    assert parts["kl"] == pytest.approx(whole["kl"], rel=1e-5)
    assert "out of memory: going on" in capsys.readouterr().out
    small_device(0)
    with pytest.raises(prepare.InputError, match="do not fit"):
        ensemble.subset_losses(models, windows, [(0, 1)])


def test_eight_members_with_a_large_vocabulary_fit_in_bounded_memory(tmp_path):
    """The peak of a process of its own: 8 members, vocabulary 128,256, all 255 subsets."""
    code = """
import resource, torch, ensemble, model
config = model.GPTConfig(vocab_size=128_256, end_of_text=0, context=9,
                         width=8, layers=1, heads=1, kv_heads=1)
models = [model.GPT(config, seed) for seed in range(8)]
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
windows = torch.randint(128_256, (16, 9), dtype=torch.int32)
losses = ensemble.subset_losses(models, windows, ensemble.choose_subsets(8))
assert len(losses["logits"]) == 255
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=HERE)
    # the logits of all members at all positions of a batch are 8 x 64 x 128,256 x 4 bytes, 260 MB
    assert done.returncode == 0 and int(done.stdout) * 1024 < 2e8, done


def test_ensemble_command_trains_what_is_missing(world, capsys):
    assert call(train, *TINY, "--seed", 1) == 0
    assert call(ensemble, "--members", 3, *TINY, "--dry_run", "--json") == 0
    *plan, states = capsys.readouterr().out.splitlines()
    assert sum("to be trained" in line for line in plan) == 2
    assert sum(": finished" in line for line in plan) == 1
    assert sorted(json.loads(states).values()) == [False, False, True]
    assert call(ensemble, "--members", 3, *TINY, "--json") == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert len(result["members"]) == 3
    assert [len(losses) for losses in result["loss_by_k"].values()] == [3, 3]
    files = [world / "runs" / name / "result.json" for name in result["members"]]
    singles = [json.loads(file.read_text())["val_loss"] for file in files]
    assert result["member_losses"] == pytest.approx(singles, rel=1e-6)
    assert result["loss_by_k"]["logits"][0] == pytest.approx(np.mean(singles), rel=1e-6)
    columns = np.stack([1 / np.arange(1, 4), np.ones(3)], 1)
    law = np.linalg.lstsq(columns, result["loss_by_k"]["logits"], rcond=None)[0]
    assert result["limit"] == pytest.approx(law[1]) and result["limit_interval"][0] < law[1]
    assert result["kl"] > 0 and result["probs_law"]["E"] > 0
    assert {"A", "b", "E"} <= set(result["free_law"])
    # one member has no law; seeds, or the subset with them, are what members differ in
    assert call(ensemble, result["members"][0], "--json") == 0
    alone = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert alone["limit"] is alone["law"] is None
    assert alone["loss_by_k"]["logits"] == pytest.approx(singles[:1])
    first = tiny_config(seed=3)
    assert [c.seed for c in ensemble.member_configs(first, 3, ["seed"])] == [3, 4, 5]
    for vary, seeds in (("init_seed", [3, 4, 5]), ("data_seed", [3, 4, 5]),
                        ("subset_seed", [0, 1, 2])):
        members = ensemble.member_configs(first, 3, [vary])
        assert [getattr(c, vary) for c in members] == seeds
        assert {c.seed for c in members} == {3} and len({train.run_name(c) for c in members}) == 3
    # members with other subsets of the pool share no D
    assert call(ensemble, *TINY, "--members", 2, "--vary", "subset_seed", "--json") == 0
    other = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert other["tokens"] is other["subset_seed"] is None and result["tokens"] == 4096
    assert (result["vary"], other["vary"]) == ("seed", "subset_seed")
    assert call(ensemble, *TINY, "--members", 2, "--init_seed", 0, "--json") == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["vary"] == "data_seed"
    # the same by names in any order, and through eval.py by the ensemble's own name
    assert call(ensemble, *reversed(result["members"]), "--json") == 0
    again = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert again["name"] == result["name"] and again["loss_by_k"]["logits"] == pytest.approx(
        result["loss_by_k"]["logits"])
    assert call(evaluation, result["name"], "--json") == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["val_loss"] == pytest.approx(
        result["loss_by_k"]["logits"][2], rel=1e-6)


def test_more_members_than_all_subsets_and_members_of_two_kinds(world, capsys):
    assert call(ensemble, *TINY, "--members", 9, "--epochs", 1, "--stack", 1, "--json") == 0
    out = capsys.readouterr().out
    result = json.loads(out.splitlines()[-1])
    assert [len(losses) for losses in result["loss_by_k"].values()] == [9, 9]
    assert "9 members train as one" in out
    assert len(result["member_losses"]) == 9 and result["law"]["interval"][0] < result["limit"]
    assert call(ensemble, *result["members"], "--orders", 2, "--json") == 0
    few = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert few["member_losses"] == result["member_losses"] and few["law"]["interval"] is None
    # of another shape and in another folder: an average without an interval, which opens again
    other = train.train(tiny_config(size="300k", epochs=1, out="elsewhere"))["name"]
    assert call(ensemble, result["members"][0], f"elsewhere/{other}", "--json") == 0
    mixed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert mixed["size"] is mixed["params"] is mixed["law"]["interval"] is None
    assert mixed["setting"] is None and mixed["vary"] == "size"
    assert mixed["members"] == [result["members"][0], f"../elsewhere/{other}"]
    assert call(evaluation, mixed["name"], "--json") == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["val_loss"] == pytest.approx(
        mixed["loss_by_k"]["logits"][1], rel=1e-6)


def test_kind_study_and_setting_of_an_ensemble(world, capsys):
    """A setting that members share is the ensemble's; other subsets make other settings."""
    def result_of(*arguments):
        assert call(ensemble, *arguments, "--json") == 0
        result = json.loads(capsys.readouterr().out.splitlines()[-1])
        written = world / "runs/small/ensembles" / result["name"] / "result.json"
        assert json.loads(written.read_text()) == result and result["kind"] == "ensemble"
        return result

    pair = (*TINY, "--epochs", 1, "--members", 2, "--out", "runs/small")
    result = result_of(*pair)
    config = tiny_config(epochs=1)
    assert (result["study"], result["setting"]) == ("small", train.setting_of(config))
    labelled = result_of(*pair, "--study", "noise")
    assert labelled == {**result, "study": "noise"}
    # the option of the ensemble's own command, not that of the runs
    assert result_of(*result["members"], "--out", "runs/small")["study"] == "small"
    subsets = result_of(*pair, "--vary", "subset_seed")
    assert subsets["setting"] is None and subsets["vary"] == "subset_seed"
    # a run of an older version has no setting, so its ensembles have none
    first = world / "runs/small" / result["members"][0] / "result.json"
    older = json.loads(first.read_text())
    del older["setting"]
    first.write_text(json.dumps(older))
    assert result_of(*result["members"], "--out", "runs/small")["setting"] is None
    assert result_of(result["members"][0], "--out", "runs/small")["setting"] is None


def test_members_share_what_the_configuration_decides(world, monkeypatch):
    """Facts of an ensemble follow from options, also from one that is new; measurements do not."""
    result = train.train(tiny_config(epochs=1))
    measured = {"name", "val_loss", "train_loss", "seconds", "tokens_per_second", "mfu", "machine",
                "device", "threads", "compile", "log_every", "out", "study", "kind", "seed",
                "init_seed", "data_seed"}
    assert measured <= set(result)
    facts = ensemble.shared_facts([ensemble.fill_defaults(result)])
    # even of a single run, with which everything agrees
    assert not measured & set(facts)
    for key in ("data", "data_hash", "size", "params", "params_nonembedding", "tokens", "recipe",
                "epochs", "lr", "weight_decay", "subset_seed", "context", "batch_size", "doc_mask",
                "shuffle", "dtype", "synthetic", "synthetic_hash", "synthetic_weight", "setting",
                "tau_epochs"):
        assert facts[key] == result[key], key

    # an option that nobody has told ensemble.py about
    @dataclasses.dataclass
    class Newer(train.TrainConfig):
        dropout: float = 0.0
        speed: int = dataclasses.field(default=0, metadata={"identity": False})
    monkeypatch.setattr(ensemble, "TrainConfig", Newer)

    def compare(*changes):
        results = [ensemble.fill_defaults({**result, **change}) for change in changes]
        return ensemble.differing_fields(results), ensemble.shared_facts(results)

    vary, facts = compare({"seed": 1}, {"seed": 2, "dropout": 0.1, "speed": 3})
    assert vary == ["seed", "dropout"] and facts["dropout"] is None and "speed" not in facts
    # an older run was made as the defaults of newer options say
    vary, facts = compare({"seed": 1}, {"seed": 2, "dropout": 0.0})
    assert vary == ["seed"] and facts["dropout"] == 0.0 and facts["tokens"] == 4096
    # seeds by what they decide: --seed counts where neither of the two is given
    assert compare({"seed": 1, "init_seed": 7}, {"seed": 2, "init_seed": 7})[0] == ["data_seed"]
    assert compare({"seed": 1}, {"seed": 0, "data_seed": 1})[0] == ["init_seed"]
    assert compare({"seed": 1}, {"seed": 0, "init_seed": 1, "data_seed": 1})[0] == []
    vary, facts = compare({"subset_seed": 1}, {"subset_seed": 2})
    assert vary == ["subset_seed"] and facts["tokens"] is facts["subset_seed"] is None
    assert facts["epochs"] == 1


def test_members_that_do_not_fit_are_refused(world, capsys):
    one = train.train(tiny_config(epochs=1))["name"]
    two = train.train(tiny_config(epochs=1, context=16))["name"]
    for key, value in (("data", "x"), ("data_hash", "abc"), ("doc_mask", 0), ("dtype", "bf16")):
        path = world / "runs" / f"other-{key}"
        subprocess.run(["cp", "-r", world / "runs" / one, path], check=True)
        result = json.loads((path / "result.json").read_text())
        (path / "result.json").write_text(json.dumps({**result, "name": path.name, key: value}))
        message = refused(capsys, ensemble, one, path.name)
        assert f"has {key} {value}, {one} has {result[key]}" in message
    assert "has context 16" in refused(capsys, ensemble, one, two)
    assert "is given twice" in refused(capsys, ensemble, one, one)
    assert "go with --members" in refused(capsys, ensemble, one, "--dry_run")
    two_members = (*TINY, "--members", 2)
    fixed = ("--init_seed", 1, "--data_seed", 1)
    assert "are copies here" in refused(capsys, ensemble, *two_members, *fixed)
    assert "--vary takes some of seed" in refused(capsys, ensemble, *two_members, "--vary", "lr")
    assert "--jobs are at least 1" in refused(capsys, ensemble, *two_members, "--jobs", 0)
    assert "not a finished run" in refused(capsys, ensemble, one, "nothing")
    assert "--threads 0 is out of range" in refused(capsys, ensemble, one, "--threads", 0)
    for arguments in ((), (one, "--members", 2), ("--members", -1)):
        assert "give either" in refused(capsys, ensemble, *arguments)
    # data prepared anew under the same name are not what the run saw
    os.rename(world / "data/tiny", world / "data/kept")
    subprocess.run(["cp", "-r", world / "data/kept", world / "data/tiny"], check=True)
    data = prepare.load_data("kept")
    parts = {"train": data.train[::-1], "val": data.val}
    (world / "data/tiny").rename(world / "data/old")
    prepare.write_data("tiny", parts, data.ranks(), data.meta)
    assert "not the data" in refused(capsys, evaluation, one)
    (world / "data/tiny").rename(world / "data/anew")
    (world / "data/old").rename(world / "data/tiny")
    (world / "runs" / one / "model.pt").write_bytes(b"damaged")
    assert "not a whole model file" in refused(capsys, ensemble, one)
    (world / "runs" / one / "result.json").write_text("{")
    assert "is damaged" in refused(capsys, ensemble, one)


@pytest.mark.parametrize("vary", [["seed"], ["init_seed", "subset_seed"]])
def test_stacked_members_equal_separate_runs(world, monkeypatch, vary):
    """Three members at once against each by itself, all in float64: every logged loss, the weights, the results."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    monkeypatch.setattr(train, "GPT", lambda *arguments: gpt.GPT(*arguments).double())
    base = tiny_config(epochs=3, lr=0.02, eval_every=40, log_every=7)
    together, apart = ([dataclasses.replace(c, out=out) for c in ensemble.member_configs(base, 3, vary)]
                       for out in ("together", "apart"))
    ensemble.train_members(together, 1, stack="1")
    norms, step = [], train.Run.train_step

    def noted(*arguments):
        loss, norm = step(*arguments)
        norms.append(float(norm))
        return loss, norm
    monkeypatch.setattr(train.Run, "train_step", noted)
    for config in apart:
        name = train.train(config)["name"]
        a, b = (torch.load(world / out / name / "model.pt")["weights"] for out in ("together", "apart"))
        assert all(torch.allclose(a[key], b[key], rtol=0, atol=1e-9) for key in b)
        results = [json.loads((world / out / name / "result.json").read_text()) for out in ("together", "apart")]
        for key in ("val_loss", "train_loss"):
            assert results[0][key] == pytest.approx(results[1][key], abs=1e-9)
        assert results[0].keys() == results[1].keys() and results[0]["machine"] == results[1]["machine"]
        logs = [[json.loads(line) for line in open(world / out / name / "log.jsonl")] for out in ("together", "apart")]
        for rows in zip(*([row for row in log if "loss" in row] for log in logs)):
            assert rows[0].keys() == rows[1].keys()
            for key in ("step", "epoch", "lr", "loss", "val_loss"):
                assert key not in rows[0] or rows[0][key] == pytest.approx(rows[1][key], abs=1e-9)
        assert len(logs[0]) == len(logs[1]) and sorted(os.listdir(f"together/{name}")) == sorted(
            os.listdir(f"apart/{name}"))
    assert min(norms) < 1 < max(norms)  # some steps are clipped, some are not


def test_a_killed_stack_goes_on(world):
    """All members at once, killed again and again, end where each by itself does, up to rounding."""
    options = (*TINY, "--checkpoint_seconds", 0, "--epochs", 12 * KILLS, "--members", 3)

    def begin(*more):
        command = [sys.executable, HERE / "ensemble.py", *map(str, (*options, *more))]
        return [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)]
    names = [train.run_name(tiny_config(epochs=12 * KILLS, seed=seed)) for seed in range(3)]
    met, steps = kill_and_resume(lambda: begin("--stack", 1), world / "runs" / names[-1], KILLS)
    assert met == KILLS and len(steps) == KILLS + 1 and steps[-1] > 0
    process, = begin("--jobs", 2, "--out", "apart")
    printed = process.communicate()
    assert process.returncode == 0, printed
    for name in names:
        a, b = (torch.load(world / out / name / "model.pt")["weights"] for out in ("runs", "apart"))
        assert all(torch.allclose(a[key], b[key], rtol=0, atol=1e-3) for key in b)


def test_a_member_killed_in_training_is_named(world, capsys):
    options = (*TINY, "--epochs", 30, "--members", 2, "--jobs", 2)
    process = subprocess.Popen([sys.executable, HERE / "ensemble.py", *map(str, options)], stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True)
    name = train.run_name(tiny_config(epochs=30, seed=1))
    lock = world / "runs" / name / "lock"
    while not (lock.exists() and lock.read_text()):
        time.sleep(0.01)
    os.kill(int(lock.read_text().split()[1]), signal.SIGKILL)
    _, err = process.communicate()
    assert process.returncode == 2 and len(err.strip().splitlines()) == 1
    assert err.startswith(f"ensemble.py: error: {name} was killed") and "run the same command again" in err
    assert not (world / "runs" / "ensembles").exists()
    assert call(ensemble, *options) == 0 and len(list(world.glob("runs/ensembles/*/result.json"))) == 1


def test_the_bench_of_a_stack_and_what_it_refuses(world, capsys, monkeypatch):
    assert call(ensemble, *TINY, "--members", 3, "--bench", 10) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report["members"] == 3 and report["ratio"] == report["stacked"] / report["one_by_one"] > 0
    assert not (world / "runs").exists()
    for stack, message in ((0, "diverged; try a lower --lr"), (1, "is not finite from step")):
        assert message in refused(capsys, ensemble, *TINY, "--lr", 1e30, "--members", 2, "--stack", stack)
    assert not list(world.glob("runs/*/result.json"))
    # the run that went wrong is named, not the first
    real = ensemble.Stack.train_step

    def poisoned(stack, *arguments):
        loss, norm = real(stack, *arguments)
        return loss + torch.tensor([0.0, math.nan]), norm
    monkeypatch.setattr(ensemble.Stack, "train_step", poisoned)
    guilty = train.run_name(tiny_config(seed=1))
    assert f"is not finite from step 0 on in runs/{guilty} (nothing was saved)" in refused(capsys, ensemble, *TINY, "--members", 2, "--stack", 1)
    monkeypatch.setenv("RANK", "0")
    assert "starts its own processes" in refused(capsys, ensemble, *TINY, "--members", 2)


# --------------------------------------------------------------------------------------------------
# distill.py

def test_distillation_from_teachers_to_student(world, capsys):
    teachers = [train.train(tiny_config(seed=seed, epochs=4))["name"] for seed in (0, 1)]
    options = ("--teacher", *teachers, *TINY, "--sample_tokens", 6000, "--synthetic_weight", 0.6)
    assert call(distill, *options, "--json") == 0
    student = json.loads(capsys.readouterr().out.splitlines()[-1])
    sampled = prepare.load_data(student["synthetic"])
    windows = prepare.cut_windows(sampled.train, 32)
    assert len(sampled.train) == 6016 and sampled.train.max() <= 319
    assert (windows[:, 0] == 319).all()
    assert np.array_equal(sampled.val, prepare.load_data("tiny").val)
    assert student["steps"] == 2 * round(128 / 0.4) // 4 and student["recipe"] == "student"
    assert student["val_loss"] < math.log(320) - 0.5
    # sampled text is likelier under its teachers than the text of untrained ones
    _, models, _ = ensemble.load_members(teachers, "runs")
    text = torch.from_numpy(windows.astype(np.int32))
    losses = ensemble.subset_losses(models, text, [(0, 1)])
    assert losses["logits"][(0, 1)] < math.log(320) - 0.5
    # again: nothing to do, and no weights of a teacher are needed
    (world / "runs" / teachers[0] / "model.pt").unlink()
    assert call(distill, *options) == 0
    printed = capsys.readouterr().out
    assert "sampled already" in printed and "is finished" in printed
    assert "between 0 and 1" in refused(capsys, distill, *options, "--synthetic_weight", 1.0)
    assert "no whole window" in refused(capsys, distill, *options, "--synthetic_weight", 0.001)
    assert "--sample_seed must be at least 0" in refused(capsys, distill, *options,
                                                         "--sample_seed", -1)
    mixed = (*options, "--synthetic", sampled.folder.name)
    assert "samples its own" in refused(capsys, distill, *mixed)
    assert "the teachers have context 32, the student 16; give --context 32" in refused(
        capsys, distill, *options, "--context", 16)
    assert "not a finished run" in refused(capsys, distill, *options, "--teacher", "nobody")
    # other samples do need them
    assert "model.pt" in refused(capsys, distill, *options, "--sample_seed", 1)


@pytest.mark.parametrize("chunk", [2 ** 28, 500])
def test_the_loss_of_a_guided_student_equals_its_definition(monkeypatch, chunk):
    """Two teachers, temperature 2, a weight of its own for each window; values and gradients, also
    where the logits come in chunks, against autograd of the formula."""
    monkeypatch.setattr(gpt, "CHUNK_LOGITS", chunk)
    student, *teachers = (tiny_gpt(seed).double() for seed in range(3))
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    tokens = random_tokens(3, 24)
    _, targets = train.inputs_and_targets(tokens)
    weight = torch.tensor([[0.3], [0.0], [1.0]], dtype=torch.float64)
    with torch.no_grad():
        states = [teacher.states(tokens) for teacher in teachers]
        mean = (teachers[0](tokens) + teachers[1](tokens)) / 2
    guide = gpt.Guide(states, [teacher.head.weight.detach() for teacher in teachers], weight, 2.0)

    def gradients(loss):
        student.zero_grad()
        loss.sum().backward()
        return torch.cat([p.grad.flatten() for p in student.parameters()])

    found = student(tokens, targets, guide)
    q = F.softmax(mean / 2, -1)
    divergence = F.kl_div(F.log_softmax(student(tokens) / 2, -1), q, reduction="none").sum(-1)
    nats = F.cross_entropy(student(tokens).flatten(0, 1), targets.flatten(), ignore_index=-1,
                           reduction="none").view(3, 24)
    right = (1 - weight) * nats + weight * 4 * divergence * (targets >= 0)
    assert torch.allclose(found, right, rtol=0, atol=1e-9) and (found[:, -1] == 0).all()
    assert torch.allclose(gradients(found), gradients(right), rtol=0, atol=1e-9)
    # who is the teacher's equal has nothing to learn from it
    own = gpt.Guide([student.states(tokens).detach()], [student.head.weight.detach()],
                    torch.ones(3, 1, dtype=torch.float64), 1.0)
    loss = student(tokens, targets, own)
    assert loss.abs().max() < 1e-9 and gradients(loss).abs().max() < 1e-9


def test_students_by_probabilities(world, capsys):
    teachers = [train.train(tiny_config(seed=seed, out="teachers"))["name"] for seed in (1, 2)]
    paths = [f"teachers/{name}" for name in teachers]
    assert call(distill, *TINY, "--teacher", *paths, "--mode", "kl", "--json") == 0
    student = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert student["kl_weight"] == 0.5 and student["recipe"] == "kl_student" and "-kl0.5-" in student["name"]
    assert student["teachers"] == sorted(teachers) and student["synthetic"] == ""
    alone = train.train(tiny_config())
    assert student["val_loss"] != alone["val_loss"] and student["steps"] == alone["steps"]
    assert student["flops"] == pytest.approx(5 / 3 * alone["flops"])
    # which teachers, not where they lie or in which order, is what the run is
    def name(**changes):
        return train.run_name(tiny_config(kl_weight=0.5, **changes))
    assert name(teacher=tuple(paths[::-1])) == name(teacher=tuple(teachers), out="teachers") == student["name"]
    assert len({name(teacher=(paths[0],)), name(teacher=tuple(paths), kl_temperature=2.0), student["name"]}) == 3
    # one command stands for an ensemble of them, and the student's loss is that of its weights
    assert call(ensemble, *paths, "--out", "teachers") == 0
    both, = (world / "teachers/ensembles").iterdir()
    assert call(distill, *TINY, "--teacher", both, "--mode", "kl", "--json") == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["name"] == student["name"]

    # sampled windows can be all that the teachers speak of: then the loss on real ones is plain
    assert call(distill, *TINY, "--teacher", *paths, "--sample_tokens", 2048) == 0
    sampled, = (path.name for path in (world / "data").glob("sampled-*"))
    config = tiny_config(teacher=tuple(paths), kl_weight=0.25, kl_on="sampled", synthetic=sampled,
                         synthetic_weight=0.5)
    run = train.Run(config, None)
    guide = run.guide(run.train[:2].long(), torch.tensor([run.real - 1, run.real]))
    assert guide.weight.tolist() == [[0.0], [0.25]]

    for options, message in ((("--kl_weight", 1.5), "the weight is at most 1"),
                             (("--kl_temperature", 0), "must be above 0"),
                             (("--kl_on", "sampled"), "goes with --teacher and --synthetic"),
                             (("--context", 64, "--out", "other"), "give --context 32"),
                             (("--teacher", paths[0], paths[0]), "given twice"),
                             (("--teacher", "nothing"), "not a finished run")):
        assert message in refused(capsys, distill, *TINY, "--teacher", *paths, "--mode", "kl", *options)
    assert "goes with --mode kl" in refused(capsys, distill, *TINY, "--teacher", *paths, "--kl_weight", 0.5)
    assert "--teacher is missing" in refused(capsys, distill, *TINY)
    lines = [json.dumps({"text": text}) for text in make_documents(600, seed=1)]
    Path("other.jsonl").write_text("\n".join(lines))
    assert call(prepare, "--source", "other.jsonl", "--vocab_size", 320, "--val_tokens", 1000,
                "--name", "other") == 0
    message = refused(capsys, distill, *TINY, "--data", "other", "--teacher", *paths, "--mode", "kl")
    assert "was trained on other data than other" in message


def test_every_teacher_has_a_turn(world, monkeypatch):
    models, turns, real = [tiny_gpt(seed) for seed in range(5)], Counter(), distill.sample

    def count(teachers, windows, *arguments):
        turns[teachers[0]] += windows
        return real(teachers, windows, *arguments)
    monkeypatch.setattr(distill, "sample", count)
    assert distill.sample_windows(models, 11, 0, "cpu").shape == (11, models[0].config.context)
    assert [turns[model] for model in models] == [3, 2, 2, 2, 2]


# --------------------------------------------------------------------------------------------------
# fit.py

FITS = int(os.environ.get("FITS", 1))  # problems for each law; FITS=5 pytest -k every_law: all methods, 100 starts
# ranges of true shape parameters; of exponents 0.2 to 0.9
USUAL = {"E": (1, 2), "RD": (2, 30), "RN": (2, 30), "n": (.1, 10), "forget": (5e-4, .01), "C": (.3, 5),
         "gamma": (.3, 1.2), "epsilon": (.02, .3), "alphaN": (.05, .2), "alphaD": (.05, .2)}


def synthetic_columns(law, rng, rows=40):
    """Columns a law reads, in raw units; for laws of curves three schedules of 60 rows."""
    ranges = dict(x=(.1, 10), N=(1e6, 1e10), D=(1e8, 1e12), U=(1e8, 1e9), TPP=(1, 1e3), C=(1e17, 1e22), r=(.05, .95),
                  Nnv=(1e7, 1e10), Nv=(1e6, 1e9), loss=(2, 4), V=(1024, 1025))
    if "curve" in law.columns:
        step, curve = np.tile(np.arange(1, 61) * 50.0, 3), np.repeat([0, 1, 2], 60)
        t = step / 3000
        decay = np.where(t < 0.7, 1.0, (1 - t) / 0.3 + 0.003)
        linear, cosine = np.minimum(1, 2.05 - 2 * t), 0.55 + 0.45 * np.cos(np.pi * t)
        schedule = np.select([curve == 0, curve == 1], [cosine, decay], linear)
        return dict(step=step, lr=0.3 * schedule * np.minimum(1, step / 200), curve=curve)
    columns = {name: np.exp(rng.uniform(*np.log(ranges[name]), rows)) for name in law.columns if name != "T"}
    return columns | ({"T": columns["U"] * 2.0 ** rng.integers(0, 7, rows)} if "T" in law.columns else {})


def synthetic_problem(law, rng, noise):
    """(columns, targets, true parameters): every basis column contributes a third to one to the sum."""
    columns = synthetic_columns(law, rng)
    shape = {name: math.exp(rng.uniform(*np.log(USUAL.get(name, (.2, .9))))) for name in law.shape}
    c, p = SimpleNamespace(**columns), SimpleNamespace(**shape)
    size = [np.sqrt(np.mean(np.square(column))) for column in law.basis(p, c)]
    share = [0.9, 0.5] if law.target == "error" else rng.uniform(0.3, 1.0, len(size))
    truth = shape | {name: s / z for name, s, z in zip(law.signs, share, size)}
    y = fit.predict(law, truth, columns)
    return columns, y * np.exp(rng.normal(0, noise, len(y))), truth


def best_of_random_starts(law, columns, y, method, rng, starts):
    """The peer: L-BFGS-B from random starts on the objective from its definition, gradient by complex steps."""
    from scipy.optimize import minimize
    c, k, h = SimpleNamespace(**columns), len(law.shape), 1e-30
    ranges = np.log(np.array(list(law.shape.values())).reshape(-1, 2))
    sign = np.array([-1.0 if s == "-" else 1.0 for s in law.signs.values()])

    def residuals(z):
        p = SimpleNamespace(**dict(zip(law.shape, np.exp(z[:k]))))
        eta = 0.0
        for weight, column in zip(sign * z[k:], law.basis(p, c)):
            eta = eta + weight * column / np.sqrt(np.mean(np.square(column)))
        if law.logs:
            return eta - np.log(y)
        value = law.inverse(eta, p, c)
        return value - y if method == "ls" else np.log(value / y)

    def objective(z):
        r = residuals(z)
        huber = np.where(abs(r) < 1e-3, r * r / 2, 1e-3 * abs(r) - 5e-7)
        value, slope = {"ls": (r * r / 2, r), "huber": (huber, np.clip(r, -1e-3, 1e-3)),
                        "lad": (abs(r), np.sign(r))}[method]
        if not np.isfinite(value).all():
            return 1e9, np.zeros(len(z))
        gradient = [slope @ (residuals(z + 1j * h * unit).imag / h) for unit in np.eye(len(z))]
        return 1e3 * value.sum(), 1e3 * np.array(gradient)
    bounds = [*map(tuple, ranges), *[(None, None) if s == "" else (0, None) for s in law.signs.values()]]
    options, best = dict(maxiter=3000, maxfun=6000, ftol=1e-15, gtol=1e-10, maxcor=20), math.inf
    with np.errstate(all="ignore"):
        for _ in range(starts):
            start = np.concatenate([rng.uniform(*ranges.T), rng.uniform(0, 2, len(sign))])
            found = minimize(objective, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options)
            best = min(best, found.fun)
    return best / 1e3


@pytest.mark.parametrize("name", [name for name in fit.LAWS if name != "inference"])
def test_every_law_is_recovered_and_its_optimum_is_global(name):
    law = fit.LAWS[name]
    slow = "curve" in law.columns
    for seed in range(FITS):
        columns, y, truth = synthetic_problem(law, np.random.default_rng(seed), 0.0)
        found = fit.fit(law, columns, y)
        assert np.abs(found["prediction"] / y - 1).max() < 1e-5 or found["objective"] < 1e-12, name
        columns, y, truth = synthetic_problem(law, np.random.default_rng(seed), 0.003)
        right = fit.predict(law, truth, columns)
        for method in ("ls", "huber", "lad") if FITS > 1 or len(law.shape) < 3 and not slow else ("ls",):
            if (y <= 0).any() and method != "ls":
                continue
            found = fit.fit(law, columns, y, method=method)
            error = np.abs(found["prediction"] - right) / np.abs(right).mean()
            assert error.max() < 0.02 and np.sqrt((error ** 2).mean()) < 0.003, (method, error.max())
            starts = 20 * FITS if FITS > 1 else 2
            peer = best_of_random_starts(law, columns, y, method, np.random.default_rng(seed), starts)
            assert found["objective"] <= peer * (1 + 1e-8), method


@pytest.mark.parametrize("truth", [(0.05, 1.02, 3.43), (2.0, 0.3, 1.7), (0.5, 2.5, 0.0)])
def test_power_law_recovers_its_coefficients(truth):
    a, b, e = truth
    for unit in (1, 1e9):  # parameters, or billions of them
        x = np.array([0.15, 0.3, 0.6, 1.4, 3.2]) * unit
        found = fit.fit_power(x, a * (x / unit) ** -b + e)
        assert (found["b"], found["E"]) == (pytest.approx(b, rel=1e-5), pytest.approx(e, abs=1e-5))
        assert found["A"] == pytest.approx(a * unit ** b, rel=1e-3)


def test_power_law_finds_the_optimum_on_noisy_points():
    from scipy.optimize import curve_fit
    rng, x = np.random.default_rng(0), np.array([0.15, 0.3, 0.6, 1.4])
    for _ in range(10):
        loss = 0.05 / x ** 1.02 + 3.43 + rng.normal(0, 0.005, 4)
        found = fit.fit_power(x, loss)
        error = ((found["A"] / x ** found["b"] + found["E"] - loss) ** 2).sum()
        best = math.inf
        for start in ((1, .5, 2), (.1, 1, 3), (.1, 2, 3.4)):  # the paper's method and start, and two more starts
            popt, _ = curve_fit(lambda x, a, b, e: a / x ** b + e, x, loss, start, bounds=(0, [np.inf, 10, np.inf]),
                                max_nfev=20_000)
            best = min(best, ((popt[0] / x ** popt[1] + popt[2] - loss) ** 2).sum())
        assert error <= best * (1 + 1e-6) + 1e-14


PUBLISHED_LIMITS = {  # K -> infinity at 150M, 300M, 600M, 1.4B by tokens: constants of the authors' plotting code
    0.2097152: [3.49494, 3.27298, 3.21223, 3.17397], 0.4194304: [3.39993, 3.1504, 3.0519, 3.00252],
    0.8388608: [3.35758, 3.1019, 2.90583, 2.86801], 1.6777216: [3.29959, 3.01724, 2.82623, 2.75238]}


def test_the_papers_ensemble_limits_give_its_joint_limits():
    joint = {d: fit.limit_of([0.15, 0.3, 0.6, 1.4], limits) for d, limits in PUBLISHED_LIMITS.items()}
    assert [law["E"] for law in joint.values()] == pytest.approx([3.16899, 2.98001, 2.78931, 2.65680], abs=2e-5)
    assert [law["b"] for law in joint.values()] == pytest.approx([1.594, 1.291, 0.977, 0.893], abs=1e-3)
    low, high = joint[0.2097152]["interval"]  # of four points and three parameters: not known well
    assert low < 3.17 < high and high - low > 0.02
    data = fit.limit_of(list(joint), [law["E"] for law in joint.values()])
    assert (data["A"], data["b"], data["E"]) == tuple(pytest.approx(v, rel=1e-3) for v in (0.9617, 0.2281, 1.7984))


def test_data_efficiency_inverts_the_standard_law():
    """The standard law for which the paper's 2.29 and 5.17 hold gives its other two factors; what is below its limit
    has none."""
    law = dict(A=1.2821, b=0.2306, E=1.9115)
    for loss, factor in ((3.43, 2.29), (3.17, 5.17), (3.4623, 2.09), (3.2667, 3.75)):
        assert fit.data_efficiency(law, loss, 3.74974) == pytest.approx(factor, abs=0.01)
    with pytest.raises(ValueError, match="never reaches 1.9000"):
        fit.tokens_for(law, 1.9)
    tokens, losses = [1e6, 2e6, 4e6], [4.0, 3.5, 3.2]
    assert fit.measured_efficiency(tokens, losses, 3.5, 1e6) == (pytest.approx(2.0), False)
    assert fit.measured_efficiency(tokens, losses, 3.75, 1e6) == (pytest.approx(2 ** 0.5), False)
    assert fit.measured_efficiency(tokens, losses, 3.0, 1e6) == (pytest.approx(4.0), True)


def test_published_coefficients():
    """Values that the authors print or that follow from theirs: data-constrained (README of its repository),
    Chinchilla's allocation (both fits), the inference-adjusted optimum of a Chinchilla 70B's quality."""
    alpha, a, b, e = .3526596, math.exp(6.255414), math.exp(7.3049974), math.exp(.6254804)
    params = dict(alpha=alpha, A=a, B=b, E=e, RD=15.387756, RN=5.309743, n=(a / b) ** (1 / alpha))
    columns = dict(N=np.array([6.34e9, 8.67e9]), T=np.array([242e9, 178e9]), U=np.array([25e9, 25e9]))
    found = fit.predict(fit.LAWS["data_constrained"], params, columns)
    assert found == pytest.approx([2.2256440889984477, 2.2269634075087867], rel=1e-7)
    epoch = dict(A=477.83, B=2143.42, E=1.81722, alpha=.34731, beta=.36717)
    assert fit.allocation(epoch)["a"] == pytest.approx(0.513, abs=2e-3)
    hoffmann = dict(A=406.4, B=410.7, E=1.69, alpha=.336, beta=.283)
    loss = 1.69 + 406.4 / 70e9 ** .336 + 410.7 / 4.255e12 ** .283
    for inference, n, d in ((1e12, 62.85e9, 4.756e12), (2e12, 57.92e9, 5.203e12), (1e13, 41.55e9, 7.923e12)):
        assert fit.optimum_with_inference(hoffmann, loss, inference) == (pytest.approx(n, rel=1e-3),
                                                                         pytest.approx(d, rel=1e-3))


def test_areas_under_a_schedule_do_not_depend_on_the_rows_kept_or_their_order():
    """S1 and S2 from every 50th row, shuffled, are those of every step, summed from their definitions."""
    step = np.arange(1, 1001)
    lr = np.interp(step, [1, 200, 1000], [1.0, 1.0, 0.1])
    momentum = s2 = 0.0
    for before, after in zip(lr, lr[1:]):
        momentum = 0.99 * momentum + before - after
        s2 += momentum
    for kept in (step, np.random.default_rng(0).permutation(np.r_[step[199::50], 1])):
        c = SimpleNamespace(step=kept.astype(float), lr=lr[kept - 1], curve=np.full(len(kept), "a"))
        last = np.argmax(kept)
        assert fit.lr_area(c)[last] == pytest.approx(lr.sum()) and fit.annealed(c, 0.99)[last] == pytest.approx(s2)


def test_intervals_of_a_linear_law_are_the_textbooks():
    """A / K + E is linear: the profile is Student's interval, or the normal one where the noise is known."""
    from scipy import optimize, stats
    k, rng = np.arange(1, 9), np.random.default_rng(1)
    loss = 0.5 / k + 3 + rng.normal(0, 0.01, 8)
    line = stats.linregress(1 / k, loss)
    law, columns = fit.LAWS["reciprocal"], {"x": k.astype(float)}
    low, high = fit.profile_interval(law, columns, loss)
    half = stats.t.ppf(0.975, 6) * line.intercept_stderr
    assert (low, high) == pytest.approx((line.intercept - half, line.intercept + half), abs=1e-6)
    residual = np.sqrt(((loss - line.slope / k - line.intercept) ** 2).sum() / 6)
    low, high = fit.profile_interval(law, columns, loss, sigma=0.02)
    assert (high - low) / 2 == pytest.approx(1.95996 * 0.02 * line.intercept_stderr / residual, rel=1e-4)
    low, high = fit.profile_interval(law, columns, loss, sigma=0.02, freedom=3)  # known from four seeds
    assert (high - low) / 2 == pytest.approx(3.18245 * 0.02 * line.intercept_stderr / residual, rel=1e-4)
    assert fit.profile_interval(fit.LAWS["power"], {"x": k[:3] * 1.0}, loss[:3]) is None
    exact = fit.profile_interval(law, columns, 3 + 0.5 / k)  # no noise, no doubt
    assert exact == pytest.approx((3, 3), abs=1e-4)
    # the limit of flat points may lie above all of them; A is not below 0
    x, flat = 1 / k[:4], np.array([3.65, 3.64, 3.66, 3.65])

    def objective(E):
        return 0.5 * ((max(0, x @ (flat - E) / (x @ x)) * x + E - flat) ** 2).sum()
    least = min(objective(E) for E in np.linspace(3.6, 3.7, 10_001))
    end = optimize.brentq(lambda E: objective(E) - least - 0.5 * (0.03 * 1.95996) ** 2, 3.66, 4)
    _, high = fit.profile_interval(law, {"x": k[:4] * 1.0}, flat, sigma=0.03)
    assert high == pytest.approx(end, abs=1e-4) and end > 3.67
    # the bootstrap agrees with them and is seeded
    found = fit.fit(law, columns, loss)
    drawn = fit.bootstrap(law, columns, loss, found, 300)
    assert drawn == fit.bootstrap(law, columns, loss, found, 300)
    assert drawn != fit.bootstrap(law, columns, loss, found, 300, seed=1)
    assert drawn["E"][0] < found["params"]["E"] < drawn["E"][1] and 0.3 < (drawn["E"][1] - drawn["E"][0]) / half < 2
    # without the first point, the limit by hand
    left = fit.limit_range(fit.leave_one_out(law, columns, loss, found))
    ends = [stats.linregress(np.delete(1 / k, i), np.delete(loss, i)).intercept for i in range(8)]
    assert left == (pytest.approx(min(ends)), pytest.approx(max(ends)))


def test_profiles_cover_the_truth_as_often_as_they_say():
    """The limit of the paper's four sizes, noise known from seeds: 95% intervals of 20 draws."""
    rng, n = np.random.default_rng(0), np.array([0.15, 0.3, 0.6, 1.4])
    covered, flat = 0, 0
    for _ in range(20):
        loss = 0.05 / n ** 1.02 + 3.43 + rng.normal(0, 0.008, 4)
        low, high = fit.profile_interval(fit.LAWS["power"], {"x": n}, loss, sigma=0.008)
        covered, flat = covered + (low <= 3.43 <= high), flat + (low == 0)
    assert 17 <= covered <= 20 and flat < 10


def write_points(path, **columns):
    rows = zip(*columns.values())
    path.write_text("\n".join([",".join(columns), *(",".join(map(str, row)) for row in rows)]) + "\n")
    return path


def test_law_command_fits_predicts_and_gives_intervals(world, capsys):
    rng = np.random.default_rng(0)
    n, d = np.exp(rng.uniform(18, 23, 60)), np.exp(rng.uniform(21, 26, 60))
    loss = 1.8 + 480 / n ** .35 + 2100 / d ** .37
    noisy = loss * np.exp(rng.normal(0, 0.003, 60))
    write_points(world / "points.csv", N=n[:50], D=d[:50], loss=noisy[:50], w=[1] * 50)
    write_points(world / "other.csv", N=n[50:], D=d[50:], loss=loss[50:])
    assert call(fit, "chinchilla", "points.csv", "--method", "huber", "--bootstrap", 40, "--predict", "other.csv",
                "--weights", "w", "--inference", 1e12, "--loss", 2.2, "--json") == 0
    printed = capsys.readouterr().out.splitlines()
    report = json.loads(printed[-1])
    assert report["predict"]["mae"] < 0.01 and len(report["predict"]["rows"]) == 10
    for name, true in dict(alpha=.35, beta=.37, E=1.8).items():
        low, high = report["params"][name]["low"], report["params"][name]["high"]
        assert low < report["params"][name]["value"] < high and 2 * low - high < true < 2 * high - low
    assert report["limit"] == report["params"]["E"]["value"] and report["inference"]["N"] > 0
    # columns of this kit's runs.csv, chosen rows, constants
    rows = dict(params=[1e6, 2e6, 4e6, 8e6] * 2, val_loss=[3.5, 3.3, 3.2, 3.15, 9, 9, 9, 9], recipe=list("aaaabbbb"))
    write_points(world / "runs.csv", **rows)
    assert call(fit, "power", "runs.csv", "--x", "N", "--where", "recipe=a", "--sigma", 0.01, "--json") == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report["params"]["b"] == pytest.approx(1.0, rel=1e-4) and report["limit"] == pytest.approx(3.1, abs=1e-4)
    assert report["limit_interval"][0] < 3.1 < report["limit_interval"][1] and report["points"] == 4
    assert call(fit, "--list") == 0
    listed = capsys.readouterr().out
    assert all(f"{name}: " in listed for name in fit.LAWS) and "left out" in listed


@pytest.mark.parametrize("law, columns, options, message", [
    ("power", dict(N=[1, 2, 3], loss=[3, 2]), ["--x", "N"], None),
    ("chinchilla", dict(N=[1, 2, 3], loss=[3, 2, 1]), [], "has no column D; it has N, loss"),
    ("power", dict(N=[1, 2, "x"], loss=[3, 2, 1]), ["--x", "N"], "line 4: N is 'x', not a number"),
    ("power", dict(N=[1, 2, "nan"], loss=[3, 2, 1]), ["--x", "N"], "N of point 3 is nan"),
    ("power", dict(N=[1, 2, -3], loss=[3, 2, 1]), ["--x", "N"], "N of point 3 is -3"),
    ("power", dict(N=[1, 0, 3], loss=[3, 2, 1]), ["--x", "N"], "N of point 2 is 0"),
    ("power", dict(N=[1, 2, 3], loss=[3, 0, 1]), ["--x", "N"], "loss of point 2 is 0"),
    ("power", dict(N=[1, 2], loss=[3, 2]), ["--x", "N"], "needs 3 different points, not 2"),
    ("power", dict(N=[2, 2, 2], loss=[3, 2, 1]), ["--x", "N"], "all points have the same N"),
    ("power", dict(N=[.15, .3, 6e8, 1.4e9], loss=[4, 3, 2, 1]), ["--x", "N"], "are units mixed"),
    ("power", dict(N=[1, 2, 3], loss=[3, 2, 1]), [], "--x must name"),
    ("power", dict(N=[1, 2, 3], loss=[3, 2, 1]), ["--x", "N", "--where", "a=1"], "no column a;"),
    ("chinchilla", dict(N=[1, 2], D=[1, 2], loss=[3, 2]), ["--inference", "1e9"], "goes with chinchilla and --loss"),
    ("chinchilla", dict(N=[1, 2, 4, 8] * 2, D=[1, 2, 2, 1, 4, 4, 8, 8], loss=[3, 2, 2, 3, 1.5, 1.5, 1.25, 1.25]),
     ["--inference", "1e9", "--loss", "2"], "is at its bound: these points do not say"),
    ("power", dict(N=[1, 2, 3], loss=[3, 2, 1]), ["--x", "N", "--where", "N=7"], "has no rows left by --where"),
    ("power", dict(N=[1, 2, 3], loss=[3, 2, 1]), ["--x", "N", "--set", "V"], "take NAME=VALUE, not V"),
    ("power", dict(N=[1, 2, 3], loss=["3,1", 2, 1]), ["--x", "N"], "line 2 has more fields than the header"),
    ("power", dict(N=[1, 2, 3], loss=[3, 2, 1]), ["--x", "N", "--sigma", "0"], "--sigma 0.0 is out of range"),
    ("power", dict(N=[1, 2, 3], loss=[3, 2, 1]), ["--x", "N", "--bootstrap", "9"], "more than 3 points"),
    ("lr_annealing", dict(step=[1, 2], lr=[0, 1], curve="aa", loss=[3, 2]), [], "lr is 0 up to the first row"),
    ("powder", dict(N=[1, 2, 3], loss=[3, 2, 1]), [], "name a law: power, reciprocal, chinchilla")])
def test_bad_points_are_refused(tmp_path, law, columns, options, message):
    write_points(tmp_path / "points.csv", **columns)
    if message is None:  # a header given twice
        (tmp_path / "points.csv").write_text("N,N,loss\n1,1,3\n2,2,2\n3,3,1\n")
        message = "has the column N twice"
    done = subprocess.run([sys.executable, HERE / "fit.py", law, tmp_path / "points.csv", *options],
                          capture_output=True, text=True)
    assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1, done.stderr


def test_reciprocal_law():
    assert fit.fit_reciprocal([1, 2, 4], [4.0, 3.5, 3.25]) == {"A": pytest.approx(1.0), "E": pytest.approx(3.0)}
    assert fit.fit_reciprocal([1, 2, 3], [3.553, 3.304, 3.222])["E"] == pytest.approx(3.056, abs=0.001)
    for points in ([1, 1], [1.0, 2.0]), ([1, 2], [math.nan, 2.0]), ([0, 1], [1.0, 2.0]):
        with pytest.raises(ValueError):
            fit.fit_reciprocal(*points)


def test_fit_command_over_runs(world, capsys):
    """The paper's analysis on made-up runs and ensembles with known limits, over four sizes and three budgets."""
    def write(name, **result):
        (world / "runs" / name).mkdir(parents=True)
        (world / "runs" / name / "result.json").write_text(json.dumps({**result, "name": name}))

    sizes, k = (150_000, 300_000, 600_000, 1_400_000), np.arange(1, 6)
    for tokens, n, seed, worse in itertools.product((200_000, 400_000, 800_000), sizes, (0, 1), (0, 1)):
        level = 40 / tokens ** 0.3
        for recipe, loss in (("regularized", 5e4 / n ** 0.9 + level + 1.4), ("standard", level + 1.8)):
            settings = dataclasses.asdict(tiny_config(seed=seed, epochs=2 + worse, recipe=recipe))
            settings |= {"tokens": tokens, "size": f"{n // 1000}k", "params": n, "params_nonembedding": n // 2}
            write(f"{recipe}-{tokens}-{n}-{seed}-{worse}", **settings, val_loss=loss + 0.01 * seed + 0.1 * worse)
        if seed == worse == 0:
            losses = {kind: (A / k + 0.3 - A + 2e4 / n ** 0.9 + level + 1.2).tolist()
                      for kind, A in (("logits", 0.3), ("probs", 0.2))}
            law, probs_law = ({**fit.fit_reciprocal(k, by_k), "se": 0.01} for by_k in losses.values())
            for recipe in ("regularized", "standard"):
                write(f"ensembles/{recipe}-{tokens}-{n}", recipe=recipe, size=f"{n // 1000}k", params=n, tokens=tokens,
                      loss_by_k=losses, law=law, probs_law=probs_law, vary="seed", data_hash=settings["data_hash"])
    assert call(fit, "--csv", "runs.csv", "--figure", "claims.png", "--json") == 0
    printed = capsys.readouterr().out.splitlines()
    out = json.loads(printed[-1])
    laws = {(law["claim"], law["recipe"], str(law["tokens"])): law for law in out["laws"] if law["claim"] != "K"}
    level = 40 / 200_000 ** 0.3
    law = laws["N", "regularized", "200000"]  # the better settings, mean of two seeds
    assert (law["E"], law["b"]) == (pytest.approx(level + 1.405, abs=1e-4), pytest.approx(0.9, rel=1e-3))
    assert law["interval"][0] < law["E"] < law["interval"][1] and law["nonembedding"]["E"] == pytest.approx(law["E"])
    assert laws["N and K", "regularized", "200000"]["E"] == pytest.approx(level + 1.2, abs=1e-4)
    assert out["sigma"] == {recipe: pytest.approx(0.01 / 2 ** 0.5) for recipe in ("regularized", "standard")}
    data = {law["recipe"]: law for law in out["laws"] if law["claim"] == "D"}
    assert data["standard, best N"]["E"] == pytest.approx(1.805, abs=1e-3)
    assert data["regularized ensembles, N and K to infinity"]["E"] == pytest.approx(1.2, abs=1e-3)
    ratios = {(r["recipe"], r["tokens"]): r for r in out["data_efficiency"]}
    found = ratios["regularized, N to infinity", 200_000]
    assert found["by_law"] == pytest.approx((level / (level - 0.4)) ** (1 / 0.3), rel=1e-2)
    found = ratios["standard ensembles, N and K to infinity", 200_000]  # measured by the single models, too
    assert found["by_law"] == pytest.approx((level / (level - 0.605)) ** (1 / 0.3), rel=1e-2)
    assert any("warning: beyond its range" in line for line in printed)
    limit = 2e4 / 150_000 ** 0.9 + level + 1.2
    assert any(f"{limit:.4f}   95% {limit - .0278:.3f} to {limit + .0278:.3f} (jackknife); probability mean "
               f"{limit + .1:.3f}" in line for line in printed)
    for claim in ("sizes", "members", "data"):
        assert (world / f"claims-{claim}.png").read_bytes().startswith(b"\x89PNG")
    # the table says all that the folders do, and both together no more
    assert call(fit, "runs.csv", "--csv", "again.csv") == 0
    assert capsys.readouterr().out.splitlines() == printed[:-1]
    assert (world / "again.csv").read_text() == (world / "runs.csv").read_text()
    assert call(fit, "runs", "runs.csv", "--where", "tokens=200000", "--json") == 0
    chosen = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {p["tokens"] for p in chosen["points"]} == {200_000} and not chosen["data_efficiency"]
    assert [p for p in out["points"] if p["tokens"] == 200_000] == chosen["points"]
    # the standard recipe by epochs: the best of each count, once there are three
    write("longer", **{**settings, "recipe": "standard", "tokens": 200_000, "epochs": 9}, val_loss=9.0)
    assert call(fit, "--where", "tokens=200000", "--figure", "curves.png") == 0
    assert f"1400k at 200,000 tokens, by epochs: 2: {level + 1.805:.3f}, 3: {level + 1.905:.3f}, 9: 9.000" \
        in capsys.readouterr().out and (world / "curves-epochs.png").exists()
    (world / "runs" / "longer" / "result.json").unlink()
    assert subprocess.run([sys.executable, HERE / "fit.py", "--figure", "a.foo"], capture_output=True).returncode == 2
    assert len((world / "runs.csv").read_text().splitlines()) == 1 + 96 + 24 * 5
    # members that differ have no size, two of them no range, another recipe no style of its own; copies count once
    law = {**fit.fit_reciprocal([1, 2], [3.5, 3.3]), "se": None}
    write("ensembles/mixed", recipe=None, size=None, params=None, tokens=200_000, law=law,
          probs_law=law, loss_by_k=dict(logits=[3.5, 3.3], probs=[3.5, 3.3]), vary="size")
    settings |= {"recipe": "another", "size": "300k", "params": 300_000, "params_nonembedding": 150_000}
    for name in ("a", "copies/a"):
        write(name, **settings, val_loss=4.0)
        (world / "runs" / name / "result.json").write_text((world / "runs/a/result.json").read_text())
    assert call(fit, "--figure", "more.png") == 0
    printed = capsys.readouterr().out
    assert "ensemble K = 2    mixed" in printed and "nan" not in printed and printed.count("another") == 1
    (world / "runs" / "a" / "result.json").write_text("[]")
    done = subprocess.run([sys.executable, HERE / "fit.py"], capture_output=True, text=True)
    assert done.returncode == 2 and "a/result.json is not a JSON object" in done.stderr
    (world / "runs" / "regularized-200000-150000-0-0" / "result.json").write_text("{")
    assert subprocess.run([sys.executable, HERE / "fit.py"], capture_output=True).returncode == 2
    (world / "points.csv").write_text("N,loss\n1,2\n")
    for sources, message in ((["nowhere"], "there is no nowhere: train a run first, or name a law: power, "),
                             (["points.csv"], "points.csv is not a table that fit.py --csv wrote"),
                             (["ensembles"], "no finished run under ensembles (no result.json); train one first"),
                             (["runs.csv", "--where", "tokens=7"], "no finished run under runs.csv with tokens=7"),
                             (["power", "a.csv", "b.csv"], "the law power goes with one CSV file of points"),
                             (["power"], "the law power goes with one CSV file of points")):
        (world / "ensembles").mkdir(exist_ok=True)
        done = subprocess.run([sys.executable, HERE / "fit.py", *sources], capture_output=True, text=True)
        assert done.returncode == 2 and done.stderr.startswith(f"fit.py: error: {message}"), done.stderr
        assert done.stderr.count("\n") == 1


# --------------------------------------------------------------------------------------------------
# eval.py

def test_bits_per_byte_and_samples(world, capsys):
    result = train.train(tiny_config())
    assert call(evaluation, result["name"], "--sample", 2, "--json") == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report["kind"] == "eval" and report["runs"] == [result["name"]]
    assert report["val_loss"] == pytest.approx(result["val_loss"], rel=1e-6)
    # bytes of what is predicted: each window without its first token, decoded by tiktoken
    data = prepare.load_data("tiny")
    encoding, windows = data.tokenizer(), prepare.cut_windows(data.val, 32)[:, 1:]
    size = 0
    for window in windows.tolist():
        size += len(encoding.decode_bytes([t for t in window if t != 319]))
    bits = report["val_loss"] * windows.size / math.log(2)
    assert report["bits_per_byte"] == pytest.approx(bits / size)
    assert len(report["samples"]) == 2
    for text in report["samples"]:
        assert text.startswith(prepare.END_OF_TEXT)


# --------------------------------------------------------------------------------------------------
# All scripts

def test_importing_does_no_work_and_help_explains_every_option(tmp_path, capsys):
    code = "import prepare, model, train, ensemble, distill, fit, eval; print('quiet')"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(HERE)},
                          capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("quiet\n", "") and not list(tmp_path.iterdir())
    for script in (prepare, train, ensemble, distill, evaluation, fit):
        assert call(script, "--help") == 0
        options = capsys.readouterr().out.split("\n  -")[1:]  # each with its help, until the next
        assert len(options) >= 4
        for option in options:
            assert len(option.split("\n\n")[0].replace(option.split()[0], "").split()) >= 3, option


def test_readme_shows_what_a_committed_run_printed():
    readme = (HERE / "README.md").read_text()
    for name in ("miniature", "ladder", "certificates", "ensembles", "laws"):
        assert (HERE / f"results/1000/{name}.txt").read_text().strip() in readme


def test_the_settings_are_those_of_the_certificates_whose_runs_are_committed():
    memo = train.read_memo(HERE / "results/1000/runs.csv")
    for recipe, size in itertools.product(("standard", "regularized"), gpt.LADDER[1000]["sizes"]):
        found = json.loads((HERE / f"results/1000/certificates/{recipe}-{size}.json").read_text())
        center = tuple(found[axis] for axis in ("epochs", "lr", "weight_decay"))
        assert train.recipe_settings(recipe, size, 0) == center and len(found["losses"]) == 3
        names = {f.name for f in dataclasses.fields(train.TrainConfig)}
        config = train.TrainConfig(**{name: value for name, value in found.items() if name in names})
        for row in [{**found, "margin": 0, "verdict": ""}, *found["neighbours"]]:
            place = dataclasses.replace(config, **{axis: row[axis] for axis in ("epochs", "lr", "weight_decay")})
            seeds = range(len(row["losses"]))
            assert row["losses"] == [memo[train.run_name(dataclasses.replace(place, seed=seed))] for seed in seeds]
            assert row["verdict"] != "better"
