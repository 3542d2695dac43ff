"""Other runtimes that the engine is compared with: their files are built once, then run here."""
