"""Files from strangers: none runs code, reads or writes another file, tells of this machine, or exhausts it."""

from __future__ import annotations

import json
import os
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import av
import pytest
import torch
from test_recipes import write_inputs

from ltxgen.artifacts.safetensors_file import BadFile, read_header
from ltxgen.config.compose import read_recipe
from ltxgen.config.errors import Refusal
from ltxgen.config.requests import read_requests
from ltxgen.media.clip import clip_facts
from ltxgen.media.picture import read_picture
from ltxgen.media.provenance import Provenance
from ltxgen.media.read import read_video
from ltxgen.media.sound import BadMedia, read_sound
from ltxgen.recipe.state import pack
from ltxgen.recipe.store import BadEntry, Store

SECRET = "LTXGEN_TEST_SECRET"
TINY = ("model=ltx23_tiny", "request.height=64", "request.width=64", "request.num_frames=9")

# Recipes


@pytest.mark.parametrize(
    "text",
    [
        f"request: {{prompt: '${{oc.env:{SECRET}}}'}}",
        f"name: a${{oc.env:{SECRET}}}",
        f"a: oc.env\nname: '${{${{a}}:{SECRET}}}'",
        f"name: '\\\\${{oc.env:{SECRET}}}'",
        "name: '${hydra:runtime.cwd}'",
        "name: '${oc.decode:\"1\"}'",
        f"name: '${{now:${{oc.env:{SECRET}}}}}'",
        f"request: {{images: [{{path: '${{ oc.env:{SECRET} }}'}}]}}",
        f"defaults: [{{/request: '${{oc.env:{SECRET}}}'}}]",
    ],
)
def test_a_recipe_does_not_read_the_environment(text: str, run_ltxgen, tmp_path: Path, monkeypatch):
    monkeypatch.setenv(SECRET, "told")
    (tmp_path / "strange.yaml").write_text(text)
    result = run_ltxgen("--cfg", "job", "+recipe=strange.yaml", "model=ltx23_tiny", cwd=tmp_path)
    assert result.code == 2
    assert "only references to other keys and ${now:...} may stand in a recipe" in result.err
    assert "told" not in result.out + result.err


def test_references_to_other_keys_and_the_time_may_stand_in_a_recipe(tmp_path: Path):
    path = tmp_path / "r.yaml"
    path.write_text("name: x\nrequest: {seed: '${.height}', prompt: 'costs \\${oc.env:HOME}'}\n"
                    "output: {dir: 'o/${name}/${now:%H-%M}'}\nstages: {a: {crf: '${model.image_crf}'}}")  # fmt: skip
    assert read_recipe(path)[0].name == "x"


def bomb(depth: int) -> str:
    lines = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, depth)]
    return "\n".join(lines)


def test_anchors_that_stand_for_more_than_memory_holds(tmp_path: Path):
    recipe, requests = tmp_path / "bomb.yaml", tmp_path / "requests.yaml"
    recipe.write_text(bomb(30))
    with pytest.raises(Refusal, match="more than 100,000"):
        read_recipe(recipe)
    requests.write_text(bomb(30))
    with pytest.raises(Refusal, match="more than 100,000"):
        read_requests(requests)
    recipe.write_text("a: &a [*a]")
    with pytest.raises(Refusal):
        read_recipe(recipe)


@pytest.mark.parametrize("opening", ["[", "{a: "])
def test_nesting_without_an_end(tmp_path: Path, opening: str):
    path = tmp_path / "deep.yaml"
    path.write_text("a: " + opening * 20_000)
    for read in (read_recipe, read_requests):
        with pytest.raises(Refusal, match="that can be read"):
            read(path)


