"""Pages that need no kernel, no network and no permission but their own script and style, with a living explorer.

The script is the widget's own; a small model stands in for the kernel. Bytes and state are in data blocks that no
browser executes, and the content security policy allows nothing that is not hashed.
"""

from __future__ import annotations

import base64
import hashlib
import json
import zlib
from collections.abc import Sequence
from html import escape
from typing import Any, NamedTuple

from labkit.errors import LabkitError

ROOM = 16 * 2**20  # bytes of maps, before they are packed, that a page holds unless it is asked for more
MOST = 96 * 2**20  # a browser opens more only with patience

SHIM = """
const held = (id) => document.getElementById(id).textContent;
const bytes = async (text) => {
  const packed = new Blob([Uint8Array.from(atob(text), (c) => c.charCodeAt(0))]);
  const stream = packed.stream().pipeThrough(new DecompressionStream("deflate"));
  return new DataView(await new Response(stream).arrayBuffer());
};
const saved = JSON.parse(held("state"));
const all = (name) => Promise.all(saved.numbers.map((_, i) => bytes(held(`${name}${i}`))));
const [images, others] = await Promise.all([all("data"), all("other")]);
const listeners = {};
const values = { ...saved.state, alone: true };
const tell = (name) => (listeners[`change:${name}`] ?? []).forEach((act) => act());
const pick = (image) => {
  const at = saved.numbers.indexOf(image);
  Object.assign(values, { data: images[at], other: others[at], outcome: saved.outcomes[at] });
};
pick(values.image);
const model = {
  get: (name) => values[name],
  set(name, value) {
    values[name] = value;
    if (name === "image") pick(value), tell("data");
    tell(name);
  },
  on: (name, act) => (listeners[name] ??= []).push(act),
  off: (name, act) => (listeners[name] = (listeners[name] ?? []).filter((kept) => kept !== act)),
  save_changes() {},
  send() {},
};
widget.render({ model, el: document.getElementById("explorer") });
"""

STYLE = """
:root { color-scheme: light dark; }
body { margin: 0; padding: 12px; background: light-dark(#fff, #16161a); color: light-dark(#1b1b1f, #ececf0);
  font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 1024px; margin: 0 auto; }
h1 { margin: 8px 12px; font-size: 1.3em; overflow-wrap: anywhere; }
noscript { margin: 12px; }
"""


Held = tuple[int, list[bytes], dict[str, Any]]


def chosen(images: Sequence[int] | None, current: int, count: int, size: int) -> list[int]:
    """Which images a page holds: the current one, and those asked for or as many as fit beside it."""
    wanted = list(range(count) if images is None else images)
    numbers = [current, *(i for i in wanted if i != current)]
    if images is None:
        numbers = numbers[: max(1, ROOM // max(1, size))]
    if size * len(numbers) > MOST:
        raise LabkitError(
            f"The page would hold {size * len(numbers) / 1e6:.0f} MB of maps and may hold {MOST / 1e6:.0f}; "
            "export fewer images (images=[0]), or trace fewer layers or smaller images."
        )
    return sorted(numbers)


class Embedded(NamedTuple):
    """An explorer as a part of a page: where it is drawn and what it needs."""

    body: str
    style: str
    script: str


def embed(esm: str, css: str, state: dict[str, Any], images: list[Held]) -> Embedded:
    """Each image brings its number, the bytes of the one or two traces and what silent heads do to it."""
    script = esm.replace("export default { render };", "const widget = { render };") + SHIM
    numbers, packs, outcomes = zip(*images, strict=True)
    saved = json.dumps({"state": state, "numbers": numbers, "outcomes": outcomes})
    held = [_held("state", "application/json", saved.replace("<", "\\u003c"))]
    for i, (data, *other) in enumerate(packs):
        held += [_packed(f"data{i}", data), _packed(f"other{i}", b"".join(other))]
    place = (
        '<div id="explorer"></div>\n<noscript>This page draws with a script of its own; allow it to run.</noscript>\n'
    )
    return Embedded(place + "".join(held), css, script)


def document(title: str, body: str, style: str, script: str = "") -> str:
    """A whole page around `body`, which is HTML already; nothing but this style and this script is allowed to act."""
    style += STYLE
    policy = f"default-src 'none'; script-src '{_hash(script)}'; style-src '{_hash(style)}'; img-src data: blob:"
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f"<meta http-equiv=\"Content-Security-Policy\" content=\"{policy}; base-uri 'none'; form-action 'none'\">\n"
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{style}</style>\n</head>\n<body>\n<main>\n<h1>{escape(title)}</h1>\n"
        f'{body}</main>\n<script type="module">{script}</script>\n</body>\n</html>\n'
    )


def _held(name: str, kind: str, text: str) -> str:
    """A block that is carried and not executed; base64 and escaped JSON hold no `<`."""
    return f'<script type="{kind}" id="{name}">{text}</script>\n'


def _packed(name: str, data: bytes) -> str:
    return _held(name, "application/octet-stream", base64.b64encode(zlib.compress(data)).decode())


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
