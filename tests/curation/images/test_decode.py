"""Decoding: limits from the header, orientation, every mode by closed form, the odd-image suite."""

from __future__ import annotations

import contextlib
import io
import json
import pickle
import struct
import subprocess
import sys
import types
import zipfile
import zlib
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from places import SHARED

from granary.curation.images.containers import can_read_heif, without_text
from granary.curation.images.decode import FORMATS, DecodeError, decode, to_rgb
from granary.curation.images.limits import DecodeLimits

# pytest replaces our warning filters; test_nothing_is_written_to_the_terminal looks at ours.
pytestmark = pytest.mark.filterwarnings("ignore:::PIL")
LIMITS = DecodeLimits()
needs_data = pytest.mark.skipif(not SHARED.exists(), reason="the real-image folder ../shared is not here")


def encode(image, file_format="PNG", **options):
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def pixels(data, **options):
    return np.asarray(decode(data, LIMITS, **options).image)


def kind_of(data, limits=LIMITS):
    with pytest.raises(DecodeError) as raised:
        decode(data, limits)
    assert str(raised.value)
    return raised.value.kind


def noise(width, height, seed=0):
    coarse = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def png_chunk(name, body):
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(width, height, rows=b"", bits=1, colour=0, extra=b""):
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + extra + png_chunk(b"IDAT", rows) + png_chunk(b"IEND", b"")


def test_png_bomb_is_refused_from_the_header():
    packer = zlib.compressobj(9)
    rows = packer.compress(bytes(3751 * 30_000)) + packer.flush()
    assert kind_of(png(30_000, 30_000, rows)) == "TooManyPixels"
    assert kind_of(png(30_000, 30_000)) == "TooManyPixels"  # no pixel data at all: it never got that far
    assert kind_of(png(10_001, 10_000)) == "TooManyPixels"
    assert kind_of(png(10_000, 10_000)) != "TooManyPixels"


def test_limits_of_bytes_and_pixels():
    data = encode(noise(20, 10))
    assert decode(data, DecodeLimits(max_pixels=200, max_bytes=len(data))).image.size == (20, 10)
    assert kind_of(data, DecodeLimits(max_pixels=199)) == "TooManyPixels"
    assert kind_of(data, DecodeLimits(max_bytes=len(data) - 1)) == "TooManyBytes"
    assert kind_of(b"") == "EmptyFile"
    assert kind_of(b"hello, world") == "UnidentifiedImageError"
    for fields in (
        {"max_pixels": 0},
        {"max_pixels": 10**9},
        {"max_bytes": -1},
        {"max_frames": 0},
        {"frames": 3},
    ):
        with pytest.raises(ValueError, match="validation error"):
            DecodeLimits(**fields)


@pytest.mark.parametrize("file_format", ["GIF", "TIFF", "PNG", "WEBP"])
def test_frames_are_counted_and_limited(file_format):
    frames = [noise(16, 16, seed) for seed in range(5)]
    data = encode(frames[0], file_format, save_all=True, append_images=frames[1:])
    with Image.open(io.BytesIO(data)) as opened:
        assert decode(data, LIMITS).frames == opened.n_frames == 5
    assert kind_of(data, DecodeLimits(max_frames=4)) == "TooManyFrames"
    alone = decode(encode(frames[0], file_format), LIMITS)
    assert alone.frames == 1
    if file_format in ("TIFF", "PNG"):
        np.testing.assert_array_equal(pixels(data), np.asarray(frames[0]))


def test_hostile_frame_tables_are_cheap():
    gif = encode(noise(8, 8), "GIF")
    frame = gif[gif.index(b"\x2c\0\0\0\0") : -1]
    assert kind_of(gif[:-1] + frame * 200_000) == "TooManyFrames"
    tiff = bytearray(encode(noise(8, 8), "TIFF"))
    (start,) = struct.unpack_from("<I", tiff, 4)
    (entries,) = struct.unpack_from("<H", tiff, start)
    struct.pack_into("<I", tiff, start + 2 + 12 * entries, start)  # a directory that is its own successor
    assert decode(bytes(tiff), LIMITS).frames == 1


