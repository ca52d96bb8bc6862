"""What is said and asked of a picture, from the factors of its row: captions, questions, polls, quads."""
