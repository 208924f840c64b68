"""What a run leaves: its checkpoint, status, card, a table of many runs, a merged model, a push to the hub."""