# Requests


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"+hydra.callbacks.x": {"_target_": "shutil.copy", "src": "a", "dst": "stolen"}}, "only the command line may"),
        ({"hydra/launcher": "joblib"}, "which only the command line may"),
        ({"++hydra.run.dir": "/tmp"}, "which only the command line may"),
        ({"output.dir": "/tmp/elsewhere"}, "a sweep has one folder"),
        ({"output": {"dir": "/tmp/elsewhere"}}, "a sweep has one folder"),
        ({"output.dir=/tmp/elsewhere,x": 1}, "which is no config field"),
        ({"request.seed=1 output.dir": "x"}, "which is no config field"),
        ({"": 1}, "which is no config field"),
        ({"--multirun": 1}, "which is no config field"),
        ({"request.images": [{"path:'${oc.env:HOME}',strength": 1}]}, "whose keys are no names of fields"),
    ],
)
def test_a_row_says_what_is_made_and_nothing_else(tmp_path: Path, row: dict, message: str):
    path = tmp_path / "requests.jsonl"
    path.write_text(json.dumps({"prompt": "x"} | row))
    with pytest.raises(Refusal, match=message):
        read_requests(path)


def test_a_cell_is_no_reference(tmp_path: Path):
    path = tmp_path / "requests.csv"
    path.write_text("prompt,name\n${oc.env:HOME},${oc.env:HOME}\n")
    with pytest.raises(Refusal, match="would be read as a reference"):
        read_requests(path)
    path.write_text("prompt,name\n${oc.env:HOME},x\n")
    assert read_requests(path) == [["request.prompt='\\${oc.env:HOME}'", "name=x"]]


# Sounds and videos


@pytest.fixture
def media(tmp_path: Path) -> Path:
    write_inputs(tmp_path)
    clip = tmp_path / "clip.mp4"
    (tmp_path / "script.mp4").write_text("ffconcat version 1.0\nfile clip.mp4\n")
    (tmp_path / "list.m3u8").write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\n{clip}\n#EXT-X-ENDLIST\n")
    (tmp_path / "web.m3u8").write_text("#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\nhttp://127.0.0.1:9/x.ts\n")
    (tmp_path / "session.sdp").write_text("v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nm=video 9 RTP/AVP 96\n")
    return tmp_path


@pytest.mark.parametrize("read", [clip_facts, read_video, read_sound], ids=lambda read: read.__name__)
@pytest.mark.parametrize(
    "name",
    [
        *("script.mp4", "list.m3u8", "web.m3u8", "session.sdp"),
        *("concat:clip.mp4|clip.mp4", "subfile,,start,0,end,0,,:clip.mp4", "http://127.0.0.1:9/x.mp4"),
    ],
)
def test_a_file_that_names_others_is_not_followed(media: Path, monkeypatch, name: str, read: Callable):
    monkeypatch.chdir(media)
    read("clip.mp4")  # which can be read, but for its own name only
    with pytest.raises((BadMedia, OSError, av.FFmpegError)) as caught:
        read(name)
    if name in ("script.mp4", "list.m3u8"):
        assert "it is of no kind that is read here" in str(caught.value)


def test_a_run_from_a_script_is_refused(media: Path, run_ltxgen):
    for words in (
        ("+recipe=ltx23_retake", "request.source.path=script.mp4", "request.span=[0.1,0.3]", "model=ltx23_tiny"),
        ("+recipe=ltx23_audio_to_video", *TINY, "request.audio.path=script.mp4"),
        ("+recipe=ltx23_ic_lora", *TINY, "request.references=[{path: script.mp4}]"),
    ):
        result = run_ltxgen("plan", *words, cwd=media)
        assert result.code == 2
        assert "script.mp4: can't be read (it is of no kind that is read here" in result.err


