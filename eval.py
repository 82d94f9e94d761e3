"""What a loss means: validation, benchmarks and samples of any model (paper, section on downstream
tasks).

    python eval.py RUN                              # loss, perplexity, bits per byte of one run
    python eval.py RUN RUN RUN --tasks piqa,sciq    # benchmarks of their average
    python eval.py RUN --tasks FILE.jsonl continuation
    python eval.py HF_FOLDER --data NAME            # any local Llama of Hugging Face's format
    python eval.py RUN RUN --sample 2 --prompt "Returns the"
    python eval.py RUN --export_hf DIR              # a folder for transformers and lm-eval

A benchmark is answered by the log-likelihood of each choice after its question, with prompts,
tokens, truncation and scores as lm-evaluation-harness has them ("the harness" below). Several runs
are one model, whose prediction of each token is the average of theirs.

Read score_tokens(), validate() and run_task() first; the rest serves them.
"""
import copy
import functools
import importlib.util
import json
import math
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ensemble import load_members, logits_by_chunk, shared_facts
from fit import check_save, save_results
from model import GPT, check_export, export_hugging_face, sample
from prepare import (Data, HubTokenizer, InputError, Parser, cut_windows, hub_end_of_text,
                     hub_vocabulary, import_datasets, in_one_line, load_data, open_text, reach_hub,
                     refuse, run_main, token_lengths, tokenizer_json)
from train import (device_windows, expand, inputs_and_targets, is_hub_folder, refuse_copies,
                   short_hash, use_device)

# the benchmarks on the hub: data set, configuration (None: all there are), and the split that the
# harness takes: validation where the answers of the test split are not public
HUB_TASKS = {
    "piqa": ("baber/piqa", "default", "validation"),
    "sciq": ("allenai/sciq", "default", "test"),
    "arc_easy": ("allenai/ai2_arc", "ARC-Easy", "test"),
    "arc_challenge": ("allenai/ai2_arc", "ARC-Challenge", "test"),
    "hellaswag": ("Rowan/hellaswag", "default", "validation"),
    "lambada": ("EleutherAI/lambada_openai", "default", "test"),
    "winogrande": ("allenai/winogrande", "winogrande_xl", "validation"),
    "blimp": ("nyu-mll/blimp", None, "train"),
}

# The continuation task gives half of a passage; the other half is to be recognized.
PASSAGE = 256  # tokens
SHORTEST_PASSAGE = 32  # tokens; a shorter rest of a document is left out
WRONG_CHOICES = 3  # beside the true one

SAMPLED_TOKENS = 1024  # at most so many beyond a prompt: the contexts of other models are long

# Tokens of a forward pass: few enough for a CPU's cache, or what fills a GPU.
BATCH_TOKENS = {"cpu": 2 ** 11, "cuda": 2 ** 16}
# Logits that all models hold at a time: 64 MiB in fp32, or 1 GiB on a GPU.
HELD_LOGITS = {"cpu": 2 ** 24, "cuda": 2 ** 28}


# --------------------------------------------------------------------------------------------------
# The model that is evaluated

@dataclass
class Subject:
    """One or several models that are evaluated as one, and the tokenizer that they share."""
    names: list  # of the runs or folders
    models: list  # GPTs; one where weights were averaged
    dtype: str  # "fp32" or "bf16", of matrix products, as in training
    device: Any
    tokenizer: Any  # tiktoken's, or that of a tokenizer.json
    token_bytes: Any  # a function: the UTF-8 length of each token
    tokenizer_json: str  # the same tokenizer in Hugging Face's format
    facts: dict  # of the runs' setting, for the report
    data: Data | None = None  # what the runs were trained on
    average: str = "logits"  # how predictions of several models are averaged, as --average has it

    @property
    def config(self):
        """The GPTConfig of the first model; the others agree in context, mask and vocabulary."""
        return self.models[0].config

    def encode(self, text, start=True):
        """Token ids of a text, as a list. start: with the tokens that a tokenizer.json puts before
        any text, as Llama 3's does; this kit's own tokenizers put none. Raises InputError for a
        tokenizer that is not the model's."""
        if not isinstance(self.tokenizer, HubTokenizer):
            return self.tokenizer.encode_ordinary(text)
        ids = self.tokenizer.tokenizer.encode(text, add_special_tokens=start).ids
        rows = self.config.vocab_size
        if max(ids, default=0) >= rows:
            raise InputError(f"the tokenizer of {self.names[0]} gives token {max(ids)}, its model "
                             f"knows {rows}; save the tokenizer there that the model was trained "
                             f"with")
        return ids


def load_subject(names, out, device, average):
    """The Subject of runs and ensembles, or of Hugging Face folders. Raises InputError, or
    ValueError for a folder that holds no such model."""
    folders = [name for name in names if is_hub_folder(name)]
    if folders and len(folders) < len(names):
        raise InputError(f"{folders[0]} is a Hugging Face folder and others are runs; export the "
                         f"runs (--export_hf) to average them with it")
    if folders:
        subject = load_folders(names, device)
    else:
        subject = load_runs(names, out, device)
    subject.average = average
    if average == "weights":  # one model from here on, so nothing is left to average
        subject.models = [average_weights(subject.models)]
    return subject


