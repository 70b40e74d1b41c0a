import inspect
import os
import pickle
from hashlib import md5
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
import yaml
from omegaconf import OmegaConf
from PIL import Image
from sklearn.datasets import load_digits

from ibreg.runs.data import classification as data
from ibreg.runs.data import concepts as concept_data
from ibreg.runs.data import regression as regression_data
from ibreg.runs.data import streams as continual_data
from ibreg.runs.data.classification import load, names
from ibreg.runs.data.images import IMAGENET_MEAN, Normalization, crop_and_flip
from ibreg.runs.data.rows import loader
from ibreg.runs.data.split import Request
from ibreg.runs.dispatch import keyword_options
from ibreg.runs.seeding import seed_all

CONFIGS = Path(__file__).parents[3] / "configs" / "data"
DATA = Path(os.environ.get("IBREG_DATA") or "data")
needs_mnist = pytest.mark.skipif(not (DATA / "MNIST" / "raw").is_dir(), reason="no MNIST under IBREG_DATA")
needs_fashion = pytest.mark.skipif(not (DATA / "FashionMNIST").is_dir(), reason="no Fashion-MNIST under IBREG_DATA")


def write_images(folder, train, test):
    """Writes one-color 12 x 10 images; `train` and `test` map a class to its number of images."""
    for part, counts in (("train", train), ("test", test)):
        for shade, (kind, count) in enumerate(counts.items()):
            (folder / part / kind).mkdir(parents=True)
            for number in range(count):
                color = (60 * shade, number, 200)
                Image.new("RGB", (12, 10), color).save(folder / part / kind / f"{number}.png")
    return folder


def key_rows(rows):
    """Each row as bytes, to compare sets of rows."""
    return {row.numpy().tobytes() for row in rows.inputs}


@pytest.fixture
def small_cifar(tmp_path, monkeypatch):
    """CIFAR-10 in torchvision's format with 30 images per batch file, and the checksums that go with it."""
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    rng = np.random.default_rng(0)

    def write(name, content):
        (folder / name).write_bytes(pickle.dumps(content))
        return [name, md5((folder / name).read_bytes()).hexdigest()]

    def batch(name):
        pixels = rng.integers(0, 256, (30, 3072), dtype=np.uint8)
        return write(name, {"data": pixels, "labels": [row % 10 for row in range(30)]})

    cifar = torchvision.datasets.CIFAR10
    monkeypatch.setattr(cifar, "train_list", [batch(f"data_batch_{number}") for number in range(1, 6)])
    monkeypatch.setattr(cifar, "test_list", [batch("test_batch")])
    name, checksum = write("batches.meta", {"label_names": [f"kind{number}" for number in range(10)]})
    monkeypatch.setattr(cifar, "meta", {"filename": name, "key": "label_names", "md5": checksum})
    return tmp_path


# --- the split


def test_the_split_depends_on_its_seed_alone():
    torch.manual_seed(1)
    first = load("digits", split_seed=3)
    torch.manual_seed(2)
    np.random.seed(2)
    again, other = load("digits", split_seed=3), load("digits", split_seed=4)
    assert torch.equal(first.train.inputs, again.train.inputs)
    assert torch.equal(first.validation.targets, again.validation.targets)
    assert not torch.equal(first.train.inputs, other.train.inputs)


def test_validation_and_limit_leave_the_test_rows_alone():
    plain, other = load("digits", validation=0), load("digits", validation=0.3, limit=100)
    assert plain.validation is None
    assert torch.equal(plain.test.inputs, other.test.inputs)
    assert len(other.train) == 100
    assert torch.bincount(other.train.targets).min() >= 9


def test_a_limit_above_the_number_of_rows_takes_all():
    assert len(load("digits", limit=10**6).train) == len(load("digits").train)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"validation": 1.0}, r"^data\.validation must be a number of at least 0 and below 1, got 1\.0$"),
        ({"validation": -0.1}, r"^data\.validation must be a number of at least 0 and below 1, got -0\.1$"),
        ({"validation": float("nan")}, r"^data\.validation must be a number of at least 0 and below 1, got nan$"),
        ({"validation": "0.1"}, r"^data\.validation must be a number of at least 0 and below 1, got '0\.1'$"),
        ({"test": 0}, r"^data\.test must be a number above 0 and below 1, got 0$"),
        ({"test": 1.5}, r"^data\.test must be a number above 0 and below 1, got 1\.5$"),
        ({"limit": -1}, r"^data\.limit must be an integer of at least 0, got -1$"),
        ({"limit": 0.5}, r"^data\.limit must be an integer of at least 0, got 0\.5$"),
        ({"limit": 9}, "limit=9 cannot be stratified: .* from 10"),
        ({"split_seed": -1}, r"^data\.split_seed must be an integer of at least 0 .* got -1$"),
        ({"validation": 0.001}, "validation=0.001 of 1437 rows cannot have every class in both splits"),
        ({"test": 0.999}, "test=0.999 of 1797 rows cannot have every class"),
        ({"mean": [0.5, 0.5]}, r"mean must be one number, or a list of 1, .* got \[0.5, 0.5\]"),
        ({"std": 0}, "std must be one number above 0.* got 0"),
        ({"std": "wide"}, r"^data\.std must be a number or a list of one or more numbers, got wide$"),
    ],
)
def test_settings_out_of_range_say_what_is_valid(settings, message):
    with pytest.raises(ValueError, match=message):
        load("digits", **settings)


