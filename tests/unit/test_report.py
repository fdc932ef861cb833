"""The report on an empty and on a partial run, and the targets that a config can and cannot make."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from localized_unlearning.config.run import Config
from localized_unlearning.errors import UserError
from localized_unlearning.paper.artefacts import FIGURES, TABLES, lacking
from localized_unlearning.report import grids
from localized_unlearning.report import page as page_module
from localized_unlearning.reporting.captions import CAPTIONS, read_captions
from localized_unlearning.reporting.figures import style, vector
from localized_unlearning.workflow.snakefile import Rules

TEMPLATES = Path(__file__).resolve().parents[2] / "workflow" / "report"
PICTURE = b"\x89PNG\r\n\x1a\n not really"
TABLE = """**Table 1. A title.**

| Localization | Parameters | Forget ↓ |
|---|---:|---:|
| <b>Manual</b> | 65,536 (3.8 %) | 0.130 [0.061, 0.257] (paper 0.002) |

Intervals: 95 %.  
"""


def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> str:
    monkeypatch.chdir(tmp_path)
    return page_module.page(Config(**settings), TEMPLATES)


def test_an_empty_run_names_every_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = page(tmp_path, monkeypatch)
    assert "0 of 20 tables and figures are made" in text and "<img" not in text
    for name in (*TABLES, *FIGURES):
        assert f"<code>snakemake {name}</code>" in text
    assert "No job has been recorded yet" in text and "All settings are the defaults" in text


def test_a_partial_run_shows_what_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a lost picture, cells that break the page, and an item called missing that cannot be made."""
    tables, figures = tmp_path / "results/mine/tables", tmp_path / "figures/mine"
    tables.mkdir(parents=True)
    figures.mkdir(parents=True)
    (tables / "table_1.md").write_text(TABLE, encoding="utf-8")
    (figures / "figure_3.png").write_bytes(PICTURE)
    settings = {"run": "mine", "objectives": {"inject": None, "erase": {}}, "finetune": {"steps": 7}}
    text = page(tmp_path, monkeypatch, **settings)
    assert "2 of 20 tables and figures are made" in text
    assert text.count("data:image/png;base64,") == 1
    assert "&lt;b&gt;Manual" in text and "<td>0.130<small>[0.061, 0.257] (paper 0.002)</small></td>" in text
    assert "<code>snakemake figure_9</code>" in text and "<code>snakemake figure_3</code>" not in text
    assert "Not part of this run: the config has no objective &#39;inject&#39;" in text
    assert "<code>snakemake figure_13</code>" not in text
    change = "<td><code>finetune.steps</code></td><td><code>7</code></td><td><code>50</code></td>"
    assert change in text
    assert "no record beside it" in text


FOREIGN = re.compile(r"""src=["'](?!data:|#)|href=["']\w+:|url\((?!#)|@import|<script [^>]*src|<link|://""")
"""What a page loads from elsewhere, or leads to there."""


def test_the_page_needs_nothing_from_outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = page(tmp_path, monkeypatch)
    assert not FOREIGN.search(text)


def test_every_item_has_a_caption_of_its_own() -> None:
    captions = read_captions(TEMPLATES / CAPTIONS.name, Config())
    items = [captions[name] for name in (*TABLES, *FIGURES)]
    assert len(set(items)) == 20 and all(text.endswith(".") and "{" not in text for text in items)
    assert (
        "all subjects with the answer basketball" in captions["figure_5"]
        and "subjects" in captions["figure_9"]
    )


def test_captions_of_other_facts_say_nothing_of_sports() -> None:
    """Catches captions that call one's own answers sports, its subjects athletes, and what is injected golf."""
    own = Config().model_dump(mode="json", exclude_unset=True)
    forget = {"sports": {"answer": "Paris"}, "athletes": {"group": "France"}}
    own["tasks"] = {name: {"forget": what, "lambda_forget": 0.2} for name, what in forget.items()}
    own["objectives"] = {"inject": {"loss": "inject", "target": "Rome"}}
    captions = read_captions(TEMPLATES / CAPTIONS.name, Config.model_validate(own))
    said = " ".join(captions[name] for name in (*TABLES, *FIGURES))
    assert not re.search(r"sport|athlete|golf|basketball", said)
    assert captions["table_3"].endswith(
        "replaces the answer of all subjects with the answer Paris with Rome."
    )


