"""The API processes of one server: the primary, the others, and what they share."""
