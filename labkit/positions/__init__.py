"""Where a token is: position schemes, one per file. Each plugs in at the tokens, at the scores or between blocks."""
