"""Charts on an exported page: drawn without a network, readable in every colour scheme, nothing is sent anywhere."""

from __future__ import annotations

import re

import pytest

from labkit.viz.charts import Line, Point, chart, curves, histogram, pareto, write_page


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    path = tmp_path_factory.mktemp("charts") / "charts.html"
    lines = {"Keep": Line([10, 50, 100], [0.4, 0.8, 0.9], [0.3, 0.7, 0.8], [0.5, 0.9, 1.0])}
    points = {"plain": Point(10, 0.9, 0.85, 0.93), "slim": Point(5, 0.8)}
    write_page(
        path,
        [
            chart(curves(lines | {"random": Line([10, 100], [0.1, 0.2])}, "kept (%)", "right"), "Right answers."),
            chart(histogram({"weights": [0, 1, 1, 2, 2, 2]}, {"2 bits": (0.5, 1.5)}), 'Weights & "clips".'),
            chart(pareto(points), "Neither beats the other."),
        ],
        "Three <charts>",
    )
    return path.as_uri()


def opened(page, address):
    """The page, when its last chart is there."""
    page.goto(address)
    page.wait_for_selector("figure:nth-of-type(3) .legend")
    return page


def test_every_chart_is_drawn_from_its_data_and_has_its_sentence(page, exported):
    opened(page, exported)
    assert page.locator("h1").inner_text() == "Three <charts>"
    places = page.locator("[role=img]").all()
    assert [place.get_attribute("aria-label") for place in places] == [
        "Right answers.",
        'Weights & "clips".',
        "Neither beats the other.",
    ]
    first = places[0].evaluate("place => place._fullData.map(line => [line.name, line.x.length, line._length])")
    assert [line[1] for line in first] == [6, 3, 2]
    assert places[0].locator(".legendtext").all_text_contents() == ["Keep", "random"]
    assert places[0].locator(".xtitle").text_content() == "kept (%)"
    assert places[2].locator(".textpoint text").all_text_contents() == ["plain", "slim"]


def test_nothing_offers_to_send_a_chart_away(page, exported):
    opened(page, exported)
    page.hover("[role=img]")
    assert page.locator(".modebar-btn, .plotlyjsicon").count() == 0
    assert page.seen.requests == [exported]


def contrast(first: str, second: str) -> float:
    """WCAG's ratio of two colours in the form rgb(r, g, b)."""

    def luminance(colour: str) -> float:
        parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
        parts = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]

    dark, light = sorted((luminance(first), luminance(second)))
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize(
    "options",
    [{}, {"color_scheme": "dark"}, {"color_scheme": "dark", "forced_colors": "active"}],
    ids=["light", "dark", "forced"],
)
def test_words_and_lines_stand_out_in_every_colour_scheme(new_page, exported, options):
    page = opened(new_page(**options), exported)
    style = "(node, name) => getComputedStyle(node)[name]"
    assert (
        page.locator(".main-svg").first.evaluate("node => getComputedStyle(node).backgroundColor") == "rgba(0, 0, 0, 0)"
    )
    canvas = page.evaluate(
        "() => { document.body.style.background = 'Canvas'; return getComputedStyle(document.body).backgroundColor }"
    )
    for words in page.locator("figure text").all():
        assert contrast(words.evaluate(style, "fill"), canvas) > 7
    for line in page.locator(".scatterlayer .js-line").all():
        if (stroke := line.evaluate(style, "stroke")) != "none":
            assert contrast(stroke, canvas) > 2


def test_axe_finds_nothing_serious(page, exported, axe):
    assert axe(opened(page, exported)) == []
