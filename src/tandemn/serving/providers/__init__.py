"""Who serves a deployment: one adapter for each provider, behind one seam."""
