"""Concept data against their definitions, splits without overlap, YAML files and errors."""

import inspect
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from omegaconf import OmegaConf
from PIL import Image
from torch.testing import assert_close

from ibreg.runs.data import concepts as concept_data
from ibreg.runs.data.concepts import DIGIT_CONCEPTS, load, names
from ibreg.runs.data.rows import loader
from ibreg.runs.data.shapes import SHAPE_CONCEPTS, draw_shapes
from ibreg.runs.dispatch import keyword_options

CONFIGS = Path(__file__).parents[3] / "configs" / "data"
DATA = Path(os.environ.get("IBREG_DATA") or "data")
OFFLINE = ("xor", "trigonometry", "dot", "digits_concepts", "shapes")


def splits_of(data):
    return [split for split in (data.train, data.validation, data.test) if split is not None]


def whole(data):
    """All rows: inputs, targets, concepts."""
    splits = splits_of(data)
    return (torch.cat([getattr(split, name) for split in splits]) for name in ("inputs", "targets", "concepts"))


@pytest.fixture
def table(tmp_path):
    """40 animals: a number, a yes-or-no concept, one with three values, a continuous one, a class."""
    file = tmp_path / "animals.csv"
    lines = ["name,weight,striped,hue,height,kind"]
    for row in range(40):
        striped = "" if row == 7 else row % 2
        hue = "" if row == 9 else ("red", "green", "blue")[row % 3]
        lines.append(f"a{row},{row * 0.5},{striped},{hue},{row / 10},{'cat' if row % 4 < 2 else 'dog'}")
    file.write_text("\n".join(lines) + "\n")
    concepts = [
        "striped",
        {"name": "hue", "values": ["red", "green", "blue"]},
        {"name": "height", "kind": "continuous"},
    ]
    return {"name": "concept_csv", "path": file, "target": "kind", "concepts": concepts, "drop": ["name"]}


# --- the sets against their definitions


def test_xor_is_the_exclusive_or_of_two_halves():
    found = load("xor")
    _, targets, concepts = whole(found)
    assert len(targets) == 3000
    assert torch.equal(targets, (concepts[:, 0] != concepts[:, 1]).long())
    # Standardization keeps the order: all points on the right are right of all others.
    x, _, c = whole(found)
    for place in range(2):
        assert x[c[:, place] == 1, place].min() > x[c[:, place] == 0, place].max()


def test_trigonometry_is_made_of_one_latent_variable():
    """x_i - x_{i+3} = sin h - cos h and |h|^2 = x_7: inputs, concepts and classes belong to one hidden h."""
    request = concept_data.ConceptRequest()
    hidden = 2 * request.rng(0).standard_normal((3000, 3))
    expected = np.hstack([np.sin(hidden) + hidden, np.cos(hidden) + hidden, (hidden**2).sum(1, keepdims=True)])
    parts = request.stratified_split((hidden.sum(1) > 1).astype(int), ["no", "yes"], 0.2)
    found = load("trigonometry")
    for part, rows in zip(splits_of(found), parts, strict=True):
        scaled = (expected[rows] - expected[parts[0]].mean(0)) / expected[parts[0]].std(0)
        assert_close(part.inputs, torch.tensor(scaled, dtype=torch.float32))
        assert torch.equal(part.concepts, torch.tensor(hidden[rows] > 0).float())
        assert torch.equal(part.targets, torch.tensor(hidden[rows].sum(1) > 1).long())


def test_dot_is_made_of_two_latent_vectors():
    request = concept_data.ConceptRequest(split_seed=4)
    first, third = 2 * request.rng(0).standard_normal((2, 500, 2))
    expected = np.hstack([first + third, first - third])
    classes = (first * third).sum(1) > 0
    parts = request.stratified_split(classes.astype(int), ["no", "yes"], 0.2)
    found = load("dot", size=500, split_seed=4)
    for part, rows in zip(splits_of(found), parts, strict=True):
        scaled = (expected[rows] - expected[parts[0]].mean(0)) / expected[parts[0]].std(0)
        assert_close(part.inputs, torch.tensor(scaled, dtype=torch.float32))
        # v1 . (1, 1) > 0 and v3 . (-1, -1) > 0
        assert torch.equal(part.concepts[:, 0], torch.tensor(first[rows] @ [1, 1] > 0).float())
        assert torch.equal(part.concepts[:, 1], torch.tensor(third[rows] @ [-1, -1] > 0).float())
        assert torch.equal(part.targets, torch.tensor(classes[rows]).long())


