"""How EasyEdit scores: the questions of one group in one padded batch. Only to reproduce its numbers.

Padded on the left (since November 2024) without position ids: with absolute position embeddings (GPT-2) shorter
prompts are read at shifted positions. Padded on the right (before), the scored slice is shifted by the number of pads.
"""

from collections.abc import Sequence

import torch

from kedit.lm import LM, Pass, Route, Scored
from kedit.lm.forward import with_prefix
from kedit.lm.text import Side, collate


@torch.no_grad()
def score_group(lm: LM, routes: Sequence[Route], answers: Sequence[str], side: Side) -> list[Scored]:
    """Scores of one group's questions as EasyEdit's token accuracy sees them."""
    pairs = lm.text.pairs([route.prompt for route in routes], answers)
    pairs = [with_prefix(pair, route.reading) for pair, route in zip(pairs, routes, strict=True)]
    batch = collate(pairs, lm.text.pad, side, lm.device)
    with lm.passing(Pass(batch.mask, batch.in_prompt, who=[pair.reading for pair in pairs])):
        logits = lm.model(input_ids=batch.ids, attention_mask=batch.mask.long()).logits.float()
    scores = []
    for row, (pair, route) in enumerate(zip(pairs, routes, strict=True)):
        start = batch.ids.shape[1] - len(pair.answer)  # pads are counted as if on the left, on whichever side they are
        gold, seen = batch.ids[row, start:], logits[row, start - 1 : -1]
        logprob = seen.log_softmax(-1).gather(-1, gold[:, None])[:, 0]
        pred = seen.argmax(-1).tolist()
        texts = lm.text.decode(gold.tolist()), lm.text.decode(pred)
        scores.append(Scored(gold.tolist(), pred, logprob.tolist(), *texts, info={**route.info, **pair.reading.info}))
    return scores
