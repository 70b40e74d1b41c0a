import os
import shutil

import pytest
from PIL import Image
from torchvision.datasets import ImageFolder

from ibreg.runs.data.classification import load
from ibreg.runs.data.image_folders import class_folders, is_hidden, train_and_test


def write(folder, *names):
    """Writes images of one color, or empty files where the ending is not one of an image."""
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix.lower() in (".png", ".jpg", ".jpeg", ".gif", ".bmp", ".tif", ".webp", ".jfif"):
            Image.new("RGB", (6, 6), (number, 0, 0)).save(path)
        else:
            path.touch()
    return folder


def names_of(found, folder):
    return [os.path.relpath(path, folder) for path in found.paths]


@pytest.fixture
def pets(tmp_path):
    kinds = [f"{part}/{kind}" for part in ("train", "test") for kind in ("cat", "dog")]
    return write(tmp_path / "pets", *(f"{kind}/{number}.png" for kind in kinds for number in range(4)))


def test_files_and_classes_are_in_the_order_of_torchvision(tmp_path):
    folder = write(
        tmp_path, "b/2.png", "b/10.png", "b/young/0.png", "b/young/x/1.jpg", "b/old/3.png", "a/1.png", "B/1.png"
    )
    found, expected = class_folders(folder, skip_broken=False), ImageFolder(folder)
    assert found.classes == expected.classes == ["B", "a", "b"]
    assert list(zip(found.paths, found.labels, strict=True)) == expected.samples


# --- hidden files and folders


@pytest.mark.parametrize("name", [".ipynb_checkpoints", "__MACOSX", ".git", "@eaDir", "__pycache__", "$RECYCLE.BIN"])
@pytest.mark.parametrize("place", ["", "cat", "cat/deep/deeper"])
def test_hidden_folders_are_neither_classes_nor_images(pets, name, place):
    before = class_folders(pets / "train", skip_broken=False)
    shutil.copytree(pets / "train" / "cat", pets / "train" / place / name)
    assert class_folders(pets / "train", skip_broken=False) == before
    (pets / "train" / place / name / "nested").mkdir()
    shutil.copy(pets / "train" / "cat" / "0.png", pets / "train" / place / name / "nested")
    assert class_folders(pets / "train", skip_broken=False) == before


@pytest.mark.parametrize("name", [".DS_Store", "Thumbs.db", "thumbs.db", "desktop.ini", "._0.png", ".hidden.jpg"])
def test_hidden_files_are_left_out_without_a_warning(pets, name):
    before = class_folders(pets / "train", skip_broken=False)
    for place in ("", "cat", "dog/deep"):
        write(pets / "train", f"{place}/{name}".lstrip("/"))
    assert class_folders(pets / "train", skip_broken=False) == before


def test_a_hidden_folder_in_one_split_alone_is_no_class(pets):
    shutil.copytree(pets / "train" / "cat", pets / "train" / ".ipynb_checkpoints")
    found = load("image_folder", path=pets, image_size=4, validation=0.25)
    assert found.class_names == ("cat", "dog")
    assert [len(part) for part in (found.train, found.validation, found.test)] == [6, 2, 8]


def test_a_folder_of_images_may_itself_be_below_a_hidden_one(tmp_path):
    folder = write(tmp_path / ".cache" / "pets", "cat/0.png", "dog/0.png")
    assert len(class_folders(folder, skip_broken=False).paths) == 2


def test_names_that_only_contain_a_dot_are_not_hidden():
    assert not any(is_hidden(name) for name in ("cat.v2", "cat", "macosx", "thumbs.png", "_", "cat~"))


# --- endings and other files


@pytest.mark.parametrize("ending", ["gif", "jfif", "GIF", "JPG", "Png", "bmp", "TIF", "webp", "jpeg"])
def test_every_ending_of_an_image_counts(pets, ending):
    write(pets, f"train/cat/new.{ending}")
    assert f"train/cat/new.{ending}" in names_of(class_folders(pets / "train", skip_broken=False), pets)


def test_other_files_in_class_folders_are_left_out_with_a_warning(pets):
    others = ("notes.txt", "a.heic", "b.svg", "c.mp4", "raw", "deep/d.csv", "e.pdf")
    write(pets, *(f"train/cat/{name}" for name in others))
    message = r"left out 7 files without the ending of an image: .*a\.heic, .*, \.\.\.$"
    with pytest.warns(UserWarning, match=message) as told:
        found = class_folders(pets / "train", skip_broken=False)
    assert len(told) == 1
    assert len(found.paths) == 8
    assert all(path.endswith(".png") for path in found.paths)


def test_one_other_file_is_named(pets):
    write(pets, "test/dog/labels.csv")
    with pytest.warns(UserWarning, match=r"left out 1 file without the ending of an image: .*test/dog/labels\.csv$"):
        load("image_folder", path=pets, image_size=4, validation=0.25)


def test_images_outside_of_class_folders_are_left_out_with_a_warning(pets):
    write(pets, "train/0.png", "train/readme.md")  # a text beside the folders is nobody's image
    with pytest.warns(UserWarning, match=r"left out 1 file in no class folder: .*train/0\.png$") as told:
        assert len(class_folders(pets / "train", skip_broken=False).paths) == 8
    assert len(told) == 1


