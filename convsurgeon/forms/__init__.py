"""The forms that a dense conv can take: one file each, from the algebra of its factors to its JSON."""
