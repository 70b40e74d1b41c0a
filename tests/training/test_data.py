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
from torch.utils.data import RandomSampler, Subset

from ibreg.training import data
from ibreg.training.data import Rows, crop_and_flip, load, loader, names

CONFIGS = Path(__file__).parents[2] / "configs" / "data"
DATA = Path(os.environ.get("IBREG_DATA") or "data")
needs_mnist = pytest.mark.skipif(not (DATA / "MNIST" / "raw").is_dir(), reason="no MNIST under IBREG_DATA")
needs_fashion = pytest.mark.skipif(not (DATA / "FashionMNIST").is_dir(), reason="no Fashion-MNIST under IBREG_DATA")
needs_zoo = pytest.mark.skipif(not (DATA / "concepts").is_dir(), reason="no concepts/zoo.csv under IBREG_DATA")


def write_csv(folder, rows, name="table.csv"):
    file = folder / name
    file.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return file


def table(n=60, seed=0):
    """A header and n rows of two columns and three classes in the ratio 3 : 2 : 1."""
    noise = np.random.default_rng(seed).normal(5, 3, (n, 2))
    kinds = ["owl", "owl", "owl", "bat", "bat", "emu"]
    return ["size,weight,kind", *(f"{a!r},{b!r},{kinds[i % 6]}" for i, (a, b) in enumerate(noise.tolist()))]


def write_pictures(folder, train, test):
    """Writes one-colour 12 x 10 pictures; `train` and `test` map a class to its number of pictures."""
    for part, counts in (("train", train), ("test", test)):
        for shade, (kind, count) in enumerate(counts.items()):
            (folder / part / kind).mkdir(parents=True)
            for number in range(count):
                colour = (60 * shade, number, 200)
                Image.new("RGB", (12, 10), colour).save(folder / part / kind / f"{number}.png")
    return folder


def key_rows(rows):
    """Each row as bytes, to compare sets of rows."""
    return {row.numpy().tobytes() for row in rows.inputs}


@pytest.fixture
def small_cifar(tmp_path, monkeypatch):
    """CIFAR-10 in torchvision's format with 30 pictures per batch file, and the checksums that go with it."""
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


# --- the cut


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_parts_are_stratified_within_one_row_and_share_none(seed):
    labels = np.random.default_rng(7).choice(3, 500, p=[0.7, 0.2, 0.1])
    request = data.Request(Path(), False, 0.15, seed, 200)
    parts = request.cut(labels, ["a", "b", "c"], test=0.2)
    assert [len(part) for part in parts] == [200, 60, 100]
    assert len(set(np.concatenate(parts))) == 360
    for part in parts:
        expected = np.bincount(labels) * len(part) / len(labels)
        # Each of the (up to three) cuts in a row rounds by less than one row of its own.
        assert np.abs(np.bincount(labels[part]) - expected).max() < 2
    held_out = np.bincount(labels[parts[2]])
    assert np.abs(held_out - np.bincount(labels) * 0.2).max() < 1


def test_the_cut_depends_on_its_seed_alone():
    torch.manual_seed(1)
    first = load("digits", split_seed=3)
    torch.manual_seed(2)
    np.random.seed(2)
    again, other = load("digits", split_seed=3), load("digits", split_seed=4)
    assert torch.equal(first.train.inputs, again.train.inputs)
    assert torch.equal(first.validation.targets, again.validation.targets)
    assert not torch.equal(first.train.inputs, other.train.inputs)


def test_validation_and_limit_leave_the_test_part_alone():
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
        ({"validation": 1.0}, "validation=1.0 is a share"),
        ({"validation": -0.1}, "validation=-0.1 is a share"),
        ({"validation": float("nan")}, "validation=nan is a share"),
        ({"validation": "0.1"}, "validation='0.1' is a share"),
        ({"test": 0}, "test=0 is a share: more than 0"),
        ({"test": 1.5}, "test=1.5 is a share"),
        ({"limit": -1}, "limit=-1 is a number of training rows"),
        ({"limit": 0.5}, "limit=0.5 is a number of training rows"),
        ({"limit": 9}, "limit=9 cannot be stratified: .* from 10"),
        ({"split_seed": -1}, "split_seed=-1 is a whole number"),
        ({"validation": 0.001}, "validation=0.001 of 1437 rows cannot have every class on both sides"),
        ({"test": 0.999}, "test=0.999 of 1797 rows cannot have every class"),
        ({"mean": [0.5, 0.5]}, r"mean=\[0.5, 0.5\] is one number, or a list of 1"),
        ({"std": 0}, "std=0 is one number above 0"),
        ({"std": "wide"}, "std='wide' is one number above 0"),
    ],
)
def test_settings_out_of_range_say_what_is_valid(settings, message):
    with pytest.raises(ValueError, match=message):
        load("digits", **settings)