def load_runs(names, out, device):
    """The Subject of finished runs."""
    results, models, data = load_members(expand(names, out), out, device)
    # the setting of an ensemble is what its members share
    facts = shared_facts(results)
    tokenizer = data.tokenizer()
    path = data.tokenizer_file()
    if path:
        text = path.read_text()
    else:  # a set that was prepared before each had this file
        text = tokenizer_json(data.ranks(), data.meta["pattern"], data.meta["vocab_size"])
    return Subject([result["name"] for result in results], models, results[0]["dtype"], device,
                   tokenizer, data.token_bytes, text, facts, data)


def load_folders(names, device):
    """The Subject of Hugging Face folders with one tokenizer."""
    if len({Path(name).resolve() for name in names}) < len(names):
        raise InputError("a folder is given twice; a member counts once")
    models, first_need = [], None
    for name in names:
        path = Path(name) / "tokenizer.json"
        if not path.exists():
            raise InputError(f"{name} has no tokenizer.json; save the tokenizer there "
                             f"(AutoTokenizer.from_pretrained(...).save_pretrained(FOLDER))")
        model = GPT.from_pretrained(name).eval().to(device)
        # the tokenizer's word, as for a prepared set; config.json may say another
        with in_one_line(f"the tokenizer in {name}"):
            named = hub_end_of_text(Path(name))
        if named is not None:
            model.config.end_of_text = named
        if model.config.end_of_text >= model.config.vocab_size:
            raise InputError(f"{name}: the first token of its tokenizer is beyond the model's "
                             f"vocabulary; save the tokenizer that goes with it")
        models.append(model)
        # An average needs the same tokens in the same places; sizes may differ.
        need = (path.read_text(), model.config.vocab_size, model.config.context)
        first_need = first_need or need
        if need != first_need:
            raise InputError(f"{name} and {names[0]} differ in tokenizer, vocabulary or context; "
                             f"they cannot be averaged")
    refuse_copies(names, models)
    first = Path(names[0])
    text, vocab_size, _ = first_need

    def token_bytes():  # when it is asked for: benchmarks need no vocabulary
        ranks = hub_vocabulary(first).ranks
        # encode() refuses ids beyond the model's
        known = {token: i for token, i in ranks.items() if i < vocab_size}
        return token_lengths(known, vocab_size)

    tokenizer = HubTokenizer(first / "tokenizer.json", models[0].config.end_of_text)
    return Subject(names, models, "fp32", device, tokenizer, token_bytes, text, {})


def average_weights(models):
    """The soup: one model whose weights are the means of theirs. Raises InputError for models of
    different shapes.

    It works for models that share a part of their training, as in continued pre-training from one
    start; of runs from scratch the mean is noise (paper, section on continued pre-training).
    """
    if any(model.config != models[0].config for model in models):
        raise InputError("--average weights needs models of one size")
    soup = copy.deepcopy(models[0])
    states = [model.state_dict() for model in models]
    soup.load_state_dict({name: sum(state[name] for state in states) / len(states)
                          for name in states[0]})
    return soup


# --------------------------------------------------------------------------------------------------
# Predictions: the log-probability of tokens under the average

def average_logs(logs, average):
    """Log-probabilities of the average of models, (P, V). logs: theirs, fp32 (P, V) each."""
    if len(logs) == 1:
        return logs[0]
    logs = torch.stack(logs)
    if average == "probs":  # log(1/K sum of p), without leaving logarithms, where p would be 0
        return logs.logsumexp(0) - math.log(len(logs))
    # A model's logits and log-probabilities differ by one number a position, which the softmax
    # cancels: the mean of either is the same prediction.
    return logs.mean(0).log_softmax(-1)


