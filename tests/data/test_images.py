import numpy as np
import pytest
from PIL import Image

from metricli.data.images import crop_box, open_image, read_header
from metricli.errors import DataError

BIG = 10**9


def pixels(path):
    image = open_image(path, max_pixels=BIG)
    assert image.mode == "RGB"
    return np.asarray(image)


def refusal(path, opener=open_image, max_pixels=BIG):
    with pytest.raises(DataError) as caught:
        opener(path, max_pixels=max_pixels)
    return caught.value.message.replace(repr(str(path)), "FILE")


def test_rgb_as_it_is(tmp_path, image):
    path = image(tmp_path / "a.png")
    assert (pixels(path) == (10, 200, 30)).all()
    assert pixels(path).shape == (4, 6, 3)
    assert read_header(path, max_pixels=BIG) == (6, 4, "PNG")


def test_transparent_pixels_are_laid_over_white(tmp_path):
    rgba = Image.fromarray(np.array([[[255, 0, 0, 255], [255, 0, 0, 0], [0, 0, 0, 128]]], dtype=np.uint8))
    rgba.save(tmp_path / "a.png")
    assert pixels(tmp_path / "a.png").tolist() == [[[255, 0, 0], [255, 255, 255], [127, 127, 127]]]
    rgba.convert("LA").save(tmp_path / "la.png")
    assert pixels(tmp_path / "la.png")[0, 1].tolist() == [255, 255, 255]


def test_palettes_with_and_without_transparency(tmp_path):
    image = Image.fromarray(np.array([[0, 1]], dtype=np.uint8), mode=None).convert("P")
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.save(tmp_path / "p.png")
    assert pixels(tmp_path / "p.png").tolist() == [[[255, 0, 0], [0, 0, 255]]]
    image.save(tmp_path / "t.png", transparency=b"\x00\xff")
    assert pixels(tmp_path / "t.png").tolist() == [[[255, 255, 255], [0, 0, 255]]]


def test_sixteen_bits_keep_the_upper_eight(tmp_path):
    Image.fromarray(np.array([[0, 255, 256, 65535]], dtype=np.uint16)).save(tmp_path / "a.png")
    assert pixels(tmp_path / "a.png")[0, :, 0].tolist() == [0, 0, 1, 255]


def test_float_grey_is_stretched(tmp_path):
    Image.fromarray(np.array([[-1.0, 0.0, 1.0]], dtype=np.float32)).save(tmp_path / "a.tiff")
    assert pixels(tmp_path / "a.tiff")[0, :, 0].tolist() == [0, 127, 255]


@pytest.mark.parametrize("mode", ["L", "1", "CMYK"])
def test_other_modes_become_rgb(tmp_path, mode):
    Image.new("RGB", (8, 8), (255, 255, 255)).convert(mode).save(tmp_path / "a.tiff")
    assert (pixels(tmp_path / "a.tiff") == 255).all()


def test_the_first_frame_of_an_animation(tmp_path):
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert (pixels(tmp_path / "a.gif") == (255, 0, 0)).all()


@pytest.mark.parametrize("kind", ["png", "tiff", "webp", "jpg"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path, orientation, kind):
    upright = np.kron(np.arange(6, dtype=np.uint8).reshape(2, 3) * 40, np.ones((16, 16), dtype=np.uint8))
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.T,
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].T,
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{kind}"
    options = {"lossless": True} if kind == "webp" else {}
    Image.fromarray(np.ascontiguousarray(stored)).convert("RGB").save(path, exif=exif, **options)
    assert abs(pixels(path)[:, :, 0].astype(int) - upright).max() <= 3
    assert read_header(path, max_pixels=BIG)[:2] == (48, 32)


def test_more_pixels_than_allowed_are_refused_before_decoding(tmp_path, image):
    path = image(tmp_path / "a.png", size=(30, 20))
    path.write_bytes(path.read_bytes()[:60])  # the header alone: decoding it would say "truncated"
    message = "cannot read image FILE: 30 x 20 is more than the 599 pixels allowed"
    assert refusal(path, max_pixels=599) == message
    assert refusal(path, read_header, max_pixels=599) == message
    assert read_header(path, max_pixels=600)[:2] == (30, 20)


def test_a_cap_above_that_of_pillow_is_honoured(tmp_path, image, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    path = image(tmp_path / "a.png", size=(30, 20))
    assert open_image(path, max_pixels=600).size == (30, 20)


def test_a_bomb_is_refused_whatever_pillow_thinks_of_it(tmp_path, image, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 250)
    path = image(tmp_path / "a.png", size=(30, 20))
    assert refusal(path, max_pixels=200) == "cannot read image FILE: more than the 200 pixels allowed"


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
def test_a_cut_off_file(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert refusal(path).startswith("cannot read image FILE: ")


def test_a_damaged_png(tmp_path, image):
    path = image(tmp_path / "a.png")
    data = bytearray(path.read_bytes())
    data[data.index(b"IDAT") + 6] ^= 255
    path.write_bytes(data)
    assert refusal(path) == "cannot read image FILE: its pixels do not fit their checksum"
    assert read_header(path, max_pixels=BIG) == (6, 4, "PNG")  # without decoding it


def test_files_that_are_no_images(tmp_path):
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.jpg").write_text("not a picture")
    (tmp_path / "folder.jpg").mkdir()
    assert refusal(tmp_path / "none.jpg") == "cannot read image FILE: no such file"
    assert refusal(tmp_path / "empty.jpg") == "cannot read image FILE: the file is empty"
    message = "cannot read image FILE: not an image, or of a kind that is not read"
    assert refusal(tmp_path / "text.jpg") == message
    assert refusal(tmp_path / "text.jpg", read_header) == message
    assert refusal(tmp_path / "folder.jpg") == "cannot read image FILE: is a folder"


def test_crop_box():
    image = Image.fromarray(np.arange(12, dtype=np.uint8).reshape(3, 4))
    assert np.asarray(crop_box(image, (1, 0, 3, 2))).tolist() == [[1, 2], [5, 6]]
    assert crop_box(image, np.array([-1, -1, -1, -1])) is image
    with pytest.raises(DataError) as caught:
        crop_box(image, (0, 0, 5, 3))
    assert caught.value.message == "box (0, 0, 5, 3) reaches outside its image of 4 x 3 pixels"
