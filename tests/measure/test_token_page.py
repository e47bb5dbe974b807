"""Pages of coloured tokens: what stands in them, escaped, and how numbers are written."""

import math
import re

import pytest

from tokenry.measure.token_page import coloured, document, line, number, table


def test_a_page_has_one_head_and_escapes_its_title():
    page = document("a < b", "<p>body</p>", ".x { color: red }")
    assert page.startswith("<!doctype html>")
    assert page.count("a &lt; b") == 2  # the window's title and the heading
    assert page.index(".x { color: red }") < page.index("</style>") < page.index("<p>body</p>")
    assert not re.search(r"https?://|@import|url\(", page)


@pytest.mark.parametrize(
    ("heat", "kind", "style"),
    [
        (0.25, "t", "--heat:0.250"),
        (-0.5, "t cold", "--heat:0.500"),
        (0.0, "t", None),
        (None, "t unscored", None),
    ],
)
def test_a_token_has_the_strength_and_the_side_of_its_heat(heat, kind, style):
    span = coloured("cat", heat, "x", first=True)
    assert f'<span class="{kind}" tabindex="0"' in span
    assert (f'style="{style}"' in span) if style else ("style" not in span)


def test_lines_break_before_words_and_only_inside_long_tokens():
    assert coloured(" cat", 0.0, "").startswith("<wbr>")
    assert coloured(" cat", 0.0, "", first=True).startswith("<span")
    assert coloured("cat", 0.0, "").startswith("<span")
    assert 'class="t long"' in coloured("x" * 25, 0.0, "")
    assert 'class="t"' in coloured("x" * 24, 0.0, "")
    assert coloured("a\n", 0.0, "").endswith(">a<i>↵</i>\n</span>")


def test_details_and_tokens_cannot_leave_their_places():
    span = coloured('<b>"', 0.1, 'one "two"\n<three>')
    assert 'data-detail="one &quot;two&quot;&#10;&lt;three&gt;"' in span
    assert span.endswith("&lt;b&gt;&quot;</span>")


def test_numbers_have_a_sign_only_where_it_says_a_direction():
    titles = ["token", "side", "ratio", "KL"]
    page = table(titles, [["a", "chosen", 0.5, 0.25], ["b", "rejected", -0.5, 2]], ("ratio",))
    assert '<td>a</td><td data-title="side">chosen</td>' in page
    assert re.findall(r'<td class="n" data-title="(\w+)">([^<]*)</td>', page) == [
        ("ratio", "+0.500"), ("KL", "0.250"), ("ratio", "-0.500"), ("KL", "2"),
    ]  # fmt: skip


def test_what_is_no_finite_number():
    assert [number(x) for x in (None, math.inf, -math.inf, 3, 0.1236)] == [
        "not scored", "∞", "-inf", "3", "0.124",
    ]  # fmt: skip


def test_a_line_goes_through_its_points_upwards_and_says_what_it_shows():
    picture = line([(0.0, 0.0), (0.5, 0.75), (1.0, 1.0)], "tokens < all", "mass", width=200)
    assert 'points="0.0,200.0 100.0,50.0 200.0,0.0"' in picture
    assert picture.count("tokens &lt; all") == 2  # below the picture, and for those who hear it
    many = line([(n / 1000, n / 1000) for n in range(1001)], "x", "y", width=200)
    places = re.search(r'points="([^"]*)"', many).group(1).split()
    assert len(places) <= 201
    assert (places[0], places[-1]) == ("0.0,200.0", "200.0,0.0")
