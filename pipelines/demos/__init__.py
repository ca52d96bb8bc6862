"""The demos, and the pictures they make."""