def test_digit_concepts_determine_the_digit():
    found = load("digits_concepts")
    _, targets, concepts = whole(found)
    assert found.concepts.names == tuple(DIGIT_CONCEPTS)
    for place, digits in enumerate(DIGIT_CONCEPTS.values()):
        assert torch.equal(concepts[:, place], torch.isin(targets, torch.tensor(digits)).float())
    rows = {digit: concepts[targets == digit] for digit in range(10)}
    assert all((each == each[0]).all() for each in rows.values())
    assert len({tuple(each[0].tolist()) for each in rows.values()}) == 10


@pytest.mark.skipif(not (DATA / "MNIST").is_dir(), reason="no MNIST under IBREG_DATA")
def test_mnist_concepts_are_the_digits_of_their_images():
    added = load("mnist_addition", size=4000, test=0.5)
    _, sums, concepts = whole(added)
    assert torch.equal(concepts.view(-1, 2, 10).argmax(2).sum(1), sums)
    assert added.input_shape == (1, 28, 56)
    assert added.classes == 19
    assert list(added.concepts.members) == ["left", "right"]
    assert [len(part) for part in splits_of(added)] == [1600, 400, 2000]
    # A pair is made of two images of its concepts.
    digits = concept_data.data.load("mnist", validation=0)
    x, _, c = added.test.__getitems__([0])
    for half, label in zip(x.split(28, dim=3), c.view(2, 10).argmax(1), strict=True):
        same = (digits.test.inputs == half).flatten(1).all(1)
        assert same.any()
        assert digits.test.targets[same][0] == label
    _, above, concepts = whole(load("mnist_addition", size=600, test=0.5, threshold=9))
    assert torch.equal(above, (concepts.view(-1, 2, 10).argmax(2).sum(1) > 9).long())
    _, odd, concepts = whole(load("mnist_parity", size=300))
    assert torch.equal(odd, concepts.argmax(1) % 2)


def test_the_class_of_shapes_follows_three_concepts_and_the_background_flips():
    found = load("shapes", size=1200, image_size=12)
    assert found.concepts.names == SHAPE_CONCEPTS
    _, targets, concepts = whole(found)
    assert torch.equal(targets, (concepts[:, :3].sum(1) >= 2).long())
    assert (concepts[:, 4] == targets).float().mean() == pytest.approx(0.95, abs=0.03)
    assert concepts[:, 3].mean() == pytest.approx(0.5, abs=0.05)
    for label in (0, 1):  # concepts vary within a class
        assert (concepts[targets == label][:, :4].std(0) > 0.3).all()
    shifted = found.shifted
    assert torch.equal(shifted.targets, found.test.targets)
    assert torch.equal(shifted.concepts[:, :4], found.test.concepts[:, :4])
    assert torch.equal(shifted.concepts[:, 4], 1 - found.test.concepts[:, 4])
    assert not torch.equal(shifted.inputs, found.test.inputs)


def test_each_concept_of_a_shape_changes_its_image():
    def drawn(*concepts):
        return draw_shapes(np.array([concepts]), 48, 0.0, np.random.default_rng(3))[0]

    plain = drawn(0, 0, 0, 0, 0)

    def area(image):
        return int((image[2] > image[0]).sum() + (image[0] > image[2]).sum())

    assert area(drawn(0, 1, 0, 0, 0)) > 1.4 * area(plain)  # large
    assert area(drawn(1, 0, 0, 0, 0)) == pytest.approx(area(plain), rel=0.15)  # a circle of the same area
    red = drawn(0, 0, 0, 1, 0)
    assert torch.equal(red[0], plain[2])
    assert torch.equal(red[2], plain[0])
    assert len(drawn(0, 0, 1, 0, 0)[2].unique()) == len(plain[2].unique()) + 1  # stripes have a second light
    corner = plain[:, 0, 0]
    assert (drawn(0, 0, 0, 0, 1)[:, 0, 0] > corner).all()


