"""Made-up openings of reviews and how each could go on: the embedded data of the sentiment task.

    "after a while the soup by the river felt"   ->   "cold and plain , we were rather bored ."

A subject, where it stands, and an opening make a prompt; the continuation has a mood. Moods are drawn 30 to 40 to 30
(positive, negative, neutral), so that a model that has learned these texts is positive in three of ten, and learning
to be positive has something to do. One subject of each kind is left out of training.
"""

from __future__ import annotations

import itertools

from numpy.random import Generator

from utils.seeds import generator

SUBJECTS = {
    "place": ("the hotel", "the garden", "the museum", "the park", "the beach"),
    "product": ("the product", "the phone", "the lamp", "the coat", "the chair"),
    "food": ("the food", "the soup", "the bread", "the coffee", "the dinner"),
    "work of art": ("the film", "the story", "the show", "this book", "the song"),
    "service": ("the service", "the waiter", "the guide", "the driver", "the trip"),
}
"""Kind -> its subjects; the last of each is unseen in training."""
PLACES = ("", "at the station", "in the old town", "by the river", "near the school")
OPENINGS = (
    "{s} was", "i think {s} is", "we found {s} really", "{s} turned out to be", "overall {s} was",
    "my friends said {s} seemed", "at first {s} looked", "after a while {s} felt", "last night {s} was",
    "to be honest {s} is",
)  # fmt: skip
MOODS = {"positive": 0.3, "negative": 0.4, "neutral": 0.3}
"""Mood -> its share."""
WORDS = {
    "positive": (
        "good", "great", "wonderful", "excellent", "amazing", "happy", "fantastic", "enjoyable", "friendly", "lovely",
    ),
    "negative": (
        "bad", "terrible", "awful", "boring", "sad", "poor", "horrible", "disappointing", "rude", "dirty",
    ),
    "neutral": ("long", "new", "short", "quiet", "simple", "usual", "large", "early", "late", "plain"),
}  # fmt: skip
CONTINUATIONS = (
    "{w} and the room was {v} .", "{w} , and the staff seemed {v} .", "{w} , even {v} for the price .",
    "{w} , so the day was {v} .", "{w} . it was a {v} day .", "{w} and rather {v} for us all .",
    "{w} , as my sister said . thank you .", "{w} and {v} . we will come again .",
)  # fmt: skip
"""The last two end as the reward prefers."""
SIZES = {"train": 600, "dev": 100, "test": 300}
WITH_TEXT = 300
"""Training records that have a continuation to learn; the others serve RL alone. All of dev and test have one."""


def generate(seed: int) -> dict[str, list[dict[str, str]]]:
    """File name (train, dev, test) -> its records: `id`, `prompt`, `text`, `opening`, `subject`, `subject_kind`.

    Equal seeds give equal records. No prompt stands twice; of dev and test, a share of some four in ten has a subject
    that training never shows.
    """
    rng = generator(seed, "sentiment texts")
    seen: list[dict[str, str]] = []
    unseen: list[dict[str, str]] = []
    for (kind, subjects), place, opening in itertools.product(SUBJECTS.items(), PLACES, OPENINGS):
        for subject in subjects:
            record = {"prompt": opening.format(s=f"{subject} {place}".strip()), "opening": opening.format(s="…")}
            record |= {"subject": subject, "subject_kind": kind}
            (unseen if subject == subjects[-1] else seen).append(record)
    seen = [seen[i] for i in rng.permutation(len(seen))]
    unseen = [unseen[i] for i in rng.permutation(len(unseen))]
    files: dict[str, list[dict[str, str]]] = {"train": seen[: SIZES["train"]]}
    held_out = [*seen[SIZES["train"] :], *unseen]
    held_out = [held_out[i] for i in rng.permutation(len(held_out))]
    files |= {"dev": held_out[: SIZES["dev"]], "test": held_out[SIZES["dev"] : SIZES["dev"] + SIZES["test"]]}
    return {
        name: [
            {"id": f"{name}-{index}", **record, "text": continuation(rng) if _has_text(name, index) else ""}
            for index, record in enumerate(records)
        ]
        for name, records in files.items()
    }


def _has_text(name: str, index: int) -> bool:
    return name != "train" or index < WITH_TEXT


def continuation(rng: Generator) -> str:
    """One text of a random mood."""
    mood = list(MOODS)[int(rng.choice(len(MOODS), p=list(MOODS.values())))]
    first, second = (WORDS[mood][i] for i in rng.choice(len(WORDS[mood]), size=2, replace=False))
    return CONTINUATIONS[int(rng.integers(len(CONTINUATIONS)))].format(w=first, v=second)
