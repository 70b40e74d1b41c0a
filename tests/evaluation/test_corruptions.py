"""Corruptions against their definitions, scipy and PIL, and against what has to hold of all of them."""

import io
import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage
from torchvision.transforms.v2 import functional as T

from ibreg.evaluation import table_corruptions
from ibreg.evaluation.corruptions import CORRUPTIONS, corrupt, names
from ibreg.evaluation.table_corruptions import corrupt_table


def random_images(batch=40, channels=3, height=32, width=32):
    """Smooth random images, in [0, 1], neither black nor white; colors vary less than light, as in photographs."""
    light, colors = torch.rand(batch, 1, height, width), torch.rand(batch, channels, height, width)
    return 0.2 + 0.6 * T.gaussian_blur(0.8 * light + 0.2 * colors, [5, 5], [1.0, 1.0])


def distance(images, changed):
    return (changed - images).flatten(1).norm(dim=1).mean().item()


# --- what holds of all kinds


def test_there_are_fifteen_kinds_of_five_severities():
    assert len(names()) == 15
    assert all(len(corruption.amounts) == 5 for corruption in CORRUPTIONS.values())


@pytest.mark.parametrize("kind", names())
@pytest.mark.parametrize(("channels", "height", "width"), [(3, 32, 32), (1, 28, 28), (3, 40, 24)])
def test_every_severity_changes_more_than_the_one_before(kind, channels, height, width):
    images = random_images(60, channels, height, width)
    distances = [distance(images, corrupt(images, kind, severity)) for severity in (1, 2, 3, 4, 5)]
    assert distances[0] > 0.05
    assert all(more > 1.02 * less for less, more in pairwise(distances))


