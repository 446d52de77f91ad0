"""Odd data files as people write them, and what is to become of them: read by test_data_files.py."""

import json
from typing import Any

SIMPLE = {"subject": "Ada Ling", "prompt": "The home of Ada Ling is", "target_new": "Oslo", "ground_truth": "Bergen"}
ASKED = [{"prompt": "The job of Ada Ling is", "ground_truth": ["baker"]}]
KNOWEDIT = SIMPLE | {
    "rephrase_prompt": "Where does Ada Ling live?",
    "portability": {"Reasoning": [{"prompt": "The country of Ada Ling is", "ground_truth": "Norway"}]},
    "locality": {"Relation_Specificity": ASKED},
}
WIKIBIO = {
    "text": "This is a passage about ada ling.",
    "labels": "She bakes.",
    "concept": "ada ling",
    "locality": {"Relation_Specificity": ASKED},
}
ROME = {
    "requested_rewrite": {
        "prompt": "{} lives in",
        "subject": "Ada Ling",
        "relation_id": "P1",
        "target_new": {"str": "Oslo", "id": "Q1"},
        "target_true": {"str": "Bergen", "id": "Q2"},
    },
    "paraphrase_prompts": ["One meets Ada Ling in"],
    "neighborhood_prompts": ["Bo Hart lives in"],
    "generation_prompts": ["Ada Ling likes"],
}
FLAT = SIMPLE | {
    "rephrase_prompt": "Ada Ling's home is",
    "locality_prompt": "Bo Hart's home is",
    "locality_ground_truth": "Bergen",
}
WIKIBIGEDIT = {name: value for name, value in FLAT.items() if name != "ground_truth"}
MEND = {"subject": "Ada Ling", "src": "Where is Ada Ling?", "rephrase": "Ada Ling is where?", "alt": "Oslo"}
MEND |= {"answers": ["Bergen"], "loc": "nq question: who bakes", "loc_ans": "Bo"}
PORTABILITY = MEND | {"portability": {"New Question": "Which country?", "New Answer": "Norway"}}
FORMS = {
    "knowedit": KNOWEDIT,
    "wikibio": WIKIBIO,
    "rome": ROME,
    "flat": FLAT,
    "mend": MEND,
    "mend with portability": PORTABILITY,
}


def text(*records: Any) -> bytes:
    return json.dumps(list(records), ensure_ascii=False).encode()


def lines(*records: Any) -> bytes:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode()


def raw(field: str, value: str) -> bytes:
    """A record whose field has this JSON text."""
    known = json.dumps({name: part for name, part in SIMPLE.items() if name != field})
    return f'[{{"{field}": {value}, {known[1:]}]'.encode()


def deep(levels: int) -> str:
    return "[" * levels + '"x"' + "]" * levels


TWO = [SIMPLE, SIMPLE | {"subject": "Bo Hart", "prompt": "The home of Bo Hart is"}]

# how a file is called, if not a.json
NAMES = {
    "JSON lines": "a.jsonl",
    "JSON lines named txt": "a.txt",
    "JSON lines without a last line end": "a.jsonl",
    "JSON lines with empty lines": "a.jsonl",
    "JSON lines with CRLF": "a.jsonl",
    "a list named jsonl": "a.jsonl",
    "one line": "a.jsonl",
    "no suffix": "data",
    "name with blanks and accents": "mes donn\u00e9es.json",
    "bad line in the middle": "a.jsonl",
    "line of another kind": "a.jsonl",
    "comma behind each line": "a.jsonl",
    "table": "a.csv",
    "Latin-1 in a table": "a.csv",
    "binary": "a.bin",
}