@pytest.mark.skipif(not (DATA / "concepts" / "zoo.csv").is_file(), reason="no concepts/zoo.csv under IBREG_DATA")
def test_the_zoo_has_19_concepts_four_of_them_for_the_legs():
    found = load("zoo")
    assert sum(len(part) for part in splits_of(found)) == 101
    assert found.concepts.members["legs"] == (15, 16, 17, 18)
    _, targets, concepts = whole(found)
    assert (concepts[:, 15:].sum(1) == 1).all()
    birds = concepts[targets == found.class_names.index("bird")]
    assert (birds[:, found.concepts.index("feathers")] == 1).all()
    assert (birds[:, found.concepts.index("legs=2")] == 1).all()


# --- tables and images of one's own


def test_a_table_gives_features_concepts_and_classes(table):
    found = load(**table)
    assert found.input_shape == (1,)
    assert found.class_names == ("cat", "dog")
    assert found.concepts.names == ("striped", "hue=red", "hue=green", "hue=blue", "height")
    x, _, concepts = whole(found)
    assert concepts[:, 0].isnan().sum() == 1
    assert concepts[:, 1:4].isnan().all(1).sum() == 1
    # The weight is 5 times the height; both are standardized by the training rows.
    assert_close(x[:, 0], concepts[:, 4])
    assert_close(found.train.concepts[:, 4].mean(), torch.tensor(0.0), atol=1e-6, rtol=0)
    assert_close(found.train.concepts[:, 4].std(correction=0), torch.tensor(1.0))
    known = ~concepts.isnan().any(1)
    row = (found.in_units(concepts)[known, 4] * 10).round()
    assert torch.equal(concepts[known, 0].double(), row % 2)
    assert torch.equal(concepts[known, 1:4].argmax(1).double(), row % 3)


def test_concepts_of_a_table_may_be_described_in_a_file(table, tmp_path):
    (tmp_path / "concepts.yaml").write_text(yaml.safe_dump(table["concepts"]))
    named = load(**{**table, "concepts": str(tmp_path / "concepts.yaml")})
    for one, other in zip(whole(load(**table)), whole(named), strict=True):
        assert_close(one, other, equal_nan=True)
    composed = OmegaConf.to_container(OmegaConf.create({"concepts": table["concepts"], "drop": ["name"]}))
    from_hydra = load(**{**table, **composed})
    assert from_hydra.concepts == named.concepts


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"concepts": ["stripd"]}, "has no column 'stripd'; the closest is 'striped'"),
        ({"concepts": []}, r"data.concepts must be a list of columns, such as \[red, .*, got \[\]"),
        (
            {"concepts": ["hue"]},
            r"column 'hue', line 2, must be a number or empty .*, got red; for text, list its values: "
            r'\{name: hue, values: \["blue", "green", "red"\]\}',
        ),
        ({"concepts": [{"name": "hue", "values": ["red", "blue"]}]}, "line 3, must be one of .*, got green"),
        ({"concepts": ["height"], "drop": ["name", "striped", "hue"]}, r"labels of concept 'height' must be in"),
        ({"concepts": [{"name": "striped", "knd": "binary"}]}, "has no field 'knd'"),
        ({"missing": 1.0}, "data.missing must be a number of at least 0 and below 1, got 1.0"),
        ({"target": "kin"}, "has no column 'kin'; the closest is 'kind'"),
    ],
)
def test_invalid_tables_and_settings(table, settings, message):
    with pytest.raises(ValueError, match=message):
        load(**{**table, **settings})


def test_a_concept_without_a_training_label_is_an_error(table):
    file = table["path"]
    lines = file.read_text().splitlines()
    file.write_text("\n".join([lines[0], *(line.replace(line.split(",")[2], "", 1) for line in lines[1:])]) + "\n")
    empty = "\n".join([lines[0], *(",".join([*line.split(",")[:2], "", *line.split(",")[3:]]) for line in lines[1:])])
    file.write_text(empty + "\n")
    with pytest.raises(ValueError, match="all labels of concept 'striped' are missing"):
        load(**table)


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    lines = ["file,red"]
    for part, count in (("train", 8), ("test", 3)):
        for kind in ("cat", "dog"):
            place = tmp_path / part / kind
            place.mkdir(parents=True)
            for number in range(count):
                red = int(rng.integers(2))
                Image.new("RGB", (12, 12), (255 * red, 0, 0)).save(place / f"{number}.png")
                lines.append(f"{part}/{kind}/{number}.png,{red}")
    (tmp_path / "concepts.csv").write_text("\n".join(lines) + "\n")
    return tmp_path