def test_a_caption_says_whose_models_the_intervals_cover() -> None:
    """The default's figures rest on all base models; one that shows fewer says so, and no other does."""

    def fewer(config: Config) -> set[str]:
        captions = read_captions(TEMPLATES / CAPTIONS.name, config)
        assert "test items and 3 base models" in captions["reading"]
        return {name for name in FIGURES if "of the run's 3 base models alone" in captions[name]}

    assert fewer(Config()) == set()
    dear = {name for name, figure in FIGURES.items() if figure.kind in ("relearning", "edits", "price")}
    assert fewer(Config(figure_base_seeds=(0,))) == dear
    assert "Of the first base model alone" in read_captions(TEMPLATES / CAPTIONS.name, Config())["figure_15"]


@pytest.mark.parametrize(
    ("masking", "said"),
    [
        (
            {},
            "trained by SGD, at the rate at which a weight at percentile 90 of |w dL/dw| loses 5 % of itself",
        ),
        ({"optimizer": "adam", "learning_rate": 0.05}, "not by importance, at rate 0.05;"),
        ({"controls": []}, "each mask's record holds its rate and that distribution."),
    ],
    ids=["default", "adam", "no controls"],
)
def test_a_sweeps_caption_says_how_masks_were_trained(masking: dict[str, Any], said: str) -> None:
    caption = read_captions(TEMPLATES / CAPTIONS.name, Config.model_validate({"masking": masking}))[
        "figure_5"
    ]
    assert said in caption
    assert ("Thin lines are controls" in caption) == (masking.get("controls") != [])


def test_the_claims_table_names_measures_in_words(tmp_path: Path) -> None:
    path = tmp_path / "claims.json"
    test = {"measure": "sweep_retain_minus_forget", "interval": [0.1, 0.3], "margin": 0.2}
    path.write_text(json.dumps([{"interval": None, "margin": None, "tests": [test]}]))
    (claim,) = page_module.judged(path, "training")
    assert claim["tests"][0]["shown_measure"] == "Retain minus Forget along the edits"


def test_a_config_that_lacks_an_objective_says_so() -> None:
    """A researcher's run without it still has ``figures``; asking for one by name tells the remedy."""
    plan = Rules([("mine", {"objectives": {"inject": None, "erase": {}}})])
    made = plan.target("figures")({})
    assert len([path for path in made if path.endswith(".csv")]) == 14 and not any(
        "figure_13" in path or "figure_14" in path for path in made
    )
    with pytest.raises(UserError, match=r"figure_13 .* no objective 'inject': add it under 'objectives'"):
        plan.target("figure_13")({})
    assert all(lacking(Config(), name) is None for name in (*TABLES, *FIGURES))


def test_runtimes_are_of_the_recorded_jobs(tmp_path: Path) -> None:
    """A record that cannot be read is left out rather than ending the page."""
    (tmp_path / "damaged.record.json").write_text(json.dumps({"schema_version": 1}))
    assert page_module.records_in([tmp_path]) == [] and page_module.runtimes([]) == []


MARKED = """**Table 1. A title.**

| Localization | Components | Question forget ↓ | MMLU-format ↑ † | Text loss ↓ |
|---|---:|---:|---:|---:|
| Base model |  | 1.000 [.900, 1.000] | 0.250 [.200, .300] | 2.000 [1.9, 2.1] |
| Manual | 2 | 0.100 [.050, .200] | 0.260 [.200, .300] | 2.500 [2.4, 2.6] |
| Random | 2 | 0.150 [.090, .250] | 0.300 [.200, .400] | 2.500 [2.4, 2.6] |
| All MLPs | 4 | 0.600 [.500, .700] | 0.100 [.050, .200] | 2.500 [2.4, 2.6] |
"""


def test_the_best_and_what_may_be_as_good_are_marked() -> None:
    """Catches an arrow read the wrong way, a mark at chance or among equals, and the base model as its own best."""
    block = next(iter(grids.blocks(MARKED.partition("\n")[2])))
    marks = [[cell["best"] for cell in row[2:]] for row in block["rows"]]
    assert marks == [["", "", ""], ["best", "", ""], ["near", "", ""], ["", "", ""]]
    assert (
        block["rows"][1][2]["title"] == "-0.900 against the base model" and not block["rows"][0][2]["title"]
    )


