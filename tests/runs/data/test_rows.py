"""Rows that are fetched a batch at a time, in this process or in others."""

import pickle
import warnings
from functools import partial

import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration
from PIL import Image
from torch.utils.data import RandomSampler, Subset

from ibreg.runs.data import few_shot
from ibreg.runs.data.image_files import ImageFiles
from ibreg.runs.data.images import crop_and_flip
from ibreg.runs.data.rows import Rows, loader
from ibreg.runs.seeding import EpochSampler

# A warning of Python 3.12 and later.
forks = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


class Images:
    """Inputs that are fetched on access, as image files are."""

    def __init__(self, count, workers):
        self.pixels, self.workers = torch.arange(count * 12.0).view(count, 3, 2, 2), workers

    def __getitem__(self, indices):
        return self.pixels[indices]


def noisy(images, generator):
    return images + torch.rand(images.shape, generator=generator)


def made(workers=0, count=20):
    return Rows(Images(count, workers), torch.arange(count), noisy)


def test_rows_are_fetched_a_batch_at_a_time():
    class Counted(Rows):
        calls = 0

        def __getitems__(self, indices):
            self.calls += 1
            return super().__getitems__(indices)

    rows = Counted(torch.randn(100, 3), torch.arange(100))
    batches = list(loader(rows, 32, sampler=RandomSampler(rows)))
    assert rows.calls == 4
    order = torch.cat([targets for _, targets in batches])
    assert sorted(order.tolist()) == list(range(100))
    assert torch.equal(torch.cat([inputs for inputs, _ in batches]), rows.inputs[order])
    assert len(list(loader(rows, 32, drop_last=True))) == 3


def test_the_loader_takes_subsets_and_other_sets_too():
    rows = Rows(torch.randn(10, 3), torch.arange(10))
    plain = [(row, int(target)) for row, target in zip(rows.inputs, rows.targets, strict=True)]
    for dataset in (Subset(rows, [4, 2, 7]), Subset(plain, [4, 2, 7]), [plain[4], plain[2], plain[7]]):
        ((inputs, targets),) = loader(dataset, 8)
        assert targets.tolist() == [4, 2, 7]
        assert torch.equal(inputs, rows.inputs[[4, 2, 7]])
    ((inputs, targets),) = loader(rows, 8, sampler=[4, 2, 7])
    assert targets.tolist() == [4, 2, 7]


def test_the_augmentation_of_a_batch_depends_on_its_key_and_rows_alone():
    rows = made()

    def batch(*key, indices=(4, 2, 7)):
        rows.seed_augmentation(*key)
        return rows.__getitems__(list(indices))[0]

    first = batch(0, 0, 3, 0)
    rows.__getitems__([1, 5])
    torch.manual_seed(7)
    assert torch.equal(batch(0, 0, 3, 0), first)
    assert torch.equal(rows.__getitems__([4, 2, 7])[0], first)  # fetched again, by another process for example
    for other in ((1, 0, 3, 0), (0, 1, 3, 0), (0, 0, 4, 0), (0, 0, 3, 1)):
        assert not torch.equal(batch(*other), first)
    # Another batch of the epoch is augmented by other numbers.
    noise = batch(0, 0, 3, 0) - rows.inputs[[4, 2, 7]]
    assert not torch.equal(batch(0, 0, 3, 0, indices=(5, 3, 8)) - rows.inputs[[5, 3, 8]], noise)


@forks
@pytest.mark.parametrize("workers", [1, 2])
def test_batches_do_not_depend_on_the_number_of_worker_processes(workers):
    def batches(count):
        rows, found = made(count), []
        sampler = EpochSampler(len(rows), seed=3)
        prepared = loader(rows, 6, sampler=sampler, drop_last=True)
        assert prepared.num_workers == count
        for epoch in range(2):
            rows.seed_augmentation(3, epoch, 0)
            sampler.set_epoch(epoch)
            torch.manual_seed(epoch)
            found += list(prepared)
            found.append((torch.rand(1), torch.tensor(0)))  # the noise of a model draws the same numbers
        return found

    alone, other = batches(0), batches(workers)
    assert len(alone) == len(other) == 2 * 4
    for (x, y), (u, v) in zip(alone, other, strict=True):
        assert torch.equal(x, u)
        assert torch.equal(y, v)
    assert not torch.equal(alone[0][0], alone[4][0])


def test_there_are_no_more_worker_processes_than_batches():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "This DataLoader will create 3 worker processes", UserWarning)  # on 2 cores
        assert [loader(made(workers=3), size).num_workers for size in (1, 7, 10, 19, 20, 64)] == [3, 3, 2, 2, 0, 0]
        assert loader(made(workers=3), 4, sampler=list(range(8))).num_workers == 2
    assert loader(made(workers=0), 4).num_workers == 0


def test_rows_of_image_files_can_be_sent_to_a_process_that_is_spawned(tmp_path):
    """As on macOS and Windows, where worker processes do not inherit the memory."""
    Image.new("RGB", (4, 4), (255, 0, 0)).save(tmp_path / "0.png")
    augment = partial(crop_and_flip, fill=(0.0, 0.0, 0.0))
    rows = Rows(ImageFiles([str(tmp_path / "0.png")], 8, workers=1), torch.tensor([0]), augment)
    rows.seed_augmentation(3, 1, 0)
    for sent in (rows, few_shot.take(rows, [0])):
        sent.seed_augmentation(3, 1, 0)
        assert torch.equal(pickle.loads(pickle.dumps(sent)).__getitems__([0])[0], rows.__getitems__([0])[0])


def test_every_selection_of_rows_keeps_the_workers():
    rows = made(workers=2)
    kept = few_shot.take(rows, [3, 1, 4])
    assert (rows.workers, kept.workers, few_shot.spread(rows, 5).workers, few_shot.take(kept, [0]).workers) == (2,) * 4
    assert Rows(torch.zeros(3, 1), torch.zeros(3)).workers == 0


def test_the_loader_that_accelerate_prepares_keeps_the_workers():
    accelerator = Accelerator(cpu=True, dataloader_config=DataLoaderConfiguration(split_batches=True))
    prepared = accelerator.prepare_data_loader(loader(made(workers=2), 6))
    assert prepared.num_workers == 2
