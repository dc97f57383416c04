"""What the SDK has beside what `sky` itself offers."""