def test_a_limit_that_loses_a_rare_class_names_it(tmp_path):
    rows = ["x,kind", *(f"{i},{'rare' if i < 4 else 'common'}" for i in range(400))]
    with pytest.raises(ValueError, match="limit=20 leaves no training row of class 'rare'"):
        load("csv", root=tmp_path, path=write_csv(tmp_path, rows), target="kind", test=0.25, validation=0, limit=20)


# --- names and options


def test_an_unknown_name_lists_the_sets():
    with pytest.raises(ValueError, match=r"no data set 'minst': it is one of \['cifar10', .*'mnist'\]"):
        load("minst")


def test_an_unknown_option_lists_the_valid_ones():
    with pytest.raises(
        ValueError, match=r"mnist has no option \['size'\]: it has \['mean', 'std'\], all sets \['root'"
    ):
        load("mnist", size=3)


def test_a_missing_option_is_named():
    with pytest.raises(ValueError, match=r"csv needs the option \['path', 'target'\]"):
        load("csv")


@pytest.mark.parametrize("name", names())
def test_the_yaml_has_every_option_with_its_default_and_no_other(name):
    written = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    common = {p.name: p.default for p in inspect.signature(load).parameters.values() if p.kind is p.KEYWORD_ONLY}
    own = {p.name: p.default for p in list(inspect.signature(data._SETS[name]).parameters.values())[1:]}
    expected = {"name": name, **common, **own}
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
    assert sorted(file.stem for file in CONFIGS.glob("*.yaml")) == names()


# --- digits, MNIST, CIFAR-10


def test_digits_are_those_of_scikit_learn():
    found = load("digits", mean=0.25, std=2.0)
    pixels, labels = load_digits(return_X_y=True)
    expected = {
        (((row / 16 - 0.25) / 2).astype(np.float32).tobytes(), label) for row, label in zip(pixels, labels, strict=True)
    }
    got = set()
    for part in (found.train, found.validation, found.test):
        got |= {(row.numpy().tobytes(), int(label)) for row, label in zip(part.inputs, part.targets, strict=True)}
    assert got == expected
    assert found.class_names == tuple("0123456789")
    assert found.input_shape == (1, 8, 8)
    assert not key_rows(found.train) & key_rows(found.test)


@needs_mnist
def test_mnist_is_scaled_to_minus_one_to_one():
    found = load("mnist", root=DATA)
    assert (len(found.train), len(found.validation), len(found.test)) == (54_000, 6_000, 10_000)
    assert found.input_shape == (1, 28, 28)
    assert found.train.inputs.dtype == torch.float32
    assert (found.train.inputs.min(), found.train.inputs.max()) == (-1, 1)
    assert torch.bincount(found.test.targets).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    raw = (DATA / "MNIST" / "raw" / "t10k-images-idx3-ubyte").read_bytes()[16:]
    first = torch.tensor(list(raw[:784]), dtype=torch.float32).view(1, 28, 28) / 255 * 2 - 1
    torch.testing.assert_close(found.test[0][0], first)


@needs_fashion
def test_fashion_mnist_names_its_classes():
    found = load("fashion_mnist", root=DATA, limit=500)
    assert found.class_names[:3] == ("T-shirt/top", "Trouser", "Pullover")
    assert torch.bincount(found.train.targets).tolist() == [50] * 10


def test_cifar10_is_read_into_memory_channels_first(small_cifar):
    found = load("cifar10", root=small_cifar, mean=[0, 0, 0], std=1, validation=0.2)
    assert (len(found.train), len(found.validation), len(found.test)) == (120, 30, 30)
    assert found.input_shape == (3, 32, 32)
    raw = pickle.loads((small_cifar / "cifar-10-batches-py" / "test_batch").read_bytes())["data"]
    torch.testing.assert_close(found.test.inputs, torch.tensor(raw).view(30, 3, 32, 32) / 255)
    assert found.class_names[9] == "kind9"


def test_augmentation_is_for_training_rows_alone(small_cifar):
    found = load("cifar10", root=small_cifar, augment=True)
    assert not torch.equal(found.train[0][0], found.train.inputs[0])
    assert torch.equal(found.validation[0][0], found.validation.inputs[0])
    assert torch.equal(found.test[0][0], found.test.inputs[0])