def test_a_class_of_other_files_alone_has_no_image(pets):
    write(pets, "train/emu/0.heic", "test/emu/0.png")
    with (
        pytest.warns(UserWarning, match=r"1 file without the ending of an image: .*emu/0\.heic"),
        pytest.raises(ValueError, match=r"no image in .*train for the classes \['emu'\]: add some or remove"),
    ):
        train_and_test(pets, skip_broken=False)


@pytest.mark.parametrize("name", ["val", "valid", "validation", "dev"])
def test_a_folder_of_validation_images_is_said_to_be_unused(pets, name):
    write(pets, f"{name}/cat/0.png")
    with pytest.warns(UserWarning, match=rf"pets/{name} is not used: data.validation holds out images of train"):
        train_and_test(pets, skip_broken=False)


# --- links


def test_links_to_files_folders_and_classes_are_followed(pets, tmp_path):
    elsewhere = write(tmp_path / "elsewhere", "0.png", "emu/0.png", "old/1.png")
    (pets / "train" / "cat" / "link.png").symlink_to(elsewhere / "0.png")
    (pets / "train" / "cat" / "old").symlink_to(elsewhere / "old")
    for part in ("train", "test"):
        (pets / part / "emu").symlink_to(elsewhere / "emu")
    train, test = train_and_test(pets, skip_broken=False)
    assert train.classes == test.classes == ["cat", "dog", "emu"]
    assert {"train/cat/link.png", "train/cat/old/1.png", "train/emu/0.png"} <= set(names_of(train, pets))
    assert len(train.paths) == 8 + 3
    (tmp_path / "linked").symlink_to(pets)
    assert len(train_and_test(tmp_path / "linked", skip_broken=False)[0].paths) == 8 + 3


@pytest.mark.parametrize("target", [".", "..", "cat", "cat/deep"])
def test_a_link_to_a_folder_above_does_not_count_images_again(pets, target):
    (pets / "train" / "cat" / "deep").mkdir()
    (pets / "train" / "cat" / "deep" / "loop").symlink_to(pets / "train" / "cat" / "deep" / ".." / ".." / target)
    assert len(class_folders(pets / "train", skip_broken=False).paths) == 8


# --- files that cannot be read


def test_broken_files_are_left_out_and_named_with_their_fault(pets):
    (pets / "train" / "cat" / "0.png").write_bytes(b"")
    (pets / "train" / "cat" / "1.png").write_bytes((pets / "train" / "cat" / "1.png").read_bytes()[:40])
    first = r".*cat/0\.png is broken \(no image of a known format\): remove or replace it"
    with pytest.warns(UserWarning, match=rf"left out 2 files that cannot be read: {first}; .*cat/1\.png is broken"):
        found = class_folders(pets / "train", skip_broken=True)
    assert names_of(found, pets) == [f"train/cat/{n}.png" for n in (2, 3)] + [f"train/dog/{n}.png" for n in range(4)]
    assert found.labels == [0, 0, 1, 1, 1, 1]
    assert len(class_folders(pets / "train", skip_broken=False).paths) == 8


def test_a_class_of_broken_files_alone_has_no_image(pets):
    for number in range(4):
        (pets / "train" / "cat" / f"{number}.png").write_bytes(b"")
    with (
        pytest.warns(UserWarning, match="left out 4 files that cannot be read"),
        pytest.raises(ValueError, match=r"no image in .*train for the classes \['cat'\]"),
    ):
        class_folders(pets / "train", skip_broken=True)


def test_a_folder_that_may_not_be_listed_is_named(pets, monkeypatch):
    deep = pets / "train" / "cat" / "deep"
    deep.mkdir()
    scandir = os.scandir

    def refuse(path):
        if str(path) == str(deep):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)  # root may list every folder
    with pytest.raises(ValueError, match=rf"^{deep} cannot be listed \(Permission denied\): make the folder readable$"):
        class_folders(pets / "train", skip_broken=False)


# --- many classes


def test_many_classes_of_few_images_are_split_and_the_rarest_is_named(tmp_path):
    kinds = [f"{part}/bird {number:03}" for part in ("train", "test") for number in range(200)]
    folder = write(tmp_path, *(f"{kind}/{number}.png" for kind in kinds for number in range(2)))
    found = load("image_folder", path=folder, image_size=4, validation=0.5)
    assert (found.classes, len(found.train), len(found.validation), len(found.test)) == (200, 200, 200, 400)
    assert found.train.targets.unique().tolist() == list(range(200))
    with pytest.raises(ValueError, match=r"validation=0\.1 of 400 rows cannot have .* class 'bird 000' has 2 of them"):
        load("image_folder", path=folder, image_size=4, validation=0.1)
    (folder / "train" / "bird 117" / "1.png").unlink()
    with pytest.raises(ValueError, match="class 'bird 117' has 1 of them"):
        load("image_folder", path=folder, image_size=4, validation=0.5)
