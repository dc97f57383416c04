"""Background work in three steps: load, decide (pure, elsewhere), apply (guarded)."""
