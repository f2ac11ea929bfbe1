"""Ids in COCO files: whole numbers by the format; some tools write text, or give the address of an image alone."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import chain, count
from typing import Any, TypeGuard

from twostage.data.faults import Fault, fault

LARGEST_ID = 2**63 - 1


def is_id(value: Any) -> TypeGuard[int]:
    """Whether a value is a whole number that an id may be."""
    return type(value) is int and 0 <= value <= LARGEST_ID


def free_ids(taken: Collection[int]) -> Iterator[int]:
    """Ids that are not taken, without end: those after the largest one, then, as no id is larger than that, others."""
    after = range(1 + max((0, *taken)), LARGEST_ID + 1)
    return (number for number in chain(after, count(1)) if number not in taken)


def known_id(record: Any, key: str) -> int | None:
    """The id in a record, None where there is none."""
    value = record.get(key) if isinstance(record, dict) else None
    return value if is_id(value) else None


def as_numbers(document: Mapping[str, Any], shown: str, faults: list[Fault]) -> dict[str, Any]:
    """The document with whole numbers for ids that are text, and `file_name` from LVIS' `coco_url`.

    Text of digits becomes that number, other text a number that is free. The records of `document` stay as they are.
    """
    images, annotations, categories = (_listed(document, key) for key in ("images", "annotations", "categories"))
    images = [_named(record) for record in images]
    for records, key, what in ((images, "image_id", "images"), (categories, "category_id", "categories")):
        texts = _texts(records, "id")
        numbers = _numbers(texts, _known(records))
        if texts:
            records[:] = [_with(record, "id", numbers) for record in records]
            message = f"the ids of {len(texts)} of {len(records)} {what} are text, {texts[0]!r} the first: numbered"
            faults.append(fault("text-ids", shown, what, message, "Nothing to do"))
        known = _known(records)
        own = {text: int(text) for text in _texts(annotations, key) if _is_whole(text) and int(text) in known}
        annotations = [_with(record, key, own | numbers) for record in annotations]
    annotations = [_numbered(record) for record in annotations]
    lists = {"images": images, "annotations": annotations, "categories": categories}
    return {**document, **{key: records for key, records in lists.items() if isinstance(document.get(key), list)}}


def _listed(document: Mapping[str, Any], key: str) -> list[Any]:
    value = document.get(key)
    return list(value) if isinstance(value, list) else []


def _numbered(record: Any) -> Any:
    """An annotation whose own id is text: that becomes another field, for nothing refers to it."""
    if not isinstance(record, dict) or not isinstance(record.get("id"), str):
        return record
    rest = {key: value for key, value in record.items() if key != "id"}
    return {**rest, "id": int(record["id"])} if _is_whole(record["id"]) else {**rest, "id_as_text": record["id"]}


def _known(records: Sequence[Any]) -> set[int]:
    return {record["id"] for record in records if isinstance(record, dict) and type(record.get("id")) is int}


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
    return dict(zip(different, free_ids(taken), strict=False))


def _with(record: Any, key: str, numbers: Mapping[str, int]) -> Any:
    if isinstance(record, dict) and isinstance(record.get(key), str) and record[key] in numbers:
        return {**record, key: numbers[record[key]]}
    return record
