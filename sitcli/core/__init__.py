"""Pure mathematics of the papers; imports torch and the standard library only."""
