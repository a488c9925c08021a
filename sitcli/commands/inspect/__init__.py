"""`sit inspect`: what a store, a run or a sample set holds."""