# --- names and options


def test_an_unknown_name_lists_the_sets():
    with pytest.raises(
        ValueError,
        match=r"^data\.name: no data set 'minst' \(did you mean 'mnist'\?\): it is one of cifar10, .*, mnist$",
    ):
        load("minst")


def test_an_unknown_option_lists_the_valid_ones():
    with pytest.raises(ValueError, match=r"^data has no key 'size': it has name, root, .*, mean, std$"):
        load("mnist", size=3)


def test_a_missing_option_is_named():
    with pytest.raises(ValueError, match=r"^data needs the key 'path': give it a value, data\.path=\.\.\.$"):
        load("csv")


@pytest.mark.parametrize("name", names())
def test_the_yaml_has_every_option_with_its_default_and_no_other(name):
    written = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    common = keyword_options(Request)
    own = {p.name: p.default for p in list(inspect.signature(data.SETS[name]).parameters.values())[1:]}
    expected = {**common, **own, "name": name}
    plain = {
        option: "???"
        if default is inspect.Parameter.empty
        else list(default)
        if isinstance(default, tuple)
        else default
        for option, default in expected.items()
    }
    assert written == plain


def test_every_yaml_belongs_to_a_set():
    known = {*names(), *regression_data.names(), *continual_data.names(), *concept_data.names()}
    assert {file.stem for file in CONFIGS.glob("*.yaml")} == known


# --- digits, MNIST, CIFAR-10


def test_digits_are_those_of_scikit_learn():
    found = load("digits", mean=0.25, std=2.0)
    assert found.normalization == Normalization((0.25,), (2.0,))
    pixels, labels = load_digits(return_X_y=True)
    expected = {((row / 16).astype(np.float32).tobytes(), label) for row, label in zip(pixels, labels, strict=True)}
    got = set()
    for part in (found.train, found.validation, found.test):
        got |= {(row.numpy().tobytes(), int(label)) for row, label in zip(part.inputs, part.targets, strict=True)}
    assert got == expected
    assert found.class_names == tuple("0123456789")
    assert found.input_shape == (1, 8, 8)
    assert not key_rows(found.train) & key_rows(found.test)


@needs_mnist
def test_mnist_has_values_from_0_to_1():
    found = load("mnist", root=DATA)
    assert (len(found.train), len(found.validation), len(found.test)) == (54_000, 6_000, 10_000)
    assert found.input_shape == (1, 28, 28)
    assert found.train.inputs.dtype == torch.float32
    assert (found.train.inputs.min(), found.train.inputs.max()) == found.value_range == (0, 1)
    assert torch.bincount(found.test.targets).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    raw = (DATA / "MNIST" / "raw" / "t10k-images-idx3-ubyte").read_bytes()[16:]
    first = torch.tensor(list(raw[:784]), dtype=torch.float32).view(1, 28, 28) / 255
    torch.testing.assert_close(found.test[0][0], first)


@needs_fashion
def test_fashion_mnist_names_its_classes():
    found = load("fashion_mnist", root=DATA, limit=500)
    assert found.class_names[:3] == ("T-shirt/top", "Trouser", "Pullover")
    assert torch.bincount(found.train.targets).tolist() == [50] * 10


def test_cifar10_is_read_into_memory_channels_first(small_cifar):
    found = load("cifar10", root=small_cifar, validation=0.2)
    assert (len(found.train), len(found.validation), len(found.test)) == (120, 30, 30)
    assert found.input_shape == (3, 32, 32)
    raw = pickle.loads((small_cifar / "cifar-10-batches-py" / "test_batch").read_bytes())["data"]
    torch.testing.assert_close(found.test.inputs, torch.tensor(raw).view(30, 3, 32, 32) / 255)
    assert found.class_names[9] == "kind9"


def test_augmentation_follows_its_own_seed_and_leaves_the_global_generator_alone(small_cifar):
    rows = load("cifar10", root=small_cifar, augment=True).train

    def images(*key):
        rows.seed_augmentation(*key)
        return rows.__getitems__(list(range(len(rows))))[0]

    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = images(0, 0, 3, 0)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(images(0, 0, 3, 0), first)
    for other in ((1, 0, 3, 0), (0, 1, 3, 0), (0, 0, 4, 0), (0, 0, 3, 1)):
        assert not torch.equal(images(*other), first)
    # Not the numbers of torch's generator under the same key, of which the noise of a bottleneck is made.
    seed_all(0, 0, 3, 0)
    assert not torch.equal(crop_and_flip(rows.inputs, fill=IMAGENET_MEAN), first)


