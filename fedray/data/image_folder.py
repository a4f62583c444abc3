"""Data handler `image_folder`: pictures in a folder for each class, read by Pillow.

Errors name a picture's file within the folder, never what it shows.
"""

import functools
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fedray.data.holdout import draw_tests
from fedray.data.options import ImageFolderOptions, Origin, read_options
from fedray.data.table_files import check_place
from fedray.errors import DataError, MissingExtra
from fedray.survey import DataCodes, DataSurvey, ValueCounts
from fedray.untrusted_text import decode_name

SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp"),
    *(".ppm", ".pgm", ".pbm"),
)
# Pillow's readers of these alone: others run programs (EPS) or are seldom used
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM")
MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # Pillow's, by number of channels
TRAIN = "train"  # folders that may stand above those of the classes: this one, and
TESTS = ("test", "val", "valid", "validation")  # the first of these that is there
MAX_IMAGES = 10_000_000
CLASSES = "a folder of pictures for each class, or train/ and test/ with such folders"


class Picture(NamedTuple):
    """A picture's file and the name of its class."""

    file: Path
    label: str


class Pictures:
    """A dataset of pictures that stay in their files.

    targets : labels (N,); None: there are none.
    """

    def __init__(
        self,
        files: list[Path],
        targets: np.ndarray | None,
        read: Callable[[Path], np.ndarray],
    ):
        self.files, self.targets, self.read = files, targets, read

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, place: int) -> Any:
        """A picture and its label; where there are no labels, a picture."""
        x = self.read(self.files[place])
        return x if self.targets is None else (x, self.targets[place])


