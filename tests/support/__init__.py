"""Helpers of the tests: what a network executes, random networks, how far two outputs differ."""
