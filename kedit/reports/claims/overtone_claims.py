"""Claims of OVERTONE (Liu et al. 2025). Its single editing is T=1."""

from itertools import pairwise
from typing import Any

from kedit.reports.claims import claim
from kedit.reports.claims.estimates import Comparison, Estimate, all_of, greater, mean, not_run
from kedit.reports.claims.numbers import Condition, Numbers, Where

LLAMA2, LLAMA3, ZSRE = "llama2-7b-chat", "llama3-8b-instruct", "zsre_mend_portability"
ON_PAR = 5  # points of the average


@claim("single editing: OVERTONE raises the average of every method on every dataset", source="§4.2", tables=[1])
def ot_1(n: Numbers) -> list[Comparison]:
    return with_overtone(n, T=1, metric="avg")


@claim(
    "without OVERTONE ROME is first (LLaMA 2) and second (LLaMA 3) in average on Wiki_recent", source="§4.2", tables=[1]
)
def ot_2(n: Numbers) -> list[Comparison]:
    where: Where = {"besides": smoothed(n), "T": 1, "dataset": "wikidata_recent", "metric": "avg"}
    return n.rank("rome", 1, model=LLAMA2, **where) + n.rank("rome", 2, model=LLAMA3, **where)


@claim("with OVERTONE FT-M, LoRA and MELO all exceed ROME on Wiki_recent on both models", source="§4.2", tables=[1])
def ot_3(n: Numbers) -> list[Comparison]:
    editors = ["ft_m_overtone", "lora_overtone", "melo_overtone"]
    return n.higher(editors, "rome", T=1, dataset="wikidata_recent", metric="avg")


@claim("OVERTONE raises portability for LoRA on every dataset (single)", source="§4.2", tables=[1])
def ot_4(n: Numbers) -> list[Comparison]:
    return n.higher("lora_overtone", "lora", T=1, metric="portability")


@claim("OVERTONE raises portability for LoRA on every dataset at T=10", source="§4.3", tables=[4, 5])
def ot_5_T10(n: Numbers) -> list[Comparison]:
    return n.higher("lora_overtone", "lora", T=10, metric="portability")


@claim("OVERTONE raises portability for LoRA on every dataset at T=100", source="§4.3", tables=[4, 5])
def ot_5_T100(n: Numbers) -> list[Comparison]:
    return n.higher("lora_overtone", "lora", T=100, metric="portability")


@claim(
    "OVERTONE raises portability for FT-M, MELO and WISE on every dataset (single)",
    source='§4.2 "improved portability"',
    tables=[1],
)
def ot_6(n: Numbers) -> list[Comparison]:
    each = [n.higher(f"{editor}_overtone", editor, T=1, metric="portability") for editor in ("ft_m", "melo", "wise")]
    return [comparison for found in each for comparison in found]


@claim("LLaMA 2, ZsRE portability: LoRA's nearly three times, MELO's almost doubled", source="§4.2", tables=[1])
def ot_7(n: Numbers) -> list[Comparison]:
    where: Where = {"T": 1, "model": LLAMA2, "dataset": ZSRE, "metric": "portability"}
    return nearly(n, 3, "lora", **where) + nearly(n, 2, "melo", **where)


@claim(
    "LoRA's locality on Wiki_counterfact improves, by nearly five times what it was, on both models",
    source="§4.2",
    tables=[1],
)
def ot_8(n: Numbers) -> list[Comparison]:
    where: Where = {"T": 1, "dataset": "wikidata_counterfact", "metric": "locality"}
    return n.higher("lora_overtone", "lora", **where) + nearly(n, 6, "lora", **where)


@claim("OVERTONE never lowers locality (single)", source="§4.2", tables=[1])
def ot_9(n: Numbers) -> list[Comparison]:
    return with_overtone(n, ties=True, T=1, metric="locality")


@claim("reliability does not drop (single)", source='§4.2 "without compromising editing reliability"', tables=[1])
def ot_10(n: Numbers) -> list[Comparison]:
    return with_overtone(n, ties=True, T=1, metric="edit_success")


@claim("generality does not drop (single; printed for ZsRE)", source="not claimed: the trade-off", tables=[1])
def ot_11(n: Numbers) -> list[Comparison]:
    return with_overtone(n, ties=True, T=1, metric="generality")


@claim("MQuAKE: OVERTONE raises the average for FT-M and LoRA on both models", source="§4.2", tables=[2])
def ot_12(n: Numbers) -> list[Comparison]:
    return with_overtone(n, dataset="mquake", metric="avg")


@claim(
    "MQuAKE: 1-hop and 2-hop both rise",
    source='§4.2 "better portability without hurting the editing"',
    tables=[2],
)
def ot_13(n: Numbers) -> list[Comparison]:
    return with_overtone(n, dataset="mquake", metric=("one_hop", "two_hop"))


