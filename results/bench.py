"""Tokens/s of this kit beside transformers' LlamaForCausalLM + torch.optim.AdamW.

    python results/bench.py 1.5m 6m > results/100/bench.json

Same shapes, one thread, one run: context 256, batch 4, vocabulary 4,096, fp32, documents blocked in
both; beside them transformers as most people run it, plain causal. The contestants take turns, a
few steps each, so that a drift of the machine's speed meets all of them; a ratio is the median over
rounds of that within a round, and its spread is the quartiles.
"""
import functools
import json
import statistics
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))
from model import GPT, GPTConfig, SIZES, dense_document_mask  # noqa: E402
from train import inputs_and_targets, make_optimizer, processor_name  # noqa: E402

B, T, V = 4, 256, 4096
ROUNDS = 31


def ours(size, compiled):
    model = GPT(GPTConfig(vocab_size=V, end_of_text=V - 1, context=T, **SIZES[size]))
    optimizer = make_optimizer(model, 0.1)
    forward = torch.compile(model, dynamic=False) if compiled else model

    def step(windows):
        tokens, targets = inputs_and_targets(windows)
        (forward(tokens, targets).sum() / (B * (T - 1))).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return step


def transformers_llama(size, compiled, blocked=True):
    from transformers import LlamaConfig, LlamaForCausalLM
    shape = SIZES[size]
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=V, hidden_size=shape["width"], intermediate_size=7 * shape["width"] // 2,
        num_hidden_layers=shape["layers"], num_attention_heads=shape["heads"], rms_norm_eps=1e-5,
        num_key_value_heads=shape["kv_heads"], max_position_embeddings=T, use_cache=False))
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.95), weight_decay=0.1)
    forward = torch.compile(model, dynamic=False) if compiled else model

    def step(windows):
        tokens = windows.long()
        mask = None
        if blocked:  # (B, 1, T, T), boolean: passed on to the fused attention as it is
            mask = dense_document_mask(tokens, V - 1)
        forward(input_ids=tokens, attention_mask=mask, labels=tokens).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return step


def main():
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    windows = torch.randint(V - 1, (B, T), generator=generator, dtype=torch.int32)
    # a document is some 200 tokens long
    windows[torch.rand(B, T, generator=generator) < 1 / 200] = V - 1
    report = {"torch": torch.__version__, "context": T, "batch_size": B, "vocab_size": V,
              "threads": 1, "rounds": ROUNDS, "processor": processor_name()}
    contestants = {"limitgpt": ours, "transformers": transformers_llama,
                   "transformers plain causal": functools.partial(transformers_llama,
                                                                  blocked=False)}
    for size in sys.argv[1:]:
        steps = {f"{name} {mode}": make(size, mode == "compiled")
                 for name, make in contestants.items()
                 for mode in ("eager", "compiled")}
        rates = {name: [] for name in steps}
        for step in steps.values():  # compile and warm up
            step(windows), step(windows)
        for _ in range(ROUNDS):
            for name, step in steps.items():
                start = time.perf_counter()
                for _ in range(5):
                    step(windows)
                rates[name].append(5 * B * T / (time.perf_counter() - start))
        mine = rates["limitgpt compiled"]
        quartiles = {name: statistics.quantiles([a / b for a, b in zip(mine, r)], n=4)
                     for name, r in rates.items()}
        report[size] = {
            "tokens_per_second": {name: round(statistics.median(r)) for name, r in rates.items()},
            "limitgpt_compiled_over": {
                name: {"median": round(middle, 3), "quartiles": [round(low, 3), round(high, 3)]}
                for name, (low, middle, high) in quartiles.items() if name != "limitgpt compiled"}}
        print(size, report[size], file=sys.stderr)
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
