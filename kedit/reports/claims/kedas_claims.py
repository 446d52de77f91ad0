"""Claims of KEDAS (Tang et al. 2025)."""

from kedit.reports.claims import claim
from kedit.reports.claims.estimates import Comparison, greater, share
from kedit.reports.claims.numbers import Condition, Numbers, Where

LLAMA2 = "llama2-7b-chat"


@claim("KEDAS has the highest HM, or shares it, in 35 of 36 cells", source="Abstract", tables=[4, 18, 19])
def kedas_1(n: Numbers) -> list[Comparison]:
    return [share("at least 35/36", n.best("kedas", ties=True, metric="hm"), at_least=35 / 36)]


@claim(
    "KEDAS has the highest HM, or shares it, in 23 of 24 cells of single and incremental editing",
    source="App. G",
    tables=[18, 19],
)
def kedas_2(n: Numbers) -> list[Comparison]:
    cells = n.best("kedas", ties=True, metric="hm", setting=("single", "incremental"))
    return [share("at least 23/24", cells, at_least=23 / 24)]


@claim("sequential: the mean HM gain over WISE is 26.9", source="main results", tables=[4])
def kedas_3(n: Numbers) -> list[Comparison]:
    return n.mean_gain("kedas", "wise", 26.9, setting="sequential", metric="hm")


@claim("sequential: the mean HM gain over LTE is 18.2", source="main results", tables=[4])
def kedas_4(n: Numbers) -> list[Comparison]:
    return n.mean_gain("kedas", "lte", 18.2, setting="sequential", metric="hm")


@claim("sequential: the mean locality gain over LTE is 31.7", source="main results", tables=[4])
def kedas_5(n: Numbers) -> list[Comparison]:
    return n.mean_gain("kedas", "lte", 31.7, setting="sequential", metric="locality")


@claim("the mean HM gain over LTE is about 19.8, over all 36 cells", source="Abstract", tables=[4, 18, 19])
def kedas_6(n: Numbers) -> list[Comparison]:
    return n.mean_gain("kedas", "lte", 19.8, metric="hm")


@claim("sequential, ZsRE: HM is 40.6 above WISE's, in the mean of the models", source="Introduction", tables=[4])
def kedas_7(n: Numbers) -> list[Comparison]:
    return n.mean_gain("kedas", "wise", 40.6, setting="sequential", dataset="zsre", metric="hm")


@claim("sequential, ZsRE: HM is 18.4 above LTE's, in the mean of the models", source="Introduction", tables=[4])
def kedas_8(n: Numbers) -> list[Comparison]:
    return n.mean_gain("kedas", "lte", 18.4, setting="sequential", dataset="zsre", metric="hm")


@claim("single, LLaMA-2: HM is 10.6 above WISE's", source="single editing", tables=[5])
def kedas_9(n: Numbers) -> list[Comparison]:
    return n.mean_gain("kedas", "wise", 10.6, setting="single", model=LLAMA2, metric="hm")


@claim("single, LLaMA-2: HM is 21.7 above LTE's", source="single editing", tables=[5])
def kedas_10(n: Numbers) -> list[Comparison]:
    return n.mean_gain("kedas", "lte", 21.7, setting="single", model=LLAMA2, metric="hm")


@claim(
    "incremental, LLaMA-2: HM is ahead of the runner-up by nearly 20 (ZsRE), 36 (WikiBio), 12 (Wiki_recent) and 7 "
    "(Wiki_counterfact)",
    source="incremental editing",
    tables=[5],
)
def kedas_11(n: Numbers) -> list[Comparison]:
    nearly = {"zsre": 20, "wikibio": 36, "wikidata_recent": 12, "wikidata_counterfact": 7}
    where: Where = {"setting": "incremental", "model": LLAMA2, "metric": "hm"}
    return [c for dataset, lead in nearly.items() for c in n.leads("kedas", lead - 0.5, lead, dataset=dataset, **where)]


@claim(
    "sequential: KEDAS has the highest locality in every cell",
    source='main results, "outstanding performance in all the metrics"',
    tables=[4],
)
def kedas_12(n: Numbers) -> list[Comparison]:
    return n.best("kedas", setting="sequential", metric="locality", ties=True)


@claim(
    "sequential: KEDAS has the highest, or shared, edit success and portability in every cell",
    source="main results",
    tables=[4],
)
def kedas_13(n: Numbers) -> list[Comparison]:
    return n.best("kedas", setting="sequential", metric=("edit_success", "portability"), ties=True)


@claim(
    "removing DEA lowers edit success and portability; removing FLT or SPI lowers locality strongly (by 10 points); "
    "removing ALGN lowers every metric; full KEDAS has the best HM",
    source="ablation",
    tables=[6],
)
def kedas_14(n: Numbers) -> list[Comparison]:
    average: Where = {"setting": "sequential", "dataset": "average"}
    return [
        *n.higher("kedas", "kedas_no_dea", metric=("edit_success", "portability"), **average),
        *n.higher("kedas", ["kedas_no_flt", "kedas_no_spi"], by=10, metric="locality", **average),
        *n.higher("kedas", "kedas_no_algn", **average),
        *n.best("kedas", metric="hm", **average),
    ]


@claim(
    "KEDAS costs slightly more than LTE (at most 1.25 times) in inference time and memory, and less than every other",
    source="cost",
    tables=[7],
)
def kedas_15(n: Numbers) -> list[Comparison]:
    where: Where = {"setting": "sequential", "metric": ("inference_hours", "memory_gb")}
    return [
        *n.higher("kedas", "lte", **where),
        *n.higher("lte", "kedas", times=1 / 1.25, ties=True, **where),
        *n.higher(["serac", "ike", "wise", "recipe"], "kedas", **where),
    ]


@claim(
    "after 1304 edits KEDAS keeps the average of the model before alignment (to 0.1); LTE loses over 5 points; "
    "alignment without edits already degrades it",
    source="general tasks",
    tables=[8],
)
def kedas_16(n: Numbers) -> list[Comparison]:
    average: Where = {"dataset": "average", "metric": "accuracy"}
    return [
        *n.within(0.1, "kedas", "none", setting="sequential", **average),
        *n.higher("none", "lte", by=5, setting="sequential", **average),
        *n.higher("none", "post_alignment", setting="", **average),
    ]


@claim("DEA raises LTE's portability by over 3 points on all models", source="DEA", tables=[9])
def kedas_17(n: Numbers) -> list[Comparison]:
    return n.higher("lte_dea", "lte", by=3, setting="sequential", dataset="average", metric="portability")


@claim("3-shot LTE beats 1-shot LTE in HM in only 1 of 24 cases", source="App. E", tables=[16])
def kedas_18(n: Numbers) -> list[Comparison]:
    return [share("at most 1/24", n.higher("lte_3shot", "lte", metric="hm"), below=2 / 24)]


@claim(
    "RECIPE's checkpoint is better overall (HM) on the chat model than on base LLaMA-2-7B", source="App. E", tables=[13]
)
def kedas_19(n: Numbers) -> list[Comparison]:
    def chat_is_better(place: Condition) -> Comparison:
        chat, base = n.at(place, "recipe"), n.at(place._replace(model="llama2-7b"), "recipe")
        return greater(f"{place}: recipe {chat}, on llama2-7b {base}", chat, base)

    return n.over(chat_is_better, "recipe", model=LLAMA2, dataset="zsre", metric="hm")
