"""How stages run: work units through Beam, sessions, recipes, progress."""
