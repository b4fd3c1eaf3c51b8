"""`labkit.show(fn)`: the code of a function beside what it computes, and the papers it comes from.

The code is on the left; its docstring, with formulas and shapes set apart, is on the right. No line number,
path or clock is in the output: a lesson's output changes when the code does, and only then.
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
import textwrap
from collections.abc import Callable
from html import escape
from typing import Any

from labkit.errors import LabkitError
from labkit.papers import PAPERS, cite

# The colours are those of the JupyterLab theme, light or dark; the fallbacks are readable on both.
STYLE = """
.labkit-show { border: 1px solid var(--jp-border-color2, #8888); border-radius: 4px; overflow: hidden;
  color: var(--jp-content-font-color1, inherit); font-size: var(--jp-code-font-size, 13px); }
.labkit-show header { padding: 4px 12px; border-bottom: 1px solid var(--jp-border-color2, #8888);
  background: var(--jp-layout-color2, #8882); font-family: var(--jp-code-font-family, monospace); }
.labkit-show .sides { display: flex; flex-wrap: wrap; }
.labkit-show .code { flex: 5 1 38em; min-width: 0; padding: 8px 12px; }
.labkit-show .idea { flex: 2 1 18em; min-width: 0; padding: 4px 12px;
  background: var(--jp-layout-color1, transparent); font-family: var(--jp-content-font-family, sans-serif);
  box-shadow: -1px 0 var(--jp-border-color2, #8888); }
.labkit-show .sides pre { margin: 0; padding: 0; background: transparent; color: inherit; line-height: 1.4;
  font-family: var(--jp-code-font-family, monospace); font-size: inherit;
  white-space: pre-wrap; word-break: normal; overflow-wrap: anywhere; }
.labkit-show .line { display: block; padding-left: var(--hang); text-indent: calc(-1 * var(--hang)); }
.labkit-show .idea p { margin: 8px 0; }
.labkit-show .idea .formula { padding-left: 10px; border-left: 3px solid var(--jp-brand-color1, #2a7fb8); }
.labkit-show .idea .papers { opacity: 0.85; font-size: 92%; }
.labkit-show .o { white-space: nowrap; }
.labkit-show .k { color: var(--jp-mirror-editor-keyword-color, #1a8a3a); font-weight: 600; }
.labkit-show .n { color: var(--jp-mirror-editor-def-color, #3b7dd8); }
.labkit-show .s { color: var(--jp-mirror-editor-string-color, #c8553d); }
.labkit-show .m { color: var(--jp-mirror-editor-number-color, #3a8f5f); }
.labkit-show .c { color: var(--jp-mirror-editor-comment-color, #6b8a8a); font-style: italic; }
"""


class Source:
    """What `show` found; a notebook displays it as HTML, a terminal as text."""

    def __init__(self, name: str, code: str, doc: str, papers: list[str]) -> None:
        self.name, self.code, self.doc, self.papers = name, code, doc, papers

    def __repr__(self) -> str:
        parts = [self.name, self.doc, *self.papers, self.code]
        return "\n\n".join(part for part in parts if part)

    def _repr_html_(self) -> str:
        idea = "".join(_block(block) for block in re.split(r"\n\s*\n", self.doc) if block.strip())
        idea += "".join(f'<p class="papers">{escape(paper)}</p>' for paper in self.papers)
        return (
            f'<style>{STYLE}</style><div class="labkit-show"><header>{escape(self.name)}</header>'
            f'<div class="sides"><div class="code"><pre>{_highlight(self.code)}</pre></div>'
            f'<div class="idea">{idea}</div></div></div>'
        )


def show(thing: Callable | type) -> Source:
    """The source of a function, a class or a method, beside its docstring and its papers."""
    thing = inspect.unwrap(thing) if callable(thing) else thing
    if not (inspect.isclass(thing) or inspect.isfunction(thing) or inspect.ismethod(thing)):
        what = "a builtin, written in C" if inspect.isbuiltin(thing) else f"a {type(thing).__name__}"
        hint = f" Did you mean show({type(thing).__name__})?" if type(thing).__module__ != "builtins" else ""
        raise LabkitError(f"show needs a function, a class or a method; this is {what}.{hint}")
    if thing.__name__ == "<lambda>":
        raise LabkitError("show needs a function with a name; write the lambda as a def.")
    name = f"{thing.__module__}.{thing.__qualname__}"
    try:
        source = textwrap.dedent(inspect.getsource(thing)).rstrip()
        source = re.sub(r"  # (noqa|type: ignore).*", "", source)  # words for tools, not for readers
    except (OSError, TypeError) as error:
        raise LabkitError(f"The source of {name} is not at hand: it is in no Python file.") from error
    module = sys.modules.get(thing.__module__)
    named = _ids(thing.__doc__) or _ids(module.__doc__ if module else None)
    papers = [cite(paper.id) for paper in PAPERS if paper.id in named]
    return Source(name, _without_docstring(source), inspect.cleandoc(thing.__doc__ or ""), papers)


def _ids(doc: str | None) -> set[str]:
    return set(re.findall(r"\bS\d{3}\b", doc or ""))


def _without_docstring(source: str) -> str:
    """The docstring stands on the right; on the left it would only push the code down."""
    try:
        node = ast.parse(source).body[0]
    except SyntaxError:  # a text in the code reaches further left than the code does
        return source
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return source  # the file was edited after it was imported
    lines, doc = source.splitlines(), node.body[0]
    shares_a_line = lines[doc.lineno - 1][: doc.col_offset].strip()
    if ast.get_docstring(node) is None or len(node.body) == 1 or shares_a_line:
        return source
    rest = lines[doc.end_lineno :]
    while not rest[0].strip():
        rest.pop(0)
    return "\n".join(lines[: doc.lineno - 1] + rest)


def _block(block: str) -> str:
    """Formulas are indented, or hold an equals sign or an arrow but no full stop; the rest is prose."""
    lines = block.splitlines()
    if lines[0].startswith(" ") or all(re.search(r"\s(=|->|→|↦|≈|≤)\s.*[^.]$", line) for line in lines):
        return f'<div class="formula"><pre>{escape(textwrap.dedent(block))}</pre></div>'
    paragraph = re.sub(r"`+([^`]+)`+", r"<code>\1</code>", escape(" ".join(lines)))
    return f"<p>{paragraph}</p>"


def _highlight(code: str) -> str:
    """Python in five kinds of token, each one letter of CSS."""
    from pygments.lexers import PythonLexer
    from pygments.token import Comment, Keyword, Name, Number, Operator, String

    kinds: list[tuple[Any, str]] = [
        (Comment, "c"), (Operator.Word, "k"), (Keyword, "k"), (String, "s"), (Number, "m"),
        (Name.Function, "n"), (Name.Class, "n"),
    ]  # fmt: skip
    lines = [""]
    for token, text in PythonLexer(stripnl=False, ensurenl=False).get_tokens(code):
        kind = next((letter for family, letter in kinds if token in family), "")
        for i, piece in enumerate(text.split("\n")):
            if i:
                lines.append("")
            lines[-1] += f'<span class="{kind}">{escape(piece)}</span>' if kind and piece else escape(piece)
    # A long line continues eight columns further in than it began; the spaces stay, so that copies run.
    indents = [len(line) - len(line.lstrip()) + 8 for line in code.split("\n")]
    lines = [line.replace("-&gt;", '<span class="o">-&gt;</span>') for line in lines]
    return "".join(
        f'<span class="line" style="--hang:{indent}ch">{line}\n</span>'
        for indent, line in zip(indents, lines, strict=True)
    )
