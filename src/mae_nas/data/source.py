"""What every data set is: where its training images come from and how they may be varied."""

import re
from abc import abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

from mae_nas.checks import Checked
from mae_nas.data.store import ImageStore

Progress = Callable[[int, int], None]  # (done, total)


@dataclass(kw_only=True)
class ImageSource(Checked):
    """A data set of unlabelled training images. Subclasses are dataclasses that add fields.

    Args:
        side: of the square images of search, in pixels; short sides are resized to it. `auto` is
            the data set's natural side.
        batch_size: images of a step on either level of the search, on all devices together.
        flip: mirror half of the images; right unless left and right mean something.
        crop_padding: border around an image from which windows may be cut, in pixels.
        split: weight and architecture halves by a seeded permutation, or `ordered` as in DARTS.
        group: what must not be divided between splits: `none` (exact duplicates only), `parent`
            (a file's folder), or a regular expression searched for in the file's path below the
            root: its first group, or else all that it matches, names the group.
        held_out: images of the architecture half that are kept for the masked loss of readings; at
            most 10 % of all. Not stated in the paper; we use 2,000, so that the weight half, and
            with it the number of steps, stays as published.
    """

    side: int | Literal["auto"] = "auto"
    batch_size: int = 64
    flip: bool = True
    crop_padding: int = 0
    split: Literal["random", "ordered"] = "random"
    group: str = "none"
    held_out: int = 2000

    has_test: ClassVar[bool] = False
    """Whether it has test images of its own, without which no network is judged on it."""
    natural_side: ClassVar[int | None] = None
    natural_channels: ClassVar[int | None] = None

    def _problems(self) -> Iterator[str]:
        if self.side != "auto" and self.side < 1:
            yield f"data.side: {self.side} is not a number of pixels; use auto or 32"
        if self.batch_size < 1:
            yield f"data.batch_size: {self.batch_size} is not a number of images; use 1+"
        if self.crop_padding < 0:
            yield f"data.crop_padding: {self.crop_padding} is below 0"
        if self.held_out < 1:
            yield f"data.held_out: {self.held_out} leaves no image to judge by; use 1+"
        if self.split not in ("random", "ordered"):
            yield f"data.split: {self.split!r} is not one of random, ordered"
        try:
            re.compile(self.group)
        except re.error as error:
            yield f"data.group: {self.group!r} is not none, parent or a regular expression: {error}"

    def known_side(self) -> int | None:
        """The side if it is known before any data is read."""
        return self.natural_side if self.side == "auto" else self.side

    def known_channels(self) -> int | None:
        """The channels if they are known before any data is read."""
        return self.natural_channels

    def load_test(self) -> ImageStore | None:
        """Test images with labels, which no search sees; None if the data set has none apart."""
        return None

    @abstractmethod
    def load(self, on_progress: Progress | None = None) -> ImageStore:
        """All training images, never a test set; `store_of_arrays` makes a store of them.

        Args:
            on_progress: called with (done, total) while files are decoded.
        """
