"""Where a subject stands, and passes that change something there: equal to whole passes with a plain hook."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from kedit.common.errors import InputError
from kedit.editors.locate.activations import add_to_matrix, subject_activations
from kedit.editors.locate.subject_forward import OutputSite, SubjectForward
from kedit.editors.subject import SubjectSequence, ends, rows
from kedit.lm import LM

PROMPTS = [
    "The home of Ada Moss is",
    "Because of that. It is said of Ada Moss, who is not Ada Moss, that she lives in",
    "Ada Moss",
]
ANSWERS = ["Paris by the sea", "that town", "none at all of them"]


def made(lm: LM, occurrence: Any = "last") -> list[SubjectSequence]:
    at = [ends(prompt, "Ada Moss", occurrence) for prompt in PROMPTS]
    return rows(lm.text, PROMPTS, at, ANSWERS) + rows(lm.text, ["Ada Moss is a"], [[7]])


def test_a_subject_is_found_by_its_characters(lm: LM) -> None:
    assert ends(PROMPTS[1], "Ada Moss", "all") == [PROMPTS[1].find("Ada") + 7, PROMPTS[1].rfind("Ada") + 7]
    assert ends(PROMPTS[1], "Ada Moss", "first") == ends(PROMPTS[1], "Ada Moss", "all")[:1]
    assert ends(PROMPTS[1], " Ada Moss ", "last") == ends(PROMPTS[1], "Ada Moss", "all")[1:]
    for row, prompt, answer in zip(made(lm, "all"), PROMPTS, ANSWERS, strict=False):
        assert [lm.text.decode(row.ids[: at + 1]).endswith("Moss") for at in row.at] == [True] * prompt.count("Ada")
        pair = lm.text.pairs([prompt], [answer])[0]
        assert (row.ids, row.gold) == (pair.ids[:-1], pair.answer)
        assert row.reads == list(range(pair.start - 1, len(pair.ids) - 1))


@pytest.mark.parametrize("subject", ["Ada Mos s", "", None, "ada moss"])
def test_a_subject_that_is_not_there_is_an_error(subject: str | None) -> None:
    with pytest.raises(InputError, match="is not in the prompt"):
        ends(PROMPTS[0], subject, "last")


def plainly(
    lm: LM, batch: Sequence[SubjectSequence], layer: int, sites: Sequence[OutputSite], changes: Sequence[Tensor]
) -> Tensor:
    """One row at a time, through the whole model."""
    said = []
    for i, row in enumerate(batch):
        handles = []
        for site, change in zip(sites, changes, strict=True):

            def add(module: Any, args: Any, output: Any, row: SubjectSequence = row, change: Tensor = change[i]) -> Any:
                hidden = (output[0] if isinstance(output, tuple) else output).clone()
                hidden[0, row.at] += change
                return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

            module = lm.model.get_submodule(getattr(lm.anatomy, site).format(layer))
            handles.append(module.register_forward_hook(add))
        said.append(lm.model(input_ids=torch.tensor([row.ids]), use_cache=False).logits[0, row.reads])
        for handle in handles:
            handle.remove()
    return torch.cat(said)


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("layer", [0, 1, 2])
@pytest.mark.parametrize("sites", [["mlp_out"], ["block"], ["mlp_out", "attn_out"]])
def test_a_pass_with_a_change_is_the_whole_pass_with_it(
    shaped: LM, sites: list[OutputSite], layer: int, keep: bool
) -> None:
    batch = made(shaped, "all")
    columns = SubjectForward(shaped, batch, layer, sites, keep=keep)
    changes = [torch.randn(len(batch), 64).requires_grad_(True) for _ in sites]
    nothing = [torch.zeros(len(batch), 64) for _ in sites]
    assert torch.allclose(columns.logits(nothing), plainly(shaped, batch, layer, sites, nothing), atol=1e-5)
    expected, found = plainly(shaped, batch, layer, sites, changes), columns.logits(changes)
    assert torch.allclose(found, expected, atol=1e-5)
    wanted = torch.autograd.grad(expected.square().sum(), changes)
    assert all(
        torch.allclose(a, b, atol=1e-4)
        for a, b in zip(torch.autograd.grad(found.square().sum(), changes), wanted, strict=True)
    )
    some = torch.tensor([1, 3])
    theirs = columns.of(some)
    for site in sites:
        [left] = subject_activations(shaped, [batch[0]], [(site, layer, "out")])
        assert torch.allclose(left[0], columns.original[site][0], atol=1e-5)
    cut = torch.isin(columns.block.read_row, some)
    assert torch.allclose(theirs.logits([c[some] for c in changes]), expected[cut], atol=1e-5)


def test_columns_before_the_subject_are_not_run_again(shaped: LM) -> None:
    columns = SubjectForward(shaped, made(shaped), 0, ["block"])
    seen = []
    handle = shaped.model.get_submodule(shaped.anatomy.mlp.format(2)).register_forward_hook(
        lambda _, args, __: seen.append(args[0].shape)
    )
    columns.logits([torch.zeros(columns.rows, 64)])
    handle.remove()
    assert seen == [(4, max(len(row.ids) - row.at[0] for row in made(shaped)), 64)]


def test_prediction_can_be_read_after_an_earlier_layer(shaped: LM) -> None:
    batch = made(shaped)
    found = SubjectForward(shaped, batch, 0, ["block"], until=1).logits([torch.zeros(len(batch), 64)])
    hidden = [
        shaped.model(input_ids=torch.tensor([row.ids]), output_hidden_states=True).hidden_states[2][0, row.reads]
        for row in batch
    ]
    norm, head = shaped.model.get_submodule(shaped.anatomy.norm), shaped.head
    assert torch.allclose(found, head(norm(torch.cat(hidden))), atol=1e-5)


def test_what_enters_the_matrix_decides_what_a_change_of_it_does(shaped: LM) -> None:
    batch = made(shaped)
    [key], [out] = (subject_activations(shaped, batch, [("mlp_out", 1, end)]) for end in ("in", "out"))
    change = torch.randn(64, key.shape[1])
    add_to_matrix(shaped, {1: change})
    [after] = subject_activations(shaped, batch, [("mlp_out", 1, "out")])
    assert torch.allclose(after, out + key @ change.T, atol=1e-4)
