"""From numbers to pictures: `source` shows code beside its formula, `figures` draws what a trace holds."""
