"""Alignment: what the model learns from, and an adapter that is trained once, continues after a kill, and fits peft."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import SHAPES
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from kedit import world
from kedit.cases import Case, Edit, Probe
from kedit.common.errors import InputError
from kedit.editors.finetune.epochs import StandardFineTune, TrainingRun
from kedit.editors.finetune.lora import LoRA
from kedit.editors.incontext.alignment import Alignment
from kedit.editors.incontext.alignment_examples import KINDS, Conversations, FromCases, Released
from kedit.editors.incontext.augmentation import qa
from kedit.editors.incontext.augmentation.world_rules import WorldRules
from kedit.editors.incontext.prompts import UpdatedInformation
from kedit.lm import LM
from kedit.losses.cross_entropy import CrossEntropy

TRAIN = world.cases(train=True).train
PROMPT = UpdatedInformation(template="[Updated Information] {facts} [Query] {query}")
EACH = {kind: 1 for kind in KINDS}


def source(**given: Any) -> FromCases:
    return FromCases(**({"draws": EACH, "encoder": None} | given))


def alignment(
    conversations: Conversations | None = None, tuner: dict[str, Any] | None = None, **given: Any
) -> Alignment:
    settings: dict[str, Any] = {"adapter": LoRA(rank=2, alpha=4, dropout=0.1), "parameters": None} | (tuner or {})
    made = StandardFineTune(
        **{"loss": CrossEntropy(), "lr": 1e-2, "batch_size": 4, "epochs": 2, "max_steps": 6, "schedule": "cosine"}
        | settings
    )
    return Alignment(conversations=conversations or source(), prompt=PROMPT, tuner=made, **{"max_tokens": 128} | given)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KEDIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def person(name: str, job: str, old: str | None, *probes: Probe) -> Case:
    return Case(name, (Edit(f"{name} works as", job, name, old),), probes)


ANN = person(
    "Ann",
    "baker",
    "smith",
    Probe("generality", "Ann's job is", ("baker",)),
    Probe("locality", "Ann lives in", ("Rome",)),
)
BEN = person("Ben", "tailor", "clerk")


# --- conversations ---------------------------------------------------------------------------------------------------


def test_a_case_becomes_a_conversation_of_every_kind() -> None:
    spoken = source(rewrites=1.0, facts=[1.0]).build([ANN, BEN], PROMPT)
    told = "[Updated Information] Ann works as baker [Query] "
    assert spoken["in_scope"][0] == Edit(told + "Ann works as", "baker")
    assert spoken["in_scope_alone"] == [Edit("Ann works as", "smith"), Edit("Ben works as", "clerk")]
    assert spoken["out_of_scope"] == [Edit(told + "Ann lives in", "Rome")]
    assert spoken["out_of_scope_alone"] == [Edit("Ann lives in", "Rome")]
    assert spoken["other_fact"][0] == Edit(told + "Ben works as", "clerk")
    assert spoken["general"] == spoken["general_alone"] == []
    rephrased = source(rewrites=0.0, facts=[1.0]).build([ANN, BEN], PROMPT)
    assert rephrased["in_scope"][0] == Edit(told + "Ann's job is", "baker")
    assert rephrased["in_scope_alone"] == [Edit("Ann's job is", "smith"), Edit("Ben works as", "clerk")]


def test_a_share_is_about_other_subjects() -> None:
    alias = Probe("portability", "A.'s job is", ("baker",), "alias")
    reverse = Probe("portability", "The only baker is", ("Ann",), "reversed")
    ann = Case("Ann", ANN.edits, (*ANN.probes, alias, reverse))
    conversations = source(facts=[1.0], renamed=1.0, rounds=40, draws={"in_scope": 1})
    spoken = {talk for talk in conversations.build([ann, BEN], PROMPT)["in_scope"] if "baker" in talk.prompt}
    told = "[Updated Information] Ben works as baker [Query] "
    moved = {talk for talk in spoken if "Ben" in talk.prompt}
    assert moved == {
        Edit(told + "Ben works as", "baker"),
        Edit(told + "Ben's job is", "baker"),
        Edit(told + "The only baker is", "Ben"),
    }


def test_an_answer_that_is_a_subject_becomes_another_one() -> None:
    dora = Case("Dora", (Edit("Dora loves", "Ann", "Dora"),), (Probe("portability", "Ann is loved by", ("Dora",)),))
    people = [dora, ANN, BEN, person("Eve", "cook", None)]
    spoken = source(facts=[1.0], renamed=1.0, rounds=80, draws={"in_scope": 1}).build(people, PROMPT)["in_scope"]
    told = "[Updated Information] Ben loves {0} [Query] "
    assert {talk for talk in spoken if "Ben loves" in talk.prompt} == {
        Edit(told.format(third) + query.format(third), answer.format(third))
        for third in ("Ann", "Eve")
        for query, answer in (("Ben loves", "{0}"), ("{0} is loved by", "Ben"))
    }


def test_instructions_are_given_with_facts_and_without(tmp_path: Path) -> None:
    file = tmp_path / "general.jsonl"
    file.write_text('{"instruction": "Count to two.", "output": "One, two."}\n')
    spoken = source(facts=[1.0], general=str(file)).build([ANN], PROMPT)
    assert spoken["general_alone"] == [Edit("Count to two.", "One, two.")]
    assert spoken["general"] == [Edit("[Updated Information] Ann works as baker [Query] Count to two.", "One, two.")]
    file.write_text('{"instruction": "Count to two."}\n')
    with pytest.raises(InputError, match=r"record 0.*output"):
        source(general=str(file)).build([ANN], PROMPT)


def test_the_shares_are_those_asked_for() -> None:
    spoken = source(rounds=3, draws={"in_scope": 1, "out_of_scope": 2}).build(TRAIN, PROMPT)
    assert {kind: len(some) for kind, some in spoken.items()} == {"in_scope": 480, "out_of_scope": 960}
    rewrites = {edit.prompt for case in TRAIN for edit in case.edits}
    asked = [talk.prompt.partition("[Query] ")[2] for talk in spoken["in_scope"]]
    assert sum(query in rewrites for query in asked) / 480 == pytest.approx(0.3, abs=0.06)
    several = ["2. " in talk.prompt for talk in spoken["in_scope"]]
    three = ["3. " in talk.prompt for talk in spoken["in_scope"]]
    assert sum(several) / 480 == pytest.approx(0.5, abs=0.06)
    assert sum(three) / 480 == pytest.approx(0.25, abs=0.06)
    assert spoken == source(rounds=3, draws={"in_scope": 1, "out_of_scope": 2}).build(TRAIN, PROMPT)


def test_the_true_fact_is_first_and_the_others_are_about_other_people() -> None:
    spoken = source(facts=[0.0, 0.0, 1.0], draws={"in_scope": 1}).build(TRAIN, PROMPT)
    for case, talk in zip(TRAIN, spoken["in_scope"], strict=True):
        [edit] = case.edits
        first, second, third = talk.prompt.split("[Query]")[0].strip().split("\n")
        assert first == f"[Updated Information] 1. {qa(edit).text}"
        assert str(edit.subject) not in second + third


def test_an_encoder_chooses_the_nearest_facts() -> None:
    trades = [person("Bob Tarn", "baker", None), person("Bob Marn", "baker", None)]
    far = [Case("x", (Edit("The capital of Peru is", "Lima", "Peru"),), ())] * 3
    conversations = FromCases(draws={"in_scope": 1}, near=1, facts=[0.0, 1.0])
    first = conversations.build([trades[0], *far, trades[1]], PROMPT)["in_scope"][0]
    assert "2. Bob Marn works as baker" in first.prompt


def test_a_fact_is_shown_in_all_its_wordings() -> None:
    spoken = source(facts=[1.0], rounds=60, draws={"in_scope": 1}, augmentation=WorldRules()).build(TRAIN[:1], PROMPT)
    [edit] = TRAIN[0].edits
    shown = {talk.prompt.removeprefix("[Updated Information] ").split(" [Query]")[0] for talk in spoken["in_scope"]}
    assert shown == {qa(edit).text, *(form.text for form in WorldRules().forms([edit])[0])}


def test_released_conversations_keep_their_first_turns(tmp_path: Path) -> None:
    file = tmp_path / "lte.json"
    turns = [{"from": "human", "value": "[Updated Information]:\nA\n\n[Query]:\nB?"}, {"from": "gpt", "value": "C."}]
    more = [{"from": "user", "value": "D?"}, {"from": "assistant", "value": "E."}, {"from": "user", "value": "F?"}]
    file.write_text(json.dumps([{"id": "0", "conversations": turns}, {"id": "1", "conversations": more}]))
    assert Released(path=str(file)).build((), PROMPT) == {
        "released": [Edit("[Updated Information]:\nA\n\n[Query]:\nB?", "C."), Edit("D?", "E.")]
    }
    assert not Released(path=str(file)).needs_train
    file.write_text(json.dumps([{"conversations": turns[::-1]}]))
    with pytest.raises(InputError, match=r"record 0.*does not begin with human"):
        Released(path=str(file)).build((), PROMPT)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: source().build([], PROMPT), "the data has none"),
        (lambda: source(draws={"inscope": 1}), "has inscope; choose from in_scope,"),
        (lambda: Released(path=None).build([], PROMPT), "path is null"),
    ],
)
def test_what_cannot_be_spoken_about_is_said(build: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        build()


# --- learning --------------------------------------------------------------------------------------------------------


def learnt(aligned: Alignment) -> dict[str, torch.Tensor]:
    return load_file(Path(aligned.fit_report()["kept"]) / "adapter_model.safetensors")


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return list(a) == list(b) and all(torch.equal(a[name], b[name]) for name in a)


def test_it_is_learnt_once_and_leaves_the_model_pristine(lm: LM, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {name: value.clone() for name, value in lm.model.state_dict().items()}
    modules, attributes = [type(m) for m in lm.model.modules()], set(vars(lm.model))
    drawn = torch.get_rng_state()
    first = alignment()
    first.fit(lm, TRAIN[:8])
    assert equal(before, lm.model.state_dict())
    assert [type(m) for m in lm.model.modules()] == modules
    assert set(vars(lm.model)) - attributes <= {"_hf_peft_config_loaded"}
    assert not lm.model._hf_peft_config_loaded
    assert not lm.changed
    assert not any(p.requires_grad or p.grad is not None for p in lm.model.parameters())
    assert torch.equal(drawn, torch.get_rng_state())
    report = first.fit_report()
    assert report["conversations"]["in_scope"] == 8
    assert report["steps"] == 6
    assert list((cache / "alignment").glob(".partial-*")) == []

    monkeypatch.setattr(TrainingRun, "run", lambda self: pytest.fail("trained again"))
    again = alignment()
    again.fit(lm, TRAIN[:8])
    assert again.fit_report() == report
    with pytest.raises(pytest.fail.Exception):
        alignment(seed=1).fit(lm, TRAIN[:8])


def test_plain_peft_loads_the_adapter_and_a_route_reads_with_it(lm: LM, cache: Path, tmp_path: Path) -> None:
    aligned = alignment(tuner={"adapter": LoRA(rank=2, alpha=4, target_modules="all-linear")})
    aligned.fit(lm, TRAIN[:8])
    lm.save(tmp_path / "model")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    peft_model = PeftModel.from_pretrained(plain, aligned.fit_report()["kept"]).eval()
    ids = torch.tensor(lm.text.prompts(["Ann works for"]))
    with torch.no_grad():
        wanted = peft_model(ids).logits[0, -1]
        with peft_model.disable_adapter():
            assert not torch.allclose(wanted, peft_model(ids).logits[0, -1], atol=1e-3)
    given = alignment(trained=aligned.fit_report()["kept"])
    assert not given.needs_train
    given.fit(lm, ())
    given.attach(lm)
    [scored] = lm.answer(["Ann works for"], ["Crown"])
    assert scored.logprob[0] != pytest.approx(float(wanted.log_softmax(-1)[scored.gold[0]]), abs=1e-3)
    lm.restore()
    assert not lm.changed


class Killed(Exception):
    pass


def test_a_killed_training_continues_to_the_same_adapter(lm: LM, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    straight = alignment()
    straight.fit(lm, TRAIN[:8])
    wanted, step, taken = learnt(straight), TrainingRun.step, []
    monkeypatch.setenv("KEDIT_CACHE", str(cache / "other"))

    def killed(self: TrainingRun, number: int, facts: Sequence[Edit]) -> float:
        if number == 4:
            raise Killed
        return step(self, number, facts)

    monkeypatch.setattr(TrainingRun, "step", killed)
    with pytest.raises(Killed):
        alignment(tuner={"checkpoint_s": 0.0}).fit(lm, TRAIN[:8])
    assert not lm.changed

    def counted(self: TrainingRun, number: int, facts: Sequence[Edit]) -> float:
        taken.append(number)
        return step(self, number, facts)

    monkeypatch.setattr(TrainingRun, "step", counted)
    again = alignment()
    again.fit(lm, TRAIN[:8])
    assert taken == [4, 5]
    assert equal(learnt(again), wanted)


def test_all_parameters_can_be_aligned(lm: LM, cache: Path) -> None:
    full = alignment(tuner={"adapter": None, "parameters": "model", "lr": 1e-4, "max_steps": 2})
    before = {name: value.clone() for name, value in lm.model.state_dict().items()}
    full.fit(lm, TRAIN[:4])
    assert full.name is None
    assert equal(before, lm.model.state_dict())
    other = LM(AutoModelForCausalLM.from_config(SHAPES["llama"]), lm.text.tokenizer)
    with pytest.raises(InputError, match="the model has no parameter model"):
        full.attach(other)
    full.attach(lm)
    assert not equal(before, lm.model.state_dict())
    lm.restore()
    assert equal(before, lm.model.state_dict())


def test_an_answer_ends_and_what_is_too_long_is_left_out(lm: LM, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Edit] = []

    def edit(self: StandardFineTune, lm: LM, edits: Sequence[Edit]) -> dict[str, int]:
        assert self.adapter is not None
        self.adapter.open(lm, None)
        seen.extend(edits)
        return {"steps": 0}

    monkeypatch.setattr(StandardFineTune, "edit", edit)
    long = person("Carl " * 50 + "Tall", "baker", None)
    aligned = alignment(source(draws={"in_scope": 1}, facts=[1.0]), max_tokens=100, end=".")
    aligned.fit(lm, [ANN, long])
    assert [talk.target_new for talk in seen] == ["baker.<|endoftext|>"]
    assert lm.text.pairs([seen[0].prompt], [seen[0].target_new])[0].answer[-1] in lm.text.eos
    assert aligned.fit_report()["dropped"] == {"in_scope": 1}
    with pytest.raises(InputError, match=r"none of 1 conversations fits editor.alignment.max_tokens=3;"):
        alignment(source(draws={"in_scope": 1}), max_tokens=3).fit(lm, [ANN])


def test_prompts_are_user_turns_where_the_tokenizer_has_a_chat_template(
    lm: LM, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lm.text.tokenizer, "chat_template", "{% for m in messages %}<{{ m.content }}>{% endfor %}")
    talk = Edit("a", "b")
    assert alignment()._closed(lm, talk).prompt == "<a>"
    assert alignment(chat=False)._closed(lm, talk).prompt == "a"


def test_a_model_in_memory_is_aligned_without_keeping(lm: LM, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lm, "identity", None)
    aligned = alignment(tuner={"max_steps": 1})
    aligned.fit(lm, TRAIN[:4])
    assert aligned.fit_report()["kept"] is None
    aligned.attach(lm)
    assert not (cache / "alignment").exists()


def test_a_full_alignment_that_is_torn_is_refused(lm: LM, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_text("torn")
    with pytest.raises(InputError, match="not a safetensors file"):
        alignment(tuner={"adapter": None, "parameters": "model"}, trained=str(tmp_path)).attach(lm)


def test_a_folder_without_an_adapter_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no adapter_config.json and no adapter_model.safetensors there"):
        alignment(trained=str(tmp_path))
    with pytest.raises(InputError, match="merge=true leaves no adapter"):
        alignment(tuner={"adapter": LoRA(rank=2, alpha=4, merge=True)})
