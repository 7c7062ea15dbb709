"""The page of a comparison: form, words, small cells, arms of every kind, and a real browser."""

from __future__ import annotations

import functools
import itertools
import re
import shutil
import subprocess
from html import escape

import pytest
from fake_comparison import ARMS, CONTROL, about, comparison
from outline import outline

from memguard.report.comparison.data import ArmSummary, Comparison, Group, Point, Row, Untouched
from memguard.report.comparison.page import render_comparison_page

CHROMIUM = next(
    (one for one in map(shutil.which, ("chromium", "chromium-browser", "google-chrome")) if one), None
)
NASTY = "<script>alert(1)</script> & $x_$ \"q\" 'a' ‮"
PLAIN = {name: about for name, about in ARMS.items() if about[2] is None}


def bare(**changed) -> Comparison:
    fixed = {"version": "0", "baseline": "plain", "seeds": 3, "models": 6, "patients": 90, "held_out": 40}
    return Comparison(**{**fixed, "arms": [ArmSummary(name="plain")], **changed})


def nasty() -> Comparison:
    arms = {NASTY: (2.4, 1.0, None), f"_{NASTY}": (2.5, 0.5, 3.0), "$": (2.3, 0.4, None)}
    return comparison(
        arms=arms, strata=[NASTY, "]]>"], attacks=[NASTY], may=[NASTY], may_not=[NASTY], notes=[NASTY],
        groups=[Group(name=NASTY, patients=50, held_out=9, words=NASTY)],
    )  # fmt: skip


CASES = {
    "full": comparison,
    "no control": lambda: comparison(control=None),
    "no strata": lambda: comparison(strata=()),
    "no private arm": lambda: comparison(arms=PLAIN),
    "nobody reached": lambda: comparison(arms=dict(list(ARMS.items())[:3])),
    "one stage": lambda: comparison(stages=1),
    "alone": lambda: comparison(arms={"plain": ARMS["plain"]}),
    "no points": lambda: comparison(points=()),
    "bare": bare,
    "nasty": nasty,
}


@functools.cache
def rendered(case: str) -> str:
    return render_comparison_page(CASES[case]())


@pytest.fixture(params=CASES)
def case(request):
    return request.param


def words(page: str) -> str:
    return re.sub(r"\s+", " ", " ".join(outline(page).text)).replace("\u00a0", " ")


def test_page_is_well_formed_and_names_nothing_outside(case):
    page = rendered(case)
    seen = outline(page)
    assert len(seen.ids) == len(set(seen.ids))
    assert all(link.startswith("#") and link[1:] in seen.ids for link in seen.links)
    assert set(re.findall(r"url\(#([^)]+)\)", page)) <= set(seen.ids)
    assert page.count("<script") == 1
    assert "http:" not in page.replace("http-equiv", "") and "https:" not in page
    used = {ref for _, attrs in seen.tags for ref in (attrs.get("aria-labelledby") or "").split()}
    assert used <= set(seen.ids)
    assert len(page.encode()) < 700_000


def test_page_can_be_used_without_eyes_and_without_a_mouse(case):
    seen = outline(rendered(case))
    tags = [tag for tag, _ in seen.tags]
    for landmark in ("header", "nav", "main", "footer"):
        assert tags.count(landmark) == 1
    assert next(attrs for tag, attrs in seen.tags if tag == "a")["href"] == "#main"
    assert all("scope" in attrs for tag, attrs in seen.tags if tag == "th")
    assert tags.count("table") == tags.count("caption")
    figures = [attrs for tag, attrs in seen.tags if tag == "svg"]
    assert all(attrs["role"] == "img" and attrs["aria-labelledby"] for attrs in figures)
    assert tags.count("figure") == len(figures)
    scrolling = [
        attrs for _, attrs in seen.tags if {"scroll", "picture"} & set((attrs.get("class") or "").split())
    ]
    assert all(attrs["tabindex"] == "0" and attrs["aria-label"] for attrs in scrolling)
    levels = [int(tag[1]) for tag in tags if re.fullmatch(r"h\d", tag)]
    assert levels.count(1) == 1
    assert all(b - a <= 1 for a, b in itertools.pairwise(levels))


