"""Teacher(s) -> one student (paper, section on distillation).

    python distill.py --teacher RUN RUN RUN --sample_tokens 1048576 --synthetic_weight 0.5
    python distill.py --teacher RUN RUN RUN --mode kl

By text, as in the paper: sample from the teachers without a prompt at temperature 1, mix that with
the real tokens, train a student on the mixture with train.py's own loop. The samples are a data set
of their own, data/sampled-..., kept for the next student. By probabilities (--mode kl): the loss on
the real text is mixed with the divergence from the teachers' averaged prediction. One teacher of
the student's own size is self-distillation.
"""
import argparse
import dataclasses
import hashlib
import json
import math
import time
from pathlib import Path

import numpy as np
import torch

from ensemble import read_members
from model import sample
from prepare import InputError, Parser, run_main, write_data
from train import (TrainConfig, add_options, autocast, config_from, expand, load_models, on_device,
                   resolve, train, use_device)


# --------------------------------------------------------------------------------------------------
# Synthetic text

def sampling_batch(models, windows, device, dtype):
    """How many windows to sample at a time."""
    device = torch.device(device)
    room = 2 ** 33  # bytes
    if device.type == "cuda":
        # a quarter: the teachers may fill half, and logits and weights in bf16 need their part
        room = torch.cuda.get_device_properties(device).total_memory // 4
    # the keys and values of all layers of one window
    number_bytes = 2 if dtype == "bf16" else 4
    cache_bytes = 0
    for model in models:
        c = model.config
        numbers = 2 * c.layers * c.kv_heads * c.width // c.heads * c.context
        cache_bytes = max(cache_bytes, number_bytes * numbers)
    batch = max(1, min(512, room // cache_bytes))
    if device.type == "cpu":
        batch = 64  # small enough for a CPU's cache
    # every teacher has its turn, also where there are few windows
    return min(batch, max(1, windows // len(models)))


def sample_windows(models, windows, seed, device, dtype="fp32"):
    """Token ids (windows, context) of text that starts with end-of-text, by the models in turn.

    The paper's best student was taught so. (Text of their logit average would cost as many times
    more as there are models.) dtype: of matrix products and of the keys and values that are
    remembered, "fp32" or "bf16".
    """
    context = models[0].config.context
    batch = sampling_batch(models, windows, device, dtype)
    parts = []
    started = time.monotonic()
    printed = 0.0
    for start in range(0, windows, batch):
        # Each batch has a generator of its own, so that its text depends on its place alone.
        generator = torch.Generator(device).manual_seed(1_000_003 * seed + start)
        teacher = models[start // batch % len(models)]
        # Large teachers wait on the CPU. The copy on the GPU has no name, so that it is gone before
        # the next one comes.
        with autocast(dtype, torch.device(device)):
            text = sample([on_device(teacher, device)], min(batch, windows - start), context,
                          generator)
        parts.append(text.cpu().numpy())

        # a line now and then, and one at the end
        now = time.monotonic()
        done = start + len(text)
        if now - printed > 10 or done == windows:
            printed = now
            speed = done * context / (now - started)
            left = (windows - done) * context / speed
            print(f"sampled {done * context:,} of {windows * context:,} tokens | "
                  f"{speed:,.0f} tokens/s | {left:.0f} s left", flush=True)
    return np.concatenate(parts)


def describe_samples(teachers, tokens, seed, dtype="fp32"):
    """(name of a sampled data set, the request that it answers).

    teachers: results of runs. The name follows from the request alone, so that the same command,
    repeated or interrupted, finds what is there.
    """
    request = {"teachers": [(teacher["name"], teacher["data_hash"]) for teacher in teachers],
               "tokens": tokens, "seed": seed, "temperature": 1.0, "teachers_take": "turns"}
    # The last two are not options. They are in the hash so that other ways to sample, should there
    # be some, cannot be taken for this one.
    if dtype != "fp32":  # left out where it is, so that samples keep the names that they have
        request["dtype"] = dtype
    digest = hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()[:6]
    first = teachers[0]
    return f"sampled-{first['data']}-{first['size']}-k{len(teachers)}-{digest}", request


def sample_data(name, request, models, data, device, dtype):
    """Sample the data set data/NAME that answers a request of describe_samples.

    data: what the teachers were trained on. Validation part and tokenizer are taken from there, so
    that the samples load and evaluate like any data set.
    """
    # whole windows, so a few tokens more than were asked for
    windows = math.ceil(request["tokens"] / models[0].config.context)
    text = sample_windows(models, windows, request["seed"], device, dtype)
    meta = {key: data.meta[key] for key in ("vocab_size", "end_of_text", "dtype", "pattern")}
    parts = {"train": text.flatten(), "val": data.val}
    write_data(name, parts, data.ranks(), {"identity": request, **meta}, data.tokenizer_file())


# --------------------------------------------------------------------------------------------------
# Command line

def read_arguments():
    """The parsed command line. Raises InputError for values that cannot work."""
    parser = Parser("Train a student of one teacher or several: on text that they write, or on "
                    "their prediction of the text that there is.")
    parser.add_argument("--mode", choices=("sample", "kl"), default="sample",
                        help="sample: on text of the teachers; kl: on their prediction")
    parser.add_argument("--sample_tokens", type=int, default=0,
                        help="synthetic tokens to sample; 0: five times the real ones")
    parser.add_argument("--sample_seed", type=int, default=0, help="of the sampling")
    parser.add_argument("--json", action="store_true",
                        help="print the student's result as the last line")
    add_options(parser, TrainConfig(recipe=None, synthetic_weight=None, kl_weight=None))
    args = parser.parse_args()
    if not args.teacher:
        raise InputError("--teacher is missing; give finished runs or ensembles")
    if min(args.sample_tokens, args.sample_seed) < 0:
        raise InputError("--sample_tokens and --sample_seed must be at least 0")

    # what is not given depends on the mode
    if args.recipe is None:
        args.recipe = "kl_student" if args.mode == "kl" else "student"
    if args.mode == "kl":
        if args.sample_tokens or args.sample_seed:
            raise InputError("--sample_tokens and --sample_seed go with --mode sample")
        if args.synthetic_weight is None:
            args.synthetic_weight = 0.0
        if args.kl_weight is None:
            args.kl_weight = 0.5
        return args
    if args.synthetic_weight is None:
        args.synthetic_weight = 0.5
    if not 0 < args.synthetic_weight < 1:
        raise InputError(f"--synthetic_weight {args.synthetic_weight:g} is out of range; "
                         f"it must be between 0 and 1")
    if args.synthetic:
        raise InputError("--synthetic names a sampled set, and this script samples its own; "
                         "to train on a sampled set again use train.py, or --mode kl")
    if args.kl_weight is not None or args.kl_temperature != 1 or args.kl_on != "all":
        raise InputError("--kl_weight, --kl_temperature and --kl_on go with --mode kl")
    args.kl_weight = 0.0
    return args


def find_or_sample(args):
    """The student's config with the data set that is sampled for it, unless it is there already."""
    # Refuse what cannot work before the long sampling: the student's own options first, still
    # without teachers and mixture, because its data set has no name yet.
    plain = argparse.Namespace(**{**vars(args), "teacher": (), "synthetic_weight": 0.0})
    student = config_from(plain)
    device = use_device(args.device, args.threads)
    runs = expand(args.teacher, args.out)
    teachers, data = read_members(runs, args.out)
    # The student must read its teachers' tokens, in windows as long as theirs.
    for key in ("data", "context"):
        theirs, own = teachers[0][key], getattr(student, key)
        if theirs != own:
            raise InputError(f"the teachers have {key} {theirs}, the student {own}; "
                             f"give --{key} {theirs}")

    # At half of every epoch, five times the real text last five epochs before a sample returns.
    tokens = args.sample_tokens or 5 * student.tokens
    name, request = describe_samples(teachers, tokens, args.sample_seed, student.dtype)
    if (Path("data") / name).exists():
        print(f"data/{name} is sampled already")
    else:
        # only here, because a repeated command needs no weights of teachers
        models = load_models(runs, args.out, device)
        sample_data(name, request, models, data, device, student.dtype)
    return dataclasses.replace(student, synthetic=name, synthetic_weight=args.synthetic_weight)


def main():
    args = read_arguments()
    if args.mode == "kl":
        student = config_from(args)
    else:
        student = resolve(find_or_sample(args))
    result = train(student)
    print(f"student {result['name']}: val_loss {result['val_loss']:.4f}")
    if args.json:
        print(json.dumps(result))


if __name__ == "__main__":
    run_main(main)
