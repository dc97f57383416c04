"""`make fuzz`: a slow tier. Each part runs for FUZZ_S seconds, and prints a line of JSON at the end."""
