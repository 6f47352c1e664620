"""Tables as they come: texts cut into records, items of json, which column holds what, texts joined to candidates."""
