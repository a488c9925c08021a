"""Settings of the commands, a class each: the options, their defaults and their help."""
