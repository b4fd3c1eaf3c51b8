"""What the sources say of the papers: which tests assert them, which code holds them, which lessons name them.

Only text is read and nothing is imported, so that a file with an error in it is found by its own tests.
"""

from __future__ import annotations

import ast
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

from labkit.errors import LabkitError

ID = re.compile(r"\bS\d{3}\b")
Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def ids(text: str | None) -> set[str]:
    return set(ID.findall(text or ""))


def markers(root: Path) -> dict[str, list[str]]:
    """Of each paper that a `@pytest.mark.paper` names, the tests that carry it: "tests/test_vit.py::test_it"."""
    found: defaultdict[str, set[str]] = defaultdict(set)
    for path in sorted((root / "tests").rglob("test_*.py")):
        name = path.relative_to(root).as_posix()
        tree, seen = _tree(path), 0
        for node, test in _definitions(tree.body, name):
            marks = [mark for mark in node.decorator_list if _is_mark(mark)]
            seen += len(marks)
            for id in (id for mark in marks for id in _arguments(mark, test)):
                found[id] |= set(_tests(node, test))
        if seen != sum(_is_mark(node) for node in ast.walk(tree)):
            raise LabkitError(f"{name} has a paper marker that is no decorator; write it above a test or a class.")
    return {id: sorted(tests) for id, tests in sorted(found.items())}


def lessons(notebooks: Path) -> dict[str, list[str]]:
    """Of each paper, the lessons whose text or whose printed lines name it."""
    found: defaultdict[str, list[str]] = defaultdict(list)
    for path in sorted(notebooks.glob("[0-9]*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        printed = ["".join(out.get("text", "")) for cell in cells for out in cell.get("outputs", [])]
        for id in ids("\n".join(["".join(cell["source"]) for cell in cells] + printed)):
            found[id].append(path.stem)
    return dict(found)


def symbols(root: Path, marked: Mapping[str, list[str]]) -> dict[str, str]:
    """Of each paper that a docstring names, where to read it: "labkit.tokens.fuse.Fuse", or a whole file.

    Of the files that name the paper it is the one whose own tests (tests/tokens/test_fuse.py for
    labkit/tokens/fuse.py) the paper marks most often, and of that file's classes and functions the one in most of the
    paper's tests. A class counts double, and double again what the file's docstring calls; of equals the longest wins.
    """
    holders: defaultdict[str, list[tuple[str, str]]] = defaultdict(list)
    for path in sorted((root / "labkit").rglob("*.py")):
        file = path.relative_to(root / "labkit")
        if file.parts[0] in ("papers", "viz"):  # they show papers, and hold none
            continue
        its_tests = Path("tests", file).with_name(f"test_{file.name}")
        for id in {id for node in ast.walk(_tree(path)) for id in _named(node)}:
            holders[id].append((f"labkit/{file.as_posix()}", its_tests.as_posix()))
    found = {}
    for id, files in sorted(holders.items()):
        tests = marked.get(id, [])
        name, _ = max(files, key=lambda file: sum(test.startswith(f"{file[1]}::") for test in tests))
        module = name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        found[id] = module + _object(_tree(root / name), _uses(root, tests))
    return found


def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _definitions(body: list[ast.stmt], name: str) -> Iterator[tuple[Definition, str]]:
    for node in body:
        if isinstance(node, Definition):
            yield node, f"{name}::{node.name}"
            if isinstance(node, ast.ClassDef):
                yield from _definitions(node.body, f"{name}::{node.name}")


def _tests(node: Definition, test: str) -> Iterator[str]:
    """The test itself, or those of a class."""
    if not isinstance(node, ast.ClassDef):
        yield test
        return
    yield from (name for part, name in _definitions(node.body, test) if part.name.startswith("test"))


def _is_mark(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.mark.paper"


def _arguments(mark: ast.expr, test: str) -> list[str]:
    assert isinstance(mark, ast.Call)
    given = [argument.value if isinstance(argument, ast.Constant) else None for argument in mark.args]
    if not all(isinstance(id, str) and ID.fullmatch(id) for id in given):
        raise LabkitError(
            f"{test}: the paper marker takes ids written out, S and three digits, so that they can be read."
        )
    return [str(id) for id in given]


def _named(node: ast.AST) -> set[str]:
    return ids(ast.get_docstring(node)) if isinstance(node, ast.Module | Definition) else set()


def _object(tree: ast.Module, used: Mapping[str, int]) -> str:
    """`.Fuse`, the class or function of the file that is used most; "" where none is."""
    example = ast.get_docstring(tree) or ""
    best, most = "", (0, 0)
    for node in tree.body:
        if not isinstance(node, Definition) or node.name.startswith("_"):
            continue
        weight = used.get(node.name, 0) * (1 + isinstance(node, ast.ClassDef)) * (1 + (f"{node.name}(" in example))
        score = (weight, (node.end_lineno or node.lineno) - node.lineno)
        if weight and score > most:
            best, most = f".{node.name}", score
    return best


def _uses(root: Path, tests: list[str]) -> Counter[str]:
    """In how many of these tests each name stands, be it in a function of the same file that the test calls."""
    count: Counter[str] = Counter()
    for name in sorted({test.split("::")[0] for test in tests}):
        parts = dict((test, node) for node, test in _definitions(_tree(root / name).body, name))
        helpers = {node.name: node for test, node in parts.items() if test not in tests}
        for test in set(tests) & set(parts):
            todo, seen = _words(parts[test]), set[str]()
            while todo:
                seen |= todo
                todo = {word for helper in todo & set(helpers) for word in _words(helpers[helper])} - seen
            count.update(seen)
    return count


def _words(node: ast.AST) -> set[str]:
    """The names in a piece of code: what it uses, and what it asks for as a fixture."""
    kinds = {ast.Name: "id", ast.Attribute: "attr", ast.arg: "arg"}
    return {getattr(part, kinds[type(part)]) for part in ast.walk(node) if type(part) in kinds}
