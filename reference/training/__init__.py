"""The stages of the recipe in `reference.train`, and what they share: the loop and an optimizer."""
