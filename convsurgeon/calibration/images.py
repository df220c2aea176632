"""`Images`: where calibration images come from, and how they become what the network takes."""

from __future__ import annotations

import dataclasses
import numbers
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, default_collate

from convsurgeon.base.arrays import as_tensor
from convsurgeon.base.errors import CalibrationError, describe
from convsurgeon.calibration import image_files
from convsurgeon.calibration.channels_last import is_channels_last, to_channels_first, to_channels_last
from convsurgeon.calibration.dataset import BATCH, check_values, picture_channels, without_labels
from convsurgeon.calibration.normalisation import Numbers, normalisation
from convsurgeon.calibration.pictures import decode, in_batches, is_single
from convsurgeon.graph.example import Example

_PASS = "pass a folder, an .npy or .npz file, a tensor, batches, a DataLoader or a Dataset"

_READING = """\
from PIL import Image

def read(file):
    picture = Image.open(file).convert("{mode}")
    scale = max({width} / picture.width, {height} / picture.height)
    width, height = round(scale * picture.width), round(scale * picture.height)
    left, top = (width - {width}) // 2, (height - {height}) // 2
    picture = picture.resize((width, height), Image.Resampling.BILINEAR)
    picture = picture.crop((left, top, left + {width}, top + {height}))
    pixels = np.float32(picture).reshape({height}, {width}, {channels}) / 255
    {scale}return pixels{turned}[None]

for output in session.run(None, {{{name}: read("photo.jpg")}}):
    print(output.shape, output.ravel()[:6])
"""


