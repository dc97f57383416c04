"""HTTP: handlers check, record intent, and answer. None of them launches or ends anything."""