def test_augmentation_is_for_training_rows_alone(small_cifar):
    found = load("cifar10", root=small_cifar, augment=True)
    assert not torch.equal(found.train[0][0], found.train.inputs[0])
    assert torch.equal(found.validation[0][0], found.validation.inputs[0])
    assert torch.equal(found.test[0][0], found.test.inputs[0])


def test_options_may_come_from_a_hydra_configuration(small_cifar):
    cfg = OmegaConf.create({"name": "cifar10", "root": str(small_cifar), "mean": [0.1, 0.2, 0.3], "std": [1, 1, 2]})
    found, plain = load(**OmegaConf.to_container(cfg)), load("cifar10", root=small_cifar, mean=0, std=1)
    assert found.normalization == Normalization((0.1, 0.2, 0.3), (1.0, 1.0, 2.0))
    assert torch.equal(found.train.inputs, plain.train.inputs)


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "cifar10"])
def test_missing_files_are_named_and_nothing_is_fetched(name, tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(torchvision.datasets.mnist, "download_and_extract_archive", refuse)
    monkeypatch.setattr(torchvision.datasets.cifar, "download_and_extract_archive", refuse)
    with pytest.raises(FileNotFoundError, match=r"put .* there, set data.root or IBREG_DATA.*data.download=true"):
        load(name, root=tmp_path)
    assert not list(tmp_path.iterdir())
    with pytest.raises(AssertionError, match="the network was asked"):
        load(name, root=tmp_path, download=True)


def test_the_environment_variable_stands_in_for_the_root(small_cifar, monkeypatch, tmp_path):
    monkeypatch.setenv("IBREG_DATA", str(small_cifar))
    assert len(load("cifar10").test) == 30
    monkeypatch.delenv("IBREG_DATA")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").symlink_to(small_cifar)
    assert len(load("cifar10").test) == 30


# --- image folders


def test_image_folder_reads_both_parts(tmp_path):
    write_images(tmp_path / "pets", {"cat": 10, "dog": 20}, {"cat": 2, "dog": 3})
    found = load("image_folder", root=tmp_path, path="pets", image_size=8, validation=0.2)
    assert found.class_names == ("cat", "dog")
    assert found.input_shape == (3, 8, 8)
    assert (len(found.train), len(found.validation), len(found.test)) == (24, 6, 5)
    assert torch.bincount(found.train.targets).tolist() == [8, 16]
    assert not set(found.train.inputs.paths) & set(found.validation.inputs.paths)
    inputs, targets = next(iter(loader(found.test, 5)))
    assert targets.tolist() == [0, 0, 1, 1, 1]
    torch.testing.assert_close(inputs[:, 0, 0, 0] * 255, torch.tensor([0.0, 0, 60, 60, 60]))
    torch.testing.assert_close(inputs[:, 1, 4, 4] * 255, torch.tensor([0.0, 1, 0, 1, 2]))
    torch.testing.assert_close(inputs[:, 2], torch.full((5, 8, 8), 200 / 255))


def test_image_folder_augments_training_images_alone(tmp_path):
    write_images(tmp_path, {"cat": 4, "dog": 4}, {"cat": 1, "dog": 1})
    found = load("image_folder", path=tmp_path, image_size=8, validation=0.25, augment=True)
    assert found.train.augment.func is crop_and_flip
    assert found.train.augment.keywords == {"fill": IMAGENET_MEAN}
    assert found.validation.augment is None
    assert found.test.augment is None


@pytest.mark.parametrize(
    ("train", "test", "error", "message"),
    [
        ({"cat": 3, "dog": 3}, {"cat": 1, "emu": 1}, ValueError, r"only one of them has \['dog', 'emu'\]"),
        ({"cat": 3, "dog": 0}, {"cat": 1, "dog": 1}, ValueError, r"no image in .*train for the classes \['dog'\]"),
        ({"cat": 9, "dog": 1}, {"cat": 1, "dog": 1}, ValueError, "class 'dog' has 1 of them"),
        ({"cat": 9}, {"cat": 1}, ValueError, "the only class is 'cat'"),
        (
            {"cat": 3, "dog": 3},
            {},
            FileNotFoundError,
            r"no class folders in .*test: .*train/<class>/ and test/<class>/",
        ),
    ],
)
def test_image_folders_that_cannot_be_used_say_why(tmp_path, train, test, error, message):
    write_images(tmp_path, train, test)
    with pytest.raises(error, match=message):
        load("image_folder", path=tmp_path, image_size=8, validation=0.34)


def test_an_image_folder_that_is_not_there_names_both_places(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no image folder at .*pets nor .*pets: set data.path"):
        load("image_folder", root=tmp_path, path="pets")


def test_an_image_size_below_one_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"^data\.image_size must be an integer of at least 1, got 0$"):
        load("image_folder", path=tmp_path, image_size=0)
