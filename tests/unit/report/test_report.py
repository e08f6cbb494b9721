"""The report: whole, escaped, self-contained, the same twice; read by a parser, by plotly and by chromium."""

from __future__ import annotations

import hashlib
import json
import math
import re
import shutil
import subprocess
from base64 import b64encode
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import pytest
from result_rows import Row, frame, row

from orchestrator.analysis.paired import read_baseline
from orchestrator.analysis.results import SweepResults
from orchestrator.errors import UsageError
from orchestrator.report.charts import TEMPLATE, Figure
from orchestrator.report.data import ReportData, ReportOptions, evenly_spread
from orchestrator.report.page import plotly_source, render_page, write_report
from orchestrator.report.pdf import print_pdf
from orchestrator.tracking import RunRecord, Tracker

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"
PLOTLY = "/* plotly */"


class Reading(Tracker):
    """A tracker that counts the files it reads."""

    texts = 0

    def read_text(self, row: RunRecord, path: str) -> str:
        self.texts += 1
        return super().read_text(row, path)


class Store:
    """Runs as folders of files below one folder; no server, no database."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tracker = Reading(f"sqlite:///{folder}/none.db", "made-up")

    def run(self, run_id: str, files: dict[str, Any], **tags: str) -> RunRecord:
        folder = self.folder / run_id
        folder.mkdir()
        for name, content in files.items():
            (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))
        return RunRecord(run_id, run_id, "FINISHED", {}, {}, tags, folder.as_uri(), 0, 90_000)

    def report_data(
        self, rows: list[Row], *, space: str = "about: What it is.\n", name: str = "made-up", **plan: object
    ) -> ReportData:
        """A sweep of these rows; every finished one has its files, and so has its dense network."""
        runs, stopped = {}, {}
        for number, entry in enumerate(rows):
            entry |= {
                "key": f"k{number}",
                "dense_key": f"d{entry['model']}{entry['seed']}",
                "run_id": f"r{number}",
            }
            entry |= {"reason": entry.get("reason"), "notes": entry.get("notes", "")}
            if entry["status"] == "finished":
                runs[entry["key"]] = self.run(entry["run_id"], files(entry))
            if entry["status"] == "stopped":
                before = {name: float(value) for name, value in entry.items() if name.startswith("ipa/")}
                whole = files(entry)["rounds.json"]
                ran = {"rounds.json": whole | {"data": whole["data"][: entry.pop("rounds", 1)]}}
                stopped[entry["key"]] = replace(self.run(entry["run_id"], ran), metrics=before)
                entry |= {name: math.nan for name in entry if name.startswith(("final/", "ipa/", "layers/"))}
            if entry["dense_key"] not in runs:
                runs[entry["dense_key"]] = self.run(
                    entry["dense_key"], files(entry | {"final/accuracy": 0.95})
                )
        sweep = {"space.yaml": space, "environment.json": {"package.torch": "2.13.0", "cores": "2"}}
        command = "orchestrate sweep --space made-up.yaml --set 'amount=0.5,<b>'"
        run = self.run("sweep", sweep, command=command)
        record = {"space": name, "excluded": [], **plan}
        return ReportData(self.tracker, run, SweepResults(record, frame(*rows), runs, stopped))


def files(entry: Row) -> dict[str, Any]:
    right = round(100 * entry["final/accuracy"])
    rounds = [
        [entry["final/sparsity"] * n / 4, entry["final/accuracy"], 0.9, 2.0, 0.1 * n, "regularising"]
        for n in (1, 2, 3, 4)
    ]
    columns = ["sparsity", "accuracy", "val_accuracy", "compression", "pq_index", "phase"]
    return {
        "layers.json": {"columns": ["layer", "weights"], "data": [["hidden", 640], ["output", 100]]},
        "confusion.json": [[right, 100 - right], [0, 100]],
        "rounds.json": {"columns": columns, "data": rounds},
    }


def trial(technique: str = "weight", amount: float = 0.5, seed: int = 0, **overrides: Any) -> Row:
    layers = {"layers/hidden": amount, "layers/output": 0.0}
    accuracy = overrides.pop("accuracy", 0.95 - amount / 4 - 0.01 * seed)
    costs = {"final/macs_effective": 640 * (1 - amount), "ipa/macs_effective": 640.0}
    costs |= {"final/bytes_sparse": 999 * (1.1 - amount), "ipa/bytes_sparse": 999.0}
    costs |= {"final/compression": 1 / (1.01 - amount), "ipa/val_accuracy": 0.95, "ipa/sparsity": 0.0}
    costs |= {"ipa/pq_index": 0.2, "ipa/compression": 1.0, "final/val_accuracy": accuracy}
    fields = {"schedule": "one_shot", "numerics.threads": 1, "train.lr": 0.1}
    return row(technique, amount, seed, accuracy, **fields, **layers, **costs) | overrides


def grid(**overrides: Any) -> list[Row]:
    points = product(("weight", "neuron"), (0.0, 0.5, 0.9), (0, 1, 2))
    return [trial(t, a, s, **overrides) for t, a, s in points]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


def page(data: ReportData, options: ReportOptions | None = None) -> str:
    return render_page(data, options or ReportOptions())


class Elements(HTMLParser):
    """Every element with its attributes and its text; what is opened must be closed.

    In place of plotly's source, which takes seconds to read, stands its name.
    """

    def __init__(self, text: str) -> None:
        super().__init__()
        self.all: list[tuple[str, dict[str, str | None], list[str]]] = []
        self._open: list[tuple[str, list[str]]] = []
        self.feed(text.replace(plotly_source(), PLOTLY))
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        texts: list[str] = []
        self.all.append((tag, dict(attrs), texts))
        if tag != "meta":
            self._open.append((tag, texts))

    def handle_endtag(self, tag: str) -> None:
        opened, _ = self._open.pop()
        assert opened == tag

    def handle_data(self, data: str) -> None:
        for _, texts in self._open:
            texts.append(data)

    def of(self, tag: str, **attributes: str) -> list[str]:
        """The texts of all elements of one kind."""
        return [
            "".join(texts)
            for name, actual, texts in self.all
            if name == tag and attributes.items() <= actual.items()
        ]


def charts(text: str) -> dict[str, Figure]:
    (source,) = Elements(text).of("script", id="charts")
    figures: dict[str, Figure] = json.loads(source)["figures"]
    return figures


def test_every_section_is_there_and_in_the_contents(store: Store) -> None:
    text = page(store.report_data(grid()))
    elements = Elements(text)
    titles = elements.of("h2")
    assert titles == [
        "What was found",
        "Summary",
        "Accuracy against sparsity and cost",
        "Pareto fronts",
        "Paired differences to weight",
        "Layer by layer",
        "Class by class",
        "All settings",
        "Export a network",
        "Failed, stopped and excluded trials",
        "Setup",
    ]
    assert elements.of("a") == titles[1:]
    assert text.index("What was found") < text.index('class="headline"')  # in the first lines
    assert any("falls" in item or "below" in item for item in elements.of("li"))
    assert elements.of("h1") == ["made-up"]
    assert "What it is." in elements.of("p")
    assert "2.13.0" in elements.of("dd")
    assert any("amount=0.5,<b>" in command for command in elements.of("pre"))
    anchors = {attrs["href"] for name, attrs, _ in elements.all if name == "a"}
    assert anchors == {f"#{attrs['id']}" for name, attrs, _ in elements.all if name == "section"}


def test_every_chart_has_its_place_and_is_one_that_plotly_takes(store: Store) -> None:
    import plotly.graph_objects as go

    text = page(store.report_data([*grid(), *(trial("neuron", 0.9, s, model="cnn") for s in (0, 1))]))
    specs = charts(text)
    places = [attrs["id"] for name, attrs, _ in Elements(text).all if attrs.get("class") == "chart"]
    assert sorted(places) == sorted(specs)
    assert {
        "sparsity-0",
        "sparsity-1",
        "compression-0",
        "effective-macs-1",
        "front-macs-0",
        "difference-0",
    } <= specs.keys()
    for spec in specs.values():
        whole = {**spec, "layout": {**spec["layout"], "template": TEMPLATE}}
        plain = json.loads(re.sub(r"theme:\w+", "black", json.dumps(whole)))
        go.Figure(plain)  # ValueError for a property or a value that is not in the schema


def test_points_are_means_over_seeds_with_their_intervals(store: Store) -> None:
    rows = [trial("weight", 0.5, s, accuracy=v) for s, v in enumerate((0.8, 0.85, 0.9))]
    spec = charts(page(store.report_data([*rows, trial("weight", 0.9)])))["sparsity-0"]
    (line,) = spec["data"]
    assert line["x"] == [50, 90]
    assert line["y"][0] == pytest.approx(85)
    # Deviation 5 points, t(0.975, 2) = 4.302653: half a width of 12.42.
    assert line["error_y"]["arrayminus"][0] == pytest.approx(12.42, abs=0.01)
    assert line["error_y"]["array"][0] == pytest.approx(12.42, abs=0.01)


def test_nothing_that_a_person_wrote_is_html_or_ends_a_script(store: Store) -> None:
    rows = [trial(EVIL, a, s, dataset=EVIL, notes=EVIL) for a in (0.5, 0.9) for s in (0, 1)]
    rows.append(trial("weight", 0.5, status="failed", reason=EVIL))
    excluded = [{"reason": EVIL, "count": 3}]
    data = store.report_data(rows, space=f"about: '{EVIL}'\n# {EVIL}\n", name=EVIL, excluded=excluded)
    text = page(data)
    elements = Elements(text)
    kinds = [(name, attrs.get("id")) for name, attrs, _ in elements.all if name in ("script", "img")]
    assert kinds == [("script", "charts"), ("script", None), ("script", None)]
    assert elements.of("h1") == [EVIL]
    assert EVIL in elements.of("p")
    assert sum(EVIL in cell for cell in elements.of("td")) >= 3
    # Plotly reads tags of its own: in its texts a name is escaped once more.
    names = {line["name"] for spec in charts(text).values() for line in spec["data"] if "name" in line}
    assert names
    assert not any("<" in name for name in names)
    assert not re.search(r"<(?!/?(?:br|span|extra)\b)", "".join(texts_of(charts(text))))


def texts_of(value: object) -> list[str]:
    """All texts in a chart."""
    if isinstance(value, dict):
        return [text for item in value.values() for text in texts_of(item)]
    if isinstance(value, list):
        return [text for item in value for text in texts_of(item)]
    return [value] if isinstance(value, str) else []


def test_nothing_is_fetched(store: Store) -> None:
    text = page(store.report_data(grid()))
    elements = Elements(text)
    for name, attrs, _ in elements.all:
        assert name not in ("link", "iframe", "object", "embed", "base", "form")
        for attribute in ("src", "href", "srcset", "data", "action", "poster"):
            assert (attrs.get(attribute) or "#").startswith("#")
    (style,) = elements.of("style")
    assert not re.search(r"url\(|@import|https?:", style)
    styles = "".join(attrs.get("style") or "" for _, attrs, _ in elements.all)
    assert "url" not in styles
    (own,) = (source for source in elements.of("script")[1:] if source != PLOTLY)
    assert not re.search(r"https?:|fetch\(|XMLHttpRequest|import\(", own)


def test_only_its_own_scripts_may_run(store: Store) -> None:
    elements = Elements(page(store.report_data(grid())))
    (policy,) = (
        attrs["content"]
        for name, attrs, _ in elements.all
        if attrs.get("http-equiv") == "Content-Security-Policy"
    )
    rules = dict(rule.strip().split(" ", 1) for rule in (policy or "").split(";"))
    assert rules["default-src"] == "'none'"
    scripts = [source.replace(PLOTLY, plotly_source()) for source in elements.of("script")[1:]]
    hashes = [f"'sha256-{b64encode(hashlib.sha256(s.encode()).digest()).decode()}'" for s in scripts]
    assert rules["script-src"].split() == hashes


def test_the_same_results_make_the_same_file(store: Store, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    assert page(store.report_data(grid())) == page(Store(other).report_data(grid()))


def test_a_bounded_number_of_files_is_read(store: Store) -> None:
    rows = [trial(t, n / 20, model=m) for m, t, n in product("pqrst", "abcdefg", (1, 2, 3))]
    text = page(store.report_data(rows))
    # 4 networks of 6 methods and 3 amounts: the confusion matrix of each, and of its dense network;
    # the layers of each network once; the sweep's space file and environment; one matrix for the number
    # of test images; the names of the classes.
    assert store.tracker.texts == 2 * 4 * 6 * 3 + 4 + 2 + 1 + 1
    assert "Shown are the first 4 of 5 networks, the first 6 of 7 methods." in text


def test_many_amounts_are_shown_evenly_spread_with_both_ends(store: Store) -> None:
    settings = store.report_data([trial("weight", n / 40) for n in range(40)]).settings
    shown = evenly_spread(settings, 14)
    assert len(shown) == 14
    assert (shown[0].amount, shown[-1].amount) == (0, 39 / 40)
    steps = [round(40 * (b.amount - a.amount)) for a, b in pairwise(shown)]
    assert set(steps) == {3}
    assert evenly_spread(settings[:3], 14) == tuple(settings[:3])


def test_what_did_not_make_it_is_told_with_its_reason(store: Store) -> None:
    rows = [
        *grid(),
        trial("weight", 0.7, status="failed", reason="the loss is no longer finite"),
        trial("weight", 0.7, 1, status="stopped", reason="worse than the median"),
        trial("weight", 0.7, 2, status="missing"),
    ]
    text = page(store.report_data(rows, excluded=[{"reason": "no hidden layer", "count": 12}]))
    cells = Elements(text).of("td")
    for reason, count in (
        ("the loss is no longer finite", "1"),
        ("no hidden layer", "12"),
    ):
        assert cells[cells.index(reason) + 1] == count
    stopped = cells.index("seed 1: worse than the median")
    assert cells[stopped - 2 : stopped] == ["weight at 70%", "1 of 3"]
    assert "21 trials were planned: 1 failed, 18 finished, 1 missing, 1 stopped." in Elements(text).of("p")


def test_a_sweep_without_a_result_has_a_report(store: Store) -> None:
    text = page(store.report_data([trial(status="failed", reason="out of luck")]))
    assert Elements(text).of("h2") == ["Failed, stopped and excluded trials", "Setup"]
    assert charts(text) == {}
    assert "script-src 'none'" in text.replace("&#39;", "'")


def test_latency_is_drawn_where_it_was_measured(store: Store, tmp_path: Path) -> None:
    without = page(store.report_data(grid()))
    assert "orchestrate latency made-up" in without
    assert "latency-0" not in charts(without)
    other = tmp_path / "other"
    other.mkdir()
    times = {"final/latency_ms_p50": 0.4, "latency/dense_ms_p50": 0.9}
    with_times = page(Store(other).report_data(grid(**times)))
    assert "orchestrate latency" not in with_times
    assert {"latency-0", "front-latency-0"} <= charts(with_times).keys()


def test_methods_of_one_sparsity_stand_in_rows(store: Store) -> None:
    rows = [trial("weight", 0.9, s, recover=r) for r in ("rewind", "reinit") for s in (0, 1)]
    specs = charts(page(store.report_data(rows)))
    assert specs["accuracy-0"]["layout"]["yaxis"]["ticktext"] == ["weight, rewind", "weight, reinit"]
    assert "sparsity-0" not in specs
    assert specs["difference-0"]["layout"]["yaxis"]["ticktext"] == ["weight, reinit"]


def test_rounds_are_drawn_with_their_phases(store: Store) -> None:
    rows = [trial("weight", 0.9, s, schedule="iterative(rounds=4)") for s in (0, 1)]
    data = store.report_data(rows)
    text = page(data)
    specs = charts(text)
    (accuracy,) = specs["rounds-accuracy-0"]["data"]
    assert accuracy["x"] == pytest.approx([100, 77.5, 55, 32.5, 10])
    for line in specs["rounds-pq-0-0"]["data"]:
        assert line["y"] == pytest.approx([0.2, 0.1, 0.2, 0.3, 0.4])
        assert line["marker"]["symbol"] == ["circle-open"] + ["circle"] * 4
    # Within 5 points of the dense 0.95 are the rounds before the last, at 0.90, but not its end at 0.72.
    assert "67.5 [67.5 to 67.5]" in Elements(page(data, ReportOptions(0.05))).of("td")


def test_a_round_is_the_mean_of_all_seeds_that_ran_it_stopped_ones_included(store: Store) -> None:
    def of(accuracy: float, seed: int, **overrides: Any) -> Row:
        return trial("weight", 0.9, seed, accuracy=accuracy, schedule="iterative(rounds=4)", **overrides)

    early = [of(0.6, 1, status="stopped", rounds=1), of(0.7, 2, status="stopped", rounds=2)]
    text = page(store.report_data([of(0.8, 0), *early]))
    (line,) = charts(text)["rounds-accuracy-0"]["data"]
    # Dense, then round 1 of three seeds, round 2 of two, and from there on one that was left.
    assert line["y"] == pytest.approx([95, 70, 75, 80, 80])
    hollow = [symbol.endswith("-open") for symbol in line["marker"]["symbol"]]
    assert hollow == [False, False, True, True, True]
    assert "§ 2 of 3 seeds" in line["text"][2]
    assert "Hollow points (§) are means of survivors" in " ".join(Elements(text).of("p"))


def test_what_was_stopped_is_told_by_its_setting(store: Store) -> None:
    rows = grid()
    rows += [
        trial("random", 0.5, s, status="stopped", reason=f"round 1: accuracy 0.{s}1, by median")
        for s in (0, 1)
    ]
    rows.append(trial("weight", 0.9, 3, status="stopped", reason="round 1: accuracy 0.41, by median"))
    elements = Elements(page(store.report_data(rows)))
    cells = elements.of("td")
    assert "random at 50%" in cells
    assert "seed 0: round 1: accuracy 0.01, by median; seed 1: round 1: accuracy 0.11, by median" in cells
    assert cells[cells.index("weight at 90%") + 1] == "1 of 4"
    texts = elements.of("p")
    assert texts.count("Stopped at every seed, and so in no table: random at 50% (2 seeds).") == 2


def test_a_layer_table_marks_means_of_survivors(store: Store) -> None:
    early = trial("neuron", 0.9, 1, status="stopped", rounds=1)
    rows = [trial("weight", 0.9, 0), trial("neuron", 0.9, 0), early]
    elements = Elements(page(store.report_data(rows)))
    assert "neuron§" in elements.of("th")
    assert "weight" in elements.of("th")


def test_the_phases_are_those_of_pruning() -> None:
    from orchestrator.report.rounds import PHASES
    from pruning.pq_index import COLLAPSING, NOT_SEEN, REGULARISING, UNDERFITTING

    assert list(PHASES) == [NOT_SEEN, REGULARISING, UNDERFITTING, COLLAPSING]


def test_a_baseline_and_a_tolerance_that_were_asked_for(store: Store) -> None:
    data = store.report_data(
        [trial(t, a, s) for t, a, s in product(("weight", "neuron"), (0.5, 0.9), range(6))]
    )
    options = ReportOptions(0.05, "bootstrap", read_baseline("neuron", data.results))
    text = page(data, options)
    titles = Elements(text).of("h2") + Elements(text).of("h3")
    assert "Paired differences to neuron" in titles
    assert "Highest sparsity within 5 points of dense" in titles
    assert "bootstrap" in text


def test_a_run_whose_files_are_gone_is_passed_over(store: Store, tmp_path: Path) -> None:
    data = store.report_data(grid())
    for file in [
        *tmp_path.glob("*/confusion.json"),
        *tmp_path.glob("*/layers.json"),
        *tmp_path.glob("sweep/*"),
    ]:
        file.unlink()
    titles = Elements(page(data)).of("h2")
    assert "Class by class" not in titles
    assert "Layer by layer" not in titles
    assert "All settings" in titles


# ---- in a browser

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND",
    "--virtual-time-budget=20000",
    "--enable-logging=stderr",
]


def dumped(file: Path, profile: Path) -> tuple[str, str]:
    """(the page after its scripts have run, what the browser's console said)."""
    assert CHROMIUM
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={profile}", "--dump-dom", file.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=True)
    return done.stdout, "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line)


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium here to open the report with")
def test_it_opens_offline_with_its_charts_drawn_and_runs_no_other_script(
    store: Store, tmp_path: Path
) -> None:
    rows = [trial(t, a, s) for t, a, s in product(("weight", EVIL), (0.5, 0.9), (0, 1))]
    text = page(store.report_data(rows, name=EVIL))
    # What would happen if something had slipped through:
    text = text.replace("<main>", "<script>document.title = 'taken over'</script><main>")
    file = tmp_path / "report.html"
    file.write_text(text)
    dom, console = dumped(file, tmp_path / "profile")
    assert dom.count('class="main-svg"') >= len(charts(text)) > 3
    assert 'class="waiting"' not in dom
    assert dom.count('class="tools"') == len(charts(text))
    assert dom.count(">SVG</button>") == dom.count(">PNG</button>") == len(charts(text))
    assert "theme:" not in dom.partition('id="charts"')[0].partition("<main>")[2]
    assert "<title>taken over</title>" not in dom
    refused = [line for line in console.splitlines() if "Content Security Policy" in line]
    assert len(refused) == len(console.splitlines()) == 1  # the script above, and nothing else went wrong


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium here to print the report with")
def test_it_is_printed_with_its_charts(store: Store) -> None:
    text = page(store.report_data([trial("weight", amount, 0) for amount in (0.5, 0.9)]))
    printed = print_pdf(text)
    assert printed.startswith(b"%PDF-")
    assert len(re.findall(rb"/Type\s*/Page\b", printed)) > 1
    without_charts = print_pdf(re.sub(r"<script>.*?</script>", "", text, flags=re.DOTALL))
    assert len(printed) > 1.2 * len(without_charts)


def test_without_a_browser_a_pdf_is_refused_before_the_report_is_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UsageError, match=r"--out FILE.pdf is printed by Chromium.*write FILE.html"):
        write_report("a sweep that is not there", uri="sqlite:///none.db", out=Path("x.pdf"))
