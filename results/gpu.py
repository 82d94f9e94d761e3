"""What one GPU makes of this kit: kernels, speed, memory, members, sampling, resuming.

    python results/gpu.py > gpu.json            # on one H100: some nine minutes
    python results/gpu.py kernels speed         # some parts alone
    python results/gpu.py --smoke               # the same code at toy sizes, on a CPU

One JSON object: of each part what it found, its seconds, or the error that ended it. A part does
not start when nine minutes are over, and is then named under left_out. Text is random, with
documents of some 700 tokens. Two figures of MFU, both with GPT.flops_per_token() x tokens per
second: "mfu" over the rate of a large matrix product measured here, "mfu_nominal" over the 989
TFLOP/s of an H100's data sheet. Both count all of causal attention, so blocks that the document
mask skips raise them.
"""
import contextlib
import gc
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
import model as gpt  # noqa: E402
from distill import Plan, sample_batch, sampling_batch  # noqa: E402
from ensemble import Stack, member_configs  # noqa: E402
from model import GPT, GPTConfig, LADDER, SCALE_OF, SIZES  # noqa: E402
from prepare import InputError, run_main, write_data  # noqa: E402
from train import (  # noqa: E402
    Run, TrainConfig, autocast, bench, compile_on_cuda, inputs_and_targets, resolve, run_name,
    use_device)

SMOKE = "--smoke" in sys.argv
SECONDS = 540
NOMINAL = 989.4e12  # FLOP/s of an H100 SXM in bf16, dense
DEVICE = "cpu" if SMOKE else "cuda"
VOCABULARY = {1: 128_256, 10: 8192, 100: 4096, 1000: 1024}  # of each scale


# --------------------------------------------------------------------------------------------------
# What the parts share

def toy(value, small):
    """The value, or a small one in its place where this is only a rehearsal."""
    return small if SMOKE else value


