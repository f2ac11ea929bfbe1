"""Names of pictures."""

from twostage.inference.free_names import free_name


def test_no_picture_takes_the_place_of_another() -> None:
    taken: dict[str, int] = {}
    given = ["photo", "photo-2", "Photo", "photo", "other", "photo-2"]
    names = [free_name(name, taken) for name in given]
    assert names == ["photo", "photo-2", "Photo-3", "photo-4", "other", "photo-2-2"]
