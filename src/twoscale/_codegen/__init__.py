"""Integer networks turned into source code: one package a language."""
