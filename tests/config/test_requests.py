"""Requests from files, through Hydra's own parser: every text arrives as it stood."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import yaml

from ltxgen.config import compose
from ltxgen.config.errors import Refusal
from ltxgen.config.requests import read_requests

PROMPTS = [
    "rain, at night",
    "a \"quoted\" word and 'another'",
    "key=value # no comment",
    "一只猫在雨里，走过石桥",
    "ends in a backslash \\",
    "costs ${5} or \\${six}",
    "[a] {b: c} 'd",
    "null",
    "42",
    " leading and trailing ",
]


def requests_of(jobs: list[list[str]]) -> list[dict]:
    return [compose.compose_config(["+recipe=ltx23_two_stage", *job])["request"] for job in jobs]


@pytest.mark.parametrize("kind", ["jsonl", "yaml", "csv", "columns", "txt"])
def test_every_text_arrives_as_it_stood(tmp_path: Path, kind: str):
    prompts = [prompt for prompt in PROMPTS if "${" not in prompt]
    rows = [{"prompt": prompt, "seed": seed} for seed, prompt in enumerate(prompts)]
    path = tmp_path / f"requests.{'yaml' if kind == 'columns' else kind}"
    if kind == "jsonl":
        path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n\n")
    elif kind == "yaml":
        path.write_text(yaml.safe_dump(rows, allow_unicode=True))
    elif kind == "columns":
        path.write_text(yaml.safe_dump({"prompt": prompts, "seed": [row["seed"] for row in rows], "fps": 24}))
    elif kind == "txt":
        path.write_text("\n".join(prompts) + "\n")
    else:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, ["prompt", "seed"])
            writer.writeheader()
            writer.writerows(rows)
    found = requests_of(read_requests(path))
    assert [request["prompt"] for request in found] == prompts
    if kind != "txt":
        assert [request["seed"] for request in found] == [row["seed"] for row in rows]


def test_texts_that_look_like_interpolations(tmp_path: Path):
    path = tmp_path / "requests.jsonl"
    path.write_text(json.dumps({"prompt": "costs ${5} or \\${six}"}))
    (request,) = requests_of(read_requests(path))
    assert request["prompt"] == "costs ${5} or \\${six}"


def test_fields_of_every_kind(tmp_path: Path):
    path = tmp_path / "requests.yaml"
    image = {"path": "a, b.png", "frame": 0, "strength": 0.5}
    row = {"stages.base.steps": 3, "memory": "swap", "images": [image], "fps": "24000/1001", "negative_prompt": None}
    path.write_text(yaml.safe_dump([row]))
    (job,) = read_requests(path)
    config = compose.compose_config(["+recipe=ltx23_two_stage", *job])
    assert config["stages"]["base"]["steps"] == 3
    assert config["memory"]["policy"] == "swap"
    assert config["request"]["images"] == [image]
    assert config["request"]["fps"] == "24000/1001"
    assert config["request"]["negative_prompt"] is None


def test_product(tmp_path: Path):
    path = tmp_path / "requests.yaml"
    path.write_text(yaml.safe_dump({"prompt": ["a", "b, c"], "seed": [1, 2, 3]}))
    found = [(request["prompt"], request["seed"]) for request in requests_of(read_requests(path, "product"))]
    assert found == [(prompt, seed) for prompt in ("a", "b, c") for seed in (1, 2, 3)]
    rows = tmp_path / "rows.csv"
    rows.write_text("prompt,seed\na,1\nb,2\nb,\n")
    found = [(request["prompt"], request["seed"]) for request in requests_of(read_requests(rows, "product"))]
    assert found == [("a", 1), ("a", 2), ("b", 1), ("b", 2)]


@pytest.mark.parametrize(
    ("name", "text", "mode", "message"),
    [
        ("a.jsonl", "{'prompt'", "zip", "is no jsonl that can be read: "),
        ("a.jsonl", "[1]", "zip", "row 1 must be a mapping of config fields to values"),
        ("a.yaml", "prompt: [a, b, c]\nseed: [1, 2]", "zip", "unequal lengths (prompt 3, seed 2)"),
        ("a.yaml", "just text", "zip", "must be a list of mappings, or one mapping"),
        ("a.csv", "prompt,seed\na,1,2\n", "zip", "row 1 has another number of cells than the first line"),
        ("a.csv", "prompt,seed\n", "zip", "holds no request"),
        ("a.txt", "a\n", "zap", "requests.mode = zap: must be one of zip, product; did you mean 'zip'?"),
    ],
)
def test_refusals(tmp_path: Path, name: str, text: str | None, mode: str, message: str):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(Refusal) as caught:
        read_requests(tmp_path / name, mode)
    assert message in str(caught.value)


KINDS = ".jsonl, .yaml, .yml, .csv, .txt"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("promts.csv", "can't be read (No such file or directory); give the path of one that ends in {}; did you mean"),
        ("folder.csv", "can't be read (Is a directory); give the path of one that ends in {}"),
        ("rows.xlsx", "must end in one of {}; "),
        ("rows", "must end in one of {}; "),
    ],
)
def test_a_file_that_is_none_says_which_would_be(run_ltxgen, tiny_words, tmp_path: Path, name: str, message: str):
    (tmp_path / "prompts.csv").touch()
    (tmp_path / "folder.csv").mkdir()
    told = run_ltxgen(*tiny_words, f"requests={name}", cwd=tmp_path)
    assert told.code == 2
    assert told.err.startswith(f"ltxgen: requests = {name}: {message.format(KINDS)}")
    assert told.err.count("\n") == 1
    assert ("did you mean 'prompts.csv'?" in told.err) == (name == "promts.csv")