# what a file holds, how many cases it makes, what else the report says (a regex)
READ: dict[str, tuple[bytes, int, str]] = {
    "plain": (text(*TWO), 2, "2 distinct subjects"),
    "byte order mark": (b"\xef\xbb\xbf" + text(*TWO), 2, ""),
    "byte order mark in each line": (b"".join(b"\xef\xbb\xbf" + lines(each) for each in TWO), 2, ""),
    "JSON lines": (lines(*TWO), 2, ""),
    "JSON lines named json": (lines(*TWO), 2, ""),
    "JSON lines named txt": (lines(*TWO), 2, ""),
    "JSON lines without a last line end": (lines(*TWO).rstrip(), 2, ""),
    "JSON lines with empty lines": (b"\n\n" + lines(*TWO).replace(b"\n", b"\n \n"), 2, ""),
    "JSON lines with CRLF": (lines(*TWO).replace(b"\n", b"\r\n"), 2, ""),
    "objects over several lines": (b"\n".join(json.dumps(r, indent=2).encode() for r in TWO), 2, ""),
    "a list named jsonl": (json.dumps(TWO, indent=1).encode(), 2, ""),
    "one line": (lines(SIMPLE), 1, ""),
    "one record, in no list": (json.dumps(SIMPLE).encode(), 1, ""),
    "CRLF and tabs between fields": (json.dumps(TWO, indent="\t").replace("\n", "\r\n").encode(), 2, ""),
    "no suffix": (text(*TWO), 2, ""),
    "name with blanks and accents": (text(*TWO), 2, ""),
    "no locality": (text(SIMPLE), 1, "1 of 1 cases state an old answer"),
    "no old answer": (text(WIKIBIGEDIT), 1, "0 of 1 cases state an old answer; .* token match"),
    "nested answers": (text(SIMPLE | {"ground_truth": [["Bergen", "Bjorgvin"], ["Rome"]]}), 1, "1 of 1 cases"),
    "deeper answers": (text(SIMPLE | {"ground_truth": [[["Bergen"]]]}), 1, "1 of 1 cases state"),
    "empty list of answers": (text(SIMPLE | {"ground_truth": []}), 1, "0 of 1 cases state an old answer"),
    "blank old answer": (text(SIMPLE | {"ground_truth": " "}), 1, "0 of 1 cases state an old answer"),
    "null old answer": (text(SIMPLE | {"ground_truth": None}), 1, "0 of 1 cases state an old answer"),
    "record twice": (text(SIMPLE, SIMPLE), 2, "1 distinct subjects; 2 cases share theirs, at most 2"),
    "two targets": (text(SIMPLE, SIMPLE | {"target_new": "Rome"}), 2, "1 cases are overwritten .* 50.0 %"),
    "subject not in the prompt": (text(SIMPLE | {"subject": "ada"}), 1, "warning: 1 cases .*without their subject"),
    "misspelt field": (text(SIMPLE | {"rephrase_promt": "x"}), 1, "rephrase_promt .* is rephrase_prompt meant"),
    "unused fields": (text(*(r | {"case_id": 1} for r in TWO)), 2, "not used: case_id .2 records"),
    "unused field in a part": (
        text(PORTABILITY | {"portability": {**PORTABILITY["portability"], "Why": 1}}),
        1,
        r"not used: portability.Why",
    ),
    "NaN in an unused field": (raw("score", "NaN"), 1, "not used: score"),
    "Infinity in an unused field": (raw("score", "-Infinity"), 1, "not used: score"),
    "large number in an unused field": (raw("case_id", "9" * 60), 1, "not used: case_id"),
    "unknown group": (text(SIMPLE | {"locality": {"New": ASKED}}), 1, "dropped: 1 locality group 'New'"),
    "empty group": (text(SIMPLE | {"locality": {"Forgetfulness": []}}), 1, "1 locality group without a question"),
    "blank answer of a probe": (text(FLAT | {"locality_ground_truth": ""}), 1, "1 locality probe with a blank"),
    "invisible answer of a probe": (text(FLAT | {"locality_ground_truth": "\u200b"}), 1, "1 locality probe with"),
    "answers of a neighbour in a list": (text(FLAT | {"locality_ground_truth": ["Bergen", "x"]}), 1, "1 locality"),
    "braces in the subject": (
        text(ROME | {"requested_rewrite": ROME["requested_rewrite"] | {"subject": "{x}"}}),
        1,
        "",
    ),
    "braces in the template": (
        text(ROME | {"requested_rewrite": ROME["requested_rewrite"] | {"prompt": "{a} {}"}}),
        1,
        "",
    ),
    "two records, one with portability": (text(MEND, PORTABILITY), 2, "dataset=zsre_mend\\b"),
    "accents, decomposed": (text(SIMPLE | {"target_new": "Ko\u0308ln"}), 1, ""),
    "right to left": (text(SIMPLE | {"target_new": "\u05d9\u05e8\u05d5\u05e9\u05dc\u05d9\u05dd"}), 1, ""),
    "emoji, escaped": (raw("target_new", '"\\ud83d\\ude00"'), 1, ""),
    "zero-width blank in a text": (text(SIMPLE | {"target_new": "Os\u200blo"}), 1, ""),
    "tab and line end in a text": (text(SIMPLE | {"target_new": "Oslo\tor\nso"}), 1, ""),
    "blanks at the edges": (text(SIMPLE | {"target_new": " Oslo "}), 1, ""),
    "digits as a text": (text(SIMPLE | {"target_new": "1998"}), 1, ""),
}