@torch.no_grad()
def score_tokens(subject, states_of, targets):
    """(log-probability, whether it is the likeliest token) of each target: (P,) each, on the CPU.

    states_of(model): the input of the head at the P positions that predict, (P, C). targets: int64
    (P,), the tokens that are to be predicted there.
    """
    held = HELD_LOGITS.get(subject.device.type, HELD_LOGITS["cpu"])
    chunk = max(8, held // (len(subject.models) * subject.config.vocab_size))
    logs, likeliest = [], []
    for part, logits in logits_by_chunk(subject.models, states_of, subject.dtype, subject.device,
                                        chunk):
        wanted = targets[part, None]
        alone = [one.log_softmax(-1) for one in logits]
        predicted = average_logs(alone, subject.average)  # (p, V)
        logs.append(predicted.gather(-1, wanted)[:, 0])
        likeliest.append(predicted.argmax(-1) == wanted[:, 0])
    return torch.cat(logs).cpu(), torch.cat(likeliest).cpu()


# --------------------------------------------------------------------------------------------------
# Validation: the loss, its error and its course

def window_nats(subject, windows):
    """Nats of each prediction in windows (W, T): float64 (W, T - 1)."""
    T = windows.shape[1]
    budget = BATCH_TOKENS.get(subject.device.type, BATCH_TOKENS["cpu"])
    # windows have one length, so they need no padding and are simply taken in turn
    batch = max(1, budget // T)
    found = []
    for start in range(0, len(windows), batch):
        tokens, targets = inputs_and_targets(windows[start:start + batch])

        def states_of(model):
            # the last position predicts nothing
            return model.states(tokens)[:, :-1].flatten(0, 1)

        logs, _ = score_tokens(subject, states_of, targets[:, :-1].flatten())
        found.append(-logs.double().view(-1, T - 1))
    return torch.cat(found).numpy()


def error_over_documents(nats, documents):
    """Standard error of the mean of nats when documents, not tokens, are the random draws; None for
    fewer than two documents.

    nats, documents: the loss of each prediction and the number of its document, same shape. Losses
    within a document are alike, so an error over tokens would be far too small.
    """
    _, index, counts = np.unique(documents, return_inverse=True, return_counts=True)
    if len(counts) < 2:
        return None
    # Documents differ in length, so the mean is a ratio: nats over predictions, both summed over
    # documents. To first order its error is that of the residuals (Cochran, Sampling Techniques).
    residuals = np.bincount(index.ravel(), nats.ravel()) - nats.mean() * counts
    draws = len(counts)
    return math.sqrt(draws / (draws - 1) * (residuals ** 2).sum()) / nats.size


def perplexity_of(loss):
    """e^loss, or the largest float where that is beyond it: a result in JSON has no infinity."""
    return math.exp(min(loss, math.log(sys.float_info.max)))


def loss_by_position(nats, windows, end_of_text, doc_mask):
    """Mean loss by how many tokens a prediction sees, in powers of two: [{"from", "to", "loss",
    "predictions"}]. nats: (W, T - 1) of windows (W, T).

    Where attention stays inside documents, only tokens of the prediction's own document count.
    """
    places = np.arange(windows.shape[1] - 1)
    # where the text that each position sees begins, (W, T - 1): with its window or its document
    begins = np.zeros_like(windows[:, :-1], dtype=np.int64)
    if doc_mask:
        starts = np.where(windows[:, :-1] == end_of_text, places, 0)
        begins = np.maximum.accumulate(starts, axis=1)
    seen = places + 1 - begins  # (W, T - 1)
    # most of what context brings comes early, so the steps grow
    _, lengths = np.frexp(seen)  # binary digits of each number
    rows = []
    for digits in np.unique(lengths).tolist():
        inside = lengths == digits
        rows.append({"from": 2 ** (digits - 1), "to": 2 ** digits - 1,
                     "loss": float(nats[inside].mean()), "predictions": int(inside.sum())})
    return rows


def validation_tokens(subject, data):
    """(tokens of a set's validation text as the model reads it, whether those are the set's own).

    Only then is a loss in nats per token comparable with that of runs on the set.
    """
    if subject.data and subject.data.meta["sha256"] == data.meta["sha256"]:
        return data.val, True
    # Another tokenizer reads the same text in other tokens. Whether it is another shows when the
    # text is encoded anew.
    documents = split_documents(data)
    decode = data.tokenizer().decode
    texts = [decode(document[1:]) for document in documents]
    tokens = [[subject.config.end_of_text, *subject.encode(text, start=False)] for text in texts]
    # the last document is not compared: it may have been cut inside a word
    if tokens == documents or (len(tokens) > 1 and tokens[:-1] == documents[:-1]):
        return data.val, True
    return np.concatenate(tokens), False


def split_documents(data):
    """The validation documents of a set: lists of tokens, each of which begins with end-of-text."""
    starts = np.flatnonzero(data.val == data.meta["end_of_text"])
    return [document.tolist() for document in np.split(data.val, starts)[1:]]


def validate(subject, data):
    """The report on validation text as a dict: losses in nats per token, and bits per byte.

    Losses and perplexity are null with another tokenizer than the set's, because its tokens are
    another unit. Raises InputError for tokens that the model does not know.
    """
    tokens, same = validation_tokens(subject, data)
    # the embedding would fail on such an id, on a GPU without saying why
    if tokens.max() >= subject.config.vocab_size:
        raise InputError(f"{data.folder} has tokens beyond the model's vocabulary")
    # a model with a long context may read a short text as one window
    windows = cut_windows(tokens, min(subject.config.context, len(tokens)))
    lengths = subject.token_bytes()  # refuses a tokenizer whose tokens are no bytes, so before work
    nats = window_nats(subject, device_windows(tokens, windows.shape[1], subject.device))
    end_of_text = subject.config.end_of_text
    # a prediction belongs to the document of the predicted token
    documents = (windows == end_of_text).cumsum().reshape(windows.shape)[:, 1:]
    loss, error = float(nats.mean()), error_over_documents(nats, documents)
    # From nats per token to bits per byte, which compare across tokenizers: by the UTF-8 bytes of
    # the predicted tokens alone, since the first token of a window is given.
    text_bytes = int(lengths[windows[:, 1:]].sum())
    bits = nats.size / math.log(2) / text_bytes
    report = {"data": data.folder.name, "data_hash": data.fingerprint(),
              "val_loss": loss, "val_loss_se": error, "perplexity": perplexity_of(loss),
              "bits_per_byte": loss * bits, "bits_per_byte_se": error and error * bits,
              "val_tokens": len(tokens),
              "window": windows.shape[1],  # longer windows give lower losses
              "loss_by_position": loss_by_position(nats, windows, end_of_text,
                                                   subject.config.doc_mask)}
    if not same:
        report |= dict.fromkeys(("val_loss", "val_loss_se", "perplexity", "loss_by_position"))
    return report


# --------------------------------------------------------------------------------------------------
# Benchmarks: items of many formats as pairs of context and continuation

@dataclass
class Item:
    """A question with the choices that are scored after it."""
    pairs: list  # (context, continuation) of each choice, texts or lists of tokens
    gold: int  # index of the right choice
    sizes: list | None = None  # characters of each choice, for acc_norm; None: it has none


def choice_item(query, choices, gold):
    """The Item of a question and its answers, which follow after a space. Raises TypeError."""
    if not isinstance(choices, list):  # a text would be taken for a list of letters
        raise TypeError("the choices are no list")
    return Item([(query, f" {choice}") for choice in choices], gold,
                [len(choice) for choice in choices])  # without the space, as in the harness


# Prompts below are the harness's to the character: another space would change an accuracy.

def read_listed(row):
    return choice_item(row["query"], row["choices"], row["gold"])


def read_piqa(row):
    return choice_item(f"Question: {row['goal']}\nAnswer:", [row["sol1"], row["sol2"]],
                       row["label"])


def read_sciq(row):
    choices = [row[name] for name in ("distractor1", "distractor2", "distractor3",
                                      "correct_answer")]
    support = row["support"].lstrip()
    return choice_item(f"{support}\nQuestion: {row['question']}\nAnswer:", choices, 3)


def read_arc(row):
    """Both of ARC's layouts: nested as it was published, flat as it is on the hub."""
    question, choices = row["question"], row.get("choices")
    if isinstance(question, dict):
        question, choices = question["stem"], question["choices"]
    if isinstance(choices, list):  # a choice a row becomes a list a column
        choices = {key: [choice[key] for choice in choices] for key in ("text", "label")}
    return choice_item(f"Question: {question}\nAnswer:", choices["text"],
                       choices["label"].index(row["answerKey"]))


def read_hellaswag(row):
    def clean(text):
        # WikiHow's headings stand in brackets; in this order, as in the harness
        text = re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". "))
        return text.replace("  ", " ")

    query = f"{row['activity_label']}: {row['ctx_a']} {row['ctx_b'].capitalize()}"
    return choice_item(clean(query), [clean(ending) for ending in row["endings"]], row["label"])


