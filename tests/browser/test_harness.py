"""The harness itself: a page that misbehaves fails its test, and a missing browser is never passed over in silence."""

from __future__ import annotations

import pytest

from labkit import paths

PAGES = {
    "good": "<img src='data:image/gif;base64,R0lGODlhAQABAAAAACwAAAAAAQABAAA='>",
    "throws": "<script>throw new Error('a mistake')</script>",
    "logs": "<script>console.error('a complaint')</script>",
    "fetches": "<script>fetch('https://example.com/x').catch(() => 0)</script>",
    "connects": "<script>new WebSocket('ws://127.0.0.1:9')</script>",
    "forbidden": "<meta http-equiv='Content-Security-Policy' content=\"default-src 'none'\"><script>1</script>",
}


@pytest.fixture
def session(pytester, monkeypatch):
    """A small test session of its own, with this folder's fixtures."""
    monkeypatch.setenv("PYTHONPATH", str(paths.ROOT))
    for name in ("CI", "LABKIT_REQUIRE_BROWSER", "LABKIT_CHROMIUM"):
        monkeypatch.delenv(name, raising=False)
    pytester.makeconftest("from tests.browser.conftest import *")
    return pytester


def test_a_page_that_throws_complains_or_asks_for_something_fails_its_test(session, browser):
    test = "def test_{}(page): page.set_content({!r}); page.wait_for_timeout(150)\n"
    session.makepyfile("".join(test.format(*item) for item in PAGES.items()))
    result = session.runpytest_subprocess()
    result.assert_outcomes(passed=len(PAGES), errors=len(PAGES) - 1)
    for complaint in (
        "threw: Error: a mistake",
        "an error: a complaint",
        "asked for https://example.com/x",
        "ws://127.0.0.1:9",
    ):
        result.stdout.fnmatch_lines([f"*{complaint}*"])
    result.stdout.no_fnmatch_line("*test_good*")


@pytest.mark.parametrize("required", ["", "CI", "LABKIT_REQUIRE_BROWSER"])
def test_without_a_browser_tests_are_skipped_aloud_and_where_it_is_required_they_fail(session, monkeypatch, required):
    monkeypatch.setenv("LABKIT_CHROMIUM", "/nowhere/chromium")
    if required:
        monkeypatch.setenv(required, "1")
    session.makepyfile("def test_page(page): pass")
    result = session.runpytest_inprocess("-rs")
    result.assert_outcomes(**({"errors": 1} if required else {"skipped": 1}))
    result.stdout.fnmatch_lines(["*No browser: there is no /nowhere/chromium*"])