def test_scan_bomb_is_refused_from_its_markers():
    data = encode(noise(2000, 2000), "JPEG", progressive=True)
    scan = data[data.rindex(b"\xff\xda") : -2]
    assert decode(data, LIMITS).image.size == (2000, 2000)
    assert kind_of(data[:-2] + scan * 300 + data[-2:]) == "TooManyScans"


def test_orientation_as_pillow_transposes_it():
    upright = noise(48, 32)
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        for file_format in ("JPEG", "PNG", "TIFF", "WEBP"):
            data = encode(upright, file_format, exif=exif)
            decoded = decode(data, LIMITS)
            with Image.open(io.BytesIO(data)) as opened:
                wanted = ImageOps.exif_transpose(opened).convert("RGB")
            np.testing.assert_array_equal(np.asarray(decoded.image), np.asarray(wanted))
            size = (48, 32) if orientation < 5 else (32, 48)
            assert (decoded.width, decoded.height) == decoded.image.size == size
            assert decoded.format == file_format


def test_dct_scaling_never_goes_below_the_side():
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encode(noise(1000, 600), "JPEG", exif=exif)
    for side, short in [
        (600, 600),
        (301, 600),
        (300, 300),
        (150, 150),
        (76, 150),
        (75, 75),
        (10, 75),
        (900, 600),
    ]:
        decoded = decode(data, LIMITS, side)
        assert (min(decoded.image.size), decoded.width, decoded.height) == (short, 600, 1000)
        assert decoded.image.size[0] < decoded.image.size[1]
    small = pixels(data, side=75).astype(float)
    wanted = np.asarray(decode(data, LIMITS).image.resize((75, 125), Image.Resampling.BOX), float)
    assert np.abs(small - wanted).mean() < 2


def test_broken_exif_does_not_spoil_a_picture():
    data = encode(noise(8, 8), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff" + b"\xff" * 40)
    assert decode(data, LIMITS).image.size == (8, 8)


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "GIF", "TIFF", "WEBP", "BMP"])
def test_truncated_files_are_errors(file_format):
    data = encode(noise(64, 64), file_format)
    for keep in (0.3, 0.6, 0.9):
        with pytest.raises(DecodeError):
            decode(data[: int(len(data) * keep)], LIMITS)


def grey(values):
    return np.repeat(values[..., None], 3, axis=2)


def test_sixteen_bit_grey_is_scaled_and_not_clipped():
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    wanted = grey(np.rint(values / 257).astype(np.uint8))
    for file_format in ("PNG", "TIFF", "JPEG2000", "PPM"):
        options = {"irreversible": False} if file_format == "JPEG2000" else {}
        np.testing.assert_array_equal(pixels(encode(Image.fromarray(values), file_format, **options)), wanted)


@pytest.mark.parametrize("scale", [1.0, 255.0, 4000.0])
def test_float_grey(scale):
    values = np.linspace(0, scale, 1024, dtype=np.float32).reshape(32, 32)
    values[0, 5] = np.nan
    wanted = grey(np.rint(np.nan_to_num(values / scale, nan=1.0) * 255))
    assert np.abs(pixels(encode(Image.fromarray(values), "TIFF")) - wanted).max() <= 1


