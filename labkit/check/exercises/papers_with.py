"""A search over a catalogue: every word has to be there, anywhere, and capitals do not matter."""

from __future__ import annotations

from labkit.check.exercise import Exercise
from labkit.papers import Row
from labkit.viz.gallery_words import matches


def reference(rows, words):
    return [row.id for row in rows if matches(row, words)]


task = Exercise(
    lesson="12_gallery",
    reference=reference,
    hints=(
        "`words.casefold().split()` is the list of words.",
        "`all(word in text for word in …)`, where the text is all five joined by spaces, in small letters.",
    ),
    praise="The gallery's own search is this one; each word more leaves fewer papers.",
    source="labkit.viz.gallery_words.matches",
)


@task.stub
def papers_with(rows, words):
    """Write `papers_with(rows, words)`: the ids of all papers that have every one of the words (a text with spaces
    between them) somewhere in `id`, `title`, `idea`, `family` or `symbol`, also inside a longer word. Capitals and
    small letters are alike.
    """
    return []


class Made(Row):
    """A row that a learner can read at a glance."""

    def __repr__(self) -> str:
        return f"{self.id} {self.title or self.family} {self.year}"


def paper(id, title="", idea="", family="mixer", year=2021, symbol="", status="open"):
    """A row of a made-up catalogue."""
    return Made(id, title, year, family, "implement", idea, status, symbol, "", "")


SHELF = [
    paper("P1", "Fewer Tokens", "Keep what attention looks at.", "token-reduction"),
    paper("P2", "Attention in Windows", "Near tokens talk, far ones do not.", "attention"),
    paper("P3", "Eight Bits", "Round each weight.", "quantization", symbol="labkit.quant.grids.Uniform"),
    paper("P4", "Axial Pairs", "Rows, then columns.", "attention", symbol="labkit.attention.axial"),
    paper("P5", "A Token for the Rest", "What is dropped becomes one.", "token-reduction"),
]


@task.cases
def cases(dice):
    yield from (
        (SHELF[:3], "attention"),
        (SHELF, "windows attention"),
        (SHELF, "Token ATTENTION"),
        (SHELF, "talk far"),
        (SHELF, "uniform bits"),
        (SHELF, "token"),
        (SHELF, "p4 rows"),
        (SHELF, "Bits"),
        (SHELF, "diffusion"),
    )


def searched(rows, test):
    def text(row):
        return f"{row.id} {row.title} {row.idea} {row.family} {row.symbol}"

    return [row.id for row in rows if test(text(row))]


@task.mistake(
    "One of the words is enough in yours; asked are papers that have all of them. Try `all` in place of `any`."
)
def any_word(rows, words):
    return searched(rows, lambda text: any(word in text.casefold() for word in words.casefold().split()))


@task.mistake("Capitals count in yours: make the words and the text small before you compare them.")
def capitals_count(rows, words):
    return searched(rows, lambda text: all(word in text for word in words.split()))


@task.mistake("You made the text small, and the words not: a word typed with a capital is never found.")
def words_as_typed(rows, words):
    return searched(rows, lambda text: all(word in text.casefold() for word in words.split()))


@task.mistake("You look for the words as one piece, side by side and in this order; each may stand anywhere.")
def one_piece(rows, words):
    return searched(rows, lambda text: words.casefold() in text.casefold())


@task.mistake("You find whole words only: token should also find Tokens and token-reduction. `in` on texts does that.")
def whole_words(rows, words):
    return searched(rows, lambda text: set(words.casefold().split()) <= set(text.casefold().split()))


@task.mistake("You look at title and idea only. Words also stand in the id, the family and the symbol.")
def title_and_idea(rows, words):
    wanted = words.casefold().split()
    return [row.id for row in rows if all(word in f"{row.title} {row.idea}".casefold() for word in wanted)]


@task.mistake("You ask for all words in the same field. One may stand in the title and another in the idea: join them.")
def in_one_field(rows, words):
    wanted = words.casefold().split()
    return [
        row.id
        for row in rows
        if any(
            all(word in field.casefold() for word in wanted)
            for field in (row.id, row.title, row.idea, row.family, row.symbol)
        )
    ]
