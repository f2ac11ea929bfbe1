"""The categories of a COCO file as classes: their ids and names, and which of them are not classes."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from twostage.data.coco_ids import is_id, known_id
from twostage.data.faults import Fault, fault
from twostage.data.fields import pack
from twostage.errors import brief

_READ = ("id", "name")


def read_categories(
    document: Mapping[str, Any], shown: str, faults: list[Fault], used: Counter[int | None]
) -> tuple[list[tuple[int, str]], dict[int, int]]:
    """Ids and names in ascending order of id, and the class id of each category id.

    Categories of one name are one class; one without objects is left out, and so is the root that Roboflow writes:
    without objects, and the supercategory of all others. `used` is how many objects each category id has.
    """
    names: dict[int, str] = {}
    roots: set[int] = set()
    above: dict[int, Any] = {}  # the supercategory of each
    fix = 'Write {"id": 1, "name": "cat"} with ids and names that differ'
    records = document.get("categories")
    if not isinstance(records, list) or not records:
        faults.append(fault("broken-record", shown, "categories", "no list of categories, or an empty one", fix))
        records = []
    for position, record in enumerate(records):
        where = f"categories[{position}]"
        number, name = (record.get("id"), record.get("name")) if isinstance(record, dict) else (None, None)
        if not is_id(number):
            faults.append(fault("broken-record", shown, where, f"{brief(record)} lacks a whole id", fix))
        elif not isinstance(name, str):
            message = f"{brief(record)} lacks a name; the class of its {used[number]} objects is {str(number)!r}"
            faults.append(fault("broken-record", shown, where, message, fix))
            names.setdefault(number, str(number))
        else:
            roots |= {number} if record.get("supercategory") == "none" else set()
            above[number] = record.get("supercategory")
            if names.setdefault(number, name) == name:
                continue
            message = f"the id {number} is taken by {names[number]!r}, of which its objects are"
            faults.append(fault("duplicate-class", shown, where, message, fix))
    first: dict[str, int] = {}  # the id of each class
    same: dict[int, int] = {}  # the class's id of each id
    for number, name in sorted(names.items(), key=lambda one: (not used[one[0]], one[0] in roots, one[0])):
        same[number] = first.setdefault(name, number)
        if same[number] == number:
            continue
        both = f"the categories {same[number]} and {number} are both called {name!r}"
        if used[number]:
            message = f"{both}; their {used[same[number]]} and {used[number]} objects are of one class"
            fix = "Give them different names if they are different classes"
            faults.append(fault("merged-classes", shown, "categories", message, fix))
        else:
            message = f"{both}; {number} has no objects and is left out"
            faults.append(fault("unused-category", shown, "categories", message, "Nothing to do"))
    for number in sorted(roots & set(first.values())):
        is_root = all(name == names[number] for other, name in above.items() if other != number)
        if is_root and not used[number] and len(first) > 1:
            del first[names[number]]
            message = f"the category {names[number]!r} is that of all others, has no objects and is left out"
            faults.append(fault("unused-category", shown, "categories", message, "Nothing to do"))
    categories = sorted((number, name) for name, number in first.items())
    label_of = {number: label for label, (number, _) in enumerate(categories)}
    return categories, {number: label_of[own] for number, own in same.items() if own in label_of}


def class_fields(document: Mapping[str, Any], categories: Sequence[tuple[int, str]]) -> list[str]:
    """Other fields of each class, such as supercategory and the names of keypoints."""
    records = document.get("categories")
    known = [one for one in records if isinstance(one, dict)] if isinstance(records, list) else []
    by_id = {known_id(record, "id"): pack(record, _READ) for record in reversed(known)}
    return [by_id.get(number, "") for number, _ in categories]
