"""Simulated people seen by simulated scanners: tissues, protocols, anatomies, what else a scanner does, training
pairs."""
