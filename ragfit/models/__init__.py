"""Model classes that `model._target_` can name."""