def test_what_a_video_says_of_itself_is_shown_as_text(media: Path, run_ltxgen):
    escape = "\x1b]0;title\x07\x1b[2J[red]x[/red]"
    manifest = {"recipe": escape, "seconds": escape, "notes": [escape]}
    said = Provenance("request: {prompt: '[bold]a'}\nstages: {}\n", manifest)
    with av.open(str(media / "clip.mp4")) as source, av.open(str(media / "said.mp4"), "w") as target:
        target.metadata["comment"] = said.as_comment()
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(source.streams.video[0]):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    for words in ((), ("--recipe",)):
        result = run_ltxgen("show", "said.mp4", *words, cwd=media)
        assert result.code in (0, 2)
        assert "\x1b" not in result.out + result.err
        assert "\x07" not in result.out + result.err
        assert "Traceback" not in result.err


def test_pictures_that_would_fill_memory(tmp_path: Path):
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    path = tmp_path / "bomb.png"
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 2**31 - 1, 2**31 - 1, 8, 2, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(b"\x00" * 100))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + pixels + chunk(b"IEND", b""))
    with pytest.raises(BadMedia, match="can't be read as a picture"):
        read_picture(path)
    text = chunk(b"zTXt", b"Comment\x00\x00" + zlib.compress(b"\x00" * 2**27))
    small = chunk(b"IHDR", struct.pack(">IIBBBBB", 64, 64, 8, 0, 0, 0, 0)) + text
    pixels = chunk(b"IDAT", zlib.compress(b"\x00" * 65 * 64))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + small + pixels + chunk(b"IEND", b""))
    with pytest.raises(BadMedia, match="can't be read as a picture"):
        read_picture(path)


# Weights and the cache


def safetensors(header: bytes, length: int | None = None, data: bytes = b"") -> bytes:
    return (len(header) if length is None else length).to_bytes(8, "little") + header + data


def entry(**fields: object) -> bytes:
    return json.dumps({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **fields}}).encode()


@pytest.mark.parametrize(
    "content",
    [
        safetensors(b"{}", 2**63),
        safetensors(b"{}", 2**40),
        safetensors(b"[" * 100_000),
        safetensors(b'{"a":' * 50_000),
        safetensors(entry(shape=[2**62, 2**62]), data=bytes(8)),
        safetensors(entry(shape=[-2]), data=bytes(8)),
        safetensors(entry(data_offsets=[-8, 0]), data=bytes(8)),
        safetensors(entry(data_offsets=[0, 2**60]), data=bytes(8)),
        safetensors(entry(data_offsets=[8, 0]), data=bytes(8)),
        safetensors(entry(dtype="pickle"), data=bytes(8)),
        safetensors(b'{"__metadata__": [1], "a": 2}'),
    ],
    ids=range(11),
)
def test_weights_that_lie_about_themselves(tmp_path: Path, content: bytes):
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(BadFile):
        read_header(path)


def test_metadata_without_an_end(tmp_path: Path, tiny_set, run_ltxgen):
    header = json.dumps({"__metadata__": {"config": "[" * 100_000}}).encode()
    (tmp_path / "model.safetensors").write_bytes(safetensors(header))
    words = ("+recipe=ltx23_one_stage", *TINY, "artifacts.checkpoint.path=model.safetensors")
    result = run_ltxgen("plan", *words, cwd=tmp_path)
    assert result.code == 2
    assert "Traceback" not in result.err
    assert "its metadata `config` is no JSON" in result.err


def test_a_link_in_the_cache_is_not_written_through(tmp_path: Path):
    precious = tmp_path / "precious.txt"
    precious.write_text("mine")
    store, key = Store(tmp_path / "cache", max_bytes=0), "a" * 64
    store.folder.mkdir()
    store.path(key).symlink_to(precious)
    with pytest.raises(BadEntry):
        store.load(key)
    kept = Store(store.folder)
    kept.save(key, pack(torch.zeros(3)), {})
    assert not store.path(key).is_symlink()
    assert precious.read_text() == "mine"
    shutil.copyfile(store.path(key), tmp_path / "own.safetensors")
    os.remove(store.path(key))
    store.path(key).symlink_to(precious)
    store.evict()
    assert (precious.exists(), store.path(key).is_symlink()) == (True, False)
