"""Teacher(s) -> one student (paper, section on distillation).

    python distill.py --teacher RUN RUN RUN --sample_tokens 1048576 --synthetic_weight 0.5
    python distill.py --teacher RUN RUN RUN --mode kl

By text, as in the paper: sample from the teachers without a prompt at temperature 1, mix that with
the real tokens, train a student on the mixture with train.py's own loop. The samples are a data set
of their own, data/sampled-..., kept for the next student. By probabilities (--mode kl): the loss on
the real text is mixed with the divergence from the teachers' averaged prediction (model.py,
guided_nats). One teacher of the student's own size is self-distillation.

Read sample_batch() and find_or_sample() first; the rest serves them.
"""
import argparse
import concurrent.futures
import contextlib
import dataclasses
import json
import math
import multiprocessing
import os
import shutil
import time
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np
import torch

from ensemble import read_members
from model import sample
from prepare import InputError, Parser, refuse, run_main, write_atomically, write_data
from train import (InUse, TrainConfig, add_options, autocast, check_share, claim, config_from,
                   expand, fit_together, load_models, on_device, place_job, read_run, resolve, say,
                   short_hash, train, use_compile, use_device)


# --------------------------------------------------------------------------------------------------
# Synthetic text

COMPILE_FROM = 2 ** 20  # so many tokens to sample are worth some seconds of compiling


@dataclasses.dataclass
class Plan:
    """What each batch of a sampled text depends on, beside the teachers."""
    windows: int  # of the whole text
    batch: int  # windows of one batch
    seed: int
    average: bool  # whether every token is drawn from the teachers' mean logits
    device: str
    compiled: bool
    dtype: str  # of matrix products and of the keys and values remembered: "fp32" or "bf16"