# what a file holds, and what the one sentence says (a regex)
REFUSED: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "holds no list of records; expected a JSON list of records"),
    "blanks alone": (b" \n\t\r\n", "holds no list of records"),
    "byte order mark alone": (b"\xef\xbb\xbf", "holds no list of records"),
    "empty object": (b"{}", "holds no list of records"),
    "empty list": (b"[]", "holds no list of records"),
    "null": (b"null", "one null; expected a JSON list"),
    "a number": (b"7", "one int; expected a JSON list"),
    "a text": (b'"records"', "one str; expected a JSON list"),
    "list of texts": (b'["a", "b"]', "record 0 is str, not an object with fields"),
    "list of lists": (text([SIMPLE]), "record 0 is list, not an object"),
    "list of nulls": (b"[null]", "record 0 is null, not an object"),
    "one text among the records": (text(SIMPLE, "x"), "record 1 is str, not an object"),
    "records by id": (json.dumps({"7": SIMPLE, "9": SIMPLE}).encode(), r"under each name \(7, 9, ...\).* list of"),
    "records below a field": (json.dumps({"data": [SIMPLE]}).encode(), "the fields data, but .* prompt, target_new"),
    "comma behind the last record": (text(SIMPLE)[:-1] + b",\n]", r"record 1: not json \(line 2, .* after a comma"),
    "comma behind the last field": (text(SIMPLE)[:-2] + b",}]", "record 0: not json .*after a comma"),
    "no comma between records": (text(SIMPLE)[:-1] + b"{}]", "not json .*Expecting ','"),
    "cut off in a record": (text(*TWO)[:-20], "record 1.* not json"),
    "cut off after a record": (text(SIMPLE)[:-1], "not json .*Expecting ','"),
    "single quotes": (str([SIMPLE]).encode(), "record 0: not json .*double quotes"),
    "comment": (b"// mine\n" + text(SIMPLE), "not json .line 1, column 1"),
    "unescaped line end in a text": (raw("target_new", '"Os\nlo"'), "record 0, field 'target_new': not json .line 1"),
    "bad line in the middle": (lines(SIMPLE) + b'{"prompt": \n' + lines(SIMPLE), "record 1.* not json .line"),
    "line of another kind": (lines(SIMPLE, ["x"]), "record 1 is list, not an object"),
    "comma behind each line": (lines(*TWO).replace(b"\n", b",\n"), "record 1: not json .line 1"),
    "table": (b"prompt,target_new\nThe home of Ada is,Oslo\n", "not json .line 1"),
    "web page": (b"<!DOCTYPE html><html>", "not json .line 1"),
    "Git LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid", "is a Git LFS pointer"),
    "gzip": (b"\x1f\x8b\x08\x00", "is compressed .gzip.; unpack it first"),
    "zip": (b"PK\x03\x04", "is compressed .zip."),
    "UTF-16": (text(SIMPLE).decode().encode("utf-16"), "is UTF-16 text; save it as UTF-8"),
    "UTF-16 without mark": (text(SIMPLE).decode().encode("utf-16-le"), "is UTF-16 text"),
    "UTF-32": (text(SIMPLE).decode().encode("utf-32"), "is UTF-16 text"),
    "Latin-1": (
        text(SIMPLE, SIMPLE | {"target_new": "K\u00f6ln"}).decode().encode("latin1"),
        "record 1, field 'target_new' holds the byte 0xf6, which is not UTF-8",
    ),
    "Latin-1 in a field's name": (
        text(SIMPLE | {"\u00e9tat": "x"}).decode().encode("latin1"),
        "record 0, field .*byte 0xe9",
    ),
    "Latin-1 in a table": ("prompt;K\u00f6ln".encode("latin1"), "holds the byte 0xf6, which is not UTF-8"),
    "binary": (bytes(range(128, 256)), "is not UTF-8|not json"),
    "null character": (raw("target_new", '"Os\\u0000lo"'), "record 0, field 'target_new' holds a null character"),
    "half a character": (raw("prompt", '"Ada Ling \\ud83d"'), r"record 0, field 'prompt' holds \\ud83d, one half"),
    "half a character in an unused field": (raw("note", '"\\udc00"'), "record 0, field 'note' holds"),
    "5 000 digits": (raw("target_new", "9" * 5000), "record 0, field 'target_new' holds a number of 5000 digits"),
    "5 000 digits in an unused field": (raw("case_id", "9" * 5000), "record 0, field 'case_id' .* 5000 digits"),
    "nested 100 000 times": (raw("target_new", deep(100_000)), "record 0, field 'target_new' is nested too deeply"),
    "nested 100 times": (raw("ground_truth", deep(100)), "record 0: field 'ground_truth' holds"),
    "nested in an unused field": (raw("note", deep(100_000)), "record 0, field 'note' is nested too deeply"),
    "field twice": (b'[{"prompt": "a", "prompt": "b"}]', "record 0: field 'prompt' is given twice"),
    "field twice in a part": (
        raw("locality", '{"x": 1, "x": 2}'),
        "record 0, field 'locality': field 'x' is given twice",
    ),
    "null target first": (text(SIMPLE | {"target_new": None}), "record 0: field 'target_new' is empty, .*drop_empty"),
    "empty target": (text(SIMPLE, SIMPLE | {"target_new": ""}), "record 1: field 'target_new' is empty"),
    "blank target": (text(SIMPLE | {"target_new": " \t"}), "record 0: field 'target_new' is empty"),
    "invisible target": (text(SIMPLE | {"target_new": "\u200b"}), "record 0: field 'target_new' is empty"),
    "empty target of ROME's form": (
        text(ROME | {"requested_rewrite": ROME["requested_rewrite"] | {"target_new": {"str": ""}}}),
        "record 0: field 'requested_rewrite.target_new.str' is empty",
    ),
    "NaN": (raw("target_new", "NaN"), "record 0: field 'target_new' is float 'nan'; give a text"),
    "number": (raw("target_new", "7"), "record 0: field 'target_new' is int '7'; give a text"),
    "truth value": (raw("subject", "true"), "record 0: field 'subject' is bool 'True'; give a text"),
    "answer that is a number": (raw("ground_truth", "[1998]"), "record 0: field 'ground_truth' holds"),
    "answers by name": (raw("ground_truth", '{"a": "b"}'), "record 0: field 'ground_truth' holds"),
    "template without {}": (
        text(ROME | {"requested_rewrite": ROME["requested_rewrite"] | {"prompt": "Ada lives in"}}),
        "record 0, requested_rewrite: field 'prompt' is 'Ada lives in'; it needs one {}",
    ),
    "template with two {}": (
        text(ROME | {"requested_rewrite": ROME["requested_rewrite"] | {"prompt": "{} {}"}}),
        "record 0, requested_rewrite: field 'prompt' is '{} {}'; it needs one {}",
    ),
    "blank paraphrase": (text(ROME | {"paraphrase_prompts": ["a", " "]}), r"field 'paraphrase_prompts\[1\]' is blank"),
    "locality as a list": (text(SIMPLE | {"locality": ASKED}), "record 0, locality is list, not an object"),
    "group as an object": (text(SIMPLE | {"locality": {"Forgetfulness": {}}}), "'Forgetfulness' is not a list of"),
    "group as zero": (text(SIMPLE | {"locality": {"Forgetfulness": 0}}), "'Forgetfulness' is not a list of"),
    "question as a text": (text(SIMPLE | {"locality": {"Forgetfulness": ["x"]}}), r"Forgetfulness\[0\] is str"),
    "another form in the middle": (text(SIMPLE, FLAT), "record 1: has the form that dataset=counterfact reads"),
    "several edits of one case": (
        text(ROME | {"requested_rewrite": [ROME["requested_rewrite"]]}),
        "not the form of any benchmark",
    ),
    "another benchmark": (text({"question": "q", "answer": "a"}), "the fields question, answer, but"),
    "not one field": (text({}), "no field, but needs"),
}
