"""Engines: how each is started, asked and measured."""
