import torch

from ibreg.runs.data.images import IMAGENET_MEAN, Normalization, crop_and_flip
from ibreg.runs.models.normalization import Normalize


def test_crop_and_flip_only_shifts_and_mirrors():
    torch.manual_seed(0)
    images = torch.arange(1.0, 1 + 2 * 16 * 16).view(1, 2, 16, 16).repeat(200, 1, 1, 1)
    fill = (-1.0, -2.0)
    padded = torch.tensor(fill).view(2, 1, 1).repeat(1, 20, 20)
    padded[:, 2:18, 2:18] = images[0]
    views = [padded[:, i : i + 16, j : j + 16] for i in range(5) for j in range(5)]
    views = {view.numpy().tobytes() for view in views} | {view.flip(2).contiguous().numpy().tobytes() for view in views}
    seen = {image.contiguous().numpy().tobytes() for image in crop_and_flip(images, fill=fill)}
    assert seen <= views
    assert len(seen) > 40  # of 50: images of one batch are changed independently


def test_crop_and_flip_follows_the_seed():
    images = torch.randn(8, 3, 32, 32)
    torch.manual_seed(5)
    first = crop_and_flip(images, fill=IMAGENET_MEAN)
    torch.manual_seed(5)
    assert torch.equal(first, crop_and_flip(images, fill=IMAGENET_MEAN))


def test_crop_and_flip_draws_from_a_generator_that_it_is_given():
    images = torch.randn(8, 3, 32, 32)
    before = torch.get_rng_state()
    first, second = (crop_and_flip(images, torch.Generator().manual_seed(5), fill=IMAGENET_MEAN) for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_network_reads_the_padding_as_zero():
    """Padding with the mean and then normalizing is the published augmentation, which pads normalized images with 0."""
    images, std = torch.rand(50, 3, 32, 32), (0.2, 0.3, 0.4)
    normalize = Normalize(Normalization(IMAGENET_MEAN, std))
    padded = normalize(crop_and_flip(images, torch.Generator().manual_seed(1), fill=IMAGENET_MEAN))
    published = crop_and_flip(normalize(images), torch.Generator().manual_seed(1), fill=(0.0, 0.0, 0.0))
    assert torch.equal(padded, published)
    assert (published == 0).any()