@settings(deadline=None, max_examples=50)
@given(
    kind=st.sampled_from(names()),
    severity=st.integers(1, 5),
    channels=st.sampled_from([1, 3]),
    height=st.integers(8, 40),
    width=st.integers(8, 40),
    clamp=st.sampled_from([(0.0, 1.0), (-1.0, 1.0), (-2.0, 3.0)]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_shape_dtype_and_range_are_kept_and_the_seed_decides(kind, severity, channels, height, width, clamp, dtype):
    assume(kind in names(min(height, width)))
    torch.manual_seed(0)
    images = torch.rand(3, channels, height, width, dtype=dtype) * (clamp[1] - clamp[0]) + clamp[0]
    images.clamp_(*clamp)
    kept, before = images.clone(), torch.get_rng_state()
    changed = corrupt(images, kind, severity, clamp=clamp, seed=7)
    assert changed.shape == images.shape
    assert changed.dtype == dtype
    assert clamp[0] <= changed.min() <= changed.max() <= clamp[1]
    assert torch.equal(images, kept)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(corrupt(images, kind, severity, clamp=clamp, seed=7), changed)


@pytest.mark.parametrize("kind", names())
def test_another_scale_of_the_pixels_is_the_same_image(kind):
    images = random_images(6)
    expected = 2 * corrupt(images, kind, 3) - 1
    torch.testing.assert_close(corrupt(2 * images - 1, kind, 3, clamp=(-1.0, 1.0)), expected, atol=0.01, rtol=0)


@pytest.mark.parametrize(
    "kind", ["gaussian_noise", "impulse_noise", "occlusion", "elastic", "translation", "motion_blur", "rotation"]
)
def test_another_seed_is_another_draw(kind):
    images = random_images(20)
    assert not torch.equal(corrupt(images, kind, 3, seed=1), corrupt(images, kind, 3, seed=2))


# --- each kind by its definition


FLAT = torch.full((4, 3, 100, 100), 0.5)


@pytest.mark.parametrize("severity", [1, 3])
def test_noises_have_their_variances(severity):
    def variance(kind):
        return (corrupt(FLAT, kind, severity) - FLAT).double().square().mean().item()

    amount = {kind: CORRUPTIONS[kind].amounts[severity - 1] for kind in names()}
    assert variance("gaussian_noise") == pytest.approx(amount["gaussian_noise"] ** 2, rel=0.03)
    assert variance("speckle_noise") == pytest.approx((0.5 * amount["speckle_noise"]) ** 2, rel=0.03)
    shot = (torch.poisson(torch.full((10**6,), 0.5 * amount["shot_noise"])) / amount["shot_noise"]).clamp(max=1)
    assert variance("shot_noise") == pytest.approx((shot - 0.5).square().mean().item(), rel=0.03)
    impulses = corrupt(FLAT, "impulse_noise", severity)
    for value in (0.0, 1.0):
        assert (impulses == value).double().mean().item() == pytest.approx(amount["impulse_noise"] / 2, rel=0.05)
    assert (impulses[(impulses != 0) & (impulses != 1)] == 0.5).all()


def test_noise_scales_with_light_where_it_should():
    black = torch.zeros(2, 1, 20, 20)
    for kind in ("shot_noise", "speckle_noise"):
        assert torch.equal(corrupt(black, kind, 5), black)
    assert not torch.equal(corrupt(black, "gaussian_noise", 1), black)


def test_gaussian_blur_is_that_of_scipy():
    images = random_images(2)
    deviation = 0.05 * 32
    expected = ndimage.gaussian_filter(images.numpy(), (0, 0, deviation, deviation), mode="mirror", radius=5)
    torch.testing.assert_close(corrupt(images, "gaussian_blur", 4), torch.from_numpy(expected), atol=1e-3, rtol=0)


@pytest.mark.parametrize("kind", ["defocus_blur", "motion_blur"])
def test_blurs_are_averages_with_weights_of_sum_one(kind):
    torch.testing.assert_close(corrupt(FLAT, kind, 5), FLAT)
    point = torch.zeros(40, 1, 41, 41)
    point[:, :, 20, 20] = 1
    spread = corrupt(point, kind, 5)
    torch.testing.assert_close(spread.sum((1, 2, 3)), torch.ones(40))
    places = torch.arange(41.0) - 20
    center = (spread.sum((1, 3)) @ places, spread.sum((1, 2)) @ places)
    torch.testing.assert_close(torch.stack(center), torch.zeros(2, 40), atol=1e-5, rtol=0)


def test_defocus_is_a_disk_and_motion_a_line():
    point = torch.zeros(40, 1, 41, 41)
    point[:, :, 20, 20] = 1
    disk = corrupt(point, "defocus_blur", 5)[0, 0]
    rows, columns = torch.meshgrid(*2 * [torch.arange(41.0) - 20], indexing="ij")
    far = (rows**2 + columns**2).sqrt()
    radius = 0.1 * 41
    assert (disk[far < radius - 0.5] == disk.max()).all()
    assert (disk[far > radius + 0.5] == 0).all()
    lines = corrupt(point, "motion_blur", 5)[:, 0]
    directions = set()
    for line in lines:
        lit = line > 0.5 * line.max()
        # The points lie on one line: their scatter has one long axis of the length asked for.
        variances = np.linalg.eigvalsh(np.cov(np.stack([rows[lit].numpy(), columns[lit].numpy()])))
        assert variances[0] < 0.5
        assert math.sqrt(12 * variances[1]) == pytest.approx(0.4 * 41, rel=0.15)
        directions.add(tuple(lit.nonzero()[0].tolist()))
    assert len(directions) == 4


def test_light_is_added_and_contrast_taken():
    images = random_images(5)
    torch.testing.assert_close(corrupt(images, "brightness", 2), (images + 0.2).clamp(max=1))
    mean = images.mean((1, 2, 3), keepdim=True)
    torch.testing.assert_close(corrupt(images, "contrast", 4), mean + 0.2 * (images - mean))
    gray = random_images(5, channels=1)
    torch.testing.assert_close(corrupt(gray, "contrast", 4), T.adjust_contrast(gray, 0.2))


def test_pixelate_averages_blocks():
    images = random_images(2)
    changed = corrupt(images, "pixelate", 3)  # half of the resolution
    blocks = changed.unfold(2, 2, 2).unfold(3, 2, 2)
    assert (blocks.amax((-1, -2)) - blocks.amin((-1, -2))).max() < 1e-6
    assert distance(images, changed) < distance(images, images.mean((2, 3), keepdim=True).expand_as(images))


@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_is_that_of_pillow(channels):
    image = random_images(1, channels)
    pixels = (image[0] * 255).round().byte().permute(1, 2, 0).numpy()
    file = io.BytesIO()
    Image.fromarray(pixels.squeeze()).save(file, "jpeg", quality=15)
    expected = torch.from_numpy(np.array(Image.open(file))).view(32, 32, channels).permute(2, 0, 1) / 255
    difference = (corrupt(image, "jpeg", 3)[0] - expected).abs()
    assert difference.mean() < 0.01
    assert difference.mean() < 0.3 * (expected - image[0]).abs().mean()


def test_rotations_turn_by_their_angle_either_way():
    images = torch.zeros(30, 1, 61, 61)
    images[:, :, 30, 31:55] = 1  # a hand that points right
    turned = corrupt(images, "rotation", 5)[:, 0]
    places = torch.arange(61.0) - 30
    down = (turned.sum(2) @ places) / turned.sum((1, 2))
    right = (turned.sum(1) @ places) / turned.sum((1, 2))
    angles = torch.rad2deg(torch.atan2(down, right))
    torch.testing.assert_close(angles.abs(), torch.full((30,), 32.0), atol=0.5, rtol=0)
    assert (angles > 0).any()
    assert (angles < 0).any()


def test_translations_shift_by_their_distance_along_both_axes():
    images = torch.zeros(40, 1, 50, 50)
    images[:, :, 25, 25] = 1
    shifted = corrupt(images, "translation", 5)[:, 0]  # 11 pixels
    places = {tuple((image == image.max()).nonzero()[0].tolist()) for image in shifted}
    assert places == {(25 + down, 25 + right) for down in (-11, 11) for right in (-11, 11)}


def test_occlusion_is_a_gray_square_within_the_image():
    images = torch.ones(50, 3, 40, 30)
    covered = corrupt(images, "occlusion", 4)
    side = 0.45 * 30
    for image in covered:
        assert torch.equal(image[0], image[1])
        rows, columns = (image[0] == 0.5).nonzero().unbind(1)
        for places in (rows, columns):
            assert places.max() - places.min() + 1 == pytest.approx(side, abs=1)
        assert len(rows) == (rows.max() - rows.min() + 1) * (columns.max() - columns.min() + 1)
    milder = corrupt(images, "occlusion", 2)
    assert (covered[milder == 0.5] == 0.5).all()


def test_elastic_moves_pixels_by_its_share_of_the_side():
    ramp = torch.linspace(0, 1, 64).expand(30, 1, 64, 64)
    moved = (corrupt(ramp, "elastic", 3) - ramp)[:, :, 12:-12, 12:-12] * 63  # pixels along one axis
    assert moved.square().mean().sqrt().item() == pytest.approx(0.04 * 64 / math.sqrt(2), rel=0.15)
    assert moved.diff(dim=3).abs().max() < 1.5  # smooth
    torch.testing.assert_close(corrupt(FLAT, "elastic", 2)[:, :, 20:-20, 20:-20], FLAT[:, :, 20:-20, 20:-20])


# --- wrong use


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "fog"}, "the corruption must be one of brightness, contrast"),
        ({"severity": 0}, "severity must be 1, 2, 3, 4 or 5, got 0"),
        ({"severity": 6}, "severity must be"),
        ({"images": torch.zeros(4, 28, 28)}, r"images must be floats \(batch, channels, height, width\)"),
        ({"images": torch.zeros(4, 1, 28, 28, dtype=torch.uint8)}, "images must be floats"),
        ({"images": torch.full((4, 1, 28, 28), 2.0)}, r"must be within clamp=\(0.0, 1.0\), got values from 2 to 2"),
        ({"clamp": (1.0, 0.0)}, "clamp must be"),
        ({"images": torch.zeros(4, 1, 7, 28)}, "pixelate needs images of at least 8 x 8 pixels, got 7 x 28"),
        ({"images": torch.zeros(4, 2, 9, 9), "kind": "jpeg"}, "jpeg needs images of 1 or 3 channels, got 2"),
    ],
)
def test_wrong_arguments_are_refused(changes, message):
    given = {"images": torch.zeros(4, 1, 28, 28), "kind": "pixelate", "severity": 1} | changes
    with pytest.raises(ValueError, match=message):
        corrupt(given.pop("images"), given.pop("kind"), given.pop("severity"), **given)


