import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image
from torch._utils import ExceptionWrapper

from ibreg.runs.data.image_files import ImageFileError, ImageFiles, image_endings, problem_of, read_image
from ibreg.runs.data.rows import Rows, loader

GRAY16 = np.array([[0, 1, 257, 8_000], [12_345, 40_000, 65_534, 65_535]], dtype=np.uint16)
# Top left, top right, bottom left, bottom right: red, green, blue and white.
COLORS = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [255, 255, 255]]], dtype=np.uint8)


def pixels_of(path):
    """The pixels of a file that is decoded to RGB of 8 bits."""
    image = read_image(str(path))
    assert image.mode == "RGB"
    return np.asarray(image)


def tiff(path, values, *, bits, kind, inverted=False):
    """Writes a grayscale TIFF by its specification: little-endian, one strip, samples of a kind of number."""
    height, width = values.shape
    data = values.tobytes()
    tags = [(256, width), (257, height), (258, bits), (259, 1), (262, 0 if inverted else 1), (273, 8), (277, 1)]
    tags += [(278, height), (279, len(data)), (339, kind)]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    path.write_bytes(
        struct.pack("<2sHI", b"II", 42, 8 + len(data)) + data + struct.pack("<H", len(tags)) + entries + bytes(4)
    )


# --- bits and modes


@pytest.mark.parametrize("ending", ["png", "tif", "big.tif", "pgm", "jp2"])
def test_grayscale_of_16_bits_is_divided_by_its_largest_value(tmp_path, ending):
    path = tmp_path / f"image.{ending}"
    if ending == "pgm":
        path.write_bytes(b"P5 4 2 65535\n" + GRAY16.astype(">u2").tobytes())
    else:
        Image.fromarray(GRAY16.astype(">u2") if ending == "big.tif" else GRAY16).save(path)
    expected = torch.tensor(GRAY16.astype(np.float64) / 65_535, dtype=torch.float32)
    square = ImageFiles([str(path)], 2)[[0]][0]  # the columns in the middle
    assert torch.equal(square, expected[:, 1:3].expand(3, 2, 2))
    assert np.array_equal(np.asarray(read_image(str(path))), expected.numpy())


def test_two_shades_of_16_bits_stay_two_shades(tmp_path):
    for name, value in (("cat", 8_000), ("dog", 40_000), ("emu", 40_001)):
        Image.fromarray(np.full((5, 7), value, dtype=np.uint16)).save(tmp_path / f"{name}.png")
    files = ImageFiles([str(tmp_path / f"{name}.png") for name in ("cat", "dog", "emu")], 4)
    expected = torch.tensor([8_000, 40_000, 40_001]) / 65_535
    torch.testing.assert_close(files[[0, 1, 2]], expected.view(3, 1, 1, 1).expand(3, 3, 4, 4), rtol=0, atol=1e-7)


def test_a_tiff_of_12_bits_is_divided_by_4095(tmp_path):
    packed = np.array([[0x00, 0x0F, 0xFF], [0x80, 0x07, 0xD0]], dtype=np.uint8)  # 0, 4095 and 2048, 2000
    tiff(tmp_path / "a.tif", packed, bits=12, kind=1)
    data = bytearray((tmp_path / "a.tif").read_bytes())
    at = data.index(struct.pack("<HHII", 256, 4, 1, 3))
    data[at : at + 12] = struct.pack("<HHII", 256, 4, 1, 2)  # two pixels in three bytes
    (tmp_path / "a.tif").write_bytes(data)
    expected = np.array([[0, 4095], [2048, 2000]]) / 4095
    assert np.array_equal(np.asarray(read_image(str(tmp_path / "a.tif"))), expected.astype(np.float32))


