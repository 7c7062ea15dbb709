"""The page, the text and the model card of an audit: form, words, small cells, and a real browser."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import re
import shutil
import subprocess
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from fake_audit import about, bare, report, shown
from outline import outline

from memguard.errors import DataError
from memguard.findings import Grid, Lines
from memguard.report.audit import (
    AuditReport,
    EpsilonClaim,
    Gap,
    NoClaim,
    Number,
    Section,
    Utility,
    model_card,
    render_audit_page,
    render_markdown,
)
from memguard.report.audit.chapters import chapters

CHROMIUM = next(
    (one for one in map(shutil.which, ("chromium", "chromium-browser", "google-chrome")) if one), None
)
NASTY = "<script>alert(1)</script> | *a* [b](http://x) `c` -- \n# d"
UNDRAWN = Lines(
    title=NASTY,
    x=NASTY,
    y="$y_",
    lines={NASTY: [(0.0, 0.0), (1.0, float("inf"))], "_e": [], "$x": [(0.0, 1.0)]},
    log=True,
)
CASES = {
    "full": lambda: report(),
    "bare": lambda: bare(),
    "alarm": lambda: report(shown=[shown(epsilon=9.5)]),
    "records": lambda: report(unit="record", hashed_ids=False, claim=None),
    "nasty": lambda: bare(
        sections=[
            Section(
                probe="x<y>",
                question=NASTY,
                answer=NASTY,
                numbers={NASTY: Number(estimate=about(float("nan"), method=NASTY), null=0.5)},
                tables={"t": Grid(title=NASTY, columns=[NASTY, "patients"], rows=[[NASTY, 3]], note=NASTY)},
                curves={"c": UNDRAWN, "d": dataclasses.replace(UNDRAWN, log=False)},
                settings={NASTY: NASTY},
                notes=[NASTY],
                not_tested=[Gap(what=NASTY, why=NASTY)],
            )
        ],
        answers={"users": NASTY},
        utility=[Utility(name=NASTY, value=float("nan"))],
        claim=EpsilonClaim(epsilon=1.0, delta=0.0, unit="patient", statement=NASTY + "\n```\n# x"),
        notes=[NASTY],
    ),
}  # fmt: skip


@functools.cache
def rendered(case: str) -> str:
    return render_audit_page(CASES[case]())


@pytest.fixture(params=CASES)
def case(request):
    return request.param


def test_page_is_well_formed_and_names_nothing_outside(case):
    page = rendered(case)
    seen = outline(page)
    assert len(seen.ids) == len(set(seen.ids))
    assert all(link.startswith("#") for link in seen.links)
    assert {link[1:] for link in seen.links} <= set(seen.ids)
    assert set(re.findall(r"url\(#([^)]+)\)", page)) <= set(seen.ids)
    assert "@import" not in page
    assert page.count("<script") == 1
    assert len(page.encode()) < 900_000
    used = {ref for _, attrs in seen.tags for ref in (attrs.get("aria-labelledby") or "").split()}
    assert used <= set(seen.ids)
    if case != "nasty":
        assert "http:" not in page.replace("http-equiv", "")
        assert "https:" not in page


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
    assert tags.count("figure") == len(figures) == tags.count("details") - 1
    scrolling = [attrs for _, attrs in seen.tags if attrs.get("class") in ("scroll", "picture")]
    assert all(attrs["tabindex"] == "0" and attrs["aria-label"] for attrs in scrolling)
    levels = [int(tag[1]) for tag in tags if re.fullmatch(r"h\d", tag)]
    assert levels.count(1) == 1
    assert all(b - a <= 1 for a, b in itertools.pairwise(levels))
    assert levels.count(2) == 16


def test_words(case):
    for text in (
        " ".join(outline(rendered(case)).text),
        render_markdown(CASES[case]()),
        model_card(CASES[case]()),
    ):
        assert not re.search(r"anonym|\bsafe|complian", text, re.IGNORECASE)
        assert "None" not in text.replace("None of the", "")
        assert not re.search(r"\bnan\b|\binf\b", text)
        assert "#0102" not in text


def test_what_users_named_stays_text():
    page = rendered("nasty")
    assert "<script>alert" not in page
    text = render_markdown(CASES["nasty"]())
    assert "<script" not in re.sub(r"(?s)````text.*?````", "", text)
    for row in (line for line in text.splitlines() if line.startswith("|")):
        assert len(re.findall(r"(?<!\\)\|", row)) >= 3
    assert "](http" not in text.replace("\\](http", "").replace(NASTY, "")


def test_every_chapter_is_there_and_says_what_is_missing():
    page, text = rendered("bare"), render_markdown(bare())
    for number in range(1, 17):
        assert f'id="chapter-{number}"' in page
        assert f"\n## {number}. " in text
    for words in (
        "Nothing was measured",
        "not given; to be filled in by the data steward",
        "No attack was tried",
    ):
        assert words in page
        assert words in text


def test_page_and_text_say_the_same():
    said = " ".join(outline(rendered("full")).text)
    said = re.sub(r"\s+", " ", said.replace("\u00a0", " "))
    for chapter in chapters(report()):
        for block in chapter.blocks:
            if block.kind in ("para", "alarm"):
                assert block.text in said
    assert "60 of 2,000" in said and "60 of 2,000" in render_markdown(report())


def test_small_cells_are_in_no_view():
    one = report()
    assert one.sections[1].n_flagged == 3
    for text in (rendered("full"), render_markdown(one), model_card(one)):
        assert not re.search(r"\b3 of 2,000", text)
        assert "<5 of 2,000" in text.replace("&lt;", "<")
    page = rendered("full")
    row = page[page.index(">HIV<") :]
    cells = re.findall(r"<td[^>]*>([^<]*)</td>", row[: row.index("</tr>")])
    assert cells == ["&lt;5", "–", "–", "&lt;5", "–"]


def test_two_axes_have_no_point_of_a_patient():
    page = rendered("full")
    start = page.index('<svg class="figure attribute-axes')
    svg = page[start : page.index("</svg>", start)]
    axes = report().sections[1].axes["memorization.k20"]
    cells = sum(1 for rows in axes.counts.values() for row in rows for n in row if n)
    assert 0 < svg.count("<use ") <= cells + 60  # markers of cells and ticks of the axes
    assert cells < 260 < 2900


def test_alarm_is_on_the_page_twice():
    assert rendered("alarm").count("contradicts the claim") == 1
    assert rendered("alarm").count("<strong>Alarm.</strong>") == 2
    assert rendered("full").count("<strong>Alarm.</strong>") == 0
    other = bare(claim=EpsilonClaim(epsilon=1.0, delta=0.0, unit="record"))
    assert "does not cover all records of a patient" in render_markdown(other)


def test_a_bound_beside_the_claim_says_what_it_proves_and_what_it_does_not():
    below = render_markdown(
        bare(claim=EpsilonClaim(epsilon=3.0, delta=1e-5, unit="patient"), shown=[shown()])
    )
    assert "does not confirm it" in below and "**Alarm.**" not in below
    assert "Read from" not in below and "given to the audit by hand" in below
    few = bare(claim=EpsilonClaim(epsilon=8.0, delta=1e-5, unit="patient"), shown=[shown()])
    assert "could not have: too few coins" in render_markdown(few)
    above = render_markdown(
        bare(
            claim=EpsilonClaim(epsilon=1.0, delta=1e-5, unit="patient", source="the ledger of run 5eed"),
            shown=[shown(), shown(probe="canary", n=40)],
        )
    )
    assert above.count("The claim is false at this confidence: a training that keeps it") == 2
    assert re.search(r"in at most 5\s% of audits", above)
    assert "40 canaries with a coin" in above and "Read from the ledger of run 5eed." in above
    assert "above the true epsilon is at most 10" in above
    lacks = bare(claim=EpsilonClaim(epsilon=1.0, delta=1e-5, unit="record"), shown=[shown()])
    assert "the claim is for one record, a coin decided on one patient" in render_markdown(lacks)
    assert "neither tested nor contradicted" in render_markdown(bare(claim=few.claim))


def test_why_there_is_no_claim_is_said_everywhere():
    void = NoClaim(
        reasons=("3 of 40 steps were taken without noise",), statement="NO GUARANTEE", source="ledger 5eed"
    )
    one = bare(no_claim=void, shown=[shown(probe="canary")])
    assert AuditReport.from_json(one.to_json()).no_claim == void
    for text in (render_markdown(one), model_card(one), one.verdict()):
        assert "3 of 40 steps were taken without noise" in text
    assert "NO GUARANTEE" in render_markdown(one) and "no claim" in render_markdown(one)
    with pytest.raises(DataError, match="reasons why there is none"):
        bare(no_claim=void, claim=EpsilonClaim(epsilon=1.0, delta=0.0, unit="patient"))
    with pytest.raises(DataError, match="no reason"):
        NoClaim(reasons=[])


@pytest.mark.parametrize("wrong", [{"epsilon": float("inf")}, {"unit": "canary"}, {"delta": 1.0}])
def test_a_claim_that_cannot_be(wrong):
    with pytest.raises(DataError, match="a claim"):
        EpsilonClaim(**{"epsilon": 1.0, "delta": 0.1, "unit": "patient", **wrong})


def test_same_report_same_page():
    assert rendered("full") == render_audit_page(report())


def test_svg_is_xml():
    for svg in re.findall(r"<svg.*?</svg>", rendered("full"), flags=re.DOTALL):
        ET.fromstring(svg)


def test_model_card_is_yaml_whatever_users_named():
    yaml = pytest.importorskip("yaml")
    for one in (report(), bare(), CASES["nasty"]()):
        _, head, text = model_card(one).split("---\n", 2)
        meta = yaml.safe_load(head)
        assert meta["tags"] == ["memguard", "privacy-audit"]
        assert text.lstrip().startswith("### Privacy audit")
    entry = yaml.safe_load(model_card(report()).split("---\n")[1])["model-index"][0]
    assert entry["name"] == report().provenance.model
    assert entry["results"][0]["metrics"][0] == {
        "type": "membership.strongest.auc",
        "name": "membership: strongest AUC",
        "value": 0.71,
    }


def test_markdown_tables_are_tables():
    pytest.importorskip("markdown_it")
    from markdown_it import MarkdownIt

    made = MarkdownIt("commonmark").enable("table").render(render_markdown(report()))
    text = render_markdown(report())
    assert made.count("<table>") == len(re.findall(r"^\| :--", text, re.MULTILINE))
    nasty = MarkdownIt("commonmark", {"html": True}).enable("table").render(render_markdown(CASES["nasty"]()))
    assert "<script" not in nasty
    assert 'href="http' not in nasty
    assert nasty.count("<h1>") == 1


# -- colours ---------------------------------------------------------------------------------------------------


def _palette(name: str) -> dict[str, str]:
    text = (Path(__file__).parents[2] / "memguard/report/templates" / name).read_text()
    return dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})\b", text))


def _luminance(color: str) -> float:
    parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [one / 12.92 if one <= 0.04045 else ((one + 0.055) / 1.055) ** 2.4 for one in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("palette", ["_light.css.j2", "_dark.css.j2"])
def test_contrast(palette):
    colors = _palette(palette)
    for ink, papers in {
        "ink": ("paper", "page", "note"),
        "muted": ("paper", "page"),
        "held": ("paper", "page", "note"),
        "leak": ("paper", "page"),
    }.items():
        for paper in papers:
            a, b = sorted((_luminance(colors[ink]), _luminance(colors[paper])), reverse=True)
            assert (a + 0.05) / (b + 0.05) >= 4.5, f"{ink} on {paper}"


# -- a real browser --------------------------------------------------------------------------------------------


def browse(tmp_path: Path, *arguments: str) -> str:
    """Run Chromium without a network; what it writes to its log and its standard output."""
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync",
             "--disable-component-update", "--no-first-run", "--hide-scrollbars", "--enable-logging=stderr",
             f"--user-data-dir={tmp_path / 'profile'}", "--host-resolver-rules=MAP * ~NOTFOUND"]  # fmt: skip
    done = subprocess.run(
        [str(CHROMIUM), *flags, *arguments], capture_output=True, text=True, timeout=120, check=True
    )
    return done.stdout + done.stderr


@pytest.fixture
def _chromium():
    if CHROMIUM is None:
        pytest.skip("no Chromium here")


def asked_hosts(tmp_path: Path, address: str, name: str) -> tuple[set[str], str]:
    """Hosts that the browser asked while it showed an address, its own background chatter too; and what it said."""
    log = tmp_path / f"{name}.json"
    said = browse(tmp_path, f"--log-net-log={log}", "--dump-dom", address)
    urls = re.findall(
        r'"url":"(?:https?|wss?|ftp)://([^/":]+)', log.read_text(encoding="utf-8", errors="replace")
    )
    return set(urls), said


@pytest.mark.usefixtures("_chromium")
def test_browser_reads_it_without_errors_and_without_a_network(tmp_path):
    chatter, _ = asked_hosts(tmp_path, "about:blank", "blank")
    for case in ("full", "nasty"):
        page = tmp_path / f"{case}.html"
        page.write_text(rendered(case), encoding="utf-8")
        hosts, said = asked_hosts(tmp_path, page.as_uri(), case)
        assert hosts <= chatter
        assert "CONSOLE" not in said
        assert (
            '<button type="button" id="theme">Dark page</button>' in said
        )  # the script ran, and the page is light


@pytest.mark.usefixtures("_chromium")
def test_a_network_request_would_be_seen(tmp_path):
    picture = '<img src="http://outside.test/x.png">'
    page = tmp_path / "asking.html"
    page.write_text(f"<!doctype html><title>x</title>{picture}", encoding="utf-8")
    assert "outside.test" in asked_hosts(tmp_path, page.as_uri(), "asking")[0]
    page.write_text(rendered("bare").replace("</main>", f"{picture}</main>"), encoding="utf-8")
    hosts, said = asked_hosts(tmp_path, page.as_uri(), "forbidden")
    assert "outside.test" not in hosts, "the page forbids what it does not need"
    assert "Content Security Policy" in said


@pytest.mark.usefixtures("_chromium")
def test_console_errors_would_be_seen(tmp_path):
    page = tmp_path / "broken.html"
    page.write_text(
        rendered("bare").replace("(function () {", "(function () { nothing.here();"), encoding="utf-8"
    )
    assert "CONSOLE" in browse(tmp_path, "--dump-dom", page.as_uri())


def _shot(tmp_path: Path, page: str, name: str, *arguments: str):
    image = pytest.importorskip("PIL.Image")
    source = tmp_path / f"{name}.html"
    source.write_text(page, encoding="utf-8")
    browse(
        tmp_path, "--window-size=900,700", f"--screenshot={tmp_path / name}.png", *arguments, source.as_uri()
    )
    return image.open(tmp_path / f"{name}.png").convert("L")


@pytest.mark.slow
@pytest.mark.usefixtures("_chromium")
def test_dark_and_light_by_the_screen_and_by_the_button(tmp_path):
    page = rendered("bare")
    corner = (5, 690)
    assert _shot(tmp_path, page, "light").getpixel(corner) > 200
    dark = "--blink-settings=preferredColorScheme=0"
    assert _shot(tmp_path, page, "dark", dark).getpixel(corner) < 60
    for theme, wanted in (("dark", "low"), ("light", "high")):
        clicked = page.replace("<html lang", f'<html data-theme="{theme}" lang')
        seen = _shot(tmp_path, clicked, theme, *([dark] if theme == "light" else [])).getpixel(corner)
        assert (seen < 60) is (wanted == "low")


@pytest.mark.slow
@pytest.mark.usefixtures("_chromium")
def test_print_is_light_and_opens_what_is_folded(tmp_path):
    page = tmp_path / "report.html"
    page.write_text(rendered("full"), encoding="utf-8")
    plain = tmp_path / "plain.pdf"
    browse(tmp_path, "--no-pdf-header-footer", f"--print-to-pdf={plain}", page.as_uri())
    dark = tmp_path / "dark.pdf"
    browse(tmp_path, "--blink-settings=preferredColorScheme=0", f"--print-to-pdf={dark}", page.as_uri())
    pages = [len(re.findall(rb"/Type\s*/Page\b", path.read_bytes())) for path in (plain, dark)]
    gone = tmp_path / "gone.html"
    gone.write_text(re.sub(r"(?s)<details>.*?</details>", "", rendered("full")), encoding="utf-8")
    short = tmp_path / "short.pdf"
    browse(tmp_path, "--no-pdf-header-footer", f"--print-to-pdf={short}", gone.as_uri())
    without = len(re.findall(rb"/Type\s*/Page\b", short.read_bytes()))
    assert min(pages) > without, "the tables behind the figures are printed"


def test_pages_do_not_grow_with_the_number_of_patients():
    long = [(float(i), 1 / (1 + i)) for i in range(5000)]
    curve = Lines(title="t", x="x", y="y", lines={"a": long}, bands={"a": [(x, y, y) for x, y in long]})
    page = render_audit_page(bare(sections=[Section(probe="p", question="?", curves={"c": curve})]))
    assert page.count("<tr>") < 120