@dataclass(frozen=True, eq=False)
class Images:
    """Unlabelled images, and how they are prepared: by `transform`, then `size`, then `mean` and `std`.

    Files are brought to the example's size, and whole numbers in them to [0, 1] by their bit depth. Tensors are what
    the network takes, unless an option says how to prepare them. Labels are ignored.

    Args:
        source: A folder of image files, an `.npy` or `.npz` file, a tensor or array, an iterable of batches, a
            `DataLoader`, or a `Dataset`; None for synthetic images.
        size: Height and width that images are scaled to cover and then cut to, or one number for both.
        mean: Subtracted from pixels in [0, 1]: one number, or one for each channel.
        std: Divides them then.
        transform: Called with every image (C, H, W) in [0, 1]; returns another one.
        limit: Most images to use; of files, tensors and data sets those at even distances, else the first. By default
            1024 in `convert`, and all of them in `recover`.
        channels_last: Whether the network takes (N, H, W, C); by default the example's shape tells.
        trusted: Whether images are used that look wrong for the network, which are refused or added to otherwise.
    """

    source: object = None
    size: int | tuple[int, int] | None = None
    mean: Numbers | None = None
    std: Numbers | None = None
    transform: Callable[[Tensor], Tensor] | None = None
    limit: int | None = None
    channels_last: bool | None = None
    trusted: bool = False

    def __post_init__(self) -> None:
        source = self.source
        if self.limit is not None and not _is_count(self.limit):
            raise CalibrationError(f"limit={self.limit!r}: pass a whole number of images, 1 or more")
        sides = self.size if isinstance(self.size, tuple | list) else (self.size, self.size)
        if self.size is not None and not (len(sides) == 2 and all(map(_is_count, sides))):
            raise CalibrationError(f"size={self.size!r}: pass height and width in pixels, or one number for both")
        if isinstance(source, Tensor):
            check_values(source, "it")
        elif isinstance(source, str | os.PathLike):
            if not Path(source).exists():
                raise CalibrationError(f"calibration: {source} does not exist; {_PASS}")
        elif isinstance(source, bytes | Mapping) or not (
            source is None or isinstance(source, Iterable | Dataset) or hasattr(source, "__array__")
        ):
            raise CalibrationError(f"calibration: cannot read images from type {type(source).__name__}; {_PASS}")

    def batches(self, like: Example, names: Sequence[str] = ()) -> Iterator[Any]:
        """Yield batches as a network takes them, perhaps with labels.

        Args:
            like: The example.
            names: Of the network's inputs, for an `.npz` file that holds several.

        Raises:
            CalibrationError: The images cannot be read, or an option does not fit the network.
        """
        source = self.source
        if self.is_prepared and not _is_picture(like):
            raise CalibrationError(f"size, mean, std, transform: are for images; the network takes {like}")
        if isinstance(source, str | os.PathLike):
            yield from self._from_files(Path(source), like, names)
        elif isinstance(source, Dataset) and not isinstance(source, IterableDataset):
            yield from self._from_dataset(source, like)
        else:
            items = (without_labels(one, like) for one in _given_batches(source, like, self.most))
            channels = picture_channels(like)
            for batch in in_batches(map(_alone, items), channels, BATCH) if channels else items:
                yield self._adapt(batch, like)

    def describe(self, like: Example) -> str:
        """Return how the pictures of a folder become what a network takes; empty for all other sources."""
        if not isinstance(self.source, str | os.PathLike) or not Path(self.source).is_dir() or not _is_picture(like):
            return ""
        channels, *size = self._shape(like)
        height, width = (self.size, self.size) if isinstance(self.size, int) else self.size or size
        colour = "RGB" if channels == 3 else "grey"
        own = "" if self.transform is None else "your transform, "
        scale = (
            "" if self.mean is None and self.std is None else f", {normalisation(self.mean, self.std, channels).name}"
        )
        return f"{self.source}: {colour} from 0 to 1, {own}scaled to cover {height}x{width}, cut in the middle{scale}"

    def reading_code(self, like: Example, name: str) -> str:
        """Return Python that reads a picture as `describe` says and runs `session` on it; empty where it says nothing.

        Args:
            like: The example.
            name: Of the network's input.
        """
        if not self.describe(like) or self.transform is not None or like.tensors()[0].dtype != torch.float32:
            return ""
        channels, *size = self._shape(like)
        height, width = (self.size, self.size) if isinstance(self.size, int) else self.size or size
        scale = normalisation(self.mean, self.std, channels)
        scaled = self.mean is not None or self.std is not None
        return _READING.format(
            mode="RGB" if channels == 3 else "L",
            width=width,
            height=height,
            channels=channels,
            scale=f"pixels = np.float32((pixels - {list(scale.mean)}) / {list(scale.std)})\n    " if scaled else "",
            turned="" if self._is_last(like) else ".transpose(2, 0, 1)",
            name=repr(name),
        )

    @property
    def notes(self) -> tuple[str, ...]:
        """What of a folder is not read."""
        path = Path(self.source) if isinstance(self.source, str | os.PathLike) else None
        return tuple(filter(None, (image_files.describe_skipped(path),))) if path and path.is_dir() else ()

    @property
    def most(self) -> int:
        """The limit as a number."""
        return sys.maxsize if self.limit is None else self.limit

    @property
    def is_prepared(self) -> bool:
        """Whether an option says how tensors become what the network takes."""
        return any(one is not None for one in (self.size, self.mean, self.std, self.transform))

    def _from_files(self, path: Path, like: Example, names: Sequence[str]) -> Iterator[Example]:
        if not _is_picture(like):
            yield from map(like.with_tensors, image_files.read_inputs(path, names, self.most))
            return
        shape = self._shape(like)
        if path.is_dir():
            parts = image_files.read_folder(path, shape[0], self.most)
        elif image_files.is_picture_file(path):
            parts = iter([image_files.read_picture(path, shape[0])])
        else:
            parts = image_files.read_array_file(path, shape, self.most)
        waiting: list[Tensor] = []
        for part in parts:
            images = torch.cat([*waiting, self._prepare(part, like, shape[1:])])
            whole = len(images) // BATCH * BATCH
            yield from (like.with_tensors([batch]) for batch in images[:whole].split(BATCH) if whole)
            waiting = [images[whole:]]
        yield from (like.with_tensors([batch]) for batch in waiting if len(batch))

    def _from_dataset(self, dataset: Any, like: Example) -> Iterator[Any]:
        name = type(dataset).__name__
        rows = image_files.spread(_from_user(f"the length of {name}", len, dataset), self.most)
        for start in range(0, len(rows), BATCH):
            some = rows[start : start + BATCH]
            given = [_from_user(f"item {row} of {name}", dataset.__getitem__, row) for row in some]
            items = [self._item(one, like) for one in given]
            try:
                yield default_collate(items)
            except (RuntimeError, TypeError) as error:
                raise CalibrationError(
                    f"calibration: items of {name} do not make a batch ({describe(error)}); "
                    "pass cs.Images(dataset, size=...) if they differ in size"
                ) from error

    def _item(self, item: Any, like: Example) -> Any:
        """Return an item of a data set without its label, prepared."""
        item = _alone(without_labels(tuple(item) if isinstance(item, list) else item, like))
        channels = picture_channels(like)
        if channels and decode(item, channels) is not None:
            return self._adapt(item, like)[0]
        return self._adapt(as_tensor(item)[None], like)[0] if self.is_prepared else item

    def _adapt(self, batch: Any, like: Example) -> Any:
        """Return a batch without labels, prepared: pictures as files are, what a network may take by the options."""
        channels = picture_channels(like)
        batch = _alone(batch)
        parts = decode(batch, channels) if channels else None
        if parts is not None:
            size = self._shape(like)[1:]
            return torch.cat([self._prepare(part, like, size) for part in parts])
        if channels and isinstance(batch, tuple | list) and all(is_single(one, channels) for one in batch):
            singles = [as_tensor(one)[None] for one in batch]
            if len({one.shape for one in singles}) > 1:
                return self._of_one_size(singles, like)
            batch = torch.cat(singles)
        if not self.is_prepared:
            return batch
        images = as_tensor(batch)
        if images.dim() != 4:
            raise CalibrationError(f"size, mean, std, transform: are for images, not for {tuple(images.shape)}")
        images = to_channels_first(images) if self._is_last(like) else images
        pixels = images if images.is_floating_point() else image_files.to_unit(images.cpu().numpy(), "calibration")
        return self._prepare(pixels, like, None)

    def _of_one_size(self, singles: Sequence[Tensor], like: Example) -> Tensor:
        """Return single pictures that differ in size, prepared one by one."""
        if self.size is None:
            sizes = ", ".join(dict.fromkeys("x".join(map(str, one.shape[1:])) for one in singles))
            raise CalibrationError(f"calibration: images differ in size ({sizes[:80]}); pass cs.Images(..., size=...)")
        return torch.cat([self._adapt(one, like) for one in singles])

    def _prepare(self, pixels: Tensor, like: Example, size: Sequence[int] | None) -> Tensor:
        """Return pixels (N, C, H, W) as the network takes them; `size` is used where the options name none."""
        if self.transform is not None:
            try:
                pixels = torch.stack([self.transform(one) for one in pixels])
            except Exception as error:  # the user's own function
                shape = tuple(pixels.shape[1:])
                raise CalibrationError(f"transform: fails on images {shape}: {describe(error)}") from error
        wanted = (self.size, self.size) if isinstance(self.size, int) else self.size or size
        if wanted is not None:
            pixels = image_files.cover(pixels, *wanted)
        scale = normalisation(self.mean, self.std, pixels.shape[1])
        if max(scale.mean) > 1 and not self.trusted and pixels.min() >= 0 and pixels.max() <= 1:
            raise CalibrationError(
                f"mean: {max(scale.mean):g} is of pixels from 0 to 255, and these are from 0 to 1; divide mean and std "
                "by 255, or say trusted=True (--trusted)"
            )
        images = scale.apply(pixels)
        if not like.tensors()[0].is_floating_point():
            images = (255 * images).round().clamp(0, 255).to(like.tensors()[0].dtype)  # bytes, scaled in the graph
        return to_channels_last(images) if self._is_last(like) else images

    def _is_last(self, like: Example) -> bool:
        return is_channels_last(like.tensors()[0]) if self.channels_last is None else self.channels_last

    def _shape(self, like: Example) -> tuple[int, int, int]:
        """Return the channels, height and width that the network takes."""
        if not _is_picture(like):
            raise CalibrationError(f"calibration: the input has shape {like}; images need 1xCxHxW")
        (tensor,) = like.tensors()
        channels, height, width = (to_channels_first(tensor) if self._is_last(like) else tensor).shape[1:]
        return channels, height, width