@pytest.mark.parametrize(("dtype", "bits", "largest"), [(np.uint16, 16, 65_535), (np.uint8, 8, 255)])
def test_a_tiff_whose_zero_is_white_is_inverted(tmp_path, dtype, bits, largest):
    values = np.array([[0, largest // 5], [largest, largest // 3]], dtype=dtype)
    tiff(tmp_path / "a.tif", values, bits=bits, kind=1, inverted=True)
    square = ImageFiles([str(tmp_path / "a.tif")], 2)[[0]][0, 0]
    torch.testing.assert_close(square, torch.tensor([[1, 0.8], [0, 2 / 3]]), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("dtype", "bits", "kind", "named"),
    [
        (np.float32, 32, 3, "floating-point"),
        (np.int32, 32, 2, "signed or 32-bit integer"),
        (np.uint32, 32, 1, "signed or 32-bit integer"),
        (np.int16, 16, 2, "signed or 32-bit integer"),
    ],
)
def test_pixels_of_an_unknown_range_are_refused(tmp_path, dtype, bits, kind, named):
    path = tmp_path / "scan.tif"
    tiff(path, np.array([[0, 1], [2, 3]], dtype=dtype), bits=bits, kind=kind)
    expected = (
        f"{path} has {named} pixels, whose range is unknown: save it with 8 or 16 bits, or leave such files out with "
        "data.broken=skip"
    )
    with pytest.raises(ImageFileError) as caught:
        read_image(str(path))
    assert str(caught.value) == expected
    assert str(problem_of(str(path))) == expected.partition(", or leave")[0]


def test_a_portable_float_map_is_refused(tmp_path):
    (tmp_path / "a.pfm").write_bytes(b"Pf\n1 1\n-1.0\n" + struct.pack("<f", 0.5))
    with pytest.raises(ImageFileError, match="floating-point pixels, whose range is unknown"):
        read_image(str(tmp_path / "a.pfm"))


def test_one_and_eight_bits_of_gray_become_three_channels(tmp_path):
    Image.fromarray(np.array([[True, False]])).save(tmp_path / "1.png")
    Image.fromarray(np.array([[7, 200]], dtype=np.uint8)).save(tmp_path / "L.png")
    assert pixels_of(tmp_path / "1.png").tolist() == [[[255] * 3, [0] * 3]]
    assert pixels_of(tmp_path / "L.png").tolist() == [[[7] * 3, [200] * 3]]


def test_cmyk_becomes_rgb(tmp_path):
    # Ink takes light away: cyan takes red, magenta green, yellow blue, and black all of them.
    inks = np.array([[[255, 0, 0, 0], [0, 255, 0, 0], [0, 0, 255, 0], [0, 0, 0, 255], [0, 0, 0, 0]]], dtype=np.uint8)
    Image.frombytes("CMYK", (5, 1), inks.tobytes()).save(tmp_path / "a.tif")
    expected = [[[0, 255, 255], [255, 0, 255], [255, 255, 0], [0, 0, 0], [255, 255, 255]]]
    assert pixels_of(tmp_path / "a.tif").tolist() == expected


# --- transparency


def test_an_alpha_channel_is_blended_with_white(tmp_path):
    alphas = [0, 51, 128, 255]
    colors = np.array([[[100, 0, 255, alpha] for alpha in alphas]], dtype=np.uint8)
    grays = np.array([[[40, alpha] for alpha in alphas]], dtype=np.uint8)
    Image.fromarray(colors).save(tmp_path / "RGBA.png")
    Image.fromarray(grays).save(tmp_path / "LA.png")

    def blended(value):
        return [round(value * alpha / 255 + 255 * (1 - alpha / 255)) for alpha in alphas]

    rgba, la = pixels_of(tmp_path / "RGBA.png"), pixels_of(tmp_path / "LA.png")
    assert rgba[0].T.tolist() == [blended(100), blended(0), [255] * 4]
    assert la[0].T.tolist() == [blended(40)] * 3


def test_transparent_colors_of_a_palette_are_white(tmp_path):
    palette = Image.fromarray(np.array([[0, 1, 2]], dtype=np.uint8)).convert("P")
    palette.putpalette([10, 20, 30, 40, 50, 60, 0, 0, 0])
    palette.save(tmp_path / "bytes.png", transparency=bytes([255, 0, 51]))  # Pillow warns of these when it makes RGB
    palette.save(tmp_path / "index.png", transparency=1)
    palette.save(tmp_path / "index.gif", transparency=1)
    assert pixels_of(tmp_path / "bytes.png").tolist() == [[[10, 20, 30], [255] * 3, [204] * 3]]
    for name in ("index.png", "index.gif"):
        assert pixels_of(tmp_path / name).tolist() == [[[10, 20, 30], [255] * 3, [0, 0, 0]]]


def test_a_transparent_color_without_alpha_channel_is_white(tmp_path):
    Image.fromarray(COLORS).save(tmp_path / "RGB.png", transparency=(0, 0, 255))
    Image.fromarray(np.array([[5, 6]], dtype=np.uint8)).save(tmp_path / "L.png", transparency=5)
    Image.fromarray(np.array([[True, False]])).save(tmp_path / "1.png", transparency=0)
    Image.fromarray(GRAY16).save(tmp_path / "16.png", transparency=8_000)
    assert pixels_of(tmp_path / "RGB.png").tolist() == [COLORS[0].tolist(), [[255] * 3, [255] * 3]]
    assert pixels_of(tmp_path / "L.png").tolist() == [[[255] * 3, [6] * 3]]
    assert pixels_of(tmp_path / "1.png").tolist() == [[[255] * 3, [255] * 3]]
    assert np.asarray(read_image(str(tmp_path / "16.png")))[0].tolist()[3] == 1.0


# --- orientation


# Where the four corners of the upright image are stored: the first row and the first column of what is stored show this
# side of the image (EXIF 2.32, table 6).
STORED = {
    1: lambda image: image,  # top, left
    2: lambda image: image[:, ::-1],  # top, right
    3: lambda image: image[::-1, ::-1],  # bottom, right
    4: lambda image: image[::-1],  # bottom, left
    5: lambda image: image.swapaxes(0, 1),  # left, top
    6: lambda image: image.swapaxes(0, 1)[::-1],  # right, top
    7: lambda image: image[::-1, ::-1].swapaxes(0, 1),  # right, bottom
    8: lambda image: image.swapaxes(0, 1)[:, ::-1],  # left, bottom
}


def with_orientation(path, pixels, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(pixels)).save(path, exif=exif)


def test_an_image_taken_with_the_camera_turned_is_upright(tmp_path):
    """Orientation 6: the first row stored is the right side of the image, from top to bottom."""
    stored = np.array([[[0, 255, 0], [255, 255, 255]], [[255, 0, 0], [0, 0, 255]]], dtype=np.uint8)
    with_orientation(tmp_path / "a.png", stored, 6)
    assert pixels_of(tmp_path / "a.png").tolist() == COLORS.tolist()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("ending", ["png", "tif", "webp", "16.png"])
def test_every_orientation_is_applied(tmp_path, orientation, ending):
    upright = np.arange(6, dtype=np.uint16).reshape(2, 3) * 10_000 if ending == "16.png" else COLORS.repeat(2, 1)
    path = tmp_path / f"a.{ending}"
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](upright)))
    stored.save(path, exif=exif, **({"lossless": True} if ending == "webp" else {}))
    shown = np.asarray(read_image(str(path)))
    expected = upright.astype(np.float32) / np.float32(65_535) if ending == "16.png" else upright
    assert np.array_equal(shown, expected)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_of_a_jpeg_is_applied(tmp_path, orientation):
    upright = COLORS.repeat(32, 0).repeat(16, 1)  # 64 x 32, blocks of one color, which JPEG keeps
    path = tmp_path / "a.jpg"
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(STORED[orientation](upright))).save(path, exif=exif, subsampling=0, quality=95)
    shown = pixels_of(path)
    assert shown.shape == (64, 32, 3)
    assert np.abs(shown.astype(int) - upright).max() <= 3


