"""Places from which the server gets adapters itself: on request, when they are used, or as they come and go."""