def test_images_get_the_concepts_of_their_row(folder):
    found = load("concept_image_folder", path=folder, concepts=["red"], image_size=8, validation=0.25)
    assert [len(part) for part in splits_of(found)] == [12, 4, 6]
    for part in splits_of(found):
        x, _, c = part.__getitems__(list(range(len(part))))
        assert_close(x[:, 0].mean((1, 2)), c[:, 0])
    with pytest.raises(ValueError, match="has no column 'blue'"):
        load("concept_image_folder", path=folder, concepts=["blue"])
    table = folder / "concepts.csv"
    table.write_text("\n".join(table.read_text().splitlines()[:-1]) + "\n")
    message = r"has no row for 1 of 22 images, such as test/dog/2\.png: .* its own files are such as train/cat/0\.png"
    with pytest.raises(ValueError, match=message):
        load("concept_image_folder", path=folder, concepts=["red"])
    table.unlink()
    with pytest.raises(FileNotFoundError, match="no concept table at"):
        load("concept_image_folder", path=folder, concepts=["red"])


@pytest.mark.parametrize("written", ["./train/cat/0.png", "train//cat/0.png", "train\\cat\\0.png", "train/./cat/0.png"])
def test_a_file_is_found_however_its_path_is_written(folder, written):
    table = folder / "concepts.csv"
    expected = load("concept_image_folder", path=folder, concepts=["red"], image_size=8, validation=0.25)
    table.write_text(table.read_text().replace("train/cat/0.png", written))
    found = load("concept_image_folder", path=folder, concepts=["red"], image_size=8, validation=0.25)
    assert torch.equal(found.train.concepts, expected.train.concepts)


def test_an_accent_may_be_one_character_or_two(folder):
    """The file system of macOS writes e and its accent as two characters."""
    (folder / "train" / "cat" / "0.png").rename(folder / "train" / "cat" / "caf\u00e9.png")
    table = folder / "concepts.csv"
    table.write_text(table.read_text().replace("train/cat/0.png", "train/cat/cafe\u0301.png"))
    assert len(load("concept_image_folder", path=folder, concepts=["red"], image_size=8, validation=0.25).train) == 12


def test_a_file_with_two_rows_is_an_error(folder):
    table = folder / "concepts.csv"
    table.write_text(table.read_text() + "./train/dog/1.png,1\n")
    message = (
        r"column 'file', line 24, must be a file of its own, got \./train/dog/1\.png, which also is in column 'file', "
        "line 11: leave one of the rows out"
    )
    with pytest.raises(ValueError, match=message):
        load("concept_image_folder", path=folder, concepts=["red"])


def test_rows_of_other_files_are_told(folder):
    table = folder / "concepts.csv"
    table.write_text(table.read_text() + "train/emu/1.png,1\n3.png,0\n")
    with pytest.warns(
        UserWarning, match=r"concepts\.csv has 2 rows of files that are no images .*, such as train/emu/1"
    ):
        load("concept_image_folder", path=folder, concepts=["red"], image_size=8, validation=0.25)


def test_images_with_concepts_are_read_as_those_without(folder):
    """Upright, 16 bits scaled, hidden files and broken ones left out, by worker processes."""
    exif = Image.Exif()
    exif[0x0112] = 6  # the first row that is stored is the right side of the image
    pixels = np.zeros((8, 8, 3), dtype=np.uint8)
    pixels[:4] = 255
    cat = folder / "train" / "cat"
    Image.fromarray(pixels).save(cat / "0.png", exif=exif)
    Image.fromarray(np.full((8, 8), 40_000, dtype=np.uint16)).save(cat / "1.png")
    (cat / "2.png").write_bytes(b"")
    (cat / ".ipynb_checkpoints").mkdir()
    Image.new("RGB", (8, 8)).save(cat / ".ipynb_checkpoints" / "0.png")
    with pytest.warns(
        UserWarning, match=r"left out 1 file that cannot be read: .*cat/2\.png is broken|has 1 rows of files"
    ):
        found = load(
            "concept_image_folder", path=folder, concepts=["red"], image_size=8, validation=0, broken="skip", workers=1
        )
    assert (len(found.train), found.train.workers, found.test.workers) == (15, 1, 1)
    x, _, _ = found.train.__getitems__([0, 1])
    assert x[0, 0, 0].tolist() == [0.0] * 4 + [1.0] * 4
    assert_close(x[1], torch.full((3, 8, 8), 40_000 / 65_535))