def test_every_table_scrolls_in_a_box_of_its_own_and_every_row_is_full(case):
    page = rendered(case)
    assert page.count("<table>") == len(re.findall(r'<div class="scroll fixed"[^>]*>\s*<table>', page))
    for body in re.findall(r"(?s)<table>.*?</table>", page):
        head = re.findall(r'<th scope="col" ', body)
        for row in re.findall(r"(?s)<tr class=\"(?:baseline|control|private|other)\">.*?</tr>", body):
            cells = row.count("<td") if "colspan" not in row else int(re.findall(r'colspan="(\d+)"', row)[0])
            assert 1 + cells == len(head)


def test_words(case):
    text = words(rendered(case))
    assert not re.search(r"anonym|\bsafe|complian", text, re.IGNORECASE)
    assert "None" not in text.replace("None were made", "")
    assert not re.search(r"\bnan\b|\binf\b", text)
    assert "#0102" not in rendered(case)


def test_names_stay_text():
    page = rendered("nasty")
    assert "<script>alert" not in page
    assert page.count(str(escape("<script>alert"))) > 20


def test_the_first_screen_says_what_was_compared_and_what_follows():
    found = comparison()
    text = words(rendered("full"))
    text = text[text.index("11 ways to train, compared with “plain” Arms") :]
    at = [
        text.index(one)
        for one in ("Arms 13", "Seeds 8 16 models", "Patients 2,000", "Attacks 8", "may be conc")
    ]
    assert at == sorted(at)
    first = text[: text.index("At matched utility")]
    for sentence in (*found.may, *found.may_not):
        assert sentence in first
    assert "Nothing: no sentence held" in words(rendered("bare"))


def test_who_did_not_reach_a_level_is_named():
    page = rendered("full")
    missing = [
        words(f"<p>{one}</p>") for one in re.findall(r'(?s)<p class="absent"><em>Did not reach.*?</p>', page)
    ]
    assert len(missing) == 3
    assert "DP-SGD, epsilon 8" in missing[0] and "early stopping" not in missing[0]
    assert "goldfish" in missing[0] and "goldfish" not in missing[1]
    assert all(name in missing[2] for name in ARMS)
    assert "0 of 13 arms came within it" in words(page)


def test_thirteen_arms_have_a_number_each_wherever_they_stand():
    page = rendered("full")
    assert len(re.findall(r'data-arm="\d+"', page)) == 13
    pictures = re.findall(r"(?s)<svg.*?</svg>", page)
    assert len(pictures) == 5
    for picture in pictures:
        for number in range(1, 14):
            assert re.search(rf'id="front-\d-arm-{number}-end"', picture)
    for number, name in enumerate(ARMS, start=1):
        kind = {"plain": "baseline", CONTROL: "control"}.get(name, "private" if ARMS[name][2] else "other")
        badge = f'<span class="badge {kind}">{number}</span>{name}'
        assert page.count(badge) >= 4


def test_groups_without_a_judged_loss_are_named_instead_of_drawn():
    assert "for want of a judged loss: site B" in words(rendered("full"))
    assert "No stage of training was measured" in words(rendered("no points"))


def test_what_is_missing_is_said():
    assert "no control" in words(rendered("no control"))
    assert "what new seeds alone would do is not known" in words(rendered("no control"))
    assert "none with differential privacy" in words(rendered("no private arm"))
    text = words(rendered("bare"))
    for sentence in (
        "Nothing was compared with",
        "No level of utility was set",
        "No group has a number",
        "No loss of unseen patients was measured",
        "No arm has a mitigation that says whom it touched",
    ):
        assert sentence in text


