"""`sit bench`: how fast this machine trains, samples, encodes and reads."""
