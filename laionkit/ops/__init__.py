"""Pure functions: no file, no socket, no clock, no unseeded randomness."""
