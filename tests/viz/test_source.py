"""`show`: the code as it is, the docstring beside it, nothing that changes for reasons of its own."""

from __future__ import annotations

import functools
import importlib.util
import re
import sys
import textwrap
from html.parser import HTMLParser

import pytest
import torch

from labkit import papers
from labkit.errors import LabkitError
from labkit.viz.source import show

MODULE = '''
"""Toy attention, "An Image is Worth 16x16 Words", 2020 (S207), and a stranger (S999)."""
import functools


def attend(q, k, v):
    """Mixes <values> with `softmax`.

    out = softmax(q kᵀ / √d) v

        q, k, v: (b, n, d) -> (b, n, d)

    The rows sum to one = always.
    """
    # a <script> in a comment
    scores = q if q<k & "a long text with -> in it" else v
    return scores


class Thing:
    """One paper of its own: S182."""

    def __init__(self):
        """Keeps its own words."""
        self.text = """
reaches further left"""

    def run(self):
        return 1


class Only:
    """Nothing but words."""


@functools.lru_cache
def bare(): return 1


def short(): "words"; return 2


nameless = lambda x: x
'''


def load(folder, source=MODULE):
    path = folder / "toy.py"
    path.write_text(source, encoding="utf-8")
    spec = importlib.util.spec_from_file_location("toy", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def toy(tmp_path, monkeypatch):
    module = load(tmp_path)
    monkeypatch.setitem(sys.modules, "toy", module)
    return module


class Text(HTMLParser):
    """The text between the tags of a well-formed page, style left out."""

    def __init__(self, html):
        super().__init__()
        self.open, self.pieces = [], []
        self.feed(html)
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.pieces.append(data)

    def __str__(self):
        return "".join(self.pieces)


def test_code_on_the_left_and_words_on_the_right(toy):
    html = show(toy.attend)._repr_html_()
    code, idea = html.split('<div class="idea">')
    assert str(Text(re.search(r"<pre>.*</pre>", code, re.S)[0])) == (
        "def attend(q, k, v):\n    # a <script> in a comment\n"
        '    scores = q if q<k & "a long text with -> in it" else v\n    return scores\n'
    )
    assert "<p>Mixes &lt;values&gt; with <code>softmax</code>.</p>" in idea
    assert "<pre>out = softmax(q kᵀ / √d) v</pre>" in idea
    assert "<pre>q, k, v: (b, n, d) -&gt; (b, n, d)</pre>" in idea
    assert "<p>The rows sum to one = always.</p>" in idea
    assert papers.cite("S207") in str(Text(html)) and "S999" not in html
    assert "<header>toy.attend</header>" in html


def test_nothing_is_fetched_and_nothing_runs(toy):
    for thing in (toy.attend, toy.Thing, toy.Only):
        html = show(thing)._repr_html_()
        assert not re.search(r"<script|<link|https?:|url\(|@import|on\w+=", html)
        Text(html)


def test_own_papers_come_before_those_of_the_module(toy):
    assert show(toy.Thing).papers == [papers.cite("S182")]
    assert show(toy.Thing.run).papers == [papers.cite("S207")]


def test_a_class_keeps_the_words_of_its_methods(toy):
    code = show(toy.Thing).code
    assert code.startswith("class Thing:\n    def __init__(self):\n") and '"""Keeps its own words."""' in code
    assert show(toy.Thing.__init__).name == "toy.Thing.__init__"
    assert show(toy.Thing().run).code == show(toy.Thing.run).code == "def run(self):\n    return 1"


def test_code_that_is_only_words_stays(toy):
    assert "Nothing but words" in show(toy.Only).code
    assert show(toy.short).code == 'def short(): "words"; return 2'


def test_wrapped_functions_are_unwrapped(toy):
    assert show(toy.bare).code.startswith("@functools.lru_cache\ndef bare()")
    assert show(torch.no_grad()(toy.attend)).name == "toy.attend"


def test_the_same_code_elsewhere_shows_the_same(toy, tmp_path):
    before = show(toy.attend)
    moved = load(tmp_path, MODULE.replace('stranger (S999)."""', 'stranger (S999)."""\n\n\nx = 1\n'))
    after = show(moved.attend)
    assert after._repr_html_() == before._repr_html_() and repr(after) == repr(before)
    assert str(tmp_path) not in after._repr_html_() + repr(after)


def test_changed_code_shows_differently(toy, tmp_path):
    before = show(toy.attend)
    changed = show(load(tmp_path, MODULE.replace("return scores", "return 2 * scores")).attend)
    assert changed._repr_html_() != before._repr_html_() and repr(changed) != repr(before)


def test_text_holds_name_words_papers_and_code(toy):
    text = repr(show(toy.attend))
    parts = [text.index(part) for part in ("toy.attend", "Mixes <values>", "16x16", "def attend")]
    assert parts == sorted(parts)


@pytest.mark.parametrize(
    "thing, sentence",
    [
        (print, "this is a builtin, written in C"),
        (torch.matmul, "this is a builtin, written in C"),
        (3, "this is a int"),
        (torch.nn.GELU(), r"this is a GELU. Did you mean show\(GELU\)\?"),
        (functools.partial(print), r"this is a partial"),
        (lambda x: x, "show needs a function with a name; write the lambda as a def"),
        (dict, r"The source of builtins.dict is not at hand"),
    ],
)
def test_what_has_no_source_is_a_sentence(thing, sentence):
    with pytest.raises(LabkitError, match=sentence):
        show(thing)


def test_a_function_made_from_a_string_is_a_sentence():
    space = {"__name__": "nowhere"}
    exec(textwrap.dedent("def f(x):\n    return x"), space)
    with pytest.raises(LabkitError, match=r"The source of nowhere\.f is not at hand"):
        show(space["f"])
