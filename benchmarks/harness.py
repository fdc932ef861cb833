"""lm-evaluation-harness on the very same questions, offline: its own MMLU prompt over CSV files in a folder."""

from __future__ import annotations

import csv
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from localized_unlearning.data.mmlu import Question, Questions

TEMPLATE = {
    "output_type": "multiple_choice",
    "test_split": "test",
    "fewshot_split": "dev",
    "fewshot_config": {"sampler": "first_n"},
    "doc_to_text": "{{question.strip()}}\nA. {{choice0}}\nB. {{choice1}}\nC. {{choice2}}\nD. {{choice3}}\nAnswer:",
    "doc_to_choice": ["A", "B", "C", "D"],
    "doc_to_target": "answer",
    "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
}
"""lm-eval's own mmlu/default/_default_template_yaml, with our CSV columns for its list of choices."""


def tasks(questions: Questions, folder: Path) -> list[dict[str, Any]]:
    """One task per subject, over CSV files written to ``folder``."""
    found = []
    for subject in sorted({q.subject for q in questions.test}):
        files = {}
        for split, rows in (("dev", questions.dev), ("test", questions.test)):
            path = folder / f"{subject}_{split}.csv"
            files[split] = str(path)
            write(path, [q for q in rows if q.subject == subject])
        name = subject.replace("_", " ")
        found.append(
            {
                **TEMPLATE,
                "task": f"local_{subject}",
                "dataset_path": "csv",
                "dataset_kwargs": {
                    "data_files": files,
                    "keep_default_na": False,
                    "cache_dir": str(folder / "cache"),
                },
                "description": f"The following are multiple choice questions (with answers) about {name}.\n\n",
            }
        )
    return found


def write(path: Path, rows: list[Question]) -> None:
    """A CSV file with our header; every choice stays text."""
    with path.open("w", newline="", encoding="utf-8") as stream:
        out = csv.writer(stream, quoting=csv.QUOTE_ALL)
        out.writerow(["question", "choice0", "choice1", "choice2", "choice3", "answer"])
        out.writerows([q.question, *q.choices, q.answer] for q in rows)


def prepare(
    model: Any, tokenizer: Any, questions: Questions, shots: int, notes: dict[str, Any]
) -> Callable[[], dict[str, np.ndarray]]:
    """Work that scores ``questions`` as lm-eval does; only its scoring is timed, not its start or its tasks.

    Its batch size is the fastest of 1, 4 and 16 on a few of the questions (of their few-shot prompts: 1 and 4).
    """
    os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
    import lm_eval
    from lm_eval.models.huggingface import HFLM

    class Captured(HFLM):  # type: ignore[misc]
        """Keeps the requests of each task instead of answering them."""

        def __init__(self, **settings: Any) -> None:
            super().__init__(**settings)
            self.requests: list[Any] = []

        def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[Any]:
            self.requests = list(requests)
            return [(0.0, False)] * len(requests)

    lm = Captured(pretrained=model, tokenizer=tokenizer, batch_size=1)
    with tempfile.TemporaryDirectory() as folder:
        lm_eval.simple_evaluate(
            lm, tasks=tasks(questions, Path(folder)), num_fewshot=shots, bootstrap_iters=0, log_samples=True
        )
    requests = lm.requests
    notes["lm_eval"] = lm_eval.__version__

    def score(some: list[Any], size: int) -> list[Any]:
        lm.batch_size_per_gpu = size
        answers: list[Any] = HFLM.loglikelihood(lm, some, disable_tqdm=True)
        return answers

    sizes = (1, 4, 16) if shots == 0 else (1, 4)
    trial = requests[: 4 * max(sizes)] if shots == 0 else requests[:16]
    seconds = {}
    for size in sizes:
        start = time.perf_counter()
        score(trial, size)
        seconds[size] = time.perf_counter() - start
    best = min(seconds, key=lambda size: seconds[size])
    notes["batch_size"] = best

    def work() -> dict[str, np.ndarray]:
        found = score(requests, best)
        rows: dict[tuple[str, int], dict[int, float]] = {}
        for request, (log_p, _) in zip(requests, found, strict=True):
            rows.setdefault((request.task_name, request.doc_id), {})[request.idx] = log_p
        names = [f"{task.removeprefix('local_')}/{index}" for task, index in rows]
        return {
            "logp": np.array([[row[i] for i in range(4)] for row in rows.values()]),
            "item": np.array(names),
        }

    return work
