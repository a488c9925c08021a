"""The transformer, its EMA and its cost; imports torch and the standard library only."""