def test_options_may_come_from_a_hydra_configuration(small_cifar):
    cfg = OmegaConf.create({"name": "cifar10", "root": str(small_cifar), "mean": [0.1, 0.2, 0.3], "std": [1, 1, 2]})
    found, plain = load(**cfg), load("cifar10", root=small_cifar, mean=0, std=1)
    shift = torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)
    torch.testing.assert_close(
        found.train.inputs, (plain.train.inputs - shift) / torch.tensor([1.0, 1, 2]).view(3, 1, 1)
    )


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


# --- augmentation


def test_crop_and_flip_only_shifts_and_mirrors():
    torch.manual_seed(0)
    images = torch.arange(1.0, 1 + 2 * 16 * 16).view(1, 2, 16, 16).repeat(200, 1, 1, 1)
    padded = torch.nn.functional.pad(images[0], (2, 2, 2, 2))
    views = [padded[:, i : i + 16, j : j + 16] for i in range(5) for j in range(5)]
    views = {view.numpy().tobytes() for view in views} | {view.flip(2).contiguous().numpy().tobytes() for view in views}
    seen = {image.contiguous().numpy().tobytes() for image in crop_and_flip(images)}
    assert seen <= views
    assert len(seen) > 40  # of 50: pictures of one batch are changed independently


def test_crop_and_flip_follows_the_seed():
    images = torch.randn(8, 3, 32, 32)
    torch.manual_seed(5)
    first = crop_and_flip(images)
    torch.manual_seed(5)
    assert torch.equal(first, crop_and_flip(images))


# --- image folders


def test_image_folder_reads_both_parts(tmp_path):
    write_pictures(tmp_path / "pets", {"cat": 10, "dog": 20}, {"cat": 2, "dog": 3})
    found = load("image_folder", root=tmp_path, path="pets", image_size=8, mean=0, std=1, validation=0.2)
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


def test_image_folder_augments_training_pictures_alone(tmp_path):
    write_pictures(tmp_path, {"cat": 4, "dog": 4}, {"cat": 1, "dog": 1})
    found = load("image_folder", path=tmp_path, image_size=8, validation=0.25, augment=True)
    assert found.train.augment is crop_and_flip
    assert found.validation.augment is None
    assert found.test.augment is None