def read_winogrande(row):
    """The rest of the sentence is scored, after each of the two names.

    So the two scored texts are the same, and their lengths play no part.
    """
    before, _, after = row["sentence"].partition("_")
    pairs = [(before + row[name], f" {after.strip()}") for name in ("option1", "option2")]
    return Item(pairs, int(row["answer"]) - 1)


def read_blimp(row):
    # two whole sentences after nothing; the grammatical one should be the likelier
    return Item([("", f" {row[name]}") for name in ("sentence_good", "sentence_bad")], 0)


def read_lambada(row):
    """One choice, the last word: right where each of its tokens is the likeliest."""
    words = row["text"].split(" ")
    return Item([(" ".join(words[:-1]), f" {words[-1]}")], 0)


# A line is read by the first format of which it has all keys. SciQ comes first, because its files
# may also have query, choices and gold, but without the supporting text.
FORMATS = (
    (("support", "question", "correct_answer", "distractor1"), read_sciq),
    (("query", "choices", "gold"), read_listed),
    (("goal", "sol1", "sol2", "label"), read_piqa),
    (("question", "answerKey"), read_arc),
    (("ctx_a", "ctx_b", "endings", "activity_label", "label"), read_hellaswag),
    (("sentence", "option1", "option2", "answer"), read_winogrande),
    (("sentence_good", "sentence_bad"), read_blimp),
    (("text",), read_lambada),
)


def read_item(row, where):
    """The Item of a row in one of FORMATS. Raises InputError that begins with `where`."""
    if not isinstance(row, dict):
        raise InputError(f"{where} is not a JSON object")
    # a null would be read as the word None
    given = [key for key in row if row[key] is not None]
    readers = [reader for keys, reader in FORMATS if set(keys) <= set(given)]
    if not readers:
        raise InputError(f"{where} has the fields {', '.join(given) or 'of no kind'}, which are no "
                         f"benchmark's; give lines with query, choices and gold")
    try:
        item = readers[0](row)
        if not str(item.gold).isdecimal():  # hub and files have it as number or text, not as 1.5
            raise ValueError(f"gold {item.gold!r} is not the number of a choice, from 0")
        item.gold = int(str(item.gold))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{where} is not in the format of its fields "
                         f"({type(error).__name__}: {error})") from None
    if not 0 <= item.gold < len(item.pairs):  # counted from 0
        raise InputError(f"{where} has gold {item.gold}, but {len(item.pairs)} choices")
    # An empty choice would have log-likelihood 0, and so be the likeliest of all.
    for i, (context, continuation) in enumerate(item.pairs):
        if not isinstance(context, str):
            raise InputError(f"{where}: the question is no text")
        if not continuation.strip():
            raise InputError(f"{where}: choice {i} is empty")
    return item


def read_file(path):
    """Items of a local file of JSON lines, packed or not."""
    rows, places, number = [], [], 0
    try:
        with open_text(path) as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    rows.append(json.loads(line))
                    places.append(f"{path} line {number}")
    except Exception as error:  # a damaged archive raises its packer's own kind
        raise InputError(f"{path} line {number} is no JSON ({error})") from None
    # PIQA was published as two files: questions, and beside them a label a line
    labels = path.with_name(f"{path.name.removesuffix('.gz').removesuffix('.jsonl')}-labels.lst")
    if labels.exists():
        golds = labels.read_text().split()
        if not all(isinstance(row, dict) for row in rows):
            raise InputError(f"{path} has {labels.name} beside it, but not a JSON object a line")
        if len(golds) != len(rows):
            raise InputError(f"{labels} has {len(golds)} labels for {len(rows)} lines of {path}")
        rows = [{**row, "label": gold} for row, gold in zip(rows, golds)]
    return [read_item(row, place) for row, place in zip(rows, places)]