@pytest.mark.parametrize("damage", [b"XX", b"\0\0", b"MI"])
@pytest.mark.parametrize("ending", ["jpg", "webp"])
def test_damaged_exif_data_are_ignored(tmp_path, ending, damage):
    path = tmp_path / f"a.{ending}"
    with_orientation(path, COLORS.repeat(8, 0).repeat(8, 1), 6)
    data = path.read_bytes()
    path.write_bytes(data.replace(b"MM\0*", damage + b"\0*"))
    assert read_image(str(path)).size == (16, 16)
    path.write_bytes(data.replace(b"MM\0*\0\0\0\x08", b"MM\0*\0\0\xff\x08"))
    assert read_image(str(path)).size == (16, 16)


# --- files that cannot be read


def png_header(width, height):
    """A PNG without pixels."""
    chunks = [b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0), b"IDAT"]
    parts = [struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def damaged(tmp_path, kind):
    """Writes an image that cannot be read."""
    path = tmp_path / kind
    path.parent.mkdir(exist_ok=True)
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8))
    if kind == "bomb.png":
        path.write_bytes(png_header(20_000, 20_000))
    elif kind == "empty.jpg":
        path.touch()
    elif kind == "text.png":
        path.write_text("no image")
    elif kind == "folder/dangling.png":
        path.symlink_to(tmp_path / "nowhere.png")
    elif kind == "postscript.png":
        path.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    else:  # cut
        noise.save(path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (
            "bomb.png",
            r"too large \(Image size \(400000000 pixels\) exceeds limit of 178956970 pixels\): make it smaller",
        ),
        ("empty.jpg", r"broken \(no image of a known format\): remove or replace it"),
        ("text.png", r"broken \(no image of a known format\): remove or replace it"),
        ("postscript.png", r"broken \(no image of a known format\): remove or replace it"),
        ("cut.jpg", r"broken \(image file is truncated \(\d+ bytes not processed\)\): remove or replace it"),
        ("cut.png", r"broken \(image file is truncated.*\): remove or replace it"),
        ("cut.gif", r"broken \(image file is truncated.*\): remove or replace it"),
        ("cut.tif", r"broken \(image file is truncated.*\): remove or replace it"),
        ("cut.bmp", r"broken \(image file is truncated.*\): remove or replace it"),
        ("cut.webp", r"broken \(.+\): remove or replace it"),
    ],
)
def test_a_damaged_file_is_named_in_one_line(tmp_path, kind, expected):
    path = damaged(tmp_path, kind)
    with pytest.raises(ImageFileError, match=rf"^{path} is {expected}, or leave such files out with data.broken=skip$"):
        read_image(str(path))
    assert problem_of(str(path)).startswith(f"{path} is ")


