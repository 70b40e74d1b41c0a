import torch

from ibreg.runs.data.images import crop_and_flip


def test_crop_and_flip_only_shifts_and_mirrors():
    torch.manual_seed(0)
    images = torch.arange(1.0, 1 + 2 * 16 * 16).view(1, 2, 16, 16).repeat(200, 1, 1, 1)
    padded = torch.nn.functional.pad(images[0], (2, 2, 2, 2))
    views = [padded[:, i : i + 16, j : j + 16] for i in range(5) for j in range(5)]
    views = {view.numpy().tobytes() for view in views} | {view.flip(2).contiguous().numpy().tobytes() for view in views}
    seen = {image.contiguous().numpy().tobytes() for image in crop_and_flip(images)}
    assert seen <= views
    assert len(seen) > 40  # of 50: images of one batch are changed independently


def test_crop_and_flip_follows_the_seed():
    images = torch.randn(8, 3, 32, 32)
    torch.manual_seed(5)
    first = crop_and_flip(images)
    torch.manual_seed(5)
    assert torch.equal(first, crop_and_flip(images))


def test_crop_and_flip_draws_from_a_generator_that_it_is_given():
    images = torch.randn(8, 3, 32, 32)
    before = torch.get_rng_state()
    first, second = (crop_and_flip(images, torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), before)
