"""Integer networks turned into source code: one package per language."""
