"""Ratios are made within rounds; tables, JSON, picture and history tell the same."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from cluster.errors import InvalidRequest
from deployments.bench.cases import SIDE_BY_SIDE, Key
from deployments.bench.figures import Spread
from deployments.bench.history import as_markdown as history_table
from deployments.bench.history import draw_history, read_history
from deployments.bench.picture import draw_run
from deployments.bench.races import Rival
from deployments.bench.report import Run, as_json, as_markdown
from deployments.bench.run import Outlet, tell
from tests.bench.factories import PAIR, run_of


@pytest.fixture
def run() -> Run:
    return run_of(
        {
            Key("closed", "a", 1): {"tokens_per_s": [100.0, 200.0], "gap_mean_ms": [10, 5]},
            Key("closed", "b", 1): {"tokens_per_s": [100.0, 200.0], "gap_mean_ms": [10, 5]},
            Key("closed", "pair", 1): {"tokens_per_s": [90.0, 150.0], "gap_mean_ms": [12, 6]},
            Key("closed", "a", 16): {"tokens_per_s": [400.0, 1000.0], "gap_mean_ms": [40, 16]},
            Key("closed", "b", 16): {"tokens_per_s": [800.0, 2000.0], "gap_mean_ms": [20, 8]},
            Key("closed", "pair", 16): {"tokens_per_s": [450.0, 1250.0], "gap_mean_ms": [36, 13]},
            Key(SIDE_BY_SIDE, "a beside b", 16): {
                "tokens_per_s": [900.0, 1250.0],
                "gap_mean_ms": [36, 13],
            },
            Key(Rival.ENGINE.value, "a"): {"tokens_per_s": [125, 250], "gap_mean_ms": [8, 4]},
            Key(Rival.ENGINE.value, "b"): {"tokens_per_s": [62, 125], "gap_mean_ms": [16, 8]},
            Key(Rival.ENGINE_BATCH.value, "a", 16): {
                "tokens_per_s": [1000, 1000],
                "gap_mean_ms": [16, 16],
            },
            Key(Rival.GENERATE.value, "a"): {"tokens_per_s": [80, 160], "gap_mean_ms": [12, 6]},
            Key(Rival.OWN_AVERAGE.value, "pair"): {
                "tokens_per_s": [45, 100],
                "gap_mean_ms": [24, 12],
            },
        }
    )


def test_ratios_are_within_rounds_and_at_the_members_shares(run: Run) -> None:
    found = {target.name: target for target in run.targets}

    def spread(part: str) -> Spread:
        (name,) = [name for name in found if part in name]
        return found[name].measured

    assert spread("sequential ensemble on our engine") == Spread(1.75, 1.5, 2.0)
    # 0.75 × 8 + 0.25 × 16 = 10 ms of steps against 12 ms between tokens.
    assert spread("engine steps") == Spread(1.2, 1.2, 1.2)
    # 0.75 × 400 + 0.25 × 800 = 500 tokens/s.
    assert spread("weighted sum") == Spread(0.95, 0.9, 1.0)
    assert spread("side by side") == Spread(0.75, 0.5, 1.0)
    assert spread("transformers generate") == Spread(1.5, 1.5, 1.5)
    assert spread("reading the weights") == Spread(1.5, 1.0, 2.0)  # 4 MB at 1 GB/s: 4 ms
    assert spread("16 sequences against 1") == Spread(6.0, 4.0, 8.0)
    met = {name: target.is_met for name, target in found.items()}
    assert [name for name, is_met in met.items() if is_met is False] == [
        f"{PAIR.name} (2 members), 1 stream: tokens/s against a sequential ensemble on our engine",
        f"{PAIR.name}, 1 stream: time between tokens against its members' engine steps",
        "served, a: 16 streams against 1, tokens/s",
    ]


def test_tables_say_by_how_much_a_figure_falls_short(run: Run) -> None:
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in as_markdown(run).splitlines()
    ]
    (ensemble,) = [row for row in rows if row and "sequential ensemble on our" in row[0]]
    assert ensemble[1:] == ["≥ 1.8", "1.75 (1.50–2.00)", "short by 3 %"]
    (step,) = [row for row in rows if row and "engine steps" in row[0]]
    assert step[1:] == ["≤ 1.15", "1.20", "short by 4 %"]
    (cost,) = [row for row in rows if len(row) == 6 and row[0] == "pair, 1 stream"]
    assert cost[1] == "0.82 (0.75–0.90)"


def test_json_has_every_round_and_the_history_reads_it_back(run: Run, tmp_path: Path) -> None:
    (tmp_path / "one.json").write_text(as_json(run))
    content = json.loads(as_json(run))
    (pair,) = [c for c in content["cases"] if c["name"] == "pair, 1 stream"]
    assert [figures["tokens_per_s"] for figures in pair["rounds"]] == [90.0, 150.0]
    assert pair["summary"]["tokens_per_s"] == {"median": 120.0, "low": 90.0, "high": 150.0}
    (past,) = read_history(tmp_path)
    assert [(e.ratio, e.measured) for e in past.entries] == [
        (target.name, target.measured) for target in run.targets
    ]
    table = history_table([past, past])
    assert table.count("1.75 (1.50–2.00)") == 2
    assert "2026-01-02 03:04, given without Ray, 0123abc" in table


def test_pictures_are_xml_that_names_every_figure(run: Run, tmp_path: Path) -> None:
    (tmp_path / "one.json").write_text(as_json(run))
    for picture in (draw_run(run), draw_history(read_history(tmp_path))):
        texts = ["".join(node.itertext()) for node in ElementTree.fromstring(picture).iter()]
        assert any("sequential ensemble on our engine" in text for text in texts)
        assert "nan" not in picture


@pytest.mark.parametrize("content", ["{}", "no json", '{"format": 0}'])
def test_what_is_no_run_is_refused_by_name(content: str, tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text(content)
    with pytest.raises(InvalidRequest, match=r"other\.json: no run"):
        read_history(tmp_path)


def test_an_empty_history_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="expected a folder with JSON"):
        read_history(tmp_path)


def test_a_run_goes_where_it_is_wanted(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- given: begin -->\nold\n<!-- given: end -->\nafter\n")
    tell(run, Outlet(json=tmp_path, picture=tmp_path / "run.svg", markdown=page))
    assert read_history(tmp_path)[0].commit == "0123abc"
    assert (tmp_path / "2026-01-02T0304-given.json").exists()
    assert (tmp_path / "run.svg").read_text() == draw_run(run)
    assert capsys.readouterr().out.strip() == as_markdown(run)
    lines = page.read_text().splitlines()
    assert (lines[0], lines[-1], "old" in lines) == ("before", "after", False)
