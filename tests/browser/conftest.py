"""A real browser for the tests in this folder: Playwright drives the chromium of this machine, off the network.

`page` is a fresh page that is watched: its test fails when the page throws, logs an error or asks for anything that
it did not bring along. Without a browser these tests are skipped and say why; under CI or LABKIT_REQUIRE_BROWSER they
fail instead.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple, NoReturn

import pytest

from labkit import paths
from tests.browser.jupyter import Lab

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",  # there is no other machine
]
OWN = ("file:", "data:", "blob:", "about:")
AXE = "axe-core@4.14.1"


class Seen(NamedTuple):
    """What a page did, in order: addresses it asked for, errors it logged, exceptions nobody caught."""

    requests: list[str]
    logged: list[str]
    thrown: list[str]


def unavailable(why: str) -> NoReturn:
    """Skips; where a browser has to be there, fails."""
    if any(os.environ.get(name, "0") not in ("", "0", "false") for name in ("CI", "LABKIT_REQUIRE_BROWSER")):
        pytest.fail(f"{why} CI or LABKIT_REQUIRE_BROWSER is set, so this is a failure.", pytrace=False)
    pytest.skip(why)


# These fixtures live as long as this folder's tests: while Playwright runs, no other test could start an event loop.
@pytest.fixture(scope="package")
def browser():
    """The one browser of this run."""
    names = [chosen] if (chosen := os.environ.get("LABKIT_CHROMIUM")) else NAMES
    path = next(filter(None, map(shutil.which, names)), None)
    if path is None:
        unavailable(f"No browser: there is no {' or '.join(names)}; install chromium or name one in LABKIT_CHROMIUM.")
    from playwright.sync_api import Error, sync_playwright

    with sync_playwright() as playwright:
        try:
            launched = playwright.chromium.launch(executable_path=path, args=FLAGS)
        except Error as error:
            unavailable(f"No browser: {path} does not start: {error.message.splitlines()[0]}")
        yield launched
        launched.close()


@contextmanager
def watched(browser) -> Iterator[Callable]:
    """`open_page(...)` for as long as the context lasts; at its end every complaint about the pages is a failure.

    The options are those of Playwright's `new_context`; `server` is the one address that the page may talk to.
    """
    pages = []

    def open_page(server: str | None = None, **options):
        page = browser.new_context(**options).new_page()
        page.seen, page.server = Seen([], [], []), server
        page.on("request", lambda request: page.seen.requests.append(request.url))
        page.on("websocket", lambda socket: page.seen.requests.append(socket.url))
        page.on("console", lambda line: line.type == "error" and page.seen.logged.append(line.text))
        page.on("pageerror", lambda error: page.seen.thrown.append(error.stack or str(error)))
        pages.append(page)
        return page

    yield open_page
    for page in pages:
        page.context.close()
    complaints = [complaint for page in pages for complaint in complaints_about(page)]
    assert not complaints, "\n".join(complaints)


def complaints_about(page) -> Iterator[str]:
    own = OWN if page.server is None else (*OWN, page.server, page.server.replace("http:", "ws:"))
    yield from (f"asked for {url}" for url in page.seen.requests if not url.startswith(own))
    yield from (f"logged an error: {text}" for text in page.seen.logged)
    yield from (f"threw: {text}" for text in page.seen.thrown)


@pytest.fixture
def new_page(browser) -> Iterator[Callable]:
    """`new_page(color_scheme="dark", forced_colors="active", reduced_motion="reduce", ...)`: a page and its `.seen`."""
    with watched(browser) as open_page:
        yield open_page


@pytest.fixture
def page(new_page):
    """A watched page with the default options."""
    return new_page()


@pytest.fixture(scope="package")
def lab(browser, tmp_path_factory) -> Iterator[Lab]:
    """One JupyterLab for all tests, with settings and notebooks of its own."""
    running = Lab(tmp_path_factory.mktemp("lab"))
    yield running
    running.stop()


@pytest.fixture(scope="module")
def notebook(lab, browser) -> Iterator[Callable]:
    """`notebook(path, fast=True)` opens a copy in JupyterLab, without its saved outputs, with a fresh kernel."""
    with watched(browser) as open_page:
        yield lambda path, **options: lab.open(path, open_page(server=lab.url), **options)
        lab.shut_kernels_down()


@pytest.fixture(scope="package")
def axe_source() -> str:
    """axe-core, which is never part of this repository."""
    folder = paths.CACHE / AXE.replace("@", "-")
    script = folder / "package" / "axe.min.js"
    if not script.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        try:
            done = subprocess.run(
                ["npm", "pack", "--silent", AXE], cwd=folder, capture_output=True, timeout=60, check=False
            )
        except (FileNotFoundError, subprocess.TimeoutExpired) as error:
            pytest.skip(f"No accessibility check: {AXE} could not be fetched ({type(error).__name__}: npm).")
        if done.returncode:
            pytest.skip(f"No accessibility check: npm cannot fetch {AXE}; without a network it never can.")
        with tarfile.open(next(folder.glob("*.tgz"))) as archive:
            archive.extract("package/axe.min.js", folder, filter="data")
    return script.read_text(encoding="utf-8")


@pytest.fixture
def axe(axe_source) -> Callable:
    """`axe(page)`: what axe-core calls serious or critical, one line a rule; [] when there is nothing."""

    def violations(page) -> list[str]:
        page.evaluate(f"() => {{ {axe_source} }}")
        found = page.evaluate("() => axe.run()")["violations"]
        return [
            f"{rule['id']} ({rule['impact']}): {rule['help']}: {rule['nodes'][0]['html']}"
            for rule in found
            if rule["impact"] in ("serious", "critical")
        ]

    return violations