class ImageFolder:
    """Data handler of pictures in class folders, scaled to [0, 1] as float32.

    They are (N, channels, height, width), or (N, height, width, channels) with
    `channels_last`; labels are int64 (N,), codes of the folders' names at all parties.

    Parameters
    ----------
    path : a folder with a folder for each class, or with train/ and test/ that have
        them.
    options : `ImageFolderOptions` has them.

    Raises
    ------
    DataError
        Naming the folder or the picture.
    """

    options_class = ImageFolderOptions

    def __init__(self, path: str, *, origin: Origin | None = None, **options: Any):
        self.path, self.origin = path, origin or Origin()
        self.options: ImageFolderOptions = read_options(ImageFolderOptions, options)
        self._codes: DataCodes | None = None

    def get_survey(self, rows: np.ndarray | None = None) -> DataSurvey:
        """Names of the classes, those of empty folders too."""
        train, test = self._pictures
        labels = [one.label for one in train]
        if rows is not None:
            labels = [labels[row] for row in rows.tolist()]
            counts = ValueCounts.of(labels)
        else:
            folders = [one for top in self._folders for one in _folders_in(top)]
            classes = [decode_name(one.name) for one in folders]
            counts = ValueCounts.of(labels, [*classes, *(one.label for one in test)])
        return DataSurvey(labels=counts, n_samples=len(labels))

    def use_codes(self, codes: DataCodes) -> None:
        """Number the classes as all parties do."""
        self._codes = codes

    def get_data(self) -> tuple[Any, Any]:
        """Return ``(x_train, y_train), (x_test, y_test)``, or two datasets."""
        codes = self._codes or self.get_survey().codes()
        train, test = self._pictures
        if self.origin.is_test:
            part = self._read(train, codes)
            return part, part
        return self._read(train, codes), self._read(test, codes)

    @property
    def _folders(self) -> list[Path]:
        """Folders that hold those of the classes: one, or of training and of tests."""
        folder = Path(self.path)
        if not folder.is_dir():
            raise DataError(self.path, "no folder there", CLASSES)
        names = {one.name for one in _folders_in(folder)}
        parts = [name for name in (TRAIN, *TESTS) if name in names]
        if parts[:1] != [TRAIN]:
            return [folder]
        is_class = names != {*parts} or not _folders_in(folder / TRAIN)
        if is_class and TESTS[0] not in names:
            return [folder]
        own = [folder / part for part in parts[:2]]
        return own[-1:] if self.origin.is_test else own

    @functools.cached_property
    def _pictures(self) -> tuple[list[Picture], list[Picture]]:
        """Pictures for training and for tests."""
        first, *rest = self._folders
        pictures = list(self._find(first))
        if self.origin.is_test:
            return pictures, []
        if isinstance(self.options.test, str):
            return pictures, list(self._find(Path(self.options.test)))
        if rest:
            return pictures, list(self._find(rest[0]))
        tests = draw_tests(len(pictures), self.options.test, self.origin)
        is_test = np.isin(np.arange(len(pictures)), tests)
        parts = [
            [pictures[i] for i in np.flatnonzero(chosen)]
            for chosen in (~is_test, is_test)
        ]
        return parts[0], parts[1]

    def _find(self, top: Path) -> Iterator[Picture]:
        """All pictures below the class folders of a folder, sorted.

        Raises
        ------
        DataError
            If there are none.
        """
        if not top.is_dir():
            raise DataError(str(top), "no folder there", CLASSES)
        n_pictures = 0
        classes = [*_folders_in(top)]
        if self.origin.may_lack_targets and not classes:
            classes = [top]
        for folder in classes:
            for root, folders, names in os.walk(folder):
                folders[:] = sorted(name for name in folders if name[0] != ".")
                for name in sorted(names):
                    if name[0] == "." or not name.lower().endswith(SUFFIXES):
                        continue
                    file = Path(root, name)
                    check_place(file, self.path, self.origin)
                    n_pictures += 1
                    yield Picture(file, decode_name(folder.name))
        if not n_pictures:
            here = any(one.suffix.lower() in SUFFIXES for one in top.iterdir())
            got = "pictures that lie in no class folder" if here else "no pictures"
            raise DataError(str(top), got, CLASSES)
        if n_pictures > MAX_IMAGES:
            raise DataError(str(top), "more pictures", f"at most {MAX_IMAGES:,}")

    def _read(self, pictures: list[Picture], codes: DataCodes) -> Any:
        """Arrays of pictures and labels; or a dataset that reads them one by one."""
        labels = None
        if not self.origin.may_lack_targets:
            labels = codes.encode_labels([one.label for one in pictures], self.path)
        if not self.options.in_memory:
            files = [one.file for one in pictures]
            return Pictures(files, labels, self.read_picture) if files else None
        x = np.empty((len(pictures), *self._shape), np.float32)
        for i, picture in enumerate(pictures):
            x[i] = self.read_picture(picture.file)
        return x, labels

    def read_picture(self, file: Path) -> np.ndarray:
        """One picture as a model takes it, float32 from 0 to 1."""
        pixels = self._read_one(file, self._size)
        return pixels if self._is_last else pixels.transpose(2, 0, 1)

    @property
    def _is_last(self) -> bool:
        """Whether channels are the last axis."""
        own = self.options.channels_last
        return self.origin.channels_last if own is None else own

    @property
    def _shape(self) -> tuple[int, ...]:
        size, n_channels = self._size, self.options.channels
        return (*size, n_channels) if self._is_last else (n_channels, *size)

    @functools.cached_property
    def _size(self) -> tuple[int, int]:
        """Height and width: what the options say, else those of the first picture."""
        if self.options.size is not None:
            return self.options.size
        with self._open(self._pictures[0][0].file) as image:
            return image.height, image.width

    def _open(self, file: Path) -> Any:
        pillow = import_pillow()
        if self.origin.root:  # pictures are read later than they were found
            check_place(file, self.path, self.origin)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return pillow.open(file, formats=FORMATS)
        except Exception as error:
            raise self._broken(file, error) from None

    def _read_one(self, file: Path, size: tuple[int, int]) -> np.ndarray:
        """One picture (height, width, channels), float32 from 0 to 1."""
        height, width = size
        with self._open(file) as image:
            is_other = (image.height, image.width) != size
            if is_other and self.options.size is None:
                got = f"{self._name(file)} of {image.height}×{image.width} pixels"
                needed = f"all {height}×{width}, or data_args: {{size: ...}}"
                raise DataError(self.path, got, needed)
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    return _to_pixels(image, (width, height), self.options.channels)
            except Exception as error:
                raise self._broken(file, error) from None

    def _broken(self, file: Path, error: Exception) -> DataError:
        what = {
            "DecompressionBombError": "more pixels than Pillow reads",
            "UnidentifiedImageError": "no picture that Pillow knows",
        }.get(type(error).__name__, f"a broken picture ({type(error).__name__})")
        needed = f"whole pictures: {', '.join(FORMATS)}"
        return DataError(self.path, f"{self._name(file)}, {what}", needed)

    def _name(self, file: Path) -> str:
        try:
            return repr(str(file.relative_to(self.path)))
        except ValueError:
            return repr(file.name)


def import_pillow() -> Any:
    """Pillow's module of images.

    Raises
    ------
    MissingExtra
        If it is not installed.
    """
    try:
        import PIL.Image
    except ImportError:
        raise MissingExtra("data_handler image_folder", "tables") from None
    return PIL.Image


def _folders_in(folder: Path) -> list[Path]:
    """Folders of classes: all that are not hidden, sorted by name."""
    inner = (one for one in folder.iterdir() if one.is_dir())
    return sorted(one for one in inner if one.name[0] not in "._")


def _to_pixels(image: Any, size: tuple[int, int], n_channels: int) -> np.ndarray:
    """Pixels (height, width, channels) from 0 to 1, of 8 or 16 bits.

    size : (width, height) to which the picture is resized, bilinearly.
    """
    is_deep = image.mode == "I" or image.mode.startswith("I;16")
    if image.mode == "F":
        raise ValueError("pixels that are floats have no highest value")
    image = image.convert("F" if is_deep else MODES[n_channels])
    if image.size != size:
        image = image.resize(size, 2)  # bilinear
    pixels = np.asarray(image, np.float32) / np.float32(65535 if is_deep else 255)
    pixels = pixels.reshape(*pixels.shape[:2], -1)
    if not is_deep or n_channels == 1:
        return pixels
    colours = np.repeat(pixels, min(n_channels, 3), axis=2)
    opaque = np.ones_like(pixels[:, :, : n_channels - 3])
    return np.concatenate([colours, opaque], axis=2)
