"""Pixels are those of transformers' SigLIP 2 processor; odd images are converted right or refused by name."""

from __future__ import annotations

import io
import random

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.siglip2.image_processing_pil_siglip2 import (
    Siglip2ImageProcessorPil,
    get_image_size_for_max_num_patches,
)

from pipeline.base.constants import PATCH_BUDGETS
from pipeline.data import images
from pipeline.data.images import ImageFault, decode_array, decode_image, image_size
from pipeline.data.patches import patchify, write_patches
from pipeline.data.resolution import PATCH_SIZE, grid_of, level_of
from tests.data.shards import image_bytes
from tests.shared_data import shared

MOST_DIFFERENCE = 1.5  # of 255, mean over an image's pixels, as the project asks


def encode(image: Image.Image, format: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


@pytest.fixture(params=["simplejpeg", "Pillow"])
def decoder(request, monkeypatch):
    if request.param == "Pillow":
        monkeypatch.setattr(images, "simplejpeg", None)
    elif images.simplejpeg is None:
        pytest.skip("simplejpeg is not installed")


def test_grids_are_those_of_the_reference_processor():
    draws = random.Random(0)
    for _ in range(300):
        width, height = draws.randint(1, 3000), draws.randint(1, 3000)
        patches = draws.choice([*PATCH_BUDGETS, 196])
        expected = get_image_size_for_max_num_patches(height, width, PATCH_SIZE, patches)
        rows, columns = grid_of(width, height, patches)
        assert (rows * PATCH_SIZE, columns * PATCH_SIZE) == expected
        assert rows * columns <= patches


def test_levels_are_the_smallest_that_hold_the_whole_patches():
    assert level_of(1, 1) == 128
    assert level_of(16 * 16, 16 * 8) == 128
    assert level_of(16 * 16 + 15, 16 * 8 + 15) == 128
    assert level_of(16 * 43, 16 * 3) == 256
    assert level_of(640, 480) == 1024
    assert level_of(10_000, 10_000) == 1024


def test_pixels_of_real_images_are_the_references(decoder):
    files = sorted(shared("data/coco-mini/images").glob("*.jpg"))[::24]
    processor = Siglip2ImageProcessorPil()
    for patches in (64, 256, 1024):
        differences = []
        for file in files:
            data = file.read_bytes()
            width, height = image_size(data)
            grid = grid_of(width, height, patches)
            image = decode_array(data, 100, (grid[1] * PATCH_SIZE, grid[0] * PATCH_SIZE))
            values, mask, found = patchify(image, patches, grid)
            reference = processor(Image.open(file).convert("RGB"), max_num_patches=patches, return_tensors="pt")
            assert tuple(reference["spatial_shapes"][0].tolist()) == found
            assert torch.equal(reference["pixel_attention_mask"][0], mask)
            differences.append(float((reference["pixel_values"][0] - values)[mask.bool()].abs().mean()) * 127.5)
            assert not values[~mask.bool()].any()
        # Down to 64 patches JPEGs are decoded at half size; at the patch budgets of training a full decode is the same.
        assert np.mean(differences) < (MOST_DIFFERENCE if patches == 64 else 0.1)


def test_large_jpegs_are_decoded_scaled_and_stay_close(decoder):
    data = image_bytes(3, (2000, 1500))
    grid = grid_of(2000, 1500, 128)
    target = (grid[1] * PATCH_SIZE, grid[0] * PATCH_SIZE)
    scaled = decode_array(data, 100, target)
    assert scaled.shape[1] < 2000 and scaled.shape[1] >= 2 * target[0]
    pair = [patchify(array, 128, grid)[0] for array in (scaled, decode_array(data))]
    assert float((pair[0] - pair[1]).abs().mean()) * 127.5 < MOST_DIFFERENCE


def test_square_mode_stretches_to_the_largest_square():
    assert grid_of(640, 480, 196, keep_aspect_ratio=False) == (14, 14)
    out = torch.full((196, 768), 7.0)
    write_patches(decode_array(image_bytes(1, (64, 48))), (14, 14), out)
    assert float(out.abs().max()) <= 1.0


def test_odd_images_are_converted_as_their_viewers_show_them(decoder):
    red = Image.new("RGB", (40, 24), (200, 30, 60))
    cases = {
        "cmyk": encode(Image.new("CMYK", (40, 24), (0, 200, 200, 0)), "JPEG", quality=95),
        "grey": encode(Image.new("L", (40, 24), 77), "JPEG", quality=95),
        "palette": encode(red.convert("P", palette=Image.Palette.ADAPTIVE)),
        "alpha": encode(red.convert("RGBA")),
        "webp": encode(red, "WEBP", lossless=True),
        "16 bit": encode(Image.fromarray(np.full((24, 40), 77 << 8, dtype=np.uint16))),
    }
    expected = {
        "grey": (77, 77, 77),
        "palette": (200, 30, 60),
        "alpha": (200, 30, 60),
        "webp": (200, 30, 60),
        "16 bit": (77, 77, 77),
    }
    for name, data in cases.items():
        image = decode_image(data)
        assert image.mode == "RGB" and image.size == (40, 24) == image_size(data), name
        if name in expected:
            assert np.abs(np.asarray(image).astype(int) - expected[name]).max() <= 2, name
    cmyk = np.asarray(decode_image(cases["cmyk"])).astype(int)
    assert cmyk[..., 0].min() > 200 and cmyk[..., 1].max() < 90, "red ink must not come out inverted"


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_applied(decoder, orientation):
    upright = Image.new("RGB", (48, 32), (0, 0, 255))
    upright.paste((255, 0, 0), (0, 0, 24, 16))  # red in the upper left corner, seen upright
    stored_as = {
        2: [Image.Transpose.FLIP_LEFT_RIGHT],
        3: [Image.Transpose.ROTATE_180],
        4: [Image.Transpose.FLIP_TOP_BOTTOM],
        5: [Image.Transpose.TRANSPOSE],
        6: [Image.Transpose.ROTATE_90],
        7: [Image.Transpose.TRANSVERSE],
        8: [Image.Transpose.ROTATE_270],
    }
    stored = upright
    for step in stored_as.get(orientation, []):
        stored = stored.transpose(step)
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(stored, "JPEG", quality=95, exif=exif)
    image = decode_image(data)
    assert image.size == image_size(data) == (48, 32)
    assert image.getpixel((4, 4))[0] > 200 and image.getpixel((44, 28))[2] > 200


def test_refusals_have_their_kind(decoder):
    big = encode(Image.new("RGB", (300, 200)), "JPEG")
    with pytest.raises(ImageFault) as caught:
        decode_image(big, max_megapixels=0.05)
    assert caught.value.kind == "too_many_pixels"
    with pytest.raises(ImageFault) as caught:
        decode_image(big[: len(big) // 2])
    assert caught.value.kind == "broken_image"
    with pytest.raises(ImageFault) as caught:
        decode_image(encode(Image.new("RGB", (8, 8)), "GIF"))
    assert caught.value.kind == "broken_image"


def test_damaged_images_raise_only_the_fault(decoder):
    draws = random.Random(0)
    formats = [image_bytes(1, (32, 32), name) for name in ("JPEG", "PNG", "WEBP")]
    for _ in range(300):
        data = bytearray(draws.choice(formats))
        for _ in range(draws.randint(1, 6)):
            data[draws.randrange(len(data))] = draws.randrange(256)
        if draws.random() < 0.3:
            del data[draws.randrange(len(data)) :]
        for read in (decode_image, image_size):
            try:
                read(bytes(data), 1.0)
            except ImageFault as fault:
                assert fault.kind in ("broken_image", "too_many_pixels", "animated_image")
