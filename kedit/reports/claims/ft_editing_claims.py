"""Claims of "Model Editing by Standard Fine-Tuning" (Gangadhar and Stratos 2024)."""

from kedit.reports.claims import claim
from kedit.reports.claims.estimates import Comparison
from kedit.reports.claims.numbers import Numbers, Where

RAND, SIM = "ft_mask_para_rand", "ft_mask_para_sim"
ON_PAR = 5  # points of score


@claim("prompt masking (FT + Mask) beats naive FT in score on both datasets", source="§5.1", tables=[2])
def ft_1(n: Numbers) -> list[Comparison]:
    return n.higher("ft_mask", "ft", metric="score")


@claim("on ZsRE FT + Mask alone beats MEMIT", source="§5.1", tables=[2])
def ft_2(n: Numbers) -> list[Comparison]:
    return n.higher("ft_mask", "memit", dataset="zsre_mend", metric="score")


@claim("adding Para raises generalization", source="§5.1", tables=[2])
def ft_3(n: Numbers) -> list[Comparison]:
    return n.higher("ft_mask_para", "ft_mask", metric="generalization")


@claim("adding Rand raises locality", source="§5.1", tables=[2])
def ft_4(n: Numbers) -> list[Comparison]:
    return n.higher(RAND, "ft_mask_para", metric="locality")


@claim(
    "FT + Mask + Para + Rand has at least the score of MEMIT, and of PMET, on ZsRE and CounterFact",
    source="§5.1",
    tables=[2],
)
def ft_5(n: Numbers) -> list[Comparison]:
    return n.higher(RAND, ["memit", "pmet"], ties=True, metric="score", dataset=("zsre_mend", "counterfact"))


@claim("adding DPO on CounterFact does not help: no metric rises", source="§5.1", tables=[2])
def ft_6(n: Numbers) -> list[Comparison]:
    return n.higher(RAND, "ft_mask_para_rand_dpo", ties=True, dataset="counterfact")


@claim("single editing: FT + Mask + Para + Sim is best on ZsRE", source="§5.2", tables=[3])
def ft_7(n: Numbers) -> list[Comparison]:
    return n.best(SIM, setting="single", dataset="zsre_mend", metric="score")


@claim("single editing: on CounterFact FT + Mask + Para + Sim is second, behind ROME", source="§5.2", tables=[3])
def ft_8(n: Numbers) -> list[Comparison]:
    where: Where = {"setting": "single", "dataset": "counterfact", "metric": "score"}
    return n.higher("rome", SIM, **where) + n.rank(SIM, 2, **where)


@claim("the fine-tuning methods lose fluency and consistency", source="§5.3", tables=[4])
def ft_9(n: Numbers) -> list[Comparison]:
    return n.higher("none", ["ft", "ft_mask", "ft_mask_para", RAND], metric=("fluency", "consistency"))


@claim(
    "Wikipedia loss restores fluency and consistency (to 95 % of the unedited model's) at a modest cost in score "
    "(at most 2 points)",
    source="§5.3",
    tables=[4],
)
def ft_10(n: Numbers) -> list[Comparison]:
    wiki, texts = "ft_mask_para_rand_wiki", ("fluency", "consistency")
    return [
        *n.higher(wiki, RAND, metric=texts),
        *n.higher(wiki, "none", times=0.95, ties=True, metric=texts),
        *n.within(2, wiki, RAND, metric="score"),
    ]


@claim("without LoRA generalization is better", source="§5.4", tables=[5])
def ft_11(n: Numbers) -> list[Comparison]:
    return n.higher("ft_mask_para_rand_no_lora", RAND, metric="generalization")


@claim("tuning only layers 3-5 beats all-layer LoRA", source="§5.4", tables=[6, 2])
def ft_12(n: Numbers) -> list[Comparison]:
    where: Where = {"dataset": "counterfact", "metric": "score"}
    return [
        *n.higher("ft_layers3_5_mask", "ft_mask", **where),
        *n.higher("ft_layers3_5_mask_para", "ft_mask_para", **where),
        *n.higher("ft_layers3_5_mask_para_rand", RAND, **where),
    ]


@claim("random-fact augmentation does not help SWEA+OS", source="§5.4", tables=[7])
def ft_13(n: Numbers) -> list[Comparison]:
    return n.higher("swea_os", "swea_os_rand", ties=True, metric="score")


@claim(
    "WikiRecent: FT + Mask + Para + Rand is competitive with MEMIT (at most 5 points of score lower); naive FT is not",
    source="App. A",
    tables=[8],
)
def ft_14(n: Numbers) -> list[Comparison]:
    where: Where = {"dataset": "wikirecent_fte", "metric": "score"}
    return n.within(ON_PAR, RAND, "memit", **where) + n.higher("memit", "ft", by=ON_PAR, **where)


@claim(
    "fine-tuning matches or outperforms highly specialized editors in score: mass editing, single editing, SWEA+OS",
    source="Abstract",
    tables=[2, 3, 7, 8],
)
def ft_15(n: Numbers) -> list[Comparison]:
    tuned = [editor for editor in n.printed_editors if editor.startswith("ft")]
    mass = n.best(RAND, ties=True, besides=[*tuned, "swea_os", "swea_os_rand"], setting="mass", metric="score")
    single = n.best(SIM, ties=True, besides=tuned, setting="single", metric="score")
    return [*mass, *single, *n.higher(RAND, "swea_os", ties=True, metric="score")]
