"""The command line: one file per command or close family; talks HTTP through client.py."""
