"""A published file, and its publisher."""

import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

_NAMES_OF_DIGESTS = {"sha256": "SHA-256", "md5": "MD5"}
_DIGITS = re.compile(r"[-_]([0-9a-f]+)\.\w+$")
# The zoo's names for what it has as another model with other fields.
_OF_THE_ZOO = (
    (r"resnext(\d+)(_\d+x\d+d)?", r"resnet\1"),
    (r"resnet\d+_(c4|dc5)", r"resnet50_\1"),
    (r"^(retinanet_\w+)_v2$", r"\1"),
)


class Publisher(NamedTuple):
    """Whose files they are, the address they are under, and which digest's first digits their names end with.

    `code` is the licence of the project, `weights` that of the files, `note` what is to be said of the latter.
    """

    name: str
    host: str
    digest: str
    code: str
    weights: str
    note: str


class Published(NamedTuple):
    """A published file: its name here, its path under the publisher's address, and what it is.

    `score` and `masks` are its publisher's numbers: AP of a detector's boxes and masks on `data`, top-1 accuracy of a
    backbone, in percent. `size` is in MiB, None where the publisher does not say it. What its tensors do not show is in
    `fields` of our model, or in `settings` as its publisher's configuration has them. `proof` says how far the import
    was compared. `package` is the Python package that holds the file; "" for what is downloaded.
    """

    name: str
    publisher: Publisher
    path: str
    score: float
    masks: float | None = None
    size: float | None = None
    data: str = "COCO"
    fields: Mapping[str, Any] = MappingProxyType({})
    settings: Mapping[str, Any] | None = None
    proof: str = ""
    package: str = ""

    @property
    def model(self) -> str | None:
        """The detector of our zoo that it fills; None for a backbone trained on ImageNet."""
        if self.data == "ImageNet":
            return None
        name = self.name.partition("-")[0]
        for pattern, ours in _OF_THE_ZOO:
            name = re.sub(pattern, ours, name)
        return name

    @property
    def file(self) -> str:
        """Its name where it is published."""
        return Path(self.path).name

    @property
    def original(self) -> str:
        """Its name in the cache until it is converted: several publishers have a `model_final`."""
        return f"{self.name}{Path(self.path).suffix}"

    @property
    def url(self) -> str:
        """Where it is: an address, or a package."""
        return f"the package {self.package}" if self.package else self.publisher.host + self.path

    @property
    def digits(self) -> str:
        """The first digits of its digest, with which its name ends."""
        found = _DIGITS.search(self.file)
        assert found is not None, self.file
        return found[1]

    @property
    def licence(self) -> str:
        """That of the weights."""
        return self.publisher.weights

    @property
    def what(self) -> str:
        """What it is: `detector of COCO`."""
        return f"{'detector' if self.model else 'backbone'} of {self.data}"

    @property
    def number(self) -> str:
        """Its publisher's numbers: `AP 41.0, masks 37.2`."""
        if self.model is None:
            return f"top-1 {self.score:.1f} %"
        return f"AP {self.score:.1f}" + ("" if self.masks is None else f", masks {self.masks:.1f}")

    @property
    def mib(self) -> str:
        """Its size, where its publisher states it."""
        return "size not stated" if self.size is None else f"{self.size:.0f} MiB"

    @property
    def about(self) -> str:
        """One line."""
        return f"{self.what}, {self.number}, {self.mib}, {self.licence}"

    @property
    def verification(self) -> str:
        """With what a download is verified."""
        return f"{_NAMES_OF_DIGESTS[self.publisher.digest]} begins with {self.digits}"
