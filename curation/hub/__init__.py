"""Publishing: the card, Croissant, what is checked before the first byte, the upload."""
