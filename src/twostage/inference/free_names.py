"""Names of the pictures of predictions, none of which takes the place of another."""


def free_name(name: str, taken: dict[str, int]) -> str:
    """The name, or with the first number that is free: photo, photo-2. `taken` are those before, by lower case, as
    macOS and Windows take Photo.png and photo.png for one file, with the last number that was tried."""
    free, key = name, name.casefold()
    while free.casefold() in taken:
        taken[key] += 1
        free = f"{name}-{taken[key]}"
    taken[free.casefold()] = 1
    return free
