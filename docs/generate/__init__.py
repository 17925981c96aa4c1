"""What the documentation shows and code can make: figures, the layers of the package, notebooks."""
