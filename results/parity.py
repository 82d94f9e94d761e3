"""eval.py beside lm-evaluation-harness: the same items, models and CPU thread.

    python results/parity.py BENCH_FOLDER smollm2=HF_FOLDER run=EXPORTED_RUN > results/parity.txt

BENCH_FOLDER holds piqa_valid.jsonl, piqa_valid-labels.lst, sciq_validation.jsonl.gz and
arc_easy_validation.jsonl. The harness runs its own task definitions, with the data set replaced by
these files, on its `hf` model. It needs the packages lm-eval and accelerate. Speed is items per
second of user CPU time, because other work may share the machine.
"""
import gzip
import json
import os
import resource
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

TASKS = {"piqa": "piqa_valid.jsonl", "sciq": "sciq_validation.jsonl.gz",
         "arc_easy": "arc_easy_validation.jsonl"}
ITEMS = 200  # of each task
BATCH = 8  # requests a forward pass of the harness


def read_rows(folder, task):
    """The first items of a task, with the fields of its data set on the hub."""
    path = folder / TASKS[task]
    opened = gzip.open(path, "rt") if path.suffix == ".gz" else open(path)
    with opened as file:
        rows = [json.loads(line) for line, _ in zip(file, range(ITEMS))]
    if task == "piqa":
        labels = (folder / "piqa_valid-labels.lst").read_text().split()
        return [{**row, "label": int(label)} for row, label in zip(rows, labels)]
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
    import torch
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

    torch.set_num_threads(1)
    model = Timed(pretrained=str(model_folder), device="cpu", dtype="float32", batch_size=BATCH)
    definitions = Path(lm_eval.__file__).parent / "tasks"
    found = {}
    for task in TASKS:
        name = "arc/arc_easy" if task == "arc_easy" else f"{task}/{task}"
        definition = yaml.safe_load((definitions / f"{name}.yaml").read_text())
        with tempfile.TemporaryDirectory() as temporary:
            path = Path(temporary) / "rows.jsonl"
            rows = read_rows(bench_folder, task)
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
