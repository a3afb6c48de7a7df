"""How a config.json changes when layers go, field by field."""
