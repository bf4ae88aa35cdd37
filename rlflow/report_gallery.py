"""The sample gallery of a page: images, playing rollout videos and completions, all inline."""

from __future__ import annotations

import base64
import csv
import io
from html import escape
from pathlib import Path

from rlflow.leaderboard_samples import Gallery, Sample

IMAGES = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".gif": "image/gif", ".webp": "image/webp"}
VIDEOS = {".mp4": "video/mp4", ".webm": "video/webm"}
LOOKED_AT = {*IMAGES, *VIDEOS, ".csv"}  # the other files, settings and notes, are folded up
MAX_ROWS = 12
MAX_CHARACTERS = 300
MAX_TEXT = 4000


def gallery_html(gallery: Gallery) -> str:
    """The section; a list names what was left out."""
    parts = ["<h2>Samples</h2>", '<p class="sub">Of the newest evaluation of the first seed of every cell.</p>']
    for column in dict.fromkeys(sample.column for sample in gallery.samples):
        samples = [sample for sample in gallery.samples if sample.column == column]
        seen = "".join(_figure(sample) for sample in samples if _suffix(sample) in LOOKED_AT)
        parts.append(f'<h3>{escape(column)}</h3><div class="figures">{seen}</div>')
        texts = [sample for sample in samples if _suffix(sample) not in LOOKED_AT]
        if texts:
            names = escape(", ".join(dict.fromkeys(sample.name for sample in texts)))
            folded = "".join(_figure(sample) for sample in texts)
            summary = f'<summary class="sub">{names}</summary>'
            parts.append(f'<details>{summary}<div class="figures">{folded}</div></details>')
    if gallery.left_out:
        lines = "".join(f"<li>{escape(line)}</li>" for line in gallery.left_out)
        parts.append(f'<p class="sub">Not shown:</p><ul class="notes sub">{lines}</ul>')
    return "\n".join(parts)


def _figure(sample: Sample) -> str:
    suffix = _suffix(sample)
    name = escape(f"{sample.name} of {sample.algorithm} on {sample.column}", quote=True)
    larger = '<button class="enlarge" type="button" aria-pressed="false">enlarge</button>'
    if suffix in IMAGES:
        body = f'<img alt="{name}" src="{_inline(sample, IMAGES[suffix])}">'
    elif suffix in VIDEOS:
        body = (
            f'<video title="{name}" src="{_inline(sample, VIDEOS[suffix])}" muted loop autoplay playsinline controls>'
        )
        body += "</video>"
    else:
        body = _table(sample) if suffix == ".csv" else f"<pre>{escape(_text(sample)[:MAX_TEXT])}</pre>"
    caption = f"<h4>{escape(sample.algorithm)}</h4>{larger}"
    about = f'<div class="sub">{escape(sample.about)}, {escape(sample.name)}</div>'
    return f'<figure class="sample"><figcaption>{caption}</figcaption>{about}{body}</figure>'


def _suffix(sample: Sample) -> str:
    return Path(sample.name).suffix.lower()


def _inline(sample: Sample, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(sample.content).decode()}"


def _table(sample: Sample) -> str:
    """Rows evenly spread over the file, because its first ones often answer one prompt."""
    lines = list(csv.reader(io.StringIO(_text(sample))))
    if not lines:
        return "<p>empty</p>"
    names, rows = lines[0], lines[1:]
    count = min(MAX_ROWS, len(rows))
    chosen = [rows[index * len(rows) // count] for index in range(count)]
    heads = "".join(f'<th scope="col">{escape(name)}</th>' for name in names)
    body = "".join(f"<tr>{''.join(f'<td>{_cut(text)}</td>' for text in row)}</tr>" for row in chosen)
    return (
        f'<div class="sub">{count} of {len(rows)} rows</div><div class="scroll"><table class="completions">'
        f"<thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _cut(text: str) -> str:
    return escape(text if len(text) <= MAX_CHARACTERS else f"{text[:MAX_CHARACTERS]} ...")


def _text(sample: Sample) -> str:
    return sample.content.decode("utf-8", errors="replace")