def sampling_batch(models, windows, device, dtype, sharing=1, average=False):
    """How many windows to sample at a time, where `sharing` processes share the device.

    windows: how many there are to sample; average: whether all models sample at once. Raises
    InputError where the models leave no room on a GPU.
    """
    device = torch.device(device)
    number_bytes = 2 if dtype == "bf16" else 4
    weights, window = [], []  # bytes of each model, and of what it holds of each window
    for model in models:
        c = model.config
        embedding = c.vocab_size * c.width
        weights.append(4 * embedding + number_bytes * (model.parameter_count() - embedding))
        # keys and values (hence 2) of all layers
        cache = number_bytes * 2 * c.layers * c.kv_heads * c.width // c.heads * c.context
        window.append(cache + 5 * 4 * c.vocab_size)  # logits, and what drawing makes of them
    at_once = sum if average else max  # in turn: one model's windows at a time

    room = 2 ** 33
    if device.type == "cuda":
        held = sum if average or fit_together(models, device) else max
        # a fifth stays free for copies of a layer's keys and values
        memory = torch.cuda.get_device_properties(device).total_memory
        room = memory * 4 // 5 // sharing - held(weights)
    batch = min(512, room // at_once(window))
    if device.type == "cpu":
        batch = 64  # small enough for a CPU's cache
    if batch < 1:
        raise InputError("the teachers leave no room to sample on the GPU; give fewer --jobs, "
                         "--sample_from members, or --device cpu")
    # one batch a teacher at least, so that none is left out where there are few windows
    return min(batch, max(1, windows // len(models)))


def store_low(model, dtype):
    """Keep the matrices of a model in bf16, if that is the dtype, for good: autocast would make
    them anew at every token. What it leaves in fp32 stays so; the results are the same."""
    if dtype != "bf16":
        return
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            # a parameter of its own: a tied head must leave the embedding as it is
            module.weight = torch.nn.Parameter(module.weight.bfloat16(), requires_grad=False)


def sample_batch(models, plan, start):
    """The windows from number `start` on: token ids (batch, context); each starts with end-of-text.

    One of the teachers writes them, in turn with the others, as for the paper's best student; or,
    with plan.average, all of them at every token, which costs as many times more as there are
    teachers.
    """
    taken = models
    if not plan.average:
        taken = [models[start // plan.batch % len(models)]]
    for model in taken:
        store_low(model, plan.dtype)
    # Large teachers wait on the CPU; their copies on the GPU are gone when this call ends.
    teachers = [on_device(model, plan.device) for model in taken]
    # Each batch has a generator of its own, so that its text depends on its place alone, not on the
    # process that samples it. The factor, a large prime, keeps the batches of two seeds apart.
    seed = (1_000_003 * plan.seed + start) % 2 ** 63
    generator = torch.Generator(plan.device).manual_seed(seed)
    count = min(plan.batch, plan.windows - start)
    with autocast(plan.dtype, torch.device(plan.device)):
        # the last batch may be smaller: another shape would be compiled anew, for one batch
        compiled = plan.compiled and count == plan.batch
        text = sample(teachers, count, models[0].config.context, generator, compiled=compiled)
    return text.cpu().numpy()


def sample_share(models, plan, folder, job=0, jobs=1, heartbeat=lambda: None):
    """Sample one share of a text's batches, each into a file of `folder`: every `jobs`-th from
    number `job` on. A batch that is there already is kept, so a killed command goes on."""
    starts = range(0, plan.windows, plan.batch)
    context = models[0].config.context
    started = printed = time.monotonic()
    # what an earlier command has left counts as done, but not for the speed
    before = len(list(folder.glob("*.npy")))
    parent = multiprocessing.parent_process()  # None in the command itself
    for start in starts[job::jobs]:
        file = folder / f"{start}.npy"
        if file.exists():
            continue
        if parent and not parent.is_alive():  # nobody is left to put the text together
            return
        text = sample_batch(models, plan, start)
        heartbeat()
        write_atomically(file, lambda out: np.save(out, text))

        # a line every ten seconds, from one process, about the batches of all
        now = time.monotonic()
        if job == 0 and (now - printed > 10 or start == starts[-1]):
            printed = now
            batches = len(list(folder.glob("*.npy")))
            speed = (batches - before) * plan.batch * context / (now - started)
            left = (len(starts) - batches) * plan.batch * context / speed
            print(f"sampled {batches} of {len(starts)} batches of {plan.batch * context:,} tokens "
                  f"| {speed:,.0f} tokens/s | {left:.0f} s left", flush=True)


def sample_apart(runs, args, plan, folder, job):
    """sample_share() in a process of its own, on a GPU of its own where there are several."""
    device, _ = place_job(args.device, job, args.jobs)
    plan = dataclasses.replace(plan, device=str(use_device(device, args.threads)))
    sample_share(load_models(runs, args.out, plan.device), plan, folder, job, args.jobs)


def share_out(runs, args, plan, folder, heartbeat):
    """sample_share() in args.jobs processes. Raises InputError where one is killed."""
    spawn = multiprocessing.get_context("spawn")  # a fork would share CUDA's state
    try:
        # one task a process, so that it ends with it: if this one is killed none waits for more
        with concurrent.futures.ProcessPoolExecutor(
                args.jobs, spawn, max_tasks_per_child=1) as processes:
            shares = [processes.submit(sample_apart, runs, args, plan, folder, job)
                      for job in range(args.jobs)]
            # this process holds the folder, so it gives the sign of life
            while concurrent.futures.wait(shares, timeout=10).not_done:
                heartbeat()
            # result() raises here what a process raised
            for share in shares:
                share.result()
    except BrokenProcessPool:
        raise InputError("a process that sampled was killed, for want of memory perhaps; nothing "
                         "is lost: run the same command again") from None


def describe_samples(teachers, args, tokens, dtype):
    """(name of a sampled data set, the request that it answers, as a dict).

    teachers: results of runs. The name follows from the request alone, so that the same command,
    repeated after an end or a kill, finds what is there.
    """
    taken = {"members": "turns", "ensemble": "average"}[args.sample_from]
    request = {"teachers": [(teacher["name"], teacher["data_hash"]) for teacher in teachers],
               "tokens": tokens, "seed": args.sample_seed, "temperature": 1.0,
               "teachers_take": taken}
    # The temperature is no option yet. It stands in the request, so that samples of another one, if
    # there ever are some, get another name.
    if dtype != "fp32":  # newer than the first samples, which keep their names
        request["dtype"] = dtype
    digest = short_hash(request)
    first = teachers[0]
    return f"sampled-{first['data']}-{first['size']}-k{len(teachers)}-{digest}", request


def sample_data(name, request, runs, args, data, device):
    """Sample the data set data/NAME that answers a request of describe_samples.

    data: what the teachers were trained on. The validation part and the tokenizer are taken from
    there, so that the samples are a data set like any other.
    """
    # several processes load the teachers themselves; this one then needs their shapes alone
    models = load_models(runs, args.out, device if args.jobs == 1 else "cpu")
    dtype = request.get("dtype", "fp32")
    # whole windows, so a few tokens more than were asked for
    windows = math.ceil(request["tokens"] / models[0].config.context)
    average = request["teachers_take"] == "average"
    _, sharing = place_job(args.device, 0, args.jobs)
    batch = sampling_batch(models, windows, device, dtype, sharing, average)
    # on a GPU only where it is asked for: it is not measured there yet
    wanted = device.type == "cpu" or args.compile == "1"
    compiled = (wanted and request["tokens"] >= COMPILE_FROM
                and use_compile(args.compile, device))
    plan = Plan(windows=windows, batch=batch, seed=request["seed"], average=average,
                device=str(device), compiled=compiled, dtype=dtype)
    # The batches sampled so far. Text depends on the batch size, and by rounding on how it is
    # computed, so the folder is named after these: a command repeated elsewhere begins anew.
    way = "compiled" if compiled else "eager"
    folder = Path("data") / f".{name}-{device.type}-{way}-{batch}"
    folder.mkdir(parents=True, exist_ok=True)
    with claim(folder) as heartbeat:
        if args.jobs == 1:
            sample_share(models, plan, folder, heartbeat=heartbeat)
        else:
            share_out(runs, args, plan, folder, heartbeat)
        # the same command on another device, with other batches, may have been faster
        if not (Path("data") / name).exists():
            parts = [np.load(folder / f"{start}.npy") for start in range(0, windows, batch)]
            # what says how to read tokens; the rest, such as counts and hashes, is made anew
            meta = {key: data.meta[key] for key in ("vocab_size", "end_of_text", "pattern")}
            write_data(name, {"train": np.concatenate(parts).flatten(), "val": data.val},
                       data.ranks(), {"identity": request, **meta}, data.tokenizer_file())
    # only now, when the data set is whole
    shutil.rmtree(folder, ignore_errors=True)


# --------------------------------------------------------------------------------------------------
# Command line

# Defaults that depend on the mode; --help tells them beside it.
DEFAULTS = {"sample": {"recipe": "student", "synthetic_weight": 0.5, "kl_weight": 0.0},
            "kl": {"recipe": "kl_student", "synthetic_weight": 0.0, "kl_weight": 0.5}}


def read_arguments():
    """The parsed command line. Raises InputError for values that cannot work."""
    parser = Parser("Train a student of one teacher or several: on text that they write, or on "
                    "their prediction of the text that there is.")
    parser.add_argument("--mode", choices=("sample", "kl"), default="sample",
                        help="sample: on text of the teachers (recipe student, synthetic_weight "
                        "0.5); kl: on their prediction (recipe kl_student, kl_weight 0.5)")
    parser.add_argument("--sample_tokens", type=int, default=0,
                        help="synthetic tokens to sample; 0: five times the real ones")
    parser.add_argument("--sample_seed", type=int, default=0, help="seed of the sampling")
    parser.add_argument("--sample_from", choices=("members", "ensemble"), default="members",
                        help="members: each teacher in turn writes a batch of windows; ensemble: "
                        "each token is drawn from their mean logits")
    parser.add_argument("--jobs", type=int, default=1, help="processes that share the sampling")
    parser.add_argument("--json", action="store_true",
                        help="print the student's result as the last line")
    add_options(parser, TrainConfig(**dict.fromkeys(DEFAULTS["kl"])))
    args = parser.parse_args()
    if not args.teacher:
        raise InputError("--teacher is missing; give finished runs or ensembles")
    if min(args.sample_tokens, args.sample_seed) < 0 or args.jobs < 1:
        raise InputError("--sample_tokens and --sample_seed must be at least 0, --jobs at least 1")

    for name, value in DEFAULTS[args.mode].items():
        if name not in args.given:
            setattr(args, name, value)
    if args.mode == "kl":
        refuse(args, ["sample_tokens", "sample_seed", "sample_from", "jobs"], "in --mode kl")
        return args
    refuse(args, ["kl_weight", "kl_temperature", "kl_on"], "without --mode kl")
    if not 0 < args.synthetic_weight < 1:
        raise InputError(f"--synthetic_weight {args.synthetic_weight:g} is out of range; "
                         f"it must be between 0 and 1")
    if args.synthetic:
        raise InputError("--synthetic names a sampled set, and this script samples its own; "
                         "to train on a sampled set again use train.py, or --mode kl")
    return args


def find_or_sample(args):
    """The student's config with the name of its sampled data set, which is sampled if it is
    missing. Raises InputError for options and teachers that do not go together."""
    # Refuse what cannot work before the long sampling: the student's own options first, still
    # without the mixture, which may be missing, and without teachers, which only write here.
    plain = argparse.Namespace(**{**vars(args), "teacher": (), "synthetic_weight": 0.0})
    student = config_from(plain)
    check_share(dataclasses.replace(student, synthetic_weight=args.synthetic_weight))
    device = use_device(args.device, args.threads)
    runs = expand(args.teacher, args.out)
    teachers, data = read_members(runs, args.out)
    # The student must read its teachers' tokens, in windows as long as theirs.
    for key in ("data", "context"):
        theirs, own = teachers[0][key], getattr(student, key)
        if theirs != own:
            raise InputError(f"the teachers have {key} {theirs}, the student {own}; "
                             f"give --{key} {theirs}")

    # With half of each epoch synthetic, five times the real text last five epochs before a repeat.
    tokens = args.sample_tokens or 5 * student.tokens
    windows = math.ceil(tokens / student.context)
    if args.sample_from == "members" and windows < len(runs):
        raise InputError(f"{tokens} tokens are {windows} windows, less than one for each of the "
                         f"{len(runs)} teachers; raise --sample_tokens")
    name, request = describe_samples(teachers, args, tokens, student.dtype)
    if (Path("data") / name).exists():
        say(f"data/{name} is sampled already")
        # a kill after the last batch leaves these
        for batches in Path("data").glob(f".{name}-*"):
            with contextlib.suppress(InUse, FileNotFoundError), claim(batches):
                shutil.rmtree(batches)
    else:
        if "RANK" in os.environ:
            raise InputError("sample without torchrun first (--jobs); the same command under "
                             "torchrun then trains")
        # only here, because a repeated command needs no weights of teachers
        sample_data(name, request, runs, args, data, device)
    return dataclasses.replace(student, synthetic=name, synthetic_weight=args.synthetic_weight)


def main():
    args = read_arguments()
    if "data" not in args.given:  # the text that the teachers know
        args.data = read_run(expand(args.teacher, args.out)[0], args.out)["data"]
    if args.mode == "kl":
        student = config_from(args)
    else:
        student = resolve(find_or_sample(args))
    result = train(student)
    say(f"student {result['name']}: val_loss {result['val_loss']:.4f}")
    if args.json:
        say(json.dumps(result))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    run_main(main)