GOLD = """| Localization | Question forget ↓ | Question retain ↑ | MCQ forget ↓ |
|---|---:|---:|---:|
| Base model | 1.000 [.900, 1.000] | 1.000 [.900, 1.000] | 0.950 [.900, .990] |
| Gold (never learned it) | 0.300 [.200, .400] | 1.000 [.900, 1.000] | 0.250 [.200, .300] |
| Manual | 0.000 [.000, .100] | 0.900 [.850, .950] | 0.100 [.050, .200] |
| A \\| B\\_ &lt;b&gt; &amp;amp; | 0.350 [.250, .450] | 0.900 [.850, .950] | 0.310 [.200, .400] |
| Random | 0.600 [.500, .700] | 0.950 [.900, 1.000] | 0.900 [.850, .950] |
"""


def test_gold_is_the_aim_of_forgetting_and_never_the_best_itself() -> None:
    """Catches a model praised for avoiding the answer below gold, and labels that are not read back as they were."""
    (block,) = grids.blocks(GOLD)
    names = [row[0]["text"] for row in block["rows"]]
    assert names[3] == "A | B_ <b> &amp;"
    assert [[cell["best"] for cell in row[1:]] for row in block["rows"]] == [
        ["", "", ""], ["", "", ""], ["", "near", ""], ["best", "near", "best"], ["", "best", ""],
    ]  # fmt: skip
    assert (block["rows"][2][1]["gold"], block["rows"][2][1]["base"]) == ("-0.300", "-1.000")
    assert (block["rows"][1][1]["gold"], block["rows"][1][1]["base"]) == ("", "-0.700")


def picture() -> str:
    """A figure's SVG with two localizations of three points."""
    points = pd.DataFrame(
        [
            {
                "localization": name,
                "layer": layer,
                "mean": 0.2 * layer + shift,
                "low": 0.1,
                "high": 0.9,
                "n": 37,
            }
            for name, shift in (("manual", 0.0), ("random", 0.3))
            for layer in range(3)
        ]
    )
    with style.panels(1, 1, 3, 2) as (figure, axes):
        style.curves(axes[0][0], points, "layer", {"manual": "Manual", "random": "Random"})
        style.one_legend(figure, axes)
    return vector.drawn(figure, "0123456789ab")


def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The page of a run with one table and one figure."""
    for name in ("tables", "figures"):
        (tmp_path / {"tables": "results/mine/tables", "figures": "figures/mine"}[name]).mkdir(parents=True)
    (tmp_path / "results/mine/tables/table_1.md").write_text(f"**Table 1.**\n\n{GOLD}", encoding="utf-8")
    for suffix in ("png", "pdf", "csv"):
        (tmp_path / f"figures/mine/figure_3.{suffix}").write_bytes(PICTURE)
    (tmp_path / "figures/mine/figure_3.svg").write_text(picture(), encoding="utf-8")
    return page(tmp_path, monkeypatch, run="mine")


def test_a_figure_says_whose_each_line_is_and_what_each_point_says() -> None:
    """Catches notes on the wrong points, ids that two figures of a page share, and what a page would load."""
    text = picture()
    notes = re.findall(r"<use[^>]*>\s*<title>([^<]*)</title>", text)
    assert notes[4] == "Random, layer 1: 0.500 [0.100, 0.900], n = 37" and len(notes) == 6
    assert set(re.findall(r'data-series="([^"]*)"', text)) == {"Manual", "Random"}
    ids = re.findall(r' id="([^"]*)"', text)
    assert ids and all(name.startswith("f0123456789-") for name in ids) and "{" not in "".join(ids)
    assert set(re.findall(r"(?:href=\"|url\()#([^)\"]*)", text)) <= set(ids)
    assert "<text" in text, "letters stay letters: they can be searched and read aloud"


def test_the_page_begins_with_the_main_columns_and_links_to_the_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = written(tmp_path, monkeypatch)
    first = text[text.index("In short") : text.index('id="claims"')]
    assert "Question forget ↓" in first and 'class="best"' in first and "<small>-0.300</small>" in first
    links = re.findall(r'href="(\.\.[^"]*|tables/[^"]*)"', text)
    assert "../../figures/mine/figure_3.pdf" in links and "tables/table_1.md" in links
    assert all((tmp_path / "results/mine" / link).exists() for link in links)


class Reader(HTMLParser):
    """What a screen reader needs to find, as axe-core's serious rules ask."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.faults: list[str] = []
        self.ids: list[str] = []
        self.tags: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tags.append(tag)
        self.ids += [found["id"]] if found.get("id") else []  # type: ignore[list-item]
        rules = {
            "img": "alt" in found,
            "th": "scope" in found,
            "html": bool(found.get("lang")),
            "dialog": "aria-label" in found,
            "nav": "aria-label" in found,
            "div": "wide" not in (found.get("class") or "")
            or (found.get("tabindex") == "0" and "aria-label" in found),
        }
        if not rules.get(tag, True):
            self.faults.append(f"<{tag} {found}>")


