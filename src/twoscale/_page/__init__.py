"""Tables, charts and pages as data, drawn for browsers, notebooks and terminals."""
