"""One module per step: ``measure`` records its rows, ``lines`` formats its part of the table."""
