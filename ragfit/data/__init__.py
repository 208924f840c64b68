"""From rows of a file to token ids and labels: what is read, said, learned, and what looks wrong."""
