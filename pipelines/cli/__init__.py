"""The commands of `granary`, made with click; recipes stay pydantic models, which decide what is valid."""
