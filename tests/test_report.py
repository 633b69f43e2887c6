import json
import re
from html.parser import HTMLParser

import pytest

from latent_reason.errors import DataError
from latent_reason.report import plot_depth_sweep, write_report

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(1)>\"'&{{ 7*7 }}$\\frac{$\x1b[31m"
VOID = {"meta", "br"}


def make_rows(system="latent reasoner", depths=(1, 2, 4, 8, 16), task="rolling_sums"):
    return [
        {
            "system": system,
            "task": task,
            "split": "test",
            "refinement_steps": depth,
            "n": 1000,
            "exact_accuracy": share,
            "ci95": [share - 0.01, share + 0.01],
            "accuracy": share,
        }
        for depth, share in zip(depths, (0.1, 0.3, 0.7, 0.9, 0.95), strict=False)
    ]


def make_run(run_dir, *, rows=None, files=(), **fields):
    results = {"schema_version": 1, "preset": "demo", "rows": rows or make_rows()} | fields
    for name, content in {"results.json": results, **dict(files)}.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (run_dir / name).write_text(text)
    return write_report(run_dir).read_text(encoding="utf-8")


def make_sample(text, answer="3 7 6", **fields):
    step = {"refinement_steps": 4, "text": text, "correct": text == answer, "q_halt": -1.234}
    return {"prompt": "sums of 3 4 9", "answer": answer, "steps": [step]} | fields


