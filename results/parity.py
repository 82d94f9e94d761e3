"""eval.py beside lm-evaluation-harness: the same items, models and CPU thread.

    python results/parity.py BENCH_FOLDER smollm2=HF_FOLDER run=EXPORTED_RUN > results/parity.txt

BENCH_FOLDER holds piqa_valid.jsonl, piqa_valid-labels.lst, sciq_validation.jsonl.gz and
arc_easy_validation.jsonl. The harness runs its own task definitions, with the data set replaced by
these files, on its `hf` model; it needs the packages lm-eval and accelerate. Its answers take most
of the time, so they are kept beside the model, in FOLDER-harness.json. Speed is items per second of
user CPU time, tokenization included and loading left out, because other work may share the machine.
"""
import gzip
import json
import resource
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))
import eval as evaluation  # noqa: E402
from train import use_device  # noqa: E402

TASKS = {"piqa": "piqa_valid.jsonl", "sciq": "sciq_validation.jsonl.gz",
         "arc_easy": "arc_easy_validation.jsonl"}
ITEMS = 200  # of each task
BATCH = 8  # requests a forward pass of the harness


def choose_items(bench_folder, task, model_folder):
    """Indices of the first items of a task whose choices fit in the model's context, for certain:
    in characters, of which a token has at least one. The harness stops at a longer one."""
    context = json.loads((Path(model_folder) / "config.json").read_text())
    context = context["max_position_embeddings"]
    items = evaluation.read_file(bench_folder / TASKS[task])
    fitting = [i for i, item in enumerate(items) if max(item.sizes) < context]
    return fitting[:ITEMS], items


def read_rows(folder, task, indices):
    """Items of a task, with the fields of its data set on the hub."""
    path = folder / TASKS[task]
    text = path.read_bytes()
    if path.suffix == ".gz":
        text = gzip.decompress(text)
    lines = text.splitlines()
    rows = [json.loads(lines[i]) for i in indices]
    if task == "piqa":
        labels = (folder / "piqa_valid-labels.lst").read_text().split()
        return [{**row, "label": int(labels[i])} for row, i in zip(rows, indices)]
    if task == "sciq":
        fields = ("question", "distractor1", "distractor2", "distractor3", "correct_answer",
                  "support")
        return [{field: row[field] for field in fields} for row in rows]
    # the file has the prompt in place of the question
    found = []
    for row in rows:
        question = row["query"].removeprefix("Question: ").removesuffix("\nAnswer:")
        labels = [str(i) for i in range(len(row["choices"]))]
        found.append({"question": question, "answerKey": str(row["gold"]),
                      "choices": {"text": row["choices"], "label": labels}})
    return found


def user_seconds():
    """CPU time that this process has spent outside the kernel."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_utime


def run_harness(model_folder, bench_folder):
    """{task: (log-likelihoods of each item's choices, user seconds)} by lm-evaluation-harness."""
    import lm_eval
    import yaml
    from lm_eval.models.huggingface import HFLM

    class Timed(HFLM):
        """The harness's model, which adds up the time of its answers."""
        seconds = 0.0

        def loglikelihood(self, requests, disable_tqdm=True):
            started = user_seconds()
            answers = super().loglikelihood(requests, disable_tqdm=disable_tqdm)
            self.seconds += user_seconds() - started
            return answers

    model = Timed(pretrained=str(model_folder), device="cpu", dtype="float32", batch_size=BATCH)
    definitions = Path(lm_eval.__file__).parent / "tasks"
    found = {}
    for task in TASKS:
        name = "arc/arc_easy" if task == "arc_easy" else f"{task}/{task}"
        definition = yaml.safe_load((definitions / f"{name}.yaml").read_text())
        with tempfile.TemporaryDirectory() as temporary:
            path = Path(temporary) / "rows.jsonl"
            indices, _ = choose_items(bench_folder, task, model_folder)
            rows = read_rows(bench_folder, task, indices)
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
            files = {"validation": str(path)}
            definition |= {"dataset_path": "json", "dataset_name": None,
                           "dataset_kwargs": {"data_files": files, "cache_dir": temporary},
                           "training_split": None, "test_split": None, "metadata": {"version": 1}}
            definition.pop("tag", None)
            model.seconds = 0.0
            results = lm_eval.simple_evaluate(model=model, tasks=[definition], log_samples=True,
                                              bootstrap_iters=0, verbosity="ERROR")
        samples = sorted(next(iter(results["samples"].values())), key=lambda row: row["doc_id"])
        logs = [[float(answer[0]) for answer in row["filtered_resps"]] for row in samples]
        found[task] = (logs, model.seconds)
        print(f"{model_folder} {task}: {model.seconds:.0f} s of the harness", file=sys.stderr)
    return found


def keep_harness(model_folder, bench_folder):
    """What run_harness() gives, read from FOLDER-harness.json if it is there."""
    path = Path(f"{model_folder}-harness.json")
    if not path.exists():
        path.write_text(json.dumps(run_harness(model_folder, bench_folder)))
    return json.loads(path.read_text())


def run_ours(model_folder, bench_folder):
    """The same by eval.py, which reads the files in their own formats."""
    subject = evaluation.load_subject([str(model_folder)], "runs", torch.device("cpu"), "logits")
    found = {}
    for task in TASKS:
        indices, items = choose_items(bench_folder, task, model_folder)
        items = [items[i] for i in indices]
        started = user_seconds()
        _, encoded, _ = evaluation.encode_items(subject, items)
        logs, _ = evaluation.answer(subject, encoded)
        found[task] = (logs, user_seconds() - started, items)
    return found


def count_equal(logs, others, scale):
    """How many items have the same best choice; scale: 1, or the characters of each choice."""
    same = 0
    for ours, theirs, sizes in zip(logs, others, scale):
        same += int(np.argmax(np.divide(ours, sizes)) == np.argmax(np.divide(theirs, sizes)))
    return same


def main():
    bench_folder = Path(sys.argv[1])
    use_device("cpu", 1)
    print(f"the first {ITEMS} items of each file that fit in the context; log-likelihoods in "
          f"nats;\nspeed in items per second of user CPU time, one thread, the harness with "
          f"batches of {BATCH}")
    print("model    task      choices  largest difference  same acc  same acc_norm  acc     "
          "eval.py  harness  ratio")
    for argument in sys.argv[2:]:
        name, _, folder = argument.partition("=")
        theirs = keep_harness(folder, bench_folder)
        ours = run_ours(folder, bench_folder)
        for task, (logs, seconds, items) in ours.items():
            others, other_seconds = theirs[task]
            pairs = [pair for row in zip(logs, others) for pair in zip(*row, strict=True)]
            difference = max(abs(a - b) for a, b in pairs)
            same = count_equal(logs, others, [1] * len(logs))
            same_norm = count_equal(logs, others, [item.sizes for item in items])
            right = np.mean([np.argmax(log) == item.gold for log, item in zip(logs, items)])
            print(f"{name:8} {task:8} {len(pairs):8} {difference:19.1e} {same:5}/{len(logs)} "
                  f"{same_norm:10}/{len(logs)}  {right:.3f} {len(logs) / seconds:9.2f} "
                  f"{len(logs) / other_seconds:8.2f} {other_seconds / seconds:6.1f}", flush=True)


if __name__ == "__main__":
    main()
