"""A module a step: ``measure`` makes its rows, ``lines`` its part of the table."""
