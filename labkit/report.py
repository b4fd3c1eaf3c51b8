"""A lesson run again with other parameters, left behind as an executed notebook and as one HTML page.

Papermill only warns about a parameter that the lesson does not have; here it is refused before anything runs.
"""

from __future__ import annotations

import ast
import tempfile
from pathlib import Path
from typing import Any

from labkit import choices, files, paths
from labkit.errors import LabkitError, closest
from labkit.execute import execute, kept

STATIC = [
    "text/html",
    "image/svg+xml",
    "image/png",
    "image/jpeg",
    "text/markdown",
    "text/latex",
    "text/plain",
]


def lesson(
    name: str, values: dict[str, str], out: Path = Path("report"), force: bool = False, file: Path | None = None
) -> Path:
    """Runs a lesson with `values` (as typed) and, where they say nothing, those of a JSON file; returns the page.

    It leaves the notebook and the page in `out`, by the lesson's whole name.
    """
    source = find(name)
    chosen = parameters(source, values, {} if file is None else choices.read_object(file))
    notebook, page = out / source.name, out / f"{source.stem}.html"
    prepare(source, notebook, page, force=force)
    execute(source, notebook, chosen, paths.NOTEBOOKS)
    try:
        return files.replace(page, as_html(notebook))
    except OSError as error:
        raise LabkitError(
            f"{page} cannot be written ({error.strerror}); choose another folder. {kept(notebook)}"
        ) from error


def find(name: str) -> Path:
    """A lesson by its name, or by its number."""
    known = {path.stem: path for path in sorted(paths.need(paths.NOTEBOOKS).glob("*.ipynb"))}
    number = f"{int(name):02d}_" if name.isdecimal() and len(name) < 3 else None
    chosen = [path for stem, path in known.items() if stem == name or (number and stem.startswith(number))]
    if not chosen:
        raise LabkitError(f'There is no lesson "{name}".{closest(name, known)} There are: {", ".join(known)}.')
    return chosen[0]


def parameters(source: Path, values: dict[str, str], told: dict[str, Any] | None = None) -> dict[str, Any]:
    """`values` as Python values and, where they say nothing, those `told`; each of the kind of the lesson's default."""
    import papermill

    known = papermill.inspect_notebook(source)
    told = told or {}
    for name in (*values, *told):
        if name not in known:
            raise LabkitError(
                f'{source.stem} has no parameter "{name}".{closest(name, known)} '
                f"It has: {', '.join(known) or 'none'}. Nothing was run."
            )
    defaults = {name: literal(known[name]["default"]) for name in known}
    chosen = {name: checked(defaults[name], value, repr(value), name) for name, value in told.items()}
    return chosen | {name: like(defaults[name], text, name) for name, text in values.items()}


def literal(text: str) -> Any:
    try:
        return ast.literal_eval({"true": "True", "false": "False"}.get(text, text))
    except (ValueError, SyntaxError, RecursionError, MemoryError):  # the last two: brackets in brackets in brackets
        return text


def like(default: Any, text: str, name: str) -> Any:
    """`text` as a value of the default's kind."""
    return checked(default, text if isinstance(default, str) else literal(text), f'"{text}"', name)


def checked(default: Any, value: Any, told: str, name: str) -> Any:
    """A value of the default's kind; a whole number may stand for a decimal one, and without a default anything."""
    kinds = (int, float) if type(default) is float else type(default)
    if default is not None and (not isinstance(value, kinds) or isinstance(value, bool) != isinstance(default, bool)):
        kind = {"bool": "True or False", "int": "a whole number", "float": "a number", "str": "a text"}
        expected = kind.get(type(default).__name__, f"a {type(default).__name__}")
        raise LabkitError(f"Parameter {name} must be {expected}, as its default {default!r}; {told} is not.")
    return value


def prepare(source: Path, *targets: Path, force: bool) -> None:
    """Makes the folder; overwrites nothing unasked, a lesson never; names a folder that cannot be written."""
    folder = targets[0].parent
    try:
        if folder.resolve() == source.resolve().parent:
            raise LabkitError(f"A report in {folder} would overwrite the lesson itself: choose another --out.")
        for target in targets:
            if target.exists() and not force:
                raise LabkitError(f"{target} exists. Add --force to overwrite it, or choose another folder with --out.")
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
        for target in targets:
            target.unlink(missing_ok=True)
    except (OSError, RuntimeError) as error:  # a loop of links is a RuntimeError
        why = getattr(error, "strerror", None) or error
        raise LabkitError(f"{folder} cannot be written to ({why}): choose another folder with --out.") from error


def as_html(notebook: Path) -> str:
    """One page that fetches nothing: no scripts from elsewhere, so widgets become their static twins."""
    from jinja2 import DictLoader
    from nbconvert import HTMLExporter
    from traitlets.config import Config

    blocks = ("html_head_js", "jupyter_widgets", "html_head_js_mathjax", "html_head_js_mermaidjs")
    empty = "".join(f"{{% block {block} %}}{{% endblock %}}" for block in blocks)
    template = DictLoader({"page.html.j2": "{% extends 'lab/index.html.j2' %}" + empty})
    exporter = HTMLExporter(
        config=Config({"NbConvertBase": {"display_data_priority": STATIC}}),
        extra_loaders=[template],
        template_file="page.html.j2",
        embed_images=True,
    )
    page: str = exporter.from_filename(str(notebook))[0]
    return page
