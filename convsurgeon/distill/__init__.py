"""The converted network learns from the original, without labels."""