# --- splits, missing labels, names


@pytest.mark.parametrize("name", OFFLINE)
def test_splits_are_seeded_and_do_not_overlap(name):
    options = {"size": 300, "image_size": 8} if name == "shapes" else {}
    one, same, other = load(name, **options), load(name, **options), load(name, split_seed=1, **options)
    assert torch.equal(one.test.inputs, same.test.inputs)
    assert not torch.equal(one.test.inputs, other.test.inputs)
    rows = torch.cat([part.inputs.flatten(1) for part in splits_of(one)])
    assert len(rows.unique(dim=0)) >= len(rows) - 1  # digits has one image twice
    assert len(load(name, limit=100, **options).train) == 100
    assert load(name, validation=0, **options).validation is None


def test_a_fraction_of_the_training_labels_can_be_removed(tmp_path):
    found = load("digits_concepts", missing=0.3)
    assert float(found.train.concepts.isnan().float().mean()) == pytest.approx(0.3, abs=0.03)
    assert not found.validation.concepts.isnan().any()
    assert not found.test.concepts.isnan().any()
    kept = load("digits_concepts").train.concepts
    known = ~found.train.concepts.isnan()
    assert torch.equal(found.train.concepts[known], kept[known])


def test_a_batch_has_inputs_classes_and_concepts():
    found = load("digits_concepts")
    x, y, c = next(iter(loader(found.train, 16)))
    assert (x.shape, y.shape, c.shape) == ((16, 1, 8, 8), (16,), (16, 6))
    assert (x.dtype, y.dtype, c.dtype) == (torch.float32, torch.int64, torch.float32)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("digit", {}, r"^data.name: no data set with concepts 'digit'.*: it is one of concept_csv, "),
        ("xor", {"rows": 5}, "^data has no key 'rows': it has name, root, .*, missing, size, test$"),
        ("xor", {"size": 0}, r"^data\.size must be an integer of at least 1, got 0$"),
        ("xor", {"test": 0}, r"^data\.test must be a number above 0 and below 1, got 0$"),
        ("shapes", {"image_size": 4}, r"^data\.image_size must be an integer of at least 8, got 4$"),
        ("shapes", {"spurious": 1.5}, r"^data\.spurious must be a number of at least 0 and at most 1, got 1\.5$"),
        ("shapes", {"noise": -1}, r"^data\.noise must be a number of at least 0, got -1$"),
        (
            "mnist_addition",
            {"threshold": 18},
            r"^data\.threshold must be an integer of at least 0 and below 18 or null, got 18$",
        ),
        ("mnist_parity", {"test": 1.0}, r"^data\.test must be a number above 0 and below 1, got 1\.0$"),
        ("xor", {"size": 10, "missing": 0.99}, "all labels of concept 'right' are missing"),
    ],
)
def test_unknown_names_and_options_out_of_range(name, settings, message):
    with pytest.raises(ValueError, match=message):
        load(name, **settings)


def test_missing_files_name_their_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"put zoo\.csv there"):
        load("zoo", root=tmp_path)
    with pytest.raises(FileNotFoundError, match="mnist is not in"):
        load("mnist_addition", root=tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no table at .*: set data\.path"):
        load("concept_csv", root=tmp_path, path="none.csv", target="kind", concepts=["red"])


@pytest.mark.parametrize("name", names())
def test_the_yaml_has_the_options_with_their_defaults_and_no_other(name):
    written = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    common = keyword_options(concept_data.ConceptRequest)
    own = {p.name: p.default for p in list(inspect.signature(concept_data.SETS[name]).parameters.values())[1:]}
    own = {
        option: "???"
        if default is inspect.Parameter.empty
        else list(default)
        if isinstance(default, tuple)
        else default
        for option, default in own.items()
    }
    assert written == {**common, **own, "name": name}
    assert list(OmegaConf.load(CONFIGS / f"{name}.yaml")) == list(written)
