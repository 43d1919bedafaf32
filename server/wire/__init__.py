"""The messages between processes, and how they travel. No torch and no HTTP."""
