"""The gallery's HTML: inline, escaped, cut."""

from __future__ import annotations

import base64
import re
from pathlib import Path

from rlflow.leaderboard_samples import Gallery, Sample
from rlflow.report import write_board
from rlflow.report_gallery import MAX_CHARACTERS, MAX_ROWS, gallery_html
from tests.boards import full_board


def sample(name: str, content: bytes, algorithm: str = "ppo") -> Sample:
    return Sample(
        algorithm=algorithm, column="image/shapes", about="seed 0 after 9 rollouts", name=name, content=content
    )


def html(*samples: Sample, left_out: tuple[str, ...] = ()) -> str:
    return gallery_html(Gallery(samples=samples, left_out=left_out))


def test_images_and_videos_are_inline() -> None:
    text = html(sample("images.png", b"picture"), sample("rollout.mp4", b"film"))
    assert f'<img alt="images.png of ppo on image/shapes" src="data:image/png;base64,{encoded(b"picture")}">' in text
    (video,) = re.findall(r"<video [^>]*>", text)
    assert f'src="data:video/mp4;base64,{encoded(b"film")}"' in video
    assert video.endswith(" muted loop autoplay playsinline controls>")


def encoded(content: bytes) -> str:
    return base64.b64encode(content).decode()


def test_rows_of_a_table_are_spread_and_cut() -> None:
    lines = ["prompt,completion", *(f"{index // 4},{'x' * (MAX_CHARACTERS + index)}" for index in range(48))]
    text = html(sample("completions.csv", "\n".join(lines).encode()))
    assert f"{MAX_ROWS} of 48 rows" in text
    rows = re.findall(r"<tr><td>(\d+)</td><td>(x+)( \.\.\.)?</td></tr>", text)
    # every fourth row: one of each of the twelve prompts; only the first is not longer than the limit
    assert [int(prompt) for prompt, _, _ in rows] == list(range(12))
    assert {len(shown) for _, shown, _ in rows} == {MAX_CHARACTERS}
    assert [bool(cut) for _, _, cut in rows] == [False] + [True] * 11
    assert "0 of 0 rows" in html(sample("completions.csv", b"prompt\n"))


def test_settings_are_folded_up_after_what_is_looked_at() -> None:
    text = html(sample("generation.json", b'{"steps": 20}'), sample("images.png", b"picture"))
    shown, folded = text.split("<details>")
    assert "images.png" in shown
    assert "generation.json" not in shown
    assert folded.startswith('<summary class="sub">generation.json</summary>')
    assert "&quot;steps&quot;: 20" in folded
    assert "<details>" not in html(sample("images.png", b"picture"))


def test_texts_and_names_are_escaped() -> None:
    text = html(
        sample("a.csv", b"prompt\n<script>alert(1)</script>\n"),
        sample("a.txt", b"<b>bold</b>", algorithm='<i>"ppo"</i>'),
        left_out=("<u>gone</u>",),
    )
    assert not re.search(r"<script|<b>|<i>|<u>", text)
    assert "<li>&lt;u&gt;gone&lt;/u&gt;</li>" in text


def test_the_report_page_holds_the_gallery_and_the_board_does_not(tmp_path: Path) -> None:
    gallery = Gallery(samples=(sample("images.png", b"picture"),), left_out=())
    files = {path.name: path for path in write_board(full_board(), tmp_path / "report", gallery)}
    assert encoded(b"picture") in files["report.html"].read_text()
    assert "leaderboard.html" not in files
    again = write_board(full_board(), tmp_path / "again", gallery)
    assert [path.read_bytes() for path in again] == [path.read_bytes() for path in files.values()]