def random_data(vocab_size, tokens):
    """The name of a data set of random tokens, written where it is not there yet."""
    name = f"random-{vocab_size}-{tokens}"
    if not Path("data", name).exists():
        rng = np.random.default_rng(0)
        end = vocab_size - 1
        text = rng.integers(end, size=tokens)
        text[rng.random(tokens) < 1 / 700] = end
        text[0] = end
        ranks = {i.to_bytes(3, "big"): i for i in range(end)}
        meta = {"identity": name, "vocab_size": vocab_size, "end_of_text": end,
                "dtype": "uint32", "pattern": "."}
        write_data(name, {"train": text, "val": text[:tokens // 4]}, ranks, meta)
    return name


def config_of(size, **changes):
    """The resolved configuration of a run at a size of the ladder, with its context and batch."""
    scale = SCALE_OF[size]
    rung = LADDER[scale]
    context = toy(rung["context"], 32)
    batch_size = toy(rung["batch_size"], 4)
    vocab_size = toy(VOCABULARY[scale], 64)
    tokens = 8 * batch_size * context
    settings = dict(data=random_data(vocab_size, tokens), size=size, tokens=tokens, epochs=1,
                    lr=1e-3, weight_decay=0.1, context=context, batch_size=batch_size,
                    device=DEVICE, compile=toy("1", "0"))
    return resolve(TrainConfig(**{**settings, **changes}))


def command_of(config):
    """The command line that asks for a run in a process of its own."""
    command = [sys.executable, ROOT / "train.py"]
    for name in ("data", "size", "tokens", "epochs", "lr", "weight_decay", "context", "batch_size",
                 "device", "compile"):
        command += [f"--{name}", str(getattr(config, name))]
    return command


def forget():
    """Leave nothing of earlier runs: their weights, and what was compiled for them, of which the
    compiler keeps eight kinds of a function and then goes eager without a word."""
    torch.compiler.reset()
    gc.collect()  # a run is in a cycle
    if DEVICE == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def speed_of(run, steps):
    """Tokens per second of a run, which is made anew by run()."""
    forget()
    return bench(run(), steps)["tokens_per_second"]


def measure(config, steps):
    """Speed and memory of a run: see train.bench."""
    forget()
    run = Run(config, None)
    report = bench(run, steps)
    nominal = report["tokens_per_second"] * run.model.flops_per_token() / NOMINAL
    return {"tokens_per_second": report["tokens_per_second"], "mfu": report["mfu"],
            "mfu_nominal": nominal, "peak_gb": report["peak_memory"] / 1e9,
            "estimate_gb": run.memory_bytes(run.machine["micro_batch_size"],
                                            run.machine["compile"]) / 1e9,
            "micro_batch_size": run.machine["micro_batch_size"]}


def time_of(function, repeats):
    """Seconds of a call, the best of some, after two to warm up."""
    best = float("inf")
    for i in range(repeats + 2):
        start = time.perf_counter()
        function()
        if DEVICE == "cuda":
            torch.cuda.synchronize()
        if i >= 2:
            best = min(best, time.perf_counter() - start)
    return best


# --------------------------------------------------------------------------------------------------
# The parts

def kernels():
    """The largest relative error of a gradient against the CPU's in fp32, by dtype and path.

    The operator is for compiled CUDA code; a rehearsal on a CPU has chunks in its place.
    """
    errors = {}
    tokens = torch.randint(0, 999, (2, 256), generator=torch.Generator().manual_seed(0))
    tokens[:, 0] = tokens[:, 100] = 1000
    tokens, targets = inputs_and_targets(tokens)
    config = GPTConfig(vocab_size=1001, end_of_text=1000, context=256, width=256, layers=2, heads=4,
                       kv_heads=2)
    right = GPT(config)
    right(tokens, targets).sum().backward()
    kept = gpt.CHUNK_LOGITS
    for dtype in ("fp32", "bf16"):
        for path, logits in (("in the graph", kept), ("in one operator", 2 ** 17)):
            gpt.CHUNK_LOGITS = logits
            model = GPT(config).to(DEVICE)
            forward = compile_on_cuda(model, torch.device(DEVICE))
            with autocast(dtype, torch.device(DEVICE)):
                total = forward(tokens.to(DEVICE), targets.to(DEVICE), total=True).sum()
            total.backward()
            pairs = zip(model.parameters(), right.parameters())
            errors[f"{dtype}, loss {path}"] = max(
                float((a.grad.cpu() - b.grad).norm() / b.grad.norm()) for a, b in pairs)
    gpt.CHUNK_LOGITS = kept
    return errors


def speed():
    """Each size at scale 1, and the largest and smallest of the other rungs."""
    sizes = toy(("300m", "150m", "1.4b", "140m", "14m", "1.4m", "15m", "1.5m", "150k", "600m"),
                ("150k",))
    found = {}
    for size in sizes:
        found[size] = measure(config_of(size), 5)
        print(size, json.dumps(found[size]), file=sys.stderr, flush=True)
    return found


def tiles():
    """Seconds of attention, forward and backward, by head width and FlexAttention's tiles."""
    candidates = {64: ({}, {"fwd_BLOCK_N": 64}, {"fwd_num_warps": 8}),
                  128: ({}, gpt.TILES[128])}
    found = {}
    kept = dict(gpt.TILES)
    for head_width, choices in candidates.items():
        heads = toy(8, 2)
        config = GPTConfig(vocab_size=1001, end_of_text=1000, context=toy(4096, 32), layers=1,
                           width=heads * head_width, heads=heads, kv_heads=heads, inner=64)
        tokens = torch.randint(0, 1000, (toy(16, 1), config.context), device=DEVICE)
        tokens[:, ::700] = 1000
        for choice in choices:
            gpt.TILES[head_width] = choice
            torch.compiler.reset()
            model = GPT(config).to(DEVICE)
            forward = compile_on_cuda(model.states, torch.device(DEVICE))

            def step():
                with autocast("bf16", torch.device(DEVICE)):
                    states = forward(tokens)
                states.sum().backward()
            found[f"{head_width} {choice or 'default'}"] = time_of(step, toy(10, 1))
    gpt.TILES.update(kept)
    return found


def plain_causal():
    """Beside documents: plain causal attention, as nanoGPT has it, through torch's own kernels."""
    return measure(config_of(toy("300m", "150k"), doc_mask=0), 5)


def llama():
    """transformers' Llama, plain causal, the same shape, batch and optimizer: tokens per second."""
    from transformers import LlamaConfig, LlamaForCausalLM
    config = config_of(toy("300m", "150k"))
    shape, vocab_size = SIZES[config.size], toy(VOCABULARY[1], 64)
    with torch.device(DEVICE):
        model = LlamaForCausalLM(LlamaConfig(
            vocab_size=vocab_size, hidden_size=shape["width"], rms_norm_eps=1e-5,
            intermediate_size=7 * shape["width"] // 2, num_hidden_layers=shape["layers"],
            num_attention_heads=shape["heads"], num_key_value_heads=shape["kv_heads"],
            max_position_embeddings=config.context, use_cache=False))
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    forward = compile_on_cuda(model, torch.device(DEVICE))
    micro, passes = toy((4, 16), (2, 2))
    tokens = torch.randint(0, vocab_size, (micro, config.context), device=DEVICE)

    def step():
        for _ in range(passes):
            with autocast(config.dtype, torch.device(DEVICE)):
                loss = forward(input_ids=tokens, labels=tokens).loss
            (loss / passes).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return {"tokens_per_second": passes * micro * config.context / time_of(step, 3)}


def members():
    """Tokens per second of eight small members: stacked, in eight processes, one after another."""
    count, steps = toy(8, 2), toy(50, 5)
    found = {}
    for size in toy(("300k", "3m", "15m"), ("150k",)):
        config = config_of(size)
        configs = member_configs(config, count, ["seed"])
        rates = {"one by one": speed_of(lambda: Run(config, None), steps),
                 "stacked": speed_of(lambda: Stack([Run(c, None) for c in configs]), steps)}
        if DEVICE == "cuda":
            graphs = replace(config, compile="graphs", micro_batch_size=config.batch_size)
            rates["one by one, CUDA graphs"] = speed_of(lambda: Run(graphs, None), steps)
        forget()
        command = [*command_of(config), "--bench", str(4 * steps)]
        processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
                     for _ in range(count)]
        lines = [process.communicate()[0].splitlines()[-1] for process in processes]
        # they compile first, and not all for as long, so this is more than they have side by side
        speeds = [json.loads(line)["tokens_per_second"] for line in lines]
        rates["in processes, at most"] = sum(speeds)
        found[size] = rates
    return found


def sampling():
    """Tokens per second of sampled text, one batch of it, eager and compiled (and compiling)."""
    size = toy("300m", "150k")
    config = GPTConfig(vocab_size=toy(VOCABULARY[1], 64), end_of_text=0,
                       context=toy(LADDER[1]["context"], 16), **SIZES[size])
    windows = toy(128, 4)
    models = [GPT(config).to(DEVICE)]
    dtype = toy("bf16", "fp32")
    batch = sampling_batch(models, windows, DEVICE, dtype)
    found = {"windows": windows}
    for way in toy(("eager", "compiled"), ("eager",)):
        start = time.perf_counter()
        plan = Plan(windows, batch, 0, False, str(DEVICE), way == "compiled", dtype)
        for first in range(0, windows, batch):
            sample_batch(models, plan, first)
        seconds = time.perf_counter() - start
        found[f"{way}, tokens_per_second"] = windows * config.context / seconds
    return found


def resume():
    """Whether a run that SIGKILL ended and the same command took up ends with the same bits."""
    config = config_of(toy("3m", "150k"), epochs=toy(20, 6))
    command = [*command_of(config), "--log_every", "1", "--checkpoint_seconds", "0"]
    weights = []
    for out in ("whole", "killed"):
        folder = Path(out, run_name(config))
        kills = 0
        if out == "killed":
            process = subprocess.Popen([*command, "--out", out], stdout=subprocess.DEVNULL)
            while process.poll() is None and not (folder / "resume.pt").exists():
                time.sleep(0.01)
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
                kills = 1
            process.wait()
        subprocess.run([*command, "--out", out], stdout=subprocess.DEVNULL, check=True)
        weights.append(torch.load(folder / "model.pt", weights_only=True)["weights"])
    same = all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    return {"kills": kills, "bit_exact": same}


PARTS = (kernels, speed, tiles, plain_causal, llama, members, sampling, resume)


def main():
    asked = [name for name in sys.argv[1:] if name != "--smoke"]
    names = [part.__name__ for part in PARTS]
    if unknown := sorted(set(asked) - set(names)):
        raise InputError(f"no part {', '.join(unknown)}; there are {', '.join(names)}")
    device = use_device(DEVICE)
    torch._dynamo.config.fail_on_recompile_limit_hit = True  # rather than go eager in silence
    report = {"device": str(device), "torch": torch.__version__, "smoke": SMOKE, "left_out": []}
    if DEVICE == "cuda":
        report["device"] = torch.cuda.get_device_name()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for part in PARTS:
            name = part.__name__
            if asked and name not in asked:
                continue
            if time.monotonic() - started > SECONDS:
                report["left_out"].append(name)
                continue
            start = time.monotonic()
            try:
                with contextlib.redirect_stdout(sys.stderr):  # standard output is one JSON object
                    report[name] = part()
            except Exception as error:
                # whatever it is, it is a finding as well: the other parts still have their turn
                report[name] = {"error": f"{type(error).__name__}: {str(error)[:300]}"}
            report[name]["seconds"] = time.monotonic() - start
            print(name, json.dumps(report[name]), file=sys.stderr, flush=True)
        os.chdir("/")
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    run_main(main)
