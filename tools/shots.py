"""Photographs lessons for people to look at: `python tools/shots.py NAME ...` writes PNGs to build/shots/.

Each lesson as it is saved, in a window of 1280 and of 800 pixels, light and dark, one picture for each stretch of it.
Nothing is fetched: formulas, which a page gets from the network, stay as they were typed.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Literal

import nbformat
from nbconvert import HTMLExporter
from playwright.sync_api import Browser, sync_playwright

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "build" / "shots"
Theme = Literal["light", "dark"]
THEMES: tuple[Theme, ...] = ("light", "dark")
WIDTHS, HEIGHT = (1280, 800), 1600


def photograph(browser: Browser, lesson: Path, theme: Theme, width: int) -> int:
    """One lesson in one dress; returns how many pictures that made."""
    html, _ = HTMLExporter(theme=theme).from_notebook_node(nbformat.read(lesson, as_version=4))
    file = OUT / f"{lesson.stem}-{theme}.html"
    file.write_text(html, encoding="utf-8")
    page = browser.new_page(viewport={"width": width, "height": HEIGHT}, color_scheme=theme)
    page.goto(file.as_uri(), wait_until="domcontentloaded")  # scripts of other machines are not waited for
    page.wait_for_timeout(500)
    count = -(-page.evaluate("document.documentElement.scrollHeight") // HEIGHT)
    for i in range(count):
        page.evaluate(f"window.scrollTo(0, {i * HEIGHT})")
        page.screenshot(path=OUT / f"{lesson.stem}-{width}-{theme}-{i:02d}.png")
    page.close()
    return int(count)


def main(names: list[str]) -> int:
    known = {path.stem: path for path in sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))}
    if not names or (unknown := [name for name in names if name not in known]):
        what = f"There is no lesson {', '.join(unknown)}" if names else "Name at least one lesson"
        print(f"{what}; there are: {', '.join(known)}.", file=sys.stderr)
        return 2
    browsers = ("chromium", "chromium-browser", "google-chrome")
    path = next(filter(None, map(shutil.which, browsers)), None)
    if path is None:
        print(f"There is no browser here; install one of {', '.join(browsers)}.", file=sys.stderr)
        return 2
    OUT.mkdir(parents=True, exist_ok=True)
    flags = ["--no-sandbox", "--disable-gpu", "--host-resolver-rules=MAP * ~NOTFOUND"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=flags)
        for name in names:
            count = sum(photograph(browser, known[name], theme, width) for theme in THEMES for width in WIDTHS)
            print(f"{name}: {count} pictures in build/shots/", flush=True)
        browser.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