def read_hub(task):
    """Items of a benchmark on the hub. Raises InputError where it is out of reach."""
    repository, config, split = HUB_TASKS[task]
    by_hand = f"fetch its file elsewhere and give it as --tasks {task}.jsonl"
    datasets = import_datasets(f"--tasks {task}")
    reach_hub(repository, by_hand)
    rows = []
    with in_one_line(repository, advice=by_hand):
        configs = [config]
        if config is None:  # BLiMP is 67 small data sets under one name
            configs = datasets.get_dataset_config_names(repository)
        for name in configs:
            rows += datasets.load_dataset(repository, name, split=split)
    return [read_item(row, f"{repository} row {i}") for i, row in enumerate(rows)]


def continuation_items(data, context):
    """Which of four continuations is the true one? Items made of a set's validation documents.

    Each document is cut into passages of PASSAGE tokens, or of the model's context where that is
    shorter. The first half of a passage is the question, the second half the right answer; the
    three others are second halves of other documents, cut to the same number of tokens. So even
    models too small for any benchmark can be compared; chance is right once in four. Contexts and
    continuations are lists of tokens of the set.
    """
    size = min(PASSAGE, context)
    passages = []  # (number of the document, first half, second half)
    for number, document in enumerate(split_documents(data)):
        for begin in range(0, len(document), size):
            passage = document[begin:begin + size]
            half = len(passage) // 2
            # half of the rest of a document may be too few words to tell by
            if len(passage) >= min(SHORTEST_PASSAGE, size):
                passages.append((number, passage[:half], passage[half:]))

    documents = np.array([number for number, _, _ in passages])
    lengths = np.array([len(right) for _, _, right in passages])
    rng = np.random.default_rng(0)  # fixed: models of one context get the same choices
    items = []
    for number, question, right in passages:
        # Of other documents, long enough to be cut to this length: the sum of log-likelihoods
        # prefers the shorter choice, so all must be equally long.
        others = np.flatnonzero((documents != number) & (lengths >= len(right)))
        if len(others) < WRONG_CHOICES:
            continue  # a set of very few documents
        wrong = rng.choice(others, WRONG_CHOICES, replace=False)
        choices = [passages[i][2][:len(right)] for i in wrong]
        gold = int(rng.integers(WRONG_CHOICES + 1))
        choices.insert(gold, right)
        items.append(Item([(question, choice) for choice in choices], gold))
    return items


def find_items(task, subject, data, limit):
    """The items of a task, given by file or name. Raises InputError."""
    path = Path(task)
    if task == "continuation":
        if data is None:
            raise InputError("--tasks continuation is made of a prepared set; give --data NAME")
        items = continuation_items(data, subject.config.context)
        # a model with another tokenizer gets the same items as texts, without the end-of-text that
        # opens a document, which only the set's own tokenizer knows
        if not validation_tokens(subject, data)[1]:
            decode = data.tokenizer().decode
            for item in items:
                item.pairs = [(decode(a).removeprefix(decode([data.meta["end_of_text"]])),
                               decode(b)) for a, b in item.pairs]
    elif path.is_file():
        items = read_file(path)
    elif task in HUB_TASKS:
        items = read_hub(task)
    else:
        raise InputError(f"--tasks {task} is neither a file nor one of "
                         f"{', '.join([*HUB_TASKS, 'continuation'])}")
    if not items:
        raise InputError(f"--tasks {task} has no items")
    return items[:limit or None]


# --------------------------------------------------------------------------------------------------
# Answers: the log-likelihood of each choice
#
# The choices of an item mostly begin alike, with the question. So they go through the model as one
# row of tokens that stands for a tree: the trunk that they share, once, then a branch for the rest
# of each, which sees the trunk and itself alone. Choices that share less than half go one by one,
# because attention over a row costs the square of its length.

def encode_pair(subject, context, continuation, encode):
    """(tokens, how many of them at the end are the continuation), as the harness splits them.

    encode: subject.encode, or a version that remembers the question's tokens.
    """
    if not isinstance(context, str):  # tokens already
        return [*context, *continuation], len(continuation)
    if not context:  # end-of-text stands in for the question, to predict the first token from
        tokens = subject.encode(continuation, start=False)
        if tokens[0] == subject.config.end_of_text:
            return tokens, len(tokens) - 1
        return [subject.config.end_of_text, *tokens], len(tokens)
    # tokens begin with a space but seldom end with one, so spaces go with what follows
    bare = context.rstrip()
    if bare:
        continuation = context[len(bare):] + continuation
        context = bare
    # encoded as one text: a tokenizer may join letters across the seam
    tokens = encode(context + continuation)
    return tokens, len(tokens) - len(encode(context))


@dataclass
class Tree:
    """One choice of an item, or all, as a row of L tokens."""
    tokens: list  # (L,), as the next two
    positions: list  # of each token in its own choice, for the rotary embedding
    branches: list  # of each token: 0 in the trunk, i + 1 in the branch of choice i
    scored: list  # (choice, column that predicts, token to predict) of each scored token


def make_trees(sequences):
    """The Trees of an item, one if its choices share most of their tokens, or one for each.

    sequences: of each choice (tokens, how many at the end are scored).
    """
    inputs = [tokens[:-1] for tokens, _ in sequences]  # the last token predicts nothing
    shared = len(os.path.commonprefix(inputs))
    numbered = list(enumerate(sequences))
    if 2 * shared >= max(map(len, inputs)):
        return [join_choices(numbered, shared)]
    return [join_choices([choice], 0) for choice in numbered]


