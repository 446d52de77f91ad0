"""`make acceptance`: what fine-tuning editors score on the embedded world, on seeds that nothing was tuned on.

Thresholds are those of the trials that the world was designed by; where three seeds bear no trend, none is asserted.
"""

import sys
from pathlib import Path

import pytest
from conftest import run_kedit
from test_acceptance import run

from kedit.reports.table.plain import tables
from kedit.results.cells import find

pytestmark = pytest.mark.acceptance

SEEDS = "101,102,103"


def test_single_edits_of_the_family(tmp_path: Path) -> None:
    editors = "ft_m,ft_m_overtone,ft_l,dpo,kdpo_released,lora,lora_overtone,adalora"
    table = run(tmp_path, f"editor={editors}", "setting=single", "dataset.limit=30")
    one = table.xs(1, level="T")
    assert (one.loc[["ft_m", "dpo", "lora"], "ES"] >= 90).all()
    assert (one.loc[["ft_m", "dpo"], "LOC"] >= 97).all()
    assert (one.loc[["ft_m", "dpo", "lora"], "alias"] >= 80).all()
    assert one.loc["lora_overtone", "LOC"] - one.loc["lora", "LOC"] >= 2


def test_sequential_edits_of_the_family(tmp_path: Path) -> None:
    editors = "ft_m,ft_m_overtone,ft_l,dpo,kdpo,kdpo_released,lora,lora_overtone,adalora"
    table = run(tmp_path, f"editor={editors}", "setting.checkpoints=[10]")
    ten, hundred = table.xs(10, level="T"), table.xs(100, level="T")
    assert (ten.loc[["ft_m", "dpo", "kdpo"], "ES"] >= 85).all()
    assert (ten.loc[["ft_m", "dpo", "kdpo"], "LOC"] >= 93).all()
    assert hundred.loc["kdpo", "LOC"] >= hundred.loc["dpo", "LOC"]
    assert hundred.loc["lora", "ES"] <= 45  # it collapses


def test_kdpo_keeps_more_than_ft_m_at_the_papers_ratio_of_learning_rates(tmp_path: Path) -> None:
    """Five times KDPO's, as in the papers; at its own tuned rate FT-M keeps as much, and no more is claimed."""
    for folder in ("fast", "kdpo"):
        (tmp_path / folder).mkdir()
    faster = run(tmp_path / "fast", "editor=ft_m", "editor.lr=2.5e-3")
    kdpo = run(tmp_path / "kdpo", "editor=kdpo")
    assert kdpo.loc[("kdpo", 100), "LOC"] - faster.loc[("ft_m", 100), "LOC"] >= 5


def test_lora_collapses_within_ten_edits_at_a_high_rate(tmp_path: Path) -> None:
    table = run(tmp_path, "editor=lora", "editor.lr=3e-3", "editor.adapter.merge=true", "T=10")
    assert table.loc[("lora", 10), "ES"] <= 50


def test_masks_paraphrases_and_random_facts_raise_the_score_of_mass_editing(tmp_path: Path) -> None:
    """At the same learning rate and number of epochs, as the paper compares (its Table 2)."""
    common = ["eval=rome", "eval.fluency_tokens=0", "setting=mass", "T=100", "dataset.train_people=160"]
    done = run_kedit(tmp_path, "-m", f"seed={SEEDS}", "editor=ft,ft_mask,ft_mask_para,ft_mask_para_rand", *common)
    assert done.returncode == 0, done.stderr
    [(_, table)] = tables(find(tmp_path / "runs"))
    parts = table.set_index("model")[["efficacy", "paraphrase", "neighborhood", "Score"]].astype(float).round(1)
    sys.stdout.write(f"\n{parts}\n")
    assert parts.loc["ft_mask_para_rand", "Score"] - parts.loc["ft", "Score"] >= 10
