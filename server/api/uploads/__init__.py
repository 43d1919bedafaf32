"""An adapter's files on their way into the store."""
