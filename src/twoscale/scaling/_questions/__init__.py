"""What a study answers: numbers, sentences, tables, charts and the page."""