def test_a_file_that_does_not_exist_is_named(tmp_path):
    path = damaged(tmp_path, "folder/dangling.png")
    with pytest.raises(ImageFileError, match=rf"^{path} cannot be opened \(No such file or directory\): check that"):
        read_image(str(path))


def test_a_file_that_may_not_be_read_is_named(tmp_path, monkeypatch):
    path = str(tmp_path / "a.png")
    Image.new("RGB", (2, 2)).save(path)

    def refuse(*args, **options):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(Image, "open", refuse)  # root may read every file
    with pytest.raises(ImageFileError, match=rf"^{path} cannot be opened \(Permission denied\): check that it exists"):
        read_image(path)


def test_a_large_image_below_the_limit_is_read_without_a_warning(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # Pillow warns above it, and refuses twice as many
    Image.new("RGB", (15, 10)).save(tmp_path / "a.png")
    assert read_image(str(tmp_path / "a.png")).size == (15, 10)
    Image.new("RGB", (15, 20)).save(tmp_path / "a.png")
    with pytest.raises(ImageFileError, match="is too large"):
        read_image(str(tmp_path / "a.png"))


def test_files_damaged_at_random_are_read_or_named(tmp_path):
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (12, 14, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    outcomes = set()
    for ending in ("png", "jpg", "gif", "webp", "bmp", "jp2", "ppm", "tga", "ico", "avif"):
        if f".{ending}" not in image_endings():  # a Pillow without this library
            continue
        path = tmp_path / f"a.{ending}"
        image.save(path, **({"exif": exif} if ending in ("jpg", "webp") else {}))
        whole = path.read_bytes()
        for _ in range(25):
            data = bytearray(whole[: rng.integers(len(whole))] if rng.random() < 0.4 else whole)
            for place in rng.integers(0, len(whole), 3):
                data[place : place + 1] = bytes([rng.integers(256)])
            path.write_bytes(data)
            problem = problem_of(str(path))
            assert problem is None or (problem.startswith(str(path)) and "\n" not in problem)
            outcomes.add(problem is None)
    assert outcomes == {True, False}


def test_the_message_of_a_worker_process_is_its_last_line(tmp_path):
    path = damaged(tmp_path, "cut.jpg")
    with pytest.raises(ImageFileError) as here:
        read_image(str(path))
    wrapped = ExceptionWrapper((here.type, here.value, here.tb), where="in DataLoader worker process 0")
    assert "Traceback" in wrapped.exc_msg
    with pytest.raises(ImageFileError) as there:
        wrapped.reraise()
    assert str(there.value) == str(here.value)


@pytest.mark.slow  # torch waits 5 s for the worker processes of a loader whose iterator is in a cycle of references
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")  # of Python 3.12 and later
def test_an_error_of_a_worker_process_reaches_the_user_in_one_line(tmp_path):
    path = damaged(tmp_path, "cut.jpg")
    rows = Rows(ImageFiles([str(path)], 8, workers=1), torch.tensor([0]))
    with pytest.raises(ImageFileError, match=rf"^{path} is broken \(.*\): .* with data\.broken=skip$"):
        list(loader(rows, 1))


# --- endings, frames, sizes


def test_endings_are_those_that_pillow_decodes_by_itself():
    endings = image_endings()
    assert {".gif", ".jfif", ".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".pgm", ".ppm"} <= endings
    assert not {".pdf", ".eps", ".ps", ".h5", ".mpg", ".txt", ".csv", ".svg", ".db", ""} & endings


@pytest.mark.parametrize("ending", ["gif", "png", "webp", "tif"])
def test_the_first_of_several_frames_is_read(tmp_path, ending):
    frames = [Image.new("RGB", (3, 3), color) for color in ("red", "lime", "blue")]
    options = {"lossless": True} if ending == "webp" else {}
    frames[0].save(tmp_path / f"a.{ending}", save_all=True, append_images=frames[1:], **options)
    assert pixels_of(tmp_path / f"a.{ending}")[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("ending", sorted({".jfif", ".jpe", ".bmp", ".tiff", ".jp2", ".avif", ".ico", ".tga", ".ppm"}))
def test_files_of_other_endings_are_read(tmp_path, ending):
    if ending not in image_endings():
        pytest.fail(f"this Pillow has no {ending}")
    Image.new("RGB", (16, 16), (200, 100, 50)).save(tmp_path / f"a{ending}")
    assert np.abs(pixels_of(tmp_path / f"a{ending}").astype(int) - [200, 100, 50]).max() <= 3


def test_the_center_is_kept_as_it_is(tmp_path):
    values = np.arange(5 * 8 * 3, dtype=np.uint8).reshape(5, 8, 3)
    Image.fromarray(values).save(tmp_path / "a.png")
    Image.fromarray(values.swapaxes(0, 1).copy()).save(tmp_path / "b.png")
    wide, tall = ImageFiles([str(tmp_path / "a.png"), str(tmp_path / "b.png")], 5)[[0, 1]]
    expected = torch.tensor(values[:, 2:7]).permute(2, 0, 1) / 255  # 1.5 columns on either side, rounded to even
    assert torch.equal(wide, expected)
    assert torch.equal(tall, expected.transpose(1, 2))


@pytest.mark.parametrize("size", [(1, 1), (1, 1000), (1000, 1), (3, 20_000)])
def test_tiny_and_narrow_images_are_resized(tmp_path, size):
    Image.new("RGB", size, (255, 51, 0)).save(tmp_path / "a.png")
    image = ImageFiles([str(tmp_path / "a.png")], 32)[[0]]
    assert torch.equal(image, torch.tensor([1, 0.2, 0]).view(1, 3, 1, 1).expand(1, 3, 32, 32))