@pytest.mark.parametrize("kind", names())
def test_small_images_are_corrupted_or_refused(kind):
    images = torch.rand(2, 1, 5, 5)
    smallest = CORRUPTIONS[kind].smallest
    if smallest > 5:
        with pytest.raises(ValueError, match=f"{kind} needs images of at least {smallest} x {smallest}"):
            corrupt(images, kind, 1)
    else:
        assert not torch.equal(corrupt(images, kind, 5), images)
    assert corrupt(images[:0], kind, 1).shape == (0, 1, 5, 5) if CORRUPTIONS[kind].smallest == 1 else True


@pytest.mark.parametrize("kind", names())
def test_the_smallest_images_that_a_kind_takes_are_changed_by_every_severity(kind):
    side = max(CORRUPTIONS[kind].smallest, 8)
    images = torch.rand(4, 1, side, side)
    assert kind in names(side)
    assert kind not in names(CORRUPTIONS[kind].smallest - 1)
    for severity in range(1, 6):
        assert (corrupt(images, kind, severity) - images).square().mean().sqrt() > 0.005


# --- tables


@pytest.mark.parametrize("severity", [1, 2, 3, 4, 5])
def test_tables_lose_values_and_gain_noise(severity):
    rows = torch.randn(4000, 10) + 5
    noise = corrupt_table(rows, "feature_noise", severity) - rows
    assert noise.std().item() == pytest.approx((0.1, 0.2, 0.35, 0.6, 1.0)[severity - 1], rel=0.03)
    missing = corrupt_table(rows, "missing_features", severity)
    share = (0.05, 0.1, 0.2, 0.35, 0.5)[severity - 1]
    assert (missing == 0).double().mean().item() == pytest.approx(share, abs=0.01)
    assert torch.equal(missing[missing != 0], rows[missing != 0])
    if severity > 1:
        before = corrupt_table(rows, "missing_features", severity - 1)
        assert (missing[before == 0] == 0).all()


@pytest.mark.parametrize("kind", table_corruptions.names())
def test_corruptions_of_tables_are_a_function_of_the_seed(kind):
    rows, before = torch.randn(30, 4, dtype=torch.float64), torch.get_rng_state()
    first, again, other = (corrupt_table(rows, kind, 3, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.dtype == torch.float64


@pytest.mark.parametrize(
    ("rows", "kind", "severity", "message"),
    [
        (torch.zeros(3, 2), "jpeg", 1, "of a table must be one of feature_noise, missing_features, got 'jpeg'"),
        (torch.zeros(3, 2), "feature_noise", 9, "severity must be"),
        (torch.zeros(3, 2, 2), "feature_noise", 1, "rows must be floats"),
        (torch.zeros(3, 2, dtype=torch.long), "feature_noise", 1, "rows must be floats"),
        (torch.full((3, 2), torch.nan), "missing_features", 1, "rows must be finite: impute"),
    ],
)
def test_wrong_arguments_for_tables_are_refused(rows, kind, severity, message):
    with pytest.raises(ValueError, match=message):
        corrupt_table(rows, kind, severity)
