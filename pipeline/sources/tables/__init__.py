"""Tables as they come: texts cut into records, items of json, and which column holds what."""
