"""The page of an audit in a real browser: it asks nobody for anything, and its explorer lives without a kernel."""

from __future__ import annotations

from dataclasses import replace

import pytest
from playwright.sync_api import expect

from labkit.audit.audit import Audit
from labkit.audit.subject import subject

NAME = "</title><script>document.title = 'owned'</script>"


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    found = replace(subject(limit=4), name=NAME, notes=("<img src=x onerror=alert(1)>",))
    audit = Audit(found, fast=True)
    for name in ("what", "looks", "robust"):
        audit.add(name)
    return audit.to_html(tmp_path_factory.mktemp("audit") / "audit.html")


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (800, "dark")])
def test_it_says_what_was_found_and_nothing_is_cut_off(file, new_page, axe, width, scheme):
    page = new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page.goto(file.as_uri())
    expect(page.locator("h1")).to_contain_text("Audit of </title><script>")
    assert page.title().startswith("Audit of </title>")
    expect(page.locator(".verdict")).to_contain_text("No choice was measured")
    expect(page.locator("section > h2")).to_have_text(
        ["What it is", "What it looks at", "Look for yourself", "How firm the answers are", "Repeat it"]
    )
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for picture in page.locator("section img").all():
        assert picture.evaluate("image => image.naturalWidth") > 300 and picture.get_attribute("alt")
    assert axe(page) == []


def test_its_explorer_is_alive(file, new_page):
    page = new_page(viewport={"width": 1100, "height": 900})
    page.goto(file.as_uri())
    says, canvas = page.locator(".labkit-explorer .says"), page.locator(".labkit-explorer canvas")
    expect(says).to_contain_text("looks most at")
    before = says.text_content()
    canvas.press("ArrowLeft")
    expect(says).not_to_have_text(before)
