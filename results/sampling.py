"""Tokens/s of sampling beside transformers' generate, and beside training, of one model of 300k.

    python results/sampling.py > results/sampling.txt

Same weights, batch, length, temperature and vocabulary, one thread, both with a cache of keys and
values. The contestants take turns; seconds are those of this process, so that a busy neighbor
matters little. What is printed is the median over rounds with its quartiles.
"""
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))
from model import GPT, GPTConfig, SIZES, export_hugging_face, sample  # noqa: E402
from train import inputs_and_targets, make_optimizer, processor_name  # noqa: E402

BATCH, CONTEXT, VOCABULARY = 64, 256, 1024
ROUNDS = 7


def make_sampler(model, compiled):
    def run():
        generator = torch.Generator().manual_seed(0)
        return sample([model], BATCH, CONTEXT, generator, compiled=compiled).numel()
    return run


def make_generate(model):
    """transformers' generate with the same weights."""
    from transformers import LlamaForCausalLM
    with tempfile.TemporaryDirectory() as folder:
        export_hugging_face(model, f"{folder}/model")
        theirs = LlamaForCausalLM.from_pretrained(f"{folder}/model").eval()
    first = torch.full((BATCH, 1), model.config.end_of_text)
    options = dict(do_sample=True, temperature=1.0, top_k=0, top_p=1.0, pad_token_id=0,
                   eos_token_id=None, min_length=CONTEXT, max_length=CONTEXT)

    @torch.no_grad()
    def run():
        return theirs.generate(first, attention_mask=torch.ones_like(first), **options).numel()
    return run


def make_trainer(config):
    """Training as the ladder does it: compiled, four windows a step."""
    model = GPT(config)
    optimizer = make_optimizer(model, 0.1)
    forward = torch.compile(model, dynamic=False)
    windows = torch.randint(VOCABULARY, (4, CONTEXT), dtype=torch.int32)
    windows[:, ::150] = config.end_of_text

    def run():
        steps = 50
        for _ in range(steps):
            tokens, targets = inputs_and_targets(windows)
            forward(tokens, targets).mean().backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return steps * windows.numel()
    return run


def main():
    torch.set_num_threads(1)
    config = GPTConfig(vocab_size=VOCABULARY, end_of_text=VOCABULARY - 1, context=CONTEXT,
                       **SIZES["300k"])
    model = GPT(config).eval()
    contestants = {
        "sampling, compiled": make_sampler(model, True),
        "sampling, eager": make_sampler(model, False),
        "transformers' generate": make_generate(model),
        "training, compiled": make_trainer(config),
    }
    rates = {name: [] for name in contestants}
    for run in contestants.values():  # compile and warm up
        run()
    for _ in range(ROUNDS):
        for name, run in contestants.items():
            started = time.process_time()
            tokens = run()
            rates[name].append(tokens / (time.process_time() - started))

    print(f"300k, batch {BATCH}, {CONTEXT} tokens, one thread, torch {torch.__version__}, "
          f"{processor_name()}\n")
    print("| | tokens/s | compiled sampling over it |")
    print("|---|---:|---:|")
    fastest = rates["sampling, compiled"]
    for name, own in rates.items():
        ratios = [mine / other for mine, other in zip(fastest, own)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        print(f"| {name} | {statistics.median(own):,.0f} "
              f"| {middle:.2f} ({low:.2f} to {high:.2f}) |")


if __name__ == "__main__":
    main()
