"""The state: SQL, and nothing but SQL. Decisions are made elsewhere; every write is guarded."""
