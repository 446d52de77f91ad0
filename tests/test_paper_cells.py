"""Which printed numbers the sweeps can fill, and that their cells have the numbers of the papers' own code."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import count_data
import pytest
from count_cells import RUNNABLE, numbers, table
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

import kedit.run.main  # noqa: F401 (the resolvers of conf/)
from kedit.common.paths import ROOT
from kedit.run.composition import CONF
from kedit.run.naming import names_of
from kedit.run.options import check
from kedit.run.references import resolved

CELLS = sorted({cell for number in numbers() for cell in number.cells})


@pytest.fixture(scope="module")
def _hydra() -> Iterator[None]:
    with initialize_config_dir(CONF, version_base="1.3"):
        yield


def config(*overrides: str) -> dict[str, Any]:
    """One cell's, checked as a run checks it."""
    cfg = compose("config", [*overrides, "tracker=none"], return_hydra_config=True)
    own = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])
    options = resolved(own, names_of(cfg.hydra))
    check(options)
    return options


def test_the_counts_of_the_docs_are_true() -> None:
    assert table() in (ROOT / "docs" / "papers.md").read_text(encoding="utf-8")
    assert sum(number.cause == RUNNABLE for number in numbers()) >= 3748


@pytest.mark.usefixtures("_hydra")
def test_a_cell_of_every_sweep_composes() -> None:
    """All do; here one of each sweep, by turns of another place in its grid."""
    for turn, sweep in enumerate(sorted({cell[0] for cell in CELLS})):
        own = [cell for cell in CELLS if cell[0] == sweep]
        assert config(*own[turn * 7 % len(own)])["editor"]


LLAMA31 = ["model=llama3.1-8b-instruct", "sweeps=kedas_table18", "dataset=zsre"]
SINGLE = ["sweeps=ft_editing_table3", "dataset=counterfact", "editor=ft_mask_para_sim"]
MASS = ["sweeps=ft_editing_table2", "dataset=counterfact", "editor=ft_mask_para_rand"]
RULES: dict[str, tuple[list[str], dict[str, Any]]] = {
    "single editing": (
        SINGLE,
        {
            "lr": 2.2e-5,
            "epochs": 50,
            "weight_decay": 0.01,
            "stop_loss": None,
            "max_grad_norm": None,
            "dropout": True,
            "mask": "token_membership",
            "examples.para.n": 10,
            "examples.sim.n": 15,
            "examples.sim.max_words": 35,
        },
    ),
    "MQuAKE, FT-M": (
        ["sweeps=overtone_table2", "dataset=mquake", "editor=ft_m_overtone"],
        {"layers": [20, 21, 22, 23, 24], "lr": 1e-3, "steps": 25},
    ),
    "MQuAKE, LoRA": (
        ["sweeps=overtone_table2", "dataset=mquake", "editor=adalora_released", "model=llama3-8b-instruct"],
        {"adapter.rank": 12, "steps": 50, "lr": 5e-3},
    ),
    "mass editing": (MASS, {"lr": 7e-5, "max_grad_norm": 1.0, "weight_decay": 0.0, "examples.para.n": 15}),
    "wiki_recent": (
        ["sweeps=ft_editing_table8", "editor=ft_mask_para_rand"],
        {"examples.rand.n": 10, "max_grad_norm": 1.0},
    ),
    "mass editing of GPT-2": (
        ["sweeps=ft_editing_table5", "editor=ft_mask_para_rand_no_lora"],
        {"epochs": 6, "parameters": "model", "adapter": None, "dropout": False, "max_grad_norm": 1.0},
    ),
    "one block": (
        ["sweeps=ft_editing_table2", "dataset=counterfact", "editor=ft_layer21"],
        {"parameters": "block", "layers": [21], "adapter": None},
    ),
    "LoRA of Llama-3.1": ([*LLAMA31, "editor=adalora_released"], {"steps": 70, "adapter.total_steps": None}),
    "AlphaEdit of LLaMA-2": (
        ["sweeps=kedas_table5", "editor=alphaedit"],
        {"values.clamp": 0.75, "values.decay": 0.5, "values.lr": 0.1, "solver.l2": 1.0},
    ),
    "AlphaEdit of Llama-3.1": ([*LLAMA31, "editor=alphaedit"], {"solver.l2": 1.0, "values.clamp": 0.75}),
    "DPO of Qwen1.5-0.5B": (["sweeps=kdpo_table5", "dataset=zsre", "editor=dpo"], {"layers": [21]}),
    "KEDAS's code": (
        ["sweeps=kedas_table4", "editor=kedas_released"],
        {
            "memory.k": 12,
            "judged": "edit",
            "inject": 1,
            "filter.training.edit_first": True,
            "filter.training.max_chars": 200,
            "filter.training.classes": 2,
            "filter.training.held_out": "pairs",
            "filter.training.warmup": 0.0,
            "filter.training.best_epoch": True,
            "filter.training.seed": 42,
        },
    ),
    "KEDAS's equations": (["sweeps=kedas_table4", "editor=kedas"], {"memory.k": 4, "judged": "string"}),
    "LTE": (["sweeps=kedas_table4", "editor=lte"], {"found_by": "prompt", "memory.k": 1}),
    "IKE as KEDAS ran it": (["sweeps=kedas_table4", "editor=ike_released"], {"found_by": "prompt", "prompt.k": 8}),
}


@pytest.mark.usefixtures("_hydra")
@pytest.mark.parametrize("rule", RULES)
def test_cells_have_the_numbers_of_the_papers_code(rule: str) -> None:
    overrides, wanted = RULES[rule]
    editor = OmegaConf.create(config(*overrides)["editor"])
    assert {name: OmegaConf.select(editor, name) for name in wanted} == wanted


@pytest.mark.usefixtures("_hydra")
def test_lte_and_kedas_released_read_alike_on_every_model() -> None:
    for model in ("world", "llama2-7b-chat"):
        chosen = [f"model={model}", *([] if model == "world" else ["sweeps=kedas_table4"])]
        ours, theirs = (config(*chosen, f"editor={name}")["editor"] for name in ("kedas_released", "lte"))
        assert ours["prompt"] == theirs["prompt"]
        assert ours["alignment"] == theirs["alignment"]


ABSENT = (
    r"none (is|are) released|not released|not published|code (has|gives|states) (none|no )|code none|releases? no\b"
)
SEARCHED = r"[\w.-]+/[\w.-]+@[0-9a-f]{7}"


def test_what_is_claimed_to_be_absent_says_where_it_was_looked_for() -> None:
    """Nobody can check a comment that a number is nowhere unless it names the repository and the commit."""
    files = [path for folder in ("conf", "sweeps", "kedit") for path in (ROOT / folder).rglob("*.[yp]*")]
    found = []
    for path in files:
        lines = path.read_text(encoding="utf-8").splitlines() if path.suffix in (".yaml", ".py") else []
        for i, line in enumerate(lines):
            if re.search(ABSENT, line) and not re.search(SEARCHED, " ".join(lines[max(0, i - 2) : i + 3])):
                found.append(f"{path.relative_to(ROOT)}:{i + 1}: {line.strip()}")
    assert not found


def test_the_counts_of_the_data_files_are_true(test_data: Path) -> None:
    """KEDAS, Tables 3 and 12."""
    wanted = (ROOT / "docs" / "papers.md").read_text(encoding="utf-8")
    assert count_data.table(test_data) in wanted
