"""What it costs: a fold over facts. Nothing here reads a clock, a file or the network."""