def join_choices(numbered, shared):
    """The Tree of [(choice, (tokens, how many are scored))], whose first `shared` tokens agree."""
    first = numbered[0][1][0]
    tree = Tree(first[:shared], list(range(shared)), [0] * shared, [])
    for choice, (tokens, count) in numbered:
        begin, own = len(tree.tokens), tokens[shared:-1]
        tree.tokens += own
        tree.positions += range(shared, shared + len(own))
        tree.branches += [choice + 1] * len(own)
        # The token in each column predicts the next. First come the columns of the trunk, whose
        # last one predicts the branch's first token.
        columns = [*range(shared), *range(begin, begin + len(own))]
        predictions = list(zip(columns, tokens[1:]))
        tree.scored += [(choice, *prediction) for prediction in predictions[-count:]]
    return tree


def tree_states(model, tokens, positions, branches):
    """The input of the head for padded trees, (B, L, C). tokens, positions, branches: int64 (B, L);
    padding has branch -1, which no other token sees."""
    # GPT.states() with a mask and positions of our own
    causal = torch.ones(tokens.shape[1], tokens.shape[1], dtype=torch.bool,
                        device=tokens.device).tril()
    ours, theirs = branches[:, :, None], branches[:, None, :]
    # a branch sees the trunk, which has number 0, and itself
    mask = (causal & ((theirs == 0) | (theirs == ours)))[:, None]  # (B, 1, L, L)
    rotary = model.cos[positions][:, None], model.sin[positions][:, None]  # (B, 1, L, D)
    x = model.embedding(tokens)
    for block in model.blocks:
        x = block(x, rotary, mask)
    return model.norm(x)


