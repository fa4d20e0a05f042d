"""Pictures of every kind become the same RGB pixels; what can't be used is said why; the way to the encoder."""

from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from ltxgen.media.fit import to_encoder
from ltxgen.media.picture import picture_facts, read_picture, through_h264
from ltxgen.media.sound import BadMedia

H, W = 48, 64
RAMP = np.stack(np.broadcast_arrays(np.arange(W) * 4, np.arange(H)[:, None] * 5, 90), axis=-1).astype(np.uint8)
PHOTO = Image.fromarray(RAMP)
GREY = PHOTO.convert("L")


def saved(path: Path, image: Image.Image, **options) -> Path:
    image.save(path, **options)
    return path


def pixels(path: Path) -> np.ndarray:
    read = read_picture(path).pixels
    assert read.dtype == torch.uint8
    return read.numpy()


def with_alpha(image: Image.Image, alpha: int) -> Image.Image:
    image = image.copy()
    image.putalpha(alpha)
    return image


def sixteen_bits(image: Image.Image) -> Image.Image:
    return Image.fromarray(np.asarray(image).astype(np.uint16) * 256 + 200)


@pytest.mark.parametrize(
    ("name", "image", "options", "wanted"),
    [
        ("rgb.png", PHOTO, {}, PHOTO),
        ("lossless.webp", PHOTO, {"lossless": True}, PHOTO),
        ("opaque.png", with_alpha(PHOTO, 255), {}, PHOTO),
        ("glass.png", with_alpha(PHOTO, 7), {}, PHOTO),
        ("grey.png", GREY, {}, GREY),
        ("grey_glass.png", with_alpha(GREY, 7), {}, GREY),
        ("grey16.png", sixteen_bits(GREY), {}, GREY),
        ("palette.png", PHOTO.quantize(16), {"transparency": 3}, PHOTO.quantize(16)),
        ("black_and_white.png", PHOTO.convert("1"), {}, PHOTO.convert("1")),
        ("bits16.tiff", sixteen_bits(GREY), {}, GREY),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_every_kind_is_read_as_rgb(tmp_path: Path, name: str, image: Image.Image, options: dict, wanted: Image.Image):
    path = saved(tmp_path / name, image, **options)
    np.testing.assert_array_equal(pixels(path), np.asarray(wanted.convert("RGB")))


def test_colour_of_16_bits(tmp_path: Path):
    """Pillow writes none; this one is by hand, two pixels of 16 bits each."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    row = b"\0" + struct.pack(">6H", 0x12FF, 0x3400, 0xFFFF, 0, 0x80FF, 0x0100)
    header = struct.pack(">2I5B", 2, 1, 16, 2, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(row)) + chunk(b"IEND", b"")
    (tmp_path / "a.png").write_bytes(content)
    assert pixels(tmp_path / "a.png").tolist() == [[[0x12, 0x34, 0xFF], [0, 0x80, 1]]]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_turns_a_picture_upright(tmp_path: Path, orientation: int):
    """How a camera stores an upright picture for each value of the tag (EXIF 2.32, Orientation)."""
    stored = {
        1: RAMP,
        2: RAMP[:, ::-1],
        3: RAMP[::-1, ::-1],
        4: RAMP[::-1],
        5: RAMP.transpose(1, 0, 2),
        6: np.rot90(RAMP),
        7: RAMP[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(RAMP, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(tmp_path / "a.png", Image.fromarray(np.ascontiguousarray(stored)), exif=exif)
    np.testing.assert_array_equal(pixels(path), RAMP)


def test_colours_of_a_profile(tmp_path: Path):
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
    path = saved(tmp_path / "srgb.png", PHOTO, icc_profile=srgb.tobytes())
    np.testing.assert_array_equal(pixels(path), RAMP)
    # A profile whose first and third primary are exchanged: what it calls red is blue in sRGB.
    content = bytearray(srgb.tobytes())
    red, blue = content.index(b"rXYZ"), content.index(b"bXYZ")
    content[red : red + 4], content[blue : blue + 4] = b"bXYZ", b"rXYZ"
    path = saved(tmp_path / "swapped.png", PHOTO, icc_profile=bytes(content))
    np.testing.assert_allclose(pixels(path).astype(int), RAMP[..., ::-1].astype(int), atol=1)
    # One for other pixels than these says nothing of them.
    path = saved(tmp_path / "grey.png", GREY, icc_profile=srgb.tobytes())
    np.testing.assert_array_equal(pixels(path)[..., 0], np.asarray(GREY))


def test_facts_say_whether_pixels_are_see_through(tmp_path: Path):
    opaque, glass = (saved(tmp_path / f"{alpha}.png", with_alpha(PHOTO, alpha)) for alpha in (255, 254))
    assert (picture_facts(opaque).width, picture_facts(opaque).height) == (W, H)
    assert not picture_facts(opaque).see_through
    assert picture_facts(glass).see_through


def test_facts_follow_the_file(tmp_path: Path):
    path = saved(tmp_path / "a.png", PHOTO)
    assert picture_facts(path).width == W
    saved(path, PHOTO.resize((2 * W, H)))
    os.utime(path, ns=(1, 1))
    assert picture_facts(path).width == 2 * W


def broken(name: str) -> bytes:
    whole = io.BytesIO()
    PHOTO.save(whole, "png")
    return {"cut.png": whole.getvalue()[:-60], "empty.png": b"", "text.png": b"a text"}[name]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cut.png", "can't be read as a picture"),
        ("empty.png", "can't be read as a picture (cannot identify image file)"),
        ("text.png", "can't be read as a picture (cannot identify image file)"),
        ("none.png", "can't be read as a picture (No such file or directory)"),
        ("small.png", "is 31x40 pixels, must have 32 a side at least"),
        ("float.tiff", "holds floating-point pixels"),
        ("deep.tiff", "holds pixels of more than 16 bits"),
        ("profile.png", "has a colour profile that can't be used"),
    ],
)
def test_what_cannot_be_used(tmp_path: Path, name: str, message: str):
    path = tmp_path / name
    if name in ("cut.png", "empty.png", "text.png"):
        path.write_bytes(broken(name))
    elif name == "small.png":
        saved(path, PHOTO.resize((31, 40)))
    elif name == "float.tiff":
        saved(path, PHOTO.convert("F"))
    elif name == "deep.tiff":
        saved(path, Image.fromarray(np.full((H, W), 70_000, np.int32)))
    elif name == "profile.png":
        saved(path, PHOTO, icc_profile=b"no profile" * 20)
    with pytest.raises(BadMedia) as caught:
        picture_facts(path)
    assert message in str(caught.value)


def test_h264_loses_what_its_crf_says():
    source = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (33, 47, 3), dtype=np.uint8))
    assert through_h264(source, 0) is source
    errors = []
    for crf in (10, 33):
        through = through_h264(source, crf)
        assert through.shape == (32, 46, 3)
        errors.append((through.float() - source[:32, :46].float()).abs().mean().item())
    assert errors[0] < errors[1]
    smooth = torch.from_numpy(RAMP)
    assert (through_h264(smooth, 10).float() - smooth.float()).abs().mean() < 4


def bilinear(channel: np.ndarray, height: int, width: int) -> np.ndarray:
    """Samples at pixel centres, edges repeated."""

    def weights(size: int, wanted: int) -> np.ndarray:
        at = np.clip((np.arange(wanted) + 0.5) * size / wanted - 0.5, 0, size - 1)
        matrix = np.zeros((wanted, size))
        low = np.minimum(at.astype(int), size - 2)
        matrix[np.arange(wanted), low] += 1 - (at - low)
        matrix[np.arange(wanted), low + 1] += at - low
        return matrix

    H, W = channel.shape
    return weights(H, height) @ channel @ weights(W, width).T


@pytest.mark.parametrize(
    ("fit", "scaled", "cut", "inside"),
    [
        # 64x48 to 96x32: covering takes 96x72 and the middle 32 rows, containing 43x32 in the middle of 96 columns.
        ("cover", (72, 96), np.s_[20:52, :], np.s_[:, :]),
        ("contain", (32, 43), np.s_[:, :], np.s_[:, 26:69]),
        ("stretch", (32, 96), np.s_[:, :], np.s_[:, :]),
    ],
)
def test_frames_are_made_to_fit(fit, scaled, cut, inside):
    frames = torch.from_numpy(np.stack([RAMP, RAMP[::-1]] * 5))  # more than are worked on at once
    fitted = to_encoder(frames, 32, 96, fit)
    assert fitted.shape == (1, 3, 10, 32, 96)
    for frame, source in enumerate((RAMP, RAMP[::-1])):
        for channel in range(3):
            wanted = np.full((32, 96), -1.0)
            wanted[inside] = bilinear(source[..., channel].astype(float), *scaled)[cut] / 127.5 - 1
            np.testing.assert_allclose(fitted[0, channel, frame].numpy(), wanted, atol=1e-5)
            assert torch.equal(fitted[0, channel, frame], fitted[0, channel, frame + 8])
