"""The board as files: the right numbers, nothing fetched, byte-identical when written again."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest
from rich.console import Console

from rlflow import figures
from rlflow.board import Board
from rlflow.cell import CellIdentity
from rlflow.figures_style import style_of
from rlflow.leaderboard import read_board
from rlflow.ranking import make_board
from rlflow.report import NOTE_LENGTH, ReportError, note, publish_board, write_board
from rlflow.report_csv import board_csv, seeds_csv
from rlflow.report_text import markdown, terminal_table
from rlflow.report_values import duration_text, score_text
from rlflow.store import Store, ensure_experiment, search_runs
from rlflow.tracking import start_seed
from tests.boards import full_board, make_cell

pytest_plugins = ("tests.mlflow_fixtures",)

EXACT = 1e-9


@pytest.fixture(scope="module")
def board() -> Board:
    """Five entrants, three tasks, five seeds, a diverged seed, an incomplete entrant."""
    return full_board()


@pytest.fixture(scope="module")
def written(board: Board, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that holds the files of `board`."""
    folder = tmp_path_factory.mktemp("written")
    write_board(board, folder)
    return folder


def table_rows(text: str) -> dict[str, list[str]]:
    """Cells of the first Markdown table, by algorithm."""
    lines = [[part.strip() for part in line.strip("|").split(" | ")] for line in text.split("\n\n")[1].splitlines()[2:]]
    return {line[1]: line for line in lines}


def test_markdown_shows_raw_mean_with_error_normalised_score_and_counts() -> None:
    cells = [make_cell("ppo", "a", [0.5, 0.7], note="tight"), make_cell("fpo", "a", [0.9], num_launched=2)]
    rows = table_rows(markdown(make_board("toy@1", "d1", cells)))
    # anchors 0 and 10: finals 5 and 7, mean 6, se sqrt(((-1)^2 + 1^2) / 1 / 2) = 1; 60 s + 61 s
    assert rows["ppo"][3] == "6.000 ± 1.000 (1), z 0.60, 2/2"
    assert rows["ppo"][2].startswith("0.600 [")
    assert rows["ppo"][-1] == "2.0 min"
    assert rows["fpo"][:4] == ["-", "fpo", "incomplete", "9.000, z 0.90, 1/2"]


def test_markdown_tells_the_budget_in_the_units_of_the_task() -> None:
    board = make_board("toy@1", "d1", [make_cell("ppo", "a", [0.5], unit="env_steps", budget=153_600)])
    assert "| a | 153,600 env steps | closed |" in markdown(board)


def test_markdown_names_diverged_seeds_footnotes_and_warnings(board: Board) -> None:
    text = markdown(board)
    assert "z 0.60, 5/5, 1 diverged" in table_rows(text)["flowrl"][3]
    assert "\n\n(2) The bound is tight here: FPO is PPO-like with one sequence ratio.\n\n" in text
    cells = [make_cell("ppo", "a", [0.5]), make_cell("fpo", "a", [0.5], task_version="2")]
    assert "Warning: a: cells differ in task version" in markdown(make_board("toy@1", "d1", cells))


@pytest.mark.parametrize(
    ("value", "text"), [(1443.21, "1443"), (-300.0, "-300"), (42.36, "42.4"), (0.7666, "0.767"), (-0.0002, "0.000")]
)
def test_score_text_keeps_about_three_digits(value: float, text: str) -> None:
    assert score_text(value) == text


def test_the_error_has_the_decimals_of_the_mean() -> None:
    assert score_text(47.03, scale=672.0) == "47"