def cut_batches(trees, budget):
    """Yields trees in batches of similar length, at most `budget` padded tokens each. trees:
    [(number of its item, Tree)]."""
    # Neighbors of similar length waste little on padding. The longest come first, so that what
    # does not fit in memory fails at once.
    trees = sorted(trees, key=lambda owned: -len(owned[1].tokens))
    while trees:
        count = max(1, budget // len(trees[0][1].tokens))
        yield trees[:count]
        trees = trees[count:]


def pad(rows, value, device):
    """Lists of different length as one int64 tensor: (B, L)."""
    length = max(map(len, rows))
    return torch.tensor([row + [value] * (length - len(row)) for row in rows], device=device)


def encode_items(subject, items):
    """(items that the model can read, their sequences, how many of these were truncated).

    Sequences of an item: (tokens, how many at the end are scored) of each choice. Raises InputError
    for a choice without a token of its own.
    """
    context = subject.config.context
    kept, encoded = [], []
    truncated = 0
    for item in items:
        encode = functools.cache(subject.encode)  # for this item: choices mostly share a question
        sequences = [encode_pair(subject, *pair, encode) for pair in item.pairs]
        counts = [count for _, count in sequences]
        if min(counts) < 1:  # without a token of its own it would be the likeliest of all
            raise InputError(f"a choice adds no token to its question: {item.pairs}")
        if max(counts) > context:
            continue  # cut, its log-likelihood would lack its beginning
        # cut from the left to what the model can read; the last token it need not read
        truncated += sum(len(tokens) > context + 1 for tokens, _ in sequences)
        kept.append(item)
        encoded.append([(tokens[-(context + 1):], count) for tokens, count in sequences])
    return kept, encoded, truncated


def answer(subject, encoded):
    """(log-likelihoods, likeliest), a list for each item: of each choice its log-likelihood in
    nats, and True if all its tokens were the likeliest. encoded: sequences of encode_items()."""
    trees = [(number, tree) for number, sequences in enumerate(encoded)
             for tree in make_trees(sequences)]
    logs = [[0.0] * len(sequences) for sequences in encoded]
    likeliest = [[True] * len(sequences) for sequences in encoded]
    budget = BATCH_TOKENS.get(subject.device.type, BATCH_TOKENS["cpu"])
    for batch in cut_batches(trees, budget):
        numbers, some = zip(*batch)
        tokens = pad([tree.tokens for tree in some], 0, subject.device)
        positions = pad([tree.positions for tree in some], 0, subject.device)
        branches = pad([tree.branches for tree in some], -1, subject.device)
        scored = [(row, *place) for row, tree in enumerate(some) for place in tree.scored]
        # (row, choice, column, token to predict) of all scored tokens of the batch: (P,) each
        rows, _, columns, targets = torch.tensor(scored, device=subject.device).T

        def states_of(model):
            return tree_states(model, tokens, positions, branches)[rows, columns]

        scores = zip(scored, *score_tokens(subject, states_of, targets))
        for (row, choice, _, _), log, best in scores:
            logs[numbers[row]][choice] += float(log)
            likeliest[numbers[row]][choice] &= bool(best)
    return logs, likeliest


def mean_and_error(values):
    """(mean, standard error) of right and wrong answers; the error of a single one is None."""
    values = np.asarray(values, dtype=float)
    if len(values) < 2:
        return float(values.mean()), None
    return float(values.mean()), float(values.std(ddof=1) / math.sqrt(len(values)))


def information(subject, encoded, logs):
    """What each question tells of its choices, in nats: log p(choice | question) - log p(choice), a
    list for each item. encoded and logs: of encode_items() and answer().

    A choice that is likely anywhere loses that: pointwise mutual information, with end-of-text
    alone before the choice for the second. (The harness has this accuracy as acc_mutual_info.)
    """
    end_of_text = subject.config.end_of_text
    # the same tokens of each choice, without its question
    alone = [[([end_of_text, *tokens[-count:]], count) for tokens, count in sequences]
             for sequences in encoded]
    return [np.subtract(*pair) for pair in zip(logs, answer(subject, alone)[0])]


def run_task(subject, items, name):
    """Accuracy of a task as a dict: acc takes the choice of the largest log-likelihood, acc_norm of
    the largest per character, so that short choices have no advantage. On the continuation task
    acc_mutual_info takes that of the largest information(). Raises InputError."""
    kept, encoded, truncated = encode_items(subject, items)
    if not kept:
        raise InputError(f"--tasks {name}: every item has a choice longer than the model's context "
                         f"of {subject.config.context} tokens")
    logs, likeliest = answer(subject, encoded)
    right, right_norm = [], []
    for item, log, best in zip(kept, logs, likeliest):
        if len(log) == 1:  # nothing to choose from: right if greedy decoding would write it
            right.append(best[0])
            continue
        right.append(np.argmax(log) == item.gold)
        if item.sizes:
            right_norm.append(np.argmax(np.divide(log, item.sizes)) == item.gold)
    result = {"items": len(kept), "left_out": len(items) - len(kept), "truncated": truncated}
    result["acc"], result["acc_se"] = mean_and_error(right)
    if right_norm:
        result["acc_norm"], result["acc_norm_se"] = mean_and_error(right_norm)
    if all(len(log) == 1 for log in logs):  # LAMBADA's second figure: of whole words, not tokens
        result["perplexity"] = perplexity_of(-np.mean(logs))
    if name == "continuation":
        right = [np.argmax(nats) == item.gold
                 for item, nats in zip(kept, information(subject, encoded, logs))]
        result["acc_mutual_info"], result["acc_mutual_info_se"] = mean_and_error(right)
    return result


def print_task(name, result):
    """One line of a task's result."""
    measures = [key for key in ("acc", "acc_norm", "acc_mutual_info") if key in result]
    line = ", ".join(f"{key} {describe(result[key], result[f'{key}_se'])}" for key in measures)
    line = f"{name}: {line}"
    if "perplexity" in result:
        line += f", perplexity {result['perplexity']:.2f}"
    print(f"{line}, {result['items']} items")
    if result["left_out"]:
        print(f"{name}: {result['left_out']} items were left out, since a choice is longer than "
              f"the model's context")
    if result["truncated"]:
        print(f"{name}: {result['truncated']} sequences are longer than the model's context and "
              f"were cut from the left")


def describe(value, error):
    """A figure with its standard error, if it has one."""
    if error is None:
        return f"{value:.4f}"
    return f"{value:.4f} +- {error:.4f}"


# --------------------------------------------------------------------------------------------------
# Samples

def write_samples(subject, count, prompt, seed):
    """{name: texts} of each model and, if there are several, of their average: `count` texts each.
    Raises InputError for a prompt that fills the context."""
    context = subject.config.context
    tokens = subject.encode(prompt, start=False)
    if len(tokens) + 1 >= context:  # with the end-of-text before it
        raise InputError(f"--prompt has {len(tokens)} tokens and leaves no room in the model's "
                         f"context of {context}")
    length = min(context, len(tokens) + 1 + SAMPLED_TOKENS)
    # models that were left on the CPU (load_models) must all be on the device to sample a token
    models = [model.to(subject.device) for model in subject.models]
    sources = {name: [model] for name, model in zip(subject.names, models)}
    if len(models) < len(subject.names):  # the soup is none of those that were named
        sources = {"average weights": models}
    elif len(models) > 1:
        sources["average"] = models
    found = {}
    for name, some in sources.items():
        # own random numbers, so that the same command prints the same text
        generator = torch.Generator(subject.device).manual_seed(seed)
        windows = sample(some, count, length, generator, prompt=tokens)
        found[name] = [subject.tokenizer.decode(window) for window in windows.tolist()]
    return found


# --------------------------------------------------------------------------------------------------
# Command line

def read_arguments():
    """The parsed command line. Raises InputError or ValueError for what cannot work."""
    parser = Parser("Validation loss, benchmarks and samples of runs or of Hugging Face folders, "
                    "averaged if several.")
    parser.add_argument("models", nargs="+", metavar="RUN|HF_FOLDER",
        help="finished runs, ensembles, or folders of Hugging Face's format")
    add = parser.add_argument_group("which models, and how").add_argument
    add("--out", default="runs", help="folder of the runs")
    add("--average", choices=("logits", "probs", "weights"), default="logits",
        help="how several are averaged; weights: one model of their mean weights")
    add("--device", default="auto", help="auto (cuda, then mps, then cpu) or a torch device")
    add("--threads", type=int, default=1, help="CPU threads")
    add = parser.add_argument_group("validation and benchmarks").add_argument
    add("--data", metavar="NAME",
        help="data set to validate on (default: what the runs were trained on)")
    add("--tasks", nargs="+", action="extend", default=[], metavar="TASK|FILE",
        help=f"benchmarks: {', '.join(HUB_TASKS)}, continuation (of the data's own validation "
             "text), or files; commas part names as well")
    add("--limit", type=int, default=0, metavar="N",
        help="only the first N items of each task; 0: all")
    add = parser.add_argument_group("samples").add_argument
    add("--sample", type=int, default=0, metavar="N",
        help="texts to sample from each model and from their logit average, of at most "
             f"{SAMPLED_TOKENS:,} tokens beyond the prompt")
    add("--prompt", default="", help="text that each sample continues")
    add("--seed", type=int, default=0, help="seed of the samples")
    add = parser.add_argument_group("what is written").add_argument
    add("--export_hf", metavar="DIR", help="one model as a Hugging Face Llama folder")
    add("--save", metavar="FILE.jsonl",
        help="add the report to a file of results, one JSON object a line")
    add("--study", default="eval", help="label of the saved line")
    add("--json", action="store_true", help="print everything as JSON on the last line")
    args = parser.parse_args()
    if min(args.sample, args.limit) < 0:
        raise InputError("--sample and --limit must be at least 0")
    if not 0 <= args.seed < 2 ** 63:
        raise InputError("--seed must be at least 0 and below 2^63")
    if not args.sample:
        refuse(args, ["prompt", "seed"], "without --sample")
    if not args.tasks:
        refuse(args, ["limit"], "without --tasks")
    if not args.save:
        refuse(args, ["study"], "without --save")
    # each once, in the order that was asked for
    args.tasks = list(dict.fromkeys(
        name for task in args.tasks for name in task.split(",") if name))
    if "tasks" in args.given and not args.tasks:
        raise InputError("--tasks names no task")
    # looked at now, because the evaluation before it can take a while
    if args.save:
        check_save(args.save)
    if args.export_hf and importlib.util.find_spec("safetensors") is None:
        raise InputError("--export_hf needs the package safetensors; install it with "
                         "pip install safetensors")
    return args


def export(subject, folder):
    """Write the subject's one model as a Hugging Face folder, and say what that cannot hold."""
    export_hugging_face(subject.models[0], folder, subject.tokenizer_json)
    print(f"{folder} holds the model and its tokenizer for transformers and lm-eval")
    # The same weights attend to more there, which would change every loss without a word.
    if subject.config.doc_mask:
        print("this model was trained with attention inside documents alone, which Llama in "
              "transformers lacks: give it one document at a time")


def evaluate(subject, args):
    """All that was asked for, printed and as one dict. Its "loss" and "error" (1 - the mean
    accuracy over tasks) are what the law of downstream error fits (python fit.py downstream), or
    "error_mutual_info" with --columns error=error_mutual_info."""
    data = subject.data
    if args.data:
        data = load_data(args.data)
    # first, because a wrong task should be told before a long validation
    items = {task: find_items(task, subject, data, args.limit) for task in args.tasks}
    # the same question to the same models has one name, so that --save replaces the old answer
    request = [subject.names, args.average, args.tasks, args.limit, args.data]
    report = {"kind": "eval", "study": args.study,
              "name": f"{Path(subject.names[0]).name}-k{len(subject.names)}-{short_hash(request)}",
              **subject.facts, "runs": subject.names, "average": args.average,
              "params": sum(model.parameter_count() for model in subject.models)}
    print(f"{len(subject.models)} model(s), {report['params']:,} parameters")
    if data is None and not args.tasks and not args.sample:
        print("no text to measure a loss on: give --data NAME")
    if data is not None:
        report |= validate(subject, data)
        report["loss"] = report["val_loss"]
        bits = describe(report["bits_per_byte"], report["bits_per_byte_se"])
        if report["val_loss"] is None:
            print(f"{report['data']}: {bits} bits per byte (another tokenizer, so no nats), in "
                  f"windows of {report['window']} tokens")
        else:
            loss = describe(report["val_loss"], report["val_loss_se"])
            print(f"{report['data']}: val_loss {loss} nats per token, perplexity "
                  f"{report['perplexity']:.2f}, {bits} bits per byte, in windows of "
                  f"{report['window']} tokens")
            places = [f"to {row['to']}: {row['loss']:.3f}" for row in report["loss_by_position"]]
            print(f"loss by number of tokens seen, in powers of two: {', '.join(places)}")
    if args.tasks:
        report["tasks"] = {}
        for task in args.tasks:
            report["tasks"][task] = run_task(subject, items[task], task)
            print_task(task, report["tasks"][task])
        report["error"] = 1 - np.mean([result["acc"] for result in report["tasks"].values()])
    if "continuation" in args.tasks:
        # the better measure there: results/README.md, make downstream, compares both
        report["error_mutual_info"] = 1 - report["tasks"]["continuation"]["acc_mutual_info"]
    if args.sample:
        # of several models from the logit average, the paper's ensemble, even after --average probs
        report["samples"] = write_samples(subject, args.sample, args.prompt, args.seed)
    return report


def main():
    args = read_arguments()
    device = use_device(args.device, args.threads)
    if args.export_hf:
        # An average of several predictions has no weights of its own that could be written.
        count = len(expand(args.models, args.out))
        if count > 1 and args.average != "weights":
            raise InputError(f"--export_hf writes one run, not {count}; distill.py makes one of "
                             f"several (--average weights, too, where all continue one run)")
        check_export(args.export_hf)
    subject = load_subject(args.models, args.out, device, args.average)
    report = evaluate(subject, args)
    if args.export_hf:
        export(subject, args.export_hf)
    if args.save:
        save_results(args.save, [report])
    # last, because a terminal may not have the letters that a model writes
    for i in range(args.sample):
        for name, texts in report["samples"].items():
            print(f"--- sample {i + 1} of {name}\n{texts[i]}")
    if args.json:
        print(json.dumps(report))


if __name__ == "__main__":
    run_main(main)
