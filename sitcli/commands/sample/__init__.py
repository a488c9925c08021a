"""`sit sample`: a checkpoint to a sample set."""
