"""Koi, the optional adviser: what it is asked and told, and how much of its answers is believed."""
