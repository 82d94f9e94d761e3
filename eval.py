"""What a run or an ensemble is worth: validation loss, bits per byte, samples.

    python eval.py RUN                      # one model
    python eval.py RUN RUN RUN --sample 3   # their average, and three samples of its text
    python eval.py RUN --export_hf DIR      # for transformers' LlamaForCausalLM
"""
import importlib.util
import json
import math

import torch

from ensemble import expand, load_members, subset_losses
from model import export_hugging_face, sample
from prepare import InputError, Parser, cut_windows, run_main
from train import device_windows, use_device


def bits_per_byte(loss, data, context):
    """Nats per prediction to bits per byte of the text predicted: comparable across tokenizers.

    The total over all validation predictions, end-of-text included, over the UTF-8 bytes of the predicted tokens.
    """
    predicted = cut_windows(data.val, context)[:, 1:]
    return loss * predicted.size / math.log(2) / int(data.token_bytes()[predicted].sum())


def main():
    parser = Parser("Validation loss, bits per byte and samples of runs, averaged if several.")
    parser.add_argument("runs", nargs="+", metavar="RUN", help="finished runs or ensembles")
    parser.add_argument("--average", choices=("logits", "probs"), default="logits", help="how several are averaged")
    parser.add_argument("--sample", type=int, default=0, metavar="N", help="windows of text to sample (logit average)")
    parser.add_argument("--seed", type=int, default=0, help="of the samples")
    parser.add_argument("--device", default="auto", help="auto (cuda, then mps, then cpu) or a torch device")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--out", default="runs", help="folder of the runs")
    parser.add_argument("--export_hf", metavar="DIR", help="write one run as a Hugging Face Llama folder")
    parser.add_argument("--json", action="store_true", help="print everything as the last line")
    args = parser.parse_args()
    if args.sample < 0:
        raise InputError(f"--sample {args.sample} is out of range; it must be at least 0")
    if args.export_hf and importlib.util.find_spec("safetensors") is None:
        raise InputError("--export_hf needs the package safetensors; install it with pip install safetensors")

    device = use_device(args.device, args.threads)
    results, models, data = load_members(expand(args.runs, args.out), args.out, device)
    context, everyone = results[0]["context"], tuple(range(len(models)))
    losses = subset_losses(models, device_windows(data.val, context, device), [everyone], results[0]["dtype"])
    loss = losses[args.average][everyone]
    report = {"runs": [result["name"] for result in results], "average": args.average, "val_loss": loss,
              "bits_per_byte": bits_per_byte(loss, data, context), "val_tokens": len(data.val),
              "params": sum(model.parameter_count() for model in models), "samples": []}
    print(f"{len(models)} model(s), {report['params']:,} parameters: val_loss {loss:.4f} nats per token, "
          f"{report['bits_per_byte']:.4f} bits per byte")

    if args.export_hf:
        if len(models) > 1:
            raise InputError(f"--export_hf writes one run, not {len(models)}")
        export_hugging_face(models[0], args.export_hf)
        print(f"{args.export_hf} holds config.json and model.safetensors")
        if models[0].config.doc_mask:
            print("trained with attention inside documents alone, which such models lack: give them one at a time")
    if args.sample:
        tokenizer, generator = data.tokenizer(), torch.Generator(device).manual_seed(args.seed)
        windows = sample([model.to(device) for model in models], args.sample, context, generator).tolist()
        report["samples"] = [tokenizer.decode(window) for window in windows]
        print("\n".join(f"--- sample {i}\n{text}" for i, text in enumerate(report["samples"], 1)))
    if args.json:
        print(json.dumps(report))


if __name__ == "__main__":
    run_main(main)
