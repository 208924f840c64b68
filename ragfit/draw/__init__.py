"""What a view is made of: safe text, HTML for every reader, progress."""
