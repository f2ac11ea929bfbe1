"""How the suite checks types at run time: as mypy does, so that a whole number is good where a float is asked for."""

from beartype import BeartypeConf, beartype

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