def preparation(calibration: object) -> Images | None:
    """Return how pictures become inputs, where calibration images say it, without the images."""
    if isinstance(calibration, str | os.PathLike):
        return Images(calibration)
    if not isinstance(calibration, Images) or isinstance(calibration.source, str | os.PathLike):
        return calibration if isinstance(calibration, Images) else None
    return dataclasses.replace(calibration, source=None)


def _is_picture(like: Example) -> bool:
    """Return whether a network takes one image."""
    return [tensor.dim() for tensor in like.tensors()] == [4]


def _alone(value: Any) -> Any:
    """Return the only element of a tuple or list of one, anything else as it is."""
    return value[0] if isinstance(value, tuple | list) and len(value) == 1 else value


def _given_batches(source: Any, like: Example, most: int) -> Iterator[Any]:
    if isinstance(source, IterableDataset):
        yield from _iterated(DataLoader(source, batch_size=BATCH))
    elif isinstance(source, Tensor) or hasattr(source, "__array__"):
        tensor = as_tensor(source)
        if tensor.dim() == 0:
            raise CalibrationError("calibration: a single number is not a batch; pass images (N, C, H, W)")
        channels = picture_channels(like)
        if channels and tensor.dim() == 3:
            tensor = tensor[None] if is_single(tensor, channels) else tensor[:, None] if channels == 1 else tensor
        few = tensor if len(tensor) <= most else tensor[image_files.spread(len(tensor), most)]
        yield from few.split(BATCH)
    else:
        yield from _iterated(source)


def _iterated(source: Iterable[Any]) -> Iterator[Any]:
    """Yield what a user's own iterable gives; an error of it names the batch."""
    count = 0
    try:
        for batch in source:
            yield batch
            count += 1
    except Exception as error:  # the user's own code
        raise CalibrationError(
            f"calibration: {type(source).__name__} fails at batch {count}: {describe(error)}"
        ) from error


def _from_user(what: str, call: Callable[[Any], Any], given: object) -> Any:
    """Return what a user's own data set gives; an error of it says where."""
    try:
        return call(given)
    except Exception as error:  # the user's own code
        raise CalibrationError(f"calibration: {what} fails: {describe(error)}") from error


def _is_count(value: object) -> bool:
    return isinstance(value, numbers.Integral) and int(value) >= 1