class Page(HTMLParser):
    """Collects tags, attributes and text, and checks that tags are balanced."""

    def __init__(self, source):
        super().__init__()
        self.tags, self.attributes, self.text, self.open = set(), [], "", []
        self.feed(source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_everything_untrusted_is_escaped(tmp_path):
    rows = make_rows(HOSTILE) + make_rows("plain", (1,), task=HOSTILE)
    sample = make_sample(HOSTILE, HOSTILE + " b", prompt=HOSTILE)
    files = {
        "samples.json": [sample],
        "config.json": {HOSTILE: {HOSTILE: HOSTILE}},
        "environment.json": {HOSTILE: HOSTILE},
        "metrics.jsonl": json.dumps({"step": 1, "train/loss": 1.0, HOSTILE: HOSTILE}) + "\n",
    }
    fields = dict.fromkeys(("preset", "command", "hardware", "commit", "seed"), HOSTILE)
    source = make_run(tmp_path, rows=rows, files=files, **fields)
    page = Page(source)
    assert "<script" not in source
    assert "\x1b" not in source
    assert not page.tags & {"script", "img", "a", "link", "iframe", "object", "form"}
    assert not [name for name, _ in page.attributes if name.startswith("on") or name == "src"]
    assert page.text.count("<script>alert(1)</script>") >= 10  # shown as text
    assert "{{ 7*7 }}" in page.text


def test_page_loads_nothing(tmp_path):
    metrics = "".join(
        json.dumps({"step": s, "train/loss": 1 / s, "val/exact_accuracy": 0.5}) + "\n"
        for s in range(1, 9)
    )
    files = {"metrics.jsonl": metrics, "samples.json": [make_sample("3 7 6")]}
    source = make_run(tmp_path, files=files, halt_max_steps=8)
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    assert f'<meta http-equiv="Content-Security-Policy" content="{policy}">' in source
    outside = re.sub(r'xmlns(:xlink)?="http://www\.w3\.org/[^"]*"', "", source)
    assert "://" not in outside
    assert "@import" not in source
    links = [value for name, value in Page(source).attributes if name.endswith("href")]
    assert links and all(link.startswith("#") for link in links)


def test_pictures_have_distinct_ids_that_resolve(tmp_path):
    metrics = "".join(
        json.dumps({"step": s, "train/loss": 1 / s, "val/exact_accuracy": 0.5}) + "\n"
        for s in range(1, 9)
    )
    source = make_run(tmp_path, files={"metrics.jsonl": metrics})
    assert source.count("<svg") == 3
    ids = re.findall(r'\bid="([^"]+)"', source)
    assert len(ids) == len(set(ids))
    used = re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', source)
    assert {first or second for first, second in used} <= set(ids)


def test_results_alone_are_enough_and_the_page_is_reproducible(tmp_path):
    source = make_run(tmp_path)
    assert source.count("<svg") == 1
    assert "90.0 [89.0, 91.0]" in Page(source).text
    assert "Configuration" not in source and "q_halt" not in source
    assert make_run(tmp_path) == source


def test_no_picture_without_a_depth_sweep(tmp_path):
    assert "<svg" not in make_run(tmp_path, rows=make_rows(depths=(8,)))


def test_facts_command_and_settings_are_shown(tmp_path):
    files = {"config.json": {"train": {"lr": 0.001, "betas": [0.9, 0.95]}, "name": "x"}}
    source = make_run(
        tmp_path, files=files, command="train --seed 1", hardware="2 cores", wall_seconds=1234.5
    )
    text = Page(source).text
    for part in ("train --seed 1", "hardware 2 cores", "1,234 s", "train.lr", "[0.9, 0.95]"):
        assert part in text


def test_wrong_and_missing_tokens_are_marked(tmp_path):
    source = make_run(tmp_path, files={"samples.json": [make_sample("3 9")]})
    cell = re.search(r'<td class="answer">(.*?)</td>', source, flags=re.S)
    assert cell and cell[1].split() == ["3", "<mark>9</mark>", "<mark>_</mark>"]
    assert "-1.23" in source and "wrong" in Page(source).text


def test_right_answers_have_no_mark_and_q_halt_may_be_null(tmp_path):
    sample = make_sample("3 7 6")
    sample["steps"][0]["q_halt"] = None
    source = make_run(tmp_path, files={"samples.json": [sample]})
    assert source.count("<mark>") == 1  # the legend
    assert '<td class="right">right</td><td class="num">-</td>' in source


def test_long_tables_and_many_samples(tmp_path):
    rows = [row for i in range(300) for row in make_rows(f"system {i} " + "x" * 60)]
    samples = [make_sample("3 7 6")] * 50
    source = make_run(tmp_path, rows=rows, files={"samples.json": samples})
    assert source.count("<tr><td") >= 1500
    text = Page(source).text
    assert "The first 20 of 50" in text and "Only the first 16 systems" in text


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("samples.json", "[{}]"),
        ("samples.json", "[3]"),
        ("samples.json", '{"prompt": ""}'),
        ("samples.json", json.dumps([make_sample("3", answer=3)])),
        ("config.json", "{"),
        ("environment.json", "[]"),
        ("metrics.jsonl", '{"step": 1\n{}\n'),
    ],
)
def test_malformed_files_are_named(tmp_path, name, content):
    with pytest.raises(DataError, match=name):
        make_run(tmp_path, files={name: content})


def test_run_without_results_is_refused(tmp_path):
    with pytest.raises(DataError, match="results.json: no such file"):
        write_report(tmp_path)


def test_depth_sweep_is_a_png_with_any_name_and_depth(tmp_path):
    path = tmp_path / "sweep.png"
    names = ("_hidden", "$\\frac{", HOSTILE, "\ud800", "")
    rows = [row for name in names for row in make_rows(name)]
    rows += make_rows("no recursion", depths=(None,)) + make_rows("off", depths=(0, None))
    plot_depth_sweep(rows, path, halt_max_steps=8)
    assert path.read_bytes().startswith(b"\x89PNG")


def test_valid_answers_have_a_column_in_the_report(tmp_path):
    rows = make_rows()
    assert "valid %" not in make_run(tmp_path, rows=rows)
    rows[0]["valid_accuracy"] = 0.123
    source = make_run(tmp_path, rows=rows)
    assert "valid %</th>" in source and '<td class="num">12.3</td>' in source
