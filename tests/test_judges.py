"""Judges that time out, contradict themselves, answer garbage: nothing is lost, nothing is asked twice."""

import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from chat_server import Reply, Server, serving
from hydra.utils import instantiate

from kedit.common.errors import InputError
from kedit.common.paths import ROOT
from kedit.evaluation.judges import EndpointJudge, Judged, Judges, LocalJudge, verdict_of
from kedit.results.cells import find
from kedit.results.strictness import strictly_scored

JUDGES = ROOT / "conf" / "eval" / "judges"
PROMPT = yaml.safe_load((JUDGES / "question.yaml").read_text("utf-8"))["prompt"]
TEXTS = [Judged(f"Where was {name} born?", "Paris", f" {said}") for name in "abcd" for said in ("Paris", "Rome")]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEDIT_CACHE", str(tmp_path / "cache"))


def endpoint(server: Server, **more: Any) -> EndpointJudge:
    own = yaml.safe_load((JUDGES / "server.yaml").read_text("utf-8"))
    del own["defaults"]
    own["_target_"] = "kedit.evaluation.judges.EndpointJudge"
    given = {"prompt": PROMPT, "base_url": server.url, "api_key_env": None, "timeout_s": 5.0}
    built: EndpointJudge = instantiate(own | given | more)
    return built


def honest(n: int, prompt: str) -> Reply:
    """What the last item of the prompt deserves."""
    answer = prompt.rpartition("Predicted answer: ")[2].partition("\n")[0]
    return "A" if "Paris" in answer else "B"


def items(server: Server) -> Counter[str]:
    """How often each was asked."""
    asked = [body["messages"][0]["content"].rpartition("Question: ")[2] for body in server.asked]
    return Counter(asked)


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [
        ("A", True),
        ("B", False),
        (" A.", True),
        ("(B) WRONG", False),
        ("**A**", True),
        ("CORRECT", None),
        ("a", None),
        ("Answer", None),
        ("", None),
        ("I cannot grade this", None),
    ],
)
def test_a_reply_has_a_verdict_only_if_it_begins_with_a_letter(reply: str, verdict: bool | None) -> None:
    assert verdict_of(reply) is verdict


def test_each_text_is_asked_once_whoever_asks_and_concurrently() -> None:
    with serving(honest) as server:
        server.wait_s = 0.05
        found = endpoint(server).verdicts([*TEXTS, *TEXTS])
        assert found == {text: "Paris" in text.text for text in TEXTS}
        assert endpoint(server).verdicts(TEXTS) == found  # of another run
        assert set(items(server).values()) == {1}
        assert len(server.asked) == len(TEXTS)
        assert server.most > 1
        prompt = server.asked[0]["messages"][0]["content"]
        assert "Gold answer: Paris\n" in prompt
        assert prompt.endswith("Reply with the letter alone.")


def test_a_judge_that_contradicts_itself_is_not_asked_again() -> None:
    said: Counter[str] = Counter()

    def moody(n: int, prompt: str) -> Reply:
        said[prompt] += 1
        return "A" if said[prompt] % 2 else "B"

    with serving(moody) as server:
        first = endpoint(server).verdicts(TEXTS)
        assert endpoint(server).verdicts(TEXTS) == first
        assert len(server.asked) == len(TEXTS)
        other = endpoint(server, decoding={"temperature": 1.0}).verdicts(
            TEXTS
        )  # another way of asking is another judge
        assert set(other.values()) == {False}
        assert len(server.asked) == 2 * len(TEXTS)


def test_garbage_is_kept_and_counted_and_is_not_wrong() -> None:
    with serving(lambda n, prompt: "\x00 ¿no idea? {question}" if "Rome" in prompt[-120:] else "A") as server:
        for _ in range(2):
            found = endpoint(server).verdicts(TEXTS)
            assert {found[text] for text in TEXTS if "Rome" in text.text} == {None}
        assert len(server.asked) == len(TEXTS)
    with serving(honest, raw=b"<html>no chat model</html>") as server:
        other = endpoint(server, model="other")
        assert set(other.verdicts(TEXTS).values()) == {None}


@pytest.mark.parametrize("fault", [None, 503, 429], ids=["cut", "busy", "too many"])
def test_what_fails_now_and_then_is_sent_again(fault: Reply) -> None:
    with serving(lambda n, prompt: fault if n % 3 == 1 else honest(n, prompt)) as server:
        found = endpoint(server, workers=2).verdicts(TEXTS)
        assert found == {text: "Paris" in text.text for text in TEXTS}


