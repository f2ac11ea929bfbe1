"""Ids in COCO files: whole numbers by the format; some tools write text, or name images by their address alone."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

from twostage.data.faults import Fault, fault

LARGEST_ID = 2**63 - 1


def is_id(value: Any) -> TypeGuard[int]:
    """Whether a value is a whole number that an id may be."""
    return type(value) is int and 0 <= value <= LARGEST_ID


def known_id(record: Any, key: str) -> int | None:
    """The id in a record, None where there is none."""
    value = record.get(key) if isinstance(record, dict) else None
    return value if is_id(value) else None


def as_numbers(
    document: Mapping[str, Any], images: list[Any], annotations: list[Any], shown: str, faults: list[Fault]
) -> tuple[list[Any], list[Any]]:
    """The images and annotations with whole numbers for ids that are text, and `file_name` from LVIS' `coco_url`.

    Text of digits becomes that number, other text the position of its image. The records of `document` stay.
    """
    images = [_named(record) for record in images]
    texts = _texts(images, "id")
    if texts:
        numbers = _numbers(texts, _known(images))
        images = [_with(record, "id", numbers) for record in images]
        annotations = [_with(record, "image_id", numbers) for record in annotations]
        message = f"the ids of {len(texts)} of {len(images)} images are text, {texts[0]!r} the first, and are numbered"
        faults.append(fault("text-ids", shown, "images", message, "Nothing to do"))
    categories = document.get("categories")
    listed = categories if isinstance(categories, list) else []
    annotations = _as_known(annotations, "category_id", _known(listed))
    return images, _as_known(annotations, "image_id", _known(images))


def _known(records: Sequence[Any]) -> set[int]:
    return {record["id"] for record in records if isinstance(record, dict) and type(record.get("id")) is int}


def _as_known(records: list[Any], key: str, known: set[int]) -> list[Any]:
    """Records whose ids are those of others, but as text: then as numbers."""
    texts = _texts(records, key)
    if not texts or not all(_is_whole(text) and int(text) in known for text in texts):
        return records
    numbers = {text: int(text) for text in texts}
    return [_with(record, key, numbers) for record in records]


def _is_whole(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 18


def _named(record: Any) -> Any:
    """An image of LVIS has an address, whose end is its file in COCO's folders."""
    if isinstance(record, dict) and "file_name" not in record and isinstance(record.get("coco_url"), str):
        return {**record, "file_name": "/".join(record["coco_url"].split("/")[-2:])}
    return record


def _texts(records: Sequence[Any], key: str) -> list[str]:
    return [record[key] for record in records if isinstance(record, dict) and isinstance(record.get(key), str)]


def _numbers(texts: Sequence[str], taken: set[int]) -> dict[str, int]:
    """A number for each text: its own, or one that no other image has."""
    different = list(dict.fromkeys(texts))
    if all(map(_is_whole, different)):
        own = {text: int(text) for text in different}
        if len({*own.values(), *taken}) == len(different) + len(taken):
            return own
    return {text: number for number, text in enumerate(different, start=1 + max(taken, default=0))}


def _with(record: Any, key: str, numbers: Mapping[str, int]) -> Any:
    if isinstance(record, dict) and isinstance(record.get(key), str) and record[key] in numbers:
        return {**record, key: numbers[record[key]]}
    return record
