"""Which measurements a study makes, in which order, and where they are kept."""
