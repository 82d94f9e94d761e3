"""What a run or an ensemble is worth: validation loss, bits per byte, samples.

    python eval.py RUN                      # one model
    python eval.py RUN RUN RUN --sample 3   # their average, and three samples of its text
    python eval.py RUN --export_hf DIR      # for transformers' LlamaForCausalLM
"""
import importlib.util
import json
import math

import torch

from ensemble import load_members, subset_losses
from model import export_hugging_face, sample
from prepare import InputError, Parser, cut_windows, run_main
from train import device_windows, expand, use_device


def bits_per_byte(loss, data, context):
    """Nats per prediction to bits per byte of the predicted text, comparable across tokenizers.

    The total over all validation predictions, end-of-text included, over the UTF-8 bytes of the
    predicted tokens.
    """
    predicted = cut_windows(data.val, context)[:, 1:]  # the first token of a window is given
    text_bytes = int(data.token_bytes()[predicted].sum())
    # nats to bits, then per byte instead of per token
    return loss * predicted.size / math.log(2) / text_bytes


def evaluate_average(results, models, data, average, device):
    """The report on runs, averaged by "logits" or "probs" if there are several, as a dict."""
    # one run is the average of itself, so it takes the same path as several
    context = results[0]["context"]
    everyone = tuple(range(len(models)))
    windows = device_windows(data.val, context, device)
    losses = subset_losses(models, windows, [everyone], results[0]["dtype"])
    loss = losses[average][everyone]
    return {
        "kind": "eval",
        "runs": [result["name"] for result in results],
        "average": average,
        "val_loss": loss,
        "bits_per_byte": bits_per_byte(loss, data, context),
        "val_tokens": len(data.val),
        "params": sum(model.parameter_count() for model in models),
        "samples": [],
    }


def sample_texts(models, data, count, seed, device):
    """`count` windows of text from the models' logit average, decoded."""
    # own random numbers, so that the same command prints the same text
    generator = torch.Generator(device).manual_seed(seed)
    # a large ensemble was left on the CPU to be evaluated; to sample, all must be on the device
    models = [model.to(device) for model in models]
    windows = sample(models, count, models[0].config.context, generator)
    tokenizer = data.tokenizer()
    return [tokenizer.decode(window) for window in windows.tolist()]


# --------------------------------------------------------------------------------------------------
# Command line

def read_arguments():
    """The parsed command line. Raises InputError for values that cannot work."""
    parser = Parser("Validation loss, bits per byte and samples of runs, averaged if several.")
    parser.add_argument("runs", nargs="+", metavar="RUN", help="finished runs or ensembles")
    parser.add_argument("--average", choices=("logits", "probs"), default="logits",
                        help="how several are averaged")
    parser.add_argument("--sample", type=int, default=0, metavar="N",
                        help="windows of text to sample (logit average)")
    parser.add_argument("--seed", type=int, default=0, help="of the samples")
    parser.add_argument("--device", default="auto",
                        help="auto (cuda, then mps, then cpu) or a torch device")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--out", default="runs", help="folder of the runs")
    parser.add_argument("--export_hf", metavar="DIR",
                        help="write one run as a Hugging Face Llama folder")
    parser.add_argument("--json", action="store_true", help="print everything as the last line")
    args = parser.parse_args()
    if args.sample < 0:
        raise InputError(f"--sample {args.sample} is out of range; it must be at least 0")
    # looked for before the evaluation, which can take a while
    if args.export_hf and importlib.util.find_spec("safetensors") is None:
        raise InputError("--export_hf needs the package safetensors; install it with "
                         "pip install safetensors")
    return args


def main():
    args = read_arguments()
    device = use_device(args.device, args.threads)
    runs = expand(args.runs, args.out)
    # An average of several has no weights of its own that could be written.
    if args.export_hf and len(runs) > 1:
        raise InputError(f"--export_hf writes one run, not {len(runs)}")

    results, models, data = load_members(runs, args.out, device)
    report = evaluate_average(results, models, data, args.average, device)
    print(f"{len(models)} model(s), {report['params']:,} parameters: "
          f"val_loss {report['val_loss']:.4f} nats per token, "
          f"{report['bits_per_byte']:.4f} bits per byte")

    if args.export_hf:
        export_hugging_face(models[0], args.export_hf)
        print(f"{args.export_hf} holds config.json and model.safetensors")
        # The weights are the same there, but what they see is not. So say it.
        if models[0].config.doc_mask:
            print("this model was trained with attention inside documents alone, which Llama in "
                  "transformers lacks: give it one document at a time")
    if args.sample:
        # always from the logit average, whatever average was evaluated: it is the paper's ensemble
        report["samples"] = sample_texts(models, data, args.sample, args.seed, device)
        for i, text in enumerate(report["samples"], 1):
            print(f"--- sample {i}\n{text}")
    if args.json:
        print(json.dumps(report))


if __name__ == "__main__":
    run_main(main)
