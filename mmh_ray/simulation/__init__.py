"""Simulates people and scanners: tissues, protocols, anatomies, imaging artefacts, training pairs."""
