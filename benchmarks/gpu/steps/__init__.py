"""One module per step: ``measure`` records its rows, ``lines`` is its part of the table."""
