"""Claims of KDPO (Rozner et al. 2024)."""

from typing import Any

from kedit.reports.claims import claim
from kedit.reports.claims.estimates import Comparison, exactly, greater, not_run, positive, share
from kedit.reports.claims.numbers import Condition, Numbers, Where

MAIN = ("edit_success", "portability", "locality")
BENCHMARKS = ("hellaswag", "winogrande", "mmlu")
MAJORITY = 3 / 4  # share of the cells: who wins so many is clearly better


@claim("KDPO's average locality is above FT-M's and FT-L's at T=100 on every model", source="§3.5", tables=[1])
def kdpo_1(n: Numbers) -> list[Comparison]:
    return n.higher("kdpo", ["ft_m", "ft_l"], dataset="average", metric="locality", T=100)


@claim("KDPO's average locality is above FT-M's at T=500 on every model", source="§5.1", tables=[2])
def kdpo_2(n: Numbers) -> list[Comparison]:
    return n.higher("kdpo", "ft_m", dataset="average", metric="locality", T=500)


@claim(
    "KDPO has the highest locality of all editors on every model and dataset at T=100",
    source='§5.1 "large gap in the locality"',
    tables=[1],
)
def kdpo_3(n: Numbers) -> list[Comparison]:
    return n.best("kdpo", metric="locality", T=100)


@claim("KDPO has the highest locality of all editors on every model and dataset at T=500", source="§5.1", tables=[2])
def kdpo_4(n: Numbers) -> list[Comparison]:
    return n.best("kdpo", metric="locality", T=500)


@claim("in some cases KDPO's locality is more than double that of any other editor (T=100)", source="§5.1", tables=[1])
def kdpo_5(n: Numbers) -> list[Comparison]:
    cells = n.best("kdpo", times=2, metric="locality", T=100)
    return [share("locality above twice every other's, in one cell or more", cells, at_least=1 / len(cells))]


@claim(
    "on ZsRE with LLaMA2-7B at T=100 KDPO beats every baseline on all four metrics", source="§5.1, Fig. 3", tables=[1]
)
def kdpo_6(n: Numbers) -> list[Comparison]:
    return n.best("kdpo", model="llama2-7b", dataset="zsre", T=100)


@claim("at T=500 on LLaMA3-8B KDPO is best, or tied, on all metrics", source="§5.1", tables=[2])
def kdpo_7(n: Numbers) -> list[Comparison]:
    cells = n.best("kdpo", ties=True, model="llama3-8b", T=500)
    return cells + n.best("kdpo", ties=True, model="llama3-8b", T=500, dataset="average")


@claim(
    "KDPO's lead over FT-M on the averages is larger at T=500 than at T=100",
    source='§5.1 "performance gap for 500 edits got bigger"',
    tables=[1, 2],
)
def kdpo_8(n: Numbers) -> list[Comparison]:
    return lead_grows(n, metric=MAIN)


@claim("KDPO has the highest average edit success", source="§5.1", tables=[1, 2])
def kdpo_9(n: Numbers) -> list[Comparison]:
    return n.best("kdpo", dataset="average", metric="edit_success", T=(100, 500))


@claim("KDPO has the highest average portability", source="§5.1", tables=[1, 2])
def kdpo_10(n: Numbers) -> list[Comparison]:
    return n.best("kdpo", dataset="average", metric="portability", T=(100, 500))


@claim(
    "after 100 ZsRE edits KDPO stays within 0.1 of the unedited LLaMA2-7B's benchmark average; DPO is competitive "
    "(within 1 point of KDPO); ROME collapses (loses 20 points)",
    source="§5.3, Table 3 left",
    tables=[3],
)
def kdpo_11(n: Numbers) -> list[Comparison]:
    average: Where = {"model": "llama2-7b", "T": 100, "dataset": "average", "metric": "accuracy"}
    return [
        *n.within(0.1, "kdpo", "none", **average),
        *n.within(1, "dpo", "kdpo", **average),
        *n.higher("none", "rome", by=20, **average),
    ]


@claim(
    "after 500 WikiData_counterfact edits KDPO beats every other editor on each of HellaSwag, Winogrande and MMLU, and "
    "keeps the unedited model's average to within 1 point",
    source="§5.3, Table 3 right",
    tables=[3],
)
def kdpo_12(n: Numbers) -> list[Comparison]:
    each = n.best("kdpo", model="llama2-7b", T=500, dataset=BENCHMARKS, metric="accuracy")
    return each + n.within(1, "kdpo", "none", model="llama2-7b", T=500, dataset="average", metric="accuracy")


@claim(
    "at T=100 KDPO and DPO are mostly similar: on no metric does one of them win three quarters of the cells",
    source="§5.4",
    tables=[6],
)
def kdpo_13(n: Numbers) -> list[Comparison]:
    def wins(a: str, b: str, metric: str) -> Comparison:
        cells = n.higher(a, b, metric=metric, T=100)
        return share(f"{metric}: {a} wins less than 3/4", cells, below=MAJORITY)

    metrics = (*MAIN, "fluency")
    return [wins("kdpo", "dpo", metric) for metric in metrics] + [wins("dpo", "kdpo", metric) for metric in metrics]


@claim(
    "at T=500 KDPO is clearly superior to DPO (wins three quarters of the cells) in locality and in edit success",
    source="§5.4",
    tables=[6],
)
def kdpo_14(n: Numbers) -> list[Comparison]:
    wins = {metric: n.higher("kdpo", "dpo", metric=metric, T=500) for metric in ("locality", "edit_success")}
    return [share(f"{m}: KDPO wins at least 3/4", cells, at_least=MAJORITY) for m, cells in wins.items()]


@claim("on Qwen1.5-0.5B at T=500 KDPO is best on all four averages", source="§5.2, Fig. 4", tables=[5])
def kdpo_15(n: Numbers) -> list[Comparison]:
    return n.best("kdpo", model="qwen1.5-0.5b", T=500, dataset="average")


@claim(
    "on Qwen1.5-0.5B KDPO's lead over FT-M opens from T=100 to T=500 in edit success and locality",
    source="§5.2",
    tables=[5],
)
def kdpo_16(n: Numbers) -> list[Comparison]:
    return lead_grows(n, metric=("edit_success", "locality"), model="qwen1.5-0.5b")


@claim(
    '"100% edit success on 500 sequential edits for ZsRE"',
    source="a third party's summary; not in the paper",
    tables=[2],
)
def kdpo_17(n: Numbers) -> list[Comparison]:
    def all_edits(place: Condition) -> Comparison:
        number = n.at(place, "kdpo")
        return greater(f"{place}: kdpo {number} >= 100", number, exactly(100), ties=True)

    return n.over(all_edits, "kdpo", dataset="zsre", metric="edit_success", T=500)


def lead_grows(n: Numbers, **where: Any) -> list[Comparison]:
    """The lead of KDPO over FT-M, from 100 to 500 edits, on each model that has both."""

    def grows(place: Condition) -> Comparison:
        first, last = (n.minus(place._replace(T=T), "kdpo", "ft_m") for T in (100, 500))
        return positive(f"{place}: kdpo - ft_m {last} > {first}, that at T=100", last - first)

    early = n.places("kdpo", T=100, dataset="average", **where)
    late = [place for place in n.places("kdpo", T=500, dataset="average", **where) if place._replace(T=100) in early]
    return [grows(place) for place in late] or [not_run("kdpo and ft_m at T=100 and at T=500")]