def test_thirty_two_bit_integers_use_the_range_they_have():
    values = np.linspace(-1000, 100_000, 1024).astype(np.int32).reshape(32, 32)
    wanted = grey(np.rint((values + 1000.0) / 101_000 * 255))
    assert np.abs(pixels(encode(Image.fromarray(values), "TIFF")) - wanted).max() <= 1
    constant = np.full((4, 4), 70_000, np.int32)
    assert len(np.unique(pixels(encode(Image.fromarray(constant), "TIFF")))) == 1


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "P"])
def test_alpha_is_laid_over_white(mode):
    alpha = np.tile(np.arange(256, dtype=np.uint8), (4, 1))
    level = np.full((4, 256), 40, np.uint8)
    if mode in ("RGBA", "LA"):
        channels = [level] * (3 if mode == "RGBA" else 1) + [alpha]
        data = encode(Image.fromarray(np.stack(channels, axis=2)))
    else:
        indexed = Image.fromarray(alpha).convert("P")
        indexed.putpalette([40] * 768)
        data = encode(indexed, transparency=bytes(range(256)))
    wanted = grey(40 * (alpha / 255) + 255 * (1 - alpha / 255))
    assert np.abs(pixels(data) - wanted).max() <= 1


def drawing(shape, level=255, mode="RGBA"):
    """A drawing of one grey on a transparent ground; shape: where it is."""
    alpha = (shape * 255).astype(np.uint8)
    channels = [np.full(shape.shape, level, np.uint8)] * (3 if mode == "RGBA" else 1)
    return encode(Image.fromarray(np.stack([*channels, alpha], axis=2)))