@pytest.mark.parametrize(("seconds", "text"), [(59.6, "60 s"), (930.0, "15.5 min"), (9000.0, "2.5 h")])
def test_duration_text(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text


def test_csv_has_full_precision_and_a_line_per_entrant_and_column(board: Board) -> None:
    lines = list(csv.DictReader(io.StringIO(board_csv(board))))
    assert len(lines) == 15
    first = lines[0]
    assert float(first["M"]) == board.ranked[0].headline
    assert float(first["mean"]) == pytest.approx(board.ranked[0].cells[first["column"]].raw.mean(), abs=EXACT)
    (lost,) = [line for line in lines if line["diverged"] == "1"]
    assert (lost["algorithm"], lost["n"], lost["N"]) == ("flowrl", "5", "5")
    assert [line["M"] for line in lines if line["algorithm"] == "reinforce_pp"] == ["", "", ""]


def test_seeds_csv_tells_the_shape_of_every_curve() -> None:
    cell = make_cell("ppo", "a", [0.6])
    (line,) = csv.DictReader(io.StringIO(seeds_csv(make_board("toy@1", "d1", [cell]))))
    scores = cell.seeds[0].scores
    # evaluations every 100 of 1000 samples: trapezoids of equal width
    area = sum((a + b) / 2 * 100 for a, b in pairwise(scores)) / 1000
    assert float(line["auc"]) == pytest.approx(area, abs=EXACT)
    assert float(line["drop"]) == pytest.approx(max(scores) - 6.0, abs=EXACT)
    # z = 0.25 is a raw score of 2.5; z = 0.75 is never reached
    before = max(index for index in range(10) if max(scores[: index + 1]) < 2.5)
    assert 100 * before < float(line["samples_to_0.25"]) <= 100 * (before + 1)
    assert line["samples_to_0.75"] == ""


def printed(board: Board, width: int) -> str:
    """The terminal table as a terminal of `width` columns shows it."""
    console = Console(width=width, file=io.StringIO(), record=True)
    console.print(terminal_table(board))
    return console.export_text()


@pytest.mark.parametrize("width", [80, 120])
def test_the_terminal_table_fits_a_terminal(board: Board, width: int) -> None:
    text = printed(board, width)
    assert max(len(line) for line in text.splitlines()) <= width
    assert all(entrant.algorithm in text for entrant in board.entrants)
    assert "[0.393, 0.636]" in text
    assert "halfcheetah" in text


def test_the_terminal_table_shows_brackets_as_they_are() -> None:
    cells = [make_cell("ppo", "a", [0.5], policy=policy, note="see [bold] text") for policy in ("flow", "red")]
    text = printed(make_board("toy@1", "d1", cells), 100)
    assert "[flow]" in text
    assert "[red]" in text
    assert "see [bold] text" in text


def test_files_are_byte_identical_when_written_again(written: Path, tmp_path: Path) -> None:
    again = {path.relative_to(tmp_path).as_posix(): path.read_bytes() for path in write_board(full_board(), tmp_path)}
    # No half-written file stays behind.
    files = [path for path in written.rglob("*") if path.is_file()]
    assert {path.relative_to(written).as_posix(): path.read_bytes() for path in files} == again
    assert set(again) == {
        "leaderboard.md",
        "leaderboard.html",
        "leaderboard.tex",
        "MANIFEST.json",
        "leaderboard.csv",
        "pairwise.csv",
        "seeds.csv",
        "equal_cost.csv",
        *(
            f"figures/{stem}.{suffix}"
            for stem in (
                *("headline", "profile", "ranks", "improvement", "cost"),
                *(
                    f"{kind}_{task}"
                    for kind in ("curves", "seconds", "seeds")
                    for task in ("control-halfcheetah", "image-shapes", "reasoning-countdown")
                ),
            )
            for suffix in ("svg", "png")
        ),
    }


class _Page(HTMLParser):
    """Collects what a page refers to and the sort values of its main table."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.references: list[str] = []
        self.rows: list[list[str]] = []
        self.num_figures = 0
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note links, rows and figures."""
        values = {name: value or "" for name, value in attrs}
        self.references += [values[name] for name in ("src", "href", "xlink:href") if name in values]
        self.num_figures += tag == "svg"
        if tag == "tr":
            self.rows.append([])
        if tag == "td" and "data-value" in values:
            self.rows[-1].append(values["data-value"])


def test_the_page_is_self_contained_and_sorts_by_exact_values(board: Board, written: Path) -> None:
    page = _Page((written / "leaderboard.html").read_text())
    # five over all tasks, three of each of three tasks
    assert page.num_figures == 14
    assert page.references
    assert all(reference.startswith("#") for reference in page.references)
    rows = [row for row in page.rows if row]
    assert [row[1] for row in rows] == [entrant.algorithm for entrant in board.entrants]
    # rank, name, M, one z per column, IQM, P(first), tier, seconds
    assert float(rows[0][2]) == board.ranked[0].headline
    assert float(rows[0][3]) == pytest.approx(board.ranked[0].cells["control/halfcheetah"].normalised.mean(), abs=EXACT)
    assert rows[-1][:3] == ["", "reinforce_pp", ""]


def test_the_page_warns_above_the_table(tmp_path: Path) -> None:
    cells = [make_cell("ppo", "a", [0.5]), make_cell("fpo", "a", [0.5], task_version="2")]
    text = write_board(make_board("toy@1", "d1", cells), tmp_path)[1].read_text()
    assert 0 < text.index("a: cells differ in task version") < text.index('<table class="board">')


def test_names_and_notes_are_escaped(tmp_path: Path) -> None:
    board = make_board("toy@1", "d1", [make_cell("<b>ppo</b>", "a<i>", [0.5], note="<script>alert(1)</script>")])
    text = write_board(board, tmp_path)[1].read_text()
    assert "<b>ppo" not in text
    assert "<script>alert" not in text
    assert "a<i>" not in text


def test_inline_figures_follow_the_theme(written: Path) -> None:
    text = (written / "leaderboard.html").read_text()
    figures = re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL)
    assert all("currentColor" in figure for figure in figures)
    assert not any("#ffffff" in figure or "#24292f" in figure for figure in figures)


def test_an_algorithm_keeps_its_colour_and_no_two_share_their_looks(board: Board) -> None:
    looks = {e.algorithm: tuple(style_of(board, e.algorithm).values()) for e in board.entrants}
    assert len(set(looks.values())) == 5
    reversed_board = make_board("core@1", "d2", [c for e in reversed(board.entrants) for c in e.cells.values()])
    assert {e.algorithm: tuple(style_of(reversed_board, e.algorithm).values()) for e in board.entrants} == looks


