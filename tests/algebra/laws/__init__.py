"""Each law of the algebra as a property, against direct computation in float64."""