def test_small_cells_are_suppressed():
    secret = about(0.4321, 0.0001)
    small = Row(
        arm="plain", stage="final", epoch=1.0, group="site", measure="tpr", attack="a",
        value=about(0.8765, 0.0001, n=4),
    )  # fmt: skip
    group = Group(name="three of them", patients=3, held_out=2)
    found = bare(
        arms=[ArmSummary(name="plain"), ArmSummary(name="x")],
        groups=[group],
        points=[Point(arm="plain", stage=0, epoch=1.0, group=group.name, utility=2.0, tpr=0.4321)],
        rows=[small, Row(arm="x", stage="final", epoch=1.0, group=group.name, measure="tpr", attack="", value=secret)],
        untouched=[
            Untouched(arm="x", patients=4, attack="a", tpr=secret, baseline_tpr=secret, difference=secret,
                      newly_exposed=1, newly_hidden=2),
        ],
    )  # fmt: skip
    page = render_comparison_page(found)
    assert ".432" not in page and ".876" not in page
    assert "three of them" not in page
    assert "&lt;5 patients were left alone" in page
    shown = rendered("full")
    left = re.search(r'(?s)id="untouched".*?</section>', shown)
    assert left is not None
    assert re.findall(r"<td class=\"[^\"]*\">(17|3|&lt;5|6|0)</td>", left.group()) == [
        "17",
        "6",
        "&lt;5",
        "0",
    ]


def test_arrows_follow_the_interval_for_all_arms():
    page = rendered("full")
    final = re.search(r'(?s)id="final".*?</section>', page)
    assert final is not None
    row = next(one for one in re.findall(r"(?s)<tr.*?</tr>", final.group()) if "weight decay .1" in one)
    cells = re.findall(r"(?s)<td.*?</td>", row.replace("\u00a0", " "))
    assert "-.035" in cells[5] and "[-.065, -.005]" in cells[5] and "all arms [-.09, .01]" in cells[5]
    assert "▼" not in cells[5], "it holds 0 once all arms are counted"
    goldfish = next(one for one in re.findall(r"(?s)<tr.*?</tr>", final.group()) if "goldfish" in one)
    assert 'class="up bad"' in goldfish and 'class="down good"' in goldfish


def browse(tmp_path, page: str, *arguments: str) -> str:
    source = tmp_path / "page.html"
    source.write_text(page, encoding="utf-8")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run",
             "--hide-scrollbars", "--enable-logging=stderr", f"--user-data-dir={tmp_path / 'profile'}",
             "--host-resolver-rules=MAP * ~NOTFOUND", "--dump-dom"]  # fmt: skip
    done = subprocess.run(
        [str(CHROMIUM), *flags, *arguments, source.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return done.stdout + done.stderr


def within(page: str, width: int) -> str:
    """The page in a frame that is so wide: a window of a browser is never as narrow as a telephone."""
    tell = "<script>parent.postMessage([document.documentElement.scrollWidth, innerWidth].join(' of '), '*')</script>"
    inner = escape(page.replace("</body>", f"{tell}</body>"), quote=True)
    return (
        "<!doctype html><p id='o'></p><script>onmessage = function (e) {"
        "document.getElementById('o').textContent = 'WIDTH ' + e.data; };</script>"
        f'<iframe style="width:{width}px;height:900px;border:0" srcdoc="{inner}"></iframe>'
    )


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
@pytest.mark.parametrize("case", ["full", "nasty"])
def test_browser_shows_it_without_errors_and_without_scrolling_sideways_on_a_telephone(tmp_path, case):
    said = browse(tmp_path, within(rendered(case), 390))
    assert "CONSOLE" not in said
    assert ">WIDTH 390 of 390<" in said


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
def test_a_page_that_is_too_wide_would_be_seen(tmp_path):
    said = browse(
        tmp_path, within(rendered("bare").replace("<main", '<p style="width:700px">x</p><main'), 390)
    )
    assert re.search(r">WIDTH 7\d\d of 390<", said)


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
def test_legend_shows_chosen_arms_alone(tmp_path):
    click = "<script>document.querySelectorAll('.legend button')[2].click();</script></body>"
    said = browse(tmp_path, rendered("full").replace("</body>", click))
    assert "CONSOLE" not in said
    dimmed = set(re.findall(r'<g id="front-0-arm-(\d+)-line" style="opacity: 0.1;">', said))
    assert dimmed == {str(i) for i in range(1, 14)} - {"3"}