@pytest.mark.parametrize(
    ("train", "test", "error", "message"),
    [
        ({"cat": 3, "dog": 3}, {"cat": 1, "emu": 1}, ValueError, r"stand in one only: \['dog', 'emu'\]"),
        ({"cat": 3, "dog": 0}, {"cat": 1, "dog": 1}, ValueError, r"no picture in .*train for the classes \['dog'\]"),
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
    write_pictures(tmp_path, train, test)
    with pytest.raises(error, match=message):
        load("image_folder", path=tmp_path, image_size=8, validation=0.34)


def test_an_image_folder_that_is_not_there_names_both_places(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no image folder at .*pets nor .*pets: set data.path"):
        load("image_folder", root=tmp_path, path="pets")


def test_an_image_size_below_one_is_refused(tmp_path):
    with pytest.raises(ValueError, match="image_size=0 is a number of pixels"):
        load("image_folder", path=tmp_path, image_size=0)


# --- tables


def test_columns_are_standardised_by_the_training_rows(tmp_path):
    lines = table(90)
    found = load("csv", root=tmp_path, path=write_csv(tmp_path, lines).name, target="kind")
    raw = np.array([[float(cell) for cell in line.split(",")[:2]] for line in lines[1:]])
    kinds = np.array([line.split(",")[2] for line in lines[1:]])
    parts = found.train, found.validation, found.test
    assert [len(part) for part in parts] == [64, 8, 18]
    assert found.class_names == ("bat", "emu", "owl")

    train = found.train.inputs.double().numpy()
    np.testing.assert_allclose(train.mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(train.std(0), 1, atol=1e-6)
    # The raw training rows are found again by their order, and numpy standardises every row by them.
    everything = np.concatenate([part.inputs.double().numpy() for part in parts])
    labels = np.concatenate([part.targets.numpy() for part in parts])
    rows = np.argsort(raw[:, 0])[np.argsort(np.argsort(everything[:, 0]))]
    fitted = raw[rows[: len(train)]]
    np.testing.assert_allclose(everything, (raw[rows] - fitted.mean(0)) / fitted.std(0), atol=1e-5)
    assert (np.array(found.class_names)[labels] == kinds[rows]).all()


def test_constant_columns_become_zero(tmp_path):
    lines = ["flat,size,kind", *(f"0.1,{i},{'ab'[i % 2]}" for i in range(40))]
    found = load("csv", path=write_csv(tmp_path, lines), target="kind")
    assert found.train.inputs[:, 0].abs().max() < 1e-6
    assert found.test.inputs.isfinite().all()


def test_integer_classes_keep_their_own_order(tmp_path):
    lines = ["size,grade", *(f"{i},{[10, 9, -1][i % 3]}" for i in range(60))]
    found = load("csv", path=write_csv(tmp_path, lines), target="grade")
    assert found.class_names == ("-1", "9", "10")
    size = found.train.inputs[:, 0]
    assert found.train.targets.dtype == torch.int64
    assert size.shape == found.train.targets.shape


def test_spaces_a_byte_order_mark_quotes_and_blank_lines_do_no_harm(tmp_path):
    rows = ["\ufeffsize, kind", "", *(f'"{i}", "{["a b", "c,d"][i % 2]}"'.replace(", ", ",") for i in range(40)), ""]
    found = load("csv", path=write_csv(tmp_path, rows), target="kind")
    assert found.class_names == ("a b", "c,d")


def test_the_same_path_is_looked_up_under_the_root_first(tmp_path, monkeypatch):
    (tmp_path / "root").mkdir()
    monkeypatch.chdir(tmp_path)
    write_csv(tmp_path, table(60))
    assert len(load("csv", root="root", path="table.csv", target="kind").test) == 12
    write_csv(tmp_path / "root", table(120))
    assert len(load("csv", root="root", path="table.csv", target="kind").test) == 24


PAIR = ["a,b,kind", *(f"{i},{i * i},{'xy'[i % 2]}" for i in range(40))]


@pytest.mark.parametrize(
    ("lines", "options", "message"),
    [
        ([*PAIR[:5], "cat,1,x", *PAIR[5:]], {}, r"column 'a', line 6: cat\. .*data.drop=\[a\]"),
        ([*PAIR[:5], "1,,x", *PAIR[5:]], {}, "column 'b', line 6: empty"),
        ([*PAIR, "NaN,inf,x"], {}, r"column 'a', line 42: NaN; column 'b', line 42: inf\. .*data.drop=\[a,b\]"),
        ([*PAIR, "1,2,"], {}, "column 'kind', line 42: the target is missing"),
        ([*PAIR, "1,2"], {}, "line 42: 2 cells under a header of 3 columns"),
        (PAIR, {"target": "kinds"}, r"no column 'kinds'; the closest is 'kind' of \['a', 'b', 'kind'\]"),
        (PAIR, {"drop": ["A"]}, "no column 'A'"),
        (PAIR, {"drop": "a"}, r"drop='a' is a list of columns: data.drop=\[a\]"),
        (PAIR, {"drop": ["kind"]}, "the target 'kind' stands in drop"),
        (PAIR, {"drop": ["a", "b"]}, "no column left to learn from"),
        (PAIR, {"target": "a"}, "not a finite number: column 'kind', line 2: x"),
        (PAIR[:1], {}, "has no rows"),
        ([""], {}, "has no rows"),
        (["a,a,kind", "1,2,x"], {}, "more than one column of the name 'a'"),
        (["a,kind", *(f"{i},x" for i in range(9))], {}, "the only class is 'x'"),
        (["a,kind", *(f"{i},{i / 7}" for i in range(9))], {}, "column 'kind' holds fractions such as 0.14"),
        ([*PAIR, "1,2,z"], {}, "test=0.2 of 41 rows .* class 'z' has 1 of them. Set data.test nearer"),
        ([*PAIR, "1,2,z", "1,3,z"], {}, "validation=0.1 of 33 rows .* class 'z' has 1 of them"),
    ],
)
def test_tables_that_cannot_be_used_say_why(tmp_path, lines, options, message):
    with pytest.raises(ValueError, match=message):
        load("csv", path=write_csv(tmp_path, lines), **{"target": "kind", **options})


def test_a_table_that_is_not_utf8_says_so(tmp_path):
    (tmp_path / "table.csv").write_bytes("größe,kind\n1,a\n".encode("latin-1"))
    with pytest.raises(ValueError, match="is not UTF-8 text"):
        load("csv", path=tmp_path / "table.csv", target="kind")


def test_a_table_that_is_not_there_cannot_be_fetched(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no table at .*which data.download=true cannot fetch"):
        load("csv", root=tmp_path, path="none.csv", target="kind", download=True)


@needs_zoo
def test_the_zoo_is_read():
    found = load(
        "csv",
        root=DATA,
        path="concepts/zoo.csv",
        target="type",
        drop=["animal"],
        test=0.3,
        validation=0.3,
        split_seed=1,
    )
    assert found.classes == 7
    assert found.input_shape == (16,)
    assert len(found.train) + len(found.validation) + len(found.test) == 101
    with pytest.raises(ValueError, match="column 'animal', line 2: aardvark"):
        load("csv", root=DATA, path="concepts/zoo.csv", target="type")


# --- rows and the loader


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