def test_a_judge_that_times_out_stops_the_run_and_what_it_said_is_kept() -> None:
    with serving(honest) as server:
        server.behave = lambda n, prompt: honest(n, prompt) if n <= 3 else 500
        with pytest.raises(InputError, match=r"the judge mine: .* says 500 .*3 of 8 replies are kept, and the same"):
            Judges({"mine": endpoint(server, workers=1, retries=0)}).verdicts(TEXTS)
        server.behave, server.wait_s = honest, 1.0
        with pytest.raises(InputError, match="does not answer"):
            Judges({"mine": endpoint(server, workers=1, retries=0, timeout_s=0.1)}).verdicts(TEXTS)
        server.wait_s = 0.0
        server.asked.clear()
        found = Judges({"mine": endpoint(server)}).verdicts(TEXTS)
        assert {text: said["mine"] for text, said in found.items()} == {text: "Paris" in text.text for text in TEXTS}
        assert len(server.asked) == len(TEXTS) - 3


def test_texts_with_braces_and_quotes_are_asked_as_they_are() -> None:
    odd = Judged("What is {gold}?", 'a "{answer}"', " {question} \\ 100 %")
    with serving(lambda n, prompt: "A") as server:
        assert endpoint(server).verdicts([odd]) == {odd: True}
        asked = server.asked[0]["messages"][0]["content"]
        assert 'Question: What is {gold}?\nGold answer: a "{answer}"\nPredicted answer:  {question} \\ 100 %\n' in asked


def test_a_run_is_refused_before_it_begins_if_its_judge_cannot_be_asked(refusal: Callable[..., str]) -> None:
    judge = "eval/judges=[endpoint]"
    given = ["eval=wild", judge, "T=3", "editor=ft_m", "eval.fluency_tokens=0"]
    said = refusal(*given, "eval.judges.endpoint.api_key_env=NO_KEY_AT_ALL")
    assert "NO_KEY_AT_ALL holds no key" in said
    assert "eval.judges.endpoint.api_key_env=null" in said
    free = "eval.judges.endpoint.api_key_env=null"
    said = refusal(*given, free, "eval.judges.endpoint.max_cost=0.0001")
    assert "grades at most" in said
    assert "eval.judges.endpoint.max_cost=0.0001 allows less, so none is asked" in said
    assert "choose a profile too, e.g. eval=wild" in refusal(judge, free, "T=3")
    assert not [file for file in Path("runs").rglob("*") if file.is_file()]


def test_two_judges_grade_one_generation_and_their_agreement_is_said(kedit: Callable[..., Any], tmp_path: Path) -> None:
    def behave(n: int, prompt: str) -> Reply:
        return "no idea" if n == 5 else "A" if n % 3 else "B"

    with serving(behave) as one, serving(honest) as other:
        given = ["eval=wild", "eval.fluency_tokens=0", "editor=ft_m", "editor.steps=1", "T=3"]
        given += ["eval/judges=[endpoint,second]", "eval.judges.second.model=another", "eval.judges.second.share=0.5"]
        for name, server in (("endpoint", one), ("second", other)):
            given += [f"eval.judges.{name}.base_url={server.url}", f"eval.judges.{name}.api_key_env=null"]
        done = kedit(*given, "eval.judges.endpoint.workers=1")
        assert done.returncode == 0, done.stderr
        assert "the judge another grades at most" in done.stderr + done.stdout
        assert set(items(one).values()) == set(items(other).values()) == {1}
        assert 0 < len(other.asked) < len(one.asked)
    [cell] = find(tmp_path / "runs")
    rows = cell.rows[cell.rows["scoring"] == "strict"]
    assert set(rows["judge_endpoint"]) == {-1, 0, 1}
    assert rows["judge_second"].isna().any()
    said = "; ".join(strictly_scored([cell]))
    assert "graded by the judge endpoint (gpt-4o-mini) and the judge second (another)" in said
    assert "have no verdict and do not count" in said
    assert "the judges endpoint and second agree on" in said
    assert "judged" in done.stdout


def test_a_local_model_is_a_judge(small_dir: Path) -> None:
    own = yaml.safe_load((JUDGES / "local.yaml").read_text("utf-8"))["local"]
    judge: LocalJudge = instantiate(own | {"prompt": "{question} {gold} {answer}", "path": str(small_dir)})
    assert judge.verdicts(TEXTS[:2]) == dict.fromkeys(TEXTS[:2])  # a random model says no letter
    assert judge._lm is not None
    again: LocalJudge = instantiate(own | {"prompt": "{question} {gold} {answer}", "path": str(small_dir)})
    again.verdicts(TEXTS[:2])
    assert again._lm is None
    assert os.environ["KEDIT_CACHE"]
