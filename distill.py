"""Teacher(s) -> synthetic tokens -> one student (paper, section on distillation).

    python distill.py --teacher RUN RUN RUN --sample_tokens 1048576 --synthetic_weight 0.5

Sample text from the teachers without a prompt at temperature 1, mix it with the real tokens, train a student on the
mixture with train.py's own loop. One teacher of the student's own size is self-distillation. The samples are a data
set of their own, data/sampled-..., kept for the next student.
"""
import hashlib
import json
import time
from pathlib import Path

import numpy as np
import torch

from ensemble import expand, load_members, visitor
from model import sample
from prepare import InputError, Parser, run_main, write_data
from train import TrainConfig, add_options, config_from, use_device, resolve, train


def sample_windows(models, windows, seed, device):
    """Text of the models in turn, as for the paper's best student: token ids (windows, context), each window from
    end-of-text on. (Text of the logit average costs as many times more as there are models.)

    Every batch has a generator of its own, seeded by seed and place, so that the text does not depend on history.
    """
    parts, context, started, printed = [], models[0].config.context, time.monotonic(), 0.0
    # small batches stay in a CPU's cache; on a GPU the keys and values of all layers, in fp32, stay below 8 GiB
    kept = max(8 * m.config.layers * m.config.kv_heads * m.config.width // m.config.heads for m in models) * context
    batch = 64 if torch.device(device).type == "cpu" else max(1, min(512, 2 ** 33 // kept))
    batch = min(batch, max(1, windows // len(models)))  # each has its turn
    for start in range(0, windows, batch):
        generator = torch.Generator(device).manual_seed(1_000_003 * seed + start)
        teacher = models[start // batch % len(models)]  # on a GPU one at a time, where many large ones wait on the CPU
        text = sample([visitor(teacher, device)], min(batch, windows - start), context, generator)
        parts.append(text.cpu().numpy())
        done, now = sum(map(len, parts)), time.monotonic()
        if now - printed > 10 or done == windows:
            speed, printed = done * context / (now - started), now
            print(f"sampled {done * context:,} of {windows * context:,} tokens | {speed:,.0f} tokens/s | "
                  f"{(windows - done) * context / speed:.0f} s left", flush=True)
    return np.concatenate(parts)


def sampled_data(results, models, data, tokens, seed, device):
    """Name of the data set of at least `tokens` tokens sampled from these members; sampled now if it is not there yet.

    Its validation part and tokenizer are the teachers', so it loads and evaluates like any data set.
    """
    identity = {"teachers": [(result["name"], result["data_hash"]) for result in results], "tokens": tokens,
                "seed": seed, "temperature": 1.0, "teachers_take": "turns"}
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:6]
    name = f"sampled-{results[0]['data']}-{results[0]['size']}-k{len(results)}-{digest}"
    if (Path("data") / name).exists():
        print(f"data/{name} is sampled already")
        return name
    context = results[0]["context"]
    windows = sample_windows(models, -(-tokens // context), seed, device)
    meta = {key: data.meta[key] for key in ("vocab_size", "end_of_text", "dtype", "pattern")}
    write_data(name, {"train": windows.flatten(), "val": data.val}, data.ranks(), {"identity": identity, **meta})
    return name


def main():
    parser = Parser("Sample from teachers, mix with the real tokens, train the student.")
    parser.add_argument("--teacher", nargs="+", required=True, metavar="RUN", help="finished runs or ensembles")
    parser.add_argument("--sample_tokens", type=int, default=0,
                        help="synthetic tokens to sample; 0: five times the real ones")
    parser.add_argument("--sample_seed", type=int, default=0, help="of the sampling")
    parser.add_argument("--json", action="store_true", help="print the student's result as the last line")
    add_options(parser, TrainConfig(recipe="student", synthetic_weight=0.5))
    args = parser.parse_args()
    if not 0 < args.synthetic_weight < 1 or args.sample_tokens < 0 or args.sample_seed < 0:
        raise InputError("--synthetic_weight must be between 0 and 1, --sample_tokens and --sample_seed at least 0")
    if args.synthetic:
        raise InputError("--synthetic is what this script makes; to train on a sampled set again use train.py")

    # refuse what cannot work before the sampling: the student's options, then the teachers beside them
    weight, args.synthetic_weight = args.synthetic_weight, 0.0
    student, device = config_from(args), use_device(args.device, args.threads)
    results, models, data = load_members(expand(args.teacher, args.out), args.out, device)
    for key in ("data", "context"):
        if results[0][key] != getattr(student, key):
            raise InputError(f"the teachers have {key} {results[0][key]}, the student {getattr(student, key)}; "
                             f"give --{key} {results[0][key]}")
    tokens = args.sample_tokens or 5 * student.tokens
    student.synthetic = sampled_data(results, models, data, tokens, args.sample_seed, device)
    student.synthetic_weight = weight
    del models  # the student needs their memory
    result = train(resolve(student))
    print(f"student {result['name']}: val_loss {result['val_loss']:.4f}")
    if args.json:
        print(json.dumps(result))


if __name__ == "__main__":
    run_main(main)