@claim(
    "on every dataset but WikiBio the mean gain of the average is larger at T=10 and T=100 than at T=1",
    source="§4.3",
    tables=[4, 5],
)
def ot_14(n: Numbers) -> list[Comparison]:
    n = recomputed(n)

    def larger(place: Condition) -> Comparison:
        single = place._replace(T=1, setting="single")
        methods = [a for a in n.with_suffix("_overtone") if not (gain(place, a).missing or gain(single, a).missing)]
        if not methods:
            return not_run(f"a method with and without OVERTONE on {place} and at T=1")
        many, one = (mean([gain(there, a) for a in methods]) for there in (place, single))
        return greater(f"{place}: mean gain of {len(methods)} methods {many} > {one} at T=1", many, one)

    def gain(place: Condition, editor: str) -> Estimate:
        return n.minus(place, f"{editor}_overtone", editor)

    several: Where = {"T": (10, 100), "dataset": lambda name: name not in ("wikibio", "average"), "metric": "avg"}
    return n.over(larger, **several)


@claim(
    "continual editing (T=10, 100): every method with OVERTONE exceeds both ROME and MEMIT",
    source="§4.3",
    tables=[4, 5],
)
def ot_15(n: Numbers) -> list[Comparison]:
    return recomputed(n).higher(smoothed(n), ["rome", "memit"], T=(10, 100), metric="avg")


@claim(
    "ZsRE, continual editing: LoRA and FT-M with OVERTONE are on par with MELO and WISE (at most 5 points lower)",
    source="§4.3",
    tables=[4, 5],
)
def ot_16(n: Numbers) -> list[Comparison]:
    return n.within(
        ON_PAR, ["ft_m_overtone", "lora_overtone"], ["melo", "wise"], T=(10, 100), dataset=ZSRE, metric="avg"
    )


@claim("OVERTONE raises the average of every method on every dataset at T=10", source="§4.3", tables=[4, 5])
def ot_17_T10(n: Numbers) -> list[Comparison]:
    return with_overtone(recomputed(n), T=10, metric="avg")


@claim("OVERTONE raises the average of every method on every dataset at T=100", source="§4.3", tables=[4, 5])
def ot_17_T100(n: Numbers) -> list[Comparison]:
    return with_overtone(recomputed(n), T=100, metric="avg")


@claim(
    "ablation: token smoothing without clipping already raises portability and locality over LoRA",
    source="§4.4",
    tables=[3],
)
def ot_18(n: Numbers) -> list[Comparison]:
    return n.higher("lora_overtone_no_clip", "lora", T=1, metric=("portability", "locality"), dataset=ZSRE)


@claim(
    "ablation: without the filter both generality and portability drop below full OVERTONE", source="§4.4", tables=[3]
)
def ot_19(n: Numbers) -> list[Comparison]:
    return n.higher("lora_overtone", "lora_overtone_no_flt", T=1, metric=("generality", "portability"), dataset=ZSRE)


@claim(
    "ablation: the average rises in the order LoRA, without clip, without dyn, without chk, without flt, full OVERTONE",
    source="§4.4",
    tables=[3],
)
def ot_20(n: Numbers) -> list[Comparison]:
    order = ["lora", *(f"lora_overtone_no_{part}" for part in ("clip", "dyn", "chk", "flt")), "lora_overtone"]
    steps = [n.higher(b, a, T=1, metric="avg", dataset=ZSRE) for a, b in pairwise(order)]
    return [comparison for step in steps for comparison in step]


@claim(
    "LoRA collapses in continual editing (below half its average at T=1) and OVERTONE rescues it (doubles it) on ZsRE",
    source="§4.3",
    tables=[4, 5],
)
def ot_21(n: Numbers) -> list[Comparison]:
    def collapses(place: Condition) -> Comparison:
        lora, single = n.at(place, "lora"), n.at(place._replace(T=1, setting="single"), "lora")
        return greater(f"{place}: lora {lora} < 0.5 x {single} at T=1", 0.5 * single, lora)

    where: Where = {"T": (10, 100), "dataset": ZSRE, "metric": "avg"}
    return n.over(collapses, "lora", **where) + n.higher("lora_overtone", "lora", times=2, **where)


# --- with and without ------------------------------------------------------------------------------------------------


def with_overtone(n: Numbers, **how: Any) -> list[Comparison]:
    """Every method that is there with and without OVERTONE: is it higher with it?"""
    each = [n.higher(f"{a}_overtone", a, **how) for a in n.with_suffix("_overtone", **conditions(how))]
    return [comparison for found in each for comparison in found] or [not_run("a method with and without OVERTONE")]


def conditions(how: dict[str, Any]) -> dict[str, Any]:
    return {key: want for key, want in how.items() if key in Condition._fields}


def smoothed(n: Numbers) -> list[str]:
    return [f"{editor}_overtone" for editor in n.with_suffix("_overtone")]


def nearly(n: Numbers, k: int, editor: str, **where: Any) -> list[Comparison]:
    """With OVERTONE the method has k - 0.5 to k times what it has without; of ours, at least the former."""

    def compare(place: Condition) -> Comparison:
        before, after = n.at(place, editor), n.at(place, f"{editor}_overtone")
        text = f"{place}: {editor} {before}, with OVERTONE nearly {k} times that: {after}"
        above = greater(text, after, (k - 0.5) * before, ties=True)
        return all_of(text, [above, greater(text, k * before, after, ties=True)] if n.exact else [above])

    return n.over(compare, editor, f"{editor}_overtone", **where)


def recomputed(n: Numbers) -> Numbers:
    """Three printed averages of Tables 4 and 5 leave out locality: the mean of the printed metrics instead."""
    return n.recomputed("avg", ("edit_success", "generality", "portability", "locality"))
