"""Other runtimes with which the engine is compared. Their files are built once, then run here."""
