"""The run: from prepared rows and a model to a trained adapter."""
