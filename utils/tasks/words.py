"""How each kind of task is spoken of: the rates of its evaluation, and what tables and reports call them.

Files name the kind (`kind` in metrics.json), so that reports need no task to find the words.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Words:
    """The words of one kind of task.

    `decides` is the rate that comparisons are about, the mean of `Judgement.correct`; `accuracy` says it in words and
    `definition` in a sentence.
    """

    decides: str
    accuracy: str
    definition: str
    rates: Mapping[str, str]
    """Rate in metrics.json -> column of breakdown.csv that it averages, in the order of the files."""
    first_columns: tuple[str, ...]
    """How breakdown.csv begins; the others follow in the order of the judgement's fields."""
    columns: Mapping[str, str]
    """Head of a column of the result table -> its rate; a rate that no evaluation has is left out."""
    in_full: Mapping[str, str]
    """Rate -> its words where there is room, in the order of a model card."""
    groupings: Mapping[str, str]
    """Ways of grouping records, in words."""
    shown_groupings: tuple[str, ...]
    """Those that stand in the report; the others, of many groups, are in groups.csv alone."""
    pictured: tuple[str, ...]
    """Those that have a panel in the picture, and a line on the terminal."""
    drawn: str
    """How the answers of an evaluation are drawn."""
    purpose: str
    """What a trained model does, for its card."""
    prompts: str
    """What builds its prompts."""
    caveat: str
    """What the judge cannot say, for the limits of a report."""
    controls: Mapping[str, str]
    """What the controls without training are: `majority` and `gold`."""
    sets: Mapping[str, str] = field(default_factory=dict)
    """Head of a column -> figure of all answers together (`set` in metrics.json)."""
    logged: tuple[str, ...] = ()
    """Verdicts that train.jsonl has the mean of, beside `accuracy` and `parse_rate`."""


FINQA = Words(
    decides="execution_accuracy",
    accuracy="execution accuracy",
    definition="Execution accuracy: share of records whose program, executed, gives the gold value; one greedy answer "
    "each.",
    rates={
        "execution_accuracy": "execution_correct",
        "program_accuracy": "program_correct",
        "exact_match": "exact_match",
        "numeric_1pct": "numeric_1pct",
        "program_valid": "program_valid",
        "format_valid": "format_valid",
        "official_execution_accuracy": "official_correct",
        "official_program_accuracy": "official_program_correct",
        "percent_scale": "percent_scale",
        "ungrounded_correct": "ungrounded_correct",
    },
    first_columns=("id", "execution_correct", "program_correct", "format_valid", "failure"),
    columns={
        "official": "official_execution_accuracy",
        "program": "program_accuracy",
        "typed answer": "exact_match",
        "within 1 %": "numeric_1pct",
        "valid format": "format_valid",
        "valid program": "program_valid",
    },
    in_full={
        "execution_accuracy": "execution accuracy",
        "program_accuracy": "program accuracy",
        "official_execution_accuracy": "execution accuracy, as FinQA's published evaluator judges",
        "official_program_accuracy": "program accuracy, as FinQA's published evaluator judges",
        "exact_match": "typed answer exact",
        "numeric_1pct": "value within 1 %",
        "program_valid": "program executes",
        "format_valid": "format valid",
    },
    groupings={
        "steps": "steps of the gold program",
        "first_operation": "first operation of the gold program",
        "operations": "set of operations of the gold program",
        "evidence": "where the gold evidence stands",
        "answer_kind": "kind of answer",
    },
    shown_groupings=("steps", "first_operation", "evidence", "answer_kind"),
    pictured=("steps", "evidence", "answer_kind"),
    drawn="greedy answers",
    purpose="Given a page of a company's report and a question, this model writes a JSON object with a FinQA program "
    "and\nan answer; the value of the executed program is the answer that counts.",
    prompts="`utils/finqa/prompts.py`",
    caveat="The accuracy is that of the judge described above; another (typed answers, a tolerance) gives other "
    "numbers.",
    controls={
        "majority": "always the most frequent training answer; its typed value is judged, as a constant needs no "
        "program",
        "gold": "the gold programs themselves: the upper bound of this judge",
    },
    logged=("exact_match",),
)

