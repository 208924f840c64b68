"""After training: dev loss, answers and their metrics, base against tuned."""
