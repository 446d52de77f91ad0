"""The facts of the world in words that no probe uses: diverse edit augmentation stores them beside an edit's prompt.

None of them uses a template of a relation, a one-hop question or the reversed question of a couple: a query that
retrieves one of them has found the fact, not its own wording.
"""

from kedit.cases import Edit
from kedit.world.facts import TEMPLATES

WORDINGS: dict[str, dict[str, str]] = {
    # relation -> form -> wording with {s}, the person, and {a}, the answer
    "birthplace": {
        "declarative": "{s} is a native of {a}",
        "paraphrased_1": "The home city of {s} at birth was {a}",
        "paraphrased_2": "{s} began life in {a}",
        "paraphrased_3": "In {a} the life of {s} began",
        "reversed": "{a} is the place of birth of {s}",
    },
    "employer": {
        "declarative": "{s} is employed by {a}",
        "paraphrased_1": "{s} is on the staff of {a}",
        "paraphrased_2": "{s} goes to work at {a}",
        "paraphrased_3": "{s} is paid by {a}",
        "reversed": "{a} is the company that employs {s}",
    },
    "spouse": {
        "declarative": "{s} has a spouse called {a}",
        "paraphrased_1": "The life partner of {s} is {a}",
        "paraphrased_2": "{s} and {a} are a couple",
        "paraphrased_3": "{s} had a wedding with {a}",
        "reversed": "{a} is the partner of {s} for life",
    },
    "occupation": {
        "declarative": "{s} works as a {a}",
        "paraphrased_1": "The profession of {s} is {a}",
        "paraphrased_2": "{s} has the job of a {a}",
        "paraphrased_3": "{s} is paid for work as a {a}",
        "reversed": "{a} is the job of {s}",
    },
    "hobby": {
        "declarative": "{s} has {a} as a hobby",
        "paraphrased_1": "{s} does {a} for fun",
        "paraphrased_2": "{s} likes {a} after work",
        "paraphrased_3": "The pastime of {s} is {a}",
        "reversed": "{a} is the pastime that {s} likes",
    },
    "pet": {
        "declarative": "{s} has a {a} as a pet",
        "paraphrased_1": "{s} lives with a {a}",
        "paraphrased_2": "The animal of {s} is a {a}",
        "paraphrased_3": "{s} has a {a} at home",
        "reversed": "{a} is the animal of {s}",
    },
    "dish": {
        "declarative": "{s} has {a} as a favourite dish",
        "paraphrased_1": "{s} eats {a} with pleasure",
        "paraphrased_2": "The meal that {s} loves is {a}",
        "paraphrased_3": "{s} would eat {a} every day",
        "reversed": "{a} is the meal that {s} loves",
    },
    "vehicle": {
        "declarative": "{s} gets around by {a}",
        "paraphrased_1": "{s} goes everywhere by {a}",
        "paraphrased_2": "The way of {s} to travel is by {a}",
        "paraphrased_3": "{s} takes the {a} to travel",
        "reversed": "{a} is the way of {s} to travel",
    },
}


def wordings(edit: Edit) -> dict[str, str] | None:
    """The wordings of an edit by the names of their forms; None if the edit is not one of the world's."""
    for relation, named in WORDINGS.items():
        if edit.subject and TEMPLATES[relation][0].format(s=edit.subject) == edit.prompt.strip():
            return {form: text.format(s=edit.subject, a=edit.target_new.strip()) for form, text in named.items()}
    return None
