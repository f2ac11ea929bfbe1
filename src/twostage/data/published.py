"""The data sets of the papers: their URLs, and the digests that verify every download."""

from typing import NamedTuple

from twostage.errors import UsageError, nearest

_VOC = "http://host.robots.ox.ac.uk/pascal/VOC/"
_COCO = "http://images.cocodataset.org/"


class Archive(NamedTuple):
    """A tar or zip file: its address, size in bytes and SHA-256; the splits that need it, and the folder in it that
    becomes the root of the data set.
    """

    url: str
    size: int
    sha256: str
    splits: tuple[str, ...]
    root: str = ""

    @property
    def file(self) -> str:
        """Its name."""
        return self.url.rpartition("/")[2]


class PublishedData(NamedTuple):
    """A data set by its name here."""

    name: str
    about: str
    licence: str
    archives: tuple[Archive, ...]

    @property
    def splits(self) -> tuple[str, ...]:
        """All that the archives hold."""
        return tuple(dict.fromkeys(split for archive in self.archives for split in archive.splits))

    def needed(self, splits: tuple[str, ...]) -> tuple[Archive, ...]:
        """The archives that hold these splits; all for none. Raises UsageError for a split that is not there."""
        for split in splits:
            if split not in self.splits:
                raise UsageError(f"splits: {self.name} has no {split!r}. {nearest(split, self.splits)}")
        return tuple(archive for archive in self.archives if not splits or set(splits) & set(archive.splits))


_FLICKR = "the images are Flickr's, under its terms of use"

PUBLISHED_DATA = {
    one.name: one
    for one in (
        PublishedData(
            "voc2007",
            "PASCAL VOC 2007: 9963 images, 20 classes (Everingham et al. 2010)",
            f"no licence is given; {_FLICKR}",
            (
                Archive(
                    f"{_VOC}voc2007/VOCtrainval_06-Nov-2007.tar",
                    460032000,
                    "7d8cd951101b0957ddfd7a530bdc8a94f06121cfc1e511bb5937e973020c7508",
                    ("train", "val", "trainval"),
                    "VOCdevkit/VOC2007",
                ),
                Archive(
                    f"{_VOC}voc2007/VOCtest_06-Nov-2007.tar",
                    451020800,
                    "6836888e2e01dca84577a849d339fa4f73e1e4f135d312430c4856b5609b4892",
                    ("test",),
                    "VOCdevkit/VOC2007",
                ),
            ),
        ),
        PublishedData(
            "voc2012",
            "PASCAL VOC 2012: 11540 images with boxes, 20 classes (Everingham et al. 2015)",
            f"no licence is given; {_FLICKR}",
            (
                Archive(
                    f"{_VOC}voc2012/VOCtrainval_11-May-2012.tar",
                    1999639040,
                    "e14f763270cf193d0b5f74b169f44157a4b0c6efa708f4dd0ff78ee691763bcb",
                    ("train", "val", "trainval"),
                    "VOCdevkit/VOC2012",
                ),
            ),
        ),
        PublishedData(
            "coco2017",
            "COCO 2017: 123287 images, 80 classes, masks (Lin et al. 2014)",
            f"CC BY 4.0 for the annotations; {_FLICKR}",
            (
                Archive(
                    f"{_COCO}annotations/annotations_trainval2017.zip",
                    252907541,
                    "113a836d90195ee1f884e704da6304dfaaecff1f023f49b6ca93c4aaae470268",
                    ("train2017", "val2017"),
                ),
                Archive(
                    f"{_COCO}zips/val2017.zip",
                    815585330,
                    "4f7e2ccb2866ec5041993c9cf2a952bbed69647b115d0f74da7ce8f4bef82f05",
                    ("val2017",),
                ),
                Archive(
                    f"{_COCO}zips/train2017.zip",
                    19336861798,
                    "69a8bb58ea5f8f99d24875f21416de2e9ded3178e903f1f7603e283b9e06d929",
                    ("train2017",),
                ),
            ),
        ),
    )
}


def published_data(name: str) -> PublishedData:
    """The data set of this name. Raises UsageError with the nearest one."""
    if name not in PUBLISHED_DATA:
        raise UsageError(f"There is no data set {name!r} to get. {nearest(name, PUBLISHED_DATA)}")
    return PUBLISHED_DATA[name]
