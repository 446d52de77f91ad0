"""What one KDPO edit adds to the memory held after loading: `python -m benchmarks.memory WHO SHAPE FILE`."""

import sys
from pathlib import Path

import torch

from benchmarks.bench import Bench
from benchmarks.shapes import SHAPES, build, material
from kedit.editors.finetune.per_edit import FineTune
from kedit.losses.kdpo import KDPO


def kilobytes(name: str) -> int:
    text = Path("/proc/self/status").read_text()
    return int(text.partition(f"{name}:")[2].split()[0])


def main() -> None:
    who, shape, data = sys.argv[1:]
    torch.set_num_threads(1)
    asked = material(SHAPES[shape], data, 4)
    lm = build(SHAPES[shape], asked.tokenizer, "cpu", torch.float32)
    bench = Bench(lm, asked, alone=True)
    model = sum(p.numel() * p.element_size() for p in lm.model.parameters())
    with torch.no_grad():
        lm.model(input_ids=bench.ids(0)[0])  # what a first pass allocates for good
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = kilobytes("VmRSS")
    if who == "kedit":
        FineTune(loss=KDPO(0.1), lr=1e-4, steps=8, cycles=3, layers=[bench.layer]).edit(lm, bench.edits[:1])
    else:
        bench.plain.kdpo(*bench.ids(0), 8, 3, 0.1)
    sys.stdout.write(f"{(kilobytes('VmHWM') - before) * 1024 / model}\n")


if __name__ == "__main__":
    main()
