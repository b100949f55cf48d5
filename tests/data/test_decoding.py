"""What a stored image becomes: modes, transparency, depth, size, orientation."""

import io

import numpy as np
import PIL.Image
import pytest

from ddpm_hf.data.images import decode


def stored(image: PIL.Image.Image, kind: str = "png", **options) -> dict:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return {"bytes": buffer.getvalue(), "path": None}


def decoded(image, num_channels=3, kind="png", **options) -> list:
    """Of a picture of one colour: that colour."""
    pixels = decode(stored(image, kind, **options), "it", (num_channels, 4, 4))
    assert pixels.dtype == np.uint8 and (pixels == pixels[:, :1, :1]).all()
    return pixels[:, 0, 0].tolist()


def test_resize_covers_then_crops_the_centre():
    stripes = np.zeros((20, 60), np.uint8)
    stripes[:, 20:40] = 200  # the centre third of a wide image is all that a square keeps
    assert (decode(PIL.Image.fromarray(stripes), "", (1, 20, 20)) == 200).all()
    assert decode(PIL.Image.fromarray(stripes), "", (1, 10, 30)).mean() == pytest.approx(200 / 3, abs=0.5)


@pytest.mark.parametrize("alpha", [0, 51, 255])
def test_transparency_is_composited_on_white(alpha):
    """colour * a + 255 * (1 - a): what is hidden under alpha 0 is not trained on."""
    red, grey = (200, 100, 0), 100
    expected = [round(value * alpha / 255 + 255 - alpha) for value in (*red, grey)]
    assert decoded(PIL.Image.new("RGBA", (4, 4), (*red, alpha))) == pytest.approx(expected[:3], abs=1)
    for num_channels in (1, 3):
        found = decoded(PIL.Image.new("LA", (4, 4), (grey, alpha)), num_channels)
        assert found == pytest.approx([expected[3]] * num_channels, abs=1)


def test_a_transparent_colour_is_white():
    """PNG's tRNS: one colour, or one entry of the palette, is transparent."""
    assert decoded(PIL.Image.new("RGB", (4, 4), (9, 8, 7)), transparency=(9, 8, 7)) == [255] * 3
    assert decoded(PIL.Image.new("L", (4, 4), 9), 1, transparency=9) == [255]
    palette = PIL.Image.new("RGB", (4, 4), (9, 8, 7)).quantize(2)
    assert decoded(palette) == [9, 8, 7] and decoded(palette, transparency=palette.getpixel((0, 0))) == [255] * 3


@pytest.mark.parametrize("value", [0, 128, 129, 385, 40_000, 65_535])
@pytest.mark.parametrize("kind", ["png", "tiff", "ppm"])
def test_greys_of_16_bits_are_scaled_to_8(value, kind):
    image = PIL.Image.fromarray(np.full((4, 4), value, np.uint16))
    assert decoded(image, 1, kind) == [round(value / 257)] and decoded(image, 3, kind) == [round(value / 257)] * 3


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_other_depths_are_refused(dtype):
    image = PIL.Image.fromarray(np.ones((4, 4), dtype))
    with pytest.raises(
        ValueError, match=r"it cannot be used: mode .*, allowed are 8 bits per channel and greys of 16"
    ):
        decode(stored(image, "tiff"), "it", (1, 4, 4))


def test_the_orientation_of_a_camera_is_followed():
    image, exif = PIL.Image.new("L", (8, 4)), PIL.Image.Exif()
    image.paste(255, (0, 0, 4, 4))  # the left half
    exif[PIL.ExifTags.Base.Orientation] = 6  # turn by 90 degrees clockwise
    pixels = decode(stored(image, exif=exif), "it", (1, 8, 4))
    assert (pixels[0, :4] == 255).all() and (pixels[0, 4:] == 0).all()


def test_a_decompression_bomb_is_refused(monkeypatch):
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ValueError, match=r"it cannot be used: Image size .* decompression bomb"):
        decode(stored(PIL.Image.new("1", (20, 20))), "it", (1, 4, 4))


@pytest.mark.parametrize("value", [None, {"bytes": None, "path": None}, {"bytes": b"", "path": None}, "nowhere.png"])
def test_no_image_is_one_line(value):
    with pytest.raises(ValueError, match=r"^it .*cannot be used: .") as raised:
        decode(value, "it", (1, 4, 4))
    assert "\n" not in str(raised.value)
