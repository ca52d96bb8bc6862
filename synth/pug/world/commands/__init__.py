"""The UnrealCV commands that the embedded world answers."""