SENTIMENT = Words(
    decides="positive_rate",
    accuracy="positive rate",
    definition="Positive rate: share of records whose continuation reads as positive by the keywords of the reward, is "
    "of moderate length and does not repeat itself; one greedy continuation each.",
    rates={
        "positive_rate": "positive",
        "negative_rate": "negative",
        "preferred_ending": "preferred_ending",
        "format_valid": "format_valid",
        "repetitive": "repetitive",
    },
    first_columns=("id", "positive", "negative", "format_valid", "failure"),
    columns={
        "negative": "negative_rate",
        "preferred ending": "preferred_ending",
        "moderate length": "format_valid",
        "repetitive": "repetitive",
    },
    in_full={
        "positive_rate": "positive",
        "negative_rate": "negative",
        "preferred_ending": "with a preferred ending",
        "format_valid": "of moderate length",
        "repetitive": "repeating itself",
    },
    groupings={"opening": "opening of the prompt", "subject_kind": "kind of subject", "seen": "subject in training"},
    shown_groupings=("opening", "subject_kind", "seen"),
    pictured=("subject_kind", "seen"),
    drawn="greedy continuations",
    purpose="Given the opening of a review, this model goes on from it so that it reads as positive by\n"
    "a list of keywords.",
    prompts="openings as in `utils/sentiment/texts.py`",
    caveat="The judge counts keywords: what a person finds positive or natural may be neither for it, and vice versa.",
    controls={
        "majority": "always the most frequent training continuation that reads as positive: right everywhere, since "
        "the judge asks for neither variety nor a fit to the prompt",
        "gold": "the continuations of the records themselves: how positive the data are, no upper bound",
    },
    logged=("negative",),
)

GENALIGN = Words(
    decides="golden_accuracy",
    accuracy="golden accuracy",
    definition="Golden accuracy: share of real texts, seen by nobody in training, whose label a classifier tells right "
    "that has learned from the method's texts alone; one text for each prompt, sampled at temperature 1.",
    rates={"golden_accuracy": "golden_correct"},
    first_columns=("id", "golden_correct", "failure"),
    columns={},
    in_full={"golden_accuracy": "accuracy of a classifier trained on its texts"},
    groupings={"label": "label of the real text"},
    shown_groupings=("label",),
    pictured=("label",),
    drawn="a classifier trained on sampled texts",
    purpose="Given examples and a label, this model writes a text of the label that teaches a classifier.",
    prompts="`utils/genalign/prompts.py`",
    caveat="Intervals are over golden texts: they do not hold how another sample of the same generator's texts would "
    "come out. The classifier is a small one over words, trained on as many texts as there are test prompts: a larger "
    "one, or more texts, gives other numbers.",
    controls={
        "majority": "the most frequent training text, whatever label is asked for: none is likelier, so none is right",
        "gold": "the real texts of the pool, as often as prompts need: what real data are worth to this classifier",
    },
    sets={
        "golden loss": "golden_loss",
        "right label, %": "label_fidelity",
        "between labels": "inter",
        "within a label": "intra",
        "silhouette": "silhouette_cosine",
        "distinct-2": "distinct_2",
        "repeated, %": "repeated",
        "copied, %": "copied",
        "label balance": "balance",
        "words": "words",
    },
)

WORDS: dict[str, Words] = {"finqa": FINQA, "sentiment": SENTIMENT, "genalign": GENALIGN}


def words_of(metrics: Mapping[str, object]) -> Words:
    """The words of an evaluation's metrics.json or of a line of summary.csv; FinQA's where no kind is stated."""
    return WORDS[str(metrics.get("kind") or "finqa")]
