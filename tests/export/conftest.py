"""What tests of exports share: the sizes of a model that is exported are symbols."""

from collections.abc import Iterator

import jaxtyping
import pytest


@pytest.fixture(autouse=True, scope="session")
def symbols_are_whole_numbers() -> Iterator[None]:
    """The suite's type checks do not accept a symbol as `int`. For the session, as fixtures of the session export."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
