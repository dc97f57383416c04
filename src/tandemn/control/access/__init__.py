"""Who may do what: keys, the table of rules, and the gate that every request passes."""