def shapes():
    """Six different drawings, 64 x 64."""
    y, x = np.mgrid[:64, :64]
    distance = np.hypot(x - 32, y - 32)
    return [x < 32, y < 20, x > y, distance < 20, (distance > 12) & (distance < 24), (x // 8 + y // 8) % 2 == 0]


@pytest.mark.parametrize(("level", "mode"), [(255, "RGBA"), (255, "LA"), (240, "RGBA")])
def test_white_drawings_on_a_transparent_ground_stay_different_pictures(level, mode):
    drawn = [pixels(drawing(shape, level, mode)) for shape in shapes()]
    assert len({picture.tobytes() for picture in drawn}) == 6
    for picture, shape in zip(drawn, shapes(), strict=True):
        assert (picture[~shape] == 0).all()
        assert (picture[shape] == level).all()


def test_the_ground_stays_white_under_all_that_is_seen_on_it():
    for shape in shapes():
        for level in (0, 128, 223):
            assert (pixels(drawing(shape, level))[~shape] == 255).all()
    empty = np.zeros((64, 64), bool)
    assert (pixels(drawing(empty)) == 255).all()
    assert (pixels(drawing(~empty)) == 255).all()
    large = np.zeros((3000, 2000), bool)
    large[2900:] = True
    assert pixels(drawing(large))[[0, 2950], 0].tolist() == [[0] * 3, [255] * 3]


@pytest.mark.parametrize("name", [b"zTXt", b"tEXt", b"iTXt"])
def test_long_text_chunks_do_not_spoil_a_picture(name):
    words = b"word " * 500_000
    packed = b"key\0\0" + zlib.compress(words)
    bodies = {b"zTXt": packed, b"tEXt": b"key\0" + words * 30, b"iTXt": b"key\0\1\0\0\0" + zlib.compress(words)}
    whole = encode(noise(24, 16))
    with_text = whole[:33] + png_chunk(name, bodies[name]) + whole[33:]
    assert (pixels(with_text) == pixels(whole)).all()
    assert kind_of(with_text[:-60])


def heic(brand=b"heic", compatible=b"mif1"):
    return struct.pack(">I", 20) + b"ftyp" + brand + bytes(4) + compatible + encode(noise(24, 16))


@pytest.fixture
def heif_plugin(monkeypatch):
    """A plugin that reads the PNG which `heic` puts behind the first box, as pillow-heif reads what is there."""
    from PIL import PngImagePlugin

    def opener(file, name):
        image = PngImagePlugin.PngImageFile(io.BytesIO(file.read()[20:]))
        image.format = "HEIF"
        return image

    plugin = types.ModuleType("pillow_heif")
    plugin.register_heif_opener = lambda: Image.register_open("HEIF", opener, lambda head: head[4:8] == b"ftyp")
    monkeypatch.setitem(sys.modules, "pillow_heif", plugin)
    can_read_heif.cache_clear()
    yield
    can_read_heif.cache_clear()


def test_heic_is_read_by_its_plugin(heif_plugin):
    for brands in ((b"heic", b"mif1"), (b"mif1", b"heic"), (b"heix", b"mif1")):
        decoded = decode(heic(*brands), LIMITS)
        assert (decoded.format, decoded.width, decoded.height) == ("HEIF", 24, 16)
        assert (np.asarray(decoded.image) == np.asarray(noise(24, 16))).all()


def test_heic_without_its_plugin_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    can_read_heif.cache_clear()
    with pytest.raises(DecodeError, match=r"pip install 'granary-data\[heic\]'") as raised:
        decode(heic(), LIMITS)
    can_read_heif.cache_clear()
    assert raised.value.kind == "NoHeicPlugin"
    assert kind_of(heic(b"avif", b"mif1")) != "NoHeicPlugin"
    assert kind_of(heic(b"mif1", b"avif")) != "NoHeicPlugin"


def test_a_real_heic_file():
    pillow_heif = pytest.importorskip("pillow_heif")
    can_read_heif.cache_clear()
    file = io.BytesIO()
    pillow_heif.from_pillow(noise(64, 48)).save(file, quality=95)
    decoded = decode(file.getvalue(), LIMITS)
    assert (decoded.format, decoded.width, decoded.height) == ("HEIF", 64, 48)


@pytest.mark.parametrize(("bits", "colour", "row", "key", "wanted"), [
    (8, 0, [0, 10, 200], struct.pack(">H", 10), [0, 255, 200]),
    (8, 2, [0, 0, 0, 9, 9, 9, 8, 8, 8], struct.pack(">HHH", 9, 9, 9), [0, 255, 8]),
    (16, 0, [0, 0, 1, 2, 255, 255], struct.pack(">H", 258), [0, 255, 255]),
])  # fmt: skip
def test_keyed_out_colours_are_white(bits, colour, row, key, wanted):
    data = png(3, 1, zlib.compress(bytes([0, *row])), bits, colour, png_chunk(b"tRNS", key))
    assert pixels(data)[0, :, 0].tolist() == wanted


def test_cmyk_by_its_formula_and_inverted_as_adobe_writes_it():
    ink = np.random.default_rng(0).integers(0, 256, (8, 8, 4), dtype=np.uint8)
    paper = 255.0 - ink
    wanted = paper[..., :3] * paper[..., 3:] / 255  # (1 - C)(1 - K)
    image = Image.frombytes("CMYK", (8, 8), ink.tobytes())
    assert np.abs(pixels(encode(image, "TIFF")) - wanted).max() <= 1
    flat = Image.new("CMYK", (16, 16), (255, 0, 0, 0))
    assert np.abs(pixels(encode(flat, "JPEG", quality=100)) - np.array([0, 255, 255])).max() <= 2


def test_lab_greys_follow_cie_lightness():
    lightness = np.array([0, 10, 25, 50, 75, 100.0])
    lab = np.zeros((1, 6, 3), np.uint8)
    lab[0, :, 0] = np.rint(lightness * 2.55)
    image = Image.frombytes("LAB", (6, 1), lab.tobytes())
    exact = lab[0, :, 0] / 2.55
    luminance = np.where(exact > 8, ((exact + 16) / 116) ** 3, exact / 903.3)
    wanted = np.where(luminance > 0.0031308, 1.055 * luminance ** (1 / 2.4) - 0.055, 12.92 * luminance) * 255
    assert np.abs(pixels(encode(image, "TIFF"))[0] - wanted[:, None]).max() <= 2


def test_other_modes_agree_with_pillow():
    base = noise(24, 16)
    for mode, file_format in [("1", "PNG"), ("L", "PNG"), ("P", "GIF"), ("RGB", "BMP")]:
        image = base.convert(mode)
        np.testing.assert_array_equal(pixels(encode(image, file_format)), np.asarray(image.convert("RGB")))
    for mode in ("YCbCr", "HSV", "RGBX", "CMYK"):
        image = base.convert(mode)
        np.testing.assert_array_equal(np.asarray(to_rgb(image)), np.asarray(image.convert("RGB")))


def test_premultiplied_alpha_and_byte_orders_agree_with_the_plain_modes():
    layered = noise(24, 16).convert("RGBA")
    layered.putalpha(noise(24, 16, 1).convert("L"))
    faded = layered.convert("LA")
    for straight, premultiplied in [(layered, layered.convert("RGBa")), (faded, faded.convert("La"))]:
        difference = np.asarray(to_rgb(straight), int) - np.asarray(to_rgb(premultiplied), int)
        assert np.abs(difference).max() <= 2
    values = np.arange(0, 65536, 171, dtype=np.uint16).reshape(16, 24)
    little, big = (
        Image.frombytes(mode, (24, 16), values.astype(order).tobytes())
        for mode, order in (("I;16", "<u2"), ("I;16B", ">u2"))
    )
    np.testing.assert_array_equal(np.asarray(to_rgb(little)), np.asarray(to_rgb(big)))
    twelve = Image.frombytes("I;16", (24, 16), (values >> 4).astype("<u2").tobytes())
    assert np.abs(np.asarray(to_rgb(twelve, 12), int) - np.asarray(to_rgb(little), int)).max() <= 1


def test_strips_do_not_show(monkeypatch):
    values = np.random.default_rng(0).integers(0, 65536, (50, 30), dtype=np.uint16)
    data = [encode(Image.fromarray(values)), encode(noise(30, 50).convert("RGBA"))]
    whole = [pixels(one) for one in data]
    monkeypatch.setattr("granary.curation.images.decode.STRIP_PIXELS", 90)
    for one, wanted in zip(data, whole, strict=True):
        np.testing.assert_array_equal(pixels(one), wanted)


def test_formats_that_start_programs_or_are_stubs_stay_out():
    assert not {"EPS", "WMF", "FITS", "GRIB", "BUFR", "HDF5", "MPEG", "PDF"} & set(FORMATS)
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"
    assert kind_of(postscript) == "UnidentifiedImageError"


def test_python_decoders_get_few_pixels():
    qoi = b"qoif" + struct.pack(">II", 9000, 9000) + b"\3\0" + b"\xfd" * 2_000_000
    assert kind_of(qoi) == "TooManyPixels"


def test_error_survives_pickling():
    error = pickle.loads(pickle.dumps(DecodeError("Kind", "text")))
    assert (error.kind, str(error)) == ("Kind", "text")


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_flipped_bytes_give_a_picture_or_a_decode_error(data):
    name = data.draw(st.sampled_from(["JPEG", "PNG", "GIF", "TIFF", "WEBP", "BMP", "JPEG2000", "ICO", "TGA", "PCX"]))
    whole = bytearray(encode(noise(24, 24), name))
    for _ in range(data.draw(st.integers(1, 8))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(DecodeError):
        assert decode(bytes(whole), DecodeLimits(max_pixels=1 << 20)).image.mode == "RGB"


def plain_pillow_size(data):
    """Oracle: the upright size by plain Pillow, or None where it fails too."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            return ImageOps.exif_transpose(image).size
    except Exception:  # noqa: BLE001 the oracle may fail in any way
        return None


def odd_images():
    with zipfile.ZipFile(SHARED / "odd_images_dev.zip") as archive:
        for line in archive.open("manifest.jsonl"):
            record = json.loads(line)
            yield record, archive.read(record["file"])


@needs_data
def test_odd_image_suite():
    """Every file gives the right size or a DecodeError; differences from the manifest are explained."""
    differences = Counter()
    total = 0
    for record, data in odd_images():
        total += 1
        told = record["pillow"]
        try:
            decoded = decode(data, LIMITS)
        except DecodeError as error:
            if error.kind.startswith("TooMany"):
                differences["above the limits"] += told["outcome"] == "ok"
            elif told["outcome"] == "ok" and told["format"] not in (*FORMATS, "MPO"):
                differences["format not allowed"] += 1
            elif told["outcome"] == "ok":
                assert plain_pillow_size(data) is None, record["file"]
                differences["this Pillow refuses it as well"] += 1
            continue
        expected = plain_pillow_size(data) or (decoded.format == "PNG" and plain_pillow_size(without_text(data)))
        assert decoded.image.mode == "RGB"
        assert decoded.image.size == (decoded.width, decoded.height) == expected, record["file"]
        if told["outcome"] != "ok":
            differences["read here, not there"] += 1
        elif decoded.format not in ("PSD", "IM"):  # layers are not pages here
            assert decoded.frames == told["frames"], record["file"]
    print(f"{total} files, differences from the manifest: {dict(differences)}")
    assert total > 1300
    assert sum(differences.values()) < 0.05 * total


@needs_data
def test_nothing_is_written_to_the_terminal():
    """Neither Python warnings nor messages of libtiff: the TIFF files of the suite in a new process."""
    code = """
import sys, zipfile
from granary.curation.images.decode import *
archive = zipfile.ZipFile(sys.argv[1])
for name in archive.namelist():
    if "tif" in name.lower() or "bomb" in name:
        try:
            decode(archive.read(name), DecodeLimits())
        except DecodeError:
            pass
"""
    arguments = [sys.executable, "-W", "always", "-c", code, str(SHARED / "odd_images_dev.zip")]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")


@needs_data
def test_exif_group_is_one_upright_picture():
    pictures = []
    with zipfile.ZipFile(SHARED / "near_duplicates_dev.zip") as archive:
        for record in map(json.loads, archive.open("manifest.jsonl")):
            decoded = decode(archive.read(record["file"]), LIMITS, side=64)
            assert min(decoded.image.size) >= 64
            if record["kind"] == "exif_orientation":
                whole = decode(archive.read(record["file"]), LIMITS)
                pictures.append((whole.width, whole.height, np.asarray(whole.image.resize((32, 32)), float)))
    assert len(pictures) == 9
    assert len({picture[:2] for picture in pictures}) == 1
    assert max(np.abs(picture[2] - pictures[0][2]).mean() for picture in pictures) < 3


@pytest.mark.slow
def test_memory_of_the_largest_allowed_pictures_stays_near_a_gibibyte():
    code = """
import io, sys, zlib
import numpy as np
from PIL import Image
from granary.curation.images.containers import can_read_heif
from granary.curation.images.decode import *
file = io.BytesIO()
shape = (10_000, 10_000) + ((4,) if sys.argv[1] == "RGBA" else ())
kind = np.uint16 if sys.argv[1] == "I;16" else np.uint8
Image.MAX_IMAGE_PIXELS = None
import struct
def chunk(name, body):
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
bits, colour, width = {"RGBA": (8, 6, 4), "I;16": (16, 0, 2), "RGB": (8, 2, 3)}[sys.argv[1]]
packer = zlib.compressobj(1)
rows = b"".join(packer.compress(bytes(1 + 10_000 * width)) for _ in range(10_000)) + packer.flush()
head = chunk(b"IHDR", struct.pack(">IIBBBBB", 10_000, 10_000, bits, colour, 0, 0, 0))
data = b"\\x89PNG\\r\\n\\x1a\\n" + head + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
decode(data, DecodeLimits())
print(int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) // 1024)
"""
    for mode in ("RGB", "RGBA", "I;16"):
        done = subprocess.run([sys.executable, "-c", code, mode], capture_output=True, text=True, check=True)
        assert int(done.stdout) < 1200, mode