def test_a_board_without_results_can_be_written(tmp_path: Path) -> None:
    board = make_board("toy@1", "d1", [make_cell("ppo", "a", [], num_launched=2)])
    files = write_board(board, tmp_path)
    assert "incomplete" in files[0].read_text()
    assert "none is ranked" in files[1].read_text()


def test_a_folder_that_cannot_be_written_is_one_error(board: Board, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ReportError, match="expected a folder that can be written"):
        write_board(board, tmp_path / "file")


def test_publishing_puts_the_files_and_the_note_into_mlflow(
    store: Store, identity: Callable[..., CellIdentity], tmp_path: Path
) -> None:
    tracker = start_seed(store, identity(), seed=0, config={})
    for step in (0, 100, 200, 300, 400):
        tracker.log({"eval/score": step / 100}, step)
    tracker.finish("finished")
    board = read_board(store, "toy@1")
    publish_board(store, board, tmp_path / "board")
    experiment = ensure_experiment(store, "toy@1")
    assert store.client.get_experiment(experiment).tags["mlflow.note.content"] == markdown(board)
    (run,) = search_runs(store, experiment, {"kind": "leaderboard"})
    paths = {file.path for folder in ("", "figures") for file in store.client.list_artifacts(run.info.run_id, folder)}
    assert {"leaderboard.md", "leaderboard.html", "leaderboard.csv", "figures/headline.svg"} <= paths
    # Publishing does not change what is read.
    assert read_board(store, "toy@1") == board


def test_a_board_that_is_published_is_not_drawn_again(
    store: Store, identity: Callable[..., CellIdentity], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def finish(seed: int) -> Board:
        tracker = start_seed(store, identity(), seed=seed, config={})
        for step in (0, 100, 200, 300, 400):
            tracker.log({"eval/score": step / 100}, step)
        tracker.finish("finished")
        return read_board(store, "toy@1")

    draws: list[int] = []
    draw = figures.draw_all
    monkeypatch.setattr(figures, "draw_all", lambda board: draws.append(1) or draw(board))
    board, folder = finish(0), tmp_path / "board"
    first = publish_board(store, board, folder)
    assert sorted(publish_board(store, read_board(store, "toy@1"), folder)) == sorted(first)
    assert len(draws) == 1
    # What somebody has changed, a note that is not there and a new seed are all reasons to write it again.
    (folder / "figures" / "headline.svg").write_text("<svg/>")
    publish_board(store, board, folder)
    assert (folder / "figures" / "headline.svg").read_text() != "<svg/>"
    store.client.set_experiment_tag(ensure_experiment(store, "toy@1"), "mlflow.note.content", "")
    publish_board(store, board, folder)
    publish_board(store, finish(1), folder)
    assert len(draws) == 4
    assert "2/2" in (folder / "leaderboard.md").read_text()


def test_a_note_that_is_too_long_for_mlflow_is_cut_at_a_line() -> None:
    cells = [make_cell(f"algorithm_{index:03}", "a", [0.5]) for index in range(60)]
    board = make_board("toy@1", "d1", cells)
    assert len(markdown(board)) > NOTE_LENGTH
    lines = note(board).splitlines()
    assert lines[-1] == "(cut; the whole board is in leaderboard.md of the board's run)"
    assert set(lines[:-2]) <= set(markdown(board).splitlines())


def test_guards_stand_in_a_table_of_their_own(tmp_path: Path) -> None:
    plain = make_cell("ppo", "a", [0.5, 0.7])
    seeds = tuple(
        replace(seed, guards={"quality": (0.8, last)}) for seed, last in zip(plain.seeds, (0.5, 0.7), strict=True)
    )
    board = make_board("toy@1", "d1", [replace(plain, seeds=seeds)])
    # mean .6, se sqrt((.1^2 + .1^2) / 1 / 2) = .1
    assert "| ppo | a | quality | 0.800 | 0.600 ± 0.100 |" in markdown(board)
    write_board(board, tmp_path)
    assert "<td>0.600 ± 0.100</td>" in (tmp_path / "leaderboard.html").read_text()
    assert "Guards" not in markdown(make_board("toy@1", "d1", [plain]))


def test_manifest_names_every_run_and_the_digest_of_every_file(board: Board, written: Path) -> None:
    manifest = json.loads((written / "MANIFEST.json").read_text())
    files = {str(path.relative_to(written)) for path in written.rglob("*") if path.is_file()} - {"MANIFEST.json"}
    assert manifest["sha256"].keys() == files
    for name, digest in manifest["sha256"].items():
        assert hashlib.sha256((written / name).read_bytes()).hexdigest() == digest, name
    assert manifest["suite_digest"] == board.digest
    assert sum(len(cell["runs"]) for cell in manifest["cells"]) == sum(
        len(cell.seeds) for entrant in board.entrants for cell in entrant.cells.values()
    )
