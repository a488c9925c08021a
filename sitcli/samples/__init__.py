"""Sample sets, and the noise they begin with."""
