"""Benchmarks through kedit and through lm-eval's own HFLM (batch 32), by turns in one process, and the memory that
documents cost: `python -m benchmarks.ability FOLDER [--documents 32] [--memory]`. FOLDER holds the tasks' files
(docs/ability.md).
"""

import argparse
import contextlib
import io
import statistics
import sys
import time
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from kedit.evaluation.measures.lm_eval import LmEval
from kedit.lm import LM
from kedit.lm.peak_memory import peak_memory_mb, reset_peak_memory

TASKS = ("hellaswag", "winogrande", "sst2", "commonsense_qa")
BATCH = 32
FEW, MANY = 100, 1000  # documents whose memory is compared


def model(tokenizer: str) -> LM:
    """A random Llama of 8 layers and width 512."""
    torch.manual_seed(0)
    tokens = AutoTokenizer.from_pretrained(tokenizer)
    sizes = {"hidden_size": 512, "intermediate_size": 1376, "num_hidden_layers": 8, "num_attention_heads": 8}
    config = LlamaConfig(**sizes, vocab_size=len(tokens), max_position_embeddings=2048)
    return LM(AutoModelForCausalLM.from_config(config), tokens)


def theirs(lm: LM, measure: LmEval) -> Any:
    """lm-eval's own model asked the same."""
    from lm_eval.evaluator import evaluate
    from lm_eval.models.huggingface import HFLM

    asked = HFLM(pretrained=lm.model, tokenizer=lm.text.tokenizer, batch_size=BATCH, device="cpu")
    return evaluate(lm=asked, task_dict=measure._loaded, limit=measure.limit, bootstrap_iters=0)


def seconds(run: Any) -> float:
    """Of this process: others may be at work."""
    started = time.process_time()
    with contextlib.redirect_stderr(io.StringIO()):
        run()
    return time.process_time() - started


def fresh(task: str, folder: str, documents: int) -> LmEval:
    """Without anything kept of the unedited model's answers."""
    measure = LmEval([task], data=folder, limit=documents, bootstrap_iters=0, keep_items=False)
    measure.prepare()
    return measure


def speed(lm: LM, folder: str, documents: int, repeats: int) -> None:
    for task in TASKS:
        ratios = []
        for turn in range(repeats + 1):
            measure = fresh(task, folder, documents)
            ours, others = seconds(lambda m=measure: m(lm, "")), seconds(lambda m=measure: theirs(lm, m))
            ratios += [others / ours] if turn else []  # the first warms up
        found = f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"
        sys.stdout.write(f"| {task} | {documents} | {ours:.1f} | {others:.1f} | {found} |\n")


def memory(lm: LM, folder: str) -> None:
    """MiB of the process at the peak of asking, few documents and then many."""
    fresh("hellaswag", folder, 8)(lm, "")
    for documents in (FEW, MANY):
        measure = fresh("hellaswag", folder, documents)
        reset_peak_memory()
        with contextlib.redirect_stderr(io.StringIO()):
            measure(lm, "")
        sys.stdout.write(f"{documents} documents: {peak_memory_mb():.0f} MiB\n")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ability", description=__doc__)
    parser.add_argument("folder", help="with the tasks' files")
    parser.add_argument("--tokenizer", default="gpt2", help="a hub id or a directory")
    parser.add_argument("--documents", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--memory", action="store_true", help=f"the peak with {FEW} and with {MANY} documents instead")
    given = parser.parse_args()
    torch.set_num_threads(1)
    lm = model(given.tokenizer)
    if given.memory:
        memory(lm, given.folder)
    else:
        speed(lm, given.folder, given.documents, given.repeats)


if __name__ == "__main__":
    main()