def test_the_page_can_be_read_by_keyboard_and_aloud(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = Reader(written(tmp_path, monkeypatch))
    assert not reader.faults
    assert len(set(reader.ids)) == len(reader.ids), "an id stands twice"
    assert reader.tags.count("main") == reader.tags.count("h1") == 1


@pytest.fixture
def browser() -> str:
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if path := shutil.which(name):
            return path
    pytest.skip("no Chromium is installed (Debian: apt-get install chromium)")


def titled(browser: str, page: Path, *more: str) -> str:
    """The title of a page when a real browser has shown it and its scripts have run."""
    words = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=8000", *more]
    profile = f"--user-data-dir={page.parent / 'profile'}"
    done = subprocess.run(
        [*words, profile, "--dump-dom", page.as_uri()], capture_output=True, text=True, timeout=180
    )
    found = re.search(r"<title>(.*?)</title>", done.stdout, re.S)
    assert found, done.stderr[-2000:]
    return unescape(found[1])


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1280])
def test_a_browser_shows_it_at_any_width(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, width: int, browser: str
) -> None:
    """Nothing but the tables' own boxes scrolls sideways, and the first accuracies stand on the first screen."""
    measure = (
        "<iframe id='f' style='border:0;width:WIDTHpx;height:2000px' srcdoc='PAGE'></iframe><script>onload=()=>{const d="
        "document.getElementById('f').contentDocument;document.title=[d.documentElement.scrollWidth,"
        "d.querySelector('#short td + td').getBoundingClientRect().bottom|0].join(' ')}</script>"
    )
    inner = written(tmp_path, monkeypatch).replace("&", "&amp;").replace("'", "&#39;")
    (tmp_path / "frame.html").write_text(
        measure.replace("WIDTH", str(width)).replace("PAGE", inner), encoding="utf-8"
    )
    wide, below = map(int, titled(browser, tmp_path / "frame.html").split())
    assert wide <= width and 0 < below < 800


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheme: str, browser: str
) -> None:
    axe = (Path(__file__).parents[1] / "vendor/axe-core/axe.min.js").read_text(encoding="utf-8")
    run = "axe.run().then(r => { document.title = JSON.stringify(r.violations.map(v => [v.impact, v.id, v.nodes[0].html])); });"
    body = f"<script>{axe}</script><script>{run}</script></body>"
    text = written(tmp_path, monkeypatch).replace("</body>", body)
    (tmp_path / "page.html").write_text(text, encoding="utf-8")
    chosen = f"--blink-settings=preferredColorScheme={0 if scheme == 'dark' else 1}"
    found = json.loads(titled(browser, tmp_path / "page.html", chosen))
    assert not [fault for fault in found if fault[0] in ("serious", "critical")], found


@pytest.mark.slow
def test_points_speak_and_localizations_hide(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, browser: str
) -> None:
    play = """
    const point = [...document.querySelectorAll('#figure_3 use[data-note]')][4], box = point.getBoundingClientRect();
    point.dispatchEvent(new PointerEvent('pointermove', {bubbles: true, clientX: box.left + box.width / 2, clientY: box.top + box.height / 2}));
    const said = document.getElementById('note').textContent;
    const boxes = [...document.querySelectorAll('.choose input')];
    boxes[boxes.length - 1].click();
    const hidden = [document.querySelector('#table_1 tr[data-name=Random]').hidden,
      [...document.querySelectorAll('#figure_3 [data-series=Random]')].every(line => line.style.display === 'none')];
    const select = document.querySelector('.choose select');
    select.value = 'gold';
    select.dispatchEvent(new Event('change'));
    const far = document.querySelector('#table_1 tr[data-name=Manual] td[data-gold]').firstElementChild.textContent;
    document.querySelector('#figure_3 .picture button').click();
    document.title = JSON.stringify([said, boxes.length, ...hidden, far, !!document.querySelector('dialog[open] svg')]);
    """
    text = written(tmp_path, monkeypatch).replace("</body>", f"<script>{play}</script></body>")
    (tmp_path / "page.html").write_text(text, encoding="utf-8")
    said = json.loads(titled(browser, tmp_path / "page.html", "--window-size=1280,4000"))
    assert said == ["Random, layer 1: 0.500 [0.100, 0.900], n = 37", 5, True, True, "-0.300", True]


def test_a_written_page_needs_nothing_from_outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not FOREIGN.search(written(tmp_path, monkeypatch))
