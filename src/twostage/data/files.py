"""Small questions about files."""

from pathlib import Path


def exists(path: str | Path) -> bool:
    """Whether there is a file or folder; False for what cannot be looked at, or is no path at all."""
    try:
        return Path(path).exists()
    except (OSError, ValueError):
        return False


def shown(path: str | Path, root: Path) -> str:
    """A path as it is shown to people: inside the data set without its root."""
    path = Path(path)
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)


def require_regular(path: Path) -> None:
    """Raises OSError for what is there and no regular file: a pipe would be waited for without end."""
    if path.exists() and not path.is_file() and not path.is_dir():
        raise OSError("it is not a regular file")
