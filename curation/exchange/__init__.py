"""A dataset as other libraries read it."""
