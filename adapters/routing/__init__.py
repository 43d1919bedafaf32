"""Routes: names that stand for a policy. The kinds of routes, how each chooses, and where they are stored."""
